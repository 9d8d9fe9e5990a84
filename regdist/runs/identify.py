"""Which distribution does a method go to? Follows its exact field to proved ends and names them.

Works on concrete values, outside jit, in float64. K is the number of actions, or of sequences.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Float

from regdist.methods import Expectation, Method
from regdist.methods.field import check_params, check_problem
from regdist.methods.step import Problem, fitted, in_dtype, leaves_of
from regdist.numerics.records import Law, Table, as_array, check_kind, positive
from regdist.policies.policy import Params, Policy
from regdist.problems.contexts import check_law
from regdist.problems.placed import own_policy, policy_on, shares, table_on
from regdist.problems.tree import Tree
from regdist.regularizers.regularizer import Regularizer
from regdist.runs.checks import check_sampler, check_shared, check_surroundings
from regdist.runs.driver import default_optimizer
from regdist.runs.dynamics import double_precision, widened
from regdist.runs.loop import Loop
from regdist.runs.naming import FAMILIES
from regdist.runs.policy_search import PolicySearch
from regdist.runs.search import Search
from regdist.runs.starts import starts as usual_starts
from regdist.runs.starts import starts_of as usual_parameters
from regdist.runs.starts import unstacked
from regdist.runs.tree_search import TreeSearch
from regdist.runs.verdicts import Candidate
from regdist.scale.progress import bar

if TYPE_CHECKING:
    from rich.progress import Progress


@dataclasses.dataclass(frozen=True)
class Identification:
    """What `identify` found.

    Attributes:
        regularizer: the one whose target the limit is; None if none is proved to be.
        form: of a tree which recursion it is the target of: "leaf", `rd.target` of the sequences;
            "stepwise" or "stepwise with unpenalised future", `rd.stepwise` with either; under a
            policy "restricted". "" of the table of a bandit, and where none is proved.
        distance: from the limit to the nearest candidate, as in `Candidate`.
        log_probs: the limit from the first start, in nats, shape [K]; of a tree the law of its
            whole sequences, as all laws here.
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
    form: str
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
    bandit: Problem,
    *,
    expectation: Expectation | None = None,
    policy: Policy | None = None,
    starts: "Table | Params | None" = None,
    targets: "Mapping[str, Regularizer | Law] | None" = None,
    old: Float[Any, "..."] | None = None,
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

    On a tree the flow is that of the logits of its steps. A target of a tree is the optimum of one
    of three recursions, and the name says of which. Ends where steps die out are not judged there:
    a method that goes to one sequence is undecided.

    Under a `policy` that shares parameters the flow is theirs, and a target is a best law of the
    class as `rd.restricted` finds them: where the exact gradient of E R less the regularizer comes
    to rest, and nothing near is better. Further away there may be a better one.

    Args:
        method: from `rd.methods`.
        bandit: K actions. Beyond 128 those of equal reward, reference and start share a number, as
            they move alike; 2,000 such numbers at most, some seconds for 300, a minute for 1,000.
            Or a tree, of at most 512 steps of the policy; with a policy, contexts too.
        expectation: `Population()`, the default, or `Group(size)`.
        policy: from at most 128 parameters to log-probabilities; default a table. Where chance
            moves, a table alone.
        starts: logits, shape [S, K], of a tree a table of steps for each, of a policy parameters
            stacked along a first axis; default the reference,
            the uniform law on its support and six random ones (beyond 128 actions they give equal
            actions alike). By default ends on a single action are looked for from beside them too.
        targets: your own, by name: regularizers, or laws such as `rd.target` returns.
        old: log-probabilities of the policy that samples come from, if it is another and stays; of
            a tree those of its steps.
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

        On a tree the same penalties of tokens know nothing of what follows.

        >>> t = rd.tree([[0], [1, 0], [1, 1]], [0.0, 0.0, 1.0])
        >>> k2 = rd.methods.dr_grpo(beta=0.3, estimator="k2", averaging="sum")
        >>> print(identify(k2, t))
        converges: from all 8 starts to reverse KL, stepwise with unpenalised future, at beta 0.3...
    """
    placed = check_problem(method, bandit, policy, trees=True)
    check_shared(bandit, placed, "identify")
    expectation = fitted(expectation, method, bandit)
    if expectation.draws:
        raise ValueError(
            f"identify follows the expected update, which {expectation!r} only draws: use "
            f"rd.{expectation.exact()!r} or rd.Population()"
        )
    positive("tolerance", tolerance, "It is in nats")
    if loop is not None:
        check_surroundings(default_optimizer(), loop)
        check_sampler(loop, table_on(bandit), bandit.log_ref, bandit)
    if old is not None:
        old = np.asarray(check_law("old", old, bandit, "rd.identify(old=...)"), np.float64)
    known = _own_targets(targets, leaves_of(bandit).reward.shape)
    begins = _starts_of(placed, bandit, starts) if shares(placed) else _logits(bandit, starts)
    with double_precision(), bar(progress, "identify", len(begins)) as advance:
        search = _search(method, bandit, placed, expectation, old, loop, tolerance, begins)
        found = search.found(known, starts is None, advance)
        begun = [search.law_of_start(z) for z in search.logits]
    regularizer = found.regularizer
    if regularizer is not None and regularizer is not method.regularizer:
        best = found.candidates[0]
        if best.name in FAMILIES and best.beta is not None:  # in the session's own dtype
            regularizer = FAMILIES[best.name](best.beta)
    return Identification(
        regularizer=regularizer,
        form=found.candidates[0].form if regularizer is not None else "",
        distance=found.candidates[0].distance if found.candidates else np.inf,
        log_probs=found.ends[0],
        verdict=found.verdict,
        sentence=found.sentence,
        proof=found.proof,
        candidates=tuple(found.candidates),
        starts=np.stack(begun),
        ends=found.ends,
        field_norm=found.field_norm,
        basins=found.basins,
    )


def _search(
    method: Method,
    problem: Problem,
    policy: Policy,
    expectation: Expectation,
    old: Any,
    loop: Loop | None,
    tolerance: float,
    starts: Any,
) -> Search:
    """The search that problem and policy ask for, in float64."""
    wide_method, wide = widened(method, problem)
    about = wide_method, wide, expectation, old, loop, tolerance
    if not shares(policy):
        kind = TreeSearch if isinstance(problem, Tree) else Search
        return kind(*about, np.asarray(starts, np.float64))
    placed = policy_on(wide, in_dtype(own_policy(policy), np.float64))
    return PolicySearch(*about, [in_dtype(x, np.float64) for x in starts], placed)


def _logits(problem: Any, starts: Any) -> np.ndarray:
    """Logits to start from, of actions or steps."""
    if starts is None:
        return usual_starts(problem, 6)
    shape, logits = problem.log_ref.shape, np.asarray(as_array("starts", starts))
    if logits.ndim != len(shape) + 1 or logits.shape[1:] != shape or not len(logits):
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"starts must have shape [S, {wanted}]; got {logits.shape}")
    if np.any(np.isnan(logits) | np.isposinf(logits)):
        raise ValueError(f"starts must be logits, finite or -inf; got {logits}")
    return logits


def _starts_of(policy: Policy, problem: Problem, starts: Any) -> list[Params]:
    """Parameters to start from."""
    if starts is None:
        begins = usual_parameters(policy, problem, 7)
    else:
        given = as_array("starts", starts) if own_policy(policy).is_array else starts
        sizes = {np.shape(x)[:1] for x in jax.tree.leaves(given)}
        if len(sizes) != 1 or not all(sizes) or 0 in max(sizes):
            raise ValueError(
                "starts must be parameters stacked along a first axis, one entry a start; got "
                f"shapes {[np.shape(x) for x in jax.tree.leaves(given)]}"
            )
        begins = unstacked(given)
    return [check_params(policy, x, problem, "each of starts") for x in begins]


def _own_targets(targets: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    if targets is None:
        return {}
    advice = 'Name them: {"mine": rd.Tsallis(2.0, 0.1)}'
    check_kind("targets", targets, Mapping, advice)
    for name, given in targets.items():
        check_kind(f"targets[{name!r}]", given, (Regularizer, Law), advice)
        if isinstance(given, Law) and given.log_probs.shape != shape:
            what = " x ".join(map(str, shape))
            raise ValueError(
                f"targets[{name!r}] must be over {what} actions; got {given.log_probs.shape}"
            )
    return dict(targets)
