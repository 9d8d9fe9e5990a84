"""The softmax table: one logit an action."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from regdist.numerics.records import record
from regdist.policies.policy import Policy


def log_softmax(logits: Float[Array, " K"]) -> Float[Array, " K"]:
    """The softmax table in nats: log p_i = z_i - log sum e^z, one logit per action, shape [K].

    A logit of -inf is probability 0 and stays so. A constant added to all logits changes nothing.

    Examples:
        >>> print(log_softmax(jnp.array([0.0, 0.0, -jnp.inf])))
        [-0.693... -0.693...        -inf]
    """
    return jax.nn.log_softmax(logits)


@record
class Table(Policy):
    """A softmax over actions, whose parameters are its logits, shape [K]: any law is one.

    Examples:
        >>> table = rd.policies.Table()
        >>> print(jnp.exp(table.log_probs(jnp.array([0.0, 0.0]))))
        [0.5 0.5]
        >>> print(table.pull_back(jnp.array([0.0, 0.0]), jnp.array([0.5, 0.0])))
        [ 0.25 -0.25]
    """

    excludes: ClassVar[bool] = True
    is_array: ClassVar[bool] = True

    def log_probs(self, params: Float[Array, " K"]) -> Float[Array, " K"]:
        """The logits less the logarithm of their sum."""
        return log_softmax(params)

    def start(self, log_ref: Float[Array, " K"]) -> Float[Array, " K"]:
        """The reference's log-probabilities."""
        return log_ref

    def pull_back(
        self, params: Float[Array, " K"], weighted: Float[Array, " K"]
    ) -> Float[Array, " K"]:
        """weighted_i - p_i sum_j weighted_j."""
        return weighted - jnp.exp(self.log_probs(params)) * jnp.sum(weighted)

    def natural(
        self, params: Float[Array, " K"], gain: Float[Array, " K"], weighted: Float[Array, " K"]
    ) -> Float[Array, " K"]:
        """gain_i - sum_j weighted_j, mirror descent in KL; 0 where p_i = 0."""
        return jnp.where(jnp.isneginf(self.log_probs(params)), 0, gain - jnp.sum(weighted))

    def exclude(self, params: Float[Array, " K"], gone: Bool[Array, " K"]) -> Float[Array, " K"]:
        """Logits of -inf."""
        return jnp.where(gone, -jnp.inf, params)

    def freeze(self, direction: Float[Array, " K"], gone: Bool[Array, " K"]) -> Float[Array, " K"]:
        """0 for their logits."""
        return jnp.where(gone, 0, direction)
