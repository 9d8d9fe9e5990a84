"""Groups of samples: all of a size as counts of classes or lists of actions, and drawn ones."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from regdist.methods.batch import Batch, Tables, facts, paid_rewards, whole_table
from regdist.methods.method import Method
from regdist.numerics.logspace import normalize, times_exp
from regdist.numerics.records import is_concrete
from regdist.problems.bandit import Bandit, Outcomes

_CHILDREN = 16  # of a node in `draw`: two levels reach 256 actions, and a level is one gather


class Counts(NamedTuple):
    """All groups of G over L classes: counts, shape [M, L], and log of how often each occurs."""

    counts: np.ndarray
    log_multiplicity: np.ndarray


def num_groups(size: int, classes: int) -> int:
    """C(G + L - 1, L - 1)."""
    return math.comb(size + classes - 1, classes - 1)


@functools.lru_cache(maxsize=16)
def all_groups(size: int, classes: int) -> Counts:
    """Every vector of L counts that sum to G, with log G!/prod n!."""
    counts = np.zeros((1, 0), dtype=np.int64)
    left = np.array([size])
    for _ in range(classes - 1):
        repeat = left + 1
        taken = np.concatenate([np.arange(n) for n in repeat])
        counts = np.column_stack([np.repeat(counts, repeat, axis=0), taken])
        left = np.repeat(left, repeat) - taken
    counts = np.column_stack([counts, left])
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, size + 1)))])
    return Counts(counts, log_factorial[size] - log_factorial[counts].sum(axis=1))


def draw(key: Array, weight: Float[Array, " K"], shape: tuple[int, ...]) -> Int[Array, "..."]:
    """Independent actions in proportion to weights, by the inverse of their cumulative sum.

    The weights are the lowest level of a tree, each node the sum of up to 16 below it. A sample
    goes down from the root, along the sums of the children: one uniform and some 2 sqrt(K)
    additions a sample where K is at most 256, against K Gumbel variables. None of weight 0 is
    drawn.
    """
    width = min(_CHILDREN, math.isqrt(weight.shape[0] - 1) + 1)
    levels, total = [], weight
    while total.shape[0] > 1:
        levels.append(jnp.pad(total, (0, -total.shape[0] % width)).reshape(-1, width))
        total = jnp.sum(levels[-1], axis=1)
    x = jax.random.uniform(key, shape, weight.dtype) * total
    node = jnp.zeros(shape, int)
    for nodes in reversed(levels):
        children = nodes[node]
        ends = list(itertools.accumulate(children[..., i] for i in range(width)))
        passed, before = jnp.zeros(shape, int), jnp.zeros_like(x)
        for end in ends[:-1]:
            beyond = (x >= end) & (end < ends[-1])  # rounding may put x past the last with weight
            passed, before = passed + jnp.where(beyond, 1, 0), jnp.where(beyond, end, before)
        # Kept: it is used more than once, and XLA would compute it anew each time.
        node, x = jax.lax.optimization_barrier((node * width + passed, x - before))
    return node


class Classes(NamedTuple):
    """All groups of a size, as counts of classes of actions.

    Attributes:
        size: samples in each.
        member: the class of each action, shape [K].
        belongs: 1 where an action is of a class, else 0, shape [K, L].
        number: samples of each class in each group, shape [M, L].
        log_group: log-probability of each group, shape [M].
        log_chance: log-probability that a sample is of each class, shape [L].
        advantage: of each class in each group, 0 for those that did not occur, shape [M, L].
    """

    size: int
    member: Array
    belongs: Array
    number: Array
    log_group: Array
    log_chance: Array
    advantage: Array

    def given(self) -> Array:
        """P(group | it holds an action of a class), shape [M, L]."""
        size = jnp.sum(self.number[0])
        log_chance = jnp.where(jnp.isneginf(self.log_chance), jnp.inf, self.log_chance)
        return times_exp(self.number / size, self.log_group[:, None] - log_chance)


def by_class(
    method: Method, tables: Tables, size: int, classes: int, member: Int[Array, " K"]
) -> Classes:
    """Enumerates groups where rewards alone decide who is worth what."""
    dtype = tables.reward.dtype
    counts, log_multiplicity = all_groups(size, classes)
    shares = jnp.asarray(counts / size, dtype)
    inv_size = jnp.full((), 1 / size, dtype)
    reward = jnp.zeros(classes, dtype).at[member].set(tables.reward)
    belongs = (member[:, None] == jnp.arange(classes)).astype(dtype)
    chance = jnp.exp(tables.log_sampler) @ belongs
    some = chance > 0
    finite = jnp.where(some, jnp.log(jnp.where(some, chance, 1)), 0)
    number = jnp.asarray(counts, dtype)
    never = number @ (~some).astype(dtype) > 0
    log_group = jnp.asarray(log_multiplicity, dtype) + number @ finite
    log_group = jnp.where(never, -jnp.inf, log_group)
    log_chance = jnp.where(some, finite, -jnp.inf)

    def advantages(share: Array) -> Array:
        batch = Batch(reward, share, share > 0, inv_size, *facts(tables))
        return jnp.where(share > 0, method.advantages(batch), 0)

    advantage = jax.vmap(advantages)(shares)
    return Classes(size, member, belongs, number, log_group, log_chance, advantage)


def each_coefficient(method: Method, tables: Tables, groups: Classes) -> Float[Array, "M K"]:
    """The coefficient of each action's score in each group."""
    every = whole_table(tables, jnp.exp(tables.log_sampler), 1 / groups.size)
    return jax.vmap(lambda a: method.step_coefficients(every, a[groups.member]))(groups.advantage)


def mean_coefficient(
    method: Method, tables: Tables, groups: Classes, share: Float[Array, "M K"] | None = None
) -> Array:
    """The coefficient of each action's score, its mean over the groups that hold the action.

    Of sequences, the coefficients of their steps in order. `share` is a factor on an action in each
    group, in place of the method's averaging.
    """
    given, advantage = groups.given(), groups.advantage
    if any(penalty.placement == "reward" for penalty in method.penalties):
        coefficient = each_coefficient(method, tables, groups)
        given = given[:, groups.member]
        given = jnp.repeat(given, coefficient.shape[1] // given.shape[1], axis=1)
        return jnp.sum(jnp.where(given > 0, given * coefficient, 0), axis=0)
    every = whole_table(tables, jnp.exp(tables.log_sampler), 1 / groups.size)
    if share is not None:
        given, advantage = given[:, groups.member] * share, advantage[:, groups.member]
    up, down = (jnp.sum(given * jnp.maximum(s * advantage, 0), axis=0) for s in (1, -1))
    if share is not None:
        return method.mean_coefficients(every, up, down, jnp.sum(given, axis=0))
    return method.mean_coefficients(every, groups.belongs @ up, groups.belongs @ down)


def every_list(tables: Tables, size: int) -> tuple[Int[Array, "M G"], Float[Array, " M"]]:
    """All groups as lists of actions, in the order of actions, and the log of their weights."""
    counts, log_multiplicity = all_groups(size, tables.reward.shape[0])
    each = np.tile(np.arange(counts.shape[1]), counts.shape[0])
    index = np.repeat(each, counts.ravel()).reshape(-1, size)
    log_weight = jnp.asarray(log_multiplicity, tables.reward.dtype)
    return jnp.asarray(index), log_weight + jnp.sum(tables.log_sampler[index], axis=1)


def listed(
    method: Method, tables: Tables, index: Int[Array, "M G"], log_weight: Float[Array, " M"]
) -> Float[Array, "M K"]:
    """For each group, weight times the mean over samples of coefficient, by action or step."""
    dtype, size = tables.reward.dtype, index.shape[1]
    share = jnp.full(size, 1 / size, dtype)
    inv_size = jnp.full((), 1 / size, dtype)

    def one(actions: Array, log_chance: Array) -> Array:
        present = ~jnp.isneginf(tables.log_sampler[actions])
        reward = tables.reward[actions]
        batch = Batch(reward, share, present, inv_size, *facts(tables), tables, actions)
        coefficient = method.step_coefficients(batch, method.advantages(batch))
        tokens = batch.tokens
        value = times_exp(jnp.where(tokens.present, coefficient, 0) / size, log_chance)
        return jnp.zeros(tokens.tables.reward.shape[0], dtype).at[tokens.actions].add(value)

    return jax.vmap(one)(index, log_weight)


def check_exchangeable(
    method: Method,
    bandit: Bandit | Outcomes,
    size: int,
    sequences: Callable[[Array], Tables] | None = None,
) -> None:
    """Refuses a method that is seen to pay a sample for its place in the group.

    Groups are enumerated without order, so that its exact mean would be another one. Parts of this
    package look at no place. Those that others wrote are tried, where values are known, on a group
    of two kinds of samples in four orders: samples that are alike must get the same in all.
    """
    if is_ours(method) or bandit.num_actions < 2 or not is_concrete(method, bandit):
        return
    turns = np.arange(size) % 2
    halves = np.sort(turns)
    orders = np.stack([turns, np.roll(turns, 1), halves, halves[::-1]])
    dtype, log_p = bandit.reward.dtype, bandit.log_ref
    paid = jnp.arange(bandit.num_actions, dtype=dtype)
    tables = Tables(paid, log_p, log_p, log_p, log_p, bandit.label)
    if sequences is not None:
        tables = dataclasses.replace(sequences(jnp.zeros_like(paid)), reward=paid)
    share, here = jnp.full(size, 1 / size, dtype), jnp.ones(size, bool)

    def coefficients(actions: Array) -> Array:
        batch = Batch(paid[actions], share, here, share[0], *facts(tables), tables, actions)
        each = method.step_coefficients(batch, method.advantages(batch))
        return each.reshape(size, -1)

    ask = coefficients if sequences is None else jax.jit(coefficients)
    got = [ask(jnp.asarray(order)) for order in orders]
    if not is_concrete(got):  # a trace that others have begun
        return
    got = np.stack(got)
    for kind in set(turns.tolist()):
        alike = got[orders == kind]
        # 1e-6 is beyond what sums in another order may round, in float32 too.
        if np.ptp(alike, axis=0).max() > 1e-6 * (1 + np.abs(got).max()):
            raise ValueError(
                "the advantage (or another part) gives a sample something for its place in the "
                f"group: samples of one action, in groups that differ in order alone, get from "
                f"{alike.min():.6g} to {alike.max():.6g}. rd.Group has no order: average over the "
                "orders of ties, or use rd.Sampled(group_size, num_groups)"
            )


_PROBES = 24
"""Actions that are split, of a table with more."""


def check_weighted(
    method: Method,
    bandit: Bandit | Outcomes,
    sequences: Callable[[Array], Tables] | None = None,
) -> None:
    """Refuses a method that is seen to count actions where it should weigh them.

    The population is a batch of all K actions with weights. Splitting one into two entries that
    share its weight unevenly changes no law, and so must change no update; an unweighted mean, a
    standard deviation, a rank, a quantile or a number of rows does change. Parts of this package
    use weights. Those that others wrote are tried, where values are known, at two policies.

    Args:
        method: whose parts.
        bandit: the problem, or the whole sequences of a tree.
        sequences: of a tree, from a shift of the logits of its steps, flat, to its tables.

    Raises:
        ValueError: it is seen to count.
    """
    if is_ours(method) or bandit.num_actions < 2 or not is_concrete(method, bandit):
        return
    size, paid = bandit.num_actions, paid_rewards(bandit)
    here = np.flatnonzero(np.isfinite(np.asarray(bandit.log_ref)))
    probes = here[np.unique(np.linspace(0, len(here) - 1, min(len(here), _PROBES)).astype(int))]
    noise = np.random.default_rng(0).normal(size=(2, size)).astype(paid.dtype)
    for shift in noise:
        if sequences is None:
            log_p = normalize(bandit.log_ref + jnp.asarray(shift))
            tables = Tables(paid, log_p, log_p, log_p, bandit.log_ref, bandit.label)
        else:
            tables = sequences(jnp.asarray(shift))
        try:
            got = _split(method, tables, jnp.asarray(probes))
        except (TypeError, ValueError, IndexError):
            return  # written for as many entries as there are actions: it cannot be asked
        if not is_concrete(got):  # a trace that others have begun
            return
        split, whole = (np.asarray(x) for x in got)
        off = np.abs(split - whole).max(axis=1)
        # 1e-5 is beyond what sums of weights that are split may round, in float32 too.
        if np.all(off <= 1e-5 * np.abs(whole).max()) or not np.all(np.isfinite(whole)):
            continue
        k = int(probes[int(np.argmax(off))])
        raise ValueError(
            "the loss (or another part that is not of this package) counts entries where it should "
            "weigh them: under rd.Population() they are all actions with weights, and splitting "
            f"action {k} in two, which changes no law, changes its update by {off.max():.3g} of "
            f"{np.abs(whole).max():.3g}. Write means as view.mean(x) (batch.mean in a part), "
            "deviations and ranks with view.weights; or ask in groups: expectation=rd.Group(4)"
        )


@jax.jit
def _split(method: Method, tables: Tables, probes: Array) -> tuple[Array, Array]:
    """The update of each action with each of the probes split, a row each; and with none."""
    own, weight = jnp.arange(tables.reward.shape[0]), jnp.exp(tables.log_sampler)

    def update(batch: Batch, index: Array) -> Array:
        coefficient = method.step_coefficients(batch, method.advantages(batch))
        each = coefficient.reshape(index.shape[0], -1)
        earned = jnp.where(batch.present[:, None], batch.weight[:, None] * each, 0)
        moved = jnp.zeros((weight.shape[0], each.shape[1]), each.dtype).at[index].add(earned)
        if tables.steps is not None:  # where a constant is not free
            return moved.reshape(-1)
        return moved[:, 0] - jnp.exp(tables.log_p) * jnp.sum(moved)

    def split(k: Array) -> Array:
        extra = 0.3 * weight[k]  # uneven shares
        shares = jnp.append(jnp.where(own == k, weight - extra, weight), extra)
        index = jnp.append(own, k)
        present = ~jnp.isneginf(tables.log_sampler)[index]
        none = jnp.zeros((), weight.dtype)
        rewards = tables.reward[index]
        batch = Batch(rewards, shares, present, none, *facts(tables), tables, index)
        return update(batch, index)

    return jax.lax.map(split, probes), update(whole_table(tables, weight, 0.0), own)


def is_ours(method: Method) -> bool:
    """Whether all parts of a method are of this package."""
    parts = (method.advantage, method.surrogate, *method.penalties, *method.weights)
    return all(map(_is_ours, parts))


def _is_ours(part: Any) -> bool:
    """Whether a part, and the parts in it, are of this package."""
    if not dataclasses.is_dataclass(part):
        return True
    written = not getattr(part, "differentiable", True)  # a loss: a function of somebody else's
    if written or not type(part).__module__.startswith("regdist."):
        return False
    return all(map(_is_ours, vars(part).values()))
