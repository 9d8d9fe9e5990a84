"""Rewards that depend on the policy through one number x: what makes a target self-consistent.

A feedback says which reward the policy sees at each x, and how far x is from the number that the
policy gives back. `fixed_points` finds every x where the two agree. K is the number of actions.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool

from regdist.metrics import success
from regdist.numerics.logspace import expect, times_exp
from regdist.numerics.records import check_choice, is_numeric
from regdist.problems.bandit import Bandit, takes_bandit
from regdist.regularizers.regularizer import Regularizer, check_regularizer


@dataclasses.dataclass(frozen=True)
class Feedback:
    """A reward with one free number.

    Attributes:
        reward: from x to the reward, shape [K].
        mismatch: from x and log p to a number with the sign of x less what p gives back; 0 at a
            fixed point.
        low: no fixed point lies below.
        high: no fixed point lies above.
        steepness: from the ends of an interval to a bound on |d mismatch/dx| on it along the
            targets; None if no bound is known, then nothing can be certified.
        breaks: where the mismatch jumps upwards, increasing.
    """

    reward: Callable[[Array], Array]
    mismatch: Callable[[Array, Array], Array]
    low: float
    high: float
    steepness: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    breaks: tuple[float, ...] = ()


@takes_bandit
def std_normalized(bandit: Bandit, regularizer: Regularizer) -> Feedback:
    r"""GRPO's division by the standard deviation: reward R/sigma(p), x = 1/sigma (2503.06639).

    $$p_i \propto q_i e^{x R_i/\beta}, \quad x = 1/\sqrt{\mathrm{Var}_p R}$$

    With a binary reward a fixed point has logit p_C = logit q_C + 1/(beta sqrt(p_C (1 - p_C))).
    The collapse onto the best actions, sigma = 0, is always a limit; it is not listed.

    Raises:
        ValueError: the regularizer is not a sum of reverse-KL and entropy terms, or all actions of
            the support have the same reward.

    Examples:
        >>> b = rd.bandit([1.0, 0.0], [0.1, 0.9])
        >>> points = rd.fixed_points(b, rd.ReverseKL(1.0), std_normalized(b, rd.ReverseKL(1.0)))
        >>> print(points.probs[:, 0].round(4), points.stable)
        [0.4531 0.9665] [ True False]
    """
    beta, log_q, reward = _tilt(bandit, regularizer)
    active = ~np.isneginf(log_q)
    r, q = reward[active], np.exp(log_q[active])
    span, best = float(np.ptp(r)), r == r.max()
    if span == 0:
        raise ValueError("std_normalized needs two different rewards on the support")
    gap = float(r.max() - r[~best].max())
    # Var <= span^2 P(not best) <= span^2 odds e^{-x gap/beta}: beyond `high` x sigma stays below 1.
    log_odds = math.log(q[~best].sum()) - math.log(q[best].sum())
    # From 2 beta/gap on the bound falls, so that once below 1 it stays.
    high = max(4 / span, 2 * beta / gap)
    while 2 * math.log(high * span) + log_odds >= high * gap / beta:
        high *= 1.5
    centered = jnp.where(jnp.isneginf(bandit.reward), -jnp.inf, bandit.reward - float(r.max()))

    def mismatch(x: Array, log_p: Array) -> Array:
        mean = expect(log_p, centered)
        deviation = jnp.where(jnp.isneginf(centered), 0, centered - mean)
        return 2 * jnp.log(x) + jnp.log(jnp.sum(times_exp(deviation**2, log_p)))

    # |d log Var/dx| <= |third moment|/(beta Var) <= span/beta.
    return Feedback(
        lambda x: jnp.where(jnp.isneginf(centered), -jnp.inf, x * centered),
        mismatch,
        2 / span,  # sigma <= span/2
        high,
        lambda a, b: 2 / a + span / beta + 0 * b,
    )


@takes_bandit
def pass_at_k(
    bandit: Bandit, regularizer: Regularizer, correct: Bool[Array, " K"], k: float | int
) -> Feedback:
    r"""The utility 1 - (1 - p_C)^k: correct actions earn k (1 - p_C)^{k-1}, x = p_C.

    $$\max_p \; 1 - (1 - p_C)^k - \Omega(p)$$

    Omega is the regularizer. The utility is concave in p: there is exactly one fixed point.

    Raises:
        ValueError: the regularizer is not a sum of reverse-KL and entropy terms, or k < 1.
    """
    beta, _, _ = _tilt(bandit, regularizer)
    success(bandit.log_ref, correct)  # which refuses what is no mask over the actions
    if not (is_numeric(k) and k >= 1):
        raise ValueError(f"k must be at least 1; got k={k!r}")

    def reward(x: Array) -> Array:
        earned = k * (1 - x) ** (k - 1)
        return jnp.where(jnp.isneginf(bandit.reward), -jnp.inf, jnp.where(correct, earned, 0))

    def mismatch(x: Array, log_p: Array) -> Array:
        return x - success(log_p, correct)

    def steepness(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        # p_C (1 - p_C)/beta <= 1/(4 beta), times the largest slope of the reward
        # (below k = 2 it is infinite at p_C = 1, and there as large as a float can hold)
        at = np.maximum(1 - a, 0.0) if k >= 2 else np.maximum(1 - b, 1e-300)
        return 1 + k * (k - 1) * at ** (k - 2) / (4 * beta)

    return Feedback(reward, mismatch, 0.0, 1.0, steepness)


@takes_bandit
def tail_mean(
    bandit: Bandit, regularizer: Regularizer, level: float, side: str = "lower"
) -> Feedback:
    r"""The mean of the worst (or best) `level` of the rewards, x the quantile that bounds it.

    $$\max_p \; \frac1l \int_0^l Q_p(u)\, du - \Omega(p), \quad \text{upper: } \int_{1 - l}^1$$

    Q_p are the quantiles, l is the level, Omega the regularizer. Lower tail (CVaR, risk averse):
    reward -(x - R)_+/level at x = Q(level); upper tail (risk seeking): (R - x)_+/level at
    x = Q(1 - level). Maximizing the lower tail pulls up its worst actions only. (Quantile
    utilities: arXiv 2510.00911.)

    Args:
        bandit: rewards and reference.
        regularizer: a sum of reverse-KL and entropy terms.
        level: in (0, 1).
        side: "lower" or "upper".

    Raises:
        ValueError: the level is outside (0, 1), an unknown side, or another regularizer.
    """
    beta, log_q, rewards = _tilt(bandit, regularizer)
    if not (is_numeric(level) and 0 < level < 1):
        raise ValueError(f"level must be in (0, 1); got level={level!r}")
    check_choice("side", side, ("lower", "upper"), "rd.feedback.tail_mean")
    values = np.unique(rewards[~np.isneginf(log_q)])
    wanted, sign = (level, -1.0) if side == "lower" else (1 - level, 1.0)
    finite = ~jnp.isneginf(bandit.reward)

    def reward(x: Array) -> Array:
        beyond = jnp.maximum(sign * (jnp.where(finite, bandit.reward, 0) - x), 0)
        return jnp.where(finite, sign * beyond / level, -jnp.inf)

    def mismatch(x: Array, log_p: Array) -> Array:
        return success(log_p, bandit.reward <= x) - wanted

    return Feedback(
        reward,
        mismatch,
        float(values[0]),
        float(values[-1]),
        lambda a, b: 0 * (a + b) + 1 / (4 * beta * level),
        tuple(map(float, values)),
    )


def _tilt(bandit: Bandit, regularizer: Regularizer) -> tuple[float, np.ndarray, np.ndarray]:
    """beta, log of the anchor where actions are allowed, and rewards."""
    check_regularizer(regularizer)
    if not regularizer.merges() or regularizer.follows_policy():
        raise ValueError(
            f"a certified search takes reverse-KL and entropy terms; got {regularizer!r}. For "
            "others write an rd.feedback.Feedback, without or with a steepness of your own"
        )
    (part,) = jax.tree.map(np.asarray, regularizer.reduce(bandit.log_ref))
    reward = np.asarray(bandit.reward)
    return float(part.beta), np.where(np.isneginf(reward), -np.inf, part.log_anchor), reward
