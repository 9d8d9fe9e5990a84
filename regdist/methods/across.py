"""What a trainer takes over its whole batch, where a batch has many groups of every prompt.

Token means, whitened advantages and bundles then have their limits: numbers, found before the step.
C prompts, K samples each, in nats and units of reward.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from regdist.methods.advantage import GroupRelative
from regdist.methods.averaging import Averaging
from regdist.methods.batch import Tables, whole_table
from regdist.methods.bundles import Bundled
from regdist.methods.method import Method
from regdist.methods.token_advantage import Critic, Standardized, ToGo, Whitened
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

    Raises:
        ValueError: an advantage whitened over steps whose limit is not known here.
    """
    advantage, averaging = method.advantage, method.averaging
    if averaging.couples() and (tables.steps is not None or method.rejects):
        each = jax.vmap(lambda one: _mean_length(one, method))(tables)
        averaging = Averaging(weights @ each, "token")
    if isinstance(advantage, GroupRelative) and advantage.pooled != "none":
        paid = jax.vmap(lambda one: _paid(one, method))(tables)
        advantage = _pooled(advantage, tables, paid, weights, inv_size)
    if isinstance(advantage, Bundled):
        advantage = advantage.among(lambda one: _paid(one, method), tables, weights, inv_size)
    if isinstance(advantage, Whitened):
        advantage = _whitened(advantage, method, tables, weights)
    return dataclasses.replace(method, advantage=advantage, averaging=averaging)


def _paid(tables: Tables, method: Method) -> Array:
    """What each sample of a prompt is paid, less the penalties before the advantage."""
    return method.paid(whole_table(tables, jnp.exp(tables.log_sampler), 0.0)).reward


def _mean_length(tables: Tables, method: Method) -> Array:
    """The mean number of steps that count."""
    batch = whole_table(tables, jnp.exp(tables.log_sampler), 0.0)
    return batch.mean(method.lengths(batch))


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
    inner = GroupRelative(jnp.zeros((), paid.dtype), baseline)
    return Standardized(inner, center, advantage.of_deviation(jnp.sqrt(variance)))


def _whitened(
    advantage: Whitened, method: Method, tables: Tables, weights: Float[Array, " C"]
) -> Standardized:
    """Advantages of steps less their mean over all steps of the batch, over their deviation."""
    if not isinstance(advantage.inner, Critic | ToGo):
        raise ValueError(
            f"{type(advantage.inner).__name__} whitened over steps has a limit over many prompts "
            "that is not known here: whiten Critic or ToGo, or ask for each of contexts.each"
        )
    plain = dataclasses.replace(method, advantage=advantage.inner)

    def look(one: Tables) -> tuple[Array, Array, Array]:
        """The mean number of steps, and the mean and variance over steps of the advantage."""
        batch = whole_table(one, jnp.exp(one.log_sampler), 0.0)
        tokens, each = batch.tokens, plain.step_advantages(batch, plain.advantages(batch))
        mean = tokens.mean(each)
        return batch.mean(batch.length), mean, tokens.sum((each - mean) ** 2)

    length, mean, variance = jax.vmap(look)(tables)
    share = weights * length / (weights @ length)
    center = share @ mean
    spread = share @ (variance + (mean - center) ** 2)
    return Standardized(advantage.inner, center, advantage.of_deviation(jnp.sqrt(spread)))
