"""Where a run goes from where it stands, and in how many steps. n is of coordinates."""

import dataclasses
import math
from typing import TYPE_CHECKING

import jax
import numpy as np

from regdist.runs.driver import run
from regdist.runs.dynamics import log_normalized
from regdist.runs.ends import End
from regdist.runs.flow import Flow, duration, follow
from regdist.runs.linear import keeps_pace

if TYPE_CHECKING:
    from regdist.runs.evidence import Case

_SAME = 1e-5  # nats: ends nearer than it are one
_LONG = 0.5  # step length times eigenvalue beyond which the flow does not speak for the steps
_MOST_STEPS = 5000  # of the map, where it is followed itself
_AGAIN = 128  # steps in which a run that does not settle is asked whether it repeats itself


@dataclasses.dataclass(frozen=True)
class Onward:
    """What becomes of a run.

    Attributes:
        word: of the verdict.
        text: how its sentence ends.
        proved: whether its limit is.
        steps: to the tolerance in total variation; None if they are not known.
    """

    word: str
    text: str
    proved: bool = True
    steps: float | None = None


def goes_on(case: "Case", at: End | None, measured: float | None) -> Onward:
    """Where a run goes on its exact steps, from its last policy; `at` is the target, if it is one.

    Constant steps on their own samples that are short follow the flow, whose end is proved; long
    ones are taken themselves. In a loop, or by an optimizer with a memory, the flow is the limit of
    short steps: such a run is on its way if the flow from there comes to the target, if it came
    nearer of late (`measured`), and if its optimizer keeps its pace.
    """
    flow, z = case.flow, case.last
    if flow.signed:
        return Onward("undecided", "; the sign of a gradient has no flow to follow", False)
    plain = case.own_samples and case.rate is not None
    if plain and _length(case) > _LONG:
        return _by_steps(case)
    found = follow(flow, z)
    if found.reason or found.nudged:
        why = found.reason or "it stands on a rest point that repels"
        return Onward("undecided", f"; where it goes from there is not proved: {why}", False)
    if found.cycle is not None:
        period = found.cycle.period
        return Onward("cycles", f"; from there it comes to a closed orbit of period {period:.3g}")
    assert found.end is not None
    if found.end.kind == "tie":
        return Onward("depends on start", f"; from there it comes to one of {found.end.reason}")
    if at is None or not _same(flow.place(found.z), flow.place(log_normalized(at.z))):
        word, what = _named(case, found)
        if case.rate is None:
            return Onward("undecided", f"; small steps from there would come to {what}", False)
        return Onward(word, f"; from there it comes to {what}")
    if plain:
        time = duration(flow, z, lambda y: case.away(y) <= case.asked.tolerance)
        steps = None if time is None or not case.rate else time / case.rate
        wait = "an unknown number of" if steps is None else f"about {steps:,.3g} more"
        return Onward("plateau", f" and still approaching: {wait} steps to go", steps=steps)
    if measured is None or not measured > 0:
        return Onward("undecided", "; small steps would come to it, the run came no nearer", False)
    last = int(case.asked.path.steps)
    if case.rate is None and not keeps_pace(case.asked.optimizer, len(case.aim), max(last, 1)):
        return Onward(
            "undecided", "; small steps would come to it, those of its optimizer get shorter", False
        )
    return Onward("plateau", f" and still approaching, at rate {measured:.3g} a step")


def retraced(case: "Case") -> bool:
    """Whether the run's last steps are those of its method, where they can be taken again."""
    step = np.asarray(case.asked.path.step)
    moved = np.flatnonzero(np.diff(step) > 0)
    if not len(moved) or not case.own_samples or case.rate is None or case.asked.expectation.draws:
        return True
    i = int(moved[-1])
    count = int(step[i + 1] - step[i])
    z = case.flow.gather(case.laws[i])
    on = np.isfinite(case.laws[i])
    alike = np.abs(case.flow.place(z)[on] - case.laws[i][on])
    if count > _MOST_STEPS or np.max(alike, initial=0.0) > 1e-9:
        return True
    anchor = int(np.argmax(z))
    for _ in range(count):
        z = z + case.rate * case.flow.rate(z, anchor)
        if not np.all(np.isfinite(z[~np.isneginf(z)])):
            return True
    before, now, then = (np.exp(x) for x in (case.laws[i], case.laws[i + 1], _law(case, z)))
    rounding = 1e3 * case.eps * math.sqrt(count)  # of a step, and they gather like a walk
    off, way = np.abs(then - now).sum() / 2, np.abs(now - before).sum() / 2
    return bool(off <= 0.1 * way + rounding)


def observed(case: "Case") -> tuple[str, str] | None:
    """What steps that are too long really do: more are taken. None if they do not repeat."""
    method, bandit = case.wide
    path = run(
        method,
        bandit,
        _AGAIN,
        case.asked.optimizer,
        case.asked.expectation,
        init=jax.numpy.asarray(case.laws[-1]),
        record_every=1,
        loop=case.asked.loop,
    )
    if int(path.nonfinite) >= 0:
        return "diverges", "they become infinite"
    laws = np.exp(np.asarray(path.log_probs))
    for period in range(1, _AGAIN // 4):
        late = laws[-2 * period - 1 :]
        if np.abs(late[period:] - late[:-period]).sum(axis=1).max() / 2 > 1e-9:
            continue
        wide = np.abs(late - late[-1]).sum(axis=1).max() / 2
        if wide > 1e-6:
            return "cycles", f"they repeat after {period}, {wide:.2g} apart in total variation"
        return "elsewhere", "they stand still"
    return None


def _law(case: "Case", z: np.ndarray) -> np.ndarray:
    return case.flow.place(log_normalized(z))


def _length(case: "Case") -> float:
    """The step times the largest eigenvalue of the flow, where the run stands and at the target."""
    assert case.rate is not None
    lengths = []
    for z in (case.last, case.goal):
        on = np.flatnonzero(~np.isneginf(z))
        anchor = int(np.argmax(z))
        others = on[on != anchor]
        slopes = case.flow.rate_slopes(z, anchor)[np.ix_(others, others)]
        if not np.all(np.isfinite(slopes)):
            return math.inf
        lengths.append(np.abs(np.linalg.eigvals(slopes)).max(initial=0.0))
    return float(abs(case.rate) * max(lengths))


def _by_steps(case: "Case") -> Onward:
    """The steps themselves, as many as can be waited for."""
    assert case.rate is not None
    z, anchor = case.last, int(np.argmax(case.last))
    for count in range(1, _MOST_STEPS + 1):
        z = z + case.rate * case.flow.rate(z, anchor)
        if not np.all(np.isfinite(z[~np.isneginf(z)])):
            break
        if case.away(z) <= case.asked.tolerance:
            said = f" and still approaching: {count:,} more steps bring it there"
            return Onward("plateau", said, steps=float(count))
    return Onward(
        "undecided",
        f"; its steps are too long for a flow to speak for them, and {_MOST_STEPS:,} more do not "
        "bring it there",
        False,
    )


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two laws [K] are one, where they hold at least 1e-12."""
    seen = np.maximum(a, b) > math.log(1e-12)
    return bool(np.all(np.abs(a[seen] - b[seen]) < _SAME))


def _named(case: "Case", found: Flow) -> tuple[str, str]:
    log_p = _law(case, found.z)
    if np.sum(~np.isneginf(log_p)) == 1:
        return "vertex", f"action {int(np.argmax(log_p))} alone"
    p = np.exp(log_p)
    shown = " ".join(f"{x:.3g}" for x in p[:6]) + (" ..." if len(p) > 6 else "")
    away = np.abs(p - np.exp(case.aim)).sum() / 2
    return "elsewhere", f"[{shown}], total variation {away:.2g} from the target"
