"""Flows that turn: spirals and cycles are told apart by their returns to a section. n is alive."""

import dataclasses
import math
import warnings
from typing import Any, NamedTuple

import numpy as np

from regdist.runs.dynamics import Dynamics
from regdist.runs.ends import End, judge, newton

_RTOL, _ATOL = 1e-11, 1e-13  # of the solver that returns are measured with
_MOST_STEPS = 6000  # of it, for one return
# Amplitudes at which a flow is asked whether it shrinks, as shares of where it is.
_INWARD = (0.6, 0.3, 0.1, 0.02)
_OUTWARD = tuple(1.4**k for k in range(1, 16))
_SHRINKS = 2e-9  # by which a return must be nearer: the solver keeps some 1e-10
_WIDTH = 1e-4  # of the differences that a multiplier is computed by, as a share of the cycle
_MULTIPLIER = 1e-5  # the error of a multiplier: width squared, and the solver's over the width
_ROUNDS, _TURNS = 6, 10  # searches for a cycle, and turns between them
_NEAR = 0.1  # of its size: how near a cycle must be to be the one that the flow comes to
_POINT = 1e-6  # nats: below it a cycle is a point


@dataclasses.dataclass(frozen=True)
class Cycle:
    """A closed orbit that attracts.

    Attributes:
        period: in units of time.
        amplitude: how far each probability moves round it, shape [n].
        multiplier: the largest |eigenvalue| of its return map, below 1.
    """

    period: float
    amplitude: np.ndarray
    multiplier: float


class Turned(NamedTuple):
    """What is known of a flow that turns, and where to go on."""

    z: np.ndarray
    end: End | None
    cycle: Cycle | None
    reason: str


class _Return(NamedTuple):
    y: np.ndarray
    time: float
    extent: float
    path: np.ndarray


def follow_turns(flow: Dynamics, z: np.ndarray) -> Turned:
    """What a flow that has not ended for long does: a slow spiral, a cycle, or neither is known."""
    turns = _Turns(flow, z)
    y = turns.start
    for _ in range(_ROUNDS):
        first = turns.again(y, turns.rate(y))
        if first is None:
            return Turned(turns.full(y), None, None, "it neither ends nor returns")
        end, guess = turns.about_center(y, first)
        if end is not None:
            return Turned(end.z, end, None, "")
        if guess is not None:
            y = guess
            first = turns.again(y, turns.rate(y)) or first
        found = turns.cycle(y, first)
        if found is not None:
            at, cycle = found
            return Turned(turns.full(at), None, cycle, "")
        for _ in range(_TURNS):
            later = turns.again(y, turns.rate(y))
            if later is None:
                return Turned(turns.full(y), None, None, "it turned, and went elsewhere")
            y = later.y
    return Turned(turns.full(y), None, None, "it turns, and neither limit is proved")


class _Turns:
    """Returns of a flow, in logits less those that are held, the likeliest at the start."""

    def __init__(self, flow: Dynamics, z: np.ndarray):
        self.flow = flow
        self.anchor = flow.anchor(z)
        self.others = np.arange(len(z)) != self.anchor
        self.start = (z - z[self.anchor])[self.others]

    def full(self, y: np.ndarray) -> np.ndarray:
        z = np.zeros(len(self.others))
        z[self.others] = y
        return z

    def rate(self, y: np.ndarray) -> np.ndarray:
        return self.flow.rate(self.full(y), self.anchor)[self.others]

    def again(self, y: np.ndarray, normal: np.ndarray, at: np.ndarray | None = None):
        """The next time that the flow from y crosses the plane through `at` along the normal."""
        import scipy.integrate
        import scipy.optimize

        through = y if at is None else at
        size = np.linalg.norm(normal)
        if not np.isfinite(size) or size == 0:
            return None
        normal = normal / size
        solver = scipy.integrate.LSODA(
            lambda _, x: self.rate(x), 0.0, y, np.inf, rtol=_RTOL, atol=_ATOL
        )
        path, below = [y], False
        for _ in range(_MOST_STEPS):
            before = solver.y.copy()
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a solver that fails says so in its status too
                solver.step()
            if solver.status == "failed" or not np.all(np.isfinite(solver.y)):
                return None
            path.append(solver.y.copy())
            side = normal @ (solver.y - through)
            if below and side >= 0 and normal @ (before - through) < 0:
                dense = solver.dense_output()
                time: Any = scipy.optimize.brentq(
                    lambda t, dense=dense: normal @ (dense(t) - through),
                    solver.t_old,
                    solver.t,
                    xtol=1e-13 * max(solver.t, 1e-300),
                )
                extent = np.max(np.abs(np.array(path) - y))
                return _Return(dense(time), time, float(extent), np.array(path))
            below = below or side < 0
        return None

    def about_center(self, y: np.ndarray, first: _Return) -> tuple[End | None, np.ndarray | None]:
        """The rest point inside if the flow comes to it, or a guess at the cycle that it comes to.

        Returns to the half plane through the rest point and y: nearer from all amplitudes down to
        the point, it is the end; nearer from one side and further from the other, a cycle lies
        between.
        """
        none = None, None
        center = newton(self.flow, self.full(first.path.mean(axis=0)), 2 * first.extent + 0.1)
        if center is None or np.any(np.isneginf(center)):
            return none
        middle = (center - center[self.anchor])[self.others]
        arm = y - middle
        here = self._ratio(middle, arm)
        if here is None or abs(here - 1) <= _SHRINKS:
            return none
        shares = _INWARD if here < 1 else _OUTWARD
        last = 1.0
        for share in shares:
            there = self._ratio(middle, share * arm)
            if there is None:
                return none
            if (there < 1) != (here < 1):
                return None, middle + self._between(middle, arm, last, share, here < 1) * arm
            last = share
        end = judge(self.flow, center)
        return (end, None) if here < 1 and end.kind == "attracts" else none

    def _between(
        self, middle: np.ndarray, arm: np.ndarray, a: float, b: float, shrinks: bool
    ) -> float:
        """The share between a, where returns shrink or not, and b where they do the opposite."""
        for _ in range(12):
            share = math.sqrt(a * b)
            ratio = self._ratio(middle, share * arm)
            if ratio is None:
                break
            a, b = (share, b) if (ratio < 1) == shrinks else (a, share)
        return math.sqrt(a * b)

    def _ratio(self, middle: np.ndarray, arm: np.ndarray) -> float | None:
        """How much further from the middle the flow returns to the plane of an arm."""
        at = middle + arm
        normal = self.rate(at)
        normal = normal - arm * (normal @ arm) / (arm @ arm)
        later = self.again(at, normal, middle)
        if later is None:
            return None
        return float(np.linalg.norm(later.y - middle) / np.linalg.norm(arm))

    def cycle(self, y: np.ndarray, first: _Return) -> tuple[np.ndarray, Cycle] | None:
        """The closed orbit beside y, if it attracts: Newton on the return to the plane at y."""
        normal = self.rate(y)
        normal = normal / np.linalg.norm(normal)
        plane = np.linalg.svd(normal[None])[2][1:]
        at, here = y, first
        for _ in range(12):
            slopes = self._slopes(at, normal, plane, here.extent)
            if slopes is None:
                return None
            miss = plane @ (here.y - at)
            if np.max(np.abs(miss), initial=0.0) <= 1e-9 * max(here.extent, 1e-3):
                break
            try:
                step = np.linalg.solve(slopes - np.eye(len(plane)), -miss)
            except np.linalg.LinAlgError:
                return None
            longest = np.max(np.abs(step))
            at = at + plane.T @ step * min(1.0, 0.3 * here.extent / longest)
            here = self.again(at, normal, at)
            if here is None or here.extent < _POINT:
                return None
        else:
            return None
        multiplier = float(np.abs(np.linalg.eigvals(slopes)).max(initial=0.0))
        if multiplier > 1 - _MULTIPLIER or np.max(np.abs(at - y)) > _NEAR * here.extent:
            return None
        laws = np.exp([self.flow.law(self.full(x)) for x in here.path])
        return at, Cycle(here.time, np.ptp(laws, axis=0), multiplier)

    def _slopes(
        self, at: np.ndarray, normal: np.ndarray, plane: np.ndarray, extent: float
    ) -> np.ndarray | None:
        columns = []
        for direction in plane:
            width = _WIDTH * extent
            ahead = self.again(at + width * direction, normal, at)
            behind = self.again(at - width * direction, normal, at)
            if ahead is None or behind is None:
                return None
            columns.append(plane @ (ahead.y - behind.y) / (2 * width))
        return np.stack(columns, axis=1)
