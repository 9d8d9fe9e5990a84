"""What every solver returns."""

from typing import NamedTuple

from jax import Array


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
