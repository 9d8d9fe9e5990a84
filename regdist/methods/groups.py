"""Groups of samples as counts of classes of actions, or as lists of actions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, Key

from regdist.methods.batch import Batch, Laws, facts, table
from regdist.methods.expectation import (
    Expectation,
    Group,
    Sampled,
    all_groups,
    draw,
)
from regdist.methods.method import Method
from regdist.numerics.logspace import log_ratio, times_exp


class Classes(NamedTuple):
    """All groups of a size, as counts of classes of actions.

    Attributes:
        member: the class of each action, shape [K].
        belongs: 1 where an action is of a class, else 0, shape [K, L].
        number: samples of each class in each group, shape [M, L].
        log_group: log-probability of each group, shape [M].
        log_chance: log-probability that a sample is of each class, shape [L].
        advantage: of each class in each group, shape [M, L].
    """

    member: Array
    belongs: Array
    number: Array
    log_group: Array
    log_chance: Array
    advantage: Array

    def given(self) -> Array:
        """P(group | it holds an action of a class), shape [M, L]."""
        size = jnp.sum(self.number[0])
        log_chance = jnp.where(jnp.isneginf(self.log_chance), jnp.inf, self.log_chance)
        return times_exp(self.number / size, self.log_group[:, None] - log_chance)


def by_class(method: Method, laws: Laws, group: Group) -> Classes:
    """Enumerates groups where rewards alone decide who is worth what."""
    num_actions, dtype = laws.reward.shape[0], laws.reward.dtype
    member = jnp.arange(num_actions) if group.member is None else group.member
    classes = group.classes or num_actions
    counts, log_multiplicity = all_groups(group.size, classes)
    shares = jnp.asarray(counts / group.size, dtype)
    inv_size = jnp.full((), 1 / group.size, dtype)
    reward = jnp.zeros(classes, dtype).at[member].set(laws.reward)
    belongs = (member[:, None] == jnp.arange(classes)).astype(dtype)
    chance = jnp.exp(laws.log_sampler) @ belongs
    some = chance > 0
    finite = jnp.where(some, jnp.log(jnp.where(some, chance, 1)), 0)
    number = jnp.asarray(counts, dtype)
    never = number @ (~some).astype(dtype) > 0
    log_group = jnp.asarray(log_multiplicity, dtype) + number @ finite
    log_group = jnp.where(never, -jnp.inf, log_group)
    log_chance = jnp.where(some, finite, -jnp.inf)

    def advantages(share: Array) -> Array:
        return method.advantages(Batch(reward, share, share > 0, inv_size, *facts(laws)))

    advantage = jax.vmap(advantages)(shares)
    return Classes(member, belongs, number, log_group, log_chance, advantage)


def each_coefficient(method: Method, laws: Laws, groups: Classes, size: int) -> Array:
    """The coefficient of each action's score in each group, shape [M, K]."""
    every = table(laws, jnp.exp(laws.log_sampler), 1 / size)
    return jax.vmap(lambda a: method.coefficients(every, a[groups.member]))(groups.advantage)


def mean_by_class(method: Method, laws: Laws, group: Group) -> tuple[Array, Array]:
    """The mean over all groups of the coefficient of each action, as a gain and times p."""
    groups = by_class(method, laws, group)
    given = groups.given()
    if any(penalty.placement == "reward" for penalty in method.penalties):
        given = given[:, groups.member]
        coefficient = each_coefficient(method, laws, groups, group.size)
        mean = jnp.sum(jnp.where(given > 0, given * coefficient, 0), axis=0)
    else:
        up, down = (
            groups.belongs @ jnp.sum(given * jnp.maximum(sign * groups.advantage, 0), axis=0)
            for sign in (1, -1)
        )
        every = table(laws, jnp.exp(laws.log_sampler), 1 / group.size)
        mean = method.mean_coefficients(every, up, down)
    weighted = times_exp(mean, laws.log_sampler)
    return times_exp(mean, log_ratio(laws.log_sampler, laws.log_p)), weighted


def draw_groups(expectation: Sampled, laws: Laws, key: Key[Array, ""] | None) -> Int[Array, "M G"]:
    """The actions of the groups of one step."""
    if key is None:
        raise ValueError(f"{expectation!r} draws: give key=jax.random.key(seed)")
    return draw(key, jnp.exp(laws.log_sampler), (expectation.num_groups, expectation.group_size))


def group_lists(expectation: Expectation, laws: Laws, drawn: Array | None) -> tuple[Array, Array]:
    """Groups as lists of actions, shape [M, G], and the log of their weights, shape [M]."""
    if drawn is not None:
        return drawn, jnp.full(drawn.shape[0], -np.log(drawn.shape[0]), laws.reward.dtype)
    assert isinstance(expectation, Group)
    counts, log_multiplicity = all_groups(expectation.size, laws.reward.shape[0])
    each = np.tile(np.arange(counts.shape[1]), counts.shape[0])
    index = np.repeat(each, counts.ravel()).reshape(-1, expectation.size)
    log_weight = jnp.asarray(log_multiplicity, laws.reward.dtype)
    return jnp.asarray(index), log_weight + jnp.sum(laws.log_sampler[index], axis=1)


def listed(method: Method, laws: Laws, index: Array, log_weight: Array) -> Float[Array, "M K"]:
    """For each group, weight times the mean over samples of coefficient, by action."""
    dtype, size = laws.reward.dtype, index.shape[1]
    share = jnp.full(size, 1 / size, dtype)
    inv_size = jnp.full((), 1 / size, dtype)

    def one(actions: Array, log_chance: Array) -> Array:
        present = ~jnp.isneginf(laws.log_sampler[actions])
        reward = laws.reward[actions]
        batch = Batch(reward, share, present, inv_size, *facts(laws), laws, actions)
        coefficient = method.coefficients(batch, method.advantages(batch))
        value = times_exp(jnp.where(present, coefficient, 0) / size, log_chance)
        return jnp.zeros(laws.reward.shape[0], dtype).at[actions].add(value)

    return jax.vmap(one)(index, log_weight)
