"""Which distribution does a method go to? Follows its exact field to proved ends and names them.

Works on concrete values, outside jit, in float64. K is the number of actions.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from regdist.methods import Expectation, Method
from regdist.methods.expectation import prepared
from regdist.methods.field import check_problem
from regdist.numerics.records import Law, Table, as_array, check_kind, check_log_probs, positive
from regdist.policies.table import Table as TablePolicy
from regdist.problems.bandit import Bandit
from regdist.regularizers.regularizer import Regularizer
from regdist.runs.checks import check_sampler, check_surroundings
from regdist.runs.driver import default_optimizer
from regdist.runs.dynamics import double_precision, log_normalized, widened
from regdist.runs.loop import Loop
from regdist.runs.naming import FAMILIES
from regdist.runs.search import Search
from regdist.runs.starts import starts as usual_starts
from regdist.runs.verdicts import Candidate
from regdist.scale.progress import bar

if TYPE_CHECKING:
    from rich.progress import Progress


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
    loop: Loop | None = None,
    tolerance: float = 1e-6,
    progress: "bool | Progress | None" = None,
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
        bandit: K actions. Beyond 128 those of equal reward, reference and start share a number, as
            they move alike; 2,000 such numbers at most, some seconds for 300, a minute for 1,000.
        expectation: `Population()`, the default, or `Group(size)`.
        starts: logits, shape [S, K]; default the reference, the uniform law on its support and six
            random ones (beyond 128 actions they give equal actions alike). By default ends on a
            single action are looked for from beside them too.
        targets: your own, by name: regularizers, or laws such as `rd.target` returns.
        old: log-probabilities of the policy that samples come from, if it is another and stays.
        loop: what surrounds the method: where steps are small its sampler, and that its reference
            follows the policy; epochs, minibatches and staleness leave the limit where it is.
        tolerance: how far, in nats, a log-probability may be from a target's, and the probability
            below which one does not count.
        progress: a bar over the starts: True, False, or a `rich.progress.Progress` of one's own.
            Default: if somebody looks.

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
    if loop is not None:
        check_surroundings(default_optimizer(), loop)
        check_sampler(loop, TablePolicy(), bandit.log_ref, bandit)
    if old is not None:
        old = np.asarray(check_log_probs("old", old, "rd.identify(old=...)", size), np.float64)
    known = _own_targets(targets, size)
    logits = usual_starts(bandit, 6) if starts is None else np.asarray(as_array("starts", starts))
    if logits.ndim != 2 or logits.shape[1] != size or not len(logits):
        raise ValueError(f"starts must have shape [S, {size}]; got {logits.shape}")
    if np.any(np.isnan(logits) | np.isposinf(logits)):
        raise ValueError(f"starts must be logits, finite or -inf; got {logits}")
    logits = logits.astype(np.float64)
    with double_precision(), bar(progress, "identify", len(logits)) as advance:
        wide_method, wide = widened(method, bandit)
        search = Search(wide_method, wide, expectation, old, loop, tolerance, logits)
        found = search.found(known, starts is None, advance)
    regularizer = found.regularizer
    if regularizer is not None and regularizer is not method.regularizer:
        best = found.candidates[0]
        if best.name in FAMILIES and best.beta is not None:  # in the session's own dtype
            regularizer = FAMILIES[best.name](best.beta)
    return Identification(
        regularizer=regularizer,
        distance=found.candidates[0].distance if found.candidates else np.inf,
        log_probs=found.ends[0],
        verdict=found.verdict,
        sentence=found.sentence,
        proof=found.proof,
        candidates=tuple(found.candidates),
        starts=np.stack([log_normalized(z) for z in logits]),
        ends=found.ends,
        field_norm=found.field_norm,
        basins=found.basins,
    )


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
