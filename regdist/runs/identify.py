"""Which distribution does a method go to? Follows its exact field to proved ends and names them.

Works on concrete values, outside jit, in float64. K is the number of actions.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from regdist.methods import Expectation, Method
from regdist.methods.expectation import prepared
from regdist.methods.field import check_problem
from regdist.numerics.records import Law, Table, as_array, check_kind, check_log_probs, positive
from regdist.problems.bandit import Bandit
from regdist.regularizers.regularizer import Regularizer
from regdist.runs.dynamics import Dynamics, double_precision, log_normalized, widened
from regdist.runs.ends import judge
from regdist.runs.flow import Flow, follow
from regdist.runs.naming import (
    FAMILIES,
    Fit,
    compare,
    fit_families,
    fit_fixed,
    keeps_reference,
    log_error,
    respond,
)
from regdist.runs.starts import starts as usual_starts
from regdist.runs.verdicts import VERDICTS, Candidate, Limit, alone, proof, several
from regdist.targets.selection import limit_laws

# Actions: a dense Jacobian and its factors took 7 s for 300 and 40 s for 1,000 on two cores.
_MOST = 2000
_COUNTED = -28.0  # log p, 1e-12: below it ends are not told apart by a logit
_SAME = 1e-5  # nats: ends nearer than it are one, since Newton leaves less, and others are apart


@dataclasses.dataclass(frozen=True)
class Identification:
    """What `identify` found.

    Attributes:
        regularizer: the one whose target the limit is; None if none is proved to be.
        distance: from the limit to the nearest candidate, as in `Candidate`.
        log_probs: the limit from the first start, in nats, shape [K].
        verdict: one of `rd.VERDICTS`: "converges", "coincides", "elsewhere", "vertex", "depends on
            start", "cycles", "diverges" or "undecided".
        sentence: the verdict in words, with its numbers.
        proof: what stands behind it: eigenvalues, gains, responses.
        candidates: all known targets, the nearest first.
        starts: log-probabilities of the starts, shape [S, K]; the first is the reference.
        ends: where each start ended, shape [S, K].
        field_norm: largest rate of a logit at each end, shape [S].
        basins: index of the limit that each start came to, shape [S]; -1 where none is proved.
    """

    regularizer: Regularizer | None
    distance: float
    log_probs: np.ndarray
    verdict: str
    sentence: str
    proof: str
    candidates: tuple[Candidate, ...]
    starts: np.ndarray
    ends: np.ndarray
    field_norm: np.ndarray
    basins: np.ndarray

    @property
    def probs(self) -> np.ndarray:
        """The limit from the first start, shape [K]."""
        return np.exp(self.log_probs)

    def __str__(self) -> str:
        return f"{self.verdict}: {self.sentence}"


def identify(
    method: Method,
    bandit: Bandit,
    *,
    expectation: Expectation | None = None,
    starts: Table | None = None,
    targets: "Mapping[str, Regularizer | Law] | None" = None,
    old: Float[Any, " K"] | None = None,
    tolerance: float = 1e-6,
) -> Identification:
    """Where a method goes, and which known target that is.

    Follows the flow dz/dt = field(z), the limit of small steps, from several starts to ends that
    are proved: all gains are equal there, the linear flow contracts, and no action without mass
    gains. An end has a target's name if its log-probabilities are the target's and it moves with
    the rewards and with the reference as the target does. Where one of these is missing the
    verdict is "coincides" or "undecided", and says why. What small steps cannot show (noise,
    clipping, step sizes) is for `run` and `certify`.

    Args:
        method: from `rd.methods`.
        bandit: K actions, at most 2,000: some seconds for 300, a minute for 1,000.
        expectation: `Population()`, the default, or `Group(size)`.
        starts: logits, shape [S, K]; default the reference, the uniform law on its support and six
            random ones. By default ends on a single action are looked for from beside them too.
        targets: your own, by name: regularizers, or laws such as `rd.target` returns.
        old: log-probabilities of the policy that samples come from, if it is another and stays.
        tolerance: how far, in nats, a log-probability may be from a target's, and the probability
            below which one does not count.

    Raises:
        TypeError: an argument of another kind, such as a preset that was not called.
        ValueError: a `Sampled` expectation, too many actions, or starts of another shape.

    Examples:
        >>> b = rd.bandit([1.0, 0.0, 0.5], [0.2, 0.5, 0.3])
        >>> found = identify(rd.methods.dr_grpo(beta=0.3, estimator="k3"), b)
        >>> print(found)
        converges: from all 8 starts to forward KL at beta 0.3 (log p to ...)
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
    positive("tolerance", tolerance, "It is in nats")
    size = bandit.num_actions
    if size > _MOST:
        hours = 40 / 3600 * (size / 1000) ** 3
        raise ValueError(
            f"identify proves ends by a dense Jacobian: at most {_MOST} actions; got {size}, some "
            f"{hours:.2g} hours. Merge actions of equal reward and reference into one, or follow a "
            "run: rd.run and rd.certify"
        )
    if old is not None:
        old = np.asarray(check_log_probs("old", old, "rd.identify(old=...)", size), np.float64)
    known = _own_targets(targets, size)
    logits = usual_starts(bandit, 6) if starts is None else np.asarray(as_array("starts", starts))
    if logits.ndim != 2 or logits.shape[1] != size or not len(logits):
        raise ValueError(f"starts must have shape [S, {size}]; got {logits.shape}")
    if np.any(np.isnan(logits) | np.isposinf(logits)):
        raise ValueError(f"starts must be logits, finite or -inf; got {logits}")
    logits = logits.astype(np.float64)
    with double_precision():
        wide_method, wide = widened(method, bandit)
        search = _Search(wide_method, wide, expectation, old, tolerance)
        found = search.identification(logits, known, everywhere=starts is None)
    if found.regularizer is not None and found.regularizer is not method.regularizer:
        best = found.candidates[0]
        if best.name in FAMILIES and best.beta is not None:  # in the session's own dtype
            found = dataclasses.replace(found, regularizer=FAMILIES[best.name](best.beta))
    return found


def _own_targets(targets: Any, size: int) -> dict[str, Any]:
    if targets is None:
        return {}
    advice = 'Name them: {"mine": rd.Tsallis(2.0, 0.1)}'
    check_kind("targets", targets, Mapping, advice)
    for name, given in targets.items():
        check_kind(f"targets[{name!r}]", given, (Regularizer, Law), advice)
        if isinstance(given, Law) and given.log_probs.shape != (size,):
            raise ValueError(
                f"targets[{name!r}] must be over {size} actions; got {given.log_probs.shape}"
            )
    return dict(targets)


class _Search:
    """The flows of a method and what they prove together."""

    def __init__(
        self,
        method: Method,
        bandit: Bandit,
        expectation: Expectation,
        old: np.ndarray | None,
        tolerance: float,
    ):
        self.method, self.bandit, self.old = method, bandit, old
        self.expectation, self.tolerance = expectation, tolerance
        self.reward, self.log_ref = np.asarray(bandit.reward), np.asarray(bandit.log_ref)
        self.flows: dict[bytes, Dynamics] = {}
        self.asked = 0

    def alive(self, z: np.ndarray) -> np.ndarray:
        """Which actions a start has, shape [K]."""
        return ~np.isneginf(z) & ~np.isneginf(self.reward)

    def dynamics(self, z: np.ndarray) -> Dynamics:
        """The flow over the actions that a start has, made once for each set of them."""
        alive = self.alive(z)
        key = alive.tobytes()
        if key not in self.flows:
            self.flows[key] = Dynamics(self.method, self.bandit, self.expectation, alive, self.old)
        return self.flows[key]

    def identification(
        self, logits: np.ndarray, known: dict[str, Any], everywhere: bool
    ) -> Identification:
        """Everything together."""
        self.asked = len(logits)
        flows = [follow(self.dynamics(z), z[self.alive(z)]) for z in logits]
        # From a rest point that repels the flow goes to either side.
        nudged = [z for z, found in zip(logits, flows, strict=True) if found.nudged][:2]
        places = [*logits, *nudged]
        flows += [follow(self.dynamics(z), z[self.alive(z)], -1) for z in nudged]
        ends = [self.dynamics(z).place(f.z) for z, f in zip(places, flows, strict=True)]
        limits, basins = self.limits(flows, ends)
        hidden = self.vertices(limits) if everywhere else []
        candidates, fit = self.candidates(logits[0], flows[0], ends[0], known)
        verdict, sentence, stands = self.verdict(flows, basins, limits, hidden, candidates)
        assert verdict in VERDICTS
        return Identification(
            regularizer=fit.regularizer if fit is not None and verdict == "converges" else None,
            distance=candidates[0].distance if candidates else np.inf,
            log_probs=ends[0],
            verdict=verdict,
            sentence=sentence,
            proof=stands,
            candidates=tuple(candidates),
            starts=np.stack([log_normalized(z) for z in logits]),
            ends=np.stack(ends[: self.asked]),
            field_norm=np.array([f.norm for f in flows[: self.asked]]),
            basins=np.array(basins[: self.asked]),
        )

    def limits(self, flows: list[Flow], ends: list[np.ndarray]) -> tuple[list[Limit], list[int]]:
        """The proved limits that differ, and which of them each start came to (-1: none)."""
        limits: list[Limit] = []
        basins = []
        for found, log_p in zip(flows, ends, strict=True):
            if found.reason or (found.end is None and found.cycle is None):
                basins.append(-1)
                continue
            same = [
                i
                for i, limit in enumerate(limits)
                if (found.cycle is None) == (limit.found.cycle is None)
                and (
                    _same_cycle(found, limit)
                    or _same_tie(found, limit)
                    or _same_law(log_p, limit.log_p)
                )
            ]
            if not same:
                limits.append(Limit(log_p, found))
            basins.append(same[0] if same else len(limits) - 1)
        return limits, basins

    def vertices(self, limits: list[Limit]) -> list[int]:
        """Actions that attract alone, from beside them, though no start came there."""
        flow = self.dynamics(self.log_ref)
        seen = {int(np.argmax(x.log_p)) for x in limits if np.isneginf(x.log_p).sum() >= 1}
        found = []
        for k in range(len(flow.index)):
            if int(flow.index[k]) in seen or len(flow.index) < 2:
                continue
            z = np.where(np.arange(len(flow.index)) == k, 0.0, -np.inf)
            with np.errstate(all="ignore"):
                if judge(flow, z).kind == "attracts":
                    found.append(int(flow.index[k]))
        return found

    def candidates(
        self, start: np.ndarray, found: Flow, log_p: np.ndarray, known: dict[str, Any]
    ) -> tuple[list[Candidate], Fit | None]:
        """Known targets by their distance to the first start's limit, and the one proved."""
        flow = self.dynamics(start)
        at, tol = found.z, self.tolerance
        laws = {n: np.asarray(x, np.float64) for n, x in limit_laws(self.bandit).items()}
        follows = {name for name in laws if name.startswith("reference")} - set(known)
        laws |= {n: np.asarray(x.log_probs) for n, x in known.items() if isinstance(x, Law)}
        fits: list[Fit] = []
        if np.sum(~np.isneginf(at)) > 1:
            own = np.array([float(c) for c in self.method.coefficients_of_parts()])
            if self.method.regularizer is not None:
                name = repr(self.method.regularizer)
                fits.append(fit_fixed(flow, at, name, self.method.regularizer))
            for name, given in known.items():
                if isinstance(given, Regularizer):
                    fits.append(fit_fixed(flow, at, name, given))
            fits += fit_families(flow, at, own[own > 0])
        distances = {name: log_error(log_p, law, tol) for name, law in laws.items()}
        proved = found.end is not None and found.end.kind == "attracts"
        proved = proved and bool(np.sum(~np.isneginf(at)) > 1)
        keeps = False
        if proved and any(x <= tol for x in (*distances.values(), *(f.error for f in fits))):
            response = respond(flow, at)
            fits = [compare(flow, at, f, response) if f.error <= tol else f for f in fits]
            fits = _told_apart(fits)
            keeps = keeps_reference(flow, at, response)
        rows = [Candidate(f.name, f.beta, f.error, f.response) for f in fits]
        rows += [
            Candidate(n, None, d, "same" if keeps and d <= tol and n in follows else "undefined")
            for n, d in distances.items()
        ]
        order = {"same": 0, "moves": 1, "shared": 2, "differs": 3, "undefined": 3}
        by_name = {f.name: f for f in fits}

        def rank(row: Candidate) -> tuple:
            fits_here = row.distance <= tol
            prefer = row.name in FAMILIES
            return (
                not fits_here,
                order[row.response] if fits_here else 0,
                not prefer if fits_here else False,
                row.distance if not fits_here else 0.0,
            )

        rows.sort(key=rank)
        best = rows[0] if rows else None
        if best is None or best.distance > tol or best.response not in ("same", "moves"):
            return rows, None
        return rows, by_name.get(best.name)

    def verdict(
        self,
        flows: list[Flow],
        basins: list[int],
        limits: list[Limit],
        hidden: list[int],
        candidates: list[Candidate],
    ) -> tuple[str, str, str]:
        """The verdict, its sentence and its proof."""
        many = f"from all {self.asked} starts" if self.asked > 1 else "from the start"
        proofs = [proof(limit) for limit in limits]
        if len(limits) + len(hidden) > 1:
            return (
                "depends on start",
                several(basins[: self.asked], limits, hidden),
                "; ".join(proofs),
            )
        ties = [x for x in limits if x.found.end is not None and x.found.end.kind == "tie"]
        if ties:
            end = ties[0].found.end
            assert end is not None
            said = f"{end.reason} attract: which of them is reached depends on the start"
            return "depends on start", said, proofs[0]
        if -1 in basins:
            bad = basins.index(-1)
            which = f"start {bad}" if bad < self.asked else "beside a start"
            if not flows[bad].finite:
                return "diverges", f"{which}: {flows[bad].reason}", ""
            got = sum(b >= 0 for b in basins[: self.asked])
            return (
                "undecided",
                f"{which}: {flows[bad].reason}; {got} of {self.asked} starts have a proved limit",
                "; ".join(proofs),
            )
        return alone(many, limits[0], candidates, self.reward, self.tolerance)


def _told_apart(fits: list[Fit]) -> list[Fit]:
    """No family is named for a response that another has too."""
    for response in ("same", "moves"):
        if sum(f.response == response and f.name in FAMILIES for f in fits) > 1:
            fits = [f._replace(response="shared") if f.response == response else f for f in fits]
    return fits


def _same_cycle(found: Flow, limit: Limit) -> bool:
    a, b = found.cycle, limit.found.cycle
    if a is None or b is None:
        return False
    return bool(
        np.isclose(a.period, b.period, rtol=1e-4)
        and np.allclose(a.amplitude, b.amplitude, rtol=0.05, atol=1e-6)
    )


def _same_tie(found: Flow, limit: Limit) -> bool:
    a, b = found.end, limit.found.end
    if a is None or b is None or a.kind != "tie" or b.kind != "tie":
        return False
    return a.dimension == b.dimension and np.array_equal(np.isneginf(a.z), np.isneginf(b.z))


def _same_law(a: np.ndarray, b: np.ndarray) -> bool:
    on = ~np.isneginf(a)
    if not np.array_equal(on, ~np.isneginf(b)):
        return False
    counted = on & (np.maximum(a, b) > _COUNTED)
    return bool(np.max(np.abs(a[counted] - b[counted])) < _SAME)
