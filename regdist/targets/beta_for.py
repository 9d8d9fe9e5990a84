"""Which coefficient gives a target a stated reward, divergence or entropy? On known values."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from regdist.metrics import entropy as entropy_of
from regdist.metrics import expected_reward as expected_reward_of
from regdist.metrics import kl as kl_of
from regdist.numerics.records import Number, as_array
from regdist.problems.bandit import Bandit, takes_bandit
from regdist.targets.along import POINTS, Family, solutions, unit_of

_DECADES = 6.0  # on either side of the spread of the rewards, sixteen points each
_ROUNDING = 256  # ulps of the largest value: what a target and a sum over it may be off


@dataclasses.dataclass(frozen=True)
class Betas:
    """The coefficients whose targets have a stated value; made by `beta_for()`.

    Attributes:
        betas: all that were found, ascending, shape [n].
        flat: the interval of betas on which the value is the stated one; None if there is none. An
            end at the end of what was scanned is 0 or inf.
        range: the least and the largest value of all targets scanned.
        reason: why there is none, or more than one; empty for exactly one.
    """

    betas: np.ndarray
    flat: tuple[float, float] | None
    range: tuple[float, float]
    reason: str

    @property
    def beta(self) -> float:
        """The one solution.

        Raises:
            ValueError: there are none, several, or an interval; it says which.
        """
        if len(self.betas) != 1 or self.flat is not None:
            raise ValueError(f"there is no single beta: {self.reason}")
        return float(self.betas[0])


@takes_bandit
def beta_for(
    bandit: Bandit,
    family: Family,
    *,
    expected_reward: Number | None = None,
    kl: Number | None = None,
    entropy: Number | None = None,
) -> Betas:
    """All beta at which the target has this expected reward, KL(p || q) or entropy, in nats.

    Methods are compared at matched reward or matched KL, never at matched beta. The expected reward
    of a family beta D falls with beta, and D itself too: of two optima each is the better at its
    own beta, and the sum of the two statements leaves no other order. An entropy need not: beside
    an uneven reference it may rise and fall again, and then it has several solutions.

    Found by a scan of twelve decades about the spread of the rewards, sixteen points in each, in
    which extrema are refined, and roots to the last digits; two solutions between two neighboring
    points that no point tells from none can be missed.

    Args:
        bandit: rewards and reference.
        family: from a coefficient to a regularizer: `rd.ReverseKL`, or `lambda b: rd.Entropy(b) +
            rd.ReverseKL(0.1)`.
        expected_reward: of the target, in units of reward.
        kl: KL(target || reference), in nats.
        entropy: of the target, in nats. Exactly one of the three.

    Raises:
        TypeError: family is no constructor, or none or several values are given.
        ValueError: a value that is no finite number.

    Examples:
        >>> b = rd.bandit([1.0, 0.0], [0.1, 0.9])
        >>> found = rd.beta_for(b, rd.ReverseKL, expected_reward=0.5)
        >>> print(round(found.beta, 6), round(1 / np.log(9), 6))  # odds of 1 to 9, tilted to even
        0.45512 0.45512
        >>> print(rd.beta_for(b, rd.ReverseKL, entropy=0.5).betas.round(3))  # on either side of it
        [0.279 1.236]
        >>> print(rd.beta_for(b, rd.ReverseKL, expected_reward=1.5).reason)
        no beta: the expected reward of the targets runs from 0.1 to 1
        >>> flat = rd.beta_for(b, rd.TotalVariation, expected_reward=0.1).flat
        >>> print(round(flat[0], 6), flat[1])  # from the gap of the rewards on, nothing moves
        1.0 inf
    """
    unit_of("family", family)
    given = {"expected_reward": expected_reward, "kl": kl, "entropy": entropy}
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) != 1:
        raise TypeError(
            "exactly one of expected_reward=, kl= and entropy= is wanted; got "
            f"{', '.join(chosen) or 'none'}"
        )
    (name,) = chosen
    number = as_array(name, given[name], bandit.reward.dtype)
    if number.ndim or not np.isfinite(number):
        raise ValueError(f"{name} must be one finite number; got {given[name]!r}")

    def values(log_betas: Array) -> Array:
        log_probs = solutions(bandit, family, jnp.asarray(log_betas, bandit.reward.dtype)).log_probs
        return _values(bandit, log_probs, name)

    what = {"expected_reward": "expected reward", "kl": "KL", "entropy": "entropy"}[name]
    return betas_where(bandit, values, float(number), what)


@functools.partial(jax.jit, static_argnames="name")
def _values(bandit: Bandit, log_probs: Array, name: str) -> Array:
    value = {
        "expected_reward": lambda p: expected_reward_of(p, bandit.reward),
        "kl": lambda p: kl_of(p, bandit.log_ref),
        "entropy": entropy_of,
    }[name]
    return jax.vmap(value)(log_probs)


def betas_where(bandit: Bandit, values: Callable[[Array], Array], want: float, what: str) -> Betas:
    """All beta at which any function of it has a value, by the search of `beta_for`.

    Args:
        bandit: whose rewards say where betas are looked for.
        values: from logarithms of betas, shape [N], to the function at each.
        want: the value.
        what: what it is, for the reason.
    """
    import scipy.optimize

    reward = np.asarray(bandit.reward)
    spread = float(np.ptp(reward[np.isfinite(reward)])) or 1.0
    grid = math.log(spread) + math.log(10) * np.linspace(-_DECADES, _DECADES, POINTS)
    eps = float(jnp.finfo(bandit.reward.dtype).eps)

    def off(log_beta: float) -> float:
        return float(values(jnp.full(1, log_beta))[0]) - want

    miss = np.asarray(values(jnp.asarray(grid)), float) - want
    span = float(np.min(miss) + want), float(np.max(miss) + want)
    tiny = _ROUNDING * eps * (np.abs(miss + want).max() + abs(want))
    at = np.abs(miss) <= tiny
    flat = None
    runs = np.flatnonzero(at[:-1] & at[1:])
    if len(runs):
        first, last = int(runs[0]), int(runs[-1]) + 1
        low = 0.0 if first == 0 else math.exp(_edge(off, grid[first - 1], grid[first], tiny))
        high = math.inf
        if last < POINTS - 1:
            high = math.exp(_edge(off, grid[last + 1], grid[last], tiny))
        flat = low, high
        inside = np.arange(POINTS)
        at = (inside >= first) & (inside <= last)
    else:
        at = np.zeros(POINTS, bool)
    points, known = grid[~at], miss[~at]
    points, known = _with_extrema(off, points, known, grid)
    found = []
    for a, b, left, right in zip(points[:-1], points[1:], known[:-1], known[1:], strict=True):
        if flat is not None and a < math.log(max(flat[0], 1e-300)) <= b:
            continue
        if left == 0:
            found.append(a)
        elif left * right < 0:
            found.append(scipy.optimize.brentq(off, a, b, xtol=1e-14))
    if len(known) and known[-1] == 0:
        found.append(points[-1])
    betas = np.exp(np.sort(np.array(found, float)))
    return Betas(betas, flat, span, _reason(what, want, betas, flat, span))


def _edge(off: Callable[[float], float], outside: float, inside: float, tiny: float) -> float:
    """Where a value begins to be the stated one, by halving."""
    for _ in range(60):
        middle = (outside + inside) / 2
        outside, inside = (outside, middle) if abs(off(middle)) <= tiny else (middle, inside)
    return inside


def _with_extrema(
    off: Callable[[float], float], points: np.ndarray, known: np.ndarray, grid: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The points and those of the extrema between them that reach beyond the value."""
    import scipy.optimize

    more, values = [], []
    step = grid[1] - grid[0]
    for i in range(1, len(points) - 1):
        a, b, c = known[i - 1 : i + 2]
        turns = (b - a) * (c - b) < 0 and a * b > 0 and b * c > 0 and abs(b) <= min(abs(a), abs(c))
        if not turns or points[i + 1] - points[i - 1] > 2.5 * step:
            continue
        sign = np.sign(b)
        best: Any = scipy.optimize.minimize_scalar(
            lambda x, sign=sign: sign * off(x),
            bounds=(points[i - 1], points[i + 1]),
            method="bounded",
            options={"xatol": 1e-10},
        )
        if best.fun * b * sign <= 0:
            more.append(best.x)
            values.append(sign * best.fun)
    order = np.argsort(np.append(points, more))
    return np.append(points, more)[order], np.append(known, values)[order]


def _reason(
    what: str,
    want: float,
    betas: np.ndarray,
    flat: tuple[float, float] | None,
    span: tuple[float, float],
) -> str:
    if flat is not None:
        return f"the {what} is {want:.6g} at every beta from {flat[0]:.6g} to {flat[1]:.6g}"
    if len(betas) > 1:
        return f"the {what} is {want:.6g} at {len(betas)} betas: it is not monotone in beta"
    if len(betas) == 1:
        return ""
    low, high = span
    return f"no beta: the {what} of the targets runs from {low:.6g} to {high:.6g}"
