"""What a certificate rests on: each of its records from what was asked.

All in float64. K is the number of actions, n of coordinates, N of records.
"""

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from regdist.methods import Expectation, Method, Sampled, update_moments
from regdist.methods.step import fitted, in_dtype, leaves_of
from regdist.metrics import kl, log_odds_error, total_variation
from regdist.numerics.logspace import expect
from regdist.numerics.spectrum import spectrum
from regdist.policies.policy import Policy
from regdist.problems.bandit import Bandit
from regdist.problems.placed import policy_on
from regdist.problems.tree import Tree
from regdist.runs.certificate import Distance, Pace, Spread, Stability, Stationarity
from regdist.runs.contraction import eigenvalues
from regdist.runs.corners import EDGE, corner
from regdist.runs.driver import Trajectory
from regdist.runs.dynamics import (
    TOGETHER,
    Anchor,
    Dynamics,
    alike,
    widened,
)
from regdist.runs.ends import End, judge, nearby, parting_rates
from regdist.runs.flow import jumps
from regdist.runs.linear import (
    decay_rate,
    stationary_spread,
    step_matrix,
)
from regdist.runs.loop import Loop
from regdist.runs.naming import log_error
from regdist.runs.policy_dynamics import PolicyDynamics
from regdist.runs.search import MOST
from regdist.runs.tree_dynamics import TreeDynamics, steps_of
from regdist.targets.solve import objective

if TYPE_CHECKING:
    import optax

# Columns of the Jacobian scale with the probabilities and are inverted: to 1e-200 both, and their
# products with rewards, stay well inside the range of float64.
NEGLIGIBLE = math.log(1e-200)
"""Log-probability below which an action is left out of a spectrum."""
# KL to the target, in nats, beyond which no rate is predicted. There predicted rates were within a
# factor of 2.2 of the run's on three small problems at beta 0.25 and 1, but up to 24 off at 0.1.
_NEAR = 0.1
_ULPS = 64  # of a log-probability: what a solver and a dtype leave of it
_SLOW = 1e-6  # from 1: eigenvalues of a step that only the flow's can tell from 1
_DENSE = 512  # coordinates up to which the step's own matrix is made


@dataclasses.dataclass(frozen=True)
class Asked:
    """What `certify` is asked: its arguments, checked, with the run made; `ends` as `basins`.

    `policy` is None for a table; else the target has parameters.
    """

    method: Method
    bandit: Bandit | Tree
    target: Any
    path: Trajectory
    optimizer: "optax.GradientTransformation"
    tolerance: float
    expectation: Expectation
    loop: Loop | None
    ends: np.ndarray
    policy: Policy | None = None


@dataclasses.dataclass(frozen=True)
class Case:
    """What is asked in float64, on the coordinates of a flow.

    Attributes:
        asked: as it came.
        flow: of the method in its loop.
        goal: log-probabilities of the target, shape [n]; -inf where it has none.
        last: of the run's end, shape [n].
        laws: all records, shape [N, K].
        aim: log-probabilities of the target, shape [K].
        eps: the rounding unit of the session's dtype.
        rate: the learning rate, or None.
        wide: method and problem.
    """

    asked: Asked
    flow: Dynamics
    goal: np.ndarray
    last: np.ndarray
    laws: np.ndarray
    aim: np.ndarray
    eps: float
    rate: float | None
    wide: tuple[Method, Bandit | Tree]

    @property
    def own_samples(self) -> bool:
        """Whether nothing surrounds the method that its flow does not have."""
        return self.asked.loop is None or self.asked.loop.is_bare

    def away(self, z: np.ndarray) -> float:
        """Total variation from logits [n] to the target."""
        law = self.flow.whole(self.flow.law(z))
        return float(np.abs(np.exp(law) - np.exp(self.aim)).sum() / 2)


def case_of(asked: Asked, rate: float | None) -> Case:
    """The question on the coordinates of its flow."""
    wide = widened(asked.method, asked.bandit)
    aim = np.asarray(asked.target.log_probs, np.float64)
    laws = np.asarray(asked.path.log_probs, np.float64)
    exact = asked.expectation.exact()
    fitted(exact, wide[0], wide[1])  # once more: what it is the mean of may not be exact itself
    flow = _flow(asked, wide, exact, aim, laws[-1])
    with np.errstate(invalid="ignore"):
        if isinstance(flow, PolicyDynamics):
            last = ravel_pytree(asked.path.params)[0]
            goal, end = np.zeros(len(flow.copies)), flow.gather(np.asarray(last, np.float64))
        else:
            goal, end = flow.law(flow.read(aim)), flow.law(flow.read(laws[-1]))
    eps = float(jnp.finfo(asked.target.log_probs.dtype).eps)
    return Case(asked, flow, goal, end, laws, aim, eps, rate, wide)


def _flow(
    asked: Asked, wide: tuple[Method, Any], exact: Expectation, aim: np.ndarray, last: np.ndarray
) -> Dynamics:
    """The flow over what target or run have."""
    method, problem = wide
    if asked.policy is not None:
        policy, origin = in_dtype((asked.policy, asked.target.params), np.float64)
        placed = policy_on(problem, policy)
        return PolicyDynamics(method, problem, exact, placed, origin, loop=asked.loop)
    if isinstance(problem, Tree):
        alive = steps_of(problem, aim) | steps_of(problem, last)
        return TreeDynamics(method, problem, exact, alive, loop=asked.loop)
    reward = np.asarray(problem.reward)
    alive = ~np.isneginf(reward) & ~(np.isneginf(last) & np.isneginf(aim))
    classes = None
    if len(aim) > TOGETHER:
        classes = alike(reward, np.asarray(problem.log_ref), aim, last)
    flow = Dynamics(method, problem, exact, alive, loop=asked.loop, classes=classes)
    if len(flow.index) > MOST:
        raise ValueError(
            f"certify needs a dense Jacobian of at most {MOST} numbers, and actions that move "
            "alike (of equal reward, reference and probability) share one; here are "
            f"{len(flow.index)} of {len(aim)} actions. Merge or drop some"
        )
    return flow


def stationarity_of(case: Case, idle: float) -> tuple[End | None, Stationarity]:
    """The rest point that the target is, if it is one, and what is known of that."""
    flow, goal = case.flow, case.goal
    on = goal > NEGLIGIBLE
    if not flow.faces and not np.all(on):
        why = f"it has no mass on some {flow.edge}, and no end where they die out is proved"
        unknown = Stationarity(None, np.nan, np.nan, np.inf, np.inf, False, 0.0)
        return End(goal, "undecided", why), unknown
    deep = np.where(on, goal, -np.inf)
    anchor = flow.anchor(goal)
    p = np.exp(goal)
    with np.errstate(invalid="ignore"):
        gains = np.where(on, flow.beside(deep, anchor), 0)
    apart = (gains - flow.mean(p, gains))[:, None]
    field = float(np.sum(np.abs(flow.weigh(goal, apart))))
    # On a tree a step is known from the sums of what is beyond it, by their own digits.
    size = goal if flow.faces else case.aim[np.isfinite(case.aim)].min()
    blur = _ULPS * case.eps * (1 + np.abs(np.where(on, size, 0)))
    m = flow.slopes(deep)
    error = np.where(on, flow.rounding(deep, anchor), 0) + np.abs(m - m[anchor]) @ blur
    k = int(np.argmax(np.where(on, np.abs(gains) - error, -np.inf)))
    at = flow.place(goal) if isinstance(flow, PolicyDynamics) else np.where(on, goal, 0)
    own = np.finfo(case.asked.target.log_probs.dtype).eps * np.abs(at).max()
    quiet = idle <= 1e3 * own * (1 if case.rate is None else abs(case.rate))
    size = max(1e-7, _ULPS * case.eps * float(np.abs(goal[on]).max()))
    end = None if flow.signed or not flow.faces else corner(flow, deep, size)
    seen = {
        "field_norm": field,
        "gain": float(np.abs(gains).max()),
        "error": float(error[k]),
        "moved": 0.0 if quiet else idle,
    }
    if end is not None:
        rests = {"attracts": True, EDGE: True, "repels": False}.get(end.kind)
        return end, Stationarity(rests, shift=0.0, corner=True, **seen)
    if not flow.faces and jumps(flow, deep):
        why = "the field jumps there, and a corner of steps has no proof"
        return End(goal, "undecided", why), Stationarity(None, shift=np.inf, corner=False, **seen)
    at = nearby(flow, goal) if len(goal) > 1 else goal
    shift = np.inf
    if at is not None:
        shift = log_error(flow.whole(flow.law(at)), case.aim, case.asked.tolerance)
    most = case.asked.tolerance + float(blur.max())
    if at is not None and shift <= most:
        return judge(flow, at), Stationarity(True, shift=shift, corner=False, **seen)
    rests = False if np.any(np.abs(gains) > error) else None
    return None, Stationarity(rests, shift=float(shift), corner=False, **seen)


def stability_of(case: Case, at: End | None, corner: bool) -> Stability:
    """Whether the target attracts, by the flow and by the run's own step."""
    flow = case.flow
    frozen = int(np.sum(np.isfinite(case.aim) & (case.aim <= NEGLIGIBLE)))
    if at is None or (at.kind == "undecided" and not flow.faces):
        why = "no rest point" if at is None else at.reason
        return Stability("undecided", why, np.zeros(0), 0.0, 0.0, frozen, None)
    z = at.z
    on = np.flatnonzero(~np.isneginf(z))
    if corner:
        return Stability(at.kind, at.reason, np.zeros(0), 0.0, 0.0, frozen, None)
    parts = [flow.motion(z, m)[np.ix_(on, on)] for m in flow.partial_slopes(z)]
    whole = parts[0] + parts[1] + parts[2]
    anchor = flow.anchor(z) if len(on) == len(z) else int(np.argmax(z[on]))
    slow, fast = spectrum(lambda v: whole @ np.ravel(v), len(on), anchor)
    apart = np.zeros(0)
    if np.any(flow.copies[on] > 1):
        one = np.ones(len(z)) if flow.natural else flow.share(z)
        rates = (one * parting_rates(flow, z)[0])[on]
        apart = rates[flow.copies[on] > 1]
        every = np.concatenate([slow, apart])
        slow = every[np.argsort(np.abs(every))][:6]
        fast = max([fast, *apart.tolist()], key=abs)
    factor = None
    if case.rate is not None:
        factor = _factor(case, parts, anchor, np.append(slow, fast), apart)
    return Stability(at.kind, at.reason, slow, fast, at.bound, frozen, factor)


def _factor(
    case: Case, parts: list[np.ndarray], anchor: Anchor, known: np.ndarray, apart: np.ndarray
) -> float:
    """The largest modulus of an eigenvalue of the step, per step, but for those at 1."""
    assert case.rate is not None
    n = len(parts[0])
    if case.own_samples and n > _DENSE:
        moduli = np.abs(1 + case.rate * known)
        return float(moduli[np.abs(moduli - 1) > _SLOW].max(initial=0.0))
    keep = np.arange(n) != anchor
    reduced = [(m - m[anchor])[np.ix_(keep, keep)] for m in parts]
    loop = case.asked.loop
    matrix, steps = step_matrix((reduced[0], reduced[1], reduced[2]), case.rate, loop)
    values = [np.zeros(0)]
    if np.any(keep):
        error = (_ULPS * np.finfo(float).eps + case.flow.slope_error) * np.abs(matrix)
        found, bounds = eigenvalues(matrix, error)
        clear = np.abs(found - 1) > np.maximum(_SLOW, bounds)
        values.append((np.abs(found) ** (1 / steps))[clear])
    if case.own_samples:
        factors = np.abs(1 + case.rate * apart)
        values.append(factors[np.abs(factors - 1) > _SLOW])
    return float(np.concatenate(values).max(initial=0.0))


def distance_of(asked: Asked) -> Distance:
    """How far the run's end is from the target, by the measures that people use."""
    last, goal = asked.path.log_probs[-1], asked.target.log_probs
    gap, identity = _objective_gap(asked, last)
    return Distance(
        kl_to_target=float(kl(last, goal)),
        kl_from_target=float(kl(goal, last)),
        total_variation=float(total_variation(last, goal)),
        log_odds_error=float(log_odds_error(last, goal)),
        objective_gap=gap,
        identity_error=identity,
    )


def _objective_gap(asked: Asked, last: Array) -> tuple[float | None, float | None]:
    """J(target) - J(p), and how far it is from beta KL(p || target) where they are equal."""
    regularizer, goal = asked.method.regularizer, asked.target.log_probs
    bandit = leaves_of(asked.bandit)
    if regularizer is None or not isinstance(bandit, Bandit):
        return None, None
    value = float(objective(goal, bandit, regularizer))
    gap = value - float(objective(last, bandit, regularizer))
    if not regularizer.merges():
        return gap, None
    beta = float(regularizer.reduce(bandit.log_ref)[0].beta)
    exact = beta * float(kl(last, goal))
    parts = abs(value) + exact + float(expect(last, jnp.abs(bandit.reward)))
    return gap, abs(gap - exact) / parts if math.isfinite(exact) and parts else 0.0


def pace_of(case: Case, stability: Stability, at: End | None) -> Pace:
    """Measured and predicted decay per step over the last two records above rounding."""
    asymptotic = None
    if case.rate is not None and len(stability.eigenvalues) and case.own_samples:
        factors = np.abs(1 + case.rate * np.append(stability.eigenvalues, stability.fastest))
        asymptotic = decay_rate(float(factors.max()))
    step, aim = np.asarray(case.asked.path.step), case.aim
    kept = aim > NEGLIGIBLE
    distance = np.asarray(_distances(jnp.asarray(case.laws), jnp.asarray(aim)))
    # 50 ulps of log p: KL is about half the square of their errors.
    floor = (50 * case.eps * float(np.abs(aim[kept]).max())) ** 2
    clear = np.flatnonzero(np.isfinite(distance) & (distance > floor))
    pairs = [i for i in clear[:-1] if i + 1 in clear and step[i + 1] > step[i]]
    if not pairs:
        return Pace(case.rate, asymptotic, None, None)
    i = pairs[-1]
    measured = math.log(distance[i] / distance[i + 1]) / 2 / float(step[i + 1] - step[i])
    predicted = None
    linear = at is not None and not (at.kind == "undecided" and not case.flow.faces)
    linear = linear and not isinstance(case.flow, PolicyDynamics)  # records have no coordinates
    if case.rate is not None and case.own_samples and distance[i] <= _NEAR and linear:
        predicted = _predicted(case, int(i))
    return Pace(case.rate, asymptotic, measured, predicted)


@jax.jit
def _distances(log_probs: Array, log_target: Array) -> Array:
    return jax.vmap(lambda p: kl(p, log_target))(log_probs)


def _predicted(case: Case, i: int) -> float | None:
    """The decay that the linearized step gives for the displacements of two records."""
    flow, goal = case.flow, case.goal
    p, weight = np.exp(goal), flow.mass(goal)
    on = goal > NEGLIGIBLE
    z = np.where(on, goal, -np.inf)
    motion = flow.motion(z, flow.slopes(z))
    assert case.rate is not None
    both = []
    for k in (i, i + 1):
        law = flow.read(case.laws[k])
        seen = np.isfinite(case.laws[k])
        if np.any(np.abs(flow.whole(law)[seen] - case.laws[k][seen]) > 1e-6):
            return None  # actions that are alike at both ends were not, on the way
        v = np.where(on, law - np.where(on, goal, 0), 0)
        if not np.all(np.isfinite(v)):
            return None
        v = v - flow.mean(p, v)
        if not np.any(v):
            return None
        moved = v + case.rate * motion @ v
        moved = moved - flow.mean(p, moved)
        both.append(decay_rate(math.sqrt(weight @ moved**2 / (weight @ v**2))))
    return sum(both) / 2


def moments_of(asked: Asked) -> tuple[np.ndarray, np.ndarray] | None:
    """Covariance of an update at the target [K, K], and the policies of the run's later half."""
    if not isinstance(asked.expectation, Sampled):
        return None
    moments = update_moments(asked.method, asked.target.log_probs, asked.bandit, asked.expectation)
    late = np.asarray(asked.path.log_probs)[len(asked.path.step) // 2 :]
    return np.asarray(moments.covariance, np.float64), late.astype(np.float64)


def spread_of(case: Case, covariance: np.ndarray, late: np.ndarray) -> Spread:
    """What the noise of an update is, and the spread it leads to and led to."""
    kept = np.flatnonzero(case.aim > NEGLIGIBLE)
    weight = np.exp(case.aim[kept])
    measured = math.sqrt(weight @ np.var(late[:, kept], axis=0))
    predicted = None
    if case.rate is not None:
        ways = np.eye(len(case.aim))[kept]
        at = np.where(case.aim > NEGLIGIBLE, case.aim, -np.inf)
        slopes = np.sum(case.flow.derivatives(at, ways), axis=0)[:, kept].T
        moved = slopes - weight @ slopes
        motion = moved if case.flow.natural else weight[:, None] * moved
        center = np.eye(len(kept)) - np.outer(np.ones(len(kept)), weight)  # logits to log p
        noise = covariance[np.ix_(kept, kept)]
        predicted = stationary_spread(case.rate, motion, noise, center, weight)
    mean = float(np.abs(np.exp(late).mean(axis=0) - np.exp(case.aim)).sum() / 2)
    return Spread(math.sqrt(max(np.trace(covariance), 0.0)), predicted, measured, mean)
