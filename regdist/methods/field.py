"""The update of a method, under every expectation."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, Key

from regdist.methods.batch import Laws, table
from regdist.methods.expectation import (
    MOST_ENTRIES,
    Expectation,
    Group,
    Population,
    Sampled,
    num_groups,
)
from regdist.methods.geometry import GEOMETRIES
from regdist.methods.groups import draw_groups, group_lists, listed, mean_by_class
from regdist.methods.method import Method
from regdist.numerics.logspace import full_precision, log_ratio, times_exp
from regdist.numerics.records import is_concrete
from regdist.policies.table import softmax
from regdist.problems.bandit import Bandit


def field(
    method: Method,
    logits: Float[Array, " K"],
    bandit: Bandit,
    expectation: Expectation | None = None,
    *,
    key: Key[Array, ""] | None = None,
    old: Float[Array, " K"] | None = None,
    sampler: Float[Array, " K"] | None = None,
) -> Float[Array, " K"]:
    """The expected ascent direction of a method on the logits, shape [K].

    With coefficients c_i it is sum_i m_i c_i (e_i - p) for the softmax gradient, m the law that
    the samples come from. For `policy_gradient` that is p_i (w_i - E_p w) with
    w_i = R_i - d regulariser/d p_i, and w_i - E_p w in the natural geometry.

    Args:
        method: from `rd.methods`.
        logits: the parameters of a softmax table, shape [K]; -inf is probability 0, which a
            forbidden action (reward -inf) should have: its direction is 0.
        bandit: rewards and reference.
        expectation: `Population()`, the default: the exact average over actions; `Group(size)`:
            the exact average over groups; `Sampled(group_size, num_groups)`: one draw.
        key: for `Sampled`.
        old: log-probabilities of the policy at the time the samples were drawn; default the
            policy itself, so that every ratio is 1.
        sampler: log-probabilities that the samples were really drawn from; default `old`.

    Raises:
        ValueError: `Sampled` without a key, a group size below 1, or more groups than can be
            enumerated.

    >>> b = rd.bandit([1.0, 0.0], [0.5, 0.5])
    >>> print(field(rd.methods.policy_gradient(rd.ReverseKL(0.1)), b.log_ref, b))
    [ 0.25 -0.25]
    >>> print(field(rd.methods.rloo(), b.log_ref, b, rd.Group(4)))
    [ 0.25 -0.25]
    """
    chosen = prepared(expectation, method, bandit)
    method = in_dtype(method, logits.dtype)
    laws = laws_of(method, softmax(logits), bandit, old, sampler)
    lists = draw_groups(chosen, laws, key) if isinstance(chosen, Sampled) else None
    return direction(method, laws, bandit, chosen, lists, old is None and sampler is None)


def in_dtype(method: Method, dtype: Any) -> Method:
    """The method with its numbers in the dtype of a table."""
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), method)


@full_precision
def laws_of(
    method: Method,
    log_p: Float[Array, " K"],
    bandit: Bandit,
    old: Float[Array, " K"] | None = None,
    sampler: Float[Array, " K"] | None = None,
) -> Laws:
    """The tables of a step, with what the method pays in place of the reward."""
    log_old = log_p if old is None else old
    laws = Laws(
        paid_rewards(bandit),
        log_p,
        log_old,
        log_old if sampler is None else sampler,
        bandit.log_ref,
    )
    if method.signal is None:
        return laws
    return dataclasses.replace(laws, reward=method.signal(laws))


def paid_rewards(bandit: Bandit) -> Array:
    """The rewards, with 0 for those that forbid: nothing is drawn there."""
    return jnp.where(jnp.isneginf(bandit.reward), 0, bandit.reward)


@full_precision
def direction(
    method: Method,
    laws: Laws,
    bandit: Bandit,
    expectation: Expectation,
    lists: Int[Array, "M G"] | None = None,
    on_policy: bool = False,
) -> Float[Array, " K"]:
    """What `field` returns, from the tables of the step and the groups drawn, if any."""
    log_p, log_ref = laws.log_p, laws.log_ref
    if isinstance(expectation, Population):
        gain, weighted = _population(method, laws, on_policy)
    elif isinstance(expectation, Group) and method.compares_rewards_alone:
        gain, weighted = mean_by_class(method, laws, expectation)
    else:
        lists, log_weight = group_lists(expectation, laws, lists)
        weighted = jnp.sum(listed(method, laws, lists, log_weight), axis=0)
        gain = times_exp(weighted, -jnp.where(jnp.isneginf(log_p), jnp.inf, log_p))
    if method.regularizer is not None:
        gain = gain - method.regularizer.slope(log_p, log_ref)
        weighted = weighted - method.regularizer.weighted_slope(log_p, log_ref)
    allowed = ~jnp.isneginf(bandit.reward)
    gain, weighted = (jnp.where(allowed, x, 0) for x in (gain, weighted))
    return jnp.where(allowed, GEOMETRIES[method.geometry](log_p, gain, weighted), 0)


def prepared(expectation: Expectation | None, method: Method, bandit: Bandit) -> Expectation:
    """The expectation with its classes of actions, if it needs any; refuses what is too large."""
    expectation = Population() if expectation is None else expectation
    if not isinstance(expectation, Expectation):
        raise ValueError(
            "expectation must be rd.Population(), rd.Group(size) or "
            f"rd.Sampled(group_size, num_groups); got {expectation!r}"
        )
    for name, value in vars(expectation).items():
        if name in ("size", "group_size", "num_groups") and not (
            isinstance(value, int | np.integer) and value >= 1
        ):
            raise ValueError(f"{name} must be an integer of at least 1; got {name}={value!r}")
    need = method.advantage.needs
    if need == "group" and isinstance(expectation, Population):
        raise ValueError(
            f"{type(method.advantage).__name__} moves nothing in groups of infinite size: use "
            "rd.Group(size) or rd.Sampled(group_size, num_groups)"
        )
    if need == "population" and not isinstance(expectation, Population):
        raise ValueError(
            f"{type(method.advantage).__name__} is about laws, not groups of the policy's samples: "
            "use rd.Population()"
        )
    if not isinstance(expectation, Group):
        return expectation
    looks = expectation.classes is None and method.compares_rewards_alone
    if looks and is_concrete(bandit.reward):
        expectation = expectation.on(bandit.reward)
    size, classes = expectation.size, expectation.classes or bandit.num_actions
    count = num_groups(size, classes)
    if count * max(classes, bandit.num_actions) > MOST_ENTRIES:
        why = "different rewards" if expectation.classes else "actions, each a class of its own,"
        raise ValueError(
            f"Group({size}) over {classes} {why} has {count:,} groups; at most {MOST_ENTRIES:,} "
            f"groups times actions are enumerated. Use rd.Sampled({size}, num_groups), "
            "rd.Population(), a smaller group, or rd.transform.verify for a binary reward"
        )
    return expectation


def _population(method: Method, laws: Laws, on_policy: bool) -> tuple[Array, Array]:
    batch = table(laws, jnp.exp(laws.log_sampler), 0.0)
    coefficient = method.coefficients(batch, method.advantages(batch))
    if on_policy:  # a constant moves nothing, and rounding is relative to what is left
        coefficient = coefficient - batch.largest(coefficient)
    weighted = times_exp(coefficient, laws.log_sampler)
    return times_exp(coefficient, log_ratio(laws.log_sampler, laws.log_p)), weighted
