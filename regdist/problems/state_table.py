"""The policy of a tree with a softmax table in every state: any law of its steps is one."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from regdist.numerics.records import looked_at, record
from regdist.policies.policy import Policy
from regdist.policies.table import Table
from regdist.problems.tree import Tree, check_tree


def as_tree(_: str, given: Tree) -> Tree:
    """A tree, as an attribute of a policy."""
    check_tree(given)
    return given


@record
class StateTable(Policy):
    """A softmax over the steps of each state, whose parameters are its logits, shape [S, V].

    Logits of steps that do not exist are not looked at, and a state whose logits are all -inf, as
    one beyond a forbidden step may be, is even. Where chance moves the law is chance's own, and no
    logit moves it.

    Attributes:
        tree: whose states.

    Examples:
        >>> t = rd.tree([[0], [1, 0], [1, 1]], [0.0, 0.0, 1.0])
        >>> print(jnp.exp(StateTable(t).log_probs(jnp.zeros((2, 2)))))
        [[0.5 0.5]
         [0.5 0.5]]
    """

    tree: Tree = looked_at(as_tree)

    excludes: ClassVar[bool] = True
    is_array: ClassVar[bool] = True

    def log_probs(self, params: Float[jax.Array, "S V"]) -> Float[jax.Array, "S V"]:
        """The logits of each state less the logarithm of their sum; -inf where there is no step."""
        return self.tree.with_chance(jax.vmap(Table().log_probs)(self._logits(params)))

    def _logits(self, params: Float[jax.Array, "S V"]) -> Float[jax.Array, "S V"]:
        """The logits that count, a row of a table for each state; 0 where chance moves."""
        logits = jnp.where(self.tree.paths.exists, params, -jnp.inf)
        none = jnp.all(jnp.isneginf(logits), axis=1) & self.tree.chooses
        logits = jnp.where(none[:, None], self.tree.even(logits.dtype), logits)
        return jnp.where(self.tree.chooses[:, None], logits, 0)

    def start(self, log_ref: Float[jax.Array, "S V"]) -> Float[jax.Array, "S V"]:
        """The reference's law of steps."""
        return log_ref

    def pull_back(
        self, params: Float[jax.Array, "S V"], weighted: Float[jax.Array, "S V"]
    ) -> Float[jax.Array, "S V"]:
        """weighted less p times its sum over the state; 0 where chance moves."""
        moved = jax.vmap(Table().pull_back)(self._logits(params), weighted)
        return jnp.where(self.tree.chooses[:, None], moved, 0)

    def natural(
        self,
        params: Float[jax.Array, "S V"],
        gain: Float[jax.Array, "S V"],
        weighted: Float[jax.Array, "S V"],
    ) -> Float[jax.Array, "S V"]:
        """The gain of each step less its mean in the state, mirror descent in each.

        The gain is `weighted` over how often the policy takes the step, and its mean the sum of
        `weighted` over how often it comes to the state: 0 where it never does.
        """
        log_p = self.log_probs(params)
        visits = jnp.exp(self.tree.paths.to_states(self.tree.paths.log_reach(log_p), 0.0))
        mean = jnp.sum(weighted, axis=1) / jnp.where(visits > 0, visits, 1)
        inside = self.tree.chooses[:, None] & ~jnp.isneginf(log_p) & (visits > 0)[:, None]
        return jnp.where(inside, gain - mean[:, None], 0)

    def exclude(
        self, params: Float[jax.Array, "S V"], gone: Bool[jax.Array, "S V"]
    ) -> Float[jax.Array, "S V"]:
        """Logits of -inf."""
        return jnp.where(gone, -jnp.inf, params)

    def freeze(
        self, direction: Float[jax.Array, "S V"], gone: Bool[jax.Array, "S V"]
    ) -> Float[jax.Array, "S V"]:
        """0 for their logits."""
        return jnp.where(gone, 0, direction)
