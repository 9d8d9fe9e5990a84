"""Advantages: what a sample is worth beside the others of its group.

One record, `GroupRelative`, is most of the literature: a baseline and a scale. The others are named
by what they do. A function of a `Batch`, so that the group may be samples, counts or the law
itself. G is the group size, p the share of correct samples (reward above 0).
"""

from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from regdist.methods.batch import Batch
from regdist.records import record, static


class Advantage:
    """What every advantage shares.

    `sees_policy` says that it reads log-probabilities, not rewards alone.
    """

    sees_policy: ClassVar[bool] = False

    def __call__(self, batch: Batch) -> Array:
        """The advantage of each entry, shape [n]."""
        raise NotImplementedError


@record
class GroupRelative(Advantage):
    """(reward - baseline) / scale.

    Attributes:
        eps: added to the scale.
        baseline: "none"; "mean" of the group, its own sample included; "others", the mean of the
            other samples (RLOO), whose singleton keeps its reward; "greedy", the reward of the
            likeliest action (ReMax).
        scale: "none"; "std" of the group, unbiased; "std_biased"; "whiten", sqrt(biased
            variance + eps); "mean" (MaxRL); "sqrt_mean"; "nonzero", the share of nonzero rewards.
        singleton: what a group of one gets: "raw", its reward (the baseline is then 0 and the
            scale 1), or "formula".
    """

    eps: Array
    baseline: str = static(default="none")
    scale: str = static(default="none")
    singleton: str = static(default="formula")

    def __call__(self, batch: Batch) -> Array:
        """(r - b)/(s + eps)."""
        r, single = batch.reward, batch.inv_size == 1
        centred = r
        if self.baseline == "greedy":
            centred = r - batch.greedy
        elif self.baseline != "none":
            centred = r - batch.mean(r)
        if self.baseline == "others":
            centred = centred / jnp.where(single, 1, 1 - batch.inv_size)
        scale = jnp.ones_like(batch.inv_size)
        if self.scale != "none":
            scale = self._scale(batch)
        if self.singleton == "raw":
            centred = jnp.where(single, r, centred)
            scale = jnp.where(single, 1 + self.eps, scale)
        empty = scale == 0
        return jnp.where(empty, 0, centred / jnp.where(empty, 1, scale))

    def _scale(self, batch: Batch) -> Array:
        r = batch.reward
        if self.scale == "std":
            return batch.std(r, unbiased=True) + self.eps
        if self.scale == "std_biased":
            return batch.std(r, unbiased=False) + self.eps
        if self.scale == "whiten":
            return jnp.sqrt(batch.std(r, unbiased=False) ** 2 + self.eps)
        if self.scale == "nonzero":
            return batch.sum(jnp.where(r != 0, 1.0, 0.0).astype(r.dtype)) + self.eps
        mean = batch.mean(r)
        if self.scale == "mean":
            return mean + self.eps
        safe = mean > 0
        return jnp.where(safe, jnp.sqrt(jnp.where(safe, mean, 1)), 0) + self.eps
