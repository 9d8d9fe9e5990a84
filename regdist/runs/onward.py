"""Where a run goes from where it stands, and in how many steps. n is of coordinates."""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from regdist.problems.placed import steps_law
from regdist.runs.driver import run
from regdist.runs.ends import End
from regdist.runs.flow import Flow, duration, follow
from regdist.runs.policy_dynamics import PolicyDynamics

if TYPE_CHECKING:
    from regdist.runs.evidence import Case

_SAME = 1e-5  # nats: ends nearer than it are one
_LONG = 0.5  # step length times eigenvalue beyond which the flow does not speak for the steps
_FEW = 4  # steps: at a corner of several actions each may be passed in turn
_LOOKS = 64  # places on the way of a flow at which its eigenvalues are looked at
_MOST_STEPS = 5000  # of the map, where it is followed itself
_AGAIN = 128  # steps in which a run that does not settle is asked whether it repeats itself


@dataclasses.dataclass(frozen=True)
class Onward:
    """What becomes of a run.

    Attributes:
        word: of the verdict.
        text: how its sentence ends.
        steps: to the tolerance in total variation; None if they are not known.
    """

    word: str
    text: str
    steps: float | None = None


def goes_on(case: "Case", at: End | None, measured: float | None) -> Onward:
    """Where a run goes on its exact steps, from its last policy; `at` is the target, if it is one.

    Short constant steps follow the flow, whose end is proved; long ones are taken themselves. In a
    loop such a run is on its way if the flow from there comes to the target and it came nearer of
    late (`measured`). An optimizer with a memory takes other steps than any flow.
    """
    flow, z = case.flow, case.last
    if flow.signed:
        return Onward("undecided", "; the sign of a gradient has no flow to follow")
    if case.rate is not None and length(case, [z, case.goal]) > _LONG:
        return _by_steps(case)
    found = follow(flow, z)
    if found.reason or found.nudged:
        why = found.reason or "it stands on a rest point that repels"
        return Onward("undecided", f"; where it goes from there is not proved: {why}")
    if case.rate is None:
        return Onward("undecided", f"; {_flowing(case, at, found)}, which its optimizer need not")
    if found.cycle is not None:
        period = found.cycle.period
        return Onward("cycles", f"; from there it comes to a closed orbit of period {period:.3g}")
    assert found.end is not None
    if found.end.kind == "tie":
        return Onward("depends on start", f"; from there it comes to one of {found.end.reason}")
    if not _is_target(case, at, found):
        word, what = _named(case, found)
        return Onward(word, f"; from there it comes to {what}")
    if not case.own_samples:
        if measured is None or not measured > 0:
            return Onward("undecided", "; small steps would come to it, the run came no nearer")
        return Onward("plateau", f" and still approaching, at rate {measured:.3g} a step")
    way = [z]

    def arrived(y: np.ndarray) -> bool:
        way.append(y)
        return case.away(y) <= case.asked.tolerance

    time = duration(flow, z, arrived)
    if length(case, way[:: max(1, len(way) // _LOOKS)]) > _LONG:
        return _by_steps(case)
    steps = None if time is None else time / case.rate
    wait = "an unknown number of" if steps is None else f"about {steps:,.3g} more"
    return Onward("plateau", f" and still approaching: {wait} steps to go", steps)


def _flowing(case: "Case", at: End | None, found: Flow) -> str:
    """What short steps would do."""
    if found.cycle is not None:
        return "short steps would come to a closed orbit"
    if _is_target(case, at, found):
        return "short steps from there would come to it"
    return f"short steps from there would come to {_named(case, found)[1]}"


def _is_target(case: "Case", at: End | None, found: Flow) -> bool:
    here = case.flow.whole(found.z)
    return at is not None and _same(here, _law(case, at.z))


def retraced(case: "Case") -> bool:
    """Whether the run's last steps are those of its method, where they can be taken again."""
    step = np.asarray(case.asked.path.step)
    moved = np.flatnonzero(np.diff(step) > 0)
    if not len(moved) or not case.own_samples or case.rate is None or case.asked.expectation.draws:
        return True
    if case.asked.policy is not None:
        return True  # records are laws, and have no parameters
    i = int(moved[-1])
    count = int(step[i + 1] - step[i])
    z = case.flow.read(case.laws[i])
    on = np.isfinite(case.laws[i])
    alike = np.abs(case.flow.whole(z)[on] - case.laws[i][on])
    if count > _MOST_STEPS or np.max(alike, initial=0.0) > 1e-9:
        return True
    anchor = case.flow.anchor(z)
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
    laws = _more(case)
    if laws is None:
        return "diverges", "they become infinite"
    for period in range(1, _AGAIN // 4):
        late = laws[-2 * period - 1 :]
        if np.abs(late[period:] - late[:-period]).sum(axis=1).max() / 2 > 1e-9:
            continue
        wide = np.abs(late - late[-1]).sum(axis=1).max() / 2
        if wide > 1e-6:
            return "cycles", f"they repeat after {period}, {wide:.2g} apart in total variation"
        return "elsewhere", "they stand still"
    return None


def hops(case: "Case", alone: bool) -> bool:
    """Whether more steps stay about the target, no further from it than a few of them are long.

    Where rest points may adjoin it, and it is not alone, the run must have begun at it and have
    stayed so near: else one of them may be what it hops about.
    """
    laws, before = _more(case), np.exp(case.laws)
    if laws is None:
        return False
    way = np.abs(np.diff(laws, axis=0)).sum(axis=1).max()
    away = [np.abs(x - np.exp(case.aim)).sum(axis=1) for x in (before, laws)]
    if not alone and (away[0][0] / 2 > case.asked.tolerance or away[0].max() > _FEW * way):
        return False
    return bool(away[1].max() <= _FEW * way)


def _more(case: "Case") -> np.ndarray | None:
    """The policies of more steps of the run, from its last one; None if they are not finite."""
    method, bandit = case.wide
    init: Any = steps_law(bandit, jax.numpy.asarray(case.laws[-1]))
    if isinstance(case.flow, PolicyDynamics):
        init = case.flow.params(case.last)
    path = run(
        method,
        bandit,
        _AGAIN,
        case.asked.optimizer,
        case.asked.expectation,
        policy=case.asked.policy,
        init=init,
        record_every=1,
        loop=case.asked.loop,
    )
    return None if int(path.nonfinite) >= 0 else np.exp(np.asarray(path.log_probs))


def _law(case: "Case", z: np.ndarray) -> np.ndarray:
    return case.flow.whole(case.flow.law(z))


def length(case: "Case", places: Sequence[np.ndarray]) -> float:
    """The largest step times an eigenvalue of the flow at some logits [n]; in a loop, of a round.

    Where a norm, which is never less, is short enough, it is not looked at more closely.
    """
    assert case.rate is not None
    loop = case.asked.loop
    updates = 1 if loop is None else loop.epochs * loop.minibatches * (loop.staleness + 1)
    step, longest = abs(case.rate) * updates, 0.0
    for z in places:
        slopes = _slopes(case, z)
        if not np.all(np.isfinite(slopes)):
            return math.inf
        here = step * float(np.abs(slopes).sum(axis=1).max(initial=0.0))
        if here > max(longest, _LONG):
            here = step * float(np.abs(np.linalg.eigvals(slopes)).max(initial=0.0))
        longest = max(longest, here)
    return longest


def _slopes(case: "Case", z: np.ndarray) -> np.ndarray:
    """The Jacobian of the flow, with the likeliest action's logit held."""
    others, anchor = case.flow.held(z)
    return case.flow.rate_slopes(z, anchor)[np.ix_(others, others)]


def longest_step(case: "Case", at: End) -> float | None:
    """The step up to which all that is near a rest point is drawn in; None if it is not known.

    |1 + h lambda| < 1 for every eigenvalue lambda of the flow there: h < -2 Re lambda/|lambda|^2.
    """
    values = np.linalg.eigvals(_slopes(case, at.z))
    known = len(values) and np.all(values.real < -at.bound) and np.all(case.flow.copies == 1)
    return float(np.min(-2 * values.real / np.abs(values) ** 2)) if known else None


def _by_steps(case: "Case") -> Onward:
    """The steps themselves, as many as can be waited for."""
    long = "; its steps are too long for a flow to speak for them"
    if not case.own_samples:
        return Onward("undecided", long)
    assert case.rate is not None
    z, anchor = case.last, case.flow.anchor(case.last)
    for count in range(1, _MOST_STEPS + 1):
        z = z + case.rate * case.flow.rate(z, anchor)
        if not np.all(np.isfinite(z[~np.isneginf(z)])):
            break
        if case.away(z) <= case.asked.tolerance:
            said = f" and still approaching: {count:,} more steps bring it there"
            return Onward("plateau", said, float(count))
    return Onward("undecided", f"{long}, and {_MOST_STEPS:,} more do not bring it there")


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
