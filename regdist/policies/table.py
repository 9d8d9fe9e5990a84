"""Policies: parameters to log-probabilities."""

import jax
from jax import Array
from jaxtyping import Float


def softmax(logits: Float[Array, " K"]) -> Float[Array, " K"]:
    """The softmax table: log p_i = z_i - log sum e^z, one logit per action, shape [K].

    A logit of -inf is probability 0 and stays so. A constant added to all logits changes nothing.

    >>> print(softmax(jnp.array([0.0, 0.0, -jnp.inf])))
    [-0.693... -0.693...        -inf]
    """
    return jax.nn.log_softmax(logits)
