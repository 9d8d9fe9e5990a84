"""Over what an update is averaged: the law, all groups of a size, or drawn groups."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from regdist.records import record, static

MOST_ENTRIES = 4_000_000
"""The most entries, groups times actions, that `Group` enumerates."""


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


def draw(key: Array, log_p: Float[Array, " K"], shape: tuple[int, ...]) -> Int[Array, "..."]:
    """Independent actions by the inverse of the cumulative sum; none of probability 0.

    The table is folded into about sqrt(K) rows, whose sums are searched first: one uniform and some
    2 sqrt(K) comparisons a sample, against K Gumbel variables.
    """
    size = log_p.shape[0]
    width = math.isqrt(size - 1) + 1
    rows = -(-size // width)
    p = jnp.zeros(rows * width, log_p.dtype).at[:size].set(jnp.exp(log_p)).reshape(rows, width)
    inside = p @ jnp.triu(jnp.ones((width, width), log_p.dtype))
    mass = inside[:, -1]
    upto = mass @ jnp.triu(jnp.ones((rows, rows), log_p.dtype))
    x = jax.random.uniform(key, shape, log_p.dtype) * upto[-1]
    row = jnp.sum(x[..., None] >= upto[:-1], axis=-1)
    rest = x - (upto - mass)[row]
    column = jnp.sum(rest[..., None] >= inside[row][..., :-1], axis=-1)
    found = row * width + column
    heavy = jnp.argmax(mass)  # rounding at the end of a row may point beyond its last action
    return jnp.where(p.ravel()[found] > 0, found, heavy * width + jnp.argmax(p[heavy]))
