"""Weights, masks and penalties that look at a sample's place in its batch.

A weight multiplies the coefficient of a sample's score; it is detached, as in the code. Where code
drops a random subset, each sample of it has its chance of being kept as its weight: the same mean,
with less noise.
"""

from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from regdist.methods.batch import Batch
from regdist.methods.surrogate import Clip, Surrogate
from regdist.metrics import entropy
from regdist.numerics.records import record, static
from regdist.policies.laws import min_p


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
        laws = batch.tables
        ratio = jnp.exp(batch.log_ratio(laws.log_old, laws.log_sampler))
        if self.mask:
            return jnp.where((ratio >= self.low) & (ratio <= self.high), ratio, 0)
        return jnp.clip(ratio, self.low, self.high)


def covariance(batch: Batch, advantage: Array) -> Array:
    """(A - mean A)(log p - mean log p) at each entry."""
    log_p = batch.pick(batch.tables.log_p)
    return (advantage - batch.mean(advantage)) * (log_p - batch.mean(log_p))


def how_many(batch: Batch, fraction: Array) -> Array:
    """The share of a batch that is `fraction` of its samples, rounded down, and at least one."""
    count = jnp.maximum(jnp.floor(fraction * batch.size + 1e-9), 1)
    return jnp.where(batch.endless, fraction, count * batch.inv_size)


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
        dropped = jnp.minimum(how_many(batch, self.fraction) / jnp.where(some, share, 1), 1)
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
        laws = batch.tables
        log_p = batch.pick(laws.log_p)
        p = jnp.exp(log_p)
        old = jnp.exp(batch.pick(laws.log_old))
        moved = jnp.abs(advantage / old * p * (1 - p) * (log_p + entropy(laws.log_p)))
        return jnp.exp(jnp.log(self.least) * moved / jnp.maximum(batch.largest(moved), self.floor))


class InLoss:
    """A penalty in the loss in which samples meet; what `Method` asks of every penalty."""

    placement: ClassVar[str] = "loss"
    regroups: ClassVar[bool] = False
    local: ClassVar[bool] = False


@record
class KLCov(InLoss):
    """beta |log p/p_old| on the share of samples with the largest covariance (2505.22617).

    verl `kl_cov`. Its gradient at ratio 1 is 0: it does nothing in the first update of a step.
    """

    beta: Array
    fraction: Array

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """Beta sign(log p/p_old) on the chosen."""
        c = covariance(batch, advantage)
        chosen = top_share(batch, c, how_many(batch, self.fraction))
        return self.beta * chosen * jnp.sign(batch.log_rho)


def top_share(batch: Batch, x: Array, share: Array) -> Array:
    """How much of each entry belongs to the `share` of the batch with the largest x.

    Ties at the edge share it evenly: the mean over the orders in which they may come.
    """
    weight = jnp.where(batch.here, batch.weight, 0)
    finite = batch.here & jnp.isfinite(x)
    rounding = 64 * jnp.finfo(x.dtype).eps * jnp.max(jnp.where(finite, jnp.abs(x), 0), initial=0)
    gap = jnp.where(finite[None, :], x[None, :], -jnp.inf) - jnp.where(finite, x, 0)[:, None]
    larger = jnp.sum(jnp.where(gap > rounding, weight[None, :], 0), axis=1)
    equal = jnp.sum(jnp.where(jnp.abs(gap) <= rounding, weight[None, :], 0), axis=1)
    left = jnp.clip(share - larger, 0, equal)
    return jnp.where(finite, left / jnp.where(equal > 0, equal, 1), 0)


@record
class TrustRegion(InLoss):
    """(beta/2) [KL - delta]_+^2, KL(old || p) estimated by -log rho at old samples (2505.12366)."""

    beta: Array
    delta: Array

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """-beta [KL - delta]_+ for every sample."""
        del advantage
        kl = -batch.sum(batch.log_rho)
        return jnp.full_like(batch.log_rho, -1) * self.beta * jnp.maximum(kl - self.delta, 0)


@record
class Bapo(Surrogate):
    """PPO whose bounds move until positive samples weigh enough (2510.18927).

    From the first bounds on, the lower one rises by `step` to its end, then the upper one, until
    the sum of min(rho, upper) A over A > 0 is at least `share` times that of max(rho, lower) |A|
    over A < 0, or both are at their ends. Bounds of the ratio itself, as in its code. A higher
    lower bound only adds to the negative part: once it moves it moves to its end.

    Attributes:
        lower: first and last lower bound, shape [2].
        upper: first and last upper bound, shape [2].
        step: how far a bound moves at a time.
        share: what the positive part is to reach.
        dual: dual clip.
        most: most steps of a bound.
    """

    lower: Array
    upper: Array
    step: Array
    share: Array
    dual: Array
    most: int = static(default=16)

    local: ClassVar[bool] = False

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """Rho A inside the bounds found, 0 beyond."""
        rho = jnp.exp(batch.log_rho)
        climb = jnp.arange(self.most + 1).astype(rho.dtype) * self.step
        rise = jnp.minimum(self.lower[0] + climb, self.lower[1])
        lift = jnp.minimum(self.upper[0] + climb, self.upper[1])
        lows = jnp.concatenate([rise, jnp.full_like(rise, 1) * self.lower[1]])
        highs = jnp.concatenate([jnp.full_like(lift, 1) * self.upper[0], lift])
        here = jnp.where(batch.here, batch.weight, 0) * advantage
        up = jnp.maximum(here, 0) @ jnp.minimum(rho[:, None], highs)
        down = jnp.maximum(-here, 0) @ jnp.maximum(rho[:, None], lows)
        enough = up >= self.share * down
        i = jnp.where(jnp.any(enough), jnp.argmax(enough), len(lows) - 1)
        return Clip(lows[i], highs[i], self.dual)(batch, advantage)


@record
class LpReg(Surrogate):
    """PPO, and k3 to a filtered proxy on the unlikeliest negative samples (2510.03222).

    The proxy is the old policy without actions below `floor` times its largest, renormalised. Of
    the samples with A < 0 the share `fraction` with the smallest p, if that is more than one, lose
    their clip and gain beta k3(p, proxy), where p is below the proxy.
    """

    clip: Clip
    beta: Array
    fraction: Array
    floor: Array

    local: ClassVar[bool] = False

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """Rho A - beta (1 - proxy/p) on the chosen, PPO's coefficient on the others."""
        laws, rho = batch.tables, jnp.exp(batch.log_rho)
        proxy = min_p(laws.log_old, self.floor)
        log_p = batch.pick(laws.log_p)
        negative = batch.here & (advantage < 0)
        among = jnp.sum(jnp.where(negative, batch.weight, 0))
        share = self.fraction * among
        count = jnp.floor(share * batch.size + 1e-9)
        share = jnp.where(batch.endless, share, jnp.where(count > 1, count * batch.inv_size, 0))
        last = jnp.where(negative, -log_p, -jnp.inf)
        chosen = jnp.where(negative, top_share(batch, last, share), 0)
        gap = batch.pick(proxy) - log_p
        below = gap > 0
        pull = jnp.expm1(jnp.where(below, gap, 0))
        inside = pull - jnp.where(below, gap, 0) <= 10
        moved = rho * advantage + self.beta * jnp.where(inside, pull, 0)
        take = jnp.where(below, chosen, 0)
        return take * moved + (1 - take) * self.clip(batch, advantage)
