"""Which coefficient gives a target a number that is wanted: every solution, or why there is none.

K is the number of actions, N of coefficients; q is the reference.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from regdist.metrics import entropy as entropy_of
from regdist.metrics import kl as kl_of
from regdist.numerics.logspace import expect, log_sum_exp
from regdist.numerics.records import Law, Number, as_array, is_concrete
from regdist.problems.bandit import Bandit, takes_bandit
from regdist.regularizers.regularizer import Regularizer, check_regularizer
from regdist.regularizers.term import Reduced
from regdist.targets.along import POINTS, ROUNDS, changes, check_family, is_proportional, solutions
from regdist.targets.solve import target

# Twelve decades on each side of the spread of the rewards, sixteen points a decade.
_DECADES = 12.0
_BLOCKS = 2
_WORDS = {"expected_reward": "an expected reward", "kl": "a KL", "entropy": "an entropy"}


@dataclasses.dataclass(frozen=True)
class Betas:
    """The coefficients at which a target has a number; made by `beta_for`.

    Attributes:
        betas: all solutions, ascending, shape [N].
        flat: the interval of coefficients over which the target stays the same and has the number:
            from 0 if at all small ones, to inf if at all large ones; None if there is none.
        reason: why there is no solution; empty if there is one.
        attainable: the least and largest number over all coefficients, limits included.
        proved: whether these are known to be all solutions: see `beta_for`.
    """

    betas: np.ndarray
    flat: tuple[float, float] | None
    reason: str
    attainable: tuple[float, float]
    proved: bool

    @property
    def beta(self) -> float:
        """The one solution.

        Raises:
            ValueError: there are none, several, or an interval; it says which.
        """
        if len(self.betas) == 1 and self.flat is None:
            return float(self.betas[0])
        words = self.reason or f"there are {len(self.betas)}: {self.betas}"
        if self.flat is not None:
            words = "it is an interval, from {:.6g} to {:.6g}".format(*self.flat)
        raise ValueError(f"there is no single beta: {words}")


@takes_bandit
def beta_for(
    bandit: Bandit,
    family: Callable[[Any], Regularizer | Law],
    *,
    expected_reward: Number | None = None,
    kl: Number | None = None,
    entropy: Number | None = None,
) -> Betas:
    r"""Every coefficient at which the target has an expected reward, a KL or an entropy.

    $$\{\beta > 0 : g(p_\beta) = x\}, \quad p_\beta = \arg\max_p \mathbb{E}_p R - \Omega_\beta(p)$$

    For beta times one regularizer, Omega_beta = beta Omega (any sum in which each coefficient is a
    multiple of beta), E R falls as beta grows: from p_1 and p_2 being optimal at beta_1 < beta_2,
    (beta_2 - beta_1)(Omega(p_1) - Omega(p_2)) >= 0, and so E_{p_1} R >= E_{p_2} R. If it is one
    f-divergence to q, KL(p || q) falls too: p_1/q as a function of p_2/q crosses the diagonal once,
    from below, so that every convex function of p/q has the larger mean under p_1. With the uniform
    law for q, the entropy rises. There the number has one solution or none, or stays the same over
    an interval, and the answer is `proved`.

    The entropy is not monotone in beta in general, nor is anything where part of the regularizer
    has a coefficient of its own. Then the solutions are those that a scan of 24 decades around the
    spread of the rewards shows, sixteen points a decade; a maximum or minimum that shows is
    followed to its top, so that two solutions nearer to each other than that are found, unless two
    turns lie between neighbors.

    A limit is not attained: E R = max R under reverse KL belongs to no beta > 0.

    Args:
        bandit: rewards and reference.
        family: from beta to a regularizer, as for `rd.critical_beta`; or to a record of a law, such
            as the target of a problem that changes with beta (see `rd.mara`), of which nothing is
            proved.
        expected_reward: E_p R under the rewards of the bandit.
        kl: KL(p || q) of the target p to the reference of the bandit, in nats.
        entropy: H(p), in nats. Exactly one of the three is given.

    Raises:
        ValueError: not exactly one number is given, or it is not finite, or negative.

    Examples:
        >>> b = rd.bandit([1.0, 0.0, 0.5], [0.1, 0.6, 0.3])
        >>> found = rd.beta_for(b, rd.ReverseKL, expected_reward=0.9)
        >>> print(round(found.beta, 4), found.proved)
        0.1825 True
        >>> rd.beta_for(b, rd.ReverseKL, entropy=0.95).betas.round(4)  # rises, then falls
        array([0.3037, 3.442 ])
        >>> print(rd.beta_for(b, rd.ReverseKL, expected_reward=1.0).reason)
        an expected reward of 1 is only the limit for beta to 0
    """
    given = {"expected_reward": expected_reward, "kl": kl, "entropy": entropy}
    asked = {name: value for name, value in given.items() if value is not None}
    if len(asked) != 1:
        raise ValueError(
            "rd.beta_for takes exactly one of expected_reward=, kl= and entropy=; got "
            f"{', '.join(asked) or 'none'}"
        )
    ((name, value),) = asked.items()
    number = _finite(name, value)
    if name != "expected_reward" and number < 0:
        raise ValueError(f"{name} is never negative; got {name}={value!r}")
    check_family("family", family)
    unit = family(1.0)
    if not isinstance(unit, Law):
        check_regularizer(unit)
    return _Search(bandit, family, unit, name, number).result()


def _finite(name: str, value: Number) -> float:
    number = as_array(name, value)
    if not is_concrete(number):
        raise TypeError(f"{name} must be a known number: rd.beta_for does not work under jax.jit")
    if number.ndim or not np.isfinite(number):
        raise ValueError(f"{name} must be one finite number; got {name}={value!r}")
    return float(number)


@functools.partial(jax.jit, static_argnames="name")
def _log_number(name: str, log_probs: Array, reward: Array, log_q: Array, best: Array) -> Array:
    """log of max R - E R, of the KL or of the entropy of each law: relative digits near 0."""

    def one(log_p: Array) -> Array:
        if name != "expected_reward":
            number = kl_of(log_p, log_q) if name == "kl" else entropy_of(log_p)
            return jnp.log(jnp.maximum(number, 0))
        held = jnp.isfinite(reward) & (reward < best)
        short = jnp.where(held, best - jnp.where(held, reward, 0), 1)
        return log_sum_exp(jnp.where(held, log_p + jnp.log(short), -jnp.inf))

    return jax.vmap(one)(log_probs)


class _Search:
    """A scan over log beta, its changes of sign narrowed down, its turns followed."""

    def __init__(
        self, bandit: Bandit, family: Callable, unit: Regularizer | Law, name: str, number: float
    ):
        self.bandit, self.family, self.name, self.number = bandit, family, name, number
        self.regular = isinstance(unit, Regularizer)
        self.parts: list[Reduced] = []
        self.proportional = False
        if isinstance(unit, Regularizer):
            self.parts, self.proportional = unit.reduce(bandit.log_ref), is_proportional(family)
        self.compiled = jax.jit(jax.vmap(lambda x: family(jnp.exp(x)).log_probs))
        self.reward = np.asarray(bandit.reward)
        self.rounding = 64 * float(jnp.finfo(bandit.reward.dtype).eps)
        finite = self.reward[np.isfinite(self.reward)]
        middle = np.log(np.ptp(finite) or 1.0)
        wide = _DECADES * np.log(10)
        ends = np.linspace(middle - wide, middle + wide, _BLOCKS + 1)
        blocks = [self.block(*pair) for pair in itertools.pairwise(ends)]
        self.x = np.concatenate([x for x, _, _ in blocks])
        self.laws = np.concatenate([laws for _, laws, _ in blocks])
        self.solved = all(solved for _, _, solved in blocks)
        self.best = float(self.reward[np.any(self.laws > -np.inf, axis=0)].max())
        self.wanted = self.logarithm(number)
        self.miss = self.misses(self.laws)

    def block(self, low: float, high: float) -> tuple[np.ndarray, np.ndarray, bool]:
        """Log betas between two, their laws, and whether all are solved."""
        x = np.linspace(low, high, POINTS)
        at = jnp.asarray(x, self.bandit.reward.dtype)
        if self.regular:
            found = solutions(self.bandit, self.family, at)
            return x, np.asarray(found.log_probs), bool(np.all(found.converged))
        laws = np.asarray(self.compiled(at))
        return x, laws, not np.any(np.isnan(laws))

    def logarithm(self, number: float) -> float:
        """What `_log_number` is at a number; NaN above the best reward."""
        size = self.best - number if self.name == "expected_reward" else number
        if size < 0 and abs(size) <= self.rounding * (abs(self.best) + abs(number)):
            size = 0.0
        return float(np.log(size)) if size > 0 else -np.inf if size == 0 else np.nan

    def misses(self, laws: np.ndarray) -> np.ndarray:
        """log of the number less log of the one wanted; inf where that is above all rewards."""
        if np.isnan(self.wanted):
            return np.full(len(laws), np.inf)
        inputs = jnp.asarray(laws), self.bandit.reward, self.bandit.log_ref
        best = jnp.asarray(self.best, laws.dtype)
        logs = np.asarray(_log_number(self.name, *inputs, best))
        same = np.isneginf(logs) & np.isneginf(self.wanted)
        return np.where(same, 0.0, logs - np.where(same, 0.0, self.wanted))

    def numbers(self, laws: np.ndarray) -> np.ndarray:
        """The numbers themselves."""
        law = jnp.asarray(laws)
        measure: dict[str, Callable[[Array], Array]] = {
            "expected_reward": lambda p: expect(p, self.bandit.reward),
            "kl": lambda p: kl_of(p, self.bandit.log_ref),
            "entropy": entropy_of,
        }
        return np.asarray(jax.vmap(measure[self.name])(law))

    def signs(self, miss: np.ndarray) -> np.ndarray:
        """Of the misses, with 0 for what may be rounding."""
        return np.where(np.abs(miss) <= self.rounding, 0, np.sign(np.nan_to_num(miss))).astype(int)

    def result(self) -> Betas:
        """Everything."""
        flat = self.flat()
        betas, jumps = self.crossings(flat)
        betas = sorted(betas + self.touches(flat))
        limits = self.limits()
        seen = np.concatenate([self.numbers(self.laws), self.numbers(np.stack(limits))])
        least, most = float(np.nanmin(seen)), float(np.nanmax(seen))
        if not self.monotone():
            least, most = min(least, self.extreme(-1)), max(most, self.extreme(1))
        reason, complete = "", self.monotone() and self.solved and len(betas) <= 1
        if not betas and flat is None:
            reason, beyond = self.reason(limits, least, most, jumps)
            complete &= not beyond
        return Betas(np.array(betas), flat, reason, (least, most), complete)

    def monotone(self) -> bool:
        """Whether the number is known to fall or rise with beta: see `beta_for`."""
        if self.name == "expected_reward" or not self.proportional or len(self.parts) != 1:
            return self.name == "expected_reward" and self.proportional
        anchor, even = np.asarray(self.parts[0].log_anchor), -np.log(len(self.reward))
        law = np.asarray(self.bandit.log_ref) if self.name == "kl" else even
        return np.allclose(np.exp(anchor), np.exp(law), rtol=self.rounding, atol=0)

    def same(self, laws: np.ndarray, law: np.ndarray) -> np.ndarray:
        """Which laws are one and the same, within rounding."""
        gone = np.isneginf(laws), np.isneginf(law)
        kept, held = np.where(gone[0], 0, laws), np.where(gone[1], 0, law)
        near = np.abs(kept - held) <= self.rounding / 8 * (1 + np.abs(held))
        near &= gone[0] == gone[1]
        return np.asarray(np.all(near, axis=-1))

    def flat(self) -> tuple[float, float] | None:
        """The interval over which the law stays the same and has the number."""
        still = self.same(self.laws[1:], self.laws[:-1]) & (np.diff(self.x) > 0)
        hits = np.flatnonzero(still & (self.signs(self.miss[1:]) == 0))
        if not len(hits):
            return None
        law = self.laws[hits[0]]
        inside = np.flatnonzero(self.same(self.laws, law))
        low, high = int(inside[0]), int(inside[-1])
        start = 0.0 if low == 0 else self.edge(self.x[low], self.x[low - 1], law)
        last = len(self.x) - 1
        return start, np.inf if high == last else self.edge(self.x[high], self.x[high + 1], law)

    def edge(self, inside: float, outside: float, law: np.ndarray) -> float:
        """Where a law is left, between a log beta inside and one outside."""
        for _ in range(ROUNDS):
            x, laws, _ = self.block(inside, outside)
            out = int(np.argmin(np.append(self.same(laws, law)[:-1], False)))
            inside, outside = x[max(out - 1, 0)], x[out]
        return float(np.exp(inside))

    def crossings(self, flat: tuple[float, float] | None) -> tuple[list[float], list[float]]:
        """Solutions where the miss changes its sign; and where it jumps over 0."""
        before, change = map(np.asarray, changes(jnp.asarray(self.signs(self.miss))))
        found, jumps = [], []
        for at in np.flatnonzero(change):
            low, high = float(self.x[before[at]]), float(self.x[at])
            if flat is not None and low <= np.log(max(flat[0], 1e-300)) <= high:
                continue
            beta, miss = self.narrowed(low, high, int(change[at]))
            (found if miss <= self.rounding**0.6 else jumps).append(beta)
        return found, jumps

    def narrowed(self, low: float, high: float, to: int) -> tuple[float, float]:
        """The beta at which the sign turns to `to`, and the size of the miss there."""
        best = (np.inf, low)
        for _ in range(ROUNDS):
            x, laws, _ = self.block(low, high)
            miss = self.misses(laws)
            near = int(np.nanargmin(np.abs(miss)))
            best = min(best, (abs(float(miss[near])), float(x[near])))
            at = np.flatnonzero(miss * to >= 0)
            at = int(at[0]) if len(at) else len(x) - 1
            low, high = x[max(at - 1, 0)], x[at]
            if high - low <= 2 * np.spacing(abs(high)):
                break
        return float(np.exp(best[1])), best[0]

    def touches(self, flat: tuple[float, float] | None) -> list[float]:
        """Solutions around a turn that the scan's points do not reach across."""
        size = np.abs(self.miss)
        with np.errstate(invalid="ignore"):
            left, right = size[:-2] - size[1:-1], size[2:] - size[1:-1]
        near = (left > 0) & (right > 0) & (size[1:-1] <= np.maximum(left, right))
        sign = self.signs(self.miss)
        near &= (sign[:-2] == sign[2:]) & (sign[:-2] != 0)
        found = []
        for at in [] if flat is not None else np.flatnonzero(near) + 1:
            low, high, side = self.x[at - 1], self.x[at + 1], int(sign[at - 1])
            for _ in range(ROUNDS):
                x, laws, _ = self.block(low, high)
                miss = self.misses(laws)
                over = np.flatnonzero(miss * side < 0)
                if len(over) and np.abs(miss[over]).max() > self.rounding:
                    top = float(x[over[np.argmax(np.abs(miss[over]))]])
                    found += [self.narrowed(float(self.x[at - 1]), top, -side)[0]]
                    found += [self.narrowed(top, float(self.x[at + 1]), side)[0]]
                    break
                k = int(np.clip(np.nanargmin(np.abs(miss)), 1, len(x) - 2))
                if np.abs(miss[k]) <= self.rounding:
                    found.append(float(np.exp(x[k])))
                    break
                low, high = x[k - 1], x[k + 1]
        return found

    def extreme(self, side: int) -> float:
        """The least (-1) or largest (1) number, followed between the points of the scan."""
        numbers = side * self.numbers(self.laws)
        at = int(np.nanargmax(numbers))
        best = numbers[at]
        if at in (0, len(self.x) - 1):
            return float(side * best)
        low, high = self.x[at - 1], self.x[at + 1]
        for _ in range(ROUNDS // 2):  # a top is flat: half of the digits of its place are enough
            x, laws, _ = self.block(low, high)
            numbers = side * self.numbers(laws)
            at = int(np.nanargmax(numbers))
            low, high = x[max(at - 1, 0)], x[min(at + 1, len(x) - 1)]
            best = max(best, numbers[at])
        return float(side * best)

    def limits(self) -> tuple[np.ndarray, np.ndarray]:
        """The laws for beta to 0 and to inf; those of the ends of the scan if no more is known."""
        ends = [self.laws[0], self.laws[-1]]
        if not self.proportional:
            return ends[0], ends[1]
        reward = self.reward
        top = np.where(reward == self.best, 0.0, -np.inf)
        even = np.where(np.isneginf(reward), -np.inf, 0.0)
        for k, table, beside in ((0, top, 1), (1, even, -2)):
            row = jnp.asarray(table, self.bandit.reward.dtype)
            made = target(
                Bandit(row, self.bandit.log_ref, self.bandit.label), self.family(1.0)
            ).log_probs
            fixed = self.same(ends[k], self.laws[beside])
            if not fixed and np.all(~np.isnan(made)):
                ends[k] = np.asarray(made)
        return ends[0], ends[1]

    def reason(
        self,
        limits: tuple[np.ndarray, np.ndarray],
        least: float,
        most: float,
        jumps: list[float],
    ) -> tuple[str, bool]:
        """Why there is no solution, and whether one may lie beyond the scan."""
        what = f"{_WORDS[self.name]} of {self.number:.6g}"
        if jumps:
            return f"{what} is jumped over at beta = {jumps[0]:.6g}", False
        for law, place in zip(limits, ("0", "inf"), strict=True):
            (limit,) = self.signs(self.misses(law[None]))
            if limit == 0:
                return f"{what} is only the limit for beta to {place}", False
        if least < self.number < most:
            ends = f"{np.exp(self.x[0]):.1e} to {np.exp(self.x[-1]):.1e}"
            return f"{what} is nearer to a limit than any beta from {ends} comes", True
        text = f"{what} is out of reach: over all beta it is between {least:.6g} and {most:.6g}"
        return text, False
