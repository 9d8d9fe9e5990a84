"""Averaging: what a step of a sample counts. All are 1 where samples have one step."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from regdist.methods.batch import Batch
from regdist.numerics.records import as_number, choice, looked_at, record

AVERAGES = ("sum", "sequence", "token", "constant")
"""How the steps of a sample may be added up."""


@record
class Averaging:
    """The factor on every step of a sample.

    Attributes:
        most: what "constant" divides by; default the length of the longest sequence. With "token"
            the mean length where that is known, as it is over many prompts.
        over: "sum": 1, the gradient of the sample's log-probability; "sequence": 1/length (GRPO's
            paper); "token": 1/mean length of the batch (DAPO); "constant": 1/most (Dr. GRPO).
    """

    most: Array | None = looked_at(
        lambda name, given: None if given is None else as_number(given, name), default=None
    )
    over: str = choice(*AVERAGES, default="sum")

    def couples(self) -> bool:
        """Whether the lengths of the others in a group matter."""
        return self.over == "token" and self.most is None

    def __call__(self, batch: Batch, length: Float[Array, " n"] | None = None) -> Array:
        """The factor of each sample, shape [n], given how many of its steps count; default all."""
        length = batch.length if length is None else length
        if self.over == "sequence":
            return 1 / jnp.maximum(length, 1)
        if self.over == "token":
            mean = batch.mean(length) if self.most is None else self.most
            return jnp.full_like(length, 1) / jnp.where(mean > 0, mean, 1)
        if self.over == "constant":
            most = float(batch.tables.horizon) if self.most is None else self.most
            return jnp.full_like(length, 1) / most
        return jnp.ones_like(length)
