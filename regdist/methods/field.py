"""The update of a method on the parameters of a policy, under every expectation."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Key

from regdist.methods.expectation import Expectation
from regdist.methods.method import Method
from regdist.methods.step import (
    Problem,
    drawn,
    expected_pull,
    fitted,
    in_dtype,
    leaves_of,
    push,
    tables_of,
)
from regdist.numerics.records import (
    Law,
    as_array,
    check_kind,
    described,
    is_concrete,
)
from regdist.policies.policy import Params, Policy
from regdist.policies.table import Table
from regdist.problems.bandit import Bandit, check_bandit
from regdist.problems.contexts import Contexts, check_law
from regdist.problems.placed import EachTable, own_policy, policy_on, table_on
from regdist.problems.state_table import StateTable
from regdist.problems.tree import Tree


def field(
    method: Method,
    params: Params,
    bandit: Problem,
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

    Over contexts it is the mean over prompts by their weights; groups are of one prompt each. What
    a trainer takes over its whole batch (token means, whitened advantages) has its limit in a batch
    of many groups of every prompt; small batches are not enumerated. Ranks, quantiles and largest
    values in other parts (Clip-Cov, STEER, top entropies) are those of each prompt's own group.

    Args:
        method: from `rd.methods`.
        params: the parameters: of a table, its logits, shape [K]; -inf is probability 0, which a
            forbidden action (reward -inf) should have: its direction is 0. Of a tree, logits of
            its steps, shape [S, V]; of contexts a table for each, stacked.
        bandit: rewards and reference, or a tree; or contexts, many of either.
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
            enumerated, or forbidden actions under a policy that cannot exclude them.

    Examples:
        >>> b = rd.bandit([1.0, 0.0], [0.5, 0.5])
        >>> print(field(rd.methods.policy_gradient(rd.ReverseKL(0.1)), b.log_ref, b))
        [ 0.25 -0.25]
        >>> print(field(rd.methods.rloo(), b.log_ref, b, rd.Group(4)))
        [ 0.25 -0.25]

        Of three sequences only the last is right. GRPO's 1/length pushes its first step, away from
        the short wrong one, half as hard again as its second; a sum, or a sum over a constant,
        pushes both alike.

        >>> t = rd.tree([[0], [1, 0], [1, 1]], [0.0, 0.0, 1.0])
        >>> print(field(rd.methods.dr_grpo(averaging="sum"), t.log_ref, t)[:, 1])
        [0.125 0.125]
        >>> print(field(rd.methods.dr_grpo(averaging="sequence"), t.log_ref, t)[:, 1])
        [0.09375 0.0625 ]
    """
    policy = check_problem(method, bandit, policy, trees=True)
    params = check_params(policy, params, bandit)
    expectation = fitted(expectation, method, bandit)
    expectation.check_key(key)
    method = in_dtype(method, leaves_of(bandit).reward.dtype)
    where = "rd.field(method, params, bandit)"
    old, sampler = (
        None if law is None else check_law(name, law, bandit, where)
        for name, law in (("old", old), ("sampler", sampler))
    )
    tables = tables_of(method, policy.log_probs(params), bandit, old, sampler)
    lists = drawn(expectation, tables, key, bandit)
    own = old is None and sampler is None
    pull = expected_pull(method, tables, expectation, lists, own, bandit)
    return push(method, policy, params, bandit, pull)


def check_problem(
    method: Method, bandit: Problem, policy: Policy | None, trees: bool = False
) -> Policy:
    """The policy asked for, by default a table, where method, problem and policy are such.

    Args:
        method: what must be one.
        bandit: what must be a problem.
        policy: or None for the table.
        trees: whether a tree is one, and contexts are.

    Raises:
        TypeError: an argument of another kind.
        ValueError: forbidden actions under a policy that cannot exclude them.
    """
    check_kind("method", method, Method, "Presets are called: rd.methods.grpo(beta=0.1)")
    if not (trees and isinstance(bandit, Tree | Contexts)):
        check_bandit(bandit)
    if policy is None:
        return table_on(bandit)
    check_kind("policy", policy, Policy, "The default, a softmax table, is rd.policies.Table()")
    if not isinstance(bandit, Bandit):
        return policy_on(bandit, policy)
    reward = bandit.reward
    known = is_concrete(reward)
    if not policy.excludes and known and np.any(np.isneginf(np.asarray(reward))):
        raise ValueError(
            f"{type(policy).__name__} cannot give a forbidden action (reward -inf) probability 0: "
            "use rd.policies.Table(), or leave the action out of the problem"
        )
    return policy


def check_params(policy: Policy, params: Params, bandit: Problem, name: str = "params") -> Params:
    """The parameters as arrays, where the policy makes K log-probabilities of them.

    Raises:
        TypeError: not numbers: a record, a function.
        ValueError: parameters of another shape.
    """
    if isinstance(params, Bandit | Tree | Contexts | Method | Expectation | Law):
        raise TypeError(
            f"{name} must be parameters of the policy, such as bandit.log_ref; got "
            f"{described(params)}. The order is method, params, bandit"
        )
    dtype = leaves_of(bandit).reward.dtype
    own = own_policy(policy)
    leaves, tree = ([params], None) if own.is_array else jax.tree.flatten(params)
    leaves = [as_array(name, leaf, dtype) for leaf in leaves]  # a list is a table to people
    if is_concrete(leaves) and any(np.any(np.isnan(np.asarray(x))) for x in leaves):
        raise ValueError(f"{name} must be numbers; got NaN")
    params = leaves[0] if tree is None else jax.tree.unflatten(tree, leaves)
    wanted, of = leaves_of(bandit).reward.shape, "one logit for each action of the bandit"
    if isinstance(bandit, Tree):
        wanted, of = bandit.paths.exists.shape, "a row of logits for each state of the tree"
    elif isinstance(bandit, Contexts):
        wanted, of = bandit.log_ref.shape, "a table of logits for each context"
    if isinstance(policy, Table | StateTable | EachTable):
        shape = jnp.shape(params)
        what = f"{wanted}, {of}"
    else:
        shape = jax.eval_shape(own.log_probs, params).shape
        what = f"such that {type(own).__name__} has log-probabilities of shape {wanted}"
    if shape != wanted:
        raise ValueError(f"{name} must have shape {what}; got {shape}. For a batch use jax.vmap")
    return params
