"""Which distribution does a method go to? Runs its exact field to the end and names what it finds.

Works on concrete values, outside jit. K is the number of actions.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from regdist.methods import Expectation, Method
from regdist.methods.expectation import prepared
from regdist.methods.field import check_problem
from regdist.metrics import total_variation
from regdist.numerics.records import Table, as_array, positive
from regdist.policies.table import log_softmax
from regdist.problems.bandit import Bandit
from regdist.regularizers.names import NAMED
from regdist.regularizers.regularizer import AlphaDivergence, Regularizer, by_name
from regdist.runs.flow import Flow, field_at, flow_to_end
from regdist.runs.starts import starts as usual_starts
from regdist.targets.selection import limit_laws
from regdist.targets.solve import target

FAMILIES: dict[str, Callable[[Any], Regularizer]] = {
    family.label: by_name(spec) for spec, family in NAMED.items()
}
"""The targets that `identify` knows, each a family in beta."""

# Betas of a grid, and grids. The first spans eight decades around the spread of the rewards, each
# other two cells of the one before: the last has betas apart by 2e-12 of themselves.
_GRID, _ZOOMS = 128, 7
_VERTEX = 1e-6  # what the other actions may hold at a vertex: the default tolerance
_SLID = 1e-3  # total variation, where steps had to shrink: the last are 5e-5 of a unit, not 0


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A known target and how far the limit is from it.

    Attributes:
        name: the family, or a law without a coefficient.
        beta: the coefficient that fits best; None without one.
        distance: total variation to the limit.
    """

    name: str
    beta: float | None
    distance: float

    def __str__(self) -> str:
        about = "" if self.beta is None else f" at beta {self.beta:.4g}"
        return f"{self.name}{about} (total variation {self.distance:.2g})"


@dataclasses.dataclass(frozen=True)
class Identification:
    """What `identify` found.

    Attributes:
        regularizer: the one whose target the limit is; None if none fits, or it has none.
        distance: total variation from the limit to the nearest candidate.
        log_probs: the limit from the reference policy, in nats, shape [K].
        verdict: "converges", "elsewhere" (to one law that is no known target), "depends on start",
            "vertex", "cycles" or "diverges".
        sentence: the verdict in words, with its numbers.
        candidates: all known targets, the nearest first.
        starts: log-probabilities of the starts, shape [S, K]; the first is the reference.
        ends: where each start ended, shape [S, K].
        field_norm: largest |field| at each end, shape [S].
    """

    regularizer: Regularizer | None
    distance: float
    log_probs: np.ndarray
    verdict: str
    sentence: str
    candidates: tuple[Candidate, ...]
    starts: np.ndarray
    ends: np.ndarray
    field_norm: np.ndarray

    @property
    def probs(self) -> np.ndarray:
        """The limit from the reference policy, shape [K]."""
        return np.exp(self.log_probs)

    def __str__(self) -> str:
        return f"{self.verdict}: {self.sentence}"


def identify(
    method: Method,
    bandit: Bandit,
    *,
    expectation: Expectation | None = None,
    starts: Table | None = None,
    tolerance: float = 1e-6,
) -> Identification:
    """Where a method goes, and which known target that is.

    Follows the flow dz/dt = field(z), the limit of small steps, with a stiff solver from several
    starts until it stands still, then compares the end with every target in `FAMILIES` at its
    best beta, and with laws that have none: the reference, the reference on the best actions, the
    best action that was likeliest. What small steps cannot show (noise, clipping, step sizes) is
    for `run` and `certify`.

    Args:
        method: from `rd.methods`.
        bandit: K actions, up to a few hundred.
        expectation: `Population()`, the default, or `Group(size)`.
        starts: logits, shape [S, K]; default the reference, the uniform law on its support and six
            random ones.
        tolerance: total variation below which a target fits.

    Returns:
        An `Identification`. Several families may have the end as their target: with two reward
        levels reverse and forward KL differ in their beta alone. Then the field beside the end
        decides, where their slopes differ; `candidates` has all of them.

    Raises:
        TypeError: an argument of another kind, such as a preset that was not called.
        ValueError: a `Sampled` expectation, or starts of another shape.

    Examples:
        >>> b = rd.bandit([1.0, 0.0, 0.5], [0.2, 0.5, 0.3])
        >>> found = identify(rd.methods.dr_grpo(beta=0.3, estimator="k3"), b)
        >>> print(found)
        converges: from all 8 starts to forward KL at beta 0.3 (total variation ...)
        >>> found.regularizer
        ForwardKL(0.3)
        >>> print(identify(rd.methods.dr_grpo(beta=0.3, estimator="k2"), b).regularizer)
        ReverseKL(0.3)
    """
    check_problem(method, bandit, None)
    expectation = prepared(expectation, method, bandit)
    if expectation.draws:
        raise ValueError(
            f"identify follows the expected update, which {expectation!r} only draws: use "
            f"rd.{expectation.exact()!r} or rd.Population()"
        )
    positive("tolerance", tolerance, "It is a total variation")
    logits = usual_starts(bandit, 6) if starts is None else np.asarray(as_array("starts", starts))
    if logits.ndim != 2 or logits.shape[1] != bandit.num_actions or not len(logits):
        raise ValueError(f"starts must have shape [S, {bandit.num_actions}]; got {logits.shape}")
    if np.any(np.isnan(logits) | np.isposinf(logits)):
        raise ValueError(f"starts must be logits, finite or -inf; got {logits}")
    flows = [flow_to_end(method, bandit, expectation, z) for z in logits]
    dtype = bandit.reward.dtype
    ends = np.stack([np.asarray(log_softmax(jnp.asarray(f.logits, dtype))) for f in flows])
    norms = np.array([f.norm for f in flows])
    digits = float(jnp.finfo(dtype).eps) ** 0.5
    # Distances below it are alike: those of a polished end, in float32 the root of its epsilon.
    rounding = max(1e-7, digits) if all(f.settled for f in flows) else _SLID
    tolerance = max(tolerance, digits)
    candidates = _candidates(bandit, ends[0], method, expectation, rounding)
    verdict, sentence = _verdict(bandit, flows, logits, ends, candidates, tolerance)
    best = candidates[0]
    fits = verdict == "converges" and best.beta is not None and best.name in FAMILIES
    return Identification(
        regularizer=FAMILIES[best.name](best.beta) if fits else None,
        distance=best.distance,
        log_probs=ends[0],
        verdict=verdict,
        sentence=sentence,
        candidates=tuple(candidates),
        starts=np.asarray(jax.vmap(log_softmax)(jnp.asarray(logits, dtype))),
        ends=ends,
        field_norm=norms,
    )


def _candidates(
    bandit: Bandit, end: np.ndarray, method: Method, expectation: Expectation, rounding: float
) -> list[Candidate]:
    log_end = jnp.asarray(end)
    reward, log_q = np.asarray(bandit.reward), np.asarray(bandit.log_ref)
    inside = ~np.isneginf(log_q) & ~np.isneginf(reward)
    spread = float(np.ptp(reward[inside])) or 1.0
    candidates = []
    own = _own_betas(method)
    for name in FAMILIES:
        options = [_nearest_member(name, bandit, log_end, spread)]
        # the method's own coefficient, if it fits as well as the best, which rounding limits
        distances = _distances_to(name, bandit, log_end, own) if own.size else own
        options += [
            (float(d), float(b))
            for d, b in zip(distances, own, strict=True)
            if d <= max(10 * options[0][0], 1e-8)
        ]
        d, beta = options[-1]
        candidates.append(Candidate(name, beta, d))
    candidates += [
        Candidate(name, None, float(total_variation(log_end, log_p)))
        for name, log_p in limit_laws(bandit).items()
    ]

    def rank(c: Candidate) -> tuple:
        known = c.beta is not None and any(np.isclose(c.beta, b, rtol=1e-4) for b in own)
        near = max(c.distance, rounding)
        if near > rounding:
            return (near, 0, 0.0)
        if c.beta is None:
            return (near, 1, 0.0)
        misfit = _misfit(method, bandit, expectation, end, FAMILIES[c.name](c.beta))
        # 1e-6: what rounding, and an end that is not exact, leave of the right family's misfit
        return (near, 0 if known and misfit < 1e-6 else 2, max(misfit, 1e-6))

    return sorted(candidates, key=rank)


def _misfit(
    method: Method,
    bandit: Bandit,
    expectation: Expectation,
    end: np.ndarray,
    regularizer: Regularizer,
) -> float:
    """How badly a function of the reward and this regularizer's slope explain the field near by.

    The end itself may be the target of several families; beside it their slopes differ. Relative
    to the size of the slope there; 1 where there is nothing to tell them apart by.
    """
    inside = np.flatnonzero(~np.isneginf(end) & (end > -30))  # e^-30 moves nothing visibly
    _, level = np.unique(np.asarray(bandit.reward)[inside], return_inverse=True)
    constant = (level.ravel()[:, None] == np.arange(level.max() + 1)).astype(float)
    if len(inside) < constant.shape[1] + 2:
        return 1.0
    natural = dataclasses.replace(method, geometry="natural")
    random, worst = np.random.default_rng(0), 0.0
    for _ in range(3):  # policies near by: logits 0.4 away, where slopes differ visibly
        z = np.where(np.isneginf(end), -np.inf, end + random.normal(scale=0.4, size=len(end)))
        log_p = log_softmax(jnp.asarray(z, bandit.reward.dtype))
        gain = np.asarray(field_at(natural, log_p, bandit, expectation))[inside]
        slope = np.asarray(regularizer.slope(log_p, bandit.log_ref))[inside]
        columns = np.column_stack([constant, slope])
        left = gain - columns @ np.linalg.lstsq(columns, gain, rcond=None)[0]
        alone = gain - constant @ np.linalg.lstsq(constant, gain, rcond=None)[0]
        size = float(np.abs(alone).max())
        worst = max(worst, float(np.abs(left).max()) / size if size > 0 else 1.0)
    return worst


def _own_betas(method: Method) -> np.ndarray:
    betas = [float(c) for c in method.coefficients_of_parts()]
    return np.array([b for b in betas if b > 0])


def _verdict(
    bandit: Bandit,
    flows: list[Flow],
    logits: np.ndarray,
    ends: np.ndarray,
    candidates: list[Candidate],
    tolerance: float,
) -> tuple[str, str]:
    probs = np.exp(ends)
    apart = np.abs(probs[:, None] - probs[None, :]).sum(axis=-1) / 2
    best = candidates[0]
    many = f"from all {len(flows)} starts" if len(flows) > 1 else "from the start"
    if not all(f.finite for f in flows):
        bad = [f.finite for f in flows].index(False)
        low = ends[bad][~np.isneginf(logits[bad])].min()
        return (
            "diverges",
            f"start {bad} leaves all bounds, its least likely action at log p {low:.3g}",
        )
    moving = [i for i, f in enumerate(flows) if not f.settled and f.turns]
    if moving:
        return "cycles", f"start {moving[0]} never stands still; last near {best}"
    still = all(f.settled for f in flows)
    vertex = probs.max(axis=1) > 1 - _VERTEX
    reward = np.asarray(bandit.reward)
    if apart.max() > max(10 * tolerance, 2 * _VERTEX if vertex.any() else 0, 0 if still else _SLID):
        i, j = np.unravel_index(np.argmax(apart), apart.shape)
        where = (
            f"actions {sorted({int(k) for k in probs[vertex].argmax(axis=1)})}, one each"
            if vertex.all()
            else f"laws up to {apart.max():.2g} apart (starts {int(i)} and {int(j)})"
        )
        top = reward[~np.isneginf(np.asarray(bandit.log_ref))].max()
        good = probs[:, reward == top].sum(axis=1)
        paid = " that are all optimal" if np.all(good > 1 - _VERTEX) else ""
        return "depends on start", f"{len(flows)} starts end on {where}{paid}"
    if vertex.all():
        action = int(probs[0].argmax())
        return "vertex", f"{many} to action {action} alone, reward {reward[action]:.4g}"
    stuck = "" if still else "; the field jumps there, so that steps must shrink to stand still"
    if best.distance <= tolerance or (stuck and best.distance <= _SLID):
        return "converges", f"{many} to {best}{stuck}"
    return "elsewhere", f"{many} to a law that is no known target; nearest {best}{stuck}"


def _nearest_member(
    name: str, bandit: Bandit, log_end: Array, spread: float
) -> tuple[float, float]:
    """The distance and the beta of a family's nearest target: a grid, then finer ones around it."""
    beta, ends = 1.0, (spread * 1e-4, spread * 1e4)
    distance = math.inf
    for _ in range(_ZOOMS):
        betas = np.geomspace(*ends, _GRID)
        distances = _distances_to(name, bandit, log_end, betas)
        i = int(np.argmin(distances))
        distance, beta = float(distances[i]), float(betas[i])
        ends = betas[max(i - 1, 0)], betas[min(i + 1, _GRID - 1)]
    return distance, beta


def _distances_to(name: str, bandit: Bandit, log_end: Array, betas: np.ndarray) -> np.ndarray:
    """Total variation from an end to a family at some betas; 1 where it has no target.

    Always of one shape, and the alpha family by its number, so that few programs are compiled.
    """
    forward = name == NAMED["forward-kl"].label
    make = functools.partial(AlphaDivergence, 0.0) if forward else FAMILIES[name]
    regularizers = jax.vmap(make)(jnp.asarray(np.resize(betas, _GRID), log_end.dtype))
    distances = np.asarray(_distances(regularizers, bandit, log_end))[: len(betas)]
    return np.where(np.isfinite(distances), distances, 1.0)


@jax.jit
def _distances(regularizers: Regularizer, bandit: Bandit, log_end: Array) -> Array:
    def one(regularizer: Regularizer) -> Array:
        return total_variation(log_end, target(bandit, regularizer).log_probs)

    return jax.vmap(one)(regularizers)
