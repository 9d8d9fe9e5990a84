"""Controllers: a coefficient of the method that follows what the policy does during a run."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array

from regdist.methods.batch import Tables
from regdist.metrics import entropy, kl
from regdist.numerics.records import record


class Controller:
    """What every controller shares: a state, started, applied and moved after each step.

    The state is a number or an array of any shape; `Trajectory.control` records it.
    """

    def start(self) -> Array:
        """The state before the first step."""
        raise NotImplementedError

    def apply(self, method: Any, value: Array, tables: Tables) -> Any:
        """The `Method` of the next step."""
        raise NotImplementedError

    def move(self, value: Array, tables: Tables) -> Array:
        """The state after a step that ends at `tables.log_p`."""
        raise NotImplementedError


@record
class AdaptiveKL(Controller):
    """beta <- beta (1 + rate clip(KL/target - 1, -bound, bound)), KL(policy || reference).

    1909.08593; verl `AdaptiveKLController` with rate = samples a step / horizon. It moves the first
    penalty's beta. At its fixed point the KL is the set-point, if a beta > 0 has that KL.

    Attributes:
        beta: to start from.
        target: the set-point, in nats.
        rate: share of the error that one step corrects.
        bound: of the relative error, 0.2.
    """

    beta: Array
    target: Array
    rate: Array
    bound: Array

    def start(self) -> Array:
        """Beta."""
        return self.beta

    def apply(self, method: Any, value: Array, tables: Tables) -> Any:
        """The method with this beta in its first penalty."""
        del tables
        first, *rest = method.penalties
        return dataclasses.replace(
            method, penalties=(dataclasses.replace(first, beta=value), *rest)
        )

    def move(self, value: Array, tables: Tables) -> Array:
        """Up when the KL is above the set-point."""
        error = kl(tables.log_p, tables.log_ref) / self.target - 1
        return value * (1 + self.rate * jnp.clip(error, -self.bound, self.bound))


@record
class AdaptiveEntropy(Controller):
    """An entropy bonus that steps up below a set-point, down above, and is off above it.

    TRL `grpo_trainer`: alpha +- step within [0, largest], and applied only while the entropy is at
    or below the set-point. It slides along the set-point if an entropy bonus can reach it.

    Attributes:
        alpha: to start from.
        target: the set-point of H, in nats.
        step: how far alpha moves.
        largest: alpha's upper end.
    """

    alpha: Array
    target: Array
    step: Array
    largest: Array

    def start(self) -> Array:
        """Alpha."""
        return self.alpha

    def apply(self, method: Any, value: Array, tables: Tables) -> Any:
        """The method with this much entropy bonus, or none above the set-point."""
        on = jnp.where(entropy(tables.log_p) <= self.target, value, 0)
        (term,) = method.regularizer.terms
        bonus = dataclasses.replace(method.regularizer, terms=(dataclasses.replace(term, beta=on),))
        return dataclasses.replace(method, regularizer=bonus)

    def move(self, value: Array, tables: Tables) -> Array:
        """Up when the entropy is below the set-point."""
        wanted = jnp.where(entropy(tables.log_p) < self.target, self.step, -self.step)
        return jnp.clip(value + wanted, 0, self.largest)
