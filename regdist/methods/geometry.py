"""How marginal gains w_i = dJ/dp_i become an ascent direction on the logits, shape [K].

They take p_i w_i as well, whose limit at p_i = 0 may be finite where that of w_i is not.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float


def softmax_gradient(
    log_p: Float[Array, " K"], gain: Float[Array, " K"], weighted_gain: Float[Array, " K"]
) -> Float[Array, " K"]:
    """The gradient in the logits of a softmax table: p_i (w_i - sum_j p_j w_j)."""
    del gain
    return weighted_gain - jnp.exp(log_p) * jnp.sum(weighted_gain)


def natural_gradient(
    log_p: Float[Array, " K"], gain: Float[Array, " K"], weighted_gain: Float[Array, " K"]
) -> Float[Array, " K"]:
    """The natural gradient (mirror descent in KL): w_i - sum_j p_j w_j; 0 where p_i = 0."""
    return jnp.where(jnp.isneginf(log_p), 0, gain - jnp.sum(weighted_gain))


def sign_gradient(
    log_p: Float[Array, " K"], gain: Float[Array, " K"], weighted_gain: Float[Array, " K"]
) -> Float[Array, " K"]:
    """The sign of the softmax gradient: what Adam does to a gradient that does not change."""
    return jnp.sign(softmax_gradient(log_p, gain, weighted_gain))


GEOMETRIES = {"softmax": softmax_gradient, "natural": natural_gradient, "sign": sign_gradient}
