"""Surrogates: what multiplies the score of a sample, given its ratio and its advantage.

Each record states d(objective of one sample)/d(log policy of that sample), the rest detached as in
the code it is named after. rho is policy/old policy. All are the advantage itself at rho = 1.
Numbers are data. Sources: verl `core_algos`, TRL `grpo_trainer`, and the papers named.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from regdist.methods.batch import Batch
from regdist.numerics.records import record


class Surrogate:
    """What every surrogate shares.

    `local` says that samples do not meet in it and that it is linear in the advantage on each side
    of 0, `differentiable` that nothing in it is detached.
    """

    local: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """The coefficient of the score at each entry, shape [n]."""
        raise NotImplementedError


@record
class LogProb(Surrogate):
    """Objective A log pi: no ratio, so biased once the data are old."""

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """A."""
        del batch
        return advantage


@record
class Clip(Surrogate):
    """PPO: min(rho A, clip(rho, lower, upper) A), and at least dual * A where A < 0.

    1707.06347; dual clip 1912.09729. `lower=0, upper=inf` is the plain ratio. In a bandit GSPO is
    the same, and GMPO has the bounds e^{-low}, e^{high}.

    Attributes:
        lower: below it a negative advantage has no gradient.
        upper: above it a positive advantage has none.
        dual: above it a negative advantage has none.
    """

    lower: Array
    upper: Array
    dual: Array

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """Rho A inside, 0 beyond."""
        rho = jnp.exp(batch.log_rho)
        low = jnp.where(advantage < 0, self.lower, 0)
        high = jnp.where(advantage < 0, self.dual, self.upper)
        return jnp.where((rho >= low) & (rho <= high), rho * advantage, 0)


@record
class CappedRatio(Surrogate):
    """Objective sg(clip(rho, lower, upper)) A log pi: never zero (CISPO 2506.13585)."""

    lower: Array
    upper: Array

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """clip(rho) A."""
        return jnp.clip(jnp.exp(batch.log_rho), self.lower, self.upper) * advantage


@record
class SoftGate(Surrogate):
    """Objective (4/tau) sigmoid(tau (rho - 1)) A, with a tau for each sign (SAPO 2511.20347)."""

    tau_positive: Array
    tau_negative: Array

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """Rho sech^2(tau (rho - 1)/2) A."""
        rho = jnp.exp(batch.log_rho)
        tau = jnp.where(advantage > 0, self.tau_positive, self.tau_negative)
        gate = jax.nn.sigmoid(tau * (rho - 1))
        return 4 * rho * gate * (1 - gate) * advantage
