"""Regularisers: divergence x anchor x coefficient. They add up.

Each is made by a constructor function and enters an objective with a minus sign:
J(p) = E_p R - regulariser(p). `beta` and `alpha` are data, so a sweep over them is one trace.
K is the number of actions, q the anchor (by default the reference policy of the problem).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from regdist.divergence import KL, Alpha, Divergence
from regdist.logspace import log_ratio
from regdist.problem import uniform
from regdist.records import Table, as_number, is_concrete, positive, record, static


class Reduced(NamedTuple):
    """-beta D(p || anchor) + offset: what a regulariser amounts to on one table."""

    divergence: Divergence
    beta: Array
    log_anchor: Array
    offset: Array


@record
class Term:
    """beta * D(p || anchor), or the negative entropy bonus -beta * H(p)."""

    divergence: Divergence
    beta: Array
    anchor: Array | None
    is_entropy: bool = static(default=False)

    def reduce(self, log_ref: Array) -> Reduced:
        """This term on a table with this reference, in the dtype of the table."""
        divergence, beta, anchor = jax.tree.map(
            lambda x: x.astype(log_ref.dtype), (self.divergence, self.beta, self.anchor)
        )
        if self.is_entropy:
            log_u = uniform(log_ref)
            return Reduced(divergence, beta, log_u, -beta * log_u[0])
        log_anchor = log_ref if anchor is None else anchor
        if log_anchor.shape != log_ref.shape:
            raise ValueError(
                f"anchor must have the shape of the reference, {log_ref.shape}; "
                f"got {log_anchor.shape}"
            )
        return Reduced(divergence, beta, log_anchor, jnp.zeros_like(beta))

    def __repr__(self) -> str:
        about = "" if self.anchor is None else ", anchor=..."
        if self.is_entropy:
            return f"Entropy({_show(self.beta)})"
        if isinstance(self.divergence, Alpha):
            return f"AlphaDivergence({_show(self.divergence.alpha)}, {_show(self.beta)}{about})"
        return f"ReverseKL({_show(self.beta)}{about})"


@record
class Regularizer:
    """A sum of terms, subtracted from the expected reward. `a + b` adds two."""

    terms: tuple[Term, ...]

    def __add__(self, other: "Regularizer") -> "Regularizer":
        if not isinstance(other, Regularizer):
            return NotImplemented
        return Regularizer(self.terms + other.terms)

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.terms))

    def merges(self) -> bool:
        """Whether the sum is itself one divergence to one anchor (reverse KL and entropy are)."""
        return len(self.terms) == 1 or all(isinstance(t.divergence, KL) for t in self.terms)

    def reduce(self, log_ref: Float[Array, " K"]) -> Reduced:
        """The sum as one term on a table with reference `log_ref`.

        sum_i c_i KL(p || q_i) is (sum c_i) KL to the normalised geometric mean of the q_i with
        weights c_i / sum c, less (sum c_i) times the log of its normaliser.

        Raises:
            ValueError: the terms do not merge, or a term holds a batch of coefficients.
        """
        parts = [term.reduce(log_ref) for term in self.terms]
        for part in parts:
            numbers = jax.tree.leaves((part.divergence, part.beta))
            if any(jnp.ndim(x) for x in numbers):
                raise ValueError(
                    f"one problem takes scalar coefficients; got shapes "
                    f"{[jnp.shape(x) for x in numbers]}. For a sweep use jax.vmap over the "
                    "regulariser, e.g. jax.vmap(lambda b: rd.target(bandit, rd.ReverseKL(b)))"
                )
        if len(parts) == 1:
            return parts[0]
        if not self.merges():
            raise ValueError(
                f"only reverse-KL and entropy terms merge into one target; got {self!r}. "
                "rd.objective evaluates any sum"
            )
        total = functools.reduce(jnp.add, [part.beta for part in parts])
        weighted = [
            part.beta / total * jnp.where(jnp.isneginf(part.log_anchor), 0, part.log_anchor)
            for part in parts
        ]
        outside = functools.reduce(jnp.logical_or, [jnp.isneginf(p.log_anchor) for p in parts])
        log_mean = jnp.where(outside, -jnp.inf, functools.reduce(jnp.add, weighted))
        log_z = jax.nn.logsumexp(log_mean)
        offset = functools.reduce(jnp.add, [part.offset for part in parts]) + total * log_z
        return Reduced(parts[0].divergence, total, log_mean - log_z, offset)

    def value(self, log_p: Float[Array, " K"], log_ref: Float[Array, " K"]) -> Float[Array, ""]:
        """The regulariser at p, in units of reward; +inf is a legal value."""
        parts = [term.reduce(log_ref) for term in self.terms]
        costs = [p.beta * p.divergence.value(log_p, p.log_anchor) - p.offset for p in parts]
        return functools.reduce(jnp.add, costs)

    def slope(self, log_p: Float[Array, " K"], log_ref: Float[Array, " K"]) -> Float[Array, " K"]:
        """Its derivative in each p_i (up to a constant over actions), shape [K]."""
        parts = [term.reduce(log_ref) for term in self.terms]
        slopes = [p.beta * p.divergence.slope(log_ratio(log_p, p.log_anchor)) for p in parts]
        return functools.reduce(jnp.add, slopes)

    def weighted_slope(
        self, log_p: Float[Array, " K"], log_ref: Float[Array, " K"]
    ) -> Float[Array, " K"]:
        """p_i times `slope`_i, with its limit at p_i = 0, shape [K]."""
        parts = [term.reduce(log_ref) for term in self.terms]
        slopes = [p.beta * p.divergence.weighted_slope(log_p, p.log_anchor) for p in parts]
        return functools.reduce(jnp.add, slopes)


def ReverseKL(beta: ArrayLike, *, anchor: Table | None = None) -> Regularizer:
    """Beta KL(p || q) = beta sum_i p_i log(p_i/q_i), in nats.

    The optimum is p proportional to q e^{R/beta} (arXiv 2205.11275; 2510.20817).

    Args:
        beta: coefficient > 0, in units of reward per nat.
        anchor: q as normalised log-probabilities [K]; default the reference policy.

    Raises:
        ValueError: beta is not a finite number above 0, or the anchor is not log-probabilities.

    >>> ReverseKL(0.1)
    ReverseKL(0.1)
    """
    return Regularizer((Term(KL(), positive("beta", beta, _BETA), _anchor(anchor)),))


def ForwardKL(beta: ArrayLike, *, anchor: Table | None = None) -> Regularizer:
    """Beta KL(q || p) = beta sum_i q_i log(q_i/p_i), in nats: the member alpha = 0.

    The optimum is p = beta q/(Lambda - R) with Lambda > max R on the support of q
    (arXiv 2510.20817). Off the support an action may take mass: see `target`.

    Args:
        beta: coefficient > 0, in units of reward per nat.
        anchor: q as normalised log-probabilities [K]; default the reference policy.

    Raises:
        ValueError: beta is not a finite number above 0, or the anchor is not log-probabilities.
    """
    return AlphaDivergence(0.0, beta, anchor=anchor)


def AlphaDivergence(
    alpha: ArrayLike, beta: ArrayLike, *, anchor: Table | None = None
) -> Regularizer:
    """Beta D_alpha(p || q), D_alpha = sum q (t^a - a t + a - 1)/(a (a - 1)), t = p/q, a = alpha.

    alpha = 1 is reverse KL, 0 forward KL, 2 half of Pearson's chi-squared, 1/2 four times
    1 - sum sqrt(p q). The optimum is q times the q-exponential of (R - L)/beta (arXiv 2302.08215
    for the family as a regulariser); it is sparse for alpha > 1.

    Args:
        alpha: any real number; data, so a sweep through 0 and 1 is one trace without a seam.
        beta: coefficient > 0, in units of reward per nat.
        anchor: q as normalised log-probabilities [K]; default the reference policy.

    Raises:
        ValueError: alpha is not finite, beta is not a finite number above 0, or a bad anchor.
    """
    if is_concrete(alpha) and not np.all(np.isfinite(np.asarray(alpha))):
        raise ValueError(f"alpha must be a finite number; got alpha={alpha!r}")
    divergence = Alpha(as_number(alpha))
    return Regularizer((Term(divergence, positive("beta", beta, _BETA), _anchor(anchor)),))


def Entropy(alpha: ArrayLike) -> Regularizer:
    """The entropy bonus alpha H(p): the term -alpha H(p) = alpha sum_i p_i log p_i, in nats.

    Up to the constant alpha log K it is reverse KL to the uniform policy over all K actions,
    whatever the reference: the optimum is p proportional to e^{R/alpha}.

    Args:
        alpha: coefficient > 0, in units of reward per nat.

    Raises:
        ValueError: alpha is not a finite number above 0.
    """
    coefficient = positive("alpha", alpha, "Without an entropy bonus leave the term out")
    return Regularizer((Term(KL(), coefficient, None, True),))


_BETA = "At beta = 0 the optimum is any policy on the best actions: take a small beta for its limit"


def _anchor(anchor: Table | None) -> Array | None:
    if anchor is None:
        return None
    log_q = jnp.asarray(anchor, dtype=float)
    if is_concrete(log_q):
        total = np.asarray(jnp.exp(jax.nn.logsumexp(log_q, axis=-1)))
        if not np.all(np.abs(total - 1) <= 1e-6):
            raise ValueError(
                "anchor must be normalised log-probabilities in nats; "
                f"their exponentials sum to {total}. Use rd.logspace.normalize(log_weights)"
            )
    return log_q


def _show(x: Array) -> str:
    return f"{np.asarray(x).item():.6g}" if is_concrete(x) and np.ndim(x) == 0 else "..."
