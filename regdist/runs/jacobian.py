"""Derivatives of a method's field at a policy, exact or by differences of a written loss."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from regdist.methods import Expectation, Method
from regdist.methods.field import field
from regdist.problems.bandit import Bandit


def jacobian_product(
    method: Method, bandit: Bandit, expectation: Expectation, at: Array, v: Array
) -> Array:
    """The derivative of the field along v: exact, or by central differences of a written loss."""
    if method.differentiable:
        return _jacobian_product(method, bandit, expectation, at, v)
    size = jnp.max(jnp.abs(v))
    # The largest logit moves by 1e-3: cut off (1e-3)^4, rounding eps/1e-3, some 1e-12 each or less.
    width = 1e-3 / jnp.where(size > 0, size, 1)
    points = jnp.array([-2.0, -1.0, 1.0, 2.0], at.dtype)[:, None] * width * v
    f = jax.vmap(lambda d: field(method, at + d, bandit, expectation))(points)
    return (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * width)


@jax.jit
def _jacobian_product(
    method: Method, bandit: Bandit, expectation: Expectation, at: Array, v: Array
) -> Array:
    return jax.jvp(lambda z: field(method, z, bandit, expectation), (at,), (v,))[1]


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
