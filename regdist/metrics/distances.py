"""How far one law is from another. p and q are laws on the same K actions.

All are sums of non-negative terms built from the log-ratio r = log(p/q), so that none is ever
negative and p close to q costs no accuracy.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from regdist.metrics.checks import metric
from regdist.numerics.logspace import exp_difference, largest_exponent, log1p_ratio, log_ratio
from regdist.numerics.records import Number, as_number
from regdist.regularizers.divergence import KL, Alpha, JensenShannon, TotalVariation

__all__ = [
    "alpha_divergence",
    "chi_squared",
    "hellinger",
    "js",
    "kl",
    "log_odds_error",
    "renyi_divergence",
    "total_variation",
]


@metric
def kl(log_p: Float[Array, " K"], log_q: Float[Array, " K"]) -> Float[Array, ""]:
    r"""KL(p || q) = sum_i p_i log(p_i/q_i) in nats: 0 where p = 0, +inf where p > 0 = q.

    $$\mathrm{KL}(p \,\|\, q) = \sum_i p_i \log\frac{p_i}{q_i}$$

    Reverse KL to a reference q is `kl(log_policy, log_ref)`, forward KL is
    `kl(log_ref, log_policy)`. Computed as a sum of non-negative terms, so that it is never
    negative, and exact to relative rounding where p is close to q (Kullback and Leibler 1951).

    Examples:
        >>> print(kl(jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))))
        0.143841...
    """
    return KL().value(log_p, log_q)


@metric
def js(log_p: Float[Array, " K"], log_q: Float[Array, " K"]) -> Float[Array, ""]:
    r"""The Jensen-Shannon divergence (KL(p || m) + KL(q || m))/2, m = (p + q)/2, in nats.

    $$\tfrac12 \mathrm{KL}(p \,\|\, m) + \tfrac12 \mathrm{KL}(q \,\|\, m), \quad m = (p + q)/2$$

    Symmetric, between 0 and log 2; its square root is a metric (Lin 1991).

    Examples:
        >>> print(js(jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))))
        0.0338220...
    """
    return JensenShannon().value(log_p, log_q)


@metric
def total_variation(log_p: Float[Array, " K"], log_q: Float[Array, " K"]) -> Float[Array, ""]:
    """Half the sum of |p_i - q_i|: between 0 and 1.

    Examples:
        >>> log_p, log_q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> print(f"{total_variation(log_p, log_q):.6f}")
        0.250000
    """
    return TotalVariation().value(log_p, log_q)


@metric
def hellinger(log_p: Float[Array, " K"], log_q: Float[Array, " K"]) -> Float[Array, ""]:
    r"""The Hellinger distance sqrt(1 - sum_i sqrt(p_i q_i)): symmetric, between 0 and 1.

    $$\sqrt{1 - \sum_i \sqrt{p_i q_i}}$$

    Computed as sqrt(sum (sqrt p - sqrt q)^2 / 2). At p = q, where it has a corner, the gradient
    is 0 (Hellinger 1909).

    Examples:
        >>> print(hellinger(jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))))
        0.184591...
    """
    square = jnp.sum(exp_difference(log_p / 2, log_q / 2) ** 2) / 2
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


@metric
def chi_squared(log_p: Float[Array, " K"], log_q: Float[Array, " K"]) -> Float[Array, ""]:
    r"""sum_i (p_i - q_i)^2/q_i, Pearson's statistic per sample: +inf where p > 0 = q.

    $$\sum_i \frac{(p_i - q_i)^2}{q_i}$$

    It is twice `alpha_divergence` at alpha = 2. With q the behavior it is the variance of the
    importance weights p/q (Pearson 1900).

    Examples:
        >>> print(chi_squared(jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))))
        0.333333...
    """
    # (p - q)/sqrt q = p/sqrt q - sqrt q, with the terms that overflow held aside.
    finite_q = jnp.where(jnp.isneginf(log_q), 0, log_q)
    weighted = log_p - finite_q / 2
    large = (weighted > largest_exponent(log_p) / 2) | (jnp.isneginf(log_q) & (log_p > -jnp.inf))
    term = exp_difference(jnp.where(large, 0, weighted), jnp.where(large, 0, log_q / 2)) ** 2
    return jnp.sum(jnp.where(large, jnp.inf, term))


@metric
def alpha_divergence(
    log_p: Float[Array, " K"], log_q: Float[Array, " K"], alpha: Number
) -> Float[Array, ""]:
    r"""sum_i (p_i^alpha q_i^(1-alpha) - alpha p_i + (alpha-1) q_i)/(alpha (alpha-1)), in nats.

    $$\sum_i \frac{p_i^\alpha q_i^{1-\alpha} - \alpha p_i + (\alpha-1) q_i}{\alpha (\alpha-1)}$$

    alpha = 1 is KL(p || q), alpha = 0 is KL(q || p), alpha = 2 half of `chi_squared`, alpha = 1/2
    four times the square of `hellinger`. `alpha` is data, any real, and a sweep through 0 and 1
    has no seam. +inf where p = 0 < q at alpha <= 0 and where q = 0 < p at alpha >= 1 (Cichocki and
    Amari 2010; `AlphaDivergence` is its regularizer).

    Examples:
        >>> log_p, log_q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> print(alpha_divergence(log_p, log_q, 2))
        0.166666...
    """
    return Alpha(as_number(alpha).astype(log_p.dtype)).value(log_p, log_q)


@metric
def renyi_divergence(
    log_p: Float[Array, " K"], log_q: Float[Array, " K"], order: Number
) -> Float[Array, ""]:
    r"""D_n(p || q) = log(sum_i p_i^n q_i^(1-n))/(n - 1), n = order, in nats.

    $$D_n(p \,\|\, q) = \frac{1}{n - 1} \log \sum_i p_i^n q_i^{1 - n}$$

    n = 1 is KL(p || q), n = inf is log max p/q, n = 0 is -log q(p > 0), n = 1/2 is
    -2 log sum sqrt(p q). `order` is data and a sweep through 1 has no seam. It grows with n.
    +inf where the supports are disjoint, and where q = 0 < p at n >= 1 (van Erven and Harremoës,
    arXiv 1206.2459).

    Args:
        log_p: log-probabilities, shape [K].
        log_q: log-probabilities, shape [K].
        order: n >= 0, may be inf.

    Examples:
        >>> log_p, log_q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> print(renyi_divergence(log_p, log_q, 2))  # log(4/3)
        0.287682...
    """
    order = as_number(order).astype(log_p.dtype)
    unbounded = jnp.isposinf(order)
    n = jnp.where(unbounded, 1, order)
    top = jnp.max(log_ratio(log_p, log_q))
    p_zero, q_zero = jnp.isneginf(log_p), jnp.isneginf(log_q)
    both = ~(p_zero | q_zero)
    beyond = ~jnp.any(both) | (jnp.any(q_zero & ~p_zero) & (n >= 1))
    inside = both & ~beyond
    exponent = n * jnp.where(inside, log_p, 0) + (1 - n) * jnp.where(inside, log_q, 0)
    log_sum = jax.nn.logsumexp(jnp.where(inside | beyond, exponent, -jnp.inf))
    # Near 1 the sum is 1 + (n-1) x with x = n D_alpha(n), a sum of non-negative terms. At 0.4 the
    # plain form takes over: it loses 1/0.4 ulps there, and this one is still well conditioned.
    near = jnp.abs(jax.lax.stop_gradient(log_sum)) < 0.4
    close_p, close_q = (jnp.where(inside & near, x, -jnp.inf) for x in (log_p, log_q))
    lost = jnp.sum(jnp.where(p_zero, jnp.exp(log_q), 0))
    new = jnp.sum(jnp.where(q_zero, jnp.exp(log_p), 0))
    x = n * Alpha(n).value(close_p, close_q) + lost + n * new / jnp.where(n < 1, 1 - n, 1)
    seamless = x * log1p_ratio(jnp.where(near, (n - 1) * x, 0))
    far = log_sum / jnp.where(near | beyond, 1, n - 1)
    finite = jnp.where(beyond, jnp.inf, jnp.where(near, seamless, far))
    return jnp.where(unbounded, jnp.where(top > 0, top, 0), finite)


@metric
def log_odds_error(log_p: Float[Array, " K"], log_q: Float[Array, " K"]) -> Float[Array, ""]:
    """The largest error of a log-odds: max over i, j of |log(p_i/p_j) - log(q_i/q_j)|, in nats.

    Over the actions with q > 0; +inf when p is 0 at one of them.

    Examples:
        >>> print(log_odds_error(jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))))
        1.09861...
    """
    inside = ~jnp.isneginf(log_q)
    lost = inside & jnp.isneginf(log_p)
    ratio = jnp.where(inside & ~lost, log_p, 0) - jnp.where(inside & ~lost, log_q, 0)
    high = jnp.max(jnp.where(inside & ~lost, ratio, -jnp.inf))
    low = jnp.min(jnp.where(inside & ~lost, ratio, jnp.inf))
    return jnp.where(jnp.any(lost), jnp.inf, high - low)
