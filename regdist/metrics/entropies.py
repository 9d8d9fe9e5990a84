"""How spread one law is: entropies, effective numbers, and the same of labels and tokens.

K is the number of actions, T the length of a sequence of tokens.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from regdist.metrics.checks import metric
from regdist.numerics.logspace import expect, expm1_over, log1p_ratio
from regdist.numerics.records import Number, as_number
from regdist.policies.laws import restrict

__all__ = [
    "answer_entropy",
    "effective_labels",
    "entropy",
    "hill_number",
    "label_log_probs",
    "renyi_entropy",
    "token_entropies",
    "tsallis_entropy",
]


@metric
def entropy(log_p: Float[Array, " K"]) -> Float[Array, ""]:
    r"""H(p) = -sum_i p_i log p_i, in nats (Shannon 1948).

    $$H(p) = -\sum_i p_i \log p_i$$

    Examples:
        >>> print(entropy(jnp.log(jnp.array([0.5, 0.5, 0.0]))))
        0.693147...
    """
    return expect(log_p, -log_p)


def _tsallis(log_p: Array, n: Array) -> Array:
    """sum_i (p_i - p_i^n)/(n - 1) for finite n, over p > 0: no term is negative, none overflows."""
    low = n < 1
    safe = jnp.where(jnp.isneginf(log_p), 0, log_p)
    power = jnp.exp(jnp.where(low, n, 1) * safe)
    return jnp.sum(power * -expm1_over(jnp.where(low, 1 - n, n - 1), safe))


@metric
def tsallis_entropy(log_p: Float[Array, " K"], order: Number) -> Float[Array, ""]:
    r"""S_n(p) = (1 - sum_i p_i^n)/(n - 1), n = order; n = 1 is the entropy in nats.

    $$S_n(p) = \frac{1 - \sum_i p_i^n}{n - 1}$$

    `order` is data and a sweep through 1 has no seam. n = 0 is the size of the support less one,
    n = 2 the chance that two independent draws differ, n = inf is 0. As a sum of the non-negative
    terms (p - p^n)/(n - 1) it is exact to relative rounding near a vertex (Tsallis 1988; in
    regularized RL arXiv 1602.02068, whose sparsemax has n = 2).

    Args:
        log_p: log-probabilities, shape [K].
        order: n >= 0, may be inf.

    Examples:
        >>> print(tsallis_entropy(jnp.log(jnp.array([0.5, 0.25, 0.25])), 2))
        0.625
    """
    n = as_number(order).astype(log_p.dtype)
    infinite = jnp.isposinf(n)
    return jnp.where(infinite, 0, _tsallis(log_p, jnp.where(infinite, 1, n)))


@metric
def renyi_entropy(log_p: Float[Array, " K"], order: Number) -> Float[Array, ""]:
    r"""H_n(p) = log(sum_i p_i^n)/(1 - n), n = order, in nats; n = 1 is the entropy.

    $$H_n(p) = \frac{1}{1 - n} \log \sum_i p_i^n$$

    `order` is data and a sweep through 1 has no seam. n = 0 is the log of the size of the support,
    n = 2 the collision entropy -log sum p^2, n = inf the min-entropy -log max p (Rényi 1961).

    Args:
        log_p: log-probabilities, shape [K].
        order: n >= 0, may be inf.

    Examples:
        >>> print(renyi_entropy(jnp.log(jnp.array([0.5, 0.25, 0.25])), 2))
        0.980829...
    """
    n = as_number(order).astype(log_p.dtype)
    infinite = jnp.isposinf(n)
    m = jnp.where(infinite, 1, n) - 1
    # sum p^n = 1 - m S_n, whose log is divided by -m without a seam at m = 0.
    tsallis = _tsallis(log_p, m + 1)
    near = jnp.abs(m * tsallis) < 0.5  # log1p keeps its digits, and beyond 1/2 the plain log does
    seamless = tsallis * log1p_ratio(jnp.where(near, -m * tsallis, 0))
    gone = jnp.isneginf(log_p)
    powers = jnp.where(gone, -jnp.inf, jnp.where(gone, 0, log_p) * (m + 1))
    total = jax.nn.logsumexp(jnp.where(near, 0, powers))
    far = -total / jnp.where(near, 1, m)
    return jnp.where(infinite, -jnp.max(log_p), jnp.where(near, seamless, far))


@metric
def hill_number(log_p: Float[Array, " K"], order: Number = 1.0) -> Float[Array, ""]:
    r"""The effective number of outcomes (sum_i p_i^n)^{1/(1-n)}, n = order, without units.

    $$\Bigl(\sum_i p_i^n\Bigr)^{1/(1 - n)}$$

    The exponential of `renyi_entropy`: n = 1 is e^H (the continuous limit; `order` is data and a
    sweep through 1 has no seam), n = 0 the size of the support, n = 2 the inverse of sum p^2,
    n = inf 1 / max p (Hill 1973). 0 where no action has any mass: what `restrict` leaves of a set
    of probability 0.

    Args:
        log_p: log-probabilities, shape [K].
        order: n >= 0, may be inf.

    Examples:
        >>> print(hill_number(jnp.log(jnp.array([0.5, 0.25, 0.25])), 2))
        2.66666...
    """
    none = jnp.all(jnp.isneginf(log_p))
    return jnp.where(none, 0, jnp.exp(renyi_entropy(jnp.where(none, 0, log_p), order)))


@metric
def label_log_probs(log_p: Float[Array, " K"], label: Int[Array, " K"]) -> Float[Array, " K"]:
    """log of the mass of each label: entry a is log sum of p_i over label_i = a; -inf if none.

    With labels the modes that actions belong to, it is the mass per mode.

    Examples:
        >>> log_p = jnp.log(jnp.array([0.2, 0.3, 0.5]))
        >>> print(jnp.exp(label_log_probs(log_p, jnp.array([0, 1, 1]))))
        [0.2 0.8 0. ]
    """
    largest = jnp.full_like(log_p, -jnp.inf).at[label].max(jax.lax.stop_gradient(log_p))
    base = jnp.where(jnp.isneginf(largest), 0, largest)
    scaled = jnp.zeros_like(log_p).at[label].add(jnp.exp(log_p - base[label]))
    empty = scaled == 0
    return jnp.where(empty, -jnp.inf, jnp.log(jnp.where(empty, 1, scaled)) + base)


@metric
def effective_labels(
    log_p: Float[Array, " K"],
    label: Int[Array, " K"],
    keep: Bool[Array, " K"] | None = None,
    order: Number = 1.0,
) -> Float[Array, ""]:
    """Hill number of the labels' masses, given `keep` if one is given; 0 where that has none.

    With `keep` the correct actions and labels the answers they stand for, it is the effective
    number of different solutions among the correct answers.

    Examples:
        >>> log_p = jnp.log(jnp.array([0.2, 0.3, 0.5]))
        >>> print(effective_labels(log_p, jnp.array([0, 0, 1]), order=2))
        2.0
    """
    law = log_p if keep is None else restrict(log_p, keep)
    return hill_number(label_log_probs(law, label), order)


@metric
def answer_entropy(log_p: Float[Array, " K"], label: Int[Array, " K"]) -> Float[Array, ""]:
    """-sum_a m_a log m_a over the masses m_a of the labels, in nats: the entropy of the label.

    With labels the answers that sequences end in it is never above the sequences' entropy, and
    can fall while that one rises. (Clustered by meaning it is the semantic entropy of
    arXiv 2302.09664.)

    Examples:
        >>> print(answer_entropy(jnp.log(jnp.array([0.2, 0.3, 0.5])), jnp.array([0, 0, 1])))
        0.693147...
    """
    return entropy(label_log_probs(log_p, label))


@metric
def token_entropies(log_p: Float[Array, " K"], sequences: Int[Array, "K T"]) -> Float[Array, " T"]:
    r"""H(Y_t | Y_<t) = -sum_y p(y) log p(y_t | y_<t) for t = 1 ... T, in nats.

    $$H(Y_t \mid Y_{<t}) = -\sum_y p(y) \log p(y_t \mid y_{<t})$$

    Exact, from the law on enumerated sequences, and a sum of non-negative terms: relatively exact
    where a token is nearly certain. The T numbers add up to the entropy of the distinct sequences
    (the chain rule, Shannon 1948). Time K^2 T, memory K^2.

    Args:
        log_p: log-probabilities of the sequences, shape [K].
        sequences: their tokens, shape [K, T]; pad short ones with one token of its own.

    Examples:
        >>> paths = jnp.array([[0, 0], [0, 1], [1, 0]])
        >>> print(token_entropies(jnp.log(jnp.array([0.25, 0.25, 0.5])), paths) / jnp.log(2))
        [1.  0.5]
    """

    def step(before: Array, token: Array) -> tuple[Array, Array]:
        now = before & (token[:, None] == token[None, :])
        largest = jnp.max(jnp.where(before, jax.lax.stop_gradient(log_p), -jnp.inf), axis=1)
        base = jnp.where(jnp.isneginf(largest), 0, largest)[:, None]
        mass = jnp.exp(jnp.where(before, log_p, -jnp.inf) - base)
        same, other = (jnp.sum(jnp.where(x, mass, 0), axis=1) for x in (now, before & ~now))
        # -log p(token | prefix) = log(1 + other/same), as a softplus.
        split = (same > 0) & (other > 0)
        odds = jnp.log(jnp.where(split, other, 1)) - jnp.log(jnp.where(split, same, 1))
        surprise = jnp.where(split, jax.nn.softplus(odds), 0)
        return now, expect(log_p, surprise)

    start = jnp.ones((log_p.size, log_p.size), bool)
    return jax.lax.scan(step, start, sequences.T)[1]
