"""Signals: what is paid in place of the reward, where that depends on the policy."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from regdist.methods.batch import Laws
from regdist.numerics.logspace import log_ratio, normalize
from regdist.numerics.records import record


@record
class NashMD:
    """What is paid: the chance to beat an opponent from a mix with the reference (2312.00886).

    TRL: the opponent's logits are mix * reference + (1 - mix) * policy; P is sigmoid of the
    reward gap. The opponent is averaged exactly, never drawn.
    """

    mix: Array

    def __call__(self, laws: Laws) -> Float[Array, " K"]:
        """P(y beats the opponent) - 1/2."""
        both = jnp.isneginf(laws.log_ref) | jnp.isneginf(laws.log_old)
        drift = jnp.where(both, 0, log_ratio(laws.log_ref, laws.log_old))
        opponent = normalize(jnp.where(both, -jnp.inf, laws.log_old + self.mix * drift))
        wins = jax.nn.sigmoid(laws.reward[:, None] - laws.reward[None, :])
        return wins @ jnp.exp(opponent) - 0.5


@record
class ClusterMass:
    """What is paid: the probability of the answer that an action stands for (EMPO's reward)."""

    same: Float[Array, "K K"]

    def __call__(self, laws: Laws) -> Float[Array, " K"]:
        """The mass of the action's own answer under the old policy."""
        return self.same @ jnp.exp(laws.log_old)
