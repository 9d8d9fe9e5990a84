"""Optima of regularized Markov decision processes: every state is a target of what comes after.

The Bellman operator is `target`, mapped over states. S states, A actions; values and errors are in
units of reward.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from regdist.numerics.logspace import expect, full_precision, times_exp
from regdist.numerics.records import Law, Number, as_array, check_count, positive, record
from regdist.numerics.roots import implicit_roots
from regdist.problems.bandit import Bandit
from regdist.problems.mdp import MDP, check_mdp, check_policy
from regdist.problems.unroll import unroll as unroll
from regdist.regularizers.regularizer import Regularizer, check_regularizer
from regdist.targets.solve import Target, target

_ROUNDING = 8
"""A residual below as many ulps of the largest value is rounding: no step makes it smaller."""

_MOST_STEPS = 10_000
"""The most steps that are looked ahead at discount 1: a policy may put the end off for long."""


@record
class Plan(Law):
    """The optimum of a regularized MDP; made by `value_iteration()` and `policy_iteration()`.

    Attributes:
        log_probs: the law of actions in each state, in nats, shape [S, A]: the target of `q`; the
            reference's own in terminal states, where nothing is chosen.
        value: V, the best regularized return from each state, shape [S].
        q: R + discount E V of each action, shape [S, A]; -inf where there is none.
        residual: the largest |T V - V| over states, T the Bellman operator.
        error: a bound on |V - V*| in every state, residual/(1 - discount); at discount 1 the
            residual times the most steps that a policy takes on average, inf where one may put
            the end off for too long to tell. The law's own value is below V* by twice as much at
            most. What `target` rounds comes on top.
        iterations: how often the value was moved.
        unique: whether each state's law is its only optimum.
        converged: whether the error is below the tolerance, or the residual is rounding, and all
            targets were found.
    """

    log_probs: Float[Array, "*batch S A"]
    value: Float[Array, "*batch S"]
    q: Float[Array, "*batch S A"]
    residual: Float[Array, "*batch"]
    error: Float[Array, "*batch"]
    iterations: Int[Array, "*batch"]
    unique: Bool[Array, "*batch"]
    converged: Bool[Array, "*batch"]


def bellman(mdp: MDP, regularizer: Regularizer, value: Float[Array, " S"]) -> Target:
    r"""The regularized Bellman operator: the target of each state, given what comes after.

    $$(T V)(s) = \max_p \; \mathbb{E}_p Q(s, \cdot) - \Omega(p; q(\cdot \mid s)), \quad
    Q(s, a) = R(s, a) + \gamma \sum_t P(t \mid s, a) V(t)$$

    T V is the `value` of what is returned, its `log_probs` the greedy law of actions. T is
    monotone, moves by gamma c when V moves by c, and is a contraction with modulus gamma in the
    maximum norm (arXiv 1901.11275).

    Args:
        mdp: S states, A actions.
        regularizer: Omega, any regularizer or sum whose anchors are laws: the reference in each
            state, or the even law of all A actions.
        value: V, shape [S]; what it says of terminal states is not used.

    Returns:
        A `Target` with a row for each state. In terminal states the value is 0, and the law the
        reference's.

    Raises:
        TypeError: an argument of another kind.
        ValueError: another shape, or an anchor that is a table or follows the policy.

    Examples:
        >>> m = rd.mdp([[[1, 0], [0, 1]], [[0, 1], [1, 0]]], [[0, 0], [1, 0]], 0.9)
        >>> print(bellman(m, rd.ReverseKL(0.5), jnp.zeros(2)).value.round(4))
        [0.     0.7169]
    """
    _check(mdp, regularizer)
    v = as_array("value", value, mdp.reward.dtype)
    if v.shape != (mdp.num_states,):
        raise ValueError(
            f"value must have a number for each of {mdp.num_states} states; got shape {v.shape}"
        )
    return _bellman(mdp, regularizer, v)


def value_iteration(
    mdp: MDP, regularizer: Regularizer, *, tolerance: Number = 1e-12, limit: int = 10_000
) -> Plan:
    r"""The optimum by V <- T V from V = 0: the error falls by the discount, each time.

    $$V^* = T V^* = \max_\pi \mathbb{E}_\pi \sum_t \gamma^t \bigl(R(s_t, a_t) -
    \Omega(\pi(\cdot \mid s_t))\bigr)$$

    Args:
        mdp: S states, A actions.
        regularizer: Omega, as in `bellman`.
        tolerance: the error of the value that is asked for, in units of reward. Where rounding
            does not let it come about, all ends at rounding.
        limit: the most iterations.

    Returns:
        A `Plan`. Works under jit, vmap and grad: derivatives are those of the fixed point (implicit
        function theorem), whatever the iterations; of `value` by `mdp.reward`, how often each
        action is taken.

    Raises:
        TypeError: an argument of another kind.
        ValueError: an anchor that is a table or follows the policy, a tolerance that is not above
            0, or a limit that is no count.

    Examples:
        >>> m = rd.mdp([[[1, 0], [0, 1]], [[0, 1], [1, 0]]], [[0, 0], [1, 0]], 0.9)
        >>> plan = value_iteration(m, rd.ForwardKL(0.5))
        >>> print(plan.value.round(4), plan.iterations > 100, plan.converged)
        [4.913  5.7462] True True
    """
    return _checked_plan(mdp, regularizer, tolerance, limit, 1)


def policy_iteration(
    mdp: MDP,
    regularizer: Regularizer,
    *,
    sweeps: int | None = None,
    tolerance: Number = 1e-12,
    limit: int = 1_000,
) -> Plan:
    r"""The optimum by turns: the greedy law of V, and V as the value of that law.

    $$V \leftarrow V + \sum_{j < m} (\gamma P_\pi)^j (T V - V), \quad \pi \text{ greedy for } V$$

    With all m it is V + (1 - gamma P)^{-1}(T V - V): Newton's method, a few iterations whatever the
    discount. m = 1 is value iteration, all between is modified policy iteration (arXiv 1901.11275).

    Args:
        mdp: S states, A actions.
        regularizer: Omega, as in `bellman`.
        sweeps: m; None for all, by a linear solve.
        tolerance: as in `value_iteration`.
        limit: the most iterations.

    Returns:
        A `Plan`, as of `value_iteration`.

    Raises:
        TypeError: an argument of another kind.
        ValueError: what `value_iteration` refuses, or sweeps that are no count.

    Examples:
        >>> m = rd.mdp([[[1, 0], [0, 1]], [[0, 1], [1, 0]]], [[0, 0], [1, 0]], 0.9)
        >>> plan = policy_iteration(m, rd.ForwardKL(0.5))
        >>> print(plan.value.round(4), plan.iterations < 10, plan.converged)
        [4.913  5.7462] True True
    """
    if sweeps is not None:
        check_count("sweeps", sweeps)
    return _checked_plan(mdp, regularizer, tolerance, limit, sweeps)


def evaluate(
    mdp: MDP, log_probs: Float[Array, "S A"], regularizer: Regularizer | None = None
) -> Float[Array, " S"]:
    r"""The regularized return of a law of actions from each state, by a linear solve, shape [S].

    $$V_\pi = (1 - \gamma P_\pi)^{-1} (R_\pi - \Omega_\pi), \quad R_\pi = \mathbb{E}_\pi R$$

    -inf where the law may come to a state in which Omega is infinite.

    Args:
        mdp: S states, A actions.
        log_probs: the law, in nats, shape [S, A]; rows of terminal states are not looked at.
        regularizer: Omega, as in `bellman`; None for the plain return.

    Raises:
        TypeError: an argument of another kind.
        ValueError: another shape, a row that is no law, or that takes an action that does not
            exist.

    Examples:
        >>> m = rd.mdp([[[1, 0], [0, 1]], [[0, 1], [1, 0]]], [[0, 0], [1, 0]], 0.9)
        >>> print(evaluate(m, m.log_ref))
        [2.25 2.75]
    """
    law = check_policy(mdp, log_probs, "rd.planning.evaluate(mdp, log_probs)")
    if regularizer is not None:
        _check(mdp, regularizer)
    return _evaluate(mdp, law, regularizer)


def occupancy(mdp: MDP, log_probs: Float[Array, "S A"]) -> Float[Array, "S A"]:
    r"""How often a law takes each action in each state, discounted, by a linear solve: [S, A].

    $$d(s, a) = \sum_t \gamma^t P(s_t = s, a_t = a), \quad \sum_a d(s, a) = \text{start}(s) +
    \gamma \sum_{t, a} d(t, a) P(s \mid t, a)$$

    Not normalized: without terminal states it sums to 1/(1 - gamma), at discount 1 to the mean
    number of steps. The plain return from `mdp.start` is the sum of d R.

    Args:
        mdp: S states, A actions.
        log_probs: the law, in nats, shape [S, A]; rows of terminal states are not looked at.

    Raises:
        TypeError: an argument of another kind.
        ValueError: another shape, a row that is no law, or that takes an action that does not
            exist.

    Examples:
        >>> m = rd.mdp([[[1, 0], [0, 1]], [[0, 1], [1, 0]]], [[0, 0], [1, 0]], 0.9, start=[1, 0])
        >>> print(occupancy(m, m.log_ref))
        [[2.75 2.75]
         [2.25 2.25]]
    """
    law = check_policy(mdp, log_probs, "rd.planning.occupancy(mdp, log_probs)")
    return _occupancy(mdp, law)


def _check(mdp: Any, regularizer: Any) -> None:
    check_mdp(mdp)
    check_regularizer(regularizer)
    if any(term.anchor is not None for term in regularizer.terms):
        raise ValueError(
            "in an MDP the anchor of every state is the reference's own law there: give it as "
            "rd.mdp(..., reference=...). A table belongs to one state, and of an anchor that "
            "follows the policy the operator has no known optimum"
        )


def _checked_plan(
    mdp: MDP, regularizer: Regularizer, tolerance: Number, limit: int, sweeps: int | None
) -> Plan:
    _check(mdp, regularizer)
    wanted = positive("tolerance", tolerance, "It is the error of the value, in units of reward")
    check_count("limit", limit)
    counts = jnp.asarray(limit), jnp.asarray(sweeps or 0)
    return _plan(mdp, regularizer, wanted.astype(mdp.reward.dtype), *counts, exact=sweeps is None)


@jax.jit
@full_precision
def _bellman(mdp: MDP, regularizer: Regularizer, value: Array) -> Target:
    """`target`, mapped over states; the value is 0 where all has ended."""
    ends, label = mdp.terminal, jnp.arange(mdp.num_actions)
    q = mdp.action_values(jnp.where(ends, 0, value))
    best = jax.vmap(lambda r, log_q: target(Bandit(r, log_q, label), regularizer))(q, mdp.log_ref)
    return Target(
        log_probs=jnp.where(ends[:, None], mdp.log_ref, best.log_probs),
        value=jnp.where(ends, 0, best.value),
        multiplier=jnp.where(ends, 0, best.multiplier),
        residual=jnp.where(ends, 0, best.residual),
        unique=best.unique | ends,
        converged=best.converged | ends,
    )


@functools.partial(jax.jit, static_argnames="exact")
@full_precision
def _plan(
    mdp: MDP,
    regularizer: Regularizer,
    tolerance: Array,
    limit: Array,
    sweeps: Array,
    exact: bool,
) -> Plan:
    fixed, omega = jax.lax.stop_gradient((mdp, regularizer))
    horizon = _horizon(fixed)

    def small(residual: Array, value: Array) -> Array:
        ulp = jnp.finfo(value.dtype).eps * jnp.max(jnp.abs(value))
        return residual <= jnp.maximum(tolerance / horizon, _ROUNDING * ulp)

    def move(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        value, _, count = carry
        best = _bellman(fixed, omega, value)
        gain = best.value - value
        residual = jnp.max(jnp.abs(gain))
        ended = small(residual, best.value) | ~jnp.isfinite(residual)
        moves = fixed.moves(best.log_probs)
        if exact:
            gains = _returns(moves, gain)
        else:
            gains = jax.lax.fori_loop(1, sweeps, lambda _, so_far: gain + moves @ so_far, gain)
        return jnp.where(ended, value, value + gains), ended, jnp.where(ended, count, count + 1)

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
        return ~carry[1] & (carry[2] < limit)

    begin = jnp.zeros(mdp.num_states, mdp.reward.dtype), jnp.asarray(False), jnp.zeros_like(limit)
    found, _, count = jax.lax.while_loop(unfinished, move, begin)
    value = implicit_roots(lambda v: _bellman(mdp, regularizer, v).value - v, found)
    best = _bellman(mdp, regularizer, value)
    residual = jnp.max(jnp.abs(best.value - value))
    return Plan(
        log_probs=best.log_probs,
        value=value,
        q=mdp.action_values(value),
        residual=residual,
        error=residual * horizon,
        iterations=count,
        unique=jnp.all(best.unique),
        converged=small(residual, best.value) & jnp.all(best.converged),
    )


def _returns(moves: Array, each: Array) -> Array:
    """What comes in over all steps, if `each` does in one: (1 - moves)^{-1} each."""
    return jnp.linalg.solve(jnp.eye(len(each), dtype=each.dtype) - moves, each)


def _horizon(mdp: MDP) -> Array:
    """The most discounted steps that a policy takes on average; at discount 1 to within 1%.

    If h counts the most of k steps, and one more adds d < 1 at most, h/(1 - d) bounds all.
    """

    def longer(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        steps, _, count = carry
        onward = jnp.max(jnp.where(mdp.exists, 1 + mdp.transition @ steps, 0), axis=1)
        return onward, jnp.max(onward - steps), count + 1

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
        return (mdp.discount == 1) & (carry[1] > 0.01) & (carry[2] < _MOST_STEPS)

    one = jnp.ones_like(mdp.discount)
    begin = jnp.zeros_like(mdp.start), one, jnp.asarray(0)
    steps, grown, _ = jax.lax.while_loop(unfinished, longer, begin)
    most, lost = jnp.max(steps) / (1 - jnp.minimum(grown, 1)), 1 - mdp.discount
    return jnp.where(lost > 0, 1 / jnp.where(lost > 0, lost, 1), most)


@jax.jit
@full_precision
def _evaluate(mdp: MDP, law: Array, regularizer: Regularizer | None) -> Array:
    law = jnp.where(mdp.terminal[:, None], mdp.log_ref, law)
    worth = jax.vmap(expect)(law, mdp.reward)
    if regularizer is not None:
        worth -= jax.vmap(regularizer.value)(law, mdp.log_ref)
    worth = jnp.where(mdp.terminal, 0, worth)
    moves, lost = mdp.moves(law), jnp.isneginf(worth)
    value = _returns(moves, jnp.where(lost, 0, worth))
    led = jax.lax.fori_loop(
        0, len(worth), lambda _, bad: bad | jnp.any((moves > 0) & bad, axis=1), lost
    )
    return jnp.where(led, -jnp.inf, value)


@jax.jit
@full_precision
def _occupancy(mdp: MDP, law: Array) -> Array:
    begin = jnp.where(mdp.terminal, 0, mdp.start)
    back = mdp.moves(jnp.where(mdp.terminal[:, None], mdp.log_ref, law)).T
    visits = _returns(back, begin)
    return jnp.where(mdp.terminal[:, None], 0, times_exp(visits[:, None], law))
