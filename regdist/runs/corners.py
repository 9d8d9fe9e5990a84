"""Rest points where a field jumps, as at a corner of a penalty: the field is a set there.

Total variation and |log(p/q)| have one at p = q. Beside it an action gains `above` where its log p
is a little larger and `below` where it is smaller; at it, anything between. n is of coordinates.
"""

import numpy as np

from regdist.runs.contraction import contracts, slope_errors
from regdist.runs.dynamics import Dynamics, log_normalized
from regdist.runs.ends import DEPTHS, End

# A jump stays as the sides come nearer, where a slope shrinks with their distance; and it is no
# rounding, which is smaller than this share of the reward gap.
_STAYS, _JUMP = 0.5, 1e-6
EDGE = "edge"
"""The kind of an end at a corner where 0 is in the field's set, and no more."""


def corner(flow: Dynamics, z: np.ndarray, width: float) -> End | None:
    """What is proved of a policy at a corner, shape [n]; None if the field does not jump there.

    The kind is "attracts" if one level lies strictly inside the jumps, the gains of all other
    actions are that level, their linear flow contracts, and actions without mass gain less;
    "edge" if the level lies at the end of a jump, or may; "repels" if there is no level, or if
    actions without mass gain more; else "undecided". In the first case sum z^2, or sum p z^2 for
    the natural gradient, falls about it: at a corner an action is driven back from either side,
    and the others alone make the quadratic form.

    Args:
        flow: of the method.
        z: logits, -inf off the face.
        width: nats by which the sides are apart, beyond the rounding of z.
    """
    on = ~np.isneginf(z)
    with np.errstate(invalid="ignore"):
        far = np.subtract(*flow.sides(z, 10 * width)[::-1])
        above, below = flow.sides(z, width)
        near = below - above
    at = on & (np.abs(near) > _STAYS * np.abs(far)) & (np.abs(near) > _JUMP * flow.unit)
    if not np.any(at):
        return None
    smooth = on & ~at
    low, high, error = _level(flow, above, below, at, smooth)
    if low > high:
        return End(z, "repels", f"0 is not in the field's set there (off by {low - high:.2g})")
    if np.any(near[at] < 0):
        return End(z, "undecided", "the field jumps away from it")
    for depth in DEPTHS:
        over, under = flow.sides(np.where(on, log_normalized(z), -depth), width)
        least, most, _ = _level(flow, over, under, at, smooth)
        if np.any(over[~on] > most + error):
            return End(z, "repels", "actions without mass gain there")
        if np.any(over[~on] > least - error):
            return End(z, "undecided", "actions without mass may gain there")
    inner = (above + below)[smooth] / 2
    lowest, highest = (inner.min(), inner.max()) if len(inner) else (high - error, low + error)
    if not (np.max(above[at]) + error < lowest and highest + error < np.min(below[at])):
        return End(z, EDGE, "0 is at the edge of the field's set there: rest points may adjoin")
    index = np.flatnonzero(smooth)
    if len(index) > 1:
        m = flow.slopes(z)[np.ix_(index, index)]
        p = np.exp(log_normalized(z))[index]
        keep = np.flatnonzero(np.arange(len(p)) != np.argmax(p))
        if not contracts(p[:, None] * m, keep, p[:, None] * slope_errors(flow, m)):
            return End(z, "undecided", "the actions that are not at the corner need not contract")
    reason = f"a corner of {np.sum(at)} actions: 0 is inside the field's set there"
    return End(z, "attracts", reason)


def _level(
    flow: Dynamics, above: np.ndarray, below: np.ndarray, at: np.ndarray, smooth: np.ndarray
) -> tuple[float, float, float]:
    """Between what gains may be equal, and the error: empty if the first exceeds the second."""
    size = np.abs(above[at | smooth]).max() + flow.unit
    error = 64 * float(np.finfo(float).eps) * size + np.abs(above - below)[smooth].max(initial=0.0)
    low, high = np.max(np.minimum(above, below)[at]) - error, np.min(np.maximum(above, below)[at])
    if np.any(smooth):
        middle = (above + below)[smooth] / 2
        low, high = max(low, middle.max() - error), min(high + error, middle.min() + error)
    return float(low), float(high), float(error)
