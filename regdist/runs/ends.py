"""Is a policy an end of a flow? Newton, the spectrum, and the gains of actions without mass.

n is the number of coordinates. A face is the set of policies over some of them; an end lies
inside its face, where all gains are equal and the linear flow contracts, and draws in what is
beside the face if every action off it has a gain below their mean as its probability goes to 0.
"""

import dataclasses
import itertools
from typing import Any

import numpy as np

from regdist.runs.contraction import (
    contracting_form,
    contracts,
    eigenvalues,
    slope_errors,
)
from regdist.runs.dynamics import Anchor, Dynamics

# Where "p -> 0" is looked at: nats below the others. e^-600 is 1e-261, near the end of float64.
DEPTHS = (50.0, 150.0, 600.0)
_MOST_RAYS = 8  # ways to 0 in which one action is far ahead of the others
_STEPS, _PATIENCE = 100, 10  # of Newton: at most, and in a row that bring gains no nearer to 0
_DIGITS = 32 * float(np.finfo(float).eps)  # of a logit: a smaller step is rounding
_LONGEST = 10.0  # nats that a step of Newton may move a logit
_WALK = 0.3  # nats along a line of rest points at which it is asked again
# Nats: a rest point this near is taken for the one that the flow comes to; one within reach if the
# flow comes nearer to it at all these shares of the way.
_BESIDE, REACH = 0.02, 1e3
_SHARES = (1.0, 0.8, 0.6, 0.4, 0.2, 0.1, 0.05)
_BETWEEN = np.linspace(1, 0, 64, endpoint=False)  # of the way between two policies of two actions
_MIXED = 4  # ways to share mass among equals that are tried
_SURE = 1e-10  # nats: a rest point whose place is known to it is not asked about its neighborhood


@dataclasses.dataclass(frozen=True)
class End:
    """A rest point, and what is proved of it.

    Attributes:
        z: its logits, shape [n]; -inf off its face.
        kind: "attracts"; "repels", it is left; "tie", one of a face or manifold of rest points
            that attracts; "undecided".
        reason: what decided, in words.
        dimension: of the manifold of rest points; 0 for one alone.
        slowest: the largest real part of an eigenvalue across it, per unit of time; 0 at a vertex.
        bound: the error of `slowest`.
        entering: the largest gain of an action off the face, at the mildest; -inf if none.
        leaving: actions (of the n) whose gain there is above the mean.
        speed: the size of the imaginary part of the slowest eigenvalue: it is spiraled about.
        drifts: whether a flow that comes to a manifold of rest points may go on along it.
    """

    z: np.ndarray
    kind: str
    reason: str
    dimension: int = 0
    slowest: float = 0.0
    bound: float = 0.0
    entering: float = -np.inf
    leaving: tuple[int, ...] = ()
    speed: float = 0.0
    drifts: bool = False


def newton(flow: Dynamics, z: np.ndarray, reach: float) -> np.ndarray | None:
    """A rest point on the face of z within `reach` nats of it; None if none is found."""
    start = z = z - z[flow.anchor(z)]
    others, anchor = flow.held(z)
    if not len(others):
        return z
    last = least = np.inf
    waited = 0
    for _ in range(_STEPS):
        d = flow.beside(z, anchor)
        if not np.all(np.isfinite(d[others])):
            return None
        size = np.max(np.abs(d[others]))
        waited, least = (0, size) if size < 0.9 * least else (waited + 1, least)
        if waited > _PATIENCE:
            return None
        tiny = flow.rounding(z, anchor)[others]
        if np.all(np.abs(d[others]) <= tiny):
            return z
        m = flow.slopes(z)
        m = (m - m[anchor])[np.ix_(others, others)]
        if not np.all(np.isfinite(m)):
            return None
        # Rows of unit size: a gain may be as large as 1/p. The shift along a manifold is left out.
        size = np.abs(m).max(axis=1)
        size = np.where(size > 0, size, 1)
        step = np.linalg.lstsq(m / size[:, None], -d[others] / size, rcond=1e-11)[0]
        longest = np.max(np.abs(step))
        z = z.copy()
        z[others] += step * min(1.0, _LONGEST / longest if longest > 0 else 1.0)
        if np.max(np.abs(z[others] - start[others])) > reach or np.min(z[others]) < -DEPTHS[-1]:
            return None  # deeper than that products of probabilities underflow, and gains with them
        left = np.abs(d[others] + m @ step)  # what no step removes
        if longest <= _DIGITS * (1 + np.max(np.abs(z[others]))):
            return z if np.all(left <= 0.1 * np.abs(d[others]) + tiny) else None
        if longest >= last and longest < 1e-6:
            # Steps that no longer shrink are rounding, amplified by the condition of m.
            d = flow.beside(z, anchor)
            near = np.abs(d[others]) <= 1e3 * flow.rounding(z, anchor)[others]
            return z if np.all(near) else None
        last = longest
    return None


def judge(flow: Dynamics, z: np.ndarray) -> End:
    """What can be proved of a rest point z, shape [n], -inf off its face."""
    z = z - z[flow.anchor(z)]
    inside = _inside(flow, z)
    if inside.kind == "tie" and not flow.natural and np.any(np.isneginf(z)):
        # What is still lost off the face moves each logit in proportion to its p.
        inside = dataclasses.replace(inside, drifts=True)
    if inside.kind != "repels" and np.any(flow.copies[~np.isneginf(z)] > 1):
        inside = _apart(flow, inside)
    if inside.kind == "repels" or np.all(~np.isneginf(z)):
        return inside
    worst, leaving, unsure = _off_face(flow, z)
    if leaving:
        return dataclasses.replace(
            inside,
            kind="repels",
            entering=worst,
            leaving=leaving,
            reason="actions without mass gain there",
        )
    if unsure:
        return dataclasses.replace(
            inside,
            kind="undecided",
            entering=worst,
            reason=f"the gain of action {flow.index[unsure[0]]} as its probability goes to 0 is "
            f"{worst:.2g}: no sign is proved",
        )
    return dataclasses.replace(inside, entering=worst)


def _inside(flow: Dynamics, z: np.ndarray) -> End:
    """The flow within the face."""
    others, anchor = flow.held(z)
    if not len(others):
        return End(z, "attracts", "a single action")
    if flow.signed:
        return End(z, "undecided", "the sign of the gradient jumps at every rest point")
    m = flow.slopes(z)
    if not np.all(np.isfinite(m)):
        return End(z, "undecided", "the field has no derivative there")
    motion = flow.paced(z, m)
    beside, reduced = ((x - x[anchor])[np.ix_(others, others)] for x in (m, motion))
    error = slope_errors(flow, m)
    moved = flow.paced(z, error, most=True)
    values, bounds = eigenvalues(reduced, (moved + moved[anchor])[np.ix_(others, others)])
    top = int(np.argmax(values.real))
    slowest, bound = float(values[top].real), float(bounds[top])
    speed = float(abs(values[top].imag))
    falls = contracts(flow.weigh(z, m), others, flow.weigh(z, error, most=True))
    if (falls or np.all(values.real + bounds < 0)) and not _holds(flow, z, beside):
        why = "its place is known less well than its slopes are the same beside it"
        return End(z, "undecided", why, 0, slowest, bound, speed=speed)
    if falls:
        return End(
            z, "attracts", "a quadratic form falls", 0, min(slowest, 0.0), bound, speed=speed
        )
    if np.any(values.real - bounds > 0):
        return End(z, "repels", "an eigenvalue is positive", 0, slowest, bound, speed=speed)
    if np.all(values.real + bounds < 0):
        return End(z, "attracts", "all eigenvalues are negative", 0, slowest, bound, speed=speed)
    return _manifold(flow, z, beside, values, bounds)


def _holds(flow: Dynamics, z: np.ndarray, m: np.ndarray) -> bool:
    """Whether slopes stay much the same as far as rounding may have moved the rest point.

    Where two rest points meet, one of which attracts, a gain is 0 to all digits over a stretch on
    which its slope has either sign. There no slope at one place proves anything: by Kantorovich's
    theorem a rest point is where Newton says if slopes change by less than half over twice the way.
    `m` holds the slopes of gains less the likeliest action's, of and by the others with mass.
    """
    others, anchor = flow.held(z)
    left = np.abs(flow.beside(z, anchor)) + flow.rounding(z, anchor)
    try:
        inverse = np.linalg.inv(m)
    except np.linalg.LinAlgError:
        return False
    far = np.abs(inverse) @ left[others]
    way = inverse @ (np.sign(inverse[int(np.argmax(far))]) * left[others])
    if not np.max(far) > _SURE:
        return True
    for side in (-2.0, 2.0):
        at = z.copy()
        at[others] += side * way
        beside = flow.slopes(at)
        beside = (beside - beside[anchor])[np.ix_(others, others)]
        change = np.linalg.norm(inverse @ (beside - m), 2)
        if not change < 0.5:
            return False
    return True


def parting_rates(flow: Dynamics, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """How gains part actions that share a coordinate: a rate, its error, and whether one is enough.

    A field that does not care which of them is which takes a difference of two to a multiple of
    itself: an eigenvalue that all differences in a class share. 0 for actions on their own.
    """
    full = flow.place(z)
    shared = np.flatnonzero(~np.isneginf(z) & (flow.copies > 1))
    random = np.random.default_rng(0)
    pairs, mixed = np.zeros(full.shape), np.zeros(full.shape)
    for k in shared:
        members = np.flatnonzero((flow.member == k) & flow.alive)
        pairs[members[:2]] = 1, -1
        noise = random.normal(size=len(members))
        mixed[members] = noise - noise.mean()
    moved = np.sum(flow.derivatives(full, np.stack([pairs, mixed])), axis=0)
    rates = np.zeros(len(z))
    rates[shared] = moved[0][flow.index[shared]]
    size = np.abs(flow.slopes(z)).max(axis=0) + np.abs(rates)
    error = flow.slope_error * size
    living = flow.alive & np.isfinite(full)
    off = np.abs(moved[1] - np.where(living, rates[flow.member] * mixed, 0))[living]
    fits = off <= 1e3 * error[flow.member][living] + 1e-9 * size.max()
    return rates, error, bool(np.all(fits))


def _apart(flow: Dynamics, end: End) -> End:
    """What becomes of an end where actions that move alike part, which one number hides."""
    z = end.z
    shared = np.flatnonzero(~np.isneginf(z) & (flow.copies > 1))
    rates, error, fits = parting_rates(flow, z)
    if not fits:
        return dataclasses.replace(
            end, kind="undecided", reason="actions of equal reward and reference do not move alike"
        )
    one = np.ones(len(z)) if flow.natural else flow.share(z)
    slowest = float(np.max((one * rates)[shared]))
    bound = float(np.max((one * error)[shared]))
    slow = {"slowest": max(end.slowest, slowest), "bound": max(end.bound, bound)}
    if np.any(rates[shared] > error[shared]):
        return dataclasses.replace(end, kind="repels", reason="actions that are alike part", **slow)
    flat = shared[np.abs(rates[shared]) <= error[shared]]
    if not len(flat):
        return dataclasses.replace(end, **slow)
    if end.kind in ("attracts", "tie") and _stays(flow, flow.place(z), flat):
        count = int(np.sum(flow.copies[flat] - 1)) + end.dimension
        return dataclasses.replace(end, kind="tie", reason=_rest_points(count), dimension=count)
    return dataclasses.replace(
        end, kind="undecided", reason="whether actions that are alike part is lost in rounding"
    )


def _stays(flow: Dynamics, full: np.ndarray, flat: np.ndarray) -> bool:
    """Whether mass may move between actions that are alike, and all is still at rest."""
    anchor = int(np.argmax(full))
    random = np.random.default_rng(1)
    for _ in range(_MIXED):
        at = full.copy()
        for k in flat:
            members = np.flatnonzero((flow.member == k) & flow.alive)
            noise = _WALK * random.normal(size=len(members))
            at[members] += noise - np.log(np.mean(np.exp(noise)))
        on = ~np.isneginf(full)
        before, after = flow.gains(full)[on], flow.gains(at)[on]
        size = np.abs(before).max() + np.abs(after).max() + flow.unit
        left = (after - flow.gains(at)[anchor]) - (before - flow.gains(full)[anchor])
        if np.max(np.abs(left)) > 64 * np.finfo(float).eps * size:
            return False
    return True


def _rest_points(count: int) -> str:
    return f"rest points of {count} {'dimension' if count == 1 else 'dimensions'}"


def _manifold(flow: Dynamics, z: np.ndarray, m: np.ndarray, values: Any, bounds: np.ndarray) -> End:
    """Eigenvalues that may be 0: a manifold of rest points if walks along it stay at rest.

    `m` is as in `_holds`.
    """
    flat = np.abs(values) <= np.maximum(bounds, 1e-9 * np.abs(values).max())
    count = int(flat.sum())
    unsure = ~flat & (values.real + bounds >= 0)
    top = int(np.argmax(values.real))
    slowest, bound = float(values[top].real), float(bounds[top])
    undecided = End(
        z,
        "undecided",
        f"an eigenvalue {values[top]:.2g} is 0 within its error {bound:.2g}",
        0,
        slowest,
        bound,
    )
    if not count or np.any(unsure):
        return undecided
    others, _ = flow.held(z)
    size = np.abs(m).max(axis=1)
    scaled = m / np.where(size > 1e-9 * max(size.max(), 1e-300), size, 1)[:, None]
    kernel = np.linalg.svd(scaled)[2][-count:]
    random = np.random.default_rng(0)
    mixed = random.normal(size=(2, count)) @ kernel
    for along, sign in itertools.product([*kernel, *mixed], (1, -1)):
        at = z.copy()
        at[others] += sign * _WALK * along / np.max(np.abs(along))
        if newton(flow, at, _WALK / 2) is None:
            return undecided
    rest = values[~flat]
    slowest = float(rest.real.max()) if rest.size else -np.inf
    return End(z, "tie", _rest_points(count), count, slowest, bound)


def _off_face(flow: Dynamics, z: np.ndarray) -> tuple[float, tuple[int, ...], tuple[int, ...]]:
    """The largest gain off a face, who gains for certain, and whose sign is not known.

    Along several ways to 0: all alike, at three depths, and one far ahead of the others.
    """
    off = np.flatnonzero(np.isneginf(z))
    anchor = int(np.argmax(z))
    base = flow.law(z)
    ways = []
    for depth in DEPTHS:
        at = base.copy()
        at[off] = -depth
        ways.append(at)
    ahead = off
    if len(off) > _MOST_RAYS:
        ahead = np.random.default_rng(0).choice(off, _MOST_RAYS, replace=False)
    for k in ahead if len(off) > 1 else ():
        at = base.copy()
        at[off] = -DEPTHS[-1]
        at[k] = -DEPTHS[1]
        ways.append(at)
    gains, errors = [], []
    for at in ways:
        gains.append(flow.beside(at, anchor)[off])
        errors.append(flow.rounding(at, anchor)[off])
    gains, errors = np.array(gains), np.array(errors)
    up, down = np.all(gains > errors, axis=0), np.all(gains < -errors, axis=0)
    worst = np.where(np.isnan(gains), np.inf, gains).max()
    leaving = tuple(int(k) for k in off[up])
    return float(worst), leaving, tuple(int(k) for k in off[~up & ~down])


def nearby(flow: Dynamics, z: np.ndarray) -> np.ndarray | None:
    """The rest point that a policy is about to reach, or None: see `judge` for what it is.

    Actions that hold little and lose on all the way to 0 are taken to be off its face.
    """
    anchor = flow.anchor(z)
    z = z - z[anchor]
    log_p = flow.law(z)
    # 1e-3: from there the gains are looked at down to 0; above it the face is not yet clear.
    off = (log_p < np.log(1e-3)) & ~np.isneginf(z) & flow.faces
    for depth in (0.0, 20.0, *DEPTHS[1:]):
        if not np.any(off):
            break
        while np.any(off):
            at = log_p.copy()
            at[off] = np.maximum(log_p[off] - depth, np.minimum(log_p[off], -DEPTHS[-1]))
            d = flow.beside(at, anchor)
            falls = d < -flow.rounding(at, anchor)
            still = off & falls
            if np.array_equal(still, off):
                break
            off = still
    face = np.where(off, -np.inf, z)
    at = newton(flow, face, REACH)
    if at is None:
        return None
    on = ~np.isneginf(at)
    away = np.where(on, z - z[anchor] - np.where(on, at - at[anchor], 0), 0)
    if np.max(np.abs(away)) <= _BESIDE or _approaches(flow, at, away, anchor):
        return at
    return None


def _approaches(flow: Dynamics, at: np.ndarray, away: np.ndarray, anchor: Anchor) -> bool:
    """Whether the flow must come to a rest point, by what is seen on the way to it.

    For two actions: it comes nearer everywhere between. For more it is asked whether the method
    climbs an objective that is concave in p along the way: the form below is that of its second
    derivatives, symmetric (so that nothing turns) and definite (so that nothing else attracts).
    """
    others, _ = flow.held(at)
    if not flow.faces:
        return False  # of steps the form is that of no objective, but at rest
    if len(others) == 1 and not np.any(np.isneginf(at)):
        way = others[0]
        ways = [away[way] * flow.rate(at + s * away, anchor)[way] for s in _BETWEEN]
        return all(way < 0 for way in ways)
    for share in _SHARES:
        z = at + share * away
        m = flow.slopes(z)
        # (diag p - p p') m = p_i (m_ij - sum_k p_k m_kj)
        moved = m - flow.mean(np.exp(flow.law(z)), m)
        form = contracting_form(flow.weigh(z, moved), others)
        if np.any(np.isnan(form)) or np.abs(form - form.T).max() > 1e-6:
            return False
        if np.linalg.eigvalsh((form + form.T) / 2)[0] <= 0:
            return False
    return True
