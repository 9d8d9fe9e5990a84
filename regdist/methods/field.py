"""The update of a method on the parameters of a policy, under every expectation."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, Key

from regdist.methods.batch import Steps, Tables, by_step, paid_rewards
from regdist.methods.expectation import Expectation, Pull, contract, prepared
from regdist.methods.geometry import GEOMETRIES
from regdist.methods.method import Method
from regdist.numerics.logspace import full_precision
from regdist.numerics.records import (
    Law,
    as_array,
    check_kind,
    check_log_probs,
    described,
    is_concrete,
)
from regdist.policies.policy import Params, Policy
from regdist.policies.table import Table
from regdist.problems.bandit import Bandit, Outcomes, check_bandit
from regdist.problems.on_tree import OnTree, policy_on
from regdist.problems.state_table import StateTable
from regdist.problems.tree import Tree, check_steps


def field(
    method: Method,
    params: Params,
    bandit: Bandit | Tree,
    expectation: Expectation | None = None,
    *,
    policy: Policy | None = None,
    key: Key[Array, ""] | None = None,
    old: Float[Array, "..."] | None = None,
    sampler: Float[Array, "..."] | None = None,
) -> Params:
    """The expected ascent direction of a method on the parameters of a policy, shaped like them.

    With coefficients c_i it is sum_i m_i c_i grad log p_i, m the distribution that the samples
    come from; for a softmax table grad log p_i = e_i - p. For `policy_gradient` on a table that is
    p_i (w_i - E_p w) with w_i = R_i - d regularizer/d p_i, and w_i - E_p w in the natural geometry.

    On a tree samples are its sequences, and c_i grad log p_i is a sum over the policy's own steps
    of one, each counted as `averaging` says; a `regularizer` is of the law of whole sequences.

    Args:
        method: from `rd.methods`.
        params: the parameters: of a table, its logits, shape [K]; -inf is probability 0, which a
            forbidden action (reward -inf) should have: its direction is 0. Of a tree, logits of
            its steps, shape [S, V].
        bandit: rewards and reference, or a tree.
        expectation: `Population()`, the default: the exact average over actions; `Group(size)`:
            the exact average over groups; `Sampled(group_size, num_groups)`: one draw.
        policy: from parameters to log-probabilities; default `rd.policies.Table()`.
        key: for `Sampled`.
        old: log-probabilities of the policy at the time the samples were drawn; default the
            policy itself, so that every ratio is 1. Of a tree, laws of its steps, shape [S, V].
        sampler: log-probabilities that the samples were really drawn from; default `old`.

    Raises:
        TypeError: an argument of another kind, such as a preset that was not called.
        ValueError: `Sampled` without a key, a group size below 1, more groups than can be
            enumerated, forbidden actions under a policy that cannot exclude them, or a written
            loss on a tree.

    Examples:
        >>> b = rd.bandit([1.0, 0.0], [0.5, 0.5])
        >>> print(field(rd.methods.policy_gradient(rd.ReverseKL(0.1)), b.log_ref, b))
        [ 0.25 -0.25]
        >>> print(field(rd.methods.rloo(), b.log_ref, b, rd.Group(4)))
        [ 0.25 -0.25]

        Of three sequences only the last is right. GRPO's 1/length pushes its first step, away from
        the short wrong one, half as hard again as its second; a sum pushes both alike.

        >>> t = rd.tree([[0], [1, 0], [1, 1]], [0.0, 0.0, 1.0])
        >>> print(field(rd.methods.dr_grpo(), t.log_ref, t)[:, 1])
        [0.125 0.125]
        >>> print(field(rd.methods.dr_grpo(averaging="sequence"), t.log_ref, t)[:, 1])
        [0.09375 0.0625 ]
    """
    policy = check_problem(method, bandit, policy, trees=True)
    params = check_params(policy, params, bandit)
    expectation = prepared(expectation, method, leaves_of(bandit), horizon_of(bandit))
    expectation.check_key(key)
    method = in_dtype(method, leaves_of(bandit).reward.dtype)
    where = "rd.field(method, params, bandit)"
    old, sampler = (
        None if law is None else _law(name, law, bandit, where)
        for name, law in (("old", old), ("sampler", sampler))
    )
    tables = tables_of(method, policy.log_probs(params), bandit, old, sampler)
    lists = expectation.draw(tables, key)
    pull = expected_pull(method, tables, expectation, lists, old is None and sampler is None)
    return push(method, policy, params, bandit, pull)


def leaves_of(problem: Bandit | Tree) -> Bandit | Outcomes:
    """The problem of one step: the bandit itself, or a tree's whole sequences."""
    return problem.bandit if isinstance(problem, Tree) else problem


def horizon_of(problem: Bandit | Tree) -> int:
    """The most steps of a sample."""
    return problem.paths.steps.shape[1] if isinstance(problem, Tree) else 1


def forbidden_of(problem: Bandit | Tree) -> Array:
    """What no policy may do: actions, or steps of a tree, shaped like its table."""
    return problem.forbidden if isinstance(problem, Tree) else jnp.isneginf(problem.reward)


def _law(name: str, law: Any, problem: Bandit | Tree, where: str) -> Array:
    """A law over actions, or of the steps of a tree."""
    if isinstance(problem, Tree):
        return check_steps(problem, law, where, name)
    return check_log_probs(name, law, where, problem.num_actions)


def check_problem(
    method: Method, bandit: Bandit | Tree, policy: Policy | None, trees: bool = False
) -> Policy:
    """The policy asked for, by default a table, where method, problem and policy are such.

    Args:
        method: what must be one.
        bandit: what must be a problem.
        policy: or None for the table.
        trees: whether a tree is one.

    Raises:
        TypeError: an argument of another kind.
        ValueError: forbidden actions under a policy that cannot exclude them, or a written loss on
            a tree.
    """
    check_kind("method", method, Method, "Presets are called: rd.methods.grpo(beta=0.1)")
    if not (trees and isinstance(bandit, Tree)):
        check_bandit(bandit)
    elif not method.differentiable:
        raise ValueError(
            "a written loss has one term for each sample, and a tree has samples of many steps: "
            "rd.methods.compose a method from parts, or give tree.bandit for whole sequences"
        )
    if policy is None:
        return StateTable(bandit) if isinstance(bandit, Tree) else Table()
    check_kind("policy", policy, Policy, "The default, a softmax table, is rd.policies.Table()")
    if isinstance(bandit, Tree):
        return policy_on(bandit, policy)
    reward = bandit.reward
    known = is_concrete(reward)
    if not policy.excludes and known and np.any(np.isneginf(np.asarray(reward))):
        raise ValueError(
            f"{type(policy).__name__} cannot give a forbidden action (reward -inf) probability 0: "
            "use rd.policies.Table(), or leave the action out of the problem"
        )
    return policy


def check_params(
    policy: Policy, params: Params, bandit: Bandit | Tree, name: str = "params"
) -> Params:
    """The parameters as arrays, where the policy makes K log-probabilities of them.

    Raises:
        TypeError: not numbers: a record, a function.
        ValueError: parameters of another shape.
    """
    if isinstance(params, Bandit | Tree | Method | Expectation | Law):
        raise TypeError(
            f"{name} must be parameters of the policy, such as bandit.log_ref; got "
            f"{described(params)}. The order is method, params, bandit"
        )
    dtype = leaves_of(bandit).reward.dtype
    own = policy.policy if isinstance(policy, OnTree) else policy
    leaves, tree = ([params], None) if own.is_array else jax.tree.flatten(params)
    leaves = [as_array(name, leaf, dtype) for leaf in leaves]  # a list is a table to people
    if is_concrete(leaves) and any(np.any(np.isnan(np.asarray(x))) for x in leaves):
        raise ValueError(f"{name} must be numbers; got NaN")
    params = leaves[0] if tree is None else jax.tree.unflatten(tree, leaves)
    wanted, of = leaves_of(bandit).reward.shape, "one logit for each action of the bandit"
    if isinstance(bandit, Tree):
        wanted, of = bandit.paths.exists.shape, "a row of logits for each state of the tree"
    if isinstance(policy, Table | StateTable):
        shape = jnp.shape(params)
        what = f"{wanted}, {of}"
    else:
        shape = jax.eval_shape(own.log_probs, params).shape
        what = f"such that {type(own).__name__} has log-probabilities of shape {wanted}"
    if shape != wanted:
        raise ValueError(f"{name} must have shape {what}; got {shape}. For a batch use jax.vmap")
    return params


def in_dtype(method: Method, dtype: Any) -> Method:
    """The method with its real numbers in the dtype of a table; indices and masks stay."""

    def cast(x: Any) -> Array:
        x = jnp.asarray(x)
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast, method)


@full_precision
def tables_of(
    method: Method,
    log_p: Float[Array, "..."],
    bandit: Bandit | Tree,
    old: Float[Array, "..."] | None = None,
    sampler: Float[Array, "..."] | None = None,
) -> Tables:
    """The tables of a step, with what the method pays in place of the reward."""
    laws, leaves, steps = _laws(log_p, old, sampler), leaves_of(bandit), None
    if isinstance(bandit, Tree):
        steps = _steps(bandit, *laws)
        given = (None if law is None else bandit.leaves(law) for law in (old, sampler))
        laws = _laws(bandit.leaves(log_p), *given)
    tables = Tables(paid_rewards(leaves), *laws, leaves.log_ref, leaves.label, steps)
    if method.signal is None:
        return tables
    return dataclasses.replace(tables, reward=method.signal(tables))


@full_precision
def with_policy(tables: Tables, problem: Bandit | Tree, log_p: Float[Array, "..."]) -> Tables:
    """The tables of a step whose policy has moved since its samples were drawn."""
    if not isinstance(problem, Tree):
        return dataclasses.replace(tables, log_p=log_p)
    assert tables.steps is not None
    steps = dataclasses.replace(
        tables.steps,
        tables=dataclasses.replace(tables.steps.tables, log_p=log_p.reshape(-1)),
        log_reach=problem.paths.log_reach(log_p).reshape(-1),
    )
    return dataclasses.replace(tables, log_p=problem.leaves(log_p), steps=steps)


def with_reference(problem: Bandit | Tree, log_ref: Float[Array, "..."]) -> Bandit | Tree:
    """A problem beside another reference: a law of actions, or of the steps of a tree."""
    if not isinstance(problem, Tree):
        return dataclasses.replace(problem, log_ref=log_ref)
    leaves = dataclasses.replace(problem.bandit, log_ref=problem.leaves(log_ref))
    return dataclasses.replace(problem, bandit=leaves)


def _laws(log_p: Array, old: Array | None, sampler: Array | None) -> tuple[Array, Array, Array]:
    """The policy, the one that drew the batch, and what it was drawn from, by their defaults."""
    log_old = log_p if old is None else old
    return log_p, log_old, log_old if sampler is None else sampler


def _steps(tree: Tree, log_p: Array, log_old: Array, log_sampler: Array) -> Steps:
    """The steps of a tree, each law a table of all of them, flat."""
    paths = tree.paths
    tables = Tables(
        reward=jnp.zeros(log_p.size, log_p.dtype),
        log_p=log_p.reshape(-1),
        log_old=log_old.reshape(-1),
        log_sampler=log_sampler.reshape(-1),
        log_ref=tree.log_ref.reshape(-1),
        label=jnp.zeros(log_p.size, int),
        rows=tree.num_states,
        log_even=tree.even(log_p.dtype).reshape(-1),
    )
    own = jnp.broadcast_to(tree.chooses[:, None], log_p.shape)
    return Steps(
        tables=tables,
        path=paths.steps,
        there=paths.there,
        own=paths.there & own.reshape(-1)[paths.steps],
        log_reach=paths.log_reach(log_p).reshape(-1),
    )


@full_precision
def expected_pull(
    method: Method,
    tables: Tables,
    expectation: Expectation,
    lists: Int[Array, "M G"] | None,
    on_policy: bool,
) -> Pull:
    """What multiplies grad log p_i, regularizer included."""
    gain, weighted = expectation.pull(method, tables, lists, on_policy)
    if method.regularizer is None:
        return Pull(gain, weighted)
    lost = method.regularizer.weighted_slope(tables.log_p, tables.log_ref)
    if tables.steps is not None:
        lost = contract(tables, total=by_step(tables.steps, lost[:, None]))
        return Pull(gain - lost.gain, weighted - lost.weighted)
    gain = gain - method.regularizer.slope(tables.log_p, tables.log_ref)
    return Pull(gain, weighted - lost)


@full_precision
def push(
    method: Method, policy: Policy, params: Params, bandit: Bandit | Tree, pull: Pull
) -> Params:
    """The direction on the parameters, in the geometry of the method."""
    forbidden = forbidden_of(bandit)
    gain, weighted = (jnp.where(forbidden, 0, x.reshape(forbidden.shape)) for x in pull)
    toward = GEOMETRIES[method.geometry](policy, params, gain, weighted)
    return policy.freeze(toward, forbidden)
