"""Functions of a law on actions, given as log-probabilities in nats.

Each works on one law of shape [K]; batch with `jax.vmap`. All are defined at probability 0, in
value and gradient. Divergences have arguments `log_p, log_q` and say which sum they compute.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from regdist.divergence import KL
from regdist.logspace import expect, expm1_over, log1p_ratio, normalize
from regdist.records import as_number


def entropy(log_p: Float[Array, " K"]) -> Float[Array, ""]:
    """H(p) = -sum_i p_i log p_i, in nats.

    >>> print(entropy(jnp.log(jnp.array([0.5, 0.5, 0.0]))))
    0.693147...
    """
    return -expect(log_p, log_p)


def hill_number(log_p: Float[Array, " K"], order: ArrayLike = 1.0) -> Float[Array, ""]:
    """The effective number of outcomes (sum_i p_i^n)^{1/(1-n)}, n = order, without units.

    n = 1 is e^H (the continuous limit; `order` is data and a sweep through 1 has no seam), n = 0
    the size of the support, n = 2 the inverse of sum p^2, n = inf 1 / max p.

    Args:
        log_p: log-probabilities, shape [K].
        order: n >= 0.

    >>> print(hill_number(jnp.log(jnp.array([0.5, 0.25, 0.25])), 2))
    2.66666...
    """
    n = as_number(order).astype(log_p.dtype)
    infinite = jnp.isposinf(n)
    m = jnp.where(infinite, 1, n) - 1
    # log sum p^n = log(1 + m sum p (p^m - 1)/m), which is divided by -m without a seam at m = 0.
    safe = jnp.where(jnp.isneginf(log_p), 0, log_p)
    moment = expect(log_p, expm1_over(m, safe))
    near = jnp.abs(m * moment) < 0.5
    seamless = -moment * log1p_ratio(jnp.where(near, m * moment, 0))
    powers = jax.nn.logsumexp(jnp.where(jnp.isneginf(log_p), -jnp.inf, safe * (m + 1)))
    log_number = jnp.where(near, seamless, -powers / jnp.where(near, 1, m))
    return jnp.exp(jnp.where(infinite, -jnp.max(log_p), log_number))


def kl(log_p: Float[Array, " K"], log_q: Float[Array, " K"]) -> Float[Array, ""]:
    """KL(p || q) = sum_i p_i log(p_i/q_i) in nats: 0 where p = 0, +inf where p > 0 = q.

    Reverse KL to a reference q is `kl(log_policy, log_ref)`, forward KL is
    `kl(log_ref, log_policy)`. Computed as a sum of non-negative terms, so that it is never
    negative, and exact to relative rounding where p is close to q.

    >>> print(kl(jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))))
    0.143841...
    """
    return KL().value(log_p, log_q)


def total_variation(log_p: Float[Array, " K"], log_q: Float[Array, " K"]) -> Float[Array, ""]:
    """Half the sum of |p_i - q_i|: between 0 and 1."""
    return jnp.sum(jnp.abs(jnp.exp(log_p) - jnp.exp(log_q))) / 2


def expected_reward(log_p: Float[Array, " K"], reward: Float[Array, " K"]) -> Float[Array, ""]:
    """E_p R = sum_i p_i R_i; an action of probability 0 does not count, even at R = -inf."""
    return expect(log_p, reward)


def success(log_p: Float[Array, " K"], correct: Bool[Array, " K"]) -> Float[Array, ""]:
    """The probability of the actions marked `correct`."""
    return jnp.sum(jnp.where(correct, jnp.exp(log_p), 0))


def pass_at_k(success: ArrayLike, k: ArrayLike) -> Float[Array, "..."]:
    """1 - (1 - success)^k: the chance that one of k independent samples is right.

    From the law itself, so exact, and accurate for rare successes. `k` may be any real >= 0.

    >>> print(pass_at_k(0.5, 2))
    0.75
    """
    chance = as_number(success) if not isinstance(success, jax.Array) else success
    sure = chance >= 1
    log_miss = jnp.log1p(-jnp.where(sure, 0, chance))
    tries = jnp.asarray(k, dtype=chance.dtype)
    return jnp.where(sure & (tries > 0), 1, -jnp.expm1(tries * log_miss))


def label_log_probs(log_p: Float[Array, " K"], label: Int[Array, " K"]) -> Float[Array, " K"]:
    """Log of the mass of each label: entry a is log sum of p_i over label_i = a; -inf if none.

    >>> print(jnp.exp(label_log_probs(jnp.log(jnp.array([0.2, 0.3, 0.5])), jnp.array([0, 1, 1]))))
    [0.2 0.8 0. ]
    """
    largest = jnp.full_like(log_p, -jnp.inf).at[label].max(jax.lax.stop_gradient(log_p))
    base = jnp.where(jnp.isneginf(largest), 0, largest)
    scaled = jnp.zeros_like(log_p).at[label].add(jnp.exp(log_p - base[label]))
    empty = scaled == 0
    return jnp.where(empty, -jnp.inf, jnp.log(jnp.where(empty, 1, scaled)) + base)


def restrict(log_p: Float[Array, " K"], keep: Bool[Array, " K"]) -> Float[Array, " K"]:
    """The law given that the action is one of `keep`, as log-probabilities, shape [K]."""
    return normalize(jnp.where(keep, log_p, -jnp.inf))


def effective_labels(
    log_p: Float[Array, " K"],
    label: Int[Array, " K"],
    keep: Bool[Array, " K"] | None = None,
    order: ArrayLike = 1.0,
) -> Float[Array, ""]:
    """Hill number of the labels' masses, given `keep` if one is given.

    With `keep` the correct actions and labels the answers they stand for, it is the effective
    number of different solutions among the correct answers.
    """
    law = log_p if keep is None else restrict(log_p, keep)
    return hill_number(label_log_probs(law, label), order)


def log_odds_error(log_p: Float[Array, " K"], log_q: Float[Array, " K"]) -> Float[Array, ""]:
    """The largest error of a log-odds: max over i, j of |log(p_i/p_j) - log(q_i/q_j)|, in nats.

    Over the actions with q > 0; +inf when p is 0 at one of them.
    """
    inside = ~jnp.isneginf(log_q)
    lost = inside & jnp.isneginf(log_p)
    ratio = jnp.where(inside & ~lost, log_p, 0) - jnp.where(inside & ~lost, log_q, 0)
    high = jnp.max(jnp.where(inside & ~lost, ratio, -jnp.inf))
    low = jnp.min(jnp.where(inside & ~lost, ratio, jnp.inf))
    return jnp.where(jnp.any(lost), jnp.inf, high - low)
