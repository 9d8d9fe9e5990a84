"""The words of verdicts, each with what must be proved before it is said."""

import dataclasses
from typing import NamedTuple

import numpy as np

from regdist.runs.flow import Flow


class Word(NamedTuple):
    """A verdict of `identify`.

    Attributes:
        meaning: what it says.
        proof: what stands behind it.
    """

    meaning: str
    proof: str


VERDICTS: dict[str, Word] = {
    "converges": Word(
        "all starts come to one law, which is a known target",
        "the end attracts; its log-probabilities are the target's, and so is its derivative by the "
        "rewards and by the reference",
    ),
    "coincides": Word(
        "all starts come to one law, which is a known target's on this problem",
        "the end attracts and its log-probabilities are the target's; its derivatives are not, or "
        "are not defined",
    ),
    "elsewhere": Word(
        "all starts come to one law, which no known target has",
        "the end attracts; every known target is further from it than the tolerance",
    ),
    "vertex": Word(
        "all starts come to one action alone",
        "every other action loses there, however little it holds",
    ),
    "depends on start": Word(
        "there are several limits",
        "several ends or cycles that attract, or a manifold of rest points that does",
    ),
    "cycles": Word(
        "all starts come to one closed orbit",
        "the multipliers of its return map are below 1",
    ),
    "diverges": Word("the field is not finite where the flow goes", "a value that is not finite"),
    "undecided": Word("no verdict is proved", "the sentence says what was tried"),
}
"""What `identify` may say."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A known target and how far the limit is from it.

    Attributes:
        name: the family, a target that was given, or a law without a coefficient.
        beta: the coefficient that fits best; None without one.
        distance: the largest error of a log-probability, in nats, to first order, among actions
            that hold at least the tolerance.
        response: whether the limit moves with the problem as the target does: "same"; "moves", the
            same but for a beta that moves too; "shared", either but as another family does;
            "differs"; "undefined", or not asked.
        form: of a tree the recursion whose target it is: "leaf", "stepwise" or "stepwise with
            unpenalised future"; under a policy "restricted"; "" of a bandit's table, and of a law.
    """

    name: str
    beta: float | None
    distance: float
    response: str = "undefined"
    form: str = ""

    def __str__(self) -> str:
        about = f", {self.form}," if self.form else ""
        about += "" if self.beta is None else f" at beta {self.beta:.4g}"
        return f"{self.name}{about} (log p to {self.distance:.2g})"


class Limit(NamedTuple):
    """One limit, by the first start that came to it.

    Attributes:
        log_p: its log-probabilities, shape [K].
        found: where it went.
    """

    log_p: np.ndarray
    found: Flow


def alone(
    many: str, limit: Limit, candidates: list[Candidate], reward: np.ndarray, tolerance: float
) -> tuple[str, str, str]:
    """The verdict, its sentence and its proof where all starts come to one limit.

    Args:
        many: from how many starts.
        limit: the one.
        candidates: known targets, the nearest first.
        reward: of the actions, shape [K].
        tolerance: of a name, in nats.
    """
    stands = proof(limit)
    if limit.found.cycle is not None:
        turn = limit.found.cycle
        return (
            "cycles",
            f"{many} round a closed orbit of period {turn.period:.4g}, on which "
            f"probabilities move by up to {turn.amplitude.max():.2g}",
            stands,
        )
    best = candidates[0]
    if np.sum(~np.isneginf(limit.log_p)) == 1:
        action = int(np.argmax(limit.log_p))
        said = f"{many} to action {action} alone, reward {reward[action]:.4g}"
        return "vertex", said, stands
    if best.distance > tolerance:
        said = f"{many} to a law that is no known target; nearest {best}"
        return "elsewhere", said, stands
    if best.response == "same":
        return "converges", f"{many} to {best}", f"{stands}; it moves with the problem as it"
    if best.response == "moves":
        return (
            "converges",
            f"{many} to the odds of {best}, a beta that moves with the problem (self-consistent)",
            f"{stands}; but for beta it moves with the problem as they do",
        )
    all_same = [str(c) for c in candidates if c.distance <= tolerance]
    if len(all_same) > 3:
        all_same = [*all_same[:2], f"{len(all_same) - 2} more"]
    why = "it does not move with the problem as that does"
    if best.response == "undefined":
        why = "how it moves with the problem is not defined, or lost in rounding"
    if best.response == "shared":
        why = "several of them move with the problem as it does"
    return (
        "coincides",
        f"{many} to a law that is here that of {', '.join(all_same)}; {why}: not identified",
        stands,
    )


def proof(limit: Limit) -> str:
    """What is known of a limit, with its numbers."""
    if limit.found.cycle is not None:
        return f"largest multiplier {limit.found.cycle.multiplier:.4g}"
    end = limit.found.end
    assert end is not None
    parts = []
    if np.sum(~np.isneginf(end.z)) > 1:
        parts.append(f"{end.reason}, the largest {end.slowest:.2g} (error {end.bound:.1g})")
    if np.isfinite(end.entering):
        parts.append(f"actions off it gain at most {end.entering:.2g}")
    return ", ".join(parts) or "a single action"


def several(basins: list[int], limits: list[Limit], hidden: list[int]) -> str:
    """The limits and how many starts came to each; `hidden` are vertices that none came to."""
    said = []
    for i, limit in enumerate(limits):
        count = basins.count(i)
        if limit.found.cycle is not None:
            what = "a cycle"
        elif np.sum(~np.isneginf(limit.log_p)) == 1:
            what = f"action {int(np.argmax(limit.log_p))} alone"
        elif limit.found.end is not None and limit.found.end.kind == "tie":
            what = limit.found.end.reason
        else:
            p = np.exp(limit.log_p)
            shown = " ".join(f"{x:.3g}" for x in p[:6]) + (" ..." if len(p) > 6 else "")
            what = f"[{shown}]"
        said.append(f"{what} ({f'{count} of {len(basins)}' if count else 'from beside a start'})")
    said += [f"action {k} alone (from beside it)" for k in hidden]
    lost = basins.count(-1)
    rest = f"; {lost} undecided" if lost else ""
    return f"limits are {', '.join(said)}{rest}"
