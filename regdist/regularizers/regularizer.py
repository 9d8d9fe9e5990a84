"""Regularizers: divergence x anchor x coefficient. They add up.

Each is made by a constructor function and enters an objective with a minus sign:
J(p) = E_p R - regularizer(p). `beta` and `alpha` are data, so a sweep over them is one trace.
K is the number of actions, q the anchor (by default the reference policy of the problem).
"""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from regdist.numerics.logspace import log_ratio
from regdist.numerics.records import (
    Number,
    as_number,
    check_kind,
    is_concrete,
    positive,
    record,
)
from regdist.policies.laws import log_pool
from regdist.regularizers import divergence as divergences
from regdist.regularizers import names
from regdist.regularizers.anchor import Anchor, TemperedSelf, as_anchor
from regdist.regularizers.divergence import KL, Alpha, Divergence, check_divergence
from regdist.regularizers.term import Reduced, Term


@record
class Regularizer:
    """A sum of terms, subtracted from the expected reward. `a + b` adds two."""

    terms: tuple[Term, ...]

    def __add__(self, other: "Regularizer") -> "Regularizer":
        check_regularizer(other)
        return Regularizer(self.terms + other.terms)

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.terms))

    def merges(self) -> bool:
        """Whether the sum is one reverse KL: all its terms are reverse KL or entropy."""
        return all(isinstance(t.divergence, KL) for t in self.terms)

    def follows_policy(self) -> bool:
        """Whether an anchor moves with the policy, so that targets are fixed points."""
        return any(isinstance(t.anchor, TemperedSelf) for t in self.terms)

    def reduce(self, log_ref: Float[Array, " K"]) -> list[Reduced]:
        """What the sum amounts to on a table with reference `log_ref`: as few terms as possible.

        sum_i c_i KL(p || q_i) is (sum c_i) KL to the normalized geometric mean of the q_i with
        weights c_i / sum c, less (sum c_i) times the log of its normalizer.

        Raises:
            ValueError: a term holds a batch of coefficients, or its anchor follows the policy in
                a way that has no known fixed point.
        """
        parts = [term.reduce(log_ref) for term in self.terms]
        for part in parts:
            numbers = jax.tree.leaves((part.divergence, part.beta))
            if any(jnp.ndim(x) for x in numbers):
                raise ValueError(
                    f"one problem takes scalar coefficients; got shapes "
                    f"{[jnp.shape(x) for x in numbers]}. For a sweep use jax.vmap over the "
                    "regularizer, e.g. jax.vmap(lambda b: rd.target(bandit, rd.ReverseKL(b)))"
                )
        kls = [part for part in parts if isinstance(part.divergence, KL)]
        others = [part for part in parts if not isinstance(part.divergence, KL)]
        if len(kls) == 1:
            kls = [kls[0]._replace(beta=_net(kls[0].beta))]
        return ([_merge(kls)] if len(kls) > 1 else kls) + others

    def value(self, log_p: Float[Array, " K"], log_ref: Float[Array, " K"]) -> Float[Array, ""]:
        """The regularizer at p, in units of reward; +inf is a legal value."""
        parts = [term.reduce(log_ref, log_p) for term in self.terms]
        costs = [p.beta * p.divergence.value(log_p, p.log_anchor) - p.offset for p in parts]
        return functools.reduce(jnp.add, costs)

    def slope(self, log_p: Float[Array, " K"], log_ref: Float[Array, " K"]) -> Float[Array, " K"]:
        """Its derivative in each p_i (up to a constant over actions), shape [K]."""
        parts = [term.reduce(log_ref, log_p) for term in self.terms]
        slopes = [p.beta * p.divergence.slope(log_ratio(log_p, p.log_anchor)) for p in parts]
        return functools.reduce(jnp.add, slopes)

    def weighted_slope(
        self, log_p: Float[Array, " K"], log_ref: Float[Array, " K"]
    ) -> Float[Array, " K"]:
        """p_i times `slope`_i, with its limit at p_i = 0, shape [K]."""
        parts = [term.reduce(log_ref, log_p) for term in self.terms]
        slopes = [p.beta * p.divergence.weighted_slope(log_p, p.log_anchor) for p in parts]
        return functools.reduce(jnp.add, slopes)


def check_regularizer(regularizer: Any) -> Regularizer:
    """A `Regularizer`.

    Raises:
        TypeError: it is something else, such as a coefficient or a constructor.
    """
    advice = "Make one with its coefficient: rd.ReverseKL(0.1)"
    check_kind("regularizer", regularizer, Regularizer, advice)
    return regularizer


def _net(beta: Array) -> Array:
    """NaN where a self that sharpens outweighs the rest: the objective is no longer concave."""
    return jnp.where(beta > 0, beta, jnp.nan)


def _merge(parts: list[Reduced]) -> Reduced:
    """Reverse-KL terms as one, to the geometric mean of their anchors."""
    total = _net(functools.reduce(jnp.add, [part.beta for part in parts]))
    weights = jnp.stack([part.beta for part in parts]) / total
    log_mean, log_z = log_pool(jnp.stack([part.log_anchor for part in parts]), weights)
    offset = functools.reduce(jnp.add, [part.offset for part in parts]) + total * log_z
    return Reduced(parts[0].divergence, total, log_mean, offset)


def ReverseKL(beta: Number, *, anchor: Anchor | None = None) -> Regularizer:
    r"""beta KL(p || q) = beta sum_i p_i log(p_i/q_i), in nats.

    $$\beta \sum_i p_i \log\frac{p_i}{q_i}, \qquad p_i \propto q_i e^{R_i/\beta}$$

    The optimum is p proportional to q e^{R/beta} (arXiv 2205.11275; 2510.20817).

    Args:
        beta: coefficient > 0, in units of reward per nat.
        anchor: q as normalized log-probabilities [K] or `tempered_self`; default the reference.

    Raises:
        ValueError: beta is not a finite number above 0, or the anchor is not log-probabilities.

    Examples:
        >>> ReverseKL(0.1)
        ReverseKL(0.1)
    """
    return FDivergence(KL(), beta, anchor=anchor)


def ForwardKL(beta: Number, *, anchor: Anchor | None = None) -> Regularizer:
    r"""beta KL(q || p) = beta sum_i q_i log(q_i/p_i), in nats: the member alpha = 0.

    $$\beta \sum_i q_i \log\frac{q_i}{p_i}, \qquad p_i = \frac{\beta q_i}{\Lambda - R_i}$$

    The optimum is p = beta q/(Lambda - R) with Lambda > max R on the support of q
    (arXiv 2510.20817). Off the support an action may take mass: see `target`.

    Args:
        beta: coefficient > 0, in units of reward per nat.
        anchor: q as normalized log-probabilities [K] or `tempered_self`; default the reference.

    Raises:
        ValueError: beta is not a finite number above 0, or the anchor is not log-probabilities.
    """
    return FDivergence(divergences.ForwardKL(), beta, anchor=anchor)


def AlphaDivergence(alpha: Number, beta: Number, *, anchor: Anchor | None = None) -> Regularizer:
    r"""beta D_alpha(p || q), D_alpha = sum q (t^a - a t + a - 1)/(a (a - 1)), t = p/q, a = alpha.

    $$\beta \sum_i q_i \frac{t_i^\alpha - \alpha t_i + \alpha - 1}{\alpha (\alpha - 1)}, t = p/q$$
    $$p_i = q_i \bigl(1 + (\alpha - 1)(R_i - L)/\beta\bigr)_+^{1/(\alpha - 1)}$$

    alpha = 1 is reverse KL, 0 forward KL, 2 half of Pearson's chi-squared, 1/2 four times
    1 - sum sqrt(p q). The optimum is q times the q-exponential of (R - L)/beta (arXiv 2302.08215
    for the family as a regularizer); it is sparse for alpha > 1.

    Args:
        alpha: any real number; data, so a sweep through 0 and 1 is one trace without a seam.
        beta: coefficient > 0, in units of reward per nat.
        anchor: q as normalized log-probabilities [K] or `tempered_self`; default the reference.

    Raises:
        ValueError: alpha is not finite, beta is not a finite number above 0, or a bad anchor.
    """
    number = as_number(alpha, "alpha")
    if is_concrete(number) and not np.all(np.isfinite(np.asarray(number))):
        raise ValueError(f"alpha must be a finite number; got alpha={alpha!r}")
    return FDivergence(Alpha(number), beta, anchor=anchor)


def FDivergence(
    divergence: Divergence, beta: Number, *, anchor: Anchor | None = None
) -> Regularizer:
    r"""beta D_f(p || q) = beta sum_i q_i f(p_i/q_i) for an f of your own: see `rd.Divergence`.

    $$\beta \sum_i q_i f(p_i/q_i), \qquad p_i = q_i \bigl[(f')^{-1}((R_i - L)/\beta)\bigr]_+$$

    The optimum is q (f')^{-1}((R - L)/beta), clipped at 0 (arXiv 2302.08215).

    Args:
        divergence: a record with the generator f, its derivative and the log of its inverse.
        beta: coefficient > 0, in units of reward per nat.
        anchor: q as normalized log-probabilities [K] or `tempered_self`; default the reference.

    Raises:
        ValueError: beta is not a finite number above 0, or the anchor is not log-probabilities.
    """
    check_divergence(divergence)
    return Regularizer((Term(divergence, positive("beta", beta, _BETA), as_anchor(anchor)),))


def Pearson(beta: Number, *, anchor: Anchor | None = None) -> Regularizer:
    r"""beta chi^2(p || q) / 2 = beta sum_i (p_i - q_i)^2/(2 q_i): the member alpha = 2.

    $$\frac\beta2 \sum_i \frac{(p_i - q_i)^2}{q_i}, \qquad p_i = q_i (1 + (R_i - L)/\beta)_+$$

    Half of the textbook chi-squared. The optimum is q (1 + (R - L)/beta)_+, which is sparse.
    Arguments as in `AlphaDivergence`.
    """
    return AlphaDivergence(2.0, beta, anchor=anchor)


def Neyman(beta: Number, *, anchor: Anchor | None = None) -> Regularizer:
    r"""beta chi^2(q || p) / 2 = beta sum_i (p_i - q_i)^2/(2 p_i): the member alpha = -1.

    $$\frac\beta2 \sum_i \frac{(p_i - q_i)^2}{p_i}, \quad p_i = q_i (1 - 2 (R_i - L)/\beta)^{-1/2}$$

    Half of the textbook chi-squared. The optimum is q (1 - 2 (R - L)/beta)^{-1/2}.
    Arguments as in `AlphaDivergence`.
    """
    return AlphaDivergence(-1.0, beta, anchor=anchor)


def Hellinger(beta: Number, *, anchor: Anchor | None = None) -> Regularizer:
    r"""beta 4 (1 - sum sqrt(p q)) = 2 beta sum (sqrt p - sqrt q)^2: the member alpha = 1/2.

    $$2\beta \sum_i (\sqrt{p_i} - \sqrt{q_i})^2, \qquad p_i = q_i (1 - (R_i - L)/(2\beta))^{-2}$$

    Four times the textbook squared Hellinger distance. The optimum is
    q (1 - (R - L)/(2 beta))^{-2}.
    Arguments as in `AlphaDivergence`.
    """
    return AlphaDivergence(0.5, beta, anchor=anchor)


def JensenShannon(beta: Number, *, anchor: Anchor | None = None) -> Regularizer:
    r"""beta JS(p, q) = beta (KL(p || m) + KL(q || m))/2 with m = (p + q)/2, in nats.

    $$\frac\beta2 \sum_i [p_i \log\frac{2 p_i}{p_i + q_i} + q_i \log\frac{2 q_i}{p_i + q_i}]$$

    The optimum is q e^{2x}/(2 - e^{2x}) with x = (R - L)/beta (arXiv 2302.08215). As f' is
    bounded above, mass may leave the support of q: see `target`. Arguments as in `ReverseKL`.
    """
    return FDivergence(divergences.JensenShannon(), beta, anchor=anchor)


def TotalVariation(beta: Number, *, anchor: Anchor | None = None) -> Regularizer:
    r"""beta TV(p, q) = beta sum_i |p_i - q_i| / 2.

    $$\frac\beta2 \sum_i |p_i - q_i|$$

    Mass moves to the best action from every action more than beta below it; the others keep q, so
    q itself is optimal when max R - min R <= beta. The optimum need not be unique: see
    `Target.unique`. Arguments as in `ReverseKL`; the anchor is a law that does not move.
    """
    return FDivergence(divergences.TotalVariation(), beta, anchor=anchor)


def Tsallis(order: Number, beta: Number, *, anchor: Anchor | None = None) -> Regularizer:
    r"""The bonus beta S_n(p), S_n = (1 - sum_i p_i^n)/(n - 1), n = order; n = 1 is Shannon's H.

    $$\beta S_n(p) = \beta\, \frac{1 - \sum_i p_i^n}{n - 1}$$

    Up to a constant it is beta n K^{1-n} times the alpha divergence, alpha = n, to the uniform
    policy. n = 2, beta = 1/2 gives sparsemax (arXiv 1602.02068); 1 < n < 2 lies between that and
    the softmax, as the entmaxes do (arXiv 1905.05702, with beta = 1/n).

    Args:
        order: n > 0; data, so that a sweep through 1 is one trace without a seam.
        beta: coefficient > 0, in units of reward.
        anchor: if given, the relative entropy beta (sum p^n q^{1-n} - 1)/(n - 1) to that law is
            subtracted instead: beta n times the alpha divergence.

    Raises:
        ValueError: order or beta is not a finite number above 0.

    Examples:
        >>> bandit = rd.bandit([0.9, 0.5, -0.3])
        >>> print(rd.target(bandit, Tsallis(2, 0.5)).probs)  # sparsemax
        [0.7 0.3 0. ]
    """
    n = positive("order", order, "At order 0 the entropy counts the support")
    b = positive("beta", beta, "Without an entropy bonus leave the term out")
    if anchor is not None:
        return FDivergence(Alpha(n), n * b, anchor=anchor)
    return Regularizer((Term(Alpha(n), b, None, True),))


def Entropy(alpha: Number) -> Regularizer:
    r"""The entropy bonus alpha H(p): the term -alpha H(p) = alpha sum_i p_i log p_i, in nats.

    $$-\alpha H(p) = \alpha \sum_i p_i \log p_i, \qquad p_i \propto e^{R_i/\alpha}$$

    Up to the constant alpha log K it is reverse KL to the uniform policy over all K actions,
    whatever the reference: the optimum is p proportional to e^{R/alpha}.

    Args:
        alpha: coefficient > 0, in units of reward per nat.

    Raises:
        ValueError: alpha is not a finite number above 0.
    """
    coefficient = positive("alpha", alpha, "Without an entropy bonus leave the term out")
    return Regularizer((Term(KL(), coefficient, None, True),))


def by_name(spec: str) -> Callable[[Number], Regularizer]:
    """The constructor from beta of the regularizer that a name means, see `names.parse`.

    Each term of a sum has the coefficient beta.

    Raises:
        ValueError: an unknown name.

    Examples:
        >>> by_name("reverse-kl+entropy")(0.5)
        ReverseKL(0.5) + Entropy(0.5)
        >>> by_name("forward-kl+jensen-shannon")(0.5)
        ForwardKL(0.5) + JensenShannon(0.5)
    """
    kinds = names.parse(spec)

    def term(kind: names.Kind, beta: Number) -> Regularizer:
        if kind is None:
            return Entropy(beta)
        return FDivergence(kind(), beta) if isinstance(kind, type) else AlphaDivergence(kind, beta)

    def make(beta: Number) -> Regularizer:
        return functools.reduce(operator.add, [term(kind, beta) for kind in kinds])

    return make


_BETA = "At beta = 0 the optimum is any policy on the best actions: take a small beta for its limit"
