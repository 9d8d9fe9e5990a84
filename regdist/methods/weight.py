"""Weights and masks: factors on the coefficient of a sample's score.

Weights are detached, as in the code. Where code drops a random subset, each sample of it has its
chance of being kept as its weight: the same mean, with less noise.
"""

from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from regdist.methods.batch import Batch, covariance, share_of_samples
from regdist.metrics import entropy
from regdist.numerics.records import record, static


class Weight:
    """What every weight shares.

    `local` says that samples do not meet in it and that it sees no more of the advantage than its
    sign.
    """

    local: ClassVar[bool] = True

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """The factor at each entry, shape [n]."""
        raise NotImplementedError


@record
class SamplerRatio(Weight):
    """old policy/sampler: cut at the bounds (TIS), or 0 outside them (IcePop).

    Attributes:
        low: lower bound.
        high: upper bound.
        mask: drop samples outside instead of cutting their weight.
    """

    low: Array
    high: Array
    mask: bool = static(default=False)

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """The truncated or masked ratio."""
        del advantage
        tables = batch.tables
        ratio = jnp.exp(batch.log_ratio(tables.log_old, tables.log_sampler))
        if self.mask:
            return jnp.where((ratio >= self.low) & (ratio <= self.high), ratio, 0)
        return jnp.clip(ratio, self.low, self.high)


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
        each = batch.whole(batch.log_ratio(tables.log_sampler, tables.log_p))
        mean = each / jnp.maximum(batch.whole(jnp.ones_like(advantage)), 1)
        kept = (advantage >= 0) | (batch.spread(mean) <= self.most)
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
