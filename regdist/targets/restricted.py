"""What a policy that cannot be every law can reach: the best of a class, and the nearest in it.

D parameters, K outcomes: actions, or whole sequences of a tree; C contexts. In nats.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree
from jaxtyping import Bool, Float

from regdist.numerics.records import (
    Law,
    as_array,
    check_kind,
    check_log_probs,
    record,
)
from regdist.numerics.roots import accepted
from regdist.policies.policy import Params, Policy
from regdist.problems.bandit import Bandit, check_bandit
from regdist.problems.contexts import Contexts, whole_law
from regdist.problems.placed import policy_on
from regdist.problems.tree import Tree
from regdist.regularizers.divergence import KL, Divergence, check_divergence
from regdist.regularizers.regularizer import Regularizer, check_regularizer
from regdist.targets.solve import objective, target

# Newton steps double the digits once near; the ways there that were seen take under 60.
_MAX_STEPS = 300
# An eigenvalue below this share of the largest is a way along which nothing bends: parameters that
# move no law, such as one constant for all logits.
_FLAT = 1e-11
# A step moves no log-probability by more: beyond, a softmax is flat, and looks like an end.
_FAR = 2.0
# Steps that are halved thirty times are none.
_LEAST = 1e-9
# An eigenvalue below this many ulps of the largest is not known at all.
_ULPS = 64
# To what a log-probability is known that is called found, in nats.
_FOUND = 1e-3
# What rounding may make of a flat way, relative to the largest eigenvalue.
_SADDLE = 1e-7


@record
class Restricted(Law):
    """A law of a class; made by `restricted()` and `project()`.

    Attributes:
        log_probs: log p, shape [K], of whole sequences on a tree; of contexts [C, K].
        params: the parameters that have it.
        value: E_p R - regularizer(p), in units of reward; of a projection the divergence to the
            target, in nats. Of contexts the mean by their weights.
        residual: what the class costs: the value of the best of all laws less its own; of a
            projection the divergence that is left.
        slope: the largest derivative of the value in a parameter.
        curvature: the smallest eigenvalue of the second derivative of what is minimized, over the
            largest: below 0 at a saddle, 0 where parameters are more than the laws need.
        log_error: what one more step of the search, and rounding, would move a log-probability by,
            in nats, to first order. The search looks at the gradient in the parameters, which
            carries the factor p, so that it is about 1e-16/p of the rarest; inf where some move
            along a way that bends by less than rounding.
        converged: whether the slope is 0 to rounding, nothing bends down there, and `log_error` is
            at most 1e-3: beyond, what is rare is not found. With a curvature
            above 0 it is the best nearby; with 0 that is so where parameters are more than the laws
            need, and not where a law moves by a cube of one. Where the class is not convex there
            may be a better one, which another `init` finds. False at a kink, such as total
            variation's, where there is no slope.
    """

    log_probs: Float[Array, "*batch K"]
    params: Params
    value: Float[Array, ""]
    residual: Float[Array, ""]
    slope: Float[Array, ""]
    curvature: Float[Array, ""]
    log_error: Float[Array, ""]
    converged: Bool[Array, ""]


def restricted(
    problem: Bandit | Tree | Contexts,
    regularizer: Regularizer,
    policy: Policy,
    *,
    init: Params | None = None,
) -> Restricted:
    r"""The best law of a class: what gradient ascent on the exact objective can end at.

    $$\max_\theta \; \mathbb{E}_{p_\theta} R - \Omega(p_\theta)$$

    Args:
        problem: rewards and reference; of a tree the regularizer is of whole sequences; of contexts
            the objective is the mean by their weights.
        regularizer: Omega.
        policy: the class, such as `rd.policies.LogLinear(features)`.
        init: parameters to start from; default the reference's.

    Raises:
        TypeError: an argument of another kind, or a tree where chance moves.
        ValueError: the reference is not in the class, and no `init` is given; or a table of another
            shape.

    Examples:
        Two of three actions share their logit: the better one cannot leave the worse behind.

        >>> b = rd.bandit([1.0, 0.0, 0.5])
        >>> best = restricted(b, rd.ReverseKL(0.5), rd.policies.Tied([0, 0, 1]))
        >>> print(best.probs.round(4), best.residual.round(4))
        [0.3333 0.3333 0.3333] 0.1545
    """
    check_regularizer(regularizer)
    placed, start = _placed(problem, policy, init)
    found = _made(problem, placed, _Objective(regularizer), start)
    best = _value(problem, regularizer)
    return dataclasses.replace(found, value=-found.value, residual=best + found.residual)


def project(
    problem: Bandit | Tree | Contexts,
    law: Law | Float[Array, "*batch K"],
    policy: Policy,
    divergence: Divergence | None = None,
    *,
    init: Params | None = None,
) -> Restricted:
    r"""The law of a class that is nearest to a given one, in a divergence.

    $$\min_\theta \; D_f(p_\theta \,\|\, t)$$

    In a full table every divergence has one answer, the law itself; in a class each has its own.

    Args:
        problem: what the class is of; its reference is where the search begins.
        law: t, such as `rd.target(problem, regularizer)`: log-probabilities of actions, or of whole
            sequences, shape [K]; of contexts [C, K].
        policy: the class.
        divergence: of `rd.divergences`; default `KL()`, the reverse KL sum p log(p/t).
            `ForwardKL()`, sum t log(t/p), is maximum likelihood.
        init: parameters to start from; default the reference's.

    Raises:
        TypeError: an argument of another kind.
        ValueError: as `restricted`, or a law over other outcomes.

    Examples:
        >>> b = rd.bandit([1.0, 0.0, 0.0], [0.2, 0.4, 0.4])
        >>> t, tied = rd.target(b, rd.ReverseKL(0.5)), rd.policies.Tied([0, 0, 1])
        >>> for divergence in (rd.divergences.KL(), rd.divergences.ForwardKL()):
        ...     print(project(b, t, tied, divergence, init=jnp.zeros(2)).probs.round(4))
        [0.3968 0.3968 0.2064]
        [0.4122 0.4122 0.1756]
    """
    divergence = KL() if divergence is None else check_divergence(divergence)
    placed, start = _placed(problem, policy, init)
    return _made(problem, placed, _Distance(divergence, _law_of(problem, law)), start)


@record
class _Objective:
    """Less is better: the regularizer less the expected reward."""

    regularizer: Regularizer

    def __call__(self, problem: Any, log_p: Array) -> Array:
        if isinstance(problem, Contexts):
            return problem.weights @ problem.map(self, log_p)
        leaves = problem.bandit if isinstance(problem, Tree) else problem
        return -objective(log_p, leaves, self.regularizer)

    def slopes(self, problem: Any, log_p: Array) -> Array:
        """p_i times the derivative in p_i, up to a constant over i."""
        if isinstance(problem, Contexts):
            return problem.weights[:, None] * problem.map(self.slopes, log_p)
        leaves = problem.bandit if isinstance(problem, Tree) else problem
        paid = jnp.where(jnp.isneginf(log_p), 0, jnp.exp(log_p) * leaves.reward)
        return self.regularizer.weighted_slope(log_p, leaves.log_ref) - paid


@record
class _Distance:
    """The divergence to a law."""

    divergence: Divergence
    log_target: Array

    def __call__(self, problem: Any, log_p: Array) -> Array:
        if isinstance(problem, Contexts):
            return problem.weights @ jax.vmap(self.divergence.value)(log_p, self.log_target)
        return self.divergence.value(log_p, self.log_target)

    def slopes(self, problem: Any, log_p: Array) -> Array:
        """p_i times the derivative in p_i, up to a constant over i."""
        each = self.divergence.weighted_slope(log_p, self.log_target)
        return problem.weights[:, None] * each if isinstance(problem, Contexts) else each


def _value(problem: Any, regularizer: Regularizer) -> Array:
    """The value of the best of all laws."""
    if isinstance(problem, Contexts):
        return problem.weights @ problem.map(lambda one: _value(one, regularizer))
    return target(problem.bandit if isinstance(problem, Tree) else problem, regularizer).value


def _placed(problem: Any, policy: Any, init: Params | None) -> tuple[Policy, Params]:
    """The policy on the problem, and parameters whose table fits."""
    if isinstance(problem, Tree):
        check_bandit(problem.bandit)
    elif not isinstance(problem, Contexts):
        check_bandit(problem)
    else:
        for one in problem.each:
            check_bandit(one.bandit if isinstance(one, Tree) else one)
    check_kind("policy", policy, Policy, "Such as rd.policies.LogLinear(features)")
    dtype = problem.log_ref.dtype
    placed = policy_on(problem, policy)
    start = placed.start(problem.log_ref) if init is None else init
    if policy.is_array:
        start = as_array("init", start, dtype)
    start = jax.tree.map(lambda x: as_array("init", x, dtype), start)
    shape = jax.eval_shape(policy.log_probs, start).shape
    if shape != problem.log_ref.shape:
        raise ValueError(
            f"the table of {type(policy).__name__} must have shape {problem.log_ref.shape}; got "
            f"{shape}"
        )
    return placed, start


def _law_of(problem: Any, law: Any) -> Array:
    """The law to go to, looked at."""
    where = "rd.project(problem, law, policy)"
    if isinstance(problem, Contexts):
        rows = law.log_probs if isinstance(law, Law) else as_array("law", law, None)
        wanted = problem.leaves.reward.shape
        if rows.shape != wanted:
            raise ValueError(f"law of {where} must have shape {wanted}; got {rows.shape}")
        return rows
    leaves = problem.bandit if isinstance(problem, Tree) else problem
    given = law.log_probs if isinstance(law, Law) else law
    return check_log_probs("law", given, where, leaves.num_actions)


@jax.jit
def _best(
    goal: Any, problem: Any, policy: Policy, start: Params
) -> tuple[Params, Array, Array, Array]:
    """Newton steps on the absolute curvature, halved until they lead down.

    Returns:
        The parameters, the slopes there, the eigenvalues of the second derivative, in order, and
        what a log-probability is known to.
    """
    flat, shape_back = ravel_pytree(start)

    def laws(x: Array) -> Array:
        return whole_law(problem, policy.log_probs(shape_back(x)))

    def look(x: Array) -> tuple[Array, Array]:
        """The cost and its slopes, by those in the law: shorter than the derivative of its sum."""
        log_p, pull = jax.vjp(laws, x)
        each = jnp.where(jnp.isneginf(log_p), 0, goal.slopes(problem, log_p))
        centered = each - jnp.exp(log_p) * jnp.sum(each, axis=-1, keepdims=True)
        return goal(problem, log_p), pull(centered)[0]

    def slopes(x: Array) -> tuple[Array, tuple[Array, Array]]:
        f, g = look(x)
        return g, (f, g)

    bend = jax.jacfwd(slopes, has_aux=True)
    eps, tiny = jnp.finfo(flat.dtype).eps, jnp.finfo(flat.dtype).tiny

    def step(state: _Place) -> _Place:
        """One step, or none from where none leads down."""
        x = state.x
        curvature, (f, g) = bend(x)
        sizes, ways = jnp.linalg.eigh((curvature + curvature.T) / 2)
        size = jnp.abs(sizes)
        size = jnp.maximum(size, jnp.maximum(_FLAT * jnp.max(size), tiny))
        toward = -ways @ ((ways.T @ g) / size)
        moved = jnp.abs(jax.jvp(laws, (x,), (toward,))[1])
        far = jnp.max(jnp.where(jnp.isfinite(moved), moved, 0))
        toward = toward * jnp.minimum(1, _FAR / jnp.maximum(far, tiny))

        def leads_down(tried: _Place) -> Array:
            lower = tried.cost <= f + 1e-4 * tried.share * (g @ toward)
            same = jnp.abs(tried.cost - f) <= 8 * eps * (1 + jnp.abs(f))
            return lower | (same & (jnp.max(jnp.abs(tried.slope)) < jnp.max(jnp.abs(g))))

        def halve(tried: _Place) -> _Place:
            y = x + tried.share / 2 * toward
            cost, slope = look(y)
            return tried._replace(x=y, cost=cost, slope=slope, share=tried.share / 2)

        state = state._replace(cost=f, slope=g)
        begun = state._replace(share=2 * jnp.ones_like(f), cost=jnp.full_like(f, jnp.inf))
        found = jax.lax.while_loop(
            lambda tried: ~leads_down(tried) & (tried.share > _LEAST), halve, begun
        )
        moves = found.share > _LEAST
        kept = jax.tree.map(lambda new, old: jnp.where(moves, new, old), found, state)
        return kept._replace(sizes=sizes, ways=ways, moves=moves, taken=state.taken + 1)

    begun = _Place(
        x=flat,
        cost=jnp.full((), jnp.inf, flat.dtype),
        slope=jnp.zeros_like(flat),
        sizes=jnp.zeros_like(flat),
        ways=jnp.eye(flat.shape[0], dtype=flat.dtype),
        share=jnp.ones((), flat.dtype),
        moves=jnp.ones((), bool),
        taken=jnp.zeros((), int),
    )
    end = jax.lax.while_loop(lambda s: s.moves & (s.taken < _MAX_STEPS), step, begun)
    log_p, rates = laws(end.x), jax.jacfwd(laws)(end.x)
    each = jnp.where(jnp.isneginf(log_p), 0, goal.slopes(problem, log_p)).reshape(-1)
    error = _log_error(rates.reshape(-1, flat.shape[0]), each, end)
    return shape_back(end.x), end.slope, end.sizes, error


def _log_error(rates: Array, slopes: Array, end: "_Place") -> Array:
    """What one more Newton step, and rounding of its slopes, would do to a log-probability.

    Args:
        rates: of log-probabilities in parameters, [K, D].
        slopes: whose sum over actions, times these, is the gradient, [K].
        end: where the search ended.
    """
    sizes, ways, eps = end.sizes, end.ways, jnp.finfo(end.sizes.dtype).eps
    rates = jnp.where(jnp.isfinite(rates), rates, 0)
    rounding = 4 * eps * jnp.abs(slopes) @ jnp.abs(rates)
    size = jnp.abs(sizes)
    known = size > _ULPS * eps * jnp.max(size)
    left = jnp.abs(end.slope @ ways) + rounding @ jnp.abs(ways)
    steps = jnp.where(known, left / jnp.where(known, size, 1), 0)
    moved = jnp.abs(rates @ ways)
    # parameters that move no law have rates of some ulps along such a way, and those that do, of 1
    lost = jnp.any(~known & (jnp.max(moved, axis=0) > 1e-6))
    return jnp.where(lost, jnp.inf, jnp.max(moved @ steps))


class _Place(NamedTuple):
    """Where a search is, with what was seen there."""

    x: Array
    cost: Array
    slope: Array
    sizes: Array
    ways: Array
    share: Array
    moves: Array
    taken: Array


def _made(problem: Any, policy: Policy, goal: Any, start: Params) -> Restricted:
    """The record, its value and residual those of the cost."""
    params, slopes, sizes, error = _best(goal, problem, policy, start)
    log_p = whole_law(problem, policy.log_probs(params))
    cost, top = goal(problem, log_p), jnp.max(jnp.abs(sizes))
    slope = jnp.max(jnp.abs(slopes))
    curvature = jnp.where(top > 0, sizes[0] / jnp.where(top > 0, top, 1), 0)
    return Restricted(
        log_probs=log_p,
        params=params,
        value=cost,
        residual=cost,
        slope=slope,
        curvature=curvature,
        log_error=error,
        converged=accepted(slope / (1 + jnp.abs(cost)))
        & (curvature > -_SADDLE)
        & (error <= _FOUND),
    )
