"""The law of a reward under a policy: exact quantiles, and means of its tails.

K is the number of actions.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from regdist.metrics.checks import checked
from regdist.numerics.records import Number, as_number, is_concrete

__all__ = [
    "quantile",
    "range_value_at_risk",
]


@checked
def quantile(
    log_p: Float[Array, " K"], reward: Float[Array, " K"], level: Number
) -> Float[Array, ""]:
    """The smallest r with P_p(R <= r) >= level: a reward that occurs, exactly.

    Levels within rounding of a step of the distribution count as on it. Forbidden actions
    (p = 0) do not count.

    Args:
        log_p: log-probabilities, shape [K].
        reward: R, shape [K].
        level: in (0, 1].

    Raises:
        ValueError: the level is outside (0, 1].

    Examples:
        >>> log_p = jnp.log(jnp.array([0.5, 0.3, 0.2]))
        >>> print(quantile(log_p, jnp.array([0.0, 1.0, 2.0]), 0.6))
        1.0
    """
    wanted = _level("level", level, open_below=True).astype(log_p.dtype)
    taken = ~jnp.isneginf(log_p)
    order = jnp.argsort(jnp.where(taken, reward, jnp.inf))
    below = jnp.cumsum(jnp.exp(log_p[order]))
    rounding = 4 * len(log_p) * jnp.finfo(log_p.dtype).eps  # of a sum over all actions
    reached = (below >= wanted - rounding) & taken[order]
    last = jnp.sum(taken) - 1
    return reward[order][jnp.where(jnp.any(reached), jnp.argmax(reached), last)]


@checked
def range_value_at_risk(
    log_p: Float[Array, " K"],
    reward: Float[Array, " K"],
    low: Number = 0.0,
    high: Number = 1.0,
) -> Float[Array, ""]:
    r"""The mean of the quantiles between two levels: 1/(high - low) times their integral.

    $$\frac{1}{b - a} \int_a^b Q_p(u)\, du, \qquad a = \text{low}, \; b = \text{high}$$

    low = 0 is the mean of the worst `high` of the rewards (CVaR), high = 1 of the best 1 - low,
    both E_p R (arXiv 2510.00911). Exact: every action counts with the part of its probability that
    lies between the levels.

    Args:
        log_p: log-probabilities, shape [K].
        reward: R, shape [K].
        low: level in [0, 1].
        high: level in [0, 1], above `low`.

    Raises:
        ValueError: levels outside [0, 1], or high not above low.

    Examples:
        >>> log_p, r = jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.array([0.0, 1.0, 2.0])
        >>> print(range_value_at_risk(log_p, r, 0.0, 0.8).round(4))  # 0.3/0.8
        0.375
    """
    start, end = (_level(n, x).astype(log_p.dtype) for n, x in (("low", low), ("high", high)))
    if is_concrete(start, end) and not np.all(np.asarray(end) > np.asarray(start)):
        raise ValueError(f"high must be above low; got low={low!r}, high={high!r}")
    taken = ~jnp.isneginf(log_p)
    order = jnp.argsort(jnp.where(taken, reward, jnp.inf))
    above = jnp.cumsum(jnp.exp(log_p[order]))
    above = jnp.where(jnp.arange(len(log_p)) >= jnp.sum(taken) - 1, 1, above)
    edges = jnp.clip(jnp.concatenate([jnp.zeros(1, above.dtype), above]), start, end)
    share = jnp.diff(edges)
    return jnp.sum(jnp.where(share > 0, share * jnp.where(taken, reward, 0)[order], 0)) / (
        end - start
    )


def _level(name: str, value: Number, *, open_below: bool = False) -> Array:
    if is_concrete(value):
        known = np.asarray(value)
        if not np.all((known > 0 if open_below else known >= 0) & (known <= 1)):
            interval = "(0, 1]" if open_below else "[0, 1]"
            raise ValueError(f"{name} must be in {interval}; got {name}={value!r}")
    return as_number(value)
