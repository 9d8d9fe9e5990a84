"""Optima under constraints on expectations: prices that minimize a convex dual.

K is the number of actions, M of constraints; laws are log-probabilities in nats.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from regdist.numerics.records import Law, Table, as_array, is_concrete, record
from regdist.numerics.roots import accepted, implicit_roots
from regdist.problems.bandit import Bandit, takes_bandit
from regdist.regularizers.regularizer import Regularizer, ReverseKL, check_regularizer
from regdist.targets.solve import objective, target
from regdist.targets.solvers.optimum import reachable
from regdist.targets.transform import with_reward

# Half of 150 random and hard problems with two limits (forward KL, 8 actions) take 5. Prices near
# the edge of what can be met are slow: after 50, 100, 200 and 400 iterations 21, 17, 13 and 8 have
# not converged, and say so.
_MAX_ITERATIONS = 200


@record
class Constrained(Law):
    """An optimum under constraints.

    Attributes:
        log_probs: log p in nats, shape [K].
        value: the objective without the constraints: E_p R, less the regularizer if there is one.
        multipliers: the price of each constraint, d value / d limit, shape [M]; [] for a ball.
        residual: the KKT residual: the largest violation of a constraint, or product of a price
            and its slack, relative to the size of what is constrained.
        converged: whether the residual is below eps^0.55.
    """

    log_probs: Float[Array, "*batch K"]
    value: Float[Array, "*batch"]
    multipliers: Float[Array, "..."]
    residual: Float[Array, "*batch"]
    converged: Bool[Array, "*batch"]


@takes_bandit
def constrained(
    bandit: Bandit, costs: Table, limits: Table, regularizer: Regularizer
) -> Constrained:
    r"""max E_p R - regularizer(p) subject to E_p costs_m <= limits_m for every m.

    $$\max_p \; \mathbb{E}_p R - \Omega(p) \quad \text{where } \mathbb{E}_p c_m \le l_m$$

    The optimum is the target of R - sum_m mu_m costs_m with prices mu >= 0 that minimize the dual,
    by projected Newton steps (arXiv 2310.04373 for reverse KL).

    Args:
        bandit: rewards and reference.
        costs: c, shape [M, K].
        limits: l, shape [M].
        regularizer: Omega, strictly convex; any sum.

    Raises:
        ValueError: no law on the support of the reference keeps the limits; the message says which.

    Examples:
        >>> b = rd.bandit([1.0, 0.0], [0.5, 0.5])
        >>> t = constrained(b, [[1.0, 0.0]], [0.6], rd.ReverseKL(0.1))  # at most 0.6 on action 0
        >>> print(t.probs.round(6), bool(t.converged))
        [0.6 0.4] True
    """
    check_regularizer(regularizer)
    table, bound = _checked(bandit, costs, limits, "costs", "limits")
    _check_feasible(bandit, regularizer, table, bound, equal=False)
    return _solve(bandit, table, bound, regularizer, jnp.zeros_like(bound))


@takes_bandit
def moment_matched(
    bandit: Bandit, features: Table, moments: Table, regularizer: Regularizer | None = None
) -> Constrained:
    r"""max E_p R - regularizer(p) subject to E_p features_m = moments_m for every m.

    $$\max_p \; \mathbb{E}_p R - \Omega(p) \quad \text{where } \mathbb{E}_p \phi_m = \mu_m$$

    With rewards 0 and the default, reverse KL with coefficient 1, it is the law nearest to q in
    KL(p || q) with these moments, q e^{lambda . features}, normalized (GDC, arXiv 2012.11635);
    the multipliers are -lambda.

    Args:
        bandit: rewards and reference.
        features: phi, shape [M, K].
        moments: mu, shape [M].
        regularizer: Omega, default `ReverseKL(1)`.

    Raises:
        ValueError: no law on the support of the reference has these moments; it says which.

    Examples:
        >>> b = rd.bandit([0.0, 0.0], [0.9, 0.1])
        >>> print(moment_matched(b, [[1.0, 0.0]], [0.5]).probs.round(6))  # half of all: action 0
        [0.5 0.5]
    """
    regularizer = ReverseKL(1.0) if regularizer is None else regularizer
    check_regularizer(regularizer)
    table, bound = _checked(bandit, features, moments, "features", "moments")
    _check_feasible(bandit, regularizer, table, bound, equal=True)
    return _solve(bandit, table, bound, regularizer, jnp.full_like(bound, -jnp.inf))


@jax.jit
def _solve(
    bandit: Bandit, costs: Array, limits: Array, regularizer: Regularizer, floor: Array
) -> Constrained:
    """The dual minimum over prices >= floor, which is 0 for a limit and -inf for a moment."""
    size = jnp.max(jnp.abs(costs - limits[:, None]), axis=1)
    scaled = (costs - limits[:, None]) / jnp.where(size > 0, size, 1)[:, None]

    def dual(prices: Array, inputs: tuple) -> tuple[Array, tuple[Array, Array]]:
        """The dual's gradient, which is the slack; its value and the law."""
        bandit, scaled, regularizer = inputs
        best = target(with_reward(bandit, bandit.reward - prices @ scaled), regularizer)
        return -scaled @ best.probs, (best.value, best.log_probs)

    inputs = bandit, scaled, regularizer
    still = jax.lax.stop_gradient(inputs)
    prices = _projected_newton(lambda x: dual(x, still), floor)
    binding = prices > floor

    root = prices
    prices = implicit_roots(lambda x: jnp.where(binding, dual(x, inputs)[0], x - root), root)
    left, (_, log_p) = dual(prices, inputs)
    amiss = jnp.where(binding, jnp.abs(left), jnp.maximum(-left, 0))
    residual = jnp.max(amiss)
    value = objective(log_p, bandit, regularizer)
    prices = prices / jnp.where(size > 0, size, 1)
    return Constrained(log_p, value, prices, residual, accepted(residual))


def _projected_newton(dual: Callable[[Array], tuple[Array, tuple]], floor: Array) -> Array:
    """The prices >= floor at which the convex dual is least.

    `dual` gives its gradient, and its value. Levenberg's damping keeps the steps where it is nearly
    flat; a step is taken if the dual does not rise beyond its rounding.
    """
    start = jnp.where(jnp.isneginf(floor), 0, floor)
    eps = jnp.finfo(floor.dtype).eps

    def wrong(prices: Array, gradient: Array) -> Array:
        return jnp.max(jnp.abs(prices - jnp.maximum(prices - gradient, floor)))

    def step(state: tuple) -> tuple:
        count, prices, damping, _ = state
        curvature, (gradient, value) = jax.jacfwd(with_value, has_aux=True)(prices)
        free = (prices > floor) | (gradient < 0)
        both = free[:, None] & free[None, :]
        eye = jnp.eye(len(prices), dtype=prices.dtype)
        scale = jnp.max(jnp.where(free, jnp.diagonal(curvature), 0))
        damped = jnp.where(both, curvature + damping * (scale + damping) * eye, eye)
        move = -jnp.linalg.solve(damped, jnp.where(free, gradient, 0))
        new = jnp.maximum(prices + move, floor)
        fresh, (new_value, _) = dual(new)
        # 8 ulps, so that the last steps, below the rounding of the dual, are taken.
        better = new_value <= value + 8 * eps * (1 + jnp.abs(value))
        prices = jnp.where(better, new, prices)
        damping = jnp.clip(jnp.where(better, damping / 10, damping * 10), 1e-16, 1e16)
        return count + 1, prices, damping, wrong(prices, jnp.where(better, fresh, gradient))

    def with_value(prices: Array) -> tuple[Array, tuple[Array, Array]]:
        gradient, (value, _) = dual(prices)
        return gradient, (gradient, value)

    def unfinished(state: tuple) -> Array:
        return (state[0] < _MAX_ITERATIONS) & (state[-1] > 4 * eps)

    damping, amiss = jnp.asarray(1e-3, floor.dtype), jnp.asarray(jnp.inf, floor.dtype)
    return jax.lax.while_loop(unfinished, step, (0, start, damping, amiss))[1]


def _checked(
    bandit: Bandit, costs: Table, limits: Table, name: str, limit_name: str
) -> tuple[Array, Array]:
    table = as_array(name, costs, bandit.reward.dtype)
    bound = as_array(limit_name, limits, bandit.reward.dtype)
    if table.ndim != 2 or table.shape[1] != bandit.num_actions or bound.shape != table.shape[:1]:
        raise ValueError(
            f"{name} must have shape [M, {bandit.num_actions}] and {limit_name} shape [M]; got "
            f"{table.shape} and {bound.shape}"
        )
    for what, known in ((name, table), (limit_name, bound)):
        if is_concrete(known) and not np.all(np.isfinite(np.asarray(known))):
            raise ValueError(f"{what} must be finite numbers; got {known}")
    return table, bound


def _check_feasible(
    bandit: Bandit, regularizer: Regularizer, costs: Array, limits: Array, *, equal: bool
) -> None:
    """Raise unless some law keeps all limits; the judge is a linear program."""
    if not is_concrete(bandit, regularizer, costs, limits):
        return
    from scipy.optimize import linprog

    usable = np.asarray(reachable(bandit.reward, regularizer.reduce(bandit.log_ref)))
    table, bound = np.asarray(costs, float)[:, usable], np.asarray(limits, float)
    count, width = table.shape
    word, sign = ("moment", "equal") if equal else ("limit", "at most")
    size = np.maximum(np.abs(table - bound[:, None]).max(axis=1), 1e-300)
    table, room = (table - bound[:, None]) / size[:, None], np.eye(count)
    lacks = table if not equal else np.vstack([table, -table])
    excess = room if not equal else np.vstack([room, room])
    solution = linprog(
        np.r_[np.zeros(width), np.ones(count)],
        A_ub=np.hstack([lacks, -excess]),
        b_ub=np.zeros(len(lacks)),
        A_eq=np.r_[np.ones(width), np.zeros(count)][None],
        b_eq=[1.0],
    )
    short = solution.x[width:]
    if solution.fun <= 1e-9:
        return
    alone = [m for m in range(count) if table[m].min() > 0 or (equal and table[m].max() < 0)]
    culprits = alone or [m for m in range(count) if short[m] > 1e-12]
    raw = np.asarray(costs, float)[:, usable]
    ranges = {m: (raw[m].min(), raw[m].max()) for m in culprits}
    each = "; ".join(
        f"{word} {m} asks for a mean {sign} {bound[m]:.6g}, laws on the support reach "
        f"{ranges[m][0]:.6g} to {ranges[m][1]:.6g}"
        for m in culprits
    )
    together = "" if alone else f" together with the other {word}s, though each alone can be met"
    raise ValueError(f"infeasible: {each}{together}")
