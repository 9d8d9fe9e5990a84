"""What a linear step does: the decay that it gives, the spread that noise leads to. n is alive."""

import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from regdist.runs.loop import Loop

if TYPE_CHECKING:
    import optax


def plain_step(optimizer: "optax.GradientTransformation", size: int) -> float | None:
    """The learning rate of an optimizer that multiplies gradients by a constant, else None."""
    probe = jnp.linspace(-1.0, 1.0, max(size, 2))[:size]
    state = optimizer.init(probe)
    if any(np.size(leaf) for leaf in jax.tree.leaves(state)):
        return None
    # The parameters are another direction, so that weight decay is seen.
    update = np.asarray(optimizer.update(-probe, state, jnp.cos(3 * probe))[0])
    rate = float(update[0] / probe[0])
    # 1e-5: float32 keeps some seven digits of each product
    return rate if np.allclose(update, rate * np.asarray(probe), rtol=1e-5, atol=0) else None


def idle_move(optimizer: "optax.GradientTransformation", at: np.ndarray) -> np.ndarray:
    """The step that an optimizer takes without a gradient; NaN where the parameter is -inf."""
    held = jnp.where(jnp.isneginf(at), 0, at)
    updates: Any = optimizer.update(jnp.zeros_like(held), optimizer.init(held), held)[0]
    return np.where(np.isneginf(at), np.nan, np.asarray(updates))


def largest_move(moved: np.ndarray) -> float:
    """The largest step of a logit, less the mean of its law, a row of the table."""
    return float(np.nanmax(np.abs(moved - np.nanmean(moved, axis=-1, keepdims=True))))


def step_matrix(
    parts: tuple[np.ndarray, np.ndarray, np.ndarray], rate: float, loop: Loop | None
) -> tuple[np.ndarray, int]:
    """The linear map of a step of a loop about a rest point, and of how many steps it is one.

    The state is the policy now and `staleness` steps before, and the reference if it moves; the
    map is of `sync_every` steps then.

    Args:
        parts: the derivative of the rate of the logits by those of the policy, of the samples'
            policy and of the reference, shape [n, n] each.
        rate: the learning rate.
        loop: as in `run`.
    """
    by_policy, by_samples, by_reference = parts
    n = len(by_policy)
    one = np.eye(n)
    if loop is None or loop.is_bare:
        return one + rate * (by_policy + by_samples + by_reference), 1
    updates, late = loop.epochs * loop.minibatches, loop.staleness
    move = one + rate * by_policy
    powers = [one]
    for _ in range(updates):
        powers.append(powers[-1] @ move)
    gathered = rate * sum(powers[:-1], start=np.zeros((n, n)))
    size = n * (late + 1)
    follows = loop.sync_every is not None
    step = np.eye(size + n * follows)
    step[n:size, : size - n] = np.eye(size - n)
    step[n:size, size - n :] = 0
    step[:n, :size] = 0
    step[:n, :n] = powers[-1]
    step[:n, size - n : size] += gathered @ by_samples
    if loop.sync_every is None:
        return step, 1
    step[:n, size:] = gathered @ by_reference
    mix = float(loop.sync_mix)
    sync = np.eye(len(step))
    sync[size:, :n], sync[size:, size:] = mix * one, (1 - mix) * one
    return sync @ np.linalg.matrix_power(step, loop.sync_every), loop.sync_every


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
