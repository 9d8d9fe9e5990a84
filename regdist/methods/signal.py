"""Signals: what is paid in place of the reward, where that depends on the policy."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from regdist.methods.batch import Tables
from regdist.numerics.logspace import log_ratio, normalize
from regdist.numerics.records import record


class Signal:
    """What every signal shares: one that depends on the policy is asked at every step."""

    def __call__(self, tables: Tables) -> Float[Array, " K"]:
        """What is paid for each action, shape [K]: for all of them, drawn or not."""
        raise NotImplementedError


@record
class NashMD(Signal):
    """What is paid: the chance to beat an opponent from a mix with the reference (2312.00886).

    TRL: the opponent's logits are mix * reference + (1 - mix) * policy; P is sigmoid of the
    reward gap. The opponent is averaged exactly, never drawn.
    """

    mix: Array

    def __call__(self, tables: Tables) -> Float[Array, " K"]:
        """P(y beats the opponent) - 1/2."""
        both = jnp.isneginf(tables.log_ref) | jnp.isneginf(tables.log_old)
        drift = jnp.where(both, 0, log_ratio(tables.log_ref, tables.log_old))
        opponent = normalize(jnp.where(both, -jnp.inf, tables.log_old + self.mix * drift))
        wins = jax.nn.sigmoid(tables.reward[:, None] - tables.reward[None, :])
        return wins @ jnp.exp(opponent) - 0.5


@record
class ClusterMass(Signal):
    """What is paid: the probability of the answer that an action stands for (EMPO's reward)."""

    same: Float[Array, "K K"]

    def __call__(self, tables: Tables) -> Float[Array, " K"]:
        """The mass of the action's own answer under the old policy."""
        if self.same.shape[0] != tables.log_old.shape[0]:
            raise ValueError(
                f"label must be one for each action, shape {tables.log_old.shape}; got "
                f"{self.same.shape[:1]}"
            )
        return self.same @ jnp.exp(tables.log_old)
