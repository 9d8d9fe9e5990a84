"""Optima under constraints, laws of selection, and the frontier of reward against divergence.

K is the number of actions, M of constraints; laws are log-probabilities in nats, q the reference.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float

from regdist.laws import restrict
from regdist.logspace import expect, normalize
from regdist.metrics import kl, label_log_probs
from regdist.problem import Bandit
from regdist.records import Table, as_number, is_concrete, record
from regdist.regularizer import Regularizer, ReverseKL
from regdist.roots import implicit_root, increasing_root
from regdist.target import objective, target
from regdist.transform import with_reward

_MAX_ITERATIONS = 200


@record
class Selection:
    """A law that a selection rule makes of the reference.

    Attributes:
        log_probs: log p in nats, shape [K].
        value: E_p R.
        kl: KL(p || q) in nats.
    """

    log_probs: Float[Array, "*batch K"]
    value: Float[Array, "*batch"]
    kl: Float[Array, "*batch"]

    @property
    def probs(self) -> Float[Array, "*batch K"]:
        """p, shape [K]."""
        return jnp.exp(self.log_probs)


@record
class Constrained:
    """An optimum under constraints.

    Attributes:
        log_probs: log p in nats, shape [K].
        value: the objective without the constraints: E_p R, less the regulariser if there is one.
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

    @property
    def probs(self) -> Float[Array, "*batch K"]:
        """p, shape [K]."""
        return jnp.exp(self.log_probs)


@jax.jit
def _kl_ball(bandit: Bandit, radius: Array) -> Constrained:
    reward, log_q = bandit.reward, bandit.log_ref
    active = ~(jnp.isneginf(reward) | jnp.isneginf(log_q))
    best = jnp.max(jnp.where(active, reward, -jnp.inf))
    gap = jnp.where(active, best - reward, 0)
    log_q = jnp.where(active, log_q, -jnp.inf)
    # Forbidden actions make even the best law without rewards differ from q.
    log_free = jax.nn.logsumexp(log_q)
    span = jnp.max(gap)
    scale = jnp.where(span > 0, span, 1)
    on_top = restrict(log_q, active & (gap == 0))
    largest = kl(on_top, bandit.log_ref)
    free = (span == 0) | (radius >= largest)
    shut = radius <= -log_free
    fixed = free | shut

    inputs = log_q, gap / scale, bandit.log_ref, radius

    def law(v: Array, inputs: tuple) -> Array:
        log_w, steps = inputs[:2]
        return normalize(
            jnp.where(active, jnp.where(active, log_w, 0) - jnp.exp(v) * steps, -jnp.inf)
        )

    def excess(v: Array, inputs: tuple) -> Array:
        return jnp.log(kl(law(v, inputs), inputs[2])) - jnp.log(jnp.where(fixed, 1, inputs[3]))

    low, high = jnp.full_like(radius, -40.0), jnp.full_like(radius, 60.0)
    still = jax.lax.stop_gradient(inputs)
    found, _ = increasing_root(lambda v: excess(v, still), low, high, ended=fixed)
    found = jnp.where(fixed, 0, found)
    v = implicit_root(lambda v: jnp.where(fixed, v - found, excess(v, inputs)), found)
    log_p = jnp.where(free, on_top, jnp.where(shut, normalize(log_q), law(v, inputs)))
    beta = jnp.where(free, 0, jnp.where(shut, jnp.inf, scale * jnp.exp(-v)))
    used = kl(log_p, bandit.log_ref)
    size = jnp.where(radius > 0, radius, 1)
    residual = jnp.where(free, jnp.maximum(used - radius, 0), jnp.abs(used - radius)) / size
    good = residual <= jnp.finfo(residual.dtype).eps ** 0.55
    return Constrained(log_p, expect(log_p, reward), beta, residual, good)


def kl_ball(bandit: Bandit, radius: ArrayLike) -> Constrained:
    """Max E_p R subject to KL(p || q) <= radius, in nats.

    The tilt q e^{R/b} with b the root of KL = radius; b is the multiplier. From radius
    -log q(argmax R) on it is q restricted to the best actions, at multiplier 0. At radius 0 it is
    q, at multiplier +inf.

    Args:
        bandit: rewards and reference.
        radius: >= 0, in nats; any radius.

    Raises:
        ValueError: the radius is negative, NaN, or too small to leave forbidden actions out.

    >>> ball = kl_ball(rd.bandit([1.0, 0.0], [0.5, 0.5]), 0.1)
    >>> print(rd.metrics.kl(ball.log_probs, jnp.log(jnp.array([0.5, 0.5]))).round(9))
    0.1
    """
    if is_concrete(radius) and not np.all(np.asarray(radius) >= 0):
        raise ValueError(f"radius must be a number >= 0, in nats; got radius={radius!r}")
    if is_concrete(bandit, radius):
        least = -float(
            jax.nn.logsumexp(jnp.where(jnp.isneginf(bandit.reward), -jnp.inf, bandit.log_ref))
        )
        if np.any(np.asarray(radius) < least * (1 - 1e-12)):
            raise ValueError(
                f"radius must be at least {least:.6g}: no law nearer to the reference leaves out "
                f"the forbidden actions; got radius={radius!r}"
            )
    return _kl_ball(bandit, as_number(radius).astype(bandit.reward.dtype))


def reward_kl_frontier(bandit: Bandit, radii: Float[Array, " N"]) -> Float[Array, " N"]:
    """The largest E_p R at each KL(p || q) <= radius: concave and increasing (2404.01730).

    >>> b = rd.bandit([1.0, 0.0], [0.5, 0.5])
    >>> print(reward_kl_frontier(b, jnp.array([0.0, 0.1, 1.0])).round(4))
    [0.5    0.7198 1.    ]
    """
    return jax.vmap(lambda radius: kl_ball(bandit, radius).value)(radii)


def best_of_n(bandit: Bandit, n: ArrayLike, log_p: Float[Array, " K"] | None = None) -> Selection:
    """The law of the best of n independent draws, F(y)^n - F(y-)^n in the order of rewards.

    Ties share by their probability. KL(best of n || q) <= log n - (n - 1)/n, and at equal KL the
    tilt's E_p R is at least as good (arXiv 2404.01730). n may be any real number > 0.

    Args:
        bandit: rewards and reference.
        n: draws; data, so a sweep is one trace.
        log_p: the law drawn from, default the reference: with a target's, the best of n under it.

    Raises:
        ValueError: n is not above 0.

    >>> print(best_of_n(rd.bandit([1.0, 0.0], [0.5, 0.5]), 2).probs)
    [0.75 0.25]
    """
    if is_concrete(n) and not np.all(np.asarray(n) > 0):
        raise ValueError(f"n must be above 0; got n={n!r}")
    law = bandit.log_ref if log_p is None else log_p
    reward = bandit.reward
    draws = as_number(n).astype(law.dtype)
    order = jnp.argsort(reward)
    ranked, log_w = reward[order], law[order]
    empty = jnp.full(1, -jnp.inf, law.dtype)
    up = jnp.concatenate([empty, jax.lax.cumlogsumexp(log_w)])
    down = jnp.concatenate([jax.lax.cumlogsumexp(log_w, reverse=True), empty])
    first = jnp.searchsorted(ranked, reward, side="left")
    after = jnp.searchsorted(ranked, reward, side="right")
    log_level = label_log_probs(law, first)[first]
    # log F from what lies above where F is near 1; log F-/F from the level where that is small.
    tail = jnp.exp(down[after])
    near = tail < 0.5
    log_f = jnp.where(near, jnp.log1p(-jnp.where(near, tail, 0)), jnp.where(near, 0, up[after]))
    drawn = ~jnp.isneginf(log_level)
    share = jnp.where(drawn, jnp.minimum(jnp.where(drawn, log_level, 0) - log_f, 0), -1)
    lowest = jnp.isneginf(up[first])
    below = jnp.where(lowest, 0, up[first]) - log_f
    large = share > -0.5
    log_less = jnp.where(large, below, _log1mexp(jnp.where(large, -1, share)))
    rest = jnp.where(lowest, 0, _log1mexp(jnp.where(lowest, -1, draws * log_less)))
    log_share = draws * log_f + rest
    taken = ~jnp.isneginf(law)
    log_best = jnp.where(
        taken, jnp.where(taken, law, 0) - jnp.where(drawn, log_level, 0) + log_share, -jnp.inf
    )
    log_best = normalize(log_best)
    return Selection(log_best, expect(log_best, reward), kl(log_best, bandit.log_ref))


def rejection(
    bandit: Bandit, threshold: ArrayLike, log_p: Float[Array, " K"] | None = None
) -> Selection:
    """The law of draws kept when R >= threshold: q restricted to them (RAFT, arXiv 2304.06767).

    It keeps the odds of q among what it keeps, and is the limit of reverse KL with reward
    1[R >= threshold] for beta to 0.

    Raises:
        ValueError: nothing that the law can draw reaches the threshold.

    >>> print(rejection(rd.bandit([1.0, 0.5, 0.0], [0.2, 0.2, 0.6]), 0.5).probs)
    [0.5 0.5 0. ]
    """
    law = bandit.log_ref if log_p is None else log_p
    keep = bandit.reward >= as_number(threshold).astype(bandit.reward.dtype)
    if is_concrete(keep, law) and not np.any(np.asarray(keep & ~jnp.isneginf(law))):
        raise ValueError(f"threshold {threshold!r} is above every reward that the law can draw")
    kept = restrict(law, keep)
    return Selection(kept, expect(kept, bandit.reward), kl(kept, bandit.log_ref))


def constrained(
    bandit: Bandit, costs: Table, limits: Table, regularizer: Regularizer
) -> Constrained:
    """Max E_p R - regulariser(p) subject to E_p costs_m <= limits_m for every m.

    The optimum is the target of R - sum_m mu_m costs_m with prices mu >= 0 that minimise the dual,
    by projected Newton steps (arXiv 2310.04373 for reverse KL).

    Args:
        bandit: rewards and reference.
        costs: shape [M, K].
        limits: shape [M].
        regularizer: strictly convex; any sum.

    Raises:
        ValueError: no law on the support of the reference keeps the limits; the message says which.

    >>> b = rd.bandit([1.0, 0.0], [0.5, 0.5])
    >>> t = constrained(b, [[1.0, 0.0]], [0.6], rd.ReverseKL(0.1))  # at most 0.6 on action 0
    >>> print(t.probs.round(6), bool(t.converged))
    [0.6 0.4] True
    """
    table, bound = _checked(bandit, costs, limits, "costs", "limits")
    _check_feasible(bandit, regularizer, table, bound, equal=False)
    return _solve(bandit, table, bound, regularizer, jnp.zeros_like(bound))


def moment_matched(
    bandit: Bandit, features: Table, moments: Table, regularizer: Regularizer | None = None
) -> Constrained:
    """Max E_p R - regulariser(p) subject to E_p features_m = moments_m for every m.

    With rewards 0 and the default, reverse KL with coefficient 1, it is the law nearest to q in
    KL(p || q) with these moments, q e^{lambda . features}, normalised (GDC, arXiv 2012.11635);
    the multipliers are -lambda.

    Args:
        bandit: rewards and reference.
        features: phi, shape [M, K].
        moments: shape [M].
        regularizer: default `ReverseKL(1)`.

    Raises:
        ValueError: no law on the support of the reference has these moments; it says which.

    >>> b = rd.bandit([0.0, 0.0], [0.9, 0.1])
    >>> print(moment_matched(b, [[1.0, 0.0]], [0.5]).probs.round(6))  # half of all: action 0
    [0.5 0.5]
    """
    chosen = ReverseKL(1.0) if regularizer is None else regularizer
    table, bound = _checked(bandit, features, moments, "features", "moments")
    _check_feasible(bandit, chosen, table, bound, equal=True)
    return _solve(bandit, table, bound, chosen, jnp.full_like(bound, -jnp.inf))


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

    def dense(linear: Callable, y: Array) -> Array:
        return jnp.linalg.solve(jax.jacfwd(linear)(y), y)

    prices = jax.lax.custom_root(
        lambda x: jnp.where(binding, dual(x, inputs)[0], x - prices),
        prices,
        lambda _, x: x,
        dense,
    )
    left, (_, log_p) = dual(prices, inputs)
    amiss = jnp.where(binding, jnp.abs(left), jnp.maximum(-left, 0))
    residual = jnp.max(amiss)
    good = residual <= jnp.finfo(residual.dtype).eps ** 0.55
    value = objective(log_p, bandit, regularizer)
    return Constrained(log_p, value, prices / jnp.where(size > 0, size, 1), residual, good)


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
    table = jnp.asarray(costs, dtype=bandit.reward.dtype)
    bound = jnp.asarray(limits, dtype=bandit.reward.dtype)
    if table.ndim != 2 or table.shape[1] != bandit.num_actions or bound.shape != table.shape[:1]:
        raise ValueError(
            f"{name} must have shape [M, {bandit.num_actions}] and {limit_name} shape [M]; got "
            f"{table.shape} and {bound.shape}"
        )
    return table, bound


def _check_feasible(
    bandit: Bandit, regularizer: Regularizer, costs: Array, limits: Array, *, equal: bool
) -> None:
    """Raise unless some law keeps all limits; the judge is a linear programme."""
    if not is_concrete(bandit, regularizer, costs, limits):
        return
    from scipy.optimize import linprog

    parts = regularizer.reduce(bandit.log_ref)
    far = jnp.full_like(bandit.reward, jnp.inf)
    usable = ~np.isneginf(np.asarray(bandit.reward))
    for part in parts:
        barred = np.isneginf(np.asarray(part.log_anchor))
        usable &= ~(barred & np.isposinf(np.asarray(part.divergence.slope(far))))
    table, bound = np.asarray(costs, float)[:, usable], np.asarray(limits, float)
    count, width = table.shape
    word, sign = ("moment", "equal") if equal else ("limit", "at most")
    size = np.maximum(np.abs(table - bound[:, None]).max(axis=1), 1e-300)
    table, room = (table - bound[:, None]) / size[:, None], np.eye(count)
    lacks = table if not equal else np.vstack([table, -table])
    over = room if not equal else np.vstack([room, room])
    found = linprog(
        np.r_[np.zeros(width), np.ones(count)],
        A_ub=np.hstack([lacks, -over]),
        b_ub=np.zeros(len(lacks)),
        A_eq=np.r_[np.ones(width), np.zeros(count)][None],
        b_eq=[1.0],
    )
    short = found.x[width:]
    if found.fun <= 1e-9:
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


def _log1mexp(x: Array) -> Array:
    """log(1 - e^x) for x <= 0."""
    none, deep = x == 0, x < -0.7
    safe = jnp.where(none, -1, x)
    far = jnp.log1p(-jnp.exp(jnp.where(deep, safe, -1)))
    return jnp.where(none, -jnp.inf, jnp.where(deep, far, jnp.log(-jnp.expm1(safe))))
