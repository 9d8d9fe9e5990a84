"""Which target is an end? By its log-probabilities, and by how it answers to the problem.

At the optimum of E_p R - beta D the rewards less beta times the slope s_i of D are equal among
actions with mass, so that beta and the error of every log-probability follow from the end itself.
Families that share an end differ in its response: the derivative by the rewards and by the
log-reference, from the field on one side and from the slope on the other. n is of coordinates.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from regdist.regularizers.names import NAMED
from regdist.regularizers.regularizer import Regularizer, by_name
from regdist.runs.contraction import slope_errors
from regdist.runs.dynamics import Anchor, Dynamics

FAMILIES: dict[str, Callable[[Any], Regularizer]] = {
    family.label: by_name(spec) for spec, family in NAMED.items()
}
"""The targets that `identify` knows, each a family in beta."""

_DIRECTIONS = 3  # random ones of the rewards, and as many of the reference
_WIDTH = 1e-4  # of a difference, as a share of the reward gap, and in nats of the reference
# Of a response: what it may be off beside its own error, and the error at which it is undefined.
# Other families are off by 0.2 to 3 where beta is like the reward gap, by gap/beta where larger.
_ALIKE, _ROUGH = 1e-9, 1e-3
DEEP = -600.0
"""The log-probability that stands for p -> 0."""


class Fit(NamedTuple):
    """A regularizer beside an end.

    Attributes:
        name: the family, or the regularizer as it prints.
        beta: its coefficient; None for a fixed regularizer.
        regularizer: the member.
        error: the largest error of log p, in nats, to first order.
        response: "same", "moves" (the same but for a beta that moves with the problem), "differs"
            or "undefined".
        form: of a tree, which recursion it is the target of; "" of a bandit.
    """

    name: str
    beta: float | None
    regularizer: Regularizer
    error: float
    response: str = "undefined"
    form: str = ""


@dataclasses.dataclass(frozen=True)
class Response:
    """Derivatives of log p at an end, a row for each direction of the problem.

    Attributes:
        reward: the directions of the rewards, shape [D, n]; on a tree of leaves, [D, L].
        log_ref: those of the log-reference, shape [D, n].
        log_p: the derivatives, shape [D, n]; None where the field has none.
        error: of each row of them, shape [D].
    """

    reward: np.ndarray
    log_ref: np.ndarray
    log_p: np.ndarray | None
    error: np.ndarray


def fit_families(flow: Dynamics, log_p: np.ndarray, own: Sequence[float]) -> list[Fit]:
    """Every family at the beta that explains the end best, shape [n]; -inf off its face."""
    fits = []
    for name, make in FAMILIES.items():
        beta, error = _best_beta(flow, log_p, make)
        if beta is None:
            continue
        beta, error = preferred(
            own, beta, error, lambda x, make=make: _error_at(flow, log_p, make, x)
        )
        fits.append(Fit(name, beta, make(beta), error))
    return fits


def preferred(
    own: Sequence[float], beta: float, error: float, error_at: Callable[[float], float]
) -> tuple[float, float]:
    """The method's own coefficient, where it fits as well as rounding can tell; and its error."""
    for mine in map(float, own):
        at = error_at(mine)
        if at <= max(10 * error, 1e-9):
            beta, error = mine, at
    return beta, error


def fit_fixed(flow: Dynamics, log_p: np.ndarray, name: str, regularizer: Regularizer) -> Fit:
    """A regularizer with its coefficients."""
    error = _error_at(flow, log_p, lambda _: regularizer, 1.0)
    return Fit(name, None, regularizer, error)


def _slopes(
    flow: Dynamics, log_p: np.ndarray, regularizer: Regularizer
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The slope at each action, and its derivatives by log p and by the log-reference, [n]."""
    full = jnp.asarray(flow.place(np.where(np.isneginf(log_p), DEEP, log_p)))
    out = slope_parts(regularizer, full, flow.bandit.log_ref)
    slope, by_p, by_ref = (np.asarray(x)[flow.index] for x in out)
    return slope, by_p, by_ref


@jax.jit
def slope_parts(regularizer: Regularizer, log_p: Any, log_ref: Any) -> Any:
    """The slope at each action, and its derivatives by log p and by the log-reference, [K]."""
    ones = jnp.ones_like(log_p)
    slope, by_p = jax.jvp(lambda at: regularizer.slope(at, log_ref), (log_p,), (ones,))
    by_ref = jax.jvp(lambda q: regularizer.slope(log_p, q), (log_ref,), (ones,))[1]
    return slope, by_p, by_ref


def _best_beta(
    flow: Dynamics, log_p: np.ndarray, make: Callable[[Any], Regularizer]
) -> tuple[float | None, float]:
    slope, by_p, _ = _slopes(flow, log_p, make(1.0))
    on = np.flatnonzero(~np.isneginf(log_p))
    if len(on) < 2 or not np.all(np.isfinite(slope[on])) or np.any(by_p[on] <= 0):
        return None, np.inf
    weight = (by_p[on].min() / by_p[on]) ** 2
    s, r = (x[on] - weight @ x[on] / weight.sum() for x in (slope, flow.reward))
    with np.errstate(over="ignore", invalid="ignore"):
        size = weight @ s**2
        beta = float(weight @ (r * s) / size) if size > 0 else 0.0
    if not beta > 0:
        return None, np.inf
    return beta, _error_at(flow, log_p, make, beta)


def _error_at(
    flow: Dynamics,
    log_p: np.ndarray,
    make: Callable[[Any], Regularizer],
    beta: float,
) -> float:
    """The largest error of log p on the face, inf where the optimum has another one."""
    slope, by_p, _ = _slopes(flow, log_p, make(beta))
    on = ~np.isneginf(log_p)
    if not np.all(np.isfinite(slope[on])) or np.any(by_p[on] <= 0):
        return np.inf
    # What is left over, in nats, less its mean under p: the multiplier.
    left = (flow.reward - slope)[on] / by_p[on]
    p = np.exp(log_p[on])
    scale = 1 / by_p[on]
    error = np.abs(left - scale * (p @ left) / (p @ scale))
    # Less what rounding of rewards and slopes may do: where 1/slope is small it hides any name,
    # and the response beside it, whose error is known, decides.
    size = np.abs(flow.reward[on]).max() + np.abs(slope[on])
    error = np.maximum(error - 8 * np.finfo(float).eps * size * scale, 0)
    if not np.all(on):
        level = (p @ left) / (p @ scale)
        beyond = (flow.reward - slope)[~on] - level
        if np.any(beyond > 1e-9 * flow.unit):
            return np.inf
    return float(error.max())


def respond(flow: Dynamics, log_p: np.ndarray) -> Response:
    """How the end moves with the problem, by the implicit function theorem."""
    on = np.flatnonzero(~np.isneginf(log_p))
    size = len(log_p)
    by_reward, by_ref = flow.directions(np.random.default_rng(1), _DIRECTIONS)
    reward = np.concatenate([by_reward, np.zeros_like(by_reward)])
    log_ref = np.concatenate([np.zeros_like(by_ref), by_ref])
    others, anchor = flow.held(log_p)
    m = flow.slopes(log_p)
    errors_of_m = np.zeros_like(m)
    errors_of_m[np.ix_(on, on)] = slope_errors(flow, m[np.ix_(on, on)])
    errors_of_m = (errors_of_m + errors_of_m[anchor])[np.ix_(others, others)]
    m = (m - m[anchor])[np.ix_(others, others)]
    undefined = Response(reward, log_ref, None, np.zeros(len(reward)))
    if not np.all(np.isfinite(m)):
        return undefined
    scale = np.abs(m).max(axis=1)
    inverse = np.linalg.pinv(m / np.where(scale > 0, scale, 1)[:, None])
    inverse = inverse / np.where(scale > 0, scale, 1)
    p = np.exp(log_p)
    spread = np.abs(inverse) @ errors_of_m  # through the Jacobian's own error, to first order
    rows, errors = [], []
    for dr, dq in zip(reward, log_ref, strict=True):
        wide, narrow = _changes(flow, log_p, dr, dq, anchor)
        if not np.all(np.isfinite([wide[on], narrow[on]])):
            return undefined
        moved = np.zeros(size)
        moved[others] = -inverse @ narrow[others]
        error = 4 * np.abs(inverse @ (wide - narrow)[others]) + spread @ np.abs(moved[others])
        moved[on] -= np.broadcast_to(flow.mean(p, moved), moved.shape)[on]
        rows.append(moved)
        errors.append(float(2 * error.max(initial=0.0)))
        if errors[-1] > _ROUGH * max(float(np.abs(moved).max()), 1e-12):
            return undefined
    return Response(reward, log_ref, np.array(rows), np.array(errors))


def _changes(
    flow: Dynamics, log_p: np.ndarray, dr: np.ndarray, dq: np.ndarray, anchor: Anchor
) -> tuple[np.ndarray, np.ndarray]:
    """The derivative of the gains along a direction of the problem, by two widths, shape [n]."""

    def at(step: float) -> np.ndarray:
        moved = flow.with_problem(flow.reward + step * flow.unit * dr, flow.log_ref + step * dq)
        return moved.beside(log_p, anchor)

    unit = flow.unit if np.any(dr) else 1.0
    found = []
    for h in (_WIDTH, _WIDTH / 3):
        right, left = at(h), at(-h)
        found.append((at(-2 * h) - 8 * left + 8 * right - at(2 * h)) / (12 * h) / unit)
    return found[0], found[1]


def compare(flow: Dynamics, log_p: np.ndarray, fit: Fit, response: Response) -> Fit:
    """The fit with its response beside the end's."""
    if response.log_p is None or fit.regularizer.follows_policy():
        return fit
    slope, by_p, by_ref = _slopes(flow, log_p, fit.regularizer)
    on = np.flatnonzero(~np.isneginf(log_p))
    p, k = np.exp(log_p[on]), by_p[on]

    def solve(force: np.ndarray) -> np.ndarray:
        """k dl = force - dlambda with sum p dl = 0."""
        return (force - (p @ (force / k)) / (p @ (1 / k))) / k

    wants = [
        solve((dr - np.where(dq != 0, by_ref * dq, 0))[on])
        for dr, dq in zip(response.reward, response.log_ref, strict=True)
    ]
    moved, by_beta = response.log_p[:, on], solve(-slope[on])
    fit = told(fit, moved, response.error, wants, by_beta, p, len(on) - 1)
    # Equal rewards move together: of two levels there is one gap, which any family's beta explains.
    one_gap = len(np.unique(flow.reward[on])) <= 2
    return fit._replace(response="shared") if fit.response == "moves" and one_gap else fit


def told(
    fit: Fit,
    moved: np.ndarray,
    errors: np.ndarray,
    wants: Sequence[np.ndarray],
    by_beta: np.ndarray,
    weight: np.ndarray,
    odds: int,
) -> Fit:
    """A fit with its response told by how the end moves and how its target does.

    Args:
        fit: whose response is asked.
        moved: the derivative of log p of the end along each direction, shape [D, n].
        errors: of each row of it, shape [D].
        wants: those of the target, D of shape [n].
        by_beta: that of the target by its own beta, shape [n].
        weight: of each entry, shape [n].
        odds: how many numbers the end consists of.
    """
    same = moves = True
    for dl, error, want in zip(moved, errors, wants, strict=True):
        left = dl - want
        most = error + _ALIKE * np.abs(want).max()
        same &= bool(np.abs(left).max() <= most)
        total = weight @ by_beta**2
        share = (weight @ (left * by_beta)) / total if total > 0 else 0.0
        moves &= bool(np.abs(left - share * by_beta).max() <= 2 * most)
    if same:
        return fit._replace(response="same")
    # Two actions have one odds, which a beta that moves explains whatever it does.
    if moves and odds > 1 and fit.beta is not None:
        return fit._replace(response="moves")
    return fit._replace(response="differs")


def keeps_reference(flow: Dynamics, log_p: np.ndarray, response: Response) -> bool:
    """Whether the end moves as the reference does on its face, and not with the rewards."""
    if response.log_p is None:
        return False
    on = np.flatnonzero(~np.isneginf(log_p))
    p = np.exp(log_p)
    rows = zip(response.log_ref, response.log_p, response.error, strict=True)
    return all(
        np.abs((dl - (dq - flow.mean(p, dq)))[on]).max() <= error + _ALIKE * (1 + np.abs(dq).max())
        for dq, dl, error in rows
    )


def log_error(log_p: np.ndarray, log_q: np.ndarray, tolerance: float) -> float:
    """The largest |log p - log q| among actions that either holds with at least `tolerance`."""
    counted = (log_p >= np.log(tolerance)) | (log_q >= np.log(tolerance))
    a, b = log_p[counted], log_q[counted]
    return float(np.max(np.where(a == b, 0, np.abs(a - np.where(a == b, 0, b)))))
