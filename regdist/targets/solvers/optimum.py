"""What every solver returns."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from regdist.numerics.logspace import log_sum_exp
from regdist.regularizers.term import Reduced


class Optimum(NamedTuple):
    """A law and what is needed to judge it.

    Attributes:
        log_p: log-probabilities, shape [K].
        gap: rewards below that of the pivot, an action, in units of reward, shape [K].
        pivot: its index.
        level: the pivot's marginal cost: the multiplier is its reward less this.
        ended: whether the search ended by itself.
        unique: whether no other law is optimal.
    """

    log_p: Array
    gap: Array
    pivot: Array
    level: Array
    ended: Array
    unique: Array


def reachable(reward: Array, parts: list[Reduced]) -> Array:
    """The actions that an optimum may take: allowed, and in every anchor whose f' is unbounded."""
    out = ~jnp.isneginf(reward)
    for part in parts:
        steep = jnp.isposinf(part.divergence.slope(jnp.asarray(jnp.inf, reward.dtype)))
        out &= ~(jnp.isneginf(part.log_anchor) & steep)
    return out


def place_rest(log_p: Array, entrants: Array, capped: Array) -> tuple[Array, Array]:
    """Where `capped`, the mass that log_p lacks to 1, shared evenly by the entrants.

    Also whether that is the only way to share it.
    """
    shares = jnp.maximum(jnp.sum(entrants, dtype=log_p.dtype), 1)
    held = jnp.where(capped, log_sum_exp(jnp.where(capped, log_p, -1)), -1)
    rest = jnp.log(-jnp.expm1(held) / shares)
    return jnp.where(capped & entrants, rest, log_p), ~capped | (shares == 1)
