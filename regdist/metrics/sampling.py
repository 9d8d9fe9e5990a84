"""What independent samples of a law are worth: success, group signal, importance weights.

K is the number of actions.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from regdist.metrics.checks import checked, metric
from regdist.metrics.distances import renyi_divergence
from regdist.metrics.entropies import tsallis_entropy
from regdist.numerics.logspace import expect, largest_exponent, log_ratio
from regdist.numerics.records import Number, as_number, is_concrete
from regdist.policies.laws import restrict

__all__ = [
    "concentrability",
    "effective_sample_size",
    "expected_reward",
    "optimal_baseline",
    "pass_at_k",
    "pass_at_k_unbiased",
    "squared_score_norm",
    "success",
    "zero_advantage_probability",
]


@metric
def expected_reward(log_p: Float[Array, " K"], reward: Float[Array, " K"]) -> Float[Array, ""]:
    """E_p R = sum_i p_i R_i; an action of probability 0 does not count, even at R = -inf.

    Examples:
        >>> print(expected_reward(jnp.log(jnp.array([0.25, 0.75])), jnp.array([1.0, 2.0])))
        1.75
    """
    return expect(log_p, reward)


@metric
def success(log_p: Float[Array, " K"], correct: Bool[Array, " K"]) -> Float[Array, ""]:
    """The probability of the actions marked `correct`.

    Examples:
        >>> print(success(jnp.log(jnp.array([0.25, 0.75])), jnp.array([True, False])))
        0.25
    """
    return jnp.sum(jnp.where(correct, jnp.exp(log_p), 0))


def _chance(success: Number) -> Array:
    return success if isinstance(success, Array) else as_number(success)


@checked
def pass_at_k(success: Number, k: Number) -> Float[Array, "..."]:
    """1 - (1 - success)^k: the chance that one of k independent samples is right.

    From the law itself, so exact, and accurate for rare successes. `k` may be any real >= 0, and
    inf asks whether success is possible at all.

    Examples:
        >>> print(pass_at_k(0.5, 2))
        0.75
    """
    chance = _chance(success)
    draws = jnp.asarray(k, dtype=chance.dtype)
    if is_concrete(draws) and np.any(np.asarray(draws) < 0):
        raise ValueError(f"k must be at least 0; got k={k!r}")
    endless = jnp.isposinf(draws)
    sure = chance >= 1
    log_miss = jnp.log1p(-jnp.where(sure, 0, chance))
    partly = -jnp.expm1(jnp.where(endless, 1, draws) * log_miss)
    # At success = 1 the derivative in it is 1 for one try and 0 for more.
    surely = jnp.where(draws == 1, chance, jnp.where(draws > 0, 1.0, 0.0))
    possible = jnp.where(chance > 0, 1.0, 0.0)
    return jnp.where(sure, surely, jnp.where(endless, possible, partly))


@checked
def pass_at_k_unbiased(samples: Number, correct: Number, k: Number) -> Float[Array, "..."]:
    r"""1 - C(n-c, k)/C(n, k): pass@k estimated from n samples of which c are correct.

    $$1 - \binom{n - c}{k} \Big/ \binom{n}{k}$$

    Its expectation over n independent samples is `pass_at_k` (arXiv 2107.03374). As a product of
    min(c, k) factors 1 - max(c, k)/(n - j), whose logs have one sign: exact to relative rounding
    for any n. The counts are data, and broadcast.

    Args:
        samples: n >= 1.
        correct: c, 0 <= c <= n.
        k: 0 <= k <= n; the estimate does not exist, and is NaN, beyond.

    Examples:
        >>> print(pass_at_k_unbiased(4, 2, 2))  # 1 - 1/6
        0.833333...
    """
    n, c, size = jnp.broadcast_arrays(*(as_number(x) for x in (samples, correct, k)))
    if is_concrete(n, c) and np.any((np.asarray(c) < 0) | (np.asarray(c) > np.asarray(n))):
        raise ValueError(f"correct must be between 0 and samples; got {correct!r} of {samples!r}")
    fewer, more = jnp.minimum(c, size), jnp.maximum(c, size)

    def add_factor(j: Array, total: Array) -> Array:
        left = n - j.astype(n.dtype)
        inside = (n - left < fewer) & (more < left)
        return total + jnp.where(inside, jnp.log1p(-more / jnp.where(inside, left, jnp.inf)), 0)

    factors = jnp.max(fewer, initial=0).astype(int)
    log_miss = jax.lax.fori_loop(0, factors, add_factor, jnp.zeros_like(n))
    estimate = jnp.where(n - c < size, 1, -jnp.expm1(log_miss))
    return jnp.where(size > n, jnp.nan, estimate)


@checked
def zero_advantage_probability(success: Number, group_size: Number) -> Float[Array, "..."]:
    """p^G + (1-p)^G: the chance that a group of G samples is all right or all wrong.

    Such a group of binary rewards has no advantage and gives no gradient (for GRPO, DAPO's dynamic
    sampling drops it: arXiv 2503.14476).

    Args:
        success: p, the chance that one sample is right, any shape.
        group_size: G >= 1; any real.

    Examples:
        >>> print(zero_advantage_probability(0.5, 4))
        0.125
    """
    chance = _chance(success)
    size = jnp.asarray(group_size, dtype=chance.dtype)
    sure = chance >= 1
    partly = jnp.exp(size * jnp.log1p(-jnp.where(sure, 0, chance)))
    surely = jnp.where(size == 1, 1 - chance, 0)
    return chance**size + jnp.where(sure, surely, partly)


@metric
def effective_sample_size(log_p: Float[Array, " K"], log_q: Float[Array, " K"]) -> Float[Array, ""]:
    r"""1/sum_i p_i^2/q_i, the effective fraction of samples of q that stand for p: in [0, 1].

    $$\Bigl(\sum_i \frac{p_i^2}{q_i}\Bigr)^{-1}$$

    It is 1/E_q[(p/q)^2] = 1/(1 + chi^2(p || q)), the limit of (sum w)^2/(n sum w^2) for n samples
    with weights w = p/q (Kong 1992). 0 where p > 0 = q.

    Examples:
        >>> log_p, log_q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> print(f"{effective_sample_size(log_p, log_q):.6f}")
        0.750000
    """
    return jnp.exp(-renyi_divergence(log_p, log_q, 2))


@metric
def concentrability(log_p: Float[Array, " K"], log_q: Float[Array, " K"]) -> Float[Array, ""]:
    """max over i of p_i/q_i, the largest importance weight: at least 1, +inf where p > 0 = q.

    The density ratio that bounds off-policy errors of a policy p from data of q, on one state
    (Munos 2003, arXiv 1905.00360).

    Examples:
        >>> log_p, log_q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> print(f"{concentrability(log_p, log_q):.6f}")
        2.000000
    """
    top = jnp.max(log_ratio(log_p, log_q))
    overflows = top > largest_exponent(top)
    ratio = jnp.exp(jnp.where(overflows, 0, top))
    return jnp.where(overflows, jnp.inf, jnp.where(ratio > 1, ratio, 1))


@metric
def squared_score_norm(log_p: Float[Array, " K"]) -> Float[Array, ""]:
    """E_p |S|^2 = 1 - sum_i p_i^2 with S(y) = e_y - p, the logit gradient of log p(y).

    The trace of the softmax table's Fisher information; 0 at a vertex, relatively exact near it.
    It is `tsallis_entropy` of order 2.

    Examples:
        >>> print(squared_score_norm(jnp.log(jnp.array([0.5, 0.25, 0.25]))))
        0.625
    """
    return tsallis_entropy(log_p, 2)


def _log_score_norms(log_p: Array) -> Array:
    """log |e_y - p|^2 = log((1-p_y)^2 + sum_{j != y} p_j^2) for each y; -inf at a vertex."""
    best = jnp.arange(log_p.size) == jnp.argmax(log_p)
    rest = jnp.where(best, -jnp.inf, log_p)
    vertex = jnp.all(jnp.isneginf(rest))
    rest = jnp.where(vertex, 0, rest)
    at_best = jnp.logaddexp(2 * jax.nn.logsumexp(rest), jax.nn.logsumexp(2 * rest))
    # Away from the best action p <= 1/2, and the expanded square does not cancel.
    p = jnp.exp(log_p)
    elsewhere = jnp.log(jnp.where(best, 1, 1 - 2 * p + jnp.sum(p**2)))
    return jnp.where(best, jnp.where(vertex, -jnp.inf, at_best), elsewhere)


@metric
def optimal_baseline(
    log_p: Float[Array, " K"],
    reward: Float[Array, " K"],
    log_behavior: Float[Array, " K"] | None = None,
) -> Float[Array, ""]:
    r"""The b that gives w S (R - b) the least variance: E[w^2 |S|^2 R]/E[w^2 |S|^2].

    $$b = \frac{\mathbb{E}[w^2 |S|^2 R]}{\mathbb{E}[w^2 |S|^2]}, \qquad S(y) = e_y - p$$

    S(y) = e_y - p is the logit gradient of log p(y), w = p/behavior, and expectations are under
    the behavior, which is p itself by default (arXiv 2602.17616). An action that the behavior
    never takes does not count. Where nothing that is sampled has a score (p at a vertex) every
    baseline is as good, and E_p R is returned.

    Args:
        log_p: log-probabilities of the policy, shape [K].
        reward: rewards, shape [K].
        log_behavior: log-probabilities of the law that is sampled, shape [K].

    Examples:
        >>> log_p, reward = jnp.log(jnp.array([0.75, 0.25])), jnp.array([1.0, 0.0])
        >>> print(f"{optimal_baseline(log_p, reward):.6f}")  # |S|^2 is 1/8 and 9/8
        0.250000
    """
    behavior = log_p if log_behavior is None else log_behavior
    log_norm = _log_score_norms(log_p)
    counted = ~(jnp.isneginf(log_p) | jnp.isneginf(behavior) | jnp.isneginf(log_norm))
    p, b, norm = (jnp.where(counted, x, 0) for x in (log_p, behavior, log_norm))
    weighted = expect(restrict(2 * p - b + norm, counted), reward)
    return jnp.where(jnp.any(counted), weighted, expect(log_p, reward))
