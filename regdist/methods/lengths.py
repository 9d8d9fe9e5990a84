"""What the lengths of a group do to a mean over its tokens, exactly, by transforms of their laws.

A token mean divides by the number of tokens in the group. Given how many samples have each reward,
the lengths of the others are independent, so that the law of their total is a convolution: a
product of Fourier transforms. L is the number of classes of equal rewards, M of groups as counts, T
the most steps of a sample, N = G T + 1 of totals.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from regdist.methods.batch import Tables
from regdist.methods.groups import Classes


def mean_shares(tables: Tables, groups: Classes) -> Float[Array, "M K"]:
    """E[G/(tokens of the group) | its counts, and a sample that is action i of it].

    Where a group has no sample of an action's class it says nothing.
    """
    steps = tables.steps
    assert steps is not None
    size, most = groups.size, steps.path.shape[1]
    total = jnp.arange(size * most + 1)
    own = jnp.sum(steps.own, axis=1)
    is_long = jnp.where(own[:, None] == total, jnp.exp(tables.log_sampler)[:, None], 0)
    some = ~jnp.isneginf(groups.log_chance)
    chance = jnp.exp(jnp.where(some, groups.log_chance, 0))
    law = jnp.fft.rfft(groups.belongs.T @ is_long / chance[:, None], axis=1)
    ones = jnp.ones_like(law)[:, None]
    powers = jnp.concatenate([ones, jnp.repeat(law[:, None], size, axis=1)], axis=1)
    powers = jnp.cumprod(powers, axis=1)
    count = jnp.round(groups.number).astype(int)
    per_token = size / jnp.maximum(jnp.arange(most + 1)[:, None] + total, 1)

    def of_class(own_class: Array) -> Array:
        """The mean, for a sample of one class and each length, shape [M, T + 1]."""
        itself = jnp.where(jnp.arange(count.shape[1]) == own_class, 1, 0)
        others = jnp.maximum(count - itself, 0)
        product = jnp.ones_like(powers[0, others[:, 0]])
        for c in range(count.shape[1]):
            product = product * powers[c, others[:, c]]
        each = jnp.fft.irfft(product, n=len(total), axis=1)
        return each @ per_token.astype(each.dtype).T

    by_length = jax.lax.map(of_class, jnp.arange(count.shape[1]))
    return by_length[groups.member, :, own].T
