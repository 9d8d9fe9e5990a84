"""Roots of increasing functions of one variable: bracketed, safeguarded, elementwise."""

import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array

T = TypeVar("T")

# Newton ends soon or never: of 5,000 hard problems for each of alpha = -1, 0, 3/2 and 2, 99% end
# within 10 steps, and of the rest hardly one within 40; halving then ends all by 60. 70 halvings
# take the widest bracket, 2,800 nats, to 2e-18.
_NEWTON_STEPS = 40
_MAX_ITERATIONS = 110


def accepted(residual: Array) -> Array:
    """Whether a relative residual is small: below eps^0.55, 2e-9 in float64 and 2e-4 in float32."""
    # What float32 allows: 10,000 hard problems leave up to 1e-4 there, as logarithms of size 700
    # round at 4e-5, and 1e-13 in float64.
    return residual <= jnp.finfo(residual.dtype).eps ** 0.55


def _newton_step(value: Array, rate: Array) -> Array:
    return -value / rate


def increasing_root(
    f: Callable[[Array], Array],
    low: Array,
    high: Array,
    start: Array | None = None,
    *,
    step: Callable[[Array, Array], Array] = _newton_step,
    ended: Array | bool = False,
) -> tuple[Array, Array]:
    """The s in [low, high] with f(s) = 0, elementwise, and whether it was reached.

    Newton steps; a bracket catches those that rounding or curvature spoil, and after 40 of them
    it is halved to the end. Without a sign change the end nearer to a root is returned. Not meant
    to be differentiated: see `implicit_root`.

    Args:
        f: an increasing function, acting on each element alone.
        low: where f <= 0.
        high: where f >= 0.
        start: the first point, by default the middle.
        step: from f and its derivative to a step.
        ended: elements that need no search.
    """
    start = low + (high - low) / 2 if start is None else start
    eps = jnp.finfo(start.dtype).eps

    def with_rate(s: Array) -> tuple[Array, Array]:
        return jax.jvp(f, (s,), (jnp.ones_like(s),))

    return bracketed_newton(with_rate, low, high, start, step, ended, float(eps), _MAX_ITERATIONS)


def bracketed_newton(
    with_rate: Callable[[Array], tuple[Array, Array]],
    low: Array,
    high: Array,
    start: Array,
    step: Callable[[Array, Array], Array],
    ended: Array | bool,
    tolerance: float,
    most: int,
    within: float = math.inf,
) -> tuple[Array, Array]:
    """`increasing_root` of a function that returns its derivative too.

    Args:
        with_rate: from s to f(s) and f'(s).
        low: where f <= 0.
        high: where f >= 0.
        start: the first point.
        step: from f and its derivative to a step.
        ended: elements that need no search.
        tolerance: relative size of a step after which the search ends.
        most: iterations.
        within: an absolute bound on that step as well.
    """
    eps = jnp.finfo(start.dtype).eps

    def body(state):
        count, s, low, high, ended = state
        value, rate = with_rate(s)
        low = jnp.where(value <= 0, s, low)
        high = jnp.where(value >= 0, s, high)
        proposed = s + step(value, rate)
        inside = (proposed >= low) & (proposed <= high) & (count < _NEWTON_STEPS)
        new = jnp.where(inside, proposed, low + (high - low) / 2)
        near = tolerance * (jnp.abs(s) + eps**1.5)  # a root at 0 has no size to be relative to
        resolved = jnp.abs(new - s) <= jnp.minimum(near, within)
        now = ended | (value == 0) | (resolved & ~jnp.isnan(value)) | (high <= low)
        return count + 1, jnp.where(ended, s, new), low, high, now

    def unfinished(state):
        return ~jnp.all(state[-1]) & (state[0] < most)

    state = (0, start, low, high, jnp.broadcast_to(jnp.asarray(ended), start.shape))
    _, s, _, _, ended = jax.lax.while_loop(unfinished, body, state)
    return s, ended


def where_unknown(unknown: Array, search: Callable[[Array], T], known: T) -> T:
    """`search(unknown)` where `unknown`, else `known`.

    Under vmap nothing is searched unless some member of the batch needs it. What it computes
    should hang on its argument, which is `unknown` as a variable of a loop: what does not is
    computed before the loop, that is, always.
    """

    def body(state: tuple[Array, T]) -> tuple[Array, T]:
        still, known = state
        better = jax.tree.map(lambda new, old: jnp.where(still, new, old), search(still), known)
        return jnp.zeros_like(still), better

    return jax.lax.while_loop(lambda state: state[0], body, (unknown, known))[1]


def implicit_root(f: Callable[[Array], Array], root: Array) -> Array:
    """`root`, where f is 0, with the derivatives of the implicit function theorem.

    Elementwise like `increasing_root`. `f` may close over anything that is differentiated. Where f
    is flat, so that any point nearby is a root as well, `root` counts as a constant.
    """

    def solve(linear: Callable[[Array], Array], y: Array) -> Array:
        rate = linear(jnp.ones_like(y))
        flat = rate == 0
        return jnp.where(flat, 0, y / jnp.where(flat, 1, rate))

    return jax.lax.custom_root(f, jax.lax.stop_gradient(root), lambda _, s: s, solve)


def implicit_roots(f: Callable[[Array], Array], root: Array) -> Array:
    """`implicit_root` for a vector whose components depend on each other: a dense linear solve."""

    def solve(linear: Callable[[Array], Array], y: Array) -> Array:
        return jnp.linalg.solve(jax.jacfwd(linear)(y), y)

    return jax.lax.custom_root(f, jax.lax.stop_gradient(root), lambda _, x: x, solve)
