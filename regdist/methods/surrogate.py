"""Surrogates: what multiplies the score of a sample, given its ratio and its advantage.

Each record states d(objective of one sample)/d(log policy of that sample), the rest detached as in
the code it is named after. rho is policy/old policy. At rho = 1 they are the advantage itself, but
for what `LpReg` protects. Numbers are data. Sources: verl `core_algos`, TRL `grpo_trainer`, and the
papers named.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from regdist.methods.batch import Batch, quantile, top_share
from regdist.metrics import entropy
from regdist.numerics.records import (
    check_kind,
    is_concrete,
    looked_at,
    record,
    static,
)
from regdist.policies.laws import min_p


class Surrogate:
    """What every surrogate shares.

    `local` says that samples do not meet in it and that it is linear in the advantage on each side
    of 0, `differentiable` that nothing in it is detached.
    """

    local: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True

    def is_advantage_at_one(self) -> bool:
        """Whether it is known to be the advantage itself where every ratio is 1."""
        return False

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """The coefficient of the score at each entry, shape [n]."""
        raise NotImplementedError


@record
class LogProb(Surrogate):
    """Objective A log pi: no ratio, so biased once the data are old."""

    def is_advantage_at_one(self) -> bool:
        """It has no ratio."""
        return True

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """A."""
        del batch
        return advantage


@record
class Clip(Surrogate):
    """PPO: min(rho A, clip(rho, lower, upper) A), and at least dual * A where A < 0.

    1707.06347; dual clip 1912.09729. `lower=0, upper=inf` is the plain ratio. In a bandit GSPO is
    the same, and GMPO has the bounds e^{-low}, e^{high}.

    Attributes:
        lower: below it a negative advantage has no gradient.
        upper: above it a positive advantage has none.
        dual: above it a negative advantage has none.
    """

    lower: Array
    upper: Array
    dual: Array

    def is_advantage_at_one(self) -> bool:
        """Where the bounds are known to hold 1."""
        if not is_concrete(self.lower, self.upper, self.dual):
            return False
        # numpy: under somebody's jit what jax computes is traced, however known its inputs are
        low, high, dual = (np.asarray(x) for x in (self.lower, self.upper, self.dual))
        return bool(np.all((low <= 1) & (high >= 1) & (dual >= 1)))

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """Rho A inside, 0 beyond."""
        rho = jnp.exp(batch.log_rho)
        low = jnp.where(advantage < 0, self.lower, 0)
        high = jnp.where(advantage < 0, self.dual, self.upper)
        return jnp.where((rho >= low) & (rho <= high), rho * advantage, 0)


@record
class CappedRatio(Surrogate):
    """Objective sg(clip(rho, lower, upper)) A log pi: never zero (CISPO 2506.13585).

    Attributes:
        lower: least factor.
        upper: largest.
        masked: 0 beyond the bounds on the side that A pushes to, as PPO has it (ROLL's
            `cispo_use_unified_mask`).
    """

    lower: Array
    upper: Array
    masked: bool = static(default=False)

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """clip(rho) A."""
        rho = jnp.exp(batch.log_rho)
        moved = jnp.clip(rho, self.lower, self.upper) * advantage
        if not self.masked:
            return moved
        beyond = jnp.where(advantage > 0, rho > self.upper, (advantage < 0) & (rho < self.lower))
        return jnp.where(beyond, 0, moved)


@record
class SoftGate(Surrogate):
    """Objective (4/tau) sigmoid(tau (rho - 1)) A, with a tau for each sign (SAPO 2511.20347)."""

    tau_positive: Array
    tau_negative: Array

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """Rho sech^2(tau (rho - 1)/2) A."""
        rho = jnp.exp(batch.log_rho)
        tau = jnp.where(advantage > 0, self.tau_positive, self.tau_negative)
        gate = jax.nn.sigmoid(tau * (rho - 1))
        return 4 * rho * gate * (1 - gate) * advantage


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

    The proxy is the old policy without actions below `floor` times its largest, renormalized. Of
    the samples with A < 0 the share `fraction` with the smallest p, if that is more than one, lose
    their clip and gain beta k3(p, proxy), where p is below the proxy.
    """

    clip: Clip
    beta: Array
    fraction: Array
    floor: Array

    local: ClassVar[bool] = False

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """Rho A - beta (1 - proxy/p) on those samples, PPO's coefficient on the others."""
        tables, rho = batch.tables, jnp.exp(batch.log_rho)
        proxy = tables.each_row(lambda row: min_p(row, self.floor), tables.log_old)
        log_p = batch.pick(tables.log_p)
        negative = batch.here & (advantage < 0)
        among = jnp.sum(jnp.where(negative, batch.weight, 0))
        share = self.fraction * among
        count = jnp.floor(share * batch.size + 1e-9)  # a whole number may come out below itself
        share = jnp.where(batch.endless, share, jnp.where(count > 1, count * batch.inv_size, 0))
        last = jnp.where(negative, -log_p, -jnp.inf)
        unlikeliest = jnp.where(negative, top_share(batch, last, share), 0)
        gap = batch.pick(proxy) - log_p
        below = gap > 0
        pull = jnp.expm1(jnp.where(below, gap, 0))
        inside = pull - jnp.where(below, gap, 0) <= 10  # verl cuts k3 there, with no gradient
        moved = rho * advantage + self.beta * jnp.where(inside, pull, 0)
        take = jnp.where(below, unlikeliest, 0)
        return take * moved + (1 - take) * self.clip(batch, advantage)


@record
class EntropyBand(Surrogate):
    """PPO with bounds and advantages by the entropy of the step's state (HAPO, its code).

    g = log max(H, 1e-8) less its quantile `pivot` over the steps of the batch, H the entropy of the
    state's moved policy; h = g/max g where g > 0, and g/min g elsewhere. Where h > 0 the upper
    distance is times 1 + alpha h, elsewhere the lower one times 1 - alpha h; A is times 1 + beta h
    for h > 0 where rho is outside half the bounds, for other h where it is inside. As g/min g is
    not negative, all states but those at the pivot count as open: `signed` takes -g/min g instead,
    which is what the words around that code describe. In a bandit h is 0.

    Attributes:
        low: distance of the lower bound from 1.
        high: distance of the upper one.
        dual: above it a negative advantage has no gradient.
        pivot: the quantile, the nearest order statistic.
        alpha: how far bounds move.
        beta: how far advantages do.
        signed: whether h is below 0 where the entropy is.

    Examples:
        At the state that is nearly decided advantages double, by the words they should vanish.

        >>> t = rd.tree([[0], [1, 0], [1, 1]], [0.0, 0.0, 1.0])
        >>> log_steps = jnp.log(jnp.array([[0.5, 0.5], [0.9, 0.1]]))
        >>> for signed in (False, True):
        ...     print(rd.field(rd.methods.hapo(signed=signed), log_steps, t)[:, 1].round(4))
        [0.0668 0.1203]
        [0.0668 0.    ]
    """

    low: Array
    high: Array
    dual: Array
    pivot: Array
    alpha: Array
    beta: Array
    signed: bool = static(default=False)

    local: ClassVar[bool] = False
    differentiable: ClassVar[bool] = False

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """Rho A', inside bounds of each step."""
        h, rho = self._openness(batch), jnp.exp(batch.log_rho)
        is_open = h > 0
        low = self.low * jnp.where(is_open, 1, 1 - self.alpha * h)
        high = self.high * jnp.where(is_open, 1 + self.alpha * h, 1)
        inside = (rho > 1 - low / 2) & (rho < 1 + high / 2)
        shaped = advantage * jnp.where(inside ^ is_open, 1 + self.beta * h, 1)
        return Clip(1 - low, 1 + high, self.dual)(batch, shaped)

    def _openness(self, batch: Batch) -> Array:
        tables = batch.tables
        each = jnp.log(jnp.maximum(tables.each_row(entropy, tables.log_p), 1e-8))
        each = batch.pick(each)
        # the nearest order statistic, as a level: n - 1 ranks
        ranks = jnp.where(batch.endless, 1, jnp.maximum(batch.size - 1, 1))
        level = jnp.where(batch.endless, self.pivot, jnp.round(self.pivot * ranks) / ranks)
        g = each - quantile(batch, each, level)
        std = jnp.sqrt(jnp.maximum(batch.sum(g**2), 1e-8))
        top = jnp.maximum(batch.largest(g) / std, 1e-8)
        bottom = jnp.minimum(batch.smallest(g) / std, -1e-8)
        down = -bottom if self.signed else bottom
        return g / std / jnp.where(g > 0, top, down)


def _inner(name: str, part: Surrogate) -> Surrogate:
    check_kind(name, part, Surrogate, "Such as rd.methods.surrogate.Clip(0.8, 1.2, math.inf)")
    return part


@record
class OfSequence(Surrogate):
    """A surrogate of the ratio of whole sequences, the same at all steps of one.

    The objective of a sample is the inner one at its ratio s, a product over steps or its geometric
    mean; the score of every step has the inner coefficient. With the mean, d log s has a factor
    1/length, which is the averaging "sequence" (GSPO 2507.18071; TRL's RLOO takes the product).
    """

    inner: Surrogate = looked_at(_inner)
    mean: bool = static(default=True)

    @property
    def local(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the inner one."""
        return self.inner.local

    def is_advantage_at_one(self) -> bool:
        """As the inner one."""
        return self.inner.is_advantage_at_one()

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """The inner coefficient."""
        return self.inner(batch.of_sequences(self.mean), advantage)


@record
class GeometricMean(Surrogate):
    """A exp(mean over steps of log rho), each cut on the side that A pushes to (GMPO 2507.20673).

    Where samples have one step it is `Clip(e^-low, e^high)`.

    Attributes:
        low: log rho below -low has no gradient where A is negative.
        high: log rho above high has none where A is positive.
    """

    low: Array
    high: Array

    def is_advantage_at_one(self) -> bool:
        """Where the bounds are known to hold 0."""
        if not is_concrete(self.low, self.high):
            return False
        return bool(np.all((np.asarray(self.low) >= 0) & (np.asarray(self.high) >= 0)))

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """A times the mean ratio, at the steps that are not clipped."""
        log_rho, up = batch.log_rho, advantage > 0
        cut = jnp.where(up, jnp.minimum(log_rho, self.high), jnp.maximum(log_rho, -self.low))
        inside = jnp.where(up, log_rho <= self.high, log_rho >= -self.low)
        return jnp.where(inside, jnp.exp(batch.mean_of_steps(cut)) * advantage, 0)
