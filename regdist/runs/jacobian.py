"""The derivative of a method's field at a policy."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from regdist.methods import Expectation, Method
from regdist.methods.field import field
from regdist.problems.bandit import Bandit


def field_jacobian(
    method: Method, bandit: Bandit, expectation: Expectation, log_probs: np.ndarray
) -> np.ndarray:
    """The derivative of the field in the logits of the actions that are not at 0, there."""
    inside = np.flatnonzero(~np.isneginf(log_probs))
    return np.asarray(_jacobian(method, log_probs, bandit, expectation))[np.ix_(inside, inside)]


@jax.jit
def _jacobian(
    method: Method, z: Array | np.ndarray, bandit: Bandit, expectation: Expectation
) -> Array:
    return jax.jacfwd(lambda z: field(method, z, bandit, expectation))(
        jnp.asarray(z, bandit.reward.dtype)
    )
