"""Rewards that a group makes for itself: agreement with the answer that most of it gives."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from regdist.methods.advantage import Advantage
from regdist.methods.batch import Batch
from regdist.methods.token_advantage import Around, check_spreading
from regdist.numerics.records import looked_at, record


@record
class Voted(Around):
    """The advantage of rewards 1 for the majority's answer and 0 for others (TTRL 2504.16084).

    Answers are the labels of the problem; its rewards are not looked at. Of answers with equally
    many votes the one that comes first in the group has it, as in PRIME-RL/TTRL
    `test_time_train_metrics`, which over the orders of samples is each as often. All samples vote
    and all are trained on; that code may have more that only vote. On `rd.problems.restarts` the
    votes are those of rollouts that fork.

    Attributes:
        inner: of those rewards, of whole samples.

    Examples:
        Three samples of a law that gives the right answer 2 times in 5: the vote goes the other
        way, and so does the policy.

        >>> b = rd.bandit([1.0, 0.0], [0.4, 0.6])
        >>> print(rd.field(rd.methods.ttrl(), b.log_ref, b, rd.Group(3)).round(4))
        [-0.1663  0.1663]
    """

    inner: Advantage = looked_at(check_spreading)

    reads: ClassVar[bool] = True

    def __call__(self, batch: Batch) -> Array:
        """The mean over which of the answers with most votes comes first."""
        label, weight = batch.labels, jnp.where(batch.here, batch.weight, 0)
        same = label[:, None] == label
        votes = jnp.where(same, 1.0, 0.0).astype(weight.dtype) @ weight
        # 64 ulps: counts that are equal tie
        rounding = 64 * jnp.finfo(weight.dtype).eps
        first = batch.here & (votes >= batch.largest(votes) - rounding)
        chance = jnp.where(first, weight / jnp.where(first, votes, 1), 0)
        chance = chance / jnp.maximum(jnp.sum(chance), rounding)

        def after(elected: Array) -> Array:
            reward = jnp.where(elected, 1.0, 0.0).astype(weight.dtype)
            return self.inner(dataclasses.replace(batch, reward=reward))

        return chance @ jax.vmap(after)(same)
