"""The method record and its expected update."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from regdist.logspace import times_exp
from regdist.methods.expectation import Population
from regdist.methods.geometry import GEOMETRIES
from regdist.policy import softmax
from regdist.problem import Bandit
from regdist.records import record, static
from regdist.regularizer import Regularizer


@record
class Method:
    """Ascent on J(p) = E_p R - regulariser(p) in a geometry; made by the presets.

    Attributes:
        regularizer: what is subtracted from the reward; None for nothing.
        geometry: "softmax" or "natural".
    """

    regularizer: Regularizer | None
    geometry: str = static(default="softmax")


def field(
    method: Method,
    logits: Float[Array, " K"],
    bandit: Bandit,
    expectation: Population | None = None,
) -> Float[Array, " K"]:
    """The expected ascent direction of a method on the logits, shape [K].

    With w_i = R_i - d regulariser/d p_i it is p_i (w_i - E_p w) for the softmax gradient and
    w_i - E_p w for the natural one. For reverse KL w = R - beta log(p/q); with forward KL the
    softmax field is p (R - E_p R) + beta (q - p).

    Args:
        method: from `rd.methods`.
        logits: the parameters of a softmax table, shape [K]; -inf is probability 0, which a
            forbidden action (reward -inf) should have: its direction is 0.
        bandit: rewards and reference.
        expectation: `Population()`, the default: the exact average over actions.

    >>> b = rd.bandit([1.0, 0.0], [0.5, 0.5])
    >>> print(field(rd.methods.policy_gradient(rd.ReverseKL(0.1)), b.log_ref, b))
    [ 0.25 -0.25]
    """
    if not isinstance(expectation, Population | None):
        raise ValueError(f"expectation must be rd.Population(); got {expectation!r}")
    log_p = softmax(logits)
    reward = bandit.reward
    gain = reward - jnp.max(jnp.where(jnp.isneginf(bandit.log_ref), -jnp.inf, reward))
    weighted = times_exp(gain, log_p)
    if method.regularizer is not None:
        gain = gain - method.regularizer.slope(log_p, bandit.log_ref)
        weighted = weighted - method.regularizer.weighted_slope(log_p, bandit.log_ref)
    allowed = ~jnp.isneginf(reward)
    gain, weighted = (jnp.where(allowed, x, 0) for x in (gain, weighted))
    return jnp.where(allowed, GEOMETRIES[method.geometry](log_p, gain, weighted), 0)
