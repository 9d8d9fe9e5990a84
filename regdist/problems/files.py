"""Problems from a person's own file: one outcome, or one sample, a line."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from regdist.numerics.records import check_kind
from regdist.problems import fields
from regdist.problems.bandit import bandit
from regdist.problems.rows import read, shown
from regdist.problems.task import Task

REST = "(rest)"
"""What the outcome is called that stands for all that a file does not name."""


def load(path: str | Path, *, normalize: bool = False, rest: float | None = None) -> Task:
    r"""A problem from a `.csv` or `.jsonl` file with one outcome, or one sample, a line.

    The text is UTF-8. A CSV file names the fields in its first line, JSON lines in each line.

    - `outcome`: its name, any text that is not empty, kept as it is to the character.
    - `reward`: a number, true (1) or false (0), or -inf, which forbids the outcome.
    - `count`: how often it was seen; counts are divided by their sum. Or `reference`, its
      probability, or `log_reference`, the logarithm of that in nats (-inf is allowed).
    - `label`, on all lines or on none: the answer that it stands for; equal texts are one answer.
      Without the field each outcome is its own.

    Without `count`, `reference` and `log_reference` a line is a sample, of count 1. Lines with the
    same outcome are merged and their counts added; they must agree in reward and label. Numbers
    are decimal, as in `-1`, `0.5` or `1e-3`; NaN is none, and an empty label no answer.

    A file holds one problem. A field that names the prompt (`prompt`, `input`, `question`,
    `doc_id`, `task_id` and the like) must say the same on all lines. So must an `id`, unless a
    prompt stands beside it: alone it may number samples or name prompts. Other fields are ignored,
    but not where one seems to be meant for one of the above (`Label`, `counts`, `logprob`, an
    `answer` that differs), or where, without a reference and without a repeated outcome, its
    numbers may be counts: those are refused.

    Args:
        path: of the file.
        normalize: divide references by their sum, which need not be 1 then, as it is not where
            a model's likelihoods of some samples are given: the law given that it is one of them.
        rest: instead, the reward of one more outcome, "(rest)", an answer of its own, which holds
            the probability that the others leave.

    Returns:
        A `Task`; outcomes in the order in which they first come, answers in that of their names.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: names the file, and the line and the field that are at fault.
        OSError: the file cannot be read.

    Examples:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "mine.csv"
        >>> _ = path.write_text("outcome,reward\nx = 4,true\nx = 5,false\nx = 5,false\nx = 5,false")
        >>> task = load(path)
        >>> print(task.about)
        mine.csv: 2 outcomes with 2 answers, from 4 lines.
        >>> jnp.exp(task.bandit.log_ref)
        Array([0.25, 0.75], dtype=float64)
    """
    check_kind("path", path, (str, Path), "Of a .csv or .jsonl file")
    check_kind("normalize", normalize, bool, "True divides references by their sum")
    _check_rest(normalize, rest)
    path = Path(path)
    rows = read(path)
    if not rows:
        raise ValueError(f"{path}: no outcomes; one a line is wanted")
    kind = fields.reference_kind(path, rows)
    fields.check_one_prompt(path, rows)
    table = _table(path, rows, kind)
    if kind is None and len(table) == len(rows):
        fields.check_samples(path, rows)
    log_q, said = _log_reference(path, kind, [entry.weight for entry in table], normalize, rest)
    if rest is not None:
        table.append(_rest_of(path, table, float(rest)))
    answers = sorted({entry.label for entry in table})
    index = {answer: i for i, answer in enumerate(answers)}
    label = np.array([index[entry.label] for entry in table])
    try:
        problem = bandit([entry.reward for entry in table], log_reference=log_q, label=label)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    merged = f", from {len(rows):,} lines" if len(rows) > len(table) - (rest is not None) else ""
    about = f"{path.name}: {len(table):,} outcomes with {len(answers):,} answers{merged}.{said}"
    return Task(problem, tuple(entry.outcome for entry in table), about, tuple(answers))


class _Entry(NamedTuple):
    """An outcome, and the line that names it first."""

    line: int
    outcome: str
    reward: float
    label: str
    weight: float


def _check_rest(normalize: bool, rest: float | None) -> None:
    if rest is None:
        return
    check_kind("rest", rest, (int, float), "The reward of what the file does not name, or None")
    if math.isnan(rest) or rest == math.inf:
        raise ValueError(f"rest must be a reward, finite or -inf; got {rest}")
    if normalize:
        raise ValueError("give normalize=True or rest, not both: either makes the sum 1")


def _table(path: Path, rows: Sequence[fields.Row], kind: str | None) -> list[_Entry]:
    """The outcomes, each once."""
    labelled = "label" in fields.names_of(rows)
    table: dict[str, _Entry] = {}
    for row in rows:
        name = fields.text(path, row, "outcome")
        reward = fields.number(path, row, "reward")
        weight = 1.0 if kind is None else fields.number(path, row, kind)
        label = fields.text(path, row, "label") if labelled else name
        first = table.setdefault(name, _Entry(row.line, name, reward, label, 0.0))
        if first.line != row.line:
            where = f"{path}, line {row.line}"
            again = f"the outcome {shown(name)} of line {first.line} again"
            if first.reward != reward:
                raise ValueError(
                    f"{where}, field 'reward': {again}, with reward {reward} instead of "
                    f"{first.reward}"
                )
            if first.label != label:
                raise ValueError(
                    f"{where}, field 'label': {again}, with label {shown(label)} instead of "
                    f"{shown(first.label)}"
                )
            if kind not in (None, "count"):
                raise ValueError(
                    f"{where}, field 'outcome': {again}; only counts of the same outcome add up, "
                    f"and here is '{kind}'"
                )
        table[name] = first._replace(weight=first.weight + weight)
    return list(table.values())


def _log_reference(
    path: Path, kind: str | None, weights: list[float], normalize: bool, rest: float | None
) -> tuple[np.ndarray, str]:
    """The logarithms of probabilities that sum to 1, and what was done for that."""
    if kind in (None, "count"):
        if rest is not None:
            raise ValueError(
                f"{path}: rest goes with field 'reference' or 'log_reference'; counts are divided "
                "by their sum, which leaves nothing"
            )
        total = sum(weights)
        if math.isinf(total):
            raise ValueError(f"{path}, field 'count': their sum is more than a float can hold")
        if total == 0:
            raise ValueError(f"{path}, field 'count': all counts are 0")
        return np.array([_log(weight) for weight in weights]) - math.log(total), ""
    logs = np.array(weights if kind == "log_reference" else [_log(w) for w in weights])
    largest = logs.max()
    if largest == -math.inf:
        raise ValueError(f"{path}, field '{kind}': every outcome has probability 0")
    log_total = largest + math.log(np.exp(logs - largest).sum())
    total = math.exp(log_total) if kind == "log_reference" else math.fsum(weights)
    if normalize:
        was = f"{total:.6g}" if total else f"e^{log_total:.6g}"
        return logs - log_total, f" References that sum to {was} are divided by their sum."
    tolerance = math.sqrt(jnp.finfo(jnp.result_type(float)).eps)
    left = max(1 - total, 0.0)
    if rest is not None and total <= 1 + tolerance:
        return np.append(logs, _log(left)), f" {REST} has the probability {left:.6g} that is left."
    if abs(total - 1) <= tolerance:
        return logs, ""
    ways = "normalize=True (--normalize) divides them by their sum"
    if left:
        ways += (
            f"; rest=R0 (--rest R0) adds an outcome '{REST}' of reward R0 with the {left:.6g} that "
            "is left"
        )
    raise ValueError(
        f"{path}, field '{kind}': the probabilities must sum to 1 (within {tolerance:.1e}); they "
        f"sum to {total:.10g}. {ways}"
    )


def _log(weight: float) -> float:
    return math.log(weight) if weight > 0 else -math.inf


def _rest_of(path: Path, table: Sequence[_Entry], reward: float) -> _Entry:
    for entry in table:
        if REST in (entry.outcome, entry.label):
            raise ValueError(
                f"{path}, line {entry.line}: {REST!r} is what the outcome is called that rest "
                "adds; call this one otherwise"
            )
    return _Entry(0, REST, reward, REST, 0.0)
