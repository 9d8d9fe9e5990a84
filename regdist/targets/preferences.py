"""Preferences and distillation: the targets of population DPO and IPO, and data for a target.

A preference law is the joint law of (winner, loser): probabilities, shape [K, K], sum 1. Policies
are log-probabilities in nats, shape [K]; q is the reference. Teachers are averaged by
`rd.laws.mixture`, the minimizer of sum_n w_n KL(teacher_n || p), and `rd.laws.geometric_mean`, of
sum_n w_n KL(p || teacher_n).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from regdist.numerics.checks import takes_laws
from regdist.numerics.logspace import log_ratio, normalize
from regdist.numerics.records import Law, Number, is_concrete, positive, record
from regdist.numerics.roots import accepted, implicit_roots

of_laws = takes_laws("rd.preferences")
"""Lets a function of laws refuse anything else, in words that name the call."""

_BETA = "It is the coefficient of the KL term that the loss implies"
# Margins that diverge grow by about 1 a step: they end the search within some 60 of them.
_MAX_ITERATIONS = 200


@of_laws
def bradley_terry(reward: Float[Array, " K"]) -> Float[Array, "K K"]:
    r"""P(i beats j) = 1/(1 + e^{-(R_i - R_j)}), shape [K, K].

    $$P(i \succ j) = \frac{1}{1 + e^{-(R_i - R_j)}}$$

    Examples:
        >>> print(bradley_terry(jnp.array([1.0, 0.0]))[0, 1])
        0.731058...
    """
    if jnp.ndim(reward) != 1:
        raise ValueError(f"reward must be one row, shape [K]; got shape {jnp.shape(reward)}")
    return jax.nn.sigmoid(reward[:, None] - reward[None, :])


@of_laws
def preference_pairs(
    log_sampler: Float[Array, " K"], preference: Float[Array, "K K"]
) -> Float[Array, "K K"]:
    """The joint law of (winner, loser) when two draws of a sampler are compared once.

    pairs[i, j] = 2 s_i s_j P(i beats j) for i != j, and s_i^2 on the diagonal.

    Args:
        log_sampler: log s, who is compared.
        preference: P(i beats j), with P(i, j) + P(j, i) = 1.

    Raises:
        ValueError: they do not sum to 1.
    """
    if is_concrete(preference):
        both = np.asarray(preference + preference.T)
        if not np.allclose(both, 1, rtol=0, atol=1e-5):  # float32 tables, and those typed by hand
            i, j = np.unravel_index(np.argmax(np.abs(both - 1)), both.shape)
            raise ValueError(
                "preference must hold P(i beats j) with P(i, j) + P(j, i) = 1, and 1/2 on the "
                f"diagonal; for actions {i} and {j} the sum is {both[i, j]:.6g}"
            )
    s = jnp.exp(log_sampler)
    return 2 * s[:, None] * s[None, :] * preference


@of_laws
def independent_pairs(
    log_winner: Float[Array, " K"], log_loser: Float[Array, " K"]
) -> Float[Array, "K K"]:
    """The joint law of a winner and a loser drawn apart: pairs[i, j] = w_i l_j."""
    return jnp.exp(log_winner)[:, None] * jnp.exp(log_loser)[None, :]


@of_laws
def implicit_reward(
    log_p: Float[Array, " K"], log_ref: Float[Array, " K"], beta: Number
) -> Float[Array, " K"]:
    """beta log(p/q): the reward, up to a constant, whose reverse-KL target is p (2305.18290).

    -inf where p = 0, +inf where only q = 0.
    """
    return positive("beta", beta, _BETA).astype(log_p.dtype) * log_ratio(log_p, log_ref)


@of_laws
def dpo(
    log_ref: Float[Array, " K"],
    log_winner: Float[Array, " K"],
    log_loser: Float[Array, " K"],
    beta: Number,
) -> Float[Array, " K"]:
    r"""The optimum of population DPO for winners and losers drawn apart: q (w/l)^{1/beta}.

    $$\min_p \; -\sum_{ij} w_i l_j \log \sigma(h_i - h_j), \qquad h_i = \beta \log\frac{p_i}{q_i}$$

    It minimizes -E log sigmoid(beta (log p_i/q_i - log p_j/q_j)) over i ~ w, j ~ l: the margin of
    the best classifier is the log-odds of w against l (arXiv 2305.18290, eq. 7 for the loss). What
    only loses gets probability 0; what only wins takes all of it, in the proportions of q.

    Examples:
        >>> q, w, l = (jnp.log(jnp.array(x)) for x in ([0.5, 0.5], [0.8, 0.2], [0.2, 0.8]))
        >>> print(jnp.exp(dpo(q, w, l, 2.0)))  # odds (4 * 4)^(1/2)
        [0.8 0.2]
    """
    b = positive("beta", beta, _BETA).astype(log_ref.dtype)
    margin = log_ratio(log_winner, log_loser)
    unseen = jnp.isneginf(log_winner) & jnp.isneginf(log_loser)
    margin = jnp.where(unseen, 0, margin)
    inside = ~jnp.isneginf(log_ref)
    only_wins = jnp.isposinf(margin) & inside
    finite = jnp.where(jnp.isfinite(margin), margin, 0)
    weights = jnp.where(
        jnp.isneginf(margin) | ~inside, -jnp.inf, jnp.where(inside, log_ref, 0) + finite / b
    )
    some = jnp.any(only_wins)
    return normalize(jnp.where(some, jnp.where(only_wins, log_ref, -jnp.inf), weights))


@of_laws
def loser_law(
    log_target: Float[Array, " K"],
    log_ref: Float[Array, " K"],
    log_winner: Float[Array, " K"],
    beta: Number,
) -> Float[Array, " K"]:
    """The law of losers that makes a wanted policy the optimum of `dpo`: l = w (q/p)^beta / Z.

    Args:
        log_target: p, the policy that is wanted; positive where w is.
        log_ref: q.
        log_winner: w.
        beta: the coefficient of the DPO loss.

    Examples:
        >>> p, q, w = (jnp.log(jnp.array(x)) for x in ([0.3, 0.7], [0.5, 0.5], [0.6, 0.4]))
        >>> print(jnp.exp(dpo(q, w, loser_law(p, q, w, 0.1), 0.1)))
        [0.3 0.7]
    """
    b = positive("beta", beta, _BETA).astype(log_ref.dtype)
    ratio = log_ratio(log_ref, log_target)
    present = ~jnp.isneginf(log_winner) & jnp.isfinite(ratio)
    weights = jnp.where(present, log_winner, 0) + b * jnp.where(present, ratio, 0)
    return normalize(jnp.where(present, weights, -jnp.inf))


@record
class Fit(Law):
    """The optimum of a loss over preference pairs.

    Attributes:
        log_probs: the policy, shape [K].
        margin: beta log(p/q), centered so that its mean is 0, shape [K].
        residual: largest |derivative of the loss in a margin|.
        converged: whether the residual is below eps^0.55. False where no finite optimum exists:
            with hard labels the margins diverge.
    """

    log_probs: Float[Array, "*batch K"]
    margin: Float[Array, "*batch K"]
    residual: Float[Array, "*batch"]
    converged: Bool[Array, "*batch"]


@of_laws
def dpo_from_pairs(log_ref: Float[Array, " K"], pairs: Float[Array, "K K"], beta: Number) -> Fit:
    r"""The minimizer of -sum_ij pairs_ij log sigmoid(beta (log p_i/q_i - log p_j/q_j)).

    $$\min_p \; -\sum_{ij} \pi_{ij} \log \sigma(h_i - h_j), \qquad h_i = \beta \log\frac{p_i}{q_i}$$

    With Bradley-Terry labels of rewards R the optimum is q e^{R/beta}, whoever is compared. A
    finite optimum exists if there is no split of the actions of which one side never loses to the
    other; else the margins diverge, as they do with hard labels, and `converged` is False.

    Args:
        log_ref: q.
        pairs: pi, joint law of (winner, loser), from `preference_pairs` or `independent_pairs`.
        beta: the coefficient of the loss.

    Raises:
        ValueError: beta is not a finite number above 0, or the pairs are no joint law.

    Examples:
        >>> q, r = jnp.log(jnp.array([0.2, 0.3, 0.5])), jnp.array([1.0, 0.0, 0.5])
        >>> fit = dpo_from_pairs(q, preference_pairs(q, bradley_terry(r)), 0.5)
        >>> bool(jnp.allclose(fit.log_probs, rd.logspace.normalize(q + r / 0.5)))
        True
    """
    b = positive("beta", beta, _BETA).astype(log_ref.dtype)
    _check_pairs(pairs)
    one = jnp.ones_like(log_ref)

    def gradient(h: Array) -> Array:
        lost = pairs * jax.nn.sigmoid(h[None, :] - h[:, None])
        return jnp.sum(lost, axis=0) - jnp.sum(lost, axis=1)

    def slope(h: Array) -> Array:
        s = jax.nn.sigmoid(h[:, None] - h[None, :])
        return _laplacian((pairs + pairs.T) * s * (1 - s))

    def loss(h: Array) -> Array:
        return jnp.sum(pairs * jax.nn.softplus(h[None, :] - h[:, None]))

    def newton_step(h: Array) -> Array:
        return -jnp.linalg.solve(slope(h) + one / len(one), gradient(h))

    def step(state: tuple) -> tuple:
        count, h, scale, _ = state
        move = newton_step(h)
        new = h + scale * jnp.where(jnp.all(jnp.isfinite(move)), move, 0)
        rounding = 4 * jnp.finfo(h.dtype).eps * loss(h)
        better = loss(new) <= loss(h) + rounding
        h = jnp.where(better, new, h)
        scale = jnp.where(better, jnp.minimum(2 * scale, 1), scale / 2)
        return count + 1, h, scale, jnp.max(jnp.abs(gradient(h)))

    def unfinished(state: tuple) -> Array:
        wide = jnp.max(jnp.abs(state[1])) > 60  # they diverge: e^-60 is nothing beside the loss
        return (state[0] < _MAX_ITERATIONS) & (state[-1] > jnp.finfo(one.dtype).eps / 4) & ~wide

    start = (0, 0 * one, one[0], jnp.inf * one[0])
    h = jax.lax.while_loop(unfinished, step, jax.lax.stop_gradient(start))[1]

    h = implicit_roots(lambda h: gradient(h) + jnp.mean(h), h)
    # Margins that diverge still move by about 1 a step when the gradient has long vanished; those
    # that have settled, by rounding. eps^0.4, 6e-7 in float64 and 2e-3 in float32, lies between.
    still = jax.lax.stop_gradient(h)
    left = jnp.max(jnp.abs(newton_step(still)))
    settled = left <= jnp.finfo(one.dtype).eps ** 0.4 * (1 + jnp.max(jnp.abs(still)))
    return _fit(log_ref, h, b, jnp.max(jnp.abs(gradient(h))), settled)


@of_laws
def ipo(log_ref: Float[Array, " K"], pairs: Float[Array, "K K"], beta: Number) -> Fit:
    r"""The minimizer of sum_ij pairs_ij (log p_i/q_i - log p_j/q_j - 1/(2 beta))^2: least squares.

    $$\min_p \sum_{ij} \pi_{ij} \Bigl(\log\frac{p_i q_j}{q_i p_j} - \frac{1}{2 \beta}\Bigr)^2$$

    With pairs of one sampler s it is q e^{P(y beats s)/beta}: bounded margins, whatever the labels
    (arXiv 2310.12036, with their tau as beta).

    Args:
        log_ref: q.
        pairs: pi, joint law of (winner, loser).
        beta: the coefficient.

    Raises:
        ValueError: beta is not a finite number above 0, or the pairs are no joint law.

    Examples:
        >>> q, hard = jnp.log(jnp.array([0.5, 0.5])), jnp.array([[0.5, 1.0], [0.0, 0.5]])
        >>> fit = ipo(q, preference_pairs(q, hard), 1.0)
        >>> print(fit.log_probs[0] - fit.log_probs[1])  # P = 3/4 against 1/4
        0.5
    """
    b = positive("beta", beta, _BETA).astype(log_ref.dtype)
    _check_pairs(pairs)
    mean = jnp.ones_like(log_ref) / len(log_ref)
    surplus = (jnp.sum(pairs, axis=1) - jnp.sum(pairs, axis=0)) / 2
    normal = _laplacian(pairs + pairs.T)
    margin = jnp.linalg.solve(normal + mean, surplus)  # beta log p/q, centered
    residual = jnp.max(jnp.abs(normal @ margin - surplus))
    return _fit(log_ref, margin, b, residual, jnp.all(jnp.isfinite(margin)))


def _check_pairs(pairs: Array) -> None:
    if is_concrete(pairs):
        known = np.asarray(pairs)
        total = float(known.sum())
        if not (np.all(known >= 0) and abs(total - 1) <= 1e-5):
            raise ValueError(
                "pairs must be a joint law of (winner, loser): entries >= 0 with sum 1; the "
                f"smallest is {known.min():.4g} and the sum {total:.6g}. Make it with "
                "preference_pairs or independent_pairs"
            )


def _laplacian(weights: Array) -> Array:
    off = weights - jnp.diag(jnp.diagonal(weights))
    return jnp.diag(jnp.sum(off, axis=1)) - off


def _fit(log_ref: Array, margin: Array, beta: Array, residual: Array, bounded: Array) -> Fit:
    inside = ~jnp.isneginf(log_ref)
    weights = jnp.where(inside, jnp.where(inside, log_ref, 0) + margin / beta, -jnp.inf)
    good = bounded & accepted(residual)
    return Fit(normalize(weights), margin - jnp.mean(margin), residual, good)
