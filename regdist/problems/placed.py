"""Policies on trees and contexts: renormalized over what exists there.

S states, V tokens, C contexts. A row is a state of a tree, or the one state of a bandit.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree
from jaxtyping import Bool, Float

from regdist.numerics.records import check_kind, looked_at, record
from regdist.policies.policy import Params, Policy, fit_by_scores
from regdist.policies.table import Table
from regdist.problems.contexts import Contexts
from regdist.problems.state_table import StateTable, as_tree
from regdist.problems.tree import Tree


def _policy(name: str, given: Policy) -> Policy:
    check_kind(name, given, Policy, "Such as rd.policies.LogLinear(features)")
    return given


def _contexts(name: str, given: Contexts) -> Contexts:
    check_kind(name, given, Contexts, "Make them: rd.contexts(problems)")
    return given


def _law(problem: Any, logits: Array) -> Array:
    """The law of logits over what exists and is not forbidden."""
    if not isinstance(problem, Tree):
        return jax.nn.log_softmax(jnp.where(jnp.isneginf(problem.reward), -jnp.inf, logits))
    rows = jax.vmap(jax.nn.log_softmax)(jnp.where(problem.possible, logits, -jnp.inf))
    return problem.with_chance(rows)


def _visits(problem: Any, log_p: Array) -> tuple[Array, Array]:
    """How often the policy comes to each row, and whether it moves there, [S]; or one number."""
    if not isinstance(problem, Tree):
        return jnp.ones((), log_p.dtype), jnp.ones((), bool)
    paths = problem.paths
    return jnp.exp(paths.to_states(paths.log_reach(log_p), 0.0)), problem.chooses


def _best_fit(
    policy: Policy, params: Params, weighted: Array, visits: Array, moves: Array
) -> Params:
    """The natural gradient: the best fit of the gains of actions by their scores.

    The Fisher matrix of whole sequences is the sum over steps of how often they are taken times
    the square of their score. Gains count less their mean in each row. Of several best fits the
    smallest.

    Args:
        policy: whose law is [..., V].
        params: where.
        weighted: how often each action is taken times its gain, [..., V].
        visits: how often each row is come to, [...].
        moves: whether the policy moves there, [...].
    """
    flat, shape_back = ravel_pytree(params)
    log_p = policy.log_probs(params)
    scores = jax.jacrev(lambda x: policy.log_probs(shape_back(x)))(flat)
    reach = visits[..., None] * jnp.exp(log_p)
    mean = jnp.sum(weighted, axis=-1) / jnp.where(visits > 0, visits, 1)
    inside = (reach > 0) & moves[..., None]
    root = jnp.sqrt(jnp.where(inside, reach, 0))
    wanted = jnp.where(inside, weighted / jnp.where(inside, root, 1) - root * mean[..., None], 0)
    scores = scores.reshape(-1, flat.shape[0])
    return shape_back(fit_by_scores(scores, root.reshape(-1), wanted.reshape(-1)))


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
        return _law(self.tree, self.policy.log_probs(params))

    def start(self, log_ref: Float[Array, "S V"]) -> Params:
        """What the policy itself starts from."""
        return self.policy.start(log_ref)

    def natural(
        self, params: Params, gain: Float[Array, "S V"], weighted: Float[Array, "S V"]
    ) -> Params:
        """The best fit of the gains of steps by their scores."""
        del gain
        return _best_fit(self, params, weighted, *_visits(self.tree, self.log_probs(params)))


@record
class OnContexts(Policy):
    """Any policy whose table is [C, K] or [C, S, V], on contexts.

    Its table counts where actions or steps exist and are not forbidden, and is normalized there in
    each row; where chance moves the law is chance's.

    Attributes:
        contexts: the problems.
        policy: from parameters to a table of all.
    """

    contexts: Contexts = looked_at(_contexts)
    policy: Policy = looked_at(_policy)

    excludes: ClassVar[bool] = True

    def log_probs(self, params: Params) -> Float[Array, "C ..."]:
        """The law in each context."""
        return self.contexts.map(_law, self.policy.log_probs(params))

    def start(self, log_ref: Float[Array, "C ..."]) -> Params:
        """What the policy itself starts from."""
        return self.policy.start(log_ref)

    def natural(
        self, params: Params, gain: Float[Array, "C ..."], weighted: Float[Array, "C ..."]
    ) -> Params:
        """The best fit of the gains by their scores, over all contexts by their weights."""
        del gain
        visits, moves = self.contexts.map(_visits, self.log_probs(params))
        w = self.contexts.weights.reshape(-1, *[1] * (visits.ndim - 1))
        return _best_fit(self, params, weighted, w * visits, moves)


@record
class EachTable(Policy):
    """A table of its own in every context: parameters [C, K], or [C, S, V], and no sharing.

    Attributes:
        contexts: the problems.
    """

    contexts: Contexts = looked_at(_contexts)

    excludes: ClassVar[bool] = True
    is_array: ClassVar[bool] = True

    def log_probs(self, params: Float[Array, "C ..."]) -> Float[Array, "C ..."]:
        """The law in each context."""
        return self.contexts.map(lambda one, row: table_on(one).log_probs(row), params)

    def start(self, log_ref: Float[Array, "C ..."]) -> Float[Array, "C ..."]:
        """The references."""
        return log_ref

    def pull_back(
        self, params: Float[Array, "C ..."], weighted: Float[Array, "C ..."]
    ) -> Float[Array, "C ..."]:
        """That of each table."""
        return self.contexts.map(lambda one, *row: table_on(one).pull_back(*row), params, weighted)

    def natural(
        self,
        params: Float[Array, "C ..."],
        gain: Float[Array, "C ..."],
        weighted: Float[Array, "C ..."],
    ) -> Float[Array, "C ..."]:
        """That of each table: the weights of contexts cancel; 0 where one is 0."""
        w = self.contexts.weights.reshape(-1, *[1] * (weighted.ndim - 1))
        own = weighted / jnp.where(w > 0, w, 1)
        moved = self.contexts.map(lambda one, *row: table_on(one).natural(*row), params, gain, own)
        return jnp.where(w > 0, moved, 0)

    def exclude(
        self, params: Float[Array, "C ..."], gone: Bool[Array, "C ..."]
    ) -> Float[Array, "C ..."]:
        """Logits of -inf."""
        return jnp.where(gone, -jnp.inf, params)

    def freeze(
        self, direction: Float[Array, "C ..."], gone: Bool[Array, "C ..."]
    ) -> Float[Array, "C ..."]:
        """0 for their logits."""
        return jnp.where(gone, 0, direction)


def table_on(problem: Any) -> Policy:
    """A softmax table for a problem: of actions, in every state, in every context."""
    if isinstance(problem, Contexts):
        return EachTable(problem)
    return StateTable(problem) if isinstance(problem, Tree) else Table()


def steps_law(problem: Any, log_probs: Array) -> Array:
    """The table of a law of actions, or of whole sequences: of a tree that of its steps."""
    return problem.conditionals(log_probs) if isinstance(problem, Tree) else log_probs


def policy_on(problem: Any, policy: Policy) -> Policy:
    """A policy with what it must know of a problem; a table is one in every state and context."""
    if not shares(policy):
        return table_on(problem)
    own = own_policy(policy)
    if isinstance(problem, Contexts):
        return OnContexts(problem, own)
    return OnTree(problem, own) if isinstance(problem, Tree) else own


def shares(policy: Policy) -> bool:
    """Whether a policy, as it was placed, is no table: its parameters may be shared."""
    return not isinstance(policy, Table | StateTable | EachTable)


def own_policy(policy: Policy) -> Policy:
    """The policy that was put on a tree or on contexts."""
    return policy.policy if isinstance(policy, OnTree | OnContexts) else policy
