"""The judgment of a certificate: the verdict from its evidence. In float64.

K is the number of actions, n of coordinates.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from regdist.methods import Population
from regdist.methods.short import climbs_objective
from regdist.metrics import total_variation
from regdist.problems.placed import steps_law
from regdist.regularizers.divergence import TotalVariation
from regdist.runs.certificate import Certificate, Distance, Pace, Spread, Stability, Stationarity
from regdist.runs.dynamics import double_precision
from regdist.runs.ends import End
from regdist.runs.evidence import (
    NEGLIGIBLE,
    Asked,
    Case,
    case_of,
    distance_of,
    moments_of,
    pace_of,
    spread_of,
    stability_of,
    stationarity_of,
)
from regdist.runs.linear import idle_move, largest_move, plain_step
from regdist.runs.onward import goes_on, hops, length, longest_step, observed, retraced
from regdist.runs.policy_dynamics import PolicyDynamics

_SHORT = 0.1  # nats that a step moves a logit, at most, where it speaks for a flow at a corner


def certificate(asked: Asked) -> Certificate:
    """Everything together.

    Raises:
        ValueError: too many actions that do not move alike.
    """
    shared = asked.policy is not None
    table = np.asarray(
        ravel_pytree(asked.target.params)[0]
        if shared
        else steps_law(asked.bandit, asked.target.log_probs)
    )
    rate = plain_step(asked.optimizer, table.size)
    # Of these the run's own numbers are asked in the session's dtype.
    distance = distance_of(asked)
    moments = moments_of(asked)
    moved = idle_move(asked.optimizer, table)
    basins = np.array([total_variation(jnp.asarray(e), asked.target.log_probs) for e in asked.ends])
    with double_precision():
        case = case_of(asked, rate)
        idle = largest_move(moved)
        if isinstance(case.flow, PolicyDynamics):  # other directions move no law
            idle = float(np.abs(case.flow.basis.T @ moved).max())
        at, stationarity = stationarity_of(case, idle)
        stability = stability_of(case, at, stationarity.corner)
        pace = pace_of(case, stability, None if stationarity.corner else at)
        spread = None if moments is None else spread_of(case, *moments)
        verdict, sentence, steps = _verdict(
            case, at, stationarity, stability, distance, pace, spread
        )
    return Certificate(
        verdict=verdict,
        sentence=sentence,
        stationarity=stationarity,
        stability=stability,
        distance=distance,
        pace=pace,
        spread=spread,
        steps=int(asked.path.steps),
        nonfinite=int(asked.path.nonfinite),
        remaining_steps=steps,
        basins=basins,
    )


def _verdict(
    case: Case,
    at: End | None,
    stationarity: Stationarity,
    stability: Stability,
    distance: Distance,
    pace: Pace,
    spread: Spread | None,
) -> tuple[str, str, float | None]:
    """The verdict, its sentence, and the steps to go."""
    path, tolerance = case.asked.path, case.asked.tolerance
    after = f"after {int(path.steps):,} steps"
    where = f"at total variation {distance.total_variation:.2g} from the target"
    if int(path.nonfinite) >= 0:
        return (
            "diverges",
            f"not finite by step {int(path.nonfinite):,}; {after} it stood {where}",
            None,
        )
    if case.asked.method.controller is not None:
        return "undecided", f"a controller moves the method as it runs; {after} it is {where}", None
    wrong = _not_a_limit(case, at, stationarity, stability)
    # An action that the run has lost never comes back, and no flow over the others is made.
    lost = math.isinf(distance.kl_from_target)
    if wrong is not None:
        word, why = wrong
        plain = spread is None and case.own_samples and case.rate is not None and not lost
        if word == "elsewhere" and plain and not stationarity.corner:
            onward = goes_on(case, at, None)
            word = "vertex" if onward.word == "vertex" else word
            where += "" if onward.word == "undecided" else onward.text
        return word, f"{why}; {after} it is {where}", None
    if spread is not None:
        word, said = _noisy(case, spread, where)
        return word, said, None
    unstable = _step_too_long(case, at, stability)
    if unstable is not None:
        return unstable[0], f"{unstable[1]}; {after} it is {where}", None
    if distance.total_variation <= tolerance:
        said = "" if pace.measured is None else f", rate {pace.measured:.3g} a step"
        said += "" if pace.predicted is None else f" (predicted {pace.predicted:.3g})"
        return "converges", f"{after} it is {where}{said}", 0.0
    alone = stability.kind == "attracts" or _climbs(case)
    if stationarity.corner and hops(case, alone):
        said = ", hopping about a corner by the length of its steps"
        said += ": shorter ones come nearer" if alone else ", as ever since it began there"
        return "converges", f"{after} it is {where}{said}", 0.0
    if lost:
        what = "the run has lost an action that the target needs"
        return "elsewhere", f"{what}; {after} it is {where}", None
    if stationarity.corner or stability.kind == "undecided":
        word, said = _uphill(case, alone, stationarity.corner)
        return word, f"{after} it is {where}{said}", None
    onward = goes_on(case, at, pace.measured)
    return onward.word, f"{after} it is {where}{onward.text}", onward.steps


def _not_a_limit(
    case: Case, at: End | None, stationarity: Stationarity, stability: Stability
) -> tuple[str, str] | None:
    """Why the target is no limit of the run, or not proved to be one; None if it is one."""
    if stationarity.moved:
        return (
            "elsewhere",
            f"the optimizer moves a logit by {stationarity.moved:.2g} a step at this target, "
            "without any gradient",
        )
    if stationarity.at_rest is False:
        off = f"gains differ by {stationarity.gain:.2g}, rounding by {stationarity.error:.1g}"
        if 0 < stationarity.shift < np.inf:
            off += f"; it rests {stationarity.shift:.2g} nats beside it"
        return "elsewhere", f"the method's field does not vanish at this target ({off})"
    if stationarity.at_rest is None:
        why = "whether it rests at this target is lost in rounding" if at is None else at.reason
        return "undecided", why
    if stability.kind == "repels":
        slowest = 0.0 if at is None else at.slowest
        how = f"eigenvalue {slowest:.2g}" if slowest > 0 else stability.reason
        return "elsewhere", f"the target is a fixed point that repels ({how})"
    if stability.kind == "tie":
        said = f"the target is one of {stability.reason}: which is reached depends on the start"
        return "depends on start", said
    if stability.kind == "undecided" and not _climbs(case):
        return "undecided", f"whether the target attracts is not proved: {stability.reason}"
    if case.asked.path.log_probs.shape[0] > 1 and not retraced(case):
        return "undecided", "the run is not one of this method, optimizer and loop: replay differs"
    return None


def _step_too_long(case: Case, at: End | None, stability: Stability) -> tuple[str, str] | None:
    """Where the target attracts the flow and repels the run's own steps."""
    if stability.factor is None or stability.factor < 1 - 1e-12:  # a factor of -1, but for rounding
        return None
    why = f"steps of {case.rate:.3g} repel from the target, by {stability.factor:.3g} a step"
    limit = None if at is None or not case.own_samples else longest_step(case, at)
    if limit is not None:
        why += f": those below {limit:.2g} are drawn in"
    word, said = observed(case) or ("undecided", "what they do instead is not proved")
    return word, f"{why}; {said}"


def _climbs(case: Case) -> bool:
    """Whether the flow climbs one concave objective to the one optimum that it has."""
    regularizer = case.asked.method.regularizer
    return (
        _is_concave(case)
        and regularizer is not None
        and any(not isinstance(t.divergence, TotalVariation) for t in regularizer.terms)
    )


def _is_concave(case: Case) -> bool:
    """Whether the flow climbs an objective that is concave in p, of actions and not of steps."""
    exact = isinstance(case.asked.expectation, Population)
    return exact and case.flow.faces and climbs_objective(case.wide[0])


def _uphill(case: Case, alone: bool, corner: bool) -> tuple[str, str]:
    """A run that is not there yet, where no solver follows the flow to its end.

    It comes to a corner, or to the edge of its face, where no derivative proves anything; what does
    is that short steps climb an objective that is concave in p and has one optimum: it is strictly
    concave, or 0 is strictly inside the field's set there.
    """
    step = np.asarray(case.asked.path.step)
    moved = np.flatnonzero(np.diff(step) > 0)
    away = [np.abs(np.exp(x) - np.exp(case.aim)).sum() / 2 for x in case.laws]
    nearer = len(moved) > 0 and away[moved[-1] + 1] < away[moved[-1]]
    plain = case.own_samples and case.rate is not None and case.rate > 0
    if plain and nearer and _is_concave(case) and alone and _is_short(case, corner):
        return "plateau", " and still approaching: it climbs a concave objective to its one optimum"
    return "undecided", "; where it goes from there is not proved"


def _is_short(case: Case, corner: bool) -> bool:
    """Whether no step is so long that the objective might fall."""
    assert case.rate is not None
    if corner:
        return case.rate * case.flow.unit <= _SHORT
    goal = np.where(case.goal > NEGLIGIBLE, case.goal, -np.inf)
    return length(case, [case.last, goal]) <= 1  # a step of 2 over the curvature leads no higher


def _noisy(case: Case, spread: Spread, where: str) -> tuple[str, str]:
    """For runs that never stand still: is their mean where it should be?

    By Cauchy and Schwarz a policy whose log p is off by the spread, a root of a mean square under
    the target, is off by half of that in total variation, or less.
    """
    predicted = "" if spread.predicted is None else f" (predicted {spread.predicted:.2g})"
    about = (
        f"the second half of the run has its mean at total variation {spread.mean:.2g} from the "
        f"target and spreads by {spread.measured:.2g} nats{predicted}; at the end it is {where}"
    )
    if spread.mean <= max(case.asked.tolerance, (spread.predicted or 0.0) / 2):
        return "converges", about
    return "undecided", f"{about}: further than its noise explains"
