"""Laws made from laws: tempering, filtering and averaging. All are log-probabilities in nats.

Each serves as an anchor of a regularizer, as a reference (see `transform`), or as a teacher. K is
the number of actions, N of laws.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from regdist.numerics.checks import takes_laws
from regdist.numerics.logspace import normalize
from regdist.numerics.records import (
    Number,
    Table,
    as_array,
    as_number,
    check_log_probs,
    described,
    is_concrete,
    positive,
)

of_law = takes_laws("rd.laws")
"""Lets a function of a law refuse anything else, in words that name the call."""


@of_law
def temper(log_p: Float[Array, " K"], temperature: Number) -> Float[Array, " K"]:
    r"""p^{1/T}, normalized: T > 1 flattens, T < 1 sharpens; it is the power 1/T.

    $$p_i^{1/T} \Big/ \sum_j p_j^{1/T}$$

    Raises:
        ValueError: the temperature is not a finite number above 0.

    Examples:
        >>> print(jnp.exp(temper(jnp.log(jnp.array([0.8, 0.2])), 0.5)).round(4))
        [0.9412 0.0588]
    """
    t = positive("temperature", temperature, "Its limit 0 is rd.laws.restrict to the likeliest")
    gone = jnp.isneginf(log_p)
    return normalize(jnp.where(gone, -jnp.inf, jnp.where(gone, 0, log_p) / t.astype(log_p.dtype)))


@of_law
def restrict(log_p: Float[Array, " K"], keep: Bool[Array, " K"]) -> Float[Array, " K"]:
    """The law given that the action is in `keep`: rejection sampling, RAFT (2304.06767).

    All -inf, which is no law, where `keep` has probability 0.

    Examples:
        >>> keep = jnp.array([True, True, False])
        >>> print(jnp.exp(restrict(jnp.log(jnp.array([0.2, 0.3, 0.5])), keep)))
        [0.4 0.6 0. ]
    """
    kept = jnp.where(keep, log_p, -jnp.inf)
    none = jnp.all(jnp.isneginf(kept))
    return jnp.where(none, -jnp.inf, normalize(jnp.where(none, 0, kept)))


@of_law
def nucleus(log_p: Float[Array, " K"], mass: Number) -> Float[Array, " K"]:
    """The smallest set of likeliest actions that holds `mass`, renormalized (arXiv 1904.09751).

    Actions that tie with the last one kept are kept too, so that their order does not matter.

    Raises:
        ValueError: mass is not in (0, 1].

    Examples:
        >>> print(jnp.exp(nucleus(jnp.log(jnp.array([0.5, 0.3, 0.2])), 0.6)))
        [0.625 0.375 0.   ]
    """
    wanted = _fraction("mass", mass).astype(log_p.dtype)
    ordered = jnp.sort(log_p, descending=True)
    before = jnp.cumsum(jnp.exp(ordered)) - jnp.exp(ordered)
    # The last action whose likelier ones hold less than the mass, beyond the rounding of their sum.
    needed = (before < wanted - 4 * jnp.finfo(log_p.dtype).eps) & ~jnp.isneginf(ordered)
    floor = jnp.min(jnp.where(needed, ordered, jnp.inf))
    return restrict(log_p, log_p >= floor)


@of_law
def min_p(log_p: Float[Array, " K"], fraction: Number) -> Float[Array, " K"]:
    """Actions at least `fraction` times as likely as the likeliest, renormalized (2407.01082).

    Raises:
        ValueError: fraction is not in (0, 1].

    Examples:
        >>> print(jnp.exp(min_p(jnp.log(jnp.array([0.5, 0.3, 0.2])), 0.5)))
        [0.625 0.375 0.   ]
    """
    share = _fraction("fraction", fraction).astype(log_p.dtype)
    # 4 ulps: an action at the fraction itself stays, however the logarithms round.
    floor = jnp.max(log_p) + jnp.log(share) - 4 * jnp.finfo(log_p.dtype).eps
    return restrict(log_p, log_p >= floor)


def mixture(log_laws: Float[Array, "N K"], weights: Table | None = None) -> Float[Array, " K"]:
    r"""The arithmetic mean sum_n w_n p_n: the minimizer over p of sum_n w_n KL(p_n || p).

    $$\sum_n w_n p_n = \arg\min_p \sum_n w_n \mathrm{KL}(p_n \,\|\, p)$$

    Args:
        log_laws: N laws, shape [N, K].
        weights: w >= 0, shape [N], made to sum to 1; default even.

    Examples:
        >>> print(jnp.exp(mixture(jnp.log(jnp.array([[0.8, 0.2], [0.2, 0.8]])))))
        [0.5 0.5]
    """
    log_laws = _laws(log_laws, "rd.laws.mixture(log_laws, weights)")
    w = _weights(weights, log_laws)
    log_w = jnp.where(w > 0, jnp.log(jnp.where(w > 0, w, 1)), -jnp.inf)
    terms = log_laws + log_w[:, None]
    empty = jnp.all(jnp.isneginf(terms), axis=0)
    total = jax.nn.logsumexp(jnp.where(empty, 0, terms), axis=0)
    return jnp.where(empty, -jnp.inf, total)


def geometric_mean(
    log_laws: Float[Array, "N K"], weights: Table | None = None
) -> Float[Array, " K"]:
    r"""prod_n p_n^{w_n}, normalized: the minimizer over p of sum_n w_n KL(p || p_n).

    $$\frac{1}{Z} \prod_n p_n^{w_n} = \arg\min_p \sum_n w_n \mathrm{KL}(p \,\|\, p_n)$$

    An action that any law with positive weight excludes is excluded. Arguments as in `mixture`.

    Examples:
        >>> print(jnp.exp(geometric_mean(jnp.log(jnp.array([[0.8, 0.2], [0.5, 0.5]])))).round(4))
        [0.6667 0.3333]
    """
    log_laws = _laws(log_laws, "rd.laws.geometric_mean(log_laws, weights)")
    return log_pool(log_laws, _weights(weights, log_laws))[0]


def log_pool(
    log_laws: Float[Array, "N K"], weights: Float[Array, " N"]
) -> tuple[Float[Array, " K"], Float[Array, ""]]:
    """The normalized geometric mean and the log of its normalizer, at most 0."""
    gone = jnp.isneginf(log_laws)
    excluded = jnp.any(gone & (weights > 0)[:, None], axis=0)
    log_mean = jnp.sum(weights[:, None] * jnp.where(gone, 0, log_laws), axis=0)
    log_mean = jnp.where(excluded, -jnp.inf, log_mean)
    log_z = jax.nn.logsumexp(log_mean)
    return log_mean - log_z, log_z


def _fraction(name: str, value: Number) -> Array:
    number = as_number(value, name)
    if is_concrete(number) and not np.all((np.asarray(number) > 0) & (np.asarray(number) <= 1)):
        raise ValueError(f"{name} must be in (0, 1]; got {name}={value!r}")
    return number


def _laws(values: Any, where: str) -> Array:
    """Rows of log-probabilities, as an array; each row is looked at where it is known."""
    if isinstance(values, list | tuple):
        values = as_array(f"log_laws of {where}", values)
    if jnp.ndim(values) != 2:
        raise ValueError(
            f"log_laws of {where} must be laws, one a row, [N, K]; got {described(values)}"
        )
    if is_concrete(values):
        for i, row in enumerate(values):
            check_log_probs(f"row {i} of log_laws", row, where)
    return values


def _weights(weights: Table | None, log_laws: Array) -> Array:
    count = log_laws.shape[0]
    w = jnp.ones(count) if weights is None else as_array("weights", weights)
    if w.shape != (count,):
        raise ValueError(f"weights must have shape ({count},), one for each law; got {w.shape}")
    if is_concrete(w) and not (np.all(np.asarray(w) >= 0) and np.sum(w) > 0):
        raise ValueError(f"weights must be >= 0 and not all 0; got {weights!r}")
    w = w.astype(log_laws.dtype)
    return w / jnp.sum(w)


def uniform(like: Array) -> Array:
    """The uniform policy over the K actions of `like`, as log-probabilities [K]."""
    return jnp.full_like(like, -np.log(like.shape[0]))
