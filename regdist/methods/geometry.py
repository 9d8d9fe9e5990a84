"""How marginal gains w_i = dJ/dp_i become an ascent direction on the parameters of a policy.

They take p_i w_i as well, whose limit at p_i = 0 may be finite where that of w_i is not.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from regdist.policies.policy import Params, Policy


def softmax_gradient(
    policy: Policy, params: Params, gain: Float[Array, "*K"], weighted: Float[Array, "*K"]
) -> Params:
    """The gradient in the parameters; of a softmax table p_i (w_i - sum_j p_j w_j)."""
    del gain
    return policy.pull_back(params, weighted)


def natural_gradient(
    policy: Policy, params: Params, gain: Float[Array, "*K"], weighted: Float[Array, "*K"]
) -> Params:
    """The natural gradient; of a softmax table, w_i - sum_j p_j w_j: mirror descent in KL."""
    return policy.natural(params, gain, weighted)


def sign_gradient(
    policy: Policy, params: Params, gain: Float[Array, "*K"], weighted: Float[Array, "*K"]
) -> Params:
    """The sign of the gradient: what Adam does to a gradient that does not change."""
    return jax.tree.map(jnp.sign, softmax_gradient(policy, params, gain, weighted))


GEOMETRIES = {"softmax": softmax_gradient, "natural": natural_gradient, "sign": sign_gradient}
