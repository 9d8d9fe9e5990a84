"""The exact optimum of a regularised objective, from one scalar root.

Everything is parametrised by s, the log-ratio log(p/q) of the best action to its anchor. Given s
the divergence says the log-ratio of every other action from its reward gap alone, without
cancellation and without a seam in alpha; s is then the root of "the probabilities sum to 1".
K is the number of actions, q the anchor.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from regdist.divergence import Divergence
from regdist.logspace import expect, log_mean_exp, log_ratio
from regdist.problem import Bandit
from regdist.records import record
from regdist.regularizer import Regularizer

_MAX_ITERATIONS = 100


@record
class Target:
    """The exact optimum of J(p) = E_p R - regulariser(p); made by `target()`.

    Attributes:
        log_probs: log p, normalised, in nats, shape [K]; -inf where p is exactly 0.
        value: J at the optimum, in units of reward.
        multiplier: L with R_i - beta f'(p_i/q_i) = L wherever p_i > 0, under f'(1) = 0; between
            min R and max R. Reverse KL: beta log sum q e^{R/beta}. The Lambda of the
            forward-KL literature is L + beta. For a sum, of the one term it merges into.
        residual: the KKT residual of `log_probs` as returned, dimensionless: the larger of
            |sum p - 1| and the worst relative violation of stationarity.
        converged: whether the root search ended with a residual below eps^0.55, which is 2e-9 in
            float64 and 2e-4 in float32.
    """

    log_probs: Float[Array, "*batch K"]
    value: Float[Array, "*batch"]
    multiplier: Float[Array, "*batch"]
    residual: Float[Array, "*batch"]
    converged: Bool[Array, "*batch"]

    @property
    def probs(self) -> Float[Array, "*batch K"]:
        """p, shape [K]."""
        return jnp.exp(self.log_probs)


@jax.jit
def target(bandit: Bandit, regularizer: Regularizer) -> Target:
    """The distribution p that maximises E_p R - regulariser(p) over the simplex.

    Reverse KL: p proportional to q e^{R/beta}. Forward KL: p = beta q/(Lambda - R). Alpha
    divergence: p = q e_alpha((R - L)/beta) with the q-exponential e_alpha. Entropy: p proportional
    to e^{R/alpha}. Sums of reverse-KL and entropy terms: reverse KL to the geometric mean of the
    anchors. (arXiv 2205.11275, 2510.20817, 2302.08215.)

    Where q_i = 0, reverse KL and alpha >= 1 give p_i = 0. For alpha < 1 (forward KL among them)
    the best action off the support takes the mass that the support cannot place, when its reward
    is high enough; several tied ones share it evenly (any split is optimal).

    Args:
        bandit: rewards and reference, K actions.
        regularizer: one term, or a sum of reverse-KL and entropy terms.

    Returns:
        A `Target`. Works under jit, vmap and grad; derivatives are exact (implicit function
        theorem), in both modes, with respect to rewards, reference, anchors, alpha and beta.

    Raises:
        ValueError: the terms of a sum do not merge, or coefficients are not scalars.

    >>> t = target(rd.bandit([1.0, 0.0], [0.1, 0.9]), rd.ReverseKL(0.5))
    >>> print(t.probs)
    [0.45085306 0.54914694]
    >>> betas = jnp.array([0.1, 1.0, 10.0])
    >>> jax.vmap(lambda b: target(rd.bandit([1.0, 0.0], [0.1, 0.9]), rd.ForwardKL(b)))(betas).probs
    Array([[0.91097722, 0.08902278],
           [0.31622777, 0.68377223],
           [0.10977223, 0.89022777]], dtype=float64)
    """
    divergence, beta, log_q, offset = regularizer.reduce(bandit.log_ref)
    reward = bandit.reward
    allowed = ~jnp.isneginf(reward)
    active = allowed & ~jnp.isneginf(log_q)
    top = jnp.argmax(jnp.where(active, reward, -jnp.inf))
    finite_reward = jnp.where(allowed, reward, reward[top])
    gap = (reward[top] - finite_reward) / beta
    log_q_active = jnp.where(active, log_q, -jnp.inf)

    # Off the support mass may enter at the highest reward alone: that bounds s from above.
    off = allowed & jnp.isneginf(log_q)
    lead = -jnp.min(jnp.where(off, gap, jnp.inf))
    entry = divergence.ceiling(jnp.maximum(lead, 0))
    entrants = off & (gap == -lead)

    pivot, at, capped, ended = jax.lax.stop_gradient(
        _solve(*jax.lax.stop_gradient((divergence, log_q, active, finite_reward, beta, entry)))
    )
    gap = (reward[pivot] - finite_reward) / beta  # rewards are subtracted before the division

    def log_mass(s: Array) -> Array:
        r = divergence.shift(s, jnp.where(active, gap, 0))
        return jax.nn.logsumexp(jnp.where(active, log_q_active + r, -jnp.inf))

    root = jax.lax.custom_root(
        lambda s: jnp.where(capped, s - at, log_mass(s)),
        at,
        lambda _, s: s,
        lambda linear, y: y / linear(jnp.ones_like(y)),
    )
    s = jnp.where(capped, jnp.where(capped, entry, 0), root)
    r = divergence.shift(s, jnp.where(active, gap, 0))
    log_p = jnp.where(active, jnp.where(active, log_q, 0) + r, -jnp.inf)
    excess = jnp.where(capped, log_mass(jnp.where(capped, s, 0)), 0)
    shares = jnp.maximum(jnp.sum(entrants, dtype=reward.dtype), 1)
    left = -jnp.expm1(jnp.where(capped, excess, -1)) / shares
    log_p = jnp.where(capped & entrants, jnp.log(left), log_p)

    cost = expect(log_p, gap) + divergence.value(log_p, log_q)
    bounded = jnp.isfinite(cost)  # not so where an action of alpha <= 0 is forbidden
    value = reward[pivot] - beta * jnp.where(bounded, cost, 0) + offset
    slope = divergence.slope(s)
    residual = _kkt_residual(divergence, log_p, log_q, gap, slope, allowed)
    return Target(
        log_probs=log_p,
        value=jnp.where(bounded, value, -jnp.inf),
        multiplier=reward[pivot] - beta * slope,
        residual=residual,
        converged=ended & (residual <= jnp.finfo(log_p.dtype).eps ** 0.55),
    )


@jax.jit
def objective(
    log_probs: Float[Array, " K"], bandit: Bandit, regularizer: Regularizer
) -> Float[Array, ""]:
    """J(p) = E_p R - regulariser(p), in units of reward; -inf is a legal value.

    Args:
        log_probs: log p, normalised, in nats, shape [K]; -inf allowed.
        bandit: rewards R and reference.
        regularizer: any regulariser or sum.

    For reverse KL, J(p) = value - beta KL(p || target) at every p (arXiv 2205.11275).

    >>> b = rd.bandit([1.0, 0.0], [0.1, 0.9])
    >>> print(objective(b.log_ref, b, rd.ReverseKL(0.5)))  # at the reference the penalty is 0
    0.1000...
    """
    return expect(log_probs, bandit.reward) - regularizer.value(log_probs, bandit.log_ref)


class _Root(NamedTuple):
    pivot: Array
    s: Array
    capped: Array
    ended: Array


def _solve(
    divergence: Divergence,
    log_q: Array,
    active: Array,
    reward: Array,
    beta: Array,
    entry: Array,
) -> _Root:
    """An action, the pivot, and its log-ratio s at which the probabilities sum to 1.

    The search starts with the best action, at the smallest s at which some action alone would have
    probability 1: there the mass lies between 1 and K. If the mass stays below 1 at `entry`, s is
    capped there. For sparse divergences the distances of the others to the edge of the support are
    differences that may cancel. So other pivots are tried, and the one that places the mass best is
    kept: the action whose probability responds most to the multiplier, whose own distance is the
    scale that matters, as seen from s and from just above it; and the action that was alone
    at the start, which carries the mass when no s of the best action resolves it.
    """
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
        chosen = jnp.argmax(jnp.where(active & (response > 0), log_response, -jnp.inf))
        return chosen, r[chosen]

    gap = gap_to(best)
    alone = jnp.where(active, divergence.shift(-log_q_active, -gap), jnp.inf)
    first = jnp.argmin(alone)
    ceiling = jnp.minimum(alone[first], entry)
    capped = (ceiling == entry) & (log_mass(ceiling, best) < 0)
    s, ended = _newton(
        lambda s: log_mass(s, best),
        divergence,
        jnp.minimum(ceiling, 0) - 1,
        ceiling,
        ceiling,
        capped,
    )
    root = _Root(best, s, capped, ended)
    sparse = divergence.is_sparse()
    if sparse is False:
        return root

    def retry(root: _Root, candidate: tuple[Array, Array]) -> tuple[_Root, None]:
        pivot, start = candidate
        skip = ~sparse | (pivot == root.pivot)
        wide = 50 + jnp.abs(start)
        s, ended = _newton(
            lambda s: log_mass(s, pivot), divergence, start - wide, start + wide, start, skip
        )
        again = _Root(pivot, s, capped, ended)
        better = jnp.abs(log_mass(s, pivot)) <= jnp.abs(log_mass(root.s, root.pivot))
        return jax.tree.map(lambda a, b: jnp.where(sparse & better, a, b), again, root), None

    above = root.s + 4 * jnp.finfo(s.dtype).eps * jnp.abs(root.s)
    candidates = steepest(root.s), steepest(above), (first, -log_q_active[first])
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *candidates)
    return jax.lax.scan(retry, root, stacked)[0]


def _newton(
    log_mass: Callable[[Array], Array],
    divergence: Divergence,
    low: Array,
    high: Array,
    start: Array,
    ended: Array,
) -> tuple[Array, Array]:
    """The s in [low, high] with log_mass(s) = 0, and whether it was reached.

    Newton steps; a bracket catches those that rounding spoils.
    """
    eps = jnp.finfo(start.dtype).eps

    def step(state):
        count, s, low, high, _ = state
        excess, rate = jax.jvp(log_mass, (s,), (jnp.ones_like(s),))
        low = jnp.where(excess <= 0, s, low)
        high = jnp.where(excess >= 0, s, high)
        proposed = s + divergence.newton_step(excess, rate)
        inside = (proposed > low) & (proposed < high)
        new = jnp.where(inside, proposed, low + (high - low) / 2)
        resolved = jnp.abs(new - s) <= eps * (jnp.abs(s) + eps**1.5)
        ended = (excess == 0) | resolved | (high <= low)
        return count + 1, new, low, high, ended

    def unfinished(state):
        return ~state[-1] & (state[0] < _MAX_ITERATIONS)

    state = (0, start, low, high, ended)
    _, s, _, _, ended = jax.lax.while_loop(unfinished, step, state)
    return s, ended


def _kkt_residual(
    divergence: Divergence, log_p: Array, log_q: Array, gap: Array, slope: Array, allowed: Array
) -> Array:
    """max(|sum p - 1|, worst relative violation of f'(p_i/q_i) = slope - gap_i).

    Where p = 0 the condition is one-sided: the marginal gain there must not exceed the multiplier.
    """
    mass = jnp.abs(jnp.sum(jnp.exp(log_p)) - 1)
    present = allowed & ~jnp.isneginf(log_p)
    r = log_ratio(log_p, log_q)
    cost = divergence.slope(r)
    wanted = slope - gap
    finite = jnp.isfinite(cost)
    miss = jnp.where(finite, cost, 0) - wanted
    size = 1 + jnp.abs(jnp.where(finite, cost, 0)) + jnp.abs(slope) + jnp.abs(gap)
    tight = jnp.where(present, jnp.where(finite, jnp.abs(miss), jnp.inf), 0)
    empty = allowed & ~present & ~jnp.isneginf(log_q)
    loose = jnp.where(empty & finite, jnp.maximum(-miss, 0), 0)
    return jnp.maximum(mass, jnp.max((tight + loose) / size))
