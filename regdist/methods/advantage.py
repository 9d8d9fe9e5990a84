"""Advantages: what a sample is worth beside the others of its group.

One record, `GroupRelative`, is most of the literature: a baseline and a scale. The others are named
by what they do. A function of a `Batch`, so that the group may be samples, counts or the law
itself. G is the group size, p the share of correct samples (reward above 0).
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from regdist.methods.batch import Batch, quantile
from regdist.numerics.records import Table, as_array, check_kind, choice, looked_at, record, static

NEEDS = ("", "group", "population")
"""What an advantage cannot do without: nothing, a finite group, or the policy itself."""


class Advantage:
    """What every advantage shares.

    `sees_policy` says that it reads log-probabilities, not rewards alone; `needs` what it cannot do
    without: "group", a finite one, or "population", the law itself.
    """

    sees_policy: ClassVar[bool] = False
    needs: ClassVar[str] = ""

    def __call__(self, batch: Batch) -> Array:
        """The advantage of each entry, shape [n]."""
        raise NotImplementedError

    @property
    def spreads(self) -> bool:
        """Whether all steps of a sample have one advantage, that of the sample."""
        return type(self).at_tokens is Advantage.at_tokens

    def at_tokens(self, tokens: Batch, advantage: Array) -> Array:
        """The advantage of each step, where samples are sequences: by default their sample's.

        Args:
            tokens: the steps, whose `reward` is what each is paid: the sample's at its last own
                one, less the penalties there. `tokens.samples` are the samples, whose penalties
                are taken off too.
            advantage: of each sample.
        """
        return tokens.spread(advantage)

    def coefficients(self) -> tuple[Array, ...]:
        """Its coefficient, as one of a regularizer, if it has one."""
        return ()


@record
class GroupRelative(Advantage):
    """(reward - baseline) / scale.

    Attributes:
        eps: added to the scale.
        baseline: "none"; "mean" of the group, its own sample included; "others", the mean of the
            other samples (RLOO), whose singleton keeps its reward; "greedy", the reward of the
            likeliest action (ReMax); "value", the old policy's expected reward (a perfect critic).
        scale: "none"; "std" of the group, unbiased; "std_biased"; "whiten", sqrt(unbiased
            variance + eps); "whiten_biased", sqrt(max(biased variance, eps)); "mean" (MaxRL);
            "sqrt_mean"; "nonzero", the share of nonzero rewards; "others", the unbiased deviation
            of the other samples, where it is above 0, else 1 (NeMo-RL).
        singleton: what a group of one gets: "formula", or "raw" as in verl: the mean of one
            counts as 0, its standard deviation as 1.
        pooled: over many prompts, what the scale is of the whole batch of, and its mean what is
            subtracted: "rewards"; "centered", rewards less their group's mean; "advantages", those
            less the prompt's value. "none": every group has its own. On one prompt, whose batch is
            its group, it says nothing.
    """

    eps: Array
    baseline: str = choice("none", "mean", "others", "greedy", "value", default="none")
    scale: str = choice(
        "none",
        "std",
        "std_biased",
        "whiten",
        "whiten_biased",
        "mean",
        "sqrt_mean",
        "nonzero",
        "others",
        default="none",
    )
    singleton: str = choice("formula", "raw", default="formula")
    pooled: str = choice("none", "rewards", "centered", "advantages", default="none")

    def __call__(self, batch: Batch) -> Array:
        """(r - b)/(s + eps)."""
        r, single = batch.reward, batch.inv_size == 1
        centered = r
        if self.baseline == "greedy":
            centered = r - batch.greedy
        elif self.baseline == "value":
            centered = r - batch.value
        elif self.baseline != "none":
            centered = r - batch.mean(r)
        if self.baseline == "others":
            centered = centered / jnp.where(single, 1, 1 - batch.inv_size)
        scale = jnp.ones_like(batch.inv_size)
        if self.scale != "none":
            scale = self._scale(batch)
        if self.singleton == "raw":
            centered = jnp.where(single, r, centered)
            if self.scale in ("std", "std_biased", "mean", "sqrt_mean"):
                alone = 0 if "mean" in self.scale else 1
                scale = jnp.where(single, alone + self.eps, scale)
        empty = scale == 0
        return jnp.where(empty, 0, centered / jnp.where(empty, 1, scale))

    def _scale(self, batch: Batch) -> Array:
        r = batch.reward
        if self.scale in ("std", "whiten"):
            return self.of_deviation(batch.std(r, unbiased=True))
        if self.scale in ("std_biased", "whiten_biased"):
            return self.of_deviation(batch.std(r, unbiased=False))
        if self.scale == "others":
            std = _deviation_of_others(batch)
            return jnp.where(std > 0, std + self.eps, 1)
        if self.scale == "nonzero":
            return batch.sum(jnp.where(r != 0, 1.0, 0.0).astype(r.dtype)) + self.eps
        mean = batch.mean(r)
        if self.scale == "mean":
            return mean + self.eps
        safe = mean > 0
        return jnp.where(safe, jnp.sqrt(jnp.where(safe, mean, 1)), 0) + self.eps

    def of_deviation(self, std: Array) -> Array:
        """The scale of a standard deviation."""
        if self.scale == "whiten":
            return jnp.sqrt(std**2 + self.eps)
        if self.scale == "whiten_biased":
            return jnp.sqrt(jnp.maximum(std**2, self.eps))
        return std + self.eps


def _deviation_of_others(batch: Batch) -> Array:
    """The unbiased deviation of the other samples' rewards; 0 where fewer than 2 are left."""
    gap, w = batch.reward - batch.mean(batch.reward), batch.inv_size
    square = batch.sum(gap**2)
    few = 2 * w >= 1  # groups of one or two
    left = jnp.where(few, 1, 1 - w)
    variance = (square - w * gap**2) / left - (w * gap / left) ** 2
    variance = variance * left / jnp.where(few, 1, 1 - 2 * w)
    # what is left of equal rewards after rounding: 64 ulps of the squares
    none = few | (variance <= 64 * jnp.finfo(gap.dtype).eps * square)
    return jnp.where(none, 0, jnp.sqrt(jnp.where(none, 1, variance)))


@record
class Signed(Advantage):
    """positive * r where r > 0, and -negative elsewhere: PSR, NSR, W-REINFORCE, RAFT.

    Attributes:
        positive: factor on the reward of correct samples.
        negative: what wrong samples are pushed down by.
        subset: divide by the share of the samples that count, as code that averages over a
            subset does.
    """

    positive: Array
    negative: Array
    subset: bool = static(default=False)

    def __call__(self, batch: Batch) -> Array:
        """The reward of its own sign."""
        right = batch.reward > 0
        advantage = jnp.where(right, self.positive * batch.reward, -self.negative)
        if not self.subset:
            return advantage
        share = batch.sum(jnp.where(advantage != 0, 1.0, 0.0).astype(advantage.dtype))
        return advantage / jnp.where(share > 0, share, 1)


@record
class MixedOnly(Advantage):
    """The raw reward, 0 in groups of equal rewards unless of one (Reinforce-Rej 2504.11343)."""

    def __call__(self, batch: Batch) -> Array:
        """R 1[the group has two different rewards]."""
        mixed = batch.largest(batch.reward) > batch.smallest(batch.reward)
        return jnp.where(mixed | (batch.inv_size == 1), batch.reward, 0)


@record
class BestMinusSecond(Advantage):
    """The best sample gets its lead over the second, the others nothing (2503.19595).

    Two best samples have no lead. In an infinite group nobody has.
    """

    eps: Array
    scale: str = choice("none", "std", default="none")

    needs: ClassVar[str] = "group"

    def __call__(self, batch: Batch) -> Array:
        """r_max - r_second for the best, over the unbiased std + eps with scale "std"."""
        r, best = batch.reward, batch.largest(batch.reward)
        is_best = batch.here & (r == best)
        alone = jnp.sum(jnp.where(is_best, batch.weight, 0)) < 1.5 * batch.inv_size
        second = batch.largest(r, among=r < best)
        led = alone & jnp.isfinite(second)
        lead = jnp.where(led, best - jnp.where(led, second, 0), 0)
        if self.scale == "std":
            lead = lead / (batch.std(r, unbiased=True) + self.eps)
        return jnp.where(is_best, lead, 0)


@record
class PassAtK(Advantage):
    """What a sample adds to pass@k of its group, standardized (2508.10751).

    With rho = 1 - C(G-c, k)/C(G, k) and s = sqrt(rho (1 - rho)): (1 - rho)/s for a correct sample,
    (1 - rho - C(G-c-1, k-1)/C(G-1, k-1))/s for a wrong one, c of G correct.
    """

    k: Array

    def __call__(self, batch: Batch) -> Array:
        """The analytic advantage; 0 where pass@k is 0 or 1."""
        right = batch.reward > 0
        share = batch.sum(jnp.where(right, 1.0, 0.0).astype(batch.reward.dtype))
        miss = _miss(batch, share, self.k, 0)
        miss_beside = _miss(batch, share, self.k, 1)
        variance = miss * (1 - miss)
        some = variance > 0
        scale = jnp.where(some, jnp.sqrt(jnp.where(some, variance, 1)), 1)
        advantage = jnp.where(right, miss, miss - miss_beside) / scale
        return jnp.where(some, advantage, 0)


def _miss(batch: Batch, share: Array, k: Array, less: int) -> Array:
    """C(G-c-less, k-less)/C(G-less, k-less), with its limit (1-p)^(k-less)."""
    endless, size = batch.endless, batch.size
    wrong = size - jnp.round(size * share) - less
    total, tries = size - less, k - less
    enough = ~endless & (wrong >= tries)

    def log_choose(n: Array) -> Array:
        n = jnp.where(enough, n, tries)
        return jax.lax.lgamma(n + 1) - jax.lax.lgamma(n - tries + 1)

    finite = jnp.where(enough, jnp.exp(log_choose(wrong) - log_choose(total)), 0)
    some = endless & (share < 1)
    limit = jnp.where(some, jnp.exp(tries * jnp.log1p(-jnp.where(some, share, 0))), 0)
    return jnp.where(endless, limit, finite)


@record
class MaxAtK(Advantage):
    """k E max(r - max of k - 1 others, 0), the others drawn from the group (2505.15201).

    PKPO's s^(loo-1), G times it: its mean over the group is an unbiased gradient of E max of k
    samples, and of pass@k where rewards are 0 and 1.

    Attributes:
        k: at least 2, at most G.

    Examples:
        Under the law itself it is the gradient of 1 - (1 - p)^k.

        >>> b, k = rd.bandit([1.0, 0.0], [0.2, 0.8]), 3
        >>> moved = rd.field(rd.methods.compose(MaxAtK(k)), b.log_ref, b)[0]
        >>> print(f"{moved:.4f} {k * 0.8 ** (k - 1) * 0.2 * 0.8:.4f}")
        0.3072 0.3072
    """

    k: Array

    def __call__(self, batch: Batch) -> Array:
        """The expected lead, times k."""
        order = jnp.argsort(jnp.where(batch.here, batch.reward, jnp.inf))
        here, value = batch.here[order], batch.reward[order]
        gap = jnp.where(here[1:], value[1:] - value[:-1], 0)
        share = jnp.cumsum(jnp.where(batch.here, batch.weight, 0)[order])[:-1]
        below = _miss(batch, 1 - share - batch.inv_size, self.k, 1)
        lead = jnp.concatenate([jnp.zeros(1, gap.dtype), jnp.cumsum(gap * below)])
        return self.k * jnp.zeros_like(lead).at[order].set(lead)


@record
class OptimalBaseline(Advantage):
    """r - b with the baseline of least variance, b = sum W r / sum W (2602.17616).

    W = w^2 |S|^2 with the score's |S_y|^2 = 1 - 2 p_y + sum p^2 and the ratio w = policy/old
    policy. Its own sample is in it, hence a small bias.

    Attributes:
        cap: of a second factor min(w, cap)^2, which the code has, as its scores carry their
            weights already; 0 leaves it out, as the paper does.
    """

    cap: Array

    sees_policy: ClassVar[bool] = True

    def __call__(self, batch: Batch) -> Array:
        """R - b."""
        p = jnp.exp(batch.tables.log_p)
        score = batch.pick(1 - 2 * p + jnp.sum(p**2))
        rho = jnp.exp(batch.log_rho)
        again = jnp.where(self.cap > 0, jnp.minimum(rho, self.cap) ** 2, 1)
        weight = again * rho**2 * score
        total = batch.sum(weight)
        some = total > 0
        pivot = batch.largest(batch.reward)
        baseline = batch.sum(weight * (batch.reward - pivot)) / jnp.where(some, total, 1)
        return batch.reward - pivot - baseline


@record
class RangeAtRisk(Advantage):
    """RiskPO (2510.00911): the reward between two quantiles, and the tail below them once more.

    With a and b the quantiles of the group at `low` and `high`: RV = ((r-a)+ - (r-b)+ + a - b)
    / (high - low), CV = -(a-r)+ / low, (weight CV + RV)/(1 + weight), over the unbiased std. Its
    tracked quantiles never reach its advantage, so that the group's own are what it uses.
    """

    low: Array
    high: Array
    weight: Array
    eps: Array

    def __call__(self, batch: Batch) -> Array:
        """At most 0 before centring: no baseline is taken off."""
        r = batch.reward
        a, b = (quantile(batch, r, level) for level in (self.low, self.high))
        inside = jnp.maximum(r - a, 0) - jnp.maximum(r - b, 0) + a - b
        middle = inside / (self.high - self.low + self.eps)
        tail = -jnp.maximum(a - r, 0) / (self.low + self.eps)
        both = (self.weight * tail + middle) / (1 + self.weight)
        std = batch.std(r, unbiased=True)
        return both / (std + self.eps)


def _several_rewards(name: str, given: Table) -> Array:
    rewards = as_array(name, given)
    if rewards.ndim != 2:
        raise ValueError(
            f"{name} must be a row for each reward, a column for each action; got shape "
            f"{rewards.shape}"
        )
    return rewards


def _of_group(name: str, part: GroupRelative | None) -> GroupRelative | None:
    if part is None:
        return None
    check_kind(name, part, GroupRelative, 'Such as GroupRelative(1e-6, "mean", "std")')
    if part.baseline in ("greedy", "value") or part.pooled != "none":
        raise ValueError(
            f"{name} must be of one group alone; got baseline={part.baseline!r}, "
            f"pooled={part.pooled!r}"
        )
    return part


@record
class Decoupled(Advantage):
    """Several rewards, each compared within the group by itself, then added up (2601.05242).

    The problem's own reward has no part in it, nor has a penalty in the reward: what trainers
    decouple are the components that their reward functions return.

    Attributes:
        rewards: of each kind and action, shape [M, K].
        weights: of the kinds, shape [M].
        each: what is done to each kind; None for nothing.
        whole: and to their sum.

    Examples:
        Length is paid a tenth of being right; normalized apart, both weigh the same.

        >>> relative = GroupRelative(0.0, "mean", "std")
        >>> part = Decoupled([[1.0, 0.0, 0.0], [0.0, 0.1, 0.0]], [1.0, 1.0], relative)
        >>> b = rd.bandit([1.0, 0.1, 0.0], [0.2, 0.4, 0.4])
        >>> for advantage in (relative, part):
        ...     print(rd.field(rd.methods.compose(advantage), b.log_ref, b).round(3))
        [ 0.397 -0.146 -0.251]
        [ 0.237  0.29  -0.527]
    """

    rewards: Array = looked_at(_several_rewards)
    weights: Array
    each: GroupRelative | None = looked_at(_of_group)
    whole: GroupRelative | None = looked_at(_of_group, default=None)

    sees_policy: ClassVar[bool] = True

    def __call__(self, batch: Batch) -> Array:
        """The weighted sum of the advantages of the kinds."""
        size = batch.tables.reward.shape[0]
        if self.rewards.shape[1] != size:
            raise ValueError(
                f"rewards of Decoupled must have a column for each of {size} actions; got shape "
                f"{self.rewards.shape}"
            )
        parts = [_compared(self.each, batch, batch.pick(row)) for row in self.rewards]
        weights = jnp.broadcast_to(self.weights, (len(parts),))
        return _compared(self.whole, batch, weights @ jnp.stack(parts))


def _compared(part: GroupRelative | None, batch: Batch, reward: Array) -> Array:
    return reward if part is None else part(dataclasses.replace(batch, reward=reward))
