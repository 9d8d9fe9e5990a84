"""Penalties as trainers sample them: estimator x placement x clamp x anchor.

l is log(policy/anchor) at a sample. In the loss the estimator is differentiated through the
log-probability of that sample; in the reward its value, at the policy that drew the sample, is
subtracted before or after the advantage is normalized. What each one really optimizes:
2506.09477 and the tests. A penalty summed over all actions is a `Regularizer`, not one of these.
"""

from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from regdist.methods.batch import Batch, covariance, share_of_samples, top_share
from regdist.numerics.records import as_array, choice, looked_at, record, static

ESTIMATORS = ("k1", "k2", "k3", "abs", "k1+", "k2+", "k3+", "abs+")
PLACEMENTS = ("loss", "reward")
CORRECTIONS = ("none", "old", "sampler", "live")
ANCHORS = ("reference", "old", "uniform")


class Penalty:
    """What every penalty shares.

    `placement` says where it is: in the "loss", where `__call__` is subtracted from the
    coefficient of a sample's score, or in the "reward", where `in_reward` is subtracted from what
    a sample is paid: before its group is compared, or `after` the advantage is normalized. `local`
    says that samples do not meet in it.
    """

    placement: str = "loss"
    after: bool = False
    local: ClassVar[bool] = True

    @property
    def regroups(self) -> bool:
        """Whether the rewards that a group compares depend on the policy."""
        return self.placement == "reward" and not self.after

    def in_reward(self, batch: Batch) -> Array:
        """What is subtracted from the reward at each entry, shape [n]."""
        raise NotImplementedError

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """What is subtracted from the coefficient of the score at each entry, shape [n]."""
        raise NotImplementedError

    def coefficients(self) -> tuple[Array, ...]:
        """Its coefficient, as one of a regularizer, if it has one."""
        return ()


@record
class Estimated(Penalty):
    """beta times an estimate of a divergence of the policy from an anchor.

    Attributes:
        beta: coefficient, reward per nat.
        clamp_ratio: |l| beyond it is cut, with no gradient; inf for none.
        clamp_value: an estimate beyond it is cut, with no gradient; inf for none.
        estimator: k1 = l; k2 = l^2/2; k3 = e^{-l} - 1 + l; abs = |l|. With "+" the value of one
            and the gradient of k2 (straight-through).
        placement: "loss" or "reward".
        after: for the reward: subtract from the normalized advantage rather than before.
        corrected: for the loss: multiply the estimate by a ratio that is not detached, so that k1,
            k2 and k3 have the gradient of what they estimate the mean of: "old", rho (TRL, slime);
            "sampler", policy over sampler; "live", policy over itself, 1 (NeMo-RL); "none". The
            product is what `clamp_value` cuts, and nothing moves beyond `clamp_ratio`. Beside "+"
            the ratio is detached, a factor on the gradient of k2 (OpenRLHF's `unbiased_gradient`,
            which cuts it at 10).
        anchor: "reference", "old" or "uniform".
    """

    beta: Array
    clamp_ratio: Array
    clamp_value: Array
    estimator: str = choice(*ESTIMATORS, default="k3")
    placement: str = choice(*PLACEMENTS, default="loss")
    after: bool = static(default=False)
    corrected: str = choice(*CORRECTIONS, default="none")
    anchor: str = choice(*ANCHORS, default="reference")

    def coefficients(self) -> tuple[Array, ...]:
        """Beta."""
        return (self.beta,)

    def _anchor(self, batch: Batch) -> Array:
        tables = batch.tables
        laws = {"reference": tables.log_ref, "old": tables.log_old, "uniform": tables.uniform}
        return laws[self.anchor]

    def _estimate(self, log_ratio: Array, log_weight: Array | None = None) -> tuple[Array, Array]:
        """The estimate, times a live ratio if there is one, and its derivative in log pi, cut."""
        r = jnp.clip(log_ratio, -self.clamp_ratio, self.clamp_ratio)
        name = self.estimator.removesuffix("+")
        value, slope = {
            "k1": (r, jnp.ones_like(r)),
            "k2": (r**2 / 2, r),
            "k3": (jnp.expm1(-r) + r, -jnp.expm1(-r)),
            "abs": (jnp.abs(r), jnp.sign(r)),
        }[name]
        weight = 1.0 if log_weight is None else jnp.exp(log_weight)
        straight = self.estimator.endswith("+")  # the slope of k2, wherever the value is cut
        if not straight and log_weight is not None:
            value, slope = weight * value, weight * (value + slope)
        inside = (jnp.abs(log_ratio) <= self.clamp_ratio) & (jnp.abs(value) <= self.clamp_value)
        value = jnp.clip(value, -self.clamp_value, self.clamp_value)
        return value, weight * log_ratio if straight else jnp.where(inside, slope, 0)

    def in_reward(self, batch: Batch) -> Array:
        """What is subtracted from the reward at each entry."""
        ratio = batch.log_ratio(batch.tables.log_old, self._anchor(batch))
        return self.beta * self._estimate(ratio)[0]

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """What is subtracted from the coefficient of the score at each entry."""
        del advantage
        tables, log_weight = batch.tables, None
        if self.corrected != "none":
            base = {"old": tables.log_old, "sampler": tables.log_sampler, "live": tables.log_p}
            log_weight = batch.log_ratio(tables.log_p, base[self.corrected])
        ratio = batch.log_ratio(tables.log_p, self._anchor(batch))
        return self.beta * self._estimate(ratio, log_weight)[1]


@record
class StepRewards(Penalty):
    """Minus a reward of each step, such as a process reward model gives: added to what is paid.

    An advantage of whole samples compares their sums; one of steps, such as `ToGo` and `Critic`,
    what is paid from each on.

    Attributes:
        rewards: of each step, shape [S, V], of a bandit [K] or [1, K]; those of chance's steps and
            of steps that do not exist are not paid.
        after: add what is paid from a step on to its normalized advantage instead.

    Examples:
        >>> t = rd.tree([[0], [1, 0], [1, 1]], [0.0, 0.0, 1.0])
        >>> part = StepRewards([[0.5, 0.0], [0.0, 0.0]])
        >>> advantage = rd.methods.advantage.GroupRelative(0.0)
        >>> print(rd.field(rd.methods.compose(advantage, penalties=part), t.log_ref, t)[:, 1])
        [0.    0.125]
    """

    rewards: Array = looked_at(lambda name, given: as_array(name, given))
    after: bool = static(default=False)

    @property
    def placement(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """In the reward."""
        return "reward"

    def in_reward(self, batch: Batch) -> Array:
        """Minus the reward at each entry."""
        flat, size = self.rewards.reshape(-1), batch.tables.reward.shape[0]
        if flat.shape[0] != size:
            raise ValueError(
                f"rewards of StepRewards must have a number for each of {size} steps, a table of "
                f"states times tokens, or of a bandit one for each action; got shape "
                f"{self.rewards.shape}"
            )
        return -batch.pick(flat)

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """Nothing: it is in the reward."""
        del batch
        return jnp.zeros_like(advantage)


@record
class KLCov(Penalty):
    """beta |log p/p_old| on the share of samples with the largest covariance (2505.22617).

    verl `kl_cov`. Its gradient at ratio 1 is 0: it does nothing in the first update of a step.
    """

    beta: Array
    fraction: Array

    local: ClassVar[bool] = False

    def coefficients(self) -> tuple[Array, ...]:
        """Beta."""
        return (self.beta,)

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """Beta sign(log p/p_old) on those samples."""
        c = covariance(batch, advantage)
        share = top_share(batch, c, share_of_samples(batch, self.fraction))
        return self.beta * share * jnp.sign(batch.log_rho)


@record
class PositiveNLL(Penalty):
    """weight times the mean of -log p over the steps of the samples whose reward is above 0.

    NeMo-RL `positive_example_nll_weight`, after VAPO (2504.05118). The mean is over those steps
    alone, 0 where there are none; that it is not divided anew takes the averaging "token", which
    is NeMo-RL's default: elsewhere it is averaged as the rest of the loss.

    Attributes:
        weight: its coefficient.
    """

    weight: Array

    local: ClassVar[bool] = False

    def coefficients(self) -> tuple[Array, ...]:
        """The weight."""
        return (self.weight,)

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """Minus the weight over the share of such steps, at each."""
        right = jnp.where(batch.here & (batch.reward > 0), 1.0, 0.0).astype(advantage.dtype)
        share = batch.sum(right)
        return -self.weight * right / jnp.where(share > 0, share, 1)


@record
class TrustRegion(Penalty):
    """(beta/2) [KL - delta]_+^2, KL(old || p) estimated by -log rho at old samples (2505.12366)."""

    beta: Array
    delta: Array

    local: ClassVar[bool] = False

    def coefficients(self) -> tuple[Array, ...]:
        """Beta."""
        return (self.beta,)

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """-beta [KL - delta]_+ for every sample."""
        del advantage
        kl = -batch.sum(batch.log_rho)
        return jnp.full_like(batch.log_rho, -1) * self.beta * jnp.maximum(kl - self.delta, 0)
