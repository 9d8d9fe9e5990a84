"""The flow dz/dt = field(z), the limit of small steps, followed to a proved end. n is alive."""

import dataclasses
from collections.abc import Callable

import numpy as np

from regdist.runs.cycles import Cycle, follow_turns
from regdist.runs.dynamics import Anchor, Dynamics
from regdist.runs.ends import REACH, End, judge, nearby, newton

# A saddle at p is left after about 1/(p gain) units of time, the inverse of the largest reward
# gap: this is as long as float64 can wait. The solver's steps grow with it.
_LONGEST = 1e290
_MOST_STEPS = 3000  # of the solver: some 20 a nat on the slowest ways
_LOOK = 8  # steps between looks for an end
_WINDOW = 320  # steps over which the flow is asked whether it turns
_TURNING = 3.0  # ways of a logit over its range in that window: there and back, and there again
_HERE = 1e-9  # nats: how near a policy stands on a rest point
_WALK = 1000  # steps of half a unit of time along a corner, before they shrink
_MOST_TURNED = 3  # searches for a cycle in vain
_FEEBLE = 1e-2  # of the speed of a spiral: the rate below which the stiff solver is not believed
_NUDGE = 1e-3  # nats: what moves a start off a rest point that repels
_CREEP = 1e-4  # nats: steps that move logits less are short because the field jumps, if it does
# Nats of a log-probability: a flow that is there, 1e-17, with no rest point within reach is taken
# to go to the edge.
_DEEP = 40.0


@dataclasses.dataclass(frozen=True)
class Flow:
    """Where a flow went.

    Attributes:
        z: logits at its end, shape [n].
        end: the end, with what is proved of it; None if there is none.
        cycle: the cycle it goes round, if it does.
        finite: whether it stayed finite.
        nudged: whether it began at a rest point that repels, and was moved off it.
        reason: why nothing is proved; empty if something is.
        norm: the largest |rate of a logit| at z.
    """

    z: np.ndarray
    end: End | None
    cycle: Cycle | None
    finite: bool
    nudged: bool
    reason: str
    norm: float


def follow(flow: Dynamics, start: np.ndarray, side: int = 1) -> Flow:
    """The flow from the logits `start`, shape [n], until its end is proved or steps run out.

    A start on a rest point that repels is moved off it, to one side or (-1) to the other.
    """
    z = np.asarray(start, np.float64)
    z = z - z[flow.anchor(z)]
    spent, turns, nudged, seen = 0, 0, False, None
    path: list[np.ndarray] = []
    while spent < _MOST_STEPS:
        spent, z, status, end = _integrate(flow, z, spent, path if turns < _MOST_TURNED else None)
        if end is not None and end.kind in ("attracts", "tie"):
            if (
                -end.slowest < _FEEBLE * end.speed
                and _apart(flow, np.asarray(start), end.z) > _HERE
            ):
                # A stiff solver damps what turns slowly inward, and outward too: ask its returns.
                turned = follow_turns(flow, np.asarray(start, np.float64))
                end, cycle = turned.end, turned.cycle
                if end is None and cycle is None:
                    return _flow(flow, z, nudged=nudged, reason=turned.reason)
                return _flow(flow, turned.z, end=end, cycle=cycle, nudged=nudged)
            return _flow(flow, z, end=end, nudged=nudged)
        if status == "broken":
            return _flow(flow, z, finite=False, nudged=nudged, reason="the field is not finite")
        if status == "stands" and end is not None and end.kind == "repels" and not nudged:
            nudged = True
            z = z + side * _NUDGE * np.random.default_rng(0).normal(size=z.shape)
            if not end.speed:
                continue
            status = "turning"  # no stiff solver leaves a slow spiral
        if status == "again":
            continue
        if status == "edge":
            why = f"it goes to the edge, where {flow.edge} die out, and no end there is proved"
            return _flow(flow, z, nudged=nudged, reason=why)
        if status == "turning":
            turned = follow_turns(flow, z)
            if turned.cycle is not None:
                return _flow(flow, turned.z, cycle=turned.cycle, nudged=nudged)
            if turned.end is not None:
                return _flow(flow, turned.z, end=turned.end, nudged=nudged)
            z, seen, turns = turned.z, turned.reason, turns + 1
            continue
        if end is not None:
            return _flow(flow, z, end=end, nudged=nudged, reason=end.reason)
        break
    if jumps(flow, z):
        seen = "the field jumps where the flow comes to rest, and a corner has no derivative"
        z = _slide(flow, z)
    return _flow(flow, z, nudged=nudged, reason=seen or "the flow does not come to a proved end")


def _integrate(
    flow: Dynamics, z: np.ndarray, spent: int, path: list[np.ndarray] | None
) -> tuple[int, np.ndarray, str, End | None]:
    """Steps of the stiff solver, with the likeliest action's logit held, until something is known.

    `path` collects where it was, less the first logit; None if it is not asked whether it turns.
    The status is "end", "stands" (on a rest point, whatever it is), "again" (another action leads,
    or time is to be counted anew), "turning", "edge" (of a tree), "broken" or "stuck".
    """
    import scipy.integrate

    anchor = flow.anchor(z)
    others = np.arange(len(z)) != anchor
    if not np.any(others):
        return spent, z, "end", judge(flow, z)

    full, f, jacobian = _beside(flow, anchor, others)
    y = (z - z[anchor])[others]
    if not np.all(np.isfinite(f(0.0, y))):
        return spent, z, "broken", None
    end = _ended(flow, full(y))
    if end is not None and (status := _status(flow, full(y), end)) != "passing":
        return spent, full(y), status, end
    solver = scipy.integrate.BDF(
        f, 0.0, y, _LONGEST / flow.unit, rtol=1e-6, atol=1e-8, jac=jacobian
    )
    last = None
    while spent < _MOST_STEPS:
        spent += 1
        try:
            with np.errstate(all="ignore"):
                solver.step()
            if not np.all(np.isfinite(solver.y)):
                raise ValueError
        except np.linalg.LinAlgError:  # of the solver, which says nothing of the field
            return spent, full(y), "stuck", last
        except ValueError:  # it refuses a field or a Jacobian that is not finite
            end = _ended(flow, full(y))
            return spent, full(y), "broken" if end is None else "end", end
        y = solver.y
        if path is not None:
            path.append(full(y) - full(y)[0])
        if spent % _LOOK and solver.status == "running":
            continue
        if solver.h_abs * np.max(np.abs(f(0.0, y))) < _CREEP and jumps(flow, full(y)):
            return spent, full(y), "stuck", last
        end = _ended(flow, full(y))
        if end is not None:
            status = _status(flow, full(y), end)
            if status != "passing":
                return spent, full(y), status, end
            last = end
        if solver.status != "running":
            return spent, full(y), "stuck", last
        deep = not flow.faces and flow.depth(full(y)) > _DEEP
        if deep and newton(flow, full(y), REACH) is None:
            return spent, full(y), "edge", last
        # The time since a saddle was left is lost in the time that was spent there.
        if np.max(y) > flow.ahead or solver.h_abs < 1e-6 * solver.t:
            return spent, full(y), "again", None
        if path and len(path) > _WINDOW and _turns(np.array(path[-_WINDOW:])):
            path.clear()
            return spent, full(y), "turning", last
    return spent, full(y), "stuck", last


def duration(
    flow: Dynamics, start: np.ndarray, arrived: Callable[[np.ndarray], bool]
) -> float | None:
    """The time from logits [n] to the first policy that has arrived; None if it fails."""
    import scipy.integrate

    z, spent, total = start - start[flow.anchor(start)], 0, 0.0
    while spent < _MOST_STEPS:
        if arrived(z):
            return total
        anchor = flow.anchor(z)
        others = np.arange(len(z)) != anchor
        full, f, jacobian = _beside(flow, anchor, others)
        y = (z - z[anchor])[others]
        solver = scipy.integrate.BDF(
            f, 0.0, y, _LONGEST / flow.unit, rtol=1e-6, atol=1e-8, jac=jacobian
        )
        while spent < _MOST_STEPS:
            spent += 1
            try:
                with np.errstate(all="ignore"):
                    solver.step()
            except (ValueError, np.linalg.LinAlgError):
                return None
            if solver.status == "failed" or not np.all(np.isfinite(solver.y)):
                return None
            if arrived(full(solver.y)):
                dense, early, late = solver.dense_output(), solver.t_old, solver.t
                for _ in range(40):
                    middle = (early + late) / 2
                    if arrived(full(dense(middle))):
                        late = middle
                    else:
                        early = middle
                return total + late
            if np.max(solver.y) > flow.ahead or solver.h_abs < 1e-6 * solver.t:
                break
        z, total = full(solver.y), total + solver.t
    return None


def _beside(
    flow: Dynamics, anchor: Anchor, others: np.ndarray
) -> tuple[Callable, Callable, Callable]:
    """All logits from those that are not held, and what the stiff solver asks of them."""

    def full(y: np.ndarray) -> np.ndarray:
        at = np.zeros(len(others))
        at[others] = y
        return at

    def f(_: float, y: np.ndarray) -> np.ndarray:
        return flow.rate(full(y), anchor)[others]

    def jacobian(_: float, y: np.ndarray) -> np.ndarray:
        return flow.rate_slopes(full(y), anchor)[np.ix_(others, others)]

    return full, f, jacobian


def _turns(path: np.ndarray) -> bool:
    """Whether a logit went there and back several times."""
    extent = np.ptp(path, axis=0)
    way = np.abs(np.diff(path, axis=0)).sum(axis=0)
    # 1e-9: the solver's own tolerance
    return bool(np.any((extent > 1e-9) & (way > _TURNING * extent)))


def _status(flow: Dynamics, z: np.ndarray, end: End) -> str:
    """Whether a policy beside a rest point ends there, stands on it, or only passes by."""
    if end.kind in ("attracts", "tie"):
        return "end"
    return "stands" if _apart(flow, z, end.z) <= _HERE else "passing"


def _apart(flow: Dynamics, z: np.ndarray, at: np.ndarray) -> float:
    """The largest difference of log-odds to the likeliest action; inf where one is on a face."""
    if np.any(np.isneginf(at)):
        return np.inf
    anchor = flow.anchor(at)
    return float(np.max(np.abs((z - z[anchor]) - (at - at[anchor]))))


def _slide(flow: Dynamics, z: np.ndarray) -> np.ndarray:
    """Where steps that shrink come to along a corner: a place to look at, and no proof."""
    anchor = flow.anchor(z)
    step = 0.5 / flow.unit
    for i in range(2 * _WALK):
        z = z + step * flow.rate(z, anchor)
        step *= 1 if i < _WALK else 1e-4 ** (1 / _WALK)  # then down by ten thousand
    return z


def jumps(flow: Dynamics, z: np.ndarray) -> bool:
    """Whether the gains differ on two sides of a policy, as at a corner of a penalty."""
    anchor = flow.anchor(z)
    random = np.random.default_rng(0)
    # 1e-7: further than a solver that is stuck at a corner, nearer than anything smooth moves
    sides = [flow.beside(z + 1e-7 * random.normal(size=z.shape), anchor) for _ in range(8)]
    return bool(np.ptp(sides, axis=0).max() > 1e-3 * flow.unit)


def _ended(flow: Dynamics, z: np.ndarray) -> End | None:
    at = nearby(flow, z)
    return None if at is None else judge(flow, at)


def _flow(
    flow: Dynamics,
    z: np.ndarray,
    *,
    end: End | None = None,
    cycle: Cycle | None = None,
    finite: bool = True,
    nudged: bool = False,
    reason: str = "",
) -> Flow:
    if end is not None:
        z = end.z
    on = ~np.isneginf(z)
    rate = flow.rate(z, flow.anchor(z))[on] if finite else np.array([np.inf])
    norm = float(np.max(np.abs(rate), initial=0.0))
    return Flow(flow.law(z), end, cycle, finite, nudged, reason, norm)
