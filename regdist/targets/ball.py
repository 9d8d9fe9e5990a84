"""Balls in KL, and the frontier of reward against divergence.

K is the number of actions; laws are log-probabilities in nats, q is the reference.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from regdist.metrics import kl
from regdist.numerics.logspace import expect, normalize
from regdist.numerics.records import Number, as_array, as_number, is_concrete
from regdist.numerics.roots import accepted, implicit_root, increasing_root
from regdist.policies.laws import restrict
from regdist.problems.bandit import Bandit, takes_bandit
from regdist.targets.constraints import Constrained


@jax.jit
def _kl_ball(bandit: Bandit, radius: Array) -> Constrained:
    reward, log_q = bandit.reward, bandit.log_ref
    active = ~(jnp.isneginf(reward) | jnp.isneginf(log_q))
    best = jnp.max(jnp.where(active, reward, -jnp.inf))
    gap = jnp.where(active, best - reward, 0)
    log_q = jnp.where(active, log_q, -jnp.inf)
    # Forbidden actions make even the best law without rewards differ from q.
    log_free = jax.nn.logsumexp(log_q)
    span = jnp.max(gap)
    scale = jnp.where(span > 0, span, 1)
    on_top = restrict(log_q, active & (gap == 0))
    largest = kl(on_top, bandit.log_ref)
    free = (span == 0) | (radius >= largest)
    shut = radius <= -log_free
    fixed = free | shut

    inputs = log_q, gap / scale, bandit.log_ref, radius

    def law(v: Array, inputs: tuple) -> Array:
        log_w, steps = inputs[:2]
        return normalize(
            jnp.where(active, jnp.where(active, log_w, 0) - jnp.exp(v) * steps, -jnp.inf)
        )

    def excess(v: Array, inputs: tuple) -> Array:
        return jnp.log(kl(law(v, inputs), inputs[2])) - jnp.log(jnp.where(fixed, 1, inputs[3]))

    # v = log(span/b). At e^-40 = 4e-18 the tilt is below an ulp of log q; at e^60 = 1e26 an action
    # that is worse than the best by an ulp of the span has nothing left.
    low, high = jnp.full_like(radius, -40.0), jnp.full_like(radius, 60.0)
    still = jax.lax.stop_gradient(inputs)
    root, _ = increasing_root(lambda v: excess(v, still), low, high, ended=fixed)
    root = jnp.where(fixed, 0, root)
    v = implicit_root(lambda v: jnp.where(fixed, v - root, excess(v, inputs)), root)
    log_p = jnp.where(free, on_top, jnp.where(shut, normalize(log_q), law(v, inputs)))
    beta = jnp.where(free, 0, jnp.where(shut, jnp.inf, scale * jnp.exp(-v)))
    used = kl(log_p, bandit.log_ref)
    size = jnp.where(radius > 0, radius, 1)
    residual = jnp.where(free, jnp.maximum(used - radius, 0), jnp.abs(used - radius)) / size
    return Constrained(log_p, expect(log_p, reward), beta, residual, accepted(residual))


@takes_bandit
def kl_ball(bandit: Bandit, radius: Number) -> Constrained:
    r"""max E_p R subject to KL(p || q) <= radius, in nats.

    $$\max_p \; \mathbb{E}_p R \quad \text{where } \mathrm{KL}(p \,\|\, q) \le \epsilon$$

    The tilt q e^{R/b} with b the root of KL = radius; b is the multiplier. From radius
    -log q(argmax R) on it is q restricted to the best actions, at multiplier 0. At radius 0 it is
    q, at multiplier +inf.

    Args:
        bandit: rewards and reference.
        radius: epsilon >= 0, in nats; any radius.

    Raises:
        ValueError: the radius is negative, NaN, or too small to leave forbidden actions out.

    Examples:
        >>> ball = kl_ball(rd.bandit([1.0, 0.0], [0.5, 0.5]), 0.1)
        >>> print(rd.metrics.kl(ball.log_probs, jnp.log(jnp.array([0.5, 0.5]))).round(9))
        0.1
    """
    size = as_number(radius, "radius")
    if is_concrete(size) and not np.all(np.asarray(size) >= 0):
        raise ValueError(f"radius must be a number >= 0, in nats; got radius={radius!r}")
    if is_concrete(bandit, radius):
        least = -float(
            jax.nn.logsumexp(jnp.where(jnp.isneginf(bandit.reward), -jnp.inf, bandit.log_ref))
        )
        if np.any(np.asarray(size) < least * (1 - 1e-12)):  # one computed as `least` may round
            raise ValueError(
                f"radius must be at least {least:.6g}: no law nearer to the reference leaves out "
                f"the forbidden actions; got radius={radius!r}"
            )
    return _kl_ball(bandit, size.astype(bandit.reward.dtype))


@takes_bandit
def reward_kl_frontier(bandit: Bandit, radii: Float[Array, " N"]) -> Float[Array, " N"]:
    r"""The largest E_p R at each KL(p || q) <= radius: concave and increasing (2404.01730).

    $$F(\epsilon) = \max \{\mathbb{E}_p R : \mathrm{KL}(p \,\|\, q) \le \epsilon\}$$

    Examples:
        >>> b = rd.bandit([1.0, 0.0], [0.5, 0.5])
        >>> print(reward_kl_frontier(b, jnp.array([0.0, 0.1, 1.0])).round(4))
        [0.5    0.7198 1.    ]
    """
    radii = as_array("radii", radii, bandit.reward.dtype)
    if radii.ndim != 1:
        raise ValueError(f"radii must be a row of numbers, shape [N]; got shape {radii.shape}")
    if is_concrete(radii) and not np.all(np.asarray(radii) >= 0):
        raise ValueError(f"radii must be numbers >= 0, in nats; got radii={radii!r}")
    return jax.vmap(lambda radius: kl_ball(bandit, radius).value)(radii)
