"""Problems from a person's own file: one outcome a line, CSV or JSON lines."""

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regdist.numerics.records import check_kind
from regdist.problems.bandit import bandit
from regdist.problems.task import Task

_REFERENCES = ("reference", "log_reference", "count")


def load(path: str | Path) -> Task:
    """A problem from a `.csv` or `.jsonl` file with one outcome a line.

    Fields: `outcome` (its name), `reward` (a number; -inf forbids it), one of `reference`
    (probabilities that sum to 1), `log_reference` (nats) or `count` (how often it was seen), and
    optionally `label`, the answer that the outcome stands for (any text; equal texts are one
    answer). Other fields are ignored.

    Raises:
        ValueError: names the line and the field.
        OSError: the file cannot be read.
    """
    check_kind("path", path, (str, Path), "Of a .csv or .jsonl file")
    path = Path(path)
    readers = {".csv": _csv_rows, ".jsonl": _json_rows}
    if path.suffix not in readers:
        raise ValueError(f"{path}: a problem file ends in .csv or .jsonl")
    try:
        rows = list(readers[path.suffix](path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text: {error}") from error
    if not rows:
        raise ValueError(f"{path}: no outcomes; one a line is wanted")
    kind = _reference_kind(path, *rows[0])
    fields: dict[str, list] = {"outcome": [], "reward": [], kind: [], "label": []}
    for line, row in rows:
        if row.get("outcome") in (None, ""):
            raise ValueError(f"{path}, line {line}, field 'outcome': missing")
        fields["outcome"].append(str(row["outcome"]))
        fields["reward"].append(_number(path, line, row, "reward"))
        fields[kind].append(_number(path, line, row, kind))
        if row.get("label", row["outcome"]) in (None, ""):
            raise ValueError(f"{path}, line {line}, field 'label': empty; leave the field out")
        fields["label"].append(str(row.get("label", row["outcome"])))
        _check_line(path, line, fields, kind)
    answers, label = np.unique(fields["label"], return_inverse=True)
    weights = np.array(fields[kind])
    if kind == "count":
        if weights.sum() == 0:
            raise ValueError(f"{path}, field 'count': all counts are 0")
        if weights.sum() == math.inf:
            raise ValueError(f"{path}, field 'count': their sum is more than a float can hold")
        weights = weights / weights.sum()
    reference = {"log_reference" if kind == "log_reference" else "reference": weights}
    try:
        problem = bandit(np.array(fields["reward"]), **reference, label=label)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    about = f"{path.name}: {len(rows):,} outcomes with {label.max() + 1:,} answers."
    return Task(problem, tuple(fields["outcome"]), about, tuple(answers.tolist()))


def _csv_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            _check_once(path, 1, reader.fieldnames or ())
            for row in reader:
                if None in row:
                    raise ValueError(f"{path}, line {reader.line_num}: more fields than the header")
                yield reader.line_num, {k: v for k, v in row.items() if v is not None}
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}") from error


def _json_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                pairs = json.loads(text, object_pairs_hook=tuple)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {line}: not JSON: {error.msg}") from error
            except RecursionError as error:
                raise ValueError(f"{path}, line {line}: nested too deeply") from error
            if not isinstance(pairs, tuple):
                raise ValueError(f"{path}, line {line}: a JSON object is wanted")
            _check_once(path, line, [name for name, _ in pairs])
            yield line, dict(pairs)


def _check_once(path: Path, line: int, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{path}, line {line}, field {name!r}: given twice")


def _reference_kind(path: Path, line: int, row: Mapping[str, Any]) -> str:
    given = [name for name in _REFERENCES if name in row]
    if len(given) != 1:
        names = ", ".join(repr(name) for name in given) or "none"
        raise ValueError(
            f"{path}, line {line}: exactly one of the fields 'reference', 'log_reference', "
            f"'count' is wanted; got {names} of them, the fields being {', '.join(row)}"
        )
    return given[0]


def _number(path: Path, line: int, row: Mapping[str, Any], name: str) -> float:
    value = row.get(name)
    if value is None or isinstance(value, bool) or "_" in str(value):  # Python reads 1_000
        raise ValueError(f"{path}, line {line}, field '{name}': missing or not a number")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        text = str(value)
        shown = repr(value) if len(text) <= 60 else text[:57] + "..."
        raise ValueError(f"{path}, line {line}, field '{name}': not a number: {shown}") from error


def _check_line(path: Path, line: int, fields: dict[str, list], kind: str) -> None:
    reward, weight = fields["reward"][-1], fields[kind][-1]
    if math.isnan(reward) or reward == math.inf:
        raise ValueError(f"{path}, line {line}, field 'reward': {reward} is not a reward")
    # Above 0 by no more than a logarithm rounded in float32 or in a printed file.
    legal = weight < 1e-6 if kind == "log_reference" else 0 <= weight < math.inf
    if not legal:
        wanted = "a log-probability" if kind == "log_reference" else "a finite number >= 0"
        raise ValueError(f"{path}, line {line}, field '{kind}': {weight} is not {wanted}")
