"""The flows of a method from several starts, and what they prove together. K is of actions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from regdist.methods import Expectation, Method, Population
from regdist.methods.groups import is_ours
from regdist.methods.step import leaves_of
from regdist.numerics.records import Law
from regdist.regularizers.regularizer import Regularizer
from regdist.runs.dynamics import TOGETHER, Dynamics, alike, log_normalized
from regdist.runs.ends import judge
from regdist.runs.flow import Flow, follow
from regdist.runs.loop import Loop
from regdist.runs.naming import (
    FAMILIES,
    Fit,
    Response,
    compare,
    fit_families,
    fit_fixed,
    keeps_reference,
    log_error,
    respond,
)
from regdist.runs.verdicts import VERDICTS, Candidate, Limit, alone, proof, several
from regdist.targets.selection import limit_laws

MOST = 2000
"""Coordinates of a flow: a dense Jacobian and its factors took 7 s for 300 and 40 s for 1,000."""
_COUNTED = -28.0  # log p, 1e-12: below it ends are not told apart by a logit
_SAME = 1e-5  # nats: ends nearer than it are one, since Newton leaves less, and others are apart


class Found(NamedTuple):
    """What the flows of a method prove together.

    Attributes:
        verdict: a word of `rd.VERDICTS`.
        sentence: it in words.
        proof: what stands behind it.
        regularizer: the one whose target the first start's limit is; None if none is proved to be.
        candidates: known targets, the nearest first.
        ends: where each start ended, shape [S, K].
        field_norm: largest rate of a logit at each end, shape [S].
        basins: index of the limit that each start came to, shape [S]; -1 where none is proved.
    """

    verdict: str
    sentence: str
    proof: str
    regularizer: Regularizer | None
    candidates: list[Candidate]
    ends: np.ndarray
    field_norm: np.ndarray
    basins: np.ndarray


class Search:
    """The flows of a method, from starts to a verdict.

    Args:
        method: in float64.
        bandit: in float64.
        expectation: exact.
        old: log-probabilities of the policy that samples come from, shape [K], if it stays.
        loop: what surrounds the method.
        tolerance: of a name, in nats.
        logits: the starts, shape [S, K].
    """

    def __init__(
        self,
        method: Method,
        bandit: Any,
        expectation: Expectation,
        old: np.ndarray | None,
        loop: Loop | None,
        tolerance: float,
        logits: np.ndarray,
    ):
        self.method, self.bandit, self.old, self.loop = method, bandit, old, loop
        self.expectation, self.tolerance = expectation, tolerance
        self.reward = np.asarray(leaves_of(bandit).reward)
        self.log_ref = np.asarray(bandit.log_ref)
        self.flows: dict[bytes, Dynamics] = {}
        self.logits, self.asked = logits, len(logits)
        self.classes = None
        self.check_size()

    def check_size(self) -> None:
        """Finds actions that move alike, and refuses too many that do not.

        Raises:
            ValueError: there are more than `MOST`.
        """
        if self.bandit.num_actions > TOGETHER:
            self.classes = self.together()
        size = self.bandit.num_actions
        kinds = size if self.classes is None else self.classes.max() + 1
        if kinds > MOST:
            hours = 40 / 3600 * (kinds / 1000) ** 3
            raise ValueError(
                f"ends are proved by a dense Jacobian of at most {MOST} numbers, and actions that "
                "move alike (of equal reward, reference and start, for a method that does not tell "
                f"them apart) share one; here are {kinds} of {size} actions, some "
                f"{hours:.2g} hours. Merge or drop actions, or follow a run: rd.run"
            )

    def together(self) -> np.ndarray | None:
        """The classes of actions that move alike from all starts, shape [K]; None if none do."""
        columns = [self.reward, self.log_ref, *self.logits]
        classes = alike(*columns if self.old is None else [*columns, self.old])
        if classes.max() + 1 == len(classes):
            return None
        for z in self.logits:
            flow = self.make(z, classes)
            gains = flow.gains(flow.place(flow.gather(z)))
            off = np.abs(gains - gains[flow.index][flow.member])[flow.alive]
            # 1e-9: rounding of gains in their own size; a method that looks at labels is off by 1
            if not np.all(off <= 1e-9 * (np.abs(gains[flow.alive]).max() + flow.unit)):
                return None
        return classes

    def make(self, z: np.ndarray, classes: np.ndarray | None) -> Dynamics:
        """The flow over the actions that a start has."""
        alive = self.alive(z)
        return Dynamics(
            self.method, self.bandit, self.expectation, alive, self.old, self.loop, classes
        )

    def alive(self, z: np.ndarray) -> np.ndarray:
        """Which actions a start has, shape [K]."""
        return ~np.isneginf(z) & ~np.isneginf(self.reward)

    def dynamics(self, z: np.ndarray) -> Dynamics:
        """The flow over the actions that a start has, made once for each set of them."""
        key = self.alive(z).tobytes()
        if key not in self.flows:
            self.flows[key] = self.make(z, self.classes)
        return self.flows[key]

    def follow(self, z: np.ndarray, side: int = 1) -> Flow:
        """The flow from a start."""
        flow = self.dynamics(z)
        return follow(flow, flow.gather(z), side)

    def law_of_start(self, z: np.ndarray) -> np.ndarray:
        """The law of actions, shape [K], that a start has."""
        return log_normalized(z)

    def found(
        self, known: dict[str, Any], everywhere: bool, advance: Callable[[], Any] = lambda: None
    ) -> Found:
        """Everything together; `everywhere`: single actions too; `advance` is called at a start."""
        flows = []
        for z in self.logits:
            flows.append(self.follow(z))
            advance()
        # From a rest point that repels the flow goes to either side.
        nudged = [z for z, found in zip(self.logits, flows, strict=True) if found.nudged][:2]
        places = [*self.logits, *nudged]
        flows += [self.follow(z, -1) for z in nudged]
        ends = [self.dynamics(z).whole(f.z) for z, f in zip(places, flows, strict=True)]
        limits, basins = self.limits(flows, ends)
        hidden = self.vertices(limits) if everywhere else []
        candidates, fit = self.candidates(flows[0], ends[0], known)
        verdict, sentence, stands = self.verdict(flows, basins, limits, hidden, candidates)
        if self.method.controller is not None:
            held = f"held where it starts: {verdict}, {sentence}"
            verdict, sentence = "undecided", f"a controller moves the method as it runs; {held}"
        if not is_ours(self.method) and isinstance(self.expectation, Population):
            sentence += "; the weights of a part of your own are trusted"
        assert verdict in VERDICTS
        return Found(
            verdict,
            sentence,
            stands,
            fit.regularizer if fit is not None and verdict == "converges" else None,
            candidates,
            np.stack(ends[: self.asked]),
            np.array([f.norm for f in flows[: self.asked]]),
            np.array(basins[: self.asked]),
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
        """Actions that attract alone, from beside them, though no start came there.

        Of those that share a coordinate one is asked, on a coordinate of its own. None where the
        flow has no faces: such ends are not judged.
        """
        flow = self.dynamics(self.log_ref)
        if not flow.faces:
            return []
        seen = {int(np.argmax(x.log_p)) for x in limits if np.isneginf(x.log_p).sum() >= 1}
        found = []
        for action, copies in zip(flow.index, flow.copies, strict=True):
            if int(action) in seen or len(flow.index) < 2:
                continue
            at = flow
            if copies > 1:
                assert self.classes is not None
                classes = np.where(np.arange(len(self.reward)) == action, -1, self.classes)
                at = self.make(self.log_ref, classes)
            z = np.where(at.index == action, 0.0, -np.inf)
            with np.errstate(all="ignore"):
                if judge(at, z).kind == "attracts":
                    found.append(int(action))
        return found

    def candidates(
        self, found: Flow, log_p: np.ndarray, known: dict[str, Any]
    ) -> tuple[list[Candidate], Fit | None]:
        """Known targets by their distance to the first start's limit, and the one proved."""
        flow = self.dynamics(self.logits[0])
        at, tol = found.z, self.tolerance
        mixed = len(flow.held(at)[0]) > 0
        laws = {n: np.asarray(x, np.float64) for n, x in self.limit_laws().items()}
        follows = {name for name in laws if name.startswith("reference")} - set(known)
        laws |= {n: np.asarray(x.log_probs) for n, x in known.items() if isinstance(x, Law)}
        fits: list[Fit] = []
        proved = found.end is not None and found.end.kind == "attracts" and mixed
        # Beside an edge that is not judged log-probabilities have no bounds.
        if mixed and (flow.faces or found.end is not None):
            own = [float(c) for c in self.method.coefficients_of_parts() if c > 0]
            given = {n: x for n, x in known.items() if isinstance(x, Regularizer)}
            if self.method.regularizer is not None:
                given = {repr(self.method.regularizer): self.method.regularizer} | given
            fits = self.fits(flow, at, given, own)
        distances = {name: log_error(log_p, law, tol) for name, law in laws.items()}
        keeps = False
        if proved and any(x <= tol for x in (*distances.values(), *(f.error for f in fits))):
            response = respond(flow, at)
            close = [f for f in fits if f.error <= tol]
            far = [f for f in fits if not f.error <= tol]
            fits = _told_apart(self.compared(flow, at, close, response)) + far
            keeps = self.keeps(flow, at, response)
        rows = [Candidate(f.name, f.beta, f.error, f.response, f.form) for f in fits]
        rows += [
            Candidate(n, None, d, "same" if keeps and d <= tol and n in follows else "undefined")
            for n, d in distances.items()
        ]
        order = {"same": 0, "moves": 1, "shared": 2, "differs": 3, "undefined": 3}
        by_name = {(f.name, f.form): f for f in fits}

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
        return rows, by_name.get((best.name, best.form))

    def limit_laws(self) -> Mapping[str, Any]:
        """Laws without a coefficient, by name, shape [K] each."""
        return limit_laws(self.bandit)

    def fits(
        self, flow: Any, at: np.ndarray, given: Mapping[str, Regularizer], own: Sequence[float]
    ) -> list[Fit]:
        """Targets beside an end: those given, by name, and all families; `own` are betas to try."""
        fits = [fit_fixed(flow, at, name, x) for name, x in given.items()]
        return fits + fit_families(flow, at, own)

    def keeps(self, flow: Any, at: np.ndarray, response: Response) -> bool:
        """Whether an end moves as the reference does, and not with the rewards."""
        return keeps_reference(flow, at, response)

    def compared(
        self, flow: Any, at: np.ndarray, fits: Sequence[Fit], response: Response
    ) -> list[Fit]:
        """The fits with their responses beside the end's."""
        return [compare(flow, at, f, response) for f in fits]

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
            said += "; along them a plain gradient may go on, ever slower" if end.drifts else ""
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
