"""Log-odds between actions or groups of actions, their parts, and where they change sign."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from regdist.numerics.logspace import expm1_over, log_q_exponential, log_sum_exp
from regdist.numerics.records import (
    Number,
    Table,
    TypeAliasType,
    check_actions,
    check_log_probs,
    is_concrete,
)
from regdist.numerics.roots import implicit_root
from regdist.problems.bandit import Bandit, takes_bandit
from regdist.regularizers.divergence import KL, AlphaFamily
from regdist.regularizers.regularizer import Regularizer, check_regularizer
from regdist.regularizers.term import Reduced
from regdist.targets.along import (
    POINTS,
    ROUNDS,
    Family,
    changes,
    is_proportional,
    solutions,
    unit_of,
)
from regdist.targets.solve import target
from regdist.targets.solvers.optimum import reachable
from regdist.targets.transform import with_reward

Actions = TypeAliasType("Actions", Table)
"""One action's index, a list of indices, or a boolean mask of shape [K]: a group."""

# Beyond a factor of 10^6 from the gaps between rewards a target is close to a limit: the best
# actions below, the anchors above.
_DECADES = 6.0


def log_odds(log_probs: Float[Array, " K"], i: Number, j: Number) -> Array:
    """log(p_i / p_j) in nats; NaN where both are 0, as then no odds exist.

    Raises:
        ValueError: i or j is not the index of an action.

    Examples:
        >>> print(log_odds(jnp.log(jnp.array([0.2, 0.8])), 1, 0))
        1.38629...
    """
    log_probs = check_log_probs("log_probs", log_probs, "rd.log_odds(log_probs, i, j)")
    for name, action in (("i", i), ("j", j)):
        check_actions(name, action, log_probs.shape[-1])
    return log_probs[jnp.asarray(i)] - log_probs[jnp.asarray(j)]


class OddsParts(NamedTuple):
    """A log-odds of a target, in nats: total = reference + reward."""

    total: Array
    reference: Array
    reward: Array


@takes_bandit
def odds_parts(bandit: Bandit, regularizer: Regularizer, i: Number, j: Number) -> OddsParts:
    """Which part of log(p_i/p_j) under the target is the anchor's, and which the rewards'.

    The reference part is the log-odds of the target with all rewards equal: those of the anchor,
    log(q_i/q_j) for one divergence to the reference and b/(a + b) times that with an
    entropy bonus a beside reverse KL. The reward part is the rest: (R_i - R_j)/beta under reverse
    KL (arXiv 2510.20817), log((Lambda - R_j)/(Lambda - R_i)) under forward KL.

    Examples:
        >>> b = rd.bandit([1.0, 0.0], [0.2, 0.8])
        >>> parts = odds_parts(b, rd.ReverseKL(0.5), 0, 1)
        >>> print(parts.total.round(4), parts.reference.round(4), parts.reward.round(4))
        0.6137 -1.3863 2.0
    """
    check_regularizer(regularizer)
    total = log_odds(target(bandit, regularizer).log_probs, i, j)
    flat = jnp.where(jnp.isneginf(bandit.reward), -jnp.inf, 0)
    reference = log_odds(target(with_reward(bandit, flat), regularizer).log_probs, i, j)
    return OddsParts(total, reference, total - reference)


class Crossings(NamedTuple):
    """Where two actions or groups change places along beta; made by `crossings`.

    Attributes:
        betas: the coefficients at which they are equally likely, ascending, shape [N].
        i_leads: whether i is ahead below the first of them, between them, and above the last,
            shape [N + 1].
        proved: whether these are known to be all; otherwise they are what a scan has seen.
    """

    betas: np.ndarray
    i_leads: np.ndarray
    proved: bool


@takes_bandit
def critical_beta(bandit: Bandit, i: Actions, j: Actions, regularizer: Family) -> Float[Array, ""]:
    r"""The beta below which the one with the larger reward is the likelier under the target.

    i and j are two actions or two groups. The larger reward is that of the group with the larger
    best reward among the actions that the regularizer can reach: this one leads as beta tends to 0
    under reverse KL. Between equal best rewards it is the larger mean under the reference.

    Two actions, one divergence of the alpha family: in closed form. They change places once or
    never. Reverse KL: (R_j - R_i)/(log q_i - log q_j). Forward KL: with
    Lambda = (q_i R_j - q_j R_i)/(q_i - q_j), beta = 1/sum q/(Lambda - R), which exists when
    Lambda > max R; otherwise no beta is small enough (arXiv 2510.20817). In between, with
    k = 1 - alpha and Y = k (R_j - R_i)/expm1(k (log q_i - log q_j)),

    $$\log\beta = \log Y - k \log \sum_m q_m \bigl(1 + k (R_j - R_m)/Y\bigr)^{-1/k}$$

    Anything else is searched for: 193 betas from 1e-6 times the gap between the two best rewards
    to 1e6 times the spread of all are solved, and changes of sign are narrowed down. Groups may
    change places more than once. The answer is then the largest beta at which the one with the
    larger reward falls behind; it may have been behind below, and be ahead again above:
    `rd.crossings` lists all. inf, 0 and what lies between two of the 193 are no more than what was
    seen, unless `rd.crossings` says `proved`.

    Args:
        bandit: rewards and reference.
        i: an action's index, or a group: indices or a boolean mask, shape [K].
        j: the other; the order does not matter.
        regularizer: from a coefficient to a regularizer: `rd.ReverseKL`, `rd.ForwardKL`,
            or e.g. `lambda beta: rd.JensenShannon(beta) + rd.Entropy(0.1)`.

    Returns:
        beta; inf where the one with the larger reward is never behind; 0 where no beta is small
        enough, so that it is behind at every beta (or at all below one from which on it leads);
        NaN where the rewards are equal, as neither is the larger. Where both have probability 0, as
        sparse targets may have it, neither is ahead.

    Raises:
        ValueError: an index names no action, a mask has another shape, or the groups overlap.

    Examples:
        >>> b = rd.bandit([1.0, 0.0, 0.5], [0.1, 0.6, 0.3])
        >>> print(critical_beta(b, 0, 1, rd.ReverseKL))  # 1 / log 6
        0.558110...
        >>> print(critical_beta(b, 0, [1, 2], rd.ReverseKL).round(4))  # ahead of all the rest
        0.3389...
        >>> rare = rd.bandit([1.0, 0.0, 0.6], [0.05, 0.8, 0.15])
        >>> print(critical_beta(rare, 2, 1, rd.ReverseKL).round(4))
        0.3584
        >>> print(critical_beta(rare, 2, 1, rd.ForwardKL))  # 0.6 never overtakes 0
        0.0
    """
    pair = _pair(bandit, i, j, regularizer)
    order = _order(pair)
    found = _search(pair, order) if pair.part is None else _solved(pair, pair.part)
    return jnp.where(order == 0, jnp.nan, found)


@takes_bandit
def crossings(bandit: Bandit, i: Actions, j: Actions, regularizer: Family) -> Crossings:
    """Every beta at which two actions or groups are equally likely under the target.

    Arguments and search are those of `critical_beta`. Two crossings between neighbors of its 193
    betas, which are a sixteenth of a decade apart where the gap between the best rewards is the
    spread and a little more where it is less, can be missed. That none is missed is known

    - for two actions under one divergence of the alpha family: at most one exists;
    - for two groups under one divergence with alpha <= 1, reverse and forward KL among them, when
      as many are found as this sum has changes of sign: the reference masses of i's actions, less
      those of j's, added up from the largest reward down (there cannot be more, as sums of
      q (u + R_max - R)^(-1/k) and of q e^(R/beta) are Laplace transforms).

    Works on concrete values.

    Examples:
        >>> b = rd.bandit([1.0, 0.9, 0.0, 0.5], [0.02, 0.08, 0.5, 0.4])
        >>> found = crossings(b, [0, 2], [1, 3], rd.ReverseKL)
        >>> print(found.betas.round(4), found.i_leads, found.proved)
        [0.0712 6.5836] [ True False  True] True
    """
    pair = _pair(bandit, i, j, regularizer)
    if pair.part is not None:
        return _single_crossing(pair, pair.part)
    ends = _range(pair)
    x, sign = _signs(pair, ends, first=True)
    before, change = map(np.asarray, changes(sign))
    turns = np.flatnonzero(change)
    roots = [_narrowed(pair, x[before[at]], x[at], jnp.asarray(change[at])) for at in turns]
    seen = np.asarray(sign)[np.asarray(sign) != 0]
    leads = [bool(np.any(seen[:1] > 0)), *(bool(change[at] > 0) for at in turns)]
    known = len(roots) == _most_crossings(pair)
    return Crossings(np.exp(np.array(roots, float)), np.array(leads), known)


class _Pair(NamedTuple):
    """What is compared, and under what."""

    bandit: Bandit
    first: Array
    second: Array
    family: Family
    unit: Regularizer
    parts: list[Reduced]
    part: Reduced | None
    i: Actions
    j: Actions


def _pair(bandit: Bandit, i: Actions, j: Actions, family: Family) -> _Pair:
    unit = unit_of("regularizer", family)
    parts = unit.reduce(bandit.log_ref)
    first, second = _group("i", i, bandit), _group("j", j, bandit)
    if is_concrete(first, second) and np.any(np.asarray(first & second)):
        raise ValueError(f"i and j must have no action in common; got i={i!r}, j={j!r}")
    single = all(jnp.ndim(jnp.asarray(x)) == 0 for x in (i, j))
    known = len(parts) == 1 and isinstance(parts[0].divergence, KL | AlphaFamily)
    part = parts[0] if single and known and is_proportional(family) else None
    return _Pair(bandit, first, second, family, unit, parts, part, i, j)


def _solved(pair: _Pair, part: Reduced) -> Array:
    return _closed_form(pair.bandit, part, jnp.asarray(pair.i), jnp.asarray(pair.j))


def _single_crossing(pair: _Pair, part: Reduced) -> Crossings:
    """Of two actions under one alpha divergence."""
    beta, order = float(_solved(pair, part)), int(_order(pair))
    if order == 0:
        edge = float(part.log_anchor[jnp.asarray(pair.i)] - part.log_anchor[jnp.asarray(pair.j)])
        return Crossings(np.zeros(0), np.array([edge > 0]), True)
    at_first = order > 0 if beta > 0 else order < 0
    crosses = 0 < beta < np.inf
    leads = [at_first, not at_first] if crosses else [at_first]
    return Crossings(np.array([beta] * crosses), np.array(leads), True)


def _order(pair: _Pair) -> Array:
    """1 where the larger reward is the first's, -1 where it is the second's, 0 at a tie."""
    return _larger(jax.lax.stop_gradient(pair.bandit), pair.parts, pair.first, pair.second)


@jax.jit
def _larger(bandit: Bandit, parts: list[Reduced], *groups: Array) -> Array:
    within = reachable(bandit.reward, parts)
    best, mean = [], []
    for group in groups:
        counted = group & within
        counted = jnp.where(jnp.any(counted), counted, group)
        top = jnp.max(jnp.where(counted, bandit.reward, -jnp.inf))
        inside = counted & ~jnp.isneginf(bandit.reward)
        held = jnp.any(inside & ~jnp.isneginf(bandit.log_ref))
        weight = jnp.where(inside, jnp.where(held, jnp.exp(bandit.log_ref), 1), 0)
        short = jnp.where(inside, top - bandit.reward, 0)
        total = jnp.sum(weight)
        best.append(top)
        mean.append(-jnp.sum(weight * short) / jnp.where(total > 0, total, 1))
    by_best = jnp.where(best[0] == best[1], 0, jnp.where(best[0] > best[1], 1, -1))
    rounding = 8 * jnp.finfo(mean[0].dtype).eps * jnp.abs(mean[0])
    by_mean = jnp.where(jnp.abs(mean[0] - mean[1]) <= rounding, 0, jnp.sign(mean[0] - mean[1]))
    return jnp.where(by_best == 0, by_mean.astype(int), by_best)


@jax.jit
def _closed_form(bandit: Bandit, part: Reduced, i: Array, j: Array) -> Array:
    """The critical beta of two actions of different rewards, under one alpha divergence."""
    divergence, coefficient, log_q, _ = part
    reward = bandit.reward
    alpha = divergence.alpha if isinstance(divergence, AlphaFamily) else 1.0
    alpha = jnp.asarray(alpha, reward.dtype)
    k = 1 - alpha
    low, high = jnp.where(reward[i] <= reward[j], i, j), jnp.where(reward[i] <= reward[j], j, i)
    allowed = ~jnp.isneginf(reward)
    support = allowed & ~jnp.isneginf(log_q)
    both = support[low] & support[high]
    edge = jnp.where(both, log_q[low] - jnp.where(both, log_q[high], 0), 0)
    lead = jnp.where(both, reward[high] - reward[low], 0)
    ties = both & (edge > 0) & (lead > 0)
    y = jnp.where(ties, lead, 1) / expm1_over(k, jnp.where(ties, edge, 1))
    ahead = jnp.where(allowed, jnp.where(allowed, reward, 0) - jnp.where(ties, reward[high], 0), 0)
    r = log_q_exponential(ahead / y, alpha)
    # Past the pole the multiplier is out of reach: of actions off the support too, if they enter.
    beyond = jnp.any(jnp.isposinf(r) & jnp.where(k > 0, allowed, support))
    log_mass = log_sum_exp(
        jnp.where(support & jnp.isfinite(r), log_q + jnp.where(jnp.isfinite(r), r, 0), -jnp.inf)
    )
    log_tie = jnp.where(beyond, 0, jnp.log(y) - k * log_mass)
    enters, log_entry = _entry(reward, low, high, support, log_q, k)
    never_behind = jnp.where(support[high], ~support[low] | (edge <= 0), enters & ~support[low])
    at = jnp.where(support[high], ties & ~beyond, enters & support[low])
    beta = jnp.exp(jnp.where(at, jnp.where(support[high], log_tie, log_entry), 0)) / coefficient
    unknown = jnp.where(jnp.isnan(coefficient), jnp.nan, 0)
    return jnp.where(at, beta, jnp.where(never_behind, jnp.inf, 0)) + unknown


def _entry(
    reward: Array, low: Array, high: Array, support: Array, log_q: Array, k: Array
) -> tuple[Array, Array]:
    """Whether `high`, off the support, may take mass, and the log of the beta where it has low's.

    The best actions share what the support, p = q (k (max R - R)/beta)^(-1/k), leaves of 1.
    """
    best = jnp.max(reward)
    enters = (k > 0) & (reward[high] == best) & ~jnp.any(support & (reward == best))
    shares = jnp.sum(~support & (reward == best), dtype=reward.dtype)
    inside = enters & support
    gap = jnp.where(inside, best - jnp.where(inside, reward, 0), 1)
    rate = jnp.where(k > 0, k, 1)
    log_w = jnp.where(inside, jnp.where(inside, log_q, 0) - jnp.log(rate * gap) / rate, -jnp.inf)
    log_low = jnp.where(inside[low], log_w[low] + jnp.log(jnp.maximum(shares, 1)), -jnp.inf)
    return enters, -rate * log_sum_exp(jnp.append(log_w, log_low))


def _lead(log_p: Array, *groups: Array) -> tuple[Array, Array]:
    """Log-odds of the first group against the second, 0 if neither has any mass; and rounding."""
    one, two = (log_sum_exp(jnp.where(group, log_p, -jnp.inf)) for group in groups)
    none = jnp.isneginf(one) & jnp.isneginf(two)
    size = jnp.maximum(*(jnp.where(jnp.isneginf(x), 0, jnp.abs(x)) for x in (one, two)))
    odds = jnp.where(none, 0, jnp.where(none, 0, one) - jnp.where(none, 0, two))
    return odds, 8 * jnp.finfo(odds.dtype).eps * (1 + size)


def _range(pair: _Pair) -> tuple[Array, Array]:
    """The least and largest log beta that are looked at."""
    reward = jax.lax.stop_gradient(pair.bandit.reward)
    known = jnp.where(jnp.isneginf(reward), jnp.max(reward), reward)
    spread = jnp.max(known) - jnp.min(known)
    spread = jnp.where(spread > 0, spread, 1)
    tops = [jnp.max(jnp.where(g, known, -jnp.inf)) for g in (pair.first, pair.second)]
    gap = jnp.abs(tops[0] - tops[1])
    wide = _DECADES * jnp.log(jnp.asarray(10.0, spread.dtype))
    return jnp.log(jnp.where(gap > 0, gap, spread)) - wide, jnp.log(spread) + wide


def _signs(pair: _Pair, ends: tuple[Array, Array], first: Array | bool) -> tuple[Array, Array]:
    """Log betas between the ends, and who leads there: 1 for the first group.

    In the `first` round what may be rounding is 0: far out two laws may differ by no more.
    """
    x = ends[0] + (ends[1] - ends[0]) * jnp.linspace(0, 1, POINTS, dtype=ends[0].dtype)
    still = jax.lax.stop_gradient(pair.bandit)
    laws = solutions(still, lambda b: jax.lax.stop_gradient(pair.family(b)), x)
    return x, _leaders(laws.log_probs, pair.first, pair.second, jnp.asarray(first))


@jax.jit
def _leaders(log_probs: Array, first: Array, second: Array, strict: Array) -> Array:
    odds, rounding = jax.vmap(lambda log_p: _lead(log_p, first, second))(log_probs)
    return jnp.where(strict & (jnp.abs(odds) <= rounding), 0, jnp.sign(odds)).astype(int)


@jax.jit
def _last_turn(x: Array, sign: Array, to: Array) -> tuple[Array, Array, Array]:
    """The neighbors between which the sign last turns to `to`, and whether it does; else all."""
    before, change = changes(sign)
    turns = change * to > 0
    at = POINTS - 1 - jnp.argmax(turns[::-1])
    found = jnp.any(turns)
    return jnp.where(found, x[before[at]], x[0]), jnp.where(found, x[at], x[-1]), found


def _narrowed(pair: _Pair, low: Array, high: Array, to: Array) -> Array:
    """The log beta in a bracket at which the sign turns to `to`."""
    for _ in range(ROUNDS):
        low, high, _ = _last_turn(*_signs(pair, (low, high), first=False), to)
    return low + (high - low) / 2


def _search(pair: _Pair, order: Array) -> Array:
    """The largest beta at which the one with the larger reward falls behind."""

    def cut(count: Array | int, state: tuple) -> tuple:
        first = jnp.asarray(count == 0)
        x, sign = _signs(pair, state[:2], first)
        low, high, falls = _last_turn(x, sign, -order)
        seen = falls, jnp.any(sign * order > 0), jnp.any(sign * order < 0)
        kept = [jnp.where(first, new, old) for new, old in zip(seen, state[2:], strict=True)]
        return low, high, *kept

    known = is_concrete(pair.bandit, pair.unit)
    state = (*_range(pair), *[jnp.asarray(False)] * 3)
    if known and is_concrete(pair.first, pair.second):
        for count in range(1 + ROUNDS):
            state = cut(count, state)
            if not state[2]:
                break
    else:
        state = jax.lax.fori_loop(0, 1 + ROUNDS, cut, state)
    low, high, falls, ahead, behind = state
    log_beta = jnp.where(falls, low + (high - low) / 2, low)
    if not known:

        def odds(log_beta: Array) -> Array:
            law = target(pair.bandit, pair.family(jnp.exp(log_beta)))
            return _lead(law.log_probs, pair.first, pair.second)[0]

        log_beta = implicit_root(odds, log_beta)
    return jnp.where(falls, jnp.exp(log_beta), jnp.where(ahead & ~behind, jnp.inf, 0))


def _most_crossings(pair: _Pair) -> int | None:
    """How often two groups can cross under one divergence with alpha <= 1; else None.

    With T = 1/beta or the multiplier's distance from max R, the difference of the masses is a sum
    of c e^{-T g} or of c (T + k g)^{-1/k}, g the gap to max R: T times, or the transform of, the
    Laplace transform of the running sums of c from the largest reward down.
    """
    reward = np.asarray(pair.bandit.reward)
    if len(pair.parts) != 1 or not is_proportional(pair.family):
        return None
    divergence, log_q = pair.parts[0].divergence, np.asarray(pair.parts[0].log_anchor)
    if not isinstance(divergence, KL | AlphaFamily):
        return None
    alpha = 1.0 if isinstance(divergence, KL) else float(divergence.alpha)
    support = np.isfinite(reward) & np.isfinite(log_q)
    enter = np.isfinite(reward) & ~support & (reward > reward[support].max(initial=-np.inf))
    if alpha > 1 or (alpha < 1 and enter.any()):
        return None
    mass = np.where(support, np.exp(log_q), 0)
    signed = mass * (np.asarray(pair.first).astype(int) - np.asarray(pair.second).astype(int))
    levels = np.unique(reward[support])[::-1]
    running = np.cumsum([signed[support & (reward == level)].sum() for level in levels])
    sign = np.sign(running[np.abs(running) > 1e-14])
    return int(np.sum(sign[1:] != sign[:-1]))


def _group(name: str, actions: Actions, bandit: Bandit) -> Array:
    check_actions(name, actions, bandit.num_actions)
    index = jnp.asarray(actions)
    if index.dtype == bool:
        if index.shape != bandit.reward.shape:
            raise ValueError(
                f"a mask of actions must have shape {bandit.reward.shape}; got {index.shape}"
            )
        return index
    return jnp.zeros(bandit.num_actions, bool).at[index].set(True)
