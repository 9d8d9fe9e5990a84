"""Reverse KL to one anchor: the anchor tilted, p proportional to q e^{R/beta}."""

import jax
import jax.numpy as jnp
from jax import Array

from regdist.numerics.logspace import log_mean_exp, times_exp
from regdist.regularizers.term import Reduced
from regdist.targets.solvers.optimum import Optimum


def tilt(reward: Array, part: Reduced) -> Optimum:
    """The optimum of E_p R - beta KL(p || q), in closed form."""
    _, beta, log_q, _ = part
    active = ~(jnp.isneginf(reward) | jnp.isneginf(log_q))
    pivot = jnp.argmax(jnp.where(active, reward, -jnp.inf))
    distance = jnp.where(jnp.isneginf(reward), 0, reward[pivot] - reward)
    r = jnp.where(active, -distance / beta, -jnp.inf)
    always = jnp.ones((), bool)
    level = -beta * log_mean_exp(log_q, r)
    return Optimum(_tilted(log_q, reward, beta), distance, pivot, level, always, always)


@jax.custom_jvp
def _tilted(log_q: Array, reward: Array, beta: Array) -> Array:
    """log q + R/beta, normalized, without a mask in the value: large batches are bound by memory.

    Rewards are compared with the best on the support before the division by beta. `shut` is 0 on
    the support and -inf off it, in arithmetic.
    """
    shut = jnp.minimum(log_q + jnp.finfo(log_q.dtype).max / 2, 0)
    return jax.nn.log_softmax(log_q - (jnp.max(reward + shut) - reward) / beta)


@_tilted.defjvp
def _tilted_jvp(primals, tangents):
    (log_q, reward, beta), (d_log_q, d_reward, d_beta) = primals, tangents
    log_p = _tilted(log_q, reward, beta)
    active = ~jnp.isneginf(log_p)
    best = jax.lax.stop_gradient(jnp.max(jnp.where(active, reward, -jnp.inf)))
    gap = jnp.where(active, best - jnp.where(active, reward, 0), 0) / beta
    change = jnp.where(active, d_log_q + (d_reward + gap * d_beta) / beta, 0)
    return log_p, jnp.where(active, change - jnp.sum(times_exp(change, log_p)), 0)
