"""Over what an update is averaged: the law, all groups of a size, or drawn groups."""

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from regdist.numerics.records import record, static

MOST_ENTRIES = 4_000_000
"""The most entries, groups times actions, that `Group` enumerates."""

_CHILDREN = 16


@record
class Population:
    """The exact expectation over actions: one group of infinite size, the law itself."""


@record
class Group:
    """The exact expectation over groups of G independent samples; made by `group()`.

    Groups are enumerated as counts. Where a method compares rewards alone, actions with equal
    rewards are one class: for a binary reward that leaves G + 1 groups, whatever K is.

    Attributes:
        size: G.
        classes: number of classes, or None before `on` has looked at the rewards.
        member: the class of each action, shape [K].
    """

    size: int = static()
    classes: int | None = static(default=None)
    member: Int[Array, " K"] | None = None

    def on(self, reward: Array) -> "Group":
        """This expectation for tables with these rewards, known now; then usable under jit."""
        levels, member = np.unique(np.asarray(reward), return_inverse=True)
        return Group(self.size, len(levels), jnp.asarray(member.ravel()))


@record
class Sampled:
    """The mean update of groups drawn with a key: an unbiased draw of `Group`.

    Attributes:
        group_size: samples a group.
        num_groups: groups of the one prompt, independent, whose updates are averaged. Statistics
            that a trainer takes over its batch are taken over each group.
    """

    group_size: int = static()
    num_groups: int = static(default=1)


Expectation = Population | Group | Sampled


class Groups(NamedTuple):
    """All groups of G over L classes: counts, shape [M, L], and log of how often each occurs."""

    counts: np.ndarray
    log_multiplicity: np.ndarray


def num_groups(size: int, classes: int) -> int:
    """C(G + L - 1, L - 1)."""
    return math.comb(size + classes - 1, classes - 1)


@functools.lru_cache(maxsize=16)
def all_groups(size: int, classes: int) -> Groups:
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
    return Groups(counts, log_factorial[size] - log_factorial[counts].sum(axis=1))


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
    found = jnp.zeros(shape, int)
    for nodes in reversed(levels):
        children = nodes[found]
        ends = list(itertools.accumulate(children[..., i] for i in range(width)))
        passed, before = jnp.zeros(shape, int), jnp.zeros_like(x)
        for end in ends[:-1]:
            beyond = (x >= end) & (end < ends[-1])  # rounding may put x past the last with weight
            passed, before = passed + jnp.where(beyond, 1, 0), jnp.where(beyond, end, before)
        # Kept: it is used more than once, and XLA would compute it anew each time.
        found, x = jax.lax.optimization_barrier((found * width + passed, x - before))
    return found
