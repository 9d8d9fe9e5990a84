"""The update of a method on the parameters of a policy, under every expectation."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, Key

from regdist.methods.batch import Tables, paid_rewards
from regdist.methods.expectation import Expectation, Pull, prepared
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
from regdist.problems.bandit import Bandit, check_bandit


def field(
    method: Method,
    params: Params,
    bandit: Bandit,
    expectation: Expectation | None = None,
    *,
    policy: Policy | None = None,
    key: Key[Array, ""] | None = None,
    old: Float[Array, " K"] | None = None,
    sampler: Float[Array, " K"] | None = None,
) -> Params:
    """The expected ascent direction of a method on the parameters of a policy, shaped like them.

    With coefficients c_i it is sum_i m_i c_i grad log p_i, m the distribution that the samples
    come from; for a softmax table grad log p_i = e_i - p. For `policy_gradient` on a table that is
    p_i (w_i - E_p w) with w_i = R_i - d regularizer/d p_i, and w_i - E_p w in the natural geometry.

    Args:
        method: from `rd.methods`.
        params: the parameters: of a table, its logits, shape [K]; -inf is probability 0, which a
            forbidden action (reward -inf) should have: its direction is 0.
        bandit: rewards and reference.
        expectation: `Population()`, the default: the exact average over actions; `Group(size)`:
            the exact average over groups; `Sampled(group_size, num_groups)`: one draw.
        policy: from parameters to log-probabilities; default `rd.policies.Table()`.
        key: for `Sampled`.
        old: log-probabilities of the policy at the time the samples were drawn; default the
            policy itself, so that every ratio is 1.
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
    """
    policy = check_problem(method, bandit, policy)
    params = check_params(policy, params, bandit)
    expectation = prepared(expectation, method, bandit)
    expectation.check_key(key)
    method = in_dtype(method, bandit.reward.dtype)
    where, size = "rd.field(method, params, bandit)", bandit.num_actions
    old = None if old is None else check_log_probs("old", old, where, size)
    sampler = None if sampler is None else check_log_probs("sampler", sampler, where, size)
    tables = tables_of(method, policy.log_probs(params), bandit, old, sampler)
    lists = expectation.draw(tables, key)
    pull = expected_pull(method, tables, expectation, lists, old is None and sampler is None)
    return push(method, policy, params, bandit, pull)


def check_problem(method: Method, bandit: Bandit, policy: Policy | None) -> Policy:
    """The policy asked for, by default a table, where method, problem and policy are such.

    Raises:
        TypeError: an argument of another kind.
        ValueError: forbidden actions under a policy that cannot exclude them.
    """
    check_kind("method", method, Method, "Presets are called: rd.methods.grpo(beta=0.1)")
    check_bandit(bandit)
    if policy is None:
        return Table()
    check_kind("policy", policy, Policy, "The default, a softmax table, is rd.policies.Table()")
    known = is_concrete(bandit.reward)
    if not policy.excludes and known and np.any(np.isneginf(np.asarray(bandit.reward))):
        raise ValueError(
            f"{type(policy).__name__} cannot give a forbidden action (reward -inf) probability 0: "
            "use rd.policies.Table(), or leave the action out of the problem"
        )
    return policy


def check_params(policy: Policy, params: Params, bandit: Bandit, name: str = "params") -> Params:
    """The parameters as arrays, where the policy makes K log-probabilities of them.

    Raises:
        TypeError: not numbers: a record, a function.
        ValueError: parameters of another shape.
    """
    if isinstance(params, Bandit | Method | Expectation | Law):
        raise TypeError(
            f"{name} must be parameters of the policy, such as bandit.log_ref; got "
            f"{described(params)}. The order is method, params, bandit"
        )
    dtype, is_table = bandit.reward.dtype, isinstance(policy, Table)
    leaves, tree = ([params], None) if is_table else jax.tree.flatten(params)
    leaves = [as_array(name, leaf, dtype) for leaf in leaves]  # a list is a table to people
    if is_concrete(leaves) and any(np.any(np.isnan(np.asarray(x))) for x in leaves):
        raise ValueError(f"{name} must be numbers; got NaN")
    params = leaves[0] if tree is None else jax.tree.unflatten(tree, leaves)
    wanted = bandit.reward.shape
    if is_table:
        shape = jnp.shape(params)
        what = f"{wanted}, one logit for each action of the bandit"
    else:
        shape = jax.eval_shape(policy.log_probs, params).shape
        what = f"such that {type(policy).__name__} has log-probabilities of shape {wanted}"
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
    log_p: Float[Array, " K"],
    bandit: Bandit,
    old: Float[Array, " K"] | None = None,
    sampler: Float[Array, " K"] | None = None,
) -> Tables:
    """The tables of a step, with what the method pays in place of the reward."""
    log_old = log_p if old is None else old
    log_sampler = log_old if sampler is None else sampler
    tables = Tables(paid_rewards(bandit), log_p, log_old, log_sampler, bandit.log_ref, bandit.label)
    if method.signal is None:
        return tables
    return dataclasses.replace(tables, reward=method.signal(tables))


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
    if method.regularizer is not None:
        gain = gain - method.regularizer.slope(tables.log_p, tables.log_ref)
        weighted = weighted - method.regularizer.weighted_slope(tables.log_p, tables.log_ref)
    return Pull(gain, weighted)


@full_precision
def push(method: Method, policy: Policy, params: Params, bandit: Bandit, pull: Pull) -> Params:
    """The direction on the parameters, in the geometry of the method."""
    forbidden = jnp.isneginf(bandit.reward)
    gain, weighted = (jnp.where(forbidden, 0, x) for x in pull)
    toward = GEOMETRIES[method.geometry](policy, params, gain, weighted)
    return policy.freeze(toward, forbidden)
