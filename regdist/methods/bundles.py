"""Bundles: advantages of the summed rewards of several prompts, one sample of each.

Over a large batch the others of a bundle are drawn by the weights of the prompts, and the group of
bundles that one set of prompts makes is its law. C prompts, K actions each, n entries, N sets of
other prompts, M joint outcomes of them; units of reward.
"""

import itertools
import math
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from regdist.methods.advantage import Advantage
from regdist.methods.batch import Batch, Tables
from regdist.methods.token_advantage import Around, check_spreading
from regdist.numerics.records import choice, looked_at, record, static

MOST_OUTCOMES = 4_000_000  # of bundles, all sets of prompts together: 32 MB a table of float64


@record
class Bundled(Around):
    """The advantage of the sum over a bundle of prompts, given to each of its samples.

    Only over contexts, and there in the limit of large batches and groups.

    Attributes:
        inner: of sums of rewards, as if they were rewards.
        size: how many prompts make a bundle.
        credit: what a sample of one prompt has of it: "uniform", all; "std", that over the
            unbiased deviation of its own prompt's rewards, where it is above 1e-3; "score", 0.5
            times it for a positive reward, else 1.5 times; "share", its reward less the prompt's
            mean, over the sum of these over the bundle, where that is beyond 1e-6, else 1/size.
    """

    inner: Advantage = looked_at(check_spreading)
    size: int = static()
    credit: str = choice("uniform", "std", "score", "share", default="uniform")

    def __call__(self, batch: Batch) -> Array:
        """Not of one prompt."""
        del batch
        raise ValueError(
            f"bundles of {self.size} prompts are made of contexts, many prompts under one policy: "
            "call rd.field(method, params, rd.contexts(problems)), or leave bundle=1"
        )

    def among(
        self,
        paid: Callable[[Tables], Array],
        tables: Tables,
        weights: Float[Array, " C"],
        inv_size: float,
    ) -> "OfBundle":
        """The advantage where the other prompts of a bundle are drawn from these.

        Args:
            paid: what the samples of one prompt are paid.
            tables: of all prompts, stacked.
            weights: of the prompts.
            inv_size: 1/G.

        Raises:
            ValueError: finite groups, or more outcomes than are enumerated.
        """
        if inv_size != 0:
            raise ValueError(
                "bundles are known in the limit of large groups: the quantiles of a few bundles "
                "join the groups of all their prompts. Use rd.Population(), the default"
            )
        count, actions = tables.reward.shape
        others = self.size - 1
        sets = math.comb(count + others - 1, others)
        outcomes = sets * actions**self.size
        if outcomes > MOST_OUTCOMES:
            raise ValueError(
                f"bundles of {self.size} out of {count} prompts with {actions} actions have "
                f"{outcomes:,} outcomes; at most {MOST_OUTCOMES:,} are enumerated. "
                "Use a smaller bundle, or fewer prompts"
            )
        made = list(itertools.combinations_with_replacement(range(count), others))
        orders = [math.factorial(others)] * sets
        for i, one in enumerate(made):
            for j in set(one):
                orders[i] //= math.factorial(one.count(j))
        which = np.array(made, int).reshape(sets, others)
        law = jnp.exp(tables.log_sampler)
        reward = jnp.where(law > 0, jax.vmap(paid)(tables), 0)
        total, chance = (jnp.full((sets, 1), x, law.dtype) for x in (0.0, 1.0))
        for member in which.T:
            total = (total[:, :, None] + reward[member][:, None, :]).reshape(sets, -1)
            chance = (chance[:, :, None] * law[member][:, None, :]).reshape(sets, -1)
        share = jnp.asarray(orders, law.dtype) * jnp.prod(weights[which], axis=1)
        return OfBundle(self.inner, total, chance, share, self.size, self.credit)


@record
class OfBundle(Around):
    """The mean advantage of bundles that an entry of one prompt is in.

    Attributes:
        inner: of sums of rewards.
        total: what the other prompts are paid, for each set of them and outcome.
        chance: of that outcome.
        share: of that set.
        size: how many prompts make a bundle.
        credit: as in `Bundled`.
    """

    inner: Advantage
    total: Float[Array, "N M"]
    chance: Float[Array, "N M"]
    share: Float[Array, " N"]
    size: int = static()
    credit: str = choice("uniform", "std", "score", "share", default="uniform")

    reads: ClassVar[bool] = False

    def __call__(self, batch: Batch) -> Array:
        """The mean over the other prompts and what they are paid."""
        return self.share @ jax.vmap(lambda x, p: self._within(batch, x, p))(
            self.total, self.chance
        )

    def _within(
        self, batch: Batch, others: Float[Array, " M"], chance: Float[Array, " M"]
    ) -> Array:
        """With one set of others."""
        reward = jnp.where(batch.here, batch.reward, 0)
        total, weight = reward[:, None] + others, batch.weight[:, None] * chance
        flat, each = total.reshape(-1), weight.reshape(-1)
        zero = jnp.zeros((), flat.dtype)
        papers = Batch(flat, each, each > 0, zero, zero, each @ flat)
        advantage = self.inner(papers).reshape(total.shape)
        if self.credit == "std":
            std = batch.std(batch.reward, unbiased=True)
            advantage = advantage / (jnp.where(std > 1e-3, std, 1) + 1e-6)  # both RiskPO's code's
        elif self.credit == "score":
            advantage = jnp.where(reward > 0, 0.5, 1.5)[:, None] * advantage
        elif self.credit == "share":
            own, whole = reward - batch.mean(reward), total - papers.mean(flat)
            some = jnp.abs(whole) > 1e-6  # as in that code
            part = jnp.where(some, own[:, None] / jnp.where(some, whole, 1), 1 / self.size)
            advantage = part * advantage
        return jnp.where(weight > 0, advantage, 0) @ chance
