"""Weights and masks: factors on the coefficient of a sample's score.

Weights are detached, as in the code. Where code drops a random subset, each sample of it has its
chance of being kept as its weight: the same mean, with less noise.
"""

from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from regdist.methods.batch import Batch, covariance, share_of_samples
from regdist.metrics import entropy
from regdist.numerics.records import choice, record, static


class Weight:
    """What every weight shares.

    `local` says that samples do not meet in it and that it sees no more of the advantage than its
    sign; `rejects` that what it gives 0 is as if it were not there, for penalties in the loss and
    for averages over steps too: then it is 0 or 1.
    """

    local: ClassVar[bool] = True
    rejects: ClassVar[bool] = False

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """The factor at each entry, shape [n]."""
        raise NotImplementedError


@record
class SamplerRatio(Weight):
    """old policy/sampler: cut at the bounds (TIS), or 0 outside them (IcePop).

    verl `compute_rollout_correction_weights`, SkyRL `compute_tis_ratio`, OpenRLHF `PolicyLoss`,
    NeMo-RL `ClippedPGLossFn`, AReaL `apply_rejection_sampling`.

    Attributes:
        low: lower bound.
        high: upper bound.
        mask: drop samples outside instead of cutting their weight.
        over: "token", each step its own; "sequence", the product over the steps of a sample;
            "mean", its geometric mean over them.
        normalized: divided by its mean over the batch, of steps or of samples.
    """

    low: Array
    high: Array
    mask: bool = static(default=False)
    over: str = choice("token", "sequence", "mean", default="token")
    normalized: bool = static(default=False)

    @property
    def local(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether nothing is divided by a mean."""
        return not self.normalized

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """The truncated or masked ratio."""
        del advantage
        tables = batch.tables
        log_ratio = batch.log_ratio(tables.log_old, tables.log_sampler)
        samples = batch
        if self.over != "token":
            samples, log_ratio = batch.samples or batch, batch.whole(log_ratio)
        if self.over == "mean":
            log_ratio = log_ratio / jnp.maximum(samples.length, 1)
        ratio = jnp.exp(log_ratio)
        if self.mask:
            ratio = jnp.where((ratio >= self.low) & (ratio <= self.high), ratio, 0)
        else:
            ratio = jnp.clip(ratio, self.low, self.high)
        if self.normalized:
            mean = samples.mean(ratio)
            ratio = ratio / jnp.where(mean > 1e-8, mean, 1)  # 1e-8 as in verl
        return ratio if self.over == "token" else batch.spread(ratio)


@record
class SamplerMask(Weight):
    """1 where the sampler was near the old policy, 0 elsewhere; the ratio itself is no factor.

    verl `compute_rollout_rejection_mask`, SkyRL `compute_token_mask`, `compute_outlier_token_mask`
    and `compute_sequence_mask`, OpenRLHF `PolicyLoss` beside a plain `SamplerRatio`. With
    x = log(old policy/sampler) at each step:

    Attributes:
        low: least statistic that is kept.
        high: largest.
        statistic: "log_ratio", x, cut at 20 either way; "k2", x^2/2, and "k3", e^x - 1 - x, of it;
            "tv", |p - p'|, and "binary_kl", the KL of the sampler from the old policy between the
            two laws of "this token or not", probabilities kept 1e-6 off 0 and 1.
        over: "token", each step for itself; "sum" or "mean" over the steps of a sample; "every",
            a sample is kept if all its steps are.
        drop: what is not kept does not count in averages over steps, and has no penalty in the
            loss (verl); False: both stay (SkyRL, OpenRLHF).
    """

    low: Array
    high: Array
    statistic: str = choice("log_ratio", "k2", "k3", "tv", "binary_kl", default="log_ratio")
    over: str = choice("token", "sum", "mean", "every", default="token")
    drop: bool = static(default=True)

    @property
    def rejects(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether it drops."""
        return self.drop

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """1 or 0."""
        one, x = jnp.ones_like(advantage), self._each(batch)
        if self.over == "sum":
            x = batch.spread(batch.whole(x))
        elif self.over == "mean":
            x = batch.mean_of_steps(x)
        kept = jnp.where((x >= self.low) & (x <= self.high), one, 0)
        if self.over == "every":
            lost = batch.spread(batch.whole(one - kept))
            kept = jnp.where(lost > 0, 0, one)
        return kept

    def _each(self, batch: Batch) -> Array:
        tables = batch.tables
        if self.statistic in ("tv", "binary_kl"):
            p, old = (
                jnp.clip(jnp.exp(batch.pick(x)), 1e-6, 1 - 1e-6)
                for x in (tables.log_sampler, tables.log_old)
            )
            if self.statistic == "tv":
                return jnp.abs(p - old)
            return p * jnp.log(p / old) + (1 - p) * jnp.log((1 - p) / (1 - old))
        x = jnp.clip(batch.log_ratio(tables.log_old, tables.log_sampler), -20, 20)
        if self.statistic == "k2":
            return x**2 / 2
        return jnp.expm1(x) - x if self.statistic == "k3" else x


@record
class SequenceMask(Weight):
    """0 where A < 0 and the sampler's mean of log(sampler/policy) over the sample is above a bound.

    DeepSeek-V3.2's off-policy sequence mask, as TRL `get_off_policy_mask`: a whole sample goes, if
    the policy has moved away from what it was drawn from.

    Attributes:
        most: nats a step.
    """

    most: Array

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """1 or 0, the same at all steps of a sample."""
        tables = batch.tables
        mean = batch.mean_of_steps(batch.log_ratio(tables.log_sampler, tables.log_p))
        kept = (advantage >= 0) | (mean <= self.most)
        return jnp.where(kept, 1.0, 0.0).astype(advantage.dtype)


@record
class ClipCov(Weight):
    """Drops a random few of the samples whose covariance is within bounds (2505.22617).

    verl `clip_cov`: a share `fraction` of the batch, at least one, of those with
    low < covariance < high whose ratio is not clipped already.
    """

    fraction: Array
    low: Array
    high: Array
    lower: Array
    upper: Array

    local: ClassVar[bool] = False

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """The chance of being kept."""
        c, rho = covariance(batch, advantage), jnp.exp(batch.log_rho)
        clipped = jnp.where(advantage > 0, rho > self.upper, rho < self.lower)
        eligible = batch.here & (c > self.low) & (c < self.high) & ~clipped
        share = jnp.sum(jnp.where(eligible, batch.weight, 0))
        some = share > 0
        dropped = jnp.minimum(share_of_samples(batch, self.fraction) / jnp.where(some, share, 1), 1)
        return jnp.where(eligible, 1 - dropped, 1)


@record
class Steer(Weight):
    """exp(-k |Om|), Om = A/p_old p (1 - p)(log p + H): at least `least` (2510.10150).

    k = -log(least)/max(max |Om|, floor) over the batch. |Om| is how far a sample moves the entropy.
    """

    least: Array
    floor: Array

    local: ClassVar[bool] = False

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """Between `least` and 1."""
        tables = batch.tables
        log_p = batch.pick(tables.log_p)
        p = jnp.exp(log_p)
        old = jnp.exp(batch.pick(tables.log_old))
        spread = batch.pick(tables.each_row(entropy, tables.log_p))
        moved = jnp.abs(advantage / old * p * (1 - p) * (log_p + spread))
        return jnp.exp(jnp.log(self.least) * moved / jnp.maximum(batch.largest(moved), self.floor))
