"""What a trainer takes over its whole batch, where a batch has many groups of every prompt.

Token means and whitened advantages then have their limits: numbers, found before the step. C
prompts, K samples each, in nats and units of reward.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from regdist.methods.advantage import GroupRelative, Standardized
from regdist.methods.averaging import Averaging
from regdist.methods.batch import Tables, whole_table
from regdist.methods.method import Method
from regdist.numerics.logspace import expect


def with_statistics(
    method: Method, tables: Tables, weights: Float[Array, " C"], inv_size: float
) -> Method:
    """The method with the numbers that it takes over the batch of all prompts.

    Args:
        method: whose.
        tables: of all prompts, stacked.
        weights: of the prompts.
        inv_size: 1/G.
    """
    advantage, averaging = method.advantage, method.averaging
    if averaging.couples() and tables.steps is not None:
        most = weights @ jax.vmap(_mean_length)(tables)
        averaging = Averaging(most, "constant")
    if isinstance(advantage, GroupRelative) and advantage.pooled != "none":
        paid = jax.vmap(lambda one: _whole(one, method))(tables)
        advantage = _pooled(advantage, tables, paid, weights, inv_size)
    return dataclasses.replace(method, advantage=advantage, averaging=averaging)


def _whole(tables: Tables, method: Method) -> Array:
    """What each sample of a prompt is paid, less the penalties before the advantage."""
    return method.paid(whole_table(tables, jnp.exp(tables.log_sampler), 0.0)).reward


def _mean_length(tables: Tables) -> Array:
    batch = whole_table(tables, jnp.exp(tables.log_sampler), 0.0)
    return batch.mean(batch.length)


def _pooled(
    advantage: GroupRelative, tables: Tables, paid: Array, weights: Array, inv_size: float
) -> Standardized:
    """Advantages less the batch's mean, over its deviation."""
    mean = jax.vmap(expect)(tables.log_sampler, paid)
    each = jax.vmap(expect)(tables.log_sampler, (paid - mean[:, None]) ** 2)
    variance, center = weights @ each, jnp.zeros((), paid.dtype)
    if advantage.pooled == "rewards":
        center = weights @ mean
        variance = variance + weights @ (mean - center) ** 2
    elif advantage.pooled == "centered":  # by the group's own mean, which holds the sample
        variance = variance * (1 - inv_size)
    baseline = {"rewards": "none", "centered": "mean", "advantages": "value"}[advantage.pooled]
    scale = advantage.of_deviation(jnp.sqrt(variance))
    return Standardized(center, scale, baseline)
