"""Sums of divergences of several families: an inner scalar inverse, an outer multiplier.

The unknown is s, the log-probability that an action, the pivot, would have without the terms of
total variation. Given s, the log-probability l of any other solves, elementwise,

    sum_t beta_t (f_t'(e^s / q_t,pivot) - f_t'(e^l / q_t)) = its reward gap to the pivot,

each difference taken without cancellation; a term beta TV(p, q_t) clips l to log q_t between the
solutions for gap + beta/2 and gap - beta/2. T terms, K actions.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from regdist.divergence import Divergence, TotalVariation
from regdist.logspace import largest_exponent, log_ratio, log_sum_exp
from regdist.regularizer import Reduced
from regdist.roots import implicit_root, increasing_root
from regdist.solvers.optimum import Optimum, place_rest, reachable


def mixed(reward: Array, parts: list[Reduced]) -> Optimum:
    """The optimum of E_p R - sum_t beta_t D_t(p || q_t), one D_t at least strictly convex."""
    problem = _Problem(reward, parts)
    none = jnp.zeros_like(problem.bend)
    fixed = jax.lax.stop_gradient(reward), jax.lax.stop_gradient(parts)
    pivot, at, capped, ended = jax.lax.stop_gradient(_solve(_Problem(*fixed)))
    at = jnp.where(jnp.isfinite(at), at, 0)
    entry_gap = problem.entry_gap(pivot)

    def miss(s: Array) -> Array:
        entry = problem.lack(s, pivot, jnp.where(capped, entry_gap, 0))
        return jnp.where(capped, entry, problem.log_mass(s, pivot))

    s = implicit_root(miss, at)
    log_p = problem.law(s, pivot)
    log_p, unique = place_rest(log_p, problem.entrants, capped)
    slopes = [
        part.beta * part.divergence.slope(log_ratio(s, part.log_anchor[pivot]))
        for part in problem.smooth
    ]
    distance = reward[pivot] - problem.reward
    return Optimum(log_p, distance, pivot, sum(slopes, none), ended, unique)


class _Problem:
    """The rewards and terms, and the law that a value of s implies."""

    def __init__(self, reward: Array, parts: list[Reduced]):
        self.smooth = [p for p in parts if not isinstance(p.divergence, TotalVariation)]
        self.kinks = [p for p in parts if isinstance(p.divergence, TotalVariation)]
        self.bend = sum((p.beta for p in self.kinks), jnp.zeros_like(reward[0])) / 2
        possible = reachable(reward, self.smooth)
        held = ~jnp.all(jnp.stack([jnp.isneginf(p.log_anchor) for p in self.smooth]), axis=0)
        self.active = possible & held
        self.best = jnp.argmax(jnp.where(self.active, reward, -jnp.inf))
        self.reward = jnp.where(jnp.isneginf(reward), reward[self.best], reward)
        off = possible & ~held
        self.best_off = jnp.max(jnp.where(off, reward, -jnp.inf))
        self.entrants = off & (reward == self.best_off)

    def law(self, s: Array, pivot: Array) -> Array:
        """Log p of every action that some anchor holds, shape [K]."""
        gap = jnp.where(self.active, self.reward[pivot] - self.reward, 0)
        signs = np.array(list(itertools.product((0.5, -0.5), repeat=len(self.kinks))))
        betas = jnp.stack([k.beta for k in self.kinks]) if self.kinks else jnp.zeros(0, gap.dtype)
        moves = jnp.sum(jnp.asarray(signs, gap.dtype) * betas, axis=1)
        terms = [
            _Term(p.divergence, p.beta, log_ratio(s, p.log_anchor[pivot]), p.log_anchor)
            for p in self.smooth
        ]
        log_p = _respond(terms, gap + moves[:, None])
        log_p = log_p.reshape((2,) * len(self.kinks) + gap.shape)
        for kink in reversed(self.kinks):
            low, high = log_p[..., 0, :], log_p[..., 1, :]
            mid = jnp.where(kink.log_anchor < low, low, kink.log_anchor)
            log_p = jnp.where(mid > high, high, mid)
        return jnp.where(self.active, log_p, -jnp.inf)

    def log_mass(self, s: Array, pivot: Array) -> Array:
        """Log of the sum of `law`."""
        return log_sum_exp(self.law(s, pivot))

    def entry_gap(self, pivot: Array) -> Array:
        """What the best action off the support is ahead of the pivot by, 0 without one."""
        exists = jnp.isfinite(self.best_off)
        return jnp.where(exists, self.best_off - self.reward[pivot] - self.bend, 0)

    def lack(self, s: Array, pivot: Array, gap: Array) -> Array:
        """Gap - sum_t beta_t (f_t'(inf) - f_t'(e^s/q_t)) at the pivot: 0 where others may enter."""
        far = jnp.full_like(s, jnp.inf)
        ratios = [log_ratio(s, p.log_anchor[pivot]) for p in self.smooth]
        total = jnp.zeros_like(s)
        for p, r in zip(self.smooth, ratios, strict=True):
            drop = p.divergence.drop(far, jnp.where(jnp.isposinf(r), 0, r))
            counted = jnp.isfinite(r) & jnp.isfinite(drop)
            total += p.beta * jnp.where(counted, drop, 0)
        return gap - total

    def ends(self, pivot: Array) -> tuple[Array, Array, Array]:
        """Where the mass is at most 1, where it is at least 1, and where others enter.

        The first two are the least s at which an action alone has probability 1/K, and 1.
        """
        size = self.reward.shape[0]
        none = jnp.zeros_like(self.bend)
        source = jnp.stack([none - jnp.log(jnp.asarray(size, none.dtype)), none, none + jnp.inf])
        gap = jnp.where(self.active, self.reward - self.reward[pivot], 0)
        gaps = jnp.stack([gap + self.bend, gap - self.bend, gap * 0 + self.entry_gap(pivot)])
        terms = []
        for p in self.smooth:
            ratio = jnp.stack([log_ratio(x, p.log_anchor) for x in source])
            terms.append(_Term(p.divergence, p.beta, ratio, p.log_anchor[pivot]))
        s = jnp.min(jnp.where(self.active, _respond(terms, gaps), jnp.inf), axis=1)
        return s[0], s[1], jnp.where(jnp.isfinite(self.best_off), s[2], jnp.inf)


def _solve(problem: _Problem) -> tuple[Array, Array, Array, Array]:
    """A pivot, its s, whether s stops where others enter, and whether the search ended.

    The search starts from the best action. Where every term is sparse its distance to the edge of
    the support may dwarf those of the others, so the search is repeated from the action whose
    probability responds most to the multiplier, and the better one is kept.
    """

    def attempt(state: tuple, _: None) -> tuple[tuple, None]:
        pivot, kept = state
        low, high, entry = problem.ends(pivot)
        high = jnp.minimum(high, entry)
        low = jnp.clip(low, -2 * largest_exponent(low), high)
        s, ended = increasing_root(lambda s: problem.log_mass(s, pivot), low, high)
        both = jnp.stack([s, high])
        laws, rates = jax.jvp(
            jax.vmap(lambda s: problem.law(s, pivot)), (both,), (jnp.ones_like(both),)
        )
        excess = jax.nn.logsumexp(laws, axis=1)
        capped = (high == entry) & (excess[1] < 0)
        miss = jnp.where(capped, 0, jnp.abs(excess[0]))
        ended |= miss <= 16 * jnp.finfo(miss.dtype).eps
        found = (pivot, jnp.where(capped, entry, s), capped, ended, miss)
        kept = jax.tree.map(lambda a, b: jnp.where(miss < kept[-1], a, b), found, kept)
        moves = problem.active & (rates[0] > 0)
        weight = laws[0] + jnp.log(jnp.where(moves, rates[0], 1))
        return (jnp.argmax(jnp.where(moves, weight, -jnp.inf)), kept), None

    no = jnp.array(False)
    none = (problem.best, jnp.zeros_like(problem.bend), no, no, problem.bend + jnp.inf)
    return jax.lax.scan(attempt, (problem.best, none), None, length=2)[0][1][:-1]


class _Term(NamedTuple):
    """One smooth term at a source, its log-ratio log(p/q) given, as seen from other actions."""

    divergence: Divergence
    beta: Array
    source: Array
    log_q: Array


def _respond(terms: list[_Term], gap: Array) -> Array:
    """The l with sum_t beta_t (f_t'(e^source_t) - f_t'(e^l / q_t)) = gap, elementwise.

    -inf below the range of the sum. Terms whose anchor excludes the action cost beta f'(inf),
    whatever l is; where all exclude it, l = -inf.
    """
    shape = jnp.broadcast_shapes(gap.shape, *(x.shape for t in terms for x in t[2:]))
    need, weight = jnp.broadcast_to(gap, shape), jnp.zeros(shape, gap.dtype)
    far = jnp.full(shape, jnp.inf, gap.dtype)
    at, held, barred = [], [], jnp.zeros(shape, bool)
    for d, beta, a, lq in terms:
        a, lq = jnp.broadcast_to(a, shape), jnp.broadcast_to(lq, shape)
        here = ~jnp.isneginf(lq)
        beyond = d.drop(jnp.where(here, 0, a), far)
        barred |= ~here & jnp.isinf(beyond)
        need = need - beta * jnp.where(~here & jnp.isfinite(beyond), beyond, 0)
        weight = weight + jnp.where(here, beta, 0)
        at.append(_Term(d, beta, a, jnp.where(here, lq, 0)))
        held.append(here)
    closed = barred | (weight == 0)
    need, weight = jnp.where(closed, 0, need), jnp.where(closed, 1, weight)

    def lack(log_p: Array, terms: list[_Term], need: Array) -> Array:
        drops = [
            jnp.where(here, t.beta * t.divergence.drop(t.source, log_p - t.log_q), 0)
            for t, here in zip(terms, held, strict=True)
        ]
        return need - sum(drops, jnp.zeros_like(need))

    still, still_need, still_weight = jax.lax.stop_gradient((at, need, weight))
    low, high = _bracket(still, held, still_need, still_weight)
    empty = lack(-far, still, still_need) >= 0
    found, _ = increasing_root(
        lambda x: lack(x, still, still_need), low, high, ended=empty | closed
    )
    fixed = closed | empty
    found = jnp.where(fixed, 0, found)
    log_p = implicit_root(lambda x: jnp.where(fixed, x - found, lack(x, at, need)), found)
    return jnp.where(fixed, -jnp.inf, log_p)


def _bracket(
    terms: list[_Term], held: list[Array], need: Array, weight: Array
) -> tuple[Array, Array]:
    """Two points between which `_respond` finds its answer.

    If every term took the same share of the gap, each alone would give a candidate; the answer
    lies between the least and the largest of them. Where a share is out of the range of a bounded
    term, the unbounded ones take the whole gap and the bounded ones nothing.
    """
    sign = jnp.asarray([-1, 1], need.dtype).reshape((2,) + (1,) * need.ndim)
    share = jnp.broadcast_to(need / weight, (2, *need.shape))
    limit = 2 * largest_exponent(need)
    end = sign * jnp.inf
    reach = [t.divergence.drop(t.source, jnp.broadcast_to(end, share.shape)) for t in terms]
    bounded = [jnp.isfinite(t.divergence.slope(end)) for t in terms]
    short = jnp.zeros(share.shape, bool)
    load = jnp.zeros_like(share)
    for t, here, drop, b in zip(terms, held, reach, bounded, strict=True):
        short |= here & (sign * share <= sign * drop)
        load += jnp.where(here & ~b, t.beta, 0)
    alone = jnp.where(sign * need < 0, need, 0) / jnp.where(load > 0, load, 1)
    pushed = jnp.where(short, alone, share)
    candidates = []
    for t, here, b in zip(terms, held, bounded, strict=True):
        d, _, a, lq = t
        at_top = jnp.isposinf(a)
        r = d.shift(jnp.where(at_top, 0, a), pushed)
        top = jnp.where(pushed > 0, d.ceiling(jnp.where(pushed > 0, pushed, 1)), jnp.inf)
        r = jnp.where(at_top, top, jnp.where(short & b, a, r))
        candidates.append(jnp.where(here, lq + r, -end))
    low = jnp.min(jnp.stack([c[0] for c in candidates]), axis=0)
    high = jnp.max(jnp.stack([c[1] for c in candidates]), axis=0)
    low = jnp.where(jnp.isfinite(low) & ~(short[0] & (load[0] == 0)), low, -limit)
    high = jnp.where(jnp.isfinite(high) & ~(short[1] & (load[1] == 0)), high, limit)
    margin = 1e-9 * (1 + jnp.abs(low) + jnp.abs(high))
    return low - margin, high + margin
