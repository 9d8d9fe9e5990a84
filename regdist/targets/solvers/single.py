"""One strictly convex divergence to one anchor.

Everything is parametrized by s, the log-ratio log(p/q) of the best action to its anchor. Given s
the divergence says the log-ratio of every other action from its reward gap alone, without
cancellation and without a seam in alpha; s is then the root of "the probabilities sum to 1".
K is the number of actions, q the anchor.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from regdist.numerics.logspace import largest_exponent, log_mean_exp, log_sum_exp
from regdist.numerics.roots import bracketed_newton, implicit_root, increasing_root, where_unknown
from regdist.regularizers.divergence import Divergence
from regdist.regularizers.term import Reduced
from regdist.targets.solvers.optimum import Optimum, place_rest

# Of 20,000 random and 20,000 hard problems (8 actions, each of five members of the alpha family)
# 16 steps settle all that 40 do, 12 all but a few. Of the hard ones a tenth is left to the safe
# search, of those with 256 actions a third.
_QUICK_STEPS = 16
# Ulps by which the log-mass may miss 0, as a sum of K terms and a last step round. At 4 up to 5%
# more of the hard problems would be searched again, at 1,000 up to 5% fewer.
_ROUNDING = 32


def single(reward: Array, part: Reduced) -> Optimum:
    """The optimum of E_p R - beta D(p || q), by one scalar root."""
    divergence, beta, log_q, _ = part
    allowed = ~jnp.isneginf(reward)
    active = allowed & ~jnp.isneginf(log_q)
    top = jnp.argmax(jnp.where(active, reward, -jnp.inf))
    finite_reward = jnp.where(allowed, reward, reward[top])
    gap = (reward[top] - finite_reward) / beta
    log_q_active = jnp.where(active, log_q, -jnp.inf)

    # Off the support mass may enter at the highest reward alone: that bounds s from above.
    off = allowed & jnp.isneginf(log_q)
    lead = -jnp.min(jnp.where(off, gap, jnp.inf))
    ahead = jnp.isfinite(lead) & (lead > 0)
    entry = jnp.where(ahead, divergence.ceiling(jnp.where(ahead, lead, 1)), jnp.inf)
    entrants = off & (gap == -lead)

    task = _Task(divergence, log_q, active, finite_reward, beta, entry)
    pivot, at, capped, ended = jax.lax.stop_gradient(_solve(jax.lax.stop_gradient(task)))
    distance = reward[pivot] - finite_reward
    gap = distance / beta  # rewards are subtracted before the division

    def log_mass(s: Array) -> Array:
        r = divergence.shift(s, jnp.where(active, gap, 0))
        return log_sum_exp(jnp.where(active, log_q_active + r, -jnp.inf))

    root = implicit_root(lambda s: jnp.where(capped, s - at, log_mass(s)), at)
    s = jnp.where(capped, jnp.where(capped, entry, 0), root)
    r = divergence.shift(s, jnp.where(active, gap, 0))
    log_p = jnp.where(active, jnp.where(active, log_q, 0) + r, -jnp.inf)
    log_p, unique = place_rest(log_p, entrants, capped)
    level = beta * divergence.slope(s)
    top_slope = divergence.slope(jnp.full_like(s, jnp.inf))
    entered = capped & jnp.isfinite(top_slope)
    best_off = jnp.max(jnp.where(off, reward, -jnp.inf))
    ahead_by = jnp.where(entered, best_off, 0) - jnp.where(entered, reward[pivot], 0)
    level = jnp.where(entered, beta * jnp.where(entered, top_slope, 0) - ahead_by, level)
    return Optimum(log_p, distance, pivot, level, ended, unique)


class _Task(NamedTuple):
    divergence: Divergence
    log_q: Array
    active: Array
    reward: Array
    beta: Array
    entry: Array


class _Root(NamedTuple):
    pivot: Array
    s: Array
    capped: Array
    ended: Array


def _solve(task: _Task) -> _Root:
    """An action, the pivot, and its log-ratio s at which the probabilities sum to 1.

    If the mass stays below 1 at `entry`, s is capped there.
    """
    quick = _quickly(task)
    return where_unknown(
        ~quick.ended, lambda still: _safely(task._replace(active=task.active & still)), quick
    )


def _quickly(task: _Task) -> _Root:
    """What `_solve` wants, with `ended` only where it is certain.

    Newton on the excess mass sum q (e^r - 1), which keeps its relative accuracy as all r tend to
    0. It starts at the smaller of two bounds from above: where the best action alone, ties
    included, has probability 1, and where Jensen's inequality for the mean gap puts it. Certain is
    what places the mass to rounding and neither under- nor overflows.
    """
    divergence, log_q, active, reward, beta, entry = task
    best = jnp.argmax(jnp.where(active, reward, -jnp.inf))
    gap = jnp.where(active, (reward[best] - reward) / beta, 0)
    q = jnp.where(active, jnp.exp(log_q), 0)
    lost = jnp.sum(jnp.where(active, 0, jnp.exp(log_q)))

    def excess_mass(s: Array) -> tuple[Array, Array]:
        excess, rate = divergence.surplus(s, gap)
        mass = jnp.sum(q * jnp.where(active, excess, 0)) - lost
        total = jnp.sum(q * jnp.where(active, rate, 0))
        return jnp.log1p(mass), total / (1 + mass)

    alone = -jnp.log(jnp.sum(jnp.where(gap == 0, q, 0)))
    mean = divergence.jensen(jnp.sum(q * gap))
    start = jnp.minimum(alone, jnp.where(lost > 0, jnp.inf, mean))
    bounded = jnp.isfinite(entry)
    at_entry = excess_mass(jnp.where(bounded, entry, start))[0]
    capped = bounded & (at_entry < 0)
    start = jnp.minimum(start, entry)
    low = jnp.minimum(start, 0) - 1  # no r is above s: the mass is below 1/e
    eps = float(jnp.finfo(start.dtype).eps)
    near = eps**0.75  # Newton squares the error of the step that it ends with
    s, ended = bracketed_newton(
        excess_mass, low, start, start, divergence.newton_step, capped, near, _QUICK_STEPS, near
    )
    left = jnp.where(capped, 0, excess_mass(s)[0])
    # -688 (float32: -85): q is then no subnormal number, which devices flush to 0.
    shallow = jnp.all(log_q >= -0.97 * largest_exponent(log_q), where=active)
    known = ended & shallow & (jnp.abs(left) <= _ROUNDING * eps) & jnp.isfinite(at_entry)
    return _Root(best, jnp.where(capped, entry, s), capped, known)


def _safely(task: _Task) -> _Root:
    """What `_solve` wants, for any problem, in logarithms throughout.

    The search starts with the best action, at the smallest s at which some action alone would have
    probability 1: there the mass lies between 1 and K. For sparse divergences the distances of the
    others to the edge of the support are differences that may cancel. So other pivots are tried,
    and the one that places the mass best is kept: the action whose probability responds most to
    the multiplier, whose own distance is the scale that matters, as seen from s and from just
    above it; and the action that was alone at the start, which carries the mass when no s of the
    best action resolves it.
    """
    divergence, log_q, active, reward, beta, entry = task
    log_q_active = jnp.where(active, log_q, 0)
    best = jnp.argmax(jnp.where(active, reward, -jnp.inf))

    def gap_to(pivot: Array) -> Array:
        return jnp.where(active, (reward[pivot] - reward) / beta, 0)

    def log_mass(s: Array, pivot: Array) -> Array:
        r = divergence.shift(s, gap_to(pivot))
        return log_mean_exp(log_q, jnp.where(active, r, -jnp.inf))

    def steepest(s: Array) -> tuple[Array, Array]:
        """The action whose probability responds most to the multiplier at s, and its log-ratio."""
        r, response = jax.jvp(lambda g: divergence.shift(s, g), (gap,), (-jnp.ones_like(gap),))
        log_response = log_q_active + r + jnp.log(response)
        action = jnp.argmax(jnp.where(active & (response > 0), log_response, -jnp.inf))
        return action, r[action]

    gap = gap_to(best)
    alone = jnp.where(active, divergence.shift(-log_q_active, -gap), jnp.inf)
    first = jnp.argmin(alone)
    ceiling = jnp.minimum(alone[first], entry)
    capped = (ceiling == entry) & (log_mass(ceiling, best) < 0)
    s, ended = increasing_root(
        lambda s: log_mass(s, best),
        jnp.minimum(ceiling, 0) - 1,
        ceiling,
        ceiling,
        step=divergence.newton_step,
        ended=capped,
    )
    root = _Root(best, s, capped, ended)
    sparse = divergence.is_sparse()
    if sparse is False:
        return root

    def retry(root: _Root, candidate: tuple[Array, Array]) -> tuple[_Root, None]:
        pivot, start = candidate
        skip = ~sparse | (pivot == root.pivot)
        # On hard problems the root is within 1.7 of the start, or nowhere within 50.
        wide = 50 + jnp.abs(start)
        s, ended = increasing_root(
            lambda s: log_mass(s, pivot),
            start - wide,
            start + wide,
            start,
            step=divergence.newton_step,
            ended=skip,
        )
        again = _Root(pivot, s, capped, ended)
        better = jnp.abs(log_mass(s, pivot)) <= jnp.abs(log_mass(root.s, root.pivot))
        return jax.tree.map(lambda a, b: jnp.where(sparse & better, a, b), again, root), None

    # 4 ulps above s, to see an action that enters just there.
    above = root.s + 4 * jnp.finfo(s.dtype).eps * jnp.abs(root.s)
    candidates = steepest(root.s), steepest(above), (first, -log_q_active[first])
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *candidates)
    return jax.lax.scan(retry, root, stacked)[0]
