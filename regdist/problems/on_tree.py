"""A policy of one's own on a tree: renormalized over the steps that exist."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree
from jaxtyping import Bool, Float

from regdist.numerics.records import check_kind, looked_at, record
from regdist.policies.policy import Params, Policy
from regdist.policies.table import Table
from regdist.problems.state_table import StateTable, as_tree
from regdist.problems.tree import Tree


def _policy(name: str, given: Policy) -> Policy:
    check_kind(name, given, Policy, "Such as rd.policies.LogLinear(features)")
    return given


@record
class OnTree(Policy):
    """Any policy whose table is [S, V], on a tree.

    Its table, logits or log-probabilities, counts at the steps that exist and that are not
    forbidden, and is normalized over those in each state; where chance moves the law is chance's.

    Attributes:
        tree: whose states.
        policy: from parameters to a table of steps.

    Examples:
        >>> t = rd.tree([[0], [1, 0], [1, 1]], [0.0, 0.0, 1.0])
        >>> tied = OnTree(t, rd.policies.LogLinear(jnp.array([[[0.0], [1.0]]] * 2)))
        >>> print(jnp.exp(tied.log_probs(jnp.log(jnp.array([3.0])))))
        [[0.25 0.75]
         [0.25 0.75]]
    """

    tree: Tree = looked_at(as_tree)
    policy: Policy = looked_at(_policy)

    excludes: ClassVar[bool] = True

    def log_probs(self, params: Params) -> Float[Array, "S V"]:
        """The law of steps."""
        possible = self.tree.possible
        logits = jnp.where(possible, self.policy.log_probs(params), -jnp.inf)
        return self.tree.with_chance(jax.vmap(jax.nn.log_softmax)(logits))

    def start(self, log_ref: Float[Array, "S V"]) -> Params:
        """What the policy itself starts from."""
        return self.policy.start(log_ref)

    def natural(
        self, params: Params, gain: Float[Array, "S V"], weighted: Float[Array, "S V"]
    ) -> Params:
        """The natural gradient: the best fit of the gains by the scores of steps.

        The Fisher matrix of the law of sequences is the sum over steps of how often they are
        taken, times the square of their score. Gains count less their mean in each state. The
        smallest of several best fits.
        """
        del gain
        flat, shape_back = ravel_pytree(params)
        scores = jax.jacrev(lambda x: self.log_probs(shape_back(x)).reshape(-1))(flat)
        paths, log_p = self.tree.paths, self.log_probs(params)
        reach = jnp.exp(paths.log_reach(log_p))
        visits = jnp.exp(paths.to_states(paths.log_reach(log_p), 0.0))
        mean = jnp.sum(weighted, axis=1) / jnp.where(visits > 0, visits, 1)
        inside = (reach > 0) & self.tree.chooses[:, None]
        root = jnp.sqrt(jnp.where(inside, reach, 1))
        # root times the gain less its mean; the gain is what is weighted over the reach.
        wanted = jnp.where(inside, weighted / root - root * mean[:, None], 0)
        rows = jnp.where(inside.reshape(-1, 1), root.reshape(-1, 1) * scores, 0)
        return shape_back(jnp.linalg.lstsq(rows, wanted.reshape(-1))[0])

    def freeze(self, direction: Params, gone: Bool[Array, "S V"]) -> Params:
        """The direction: forbidden steps have no parameter of their own."""
        del gone
        return direction


def policy_on(tree: Tree, policy: Policy) -> Policy:
    """A policy with what it must know of a tree; a table is one in every state."""
    if isinstance(policy, Table | StateTable):
        return StateTable(tree)
    return OnTree(tree, policy.policy if isinstance(policy, OnTree) else policy)
