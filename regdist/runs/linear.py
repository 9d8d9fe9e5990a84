"""What a linear step does: the decay that it gives, the spread that noise leads to."""

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    import optax


def plain_step(optimizer: "optax.GradientTransformation", size: int) -> float | None:
    """The learning rate of an optimizer that multiplies gradients by a constant, else None."""
    probe = jnp.linspace(-1.0, 1.0, max(size, 2))[:size]
    state = optimizer.init(probe)
    if any(np.size(leaf) for leaf in jax.tree.leaves(state)):
        return None
    update = np.asarray(optimizer.update(-probe, state, probe)[0])
    rate = float(update[0] / probe[0])
    # 1e-5: float32 keeps some seven digits of each product
    return rate if np.allclose(update, rate * np.asarray(probe), rtol=1e-5, atol=0) else None


def stationary_spread(
    rate: float, jacobian: np.ndarray, noise: np.ndarray, center: np.ndarray, weight: np.ndarray
) -> float | None:
    """The stationary standard deviation of x <- x + rate (J x + noise), x = center z.

    None where the linear step does not contract.
    """
    import scipy.linalg

    basis = np.linalg.svd(center)[0][:, : len(weight) - 1]
    step = np.eye(len(weight) - 1) + rate * basis.T @ center @ jacobian @ basis
    if len(weight) < 2 or np.max(np.abs(np.linalg.eigvals(step))) >= 1:
        return None
    kick = basis.T @ center @ noise @ center.T @ basis
    reduced = scipy.linalg.solve_discrete_lyapunov(step, rate**2 * kick)
    return math.sqrt(max(weight @ np.diag(basis @ reduced @ basis.T), 0.0))


def decay_rate(factor: float) -> float:
    """-log of the factor by which a step shrinks a distance; inf at 0."""
    return math.inf if factor == 0 else -math.log(factor)
