"""Sums of divergences of several families: an inner scalar inverse, an outer multiplier.

The unknown is where one action, the pivot, stands: its log-probability s or, while total variation
holds it at one of its anchors, the force g that does so. Given both, the log-probability l of any
other solves, elementwise,

    sum_t beta_t (f_t'(e^s / q_t,pivot) - f_t'(e^l / q_t)) = its reward gap to the pivot - g,

each difference taken without cancellation; a term beta TV(p, q_t) adds beta/2 above q_t, takes it
away below, and holds l at log q_t in between. T terms, K actions.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from regdist.numerics.logspace import largest_exponent, log_ratio, log_sum_exp
from regdist.numerics.roots import implicit_root, increasing_root
from regdist.regularizers.divergence import Divergence, TotalVariation
from regdist.regularizers.term import Reduced
from regdist.targets.solvers.optimum import Optimum, place_rest, reachable


def mixed(reward: Array, parts: list[Reduced]) -> Optimum:
    """The optimum of E_p R - sum_t beta_t D_t(p || q_t), one D_t at least strictly convex."""
    problem = _Problem(reward, parts)
    fixed = jax.lax.stop_gradient(reward), jax.lax.stop_gradient(parts)
    found = jax.lax.stop_gradient(_solve(_Problem(*fixed)))
    pivot, stretch, capped = found.pivot, found.stretch, found.capped

    def miss(x: Array) -> Array:
        s, forces = problem.place(x, pivot, stretch)
        return jnp.where(
            capped, problem.lack(s, forces, pivot), log_sum_exp(problem.law(s, forces, pivot))
        )

    x = implicit_root(miss, jnp.where(jnp.isfinite(found.x), found.x, 0))
    s, forces = problem.place(x, pivot, stretch)
    log_p, unique = place_rest(problem.law(s, forces, pivot), problem.entrants, capped)
    slopes = [
        part.beta * part.divergence.slope(log_ratio(s, part.log_anchor[pivot]))
        for part in problem.smooth
    ]
    level = sum(slopes, jnp.sum(forces))
    return Optimum(log_p, reward[pivot] - problem.reward, pivot, level, found.ended, unique)


class _Found(NamedTuple):
    """A pivot, where it stands, and how the search ended; see `_Problem.place`."""

    pivot: Array
    stretch: Array
    x: Array
    capped: Array
    ended: Array
    miss: Array


class _Problem:
    """The rewards and terms, and the law that the state of a pivot implies.

    As the multiplier falls the pivot passes through stretches: stretch 2j, above j of its M
    anchors of total variation, where s moves, and stretch 2j + 1, at the next anchor, where that
    term's force moves from -beta/2 to beta/2.
    """

    def __init__(self, reward: Array, parts: list[Reduced]):
        none = jnp.zeros_like(reward[0])
        self.smooth = [p for p in parts if not isinstance(p.divergence, TotalVariation)]
        self.kinks = [p for p in parts if isinstance(p.divergence, TotalVariation)]
        halves = jnp.stack([none, *(p.beta / 2 for p in self.kinks)])[1:]
        self.halves, self.bend = halves, jnp.sum(halves)
        possible = reachable(reward, self.smooth)
        outside = jnp.stack([jnp.isneginf(p.log_anchor) for p in self.smooth])
        held = ~jnp.all(outside, axis=0)
        self.active = possible & held
        best = jnp.argmax(jnp.where(self.active, reward, -jnp.inf))
        self.reward = jnp.where(jnp.isneginf(reward), reward[best], reward)
        off = possible & ~held
        self.best_off = jnp.max(jnp.where(off, reward, -jnp.inf))
        self.entrants = off & (reward == self.best_off)
        # The action that leaves last as the multiplier rises is one that an optimum must take.
        last = self.reward
        for part, out in zip(self.smooth, outside, strict=True):
            last -= part.beta * part.divergence.slope(jnp.where(out, jnp.inf, -jnp.inf))
        for kink in self.kinks:
            last -= jnp.where(jnp.isneginf(kink.log_anchor), kink.beta, 0)
        last = jnp.where(self.active, last, -jnp.inf)
        endless = self.active & jnp.isposinf(last)
        staying = jnp.where(endless, self.reward, -jnp.inf)
        self.first = jnp.where(jnp.any(endless), jnp.argmax(staying), jnp.argmax(last))

    def place(self, x: Array, pivot: Array, stretch: Array) -> tuple[Array, Array]:
        """The pivot's s and the forces, shape [M], at the point x of a stretch."""
        above, held = stretch // 2, stretch % 2 == 1
        order, corners = self.corners(pivot)
        rank = jnp.argsort(order)
        forces = jnp.where(rank < above, self.halves, -self.halves)
        forces = jnp.where(held & (rank == above), x, forces)
        at = jnp.stack([*corners, jnp.zeros_like(x)])[above]
        return jnp.where(held, at, x), forces

    def corners(self, pivot: Array) -> tuple[Array, Array]:
        """The order in which the pivot reaches its anchors of total variation, and their logs."""
        anchors = jnp.stack([self.bend * 0, *(k.log_anchor[pivot] for k in self.kinks)])[1:]
        order = jnp.argsort(jax.lax.stop_gradient(anchors))
        return order, anchors[order]

    def law(self, s: Array, forces: Array, pivot: Array, more: Array | float = 0.0) -> Array:
        """log p of every action that some anchor holds, shape [K]; `more` is added to each gap."""
        gap = jnp.where(self.active, self.reward[pivot] - self.reward, 0)
        signs = np.array(list(itertools.product((1, -1), repeat=len(self.kinks))))
        moves = jnp.sum(jnp.asarray(signs, gap.dtype) * self.halves - forces, axis=1)
        terms = [
            _Term(p.divergence, p.beta, log_ratio(s, p.log_anchor[pivot]), p.log_anchor)
            for p in self.smooth
        ]
        log_p = _respond(terms, gap + moves[:, None] + more)
        log_p = log_p.reshape((2,) * len(self.kinks) + gap.shape)
        for kink in reversed(self.kinks):
            low, high = log_p[..., 0, :], log_p[..., 1, :]
            mid = jnp.where(kink.log_anchor < low, low, kink.log_anchor)
            log_p = jnp.where(mid > high, high, mid)
        return jnp.where(self.active, log_p, -jnp.inf)

    def lack(self, s: Array, forces: Array, pivot: Array) -> Array:
        """How far the multiplier is below the level at which actions off the support enter."""
        exists = jnp.isfinite(self.best_off)
        far = jnp.full_like(s, jnp.inf)
        total = self.reward[pivot] - jnp.where(exists, self.best_off, 0) + self.bend
        total = jnp.sum(forces) - total
        for p in self.smooth:
            r = log_ratio(s, p.log_anchor[pivot])
            drop = p.divergence.drop(far, jnp.where(jnp.isposinf(r), 0, r))
            counted = jnp.isfinite(r) & jnp.isfinite(drop)
            total -= p.beta * jnp.where(counted, drop, 0)
        return jnp.where(exists, total, -jnp.inf)

    def ends(self, forces: Array, pivot: Array) -> tuple[Array, Array, Array]:
        """Where the mass is at most 1, where it is at least 1, and where others enter.

        The first two are the least s at which an action alone has probability 1/K, and 1.
        """
        size = self.reward.shape[0]
        none, push = jnp.zeros_like(self.bend), jnp.sum(forces)
        source = jnp.stack([none - jnp.log(jnp.asarray(size, none.dtype)), none, none + jnp.inf])
        gap = jnp.where(self.active, self.reward - self.reward[pivot], 0)
        entry = jnp.where(jnp.isfinite(self.best_off), self.best_off - self.reward[pivot], 0)
        entry = jnp.broadcast_to(entry - self.bend, gap.shape)
        gaps = jnp.stack([gap + self.bend, gap - self.bend, entry]) + push
        terms = []
        for p in self.smooth:
            ratio = jnp.stack([log_ratio(x, p.log_anchor) for x in source])
            terms.append(_Term(p.divergence, p.beta, ratio, p.log_anchor[pivot]))
        s = jnp.min(jnp.where(self.active, _respond(terms, gaps), jnp.inf), axis=1)
        return s[0], s[1], jnp.where(jnp.isfinite(self.best_off), s[2], jnp.inf)

    def find(self, pivot: Array) -> _Found:
        """Where the pivot stands at the optimum: its stretch, then its place in it."""
        order, corners = self.corners(pivot)
        stretch = jnp.zeros_like(pivot)
        # The mass grows from stretch to stretch. An end is passed if there the mass is below 1 and
        # others do not enter yet; the number of ends passed is the number of the stretch.
        if self.kinks:
            rank = jnp.repeat(jnp.arange(len(self.kinks)), 2)
            sign = jnp.tile(jnp.asarray([-1, 1], corners.dtype), len(self.kinks))
            known = jnp.isfinite(corners[rank])  # an anchor that excludes the pivot lies below it

            def passed(rank: Array, sign: Array, known: Array) -> Array:
                force = sign * self.halves[order[rank]]
                s, forces = self.place(force, pivot, 2 * rank + 1)
                s = jnp.where(known, s, 0)
                room = log_sum_exp(self.law(s, forces, pivot)) < 0
                return ~known | (room & (self.lack(s, forces, pivot) < 0))

            stretch = jnp.sum(jax.vmap(passed)(rank, sign, known)).astype(pivot.dtype)
        # Where s moves, its bracket is the stretch between two anchors, cut to where the mass can
        # be 1 at all. Twice the range of exp stands for infinity.
        above, held = stretch // 2, stretch % 2 == 1
        none = jnp.zeros_like(self.bend)
        limit = none + 2 * largest_exponent(none)
        walls = jnp.stack([-limit, *corners, none])
        s, forces = self.place(none, pivot, stretch)
        low, high, entry = self.ends(forces, pivot)
        top = jnp.minimum(walls[above + 1], 0)
        high = jnp.minimum(jnp.minimum(high, top), entry)
        low = jnp.clip(jnp.maximum(low, walls[above]), -limit, high)
        # Where the pivot is held, the force moves, between -beta/2 and beta/2; there the level at
        # which others enter is linear in it.
        half = jnp.stack([*self.halves[order], none])[above]
        force = jnp.clip(-self.lack(s, forces, pivot), -half, half)
        low, high = jnp.where(held, -half, low), jnp.where(held, force, high)

        def excess(x: Array) -> Array:
            return log_sum_exp(self.law(*self.place(x, pivot, stretch), pivot))

        x, ended = increasing_root(excess, low, high)
        # If the mass is below 1 where others enter, the pivot is capped there: they take the rest.
        miss, at_top = jax.vmap(excess)(jnp.stack([x, high]))
        enters = jnp.where(held, (force < half), high == entry)
        capped = enters & (at_top < 0)
        miss = jnp.where(capped, 0, jnp.abs(miss))
        ended |= miss <= 16 * jnp.finfo(miss.dtype).eps  # the mass is 1 to the rounding of its sum
        return _Found(pivot, stretch, jnp.where(capped, high, x), capped, ended, miss)


def _solve(problem: _Problem) -> _Found:
    """The better of two searches.

    The first starts from an action that the optimum must take. Its distance to a corner or to the
    edge of the support may dwarf those of the others, so the search is repeated from the action
    whose probability responds most to the multiplier.
    """
    pivot = problem.first
    no, none = jnp.zeros_like(pivot, bool), jnp.zeros_like(problem.bend)
    start = _Found(pivot, jnp.zeros_like(pivot), none, no, no, none + jnp.inf)

    def attempt(state: tuple[Array, _Found], _: None) -> tuple[tuple[Array, _Found], None]:
        pivot, kept = state
        found = problem.find(pivot)
        kept = jax.tree.map(lambda a, b: jnp.where(found.miss < kept.miss, a, b), found, kept)
        s, forces = problem.place(found.x, pivot, found.stretch)
        log_p, rate = jax.jvp(
            lambda more: problem.law(s, forces, pivot, more), (none,), (jnp.ones_like(none),)
        )
        weight = jnp.where(rate < 0, log_p + jnp.log(jnp.where(rate < 0, -rate, 1)), -jnp.inf)
        better = jnp.max(weight) > -jnp.inf
        return (jnp.where(better, jnp.argmax(weight), pivot), kept), None

    return jax.lax.scan(attempt, (pivot, start), None, length=2)[0][1]


class _Term(NamedTuple):
    """One smooth term at a source, its log-ratio log(p/q) given, as seen from other actions."""

    divergence: Divergence
    beta: Array
    source: Array
    log_q: Array


@jax.jit
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
    root, _ = increasing_root(lambda x: lack(x, still, still_need), low, high, ended=empty | closed)
    fixed = closed | empty
    root = jnp.where(fixed, 0, root)
    log_p = implicit_root(lambda x: jnp.where(fixed, x - root, lack(x, at, need)), root)
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
    # The candidates round, and one halving more costs nothing.
    margin = 1e-9 * (1 + jnp.abs(low) + jnp.abs(high))
    return low - margin, high + margin
