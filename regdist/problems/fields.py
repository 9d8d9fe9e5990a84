"""The fields of a problem file: which are there, what they seem to be meant for, their values."""

import difflib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regdist.problems.rows import Number, Row, shown

REFERENCES = ("reference", "log_reference", "count")
_KNOWN = ("outcome", "reward", "label", *REFERENCES)
# Other names, in small letters and digits alone, by what is meant.
_OTHERS = {
    "outcome": "completion response output solution generation text action sample answer",
    "reward": "score passed correct iscorrect acc accuracy return",
    "reference": "ref refprob prob probs probability probabilities p q",
    "log_reference": "logprob logprobs logp logps reflogprob reflogprobs reflogp reflogps logref "
    "sumlogprob sumlogprobs cumulativelogprob sequencelogprob loglikelihood",
    "count": "n num number freq frequency times weight weights",
    "label": "answer finalanswer extractedanswer parsedanswer prediction",
}
# What tells prompts apart. `_GROUPS` do so too unless a prompt beside them stays the same: an id
# may be that of a row, one prompt may be drawn in several groups, a problem may be its mere name.
_PROMPTS = (
    "prompt prompts input inputs question questions query doc docid dochash taskid problemid "
    "promptid promptidx promptindex prompthash prompttokens questionid exampleid"
)
_GROUPS = "id uid task problem instruction group groupid groundtruth gts"
_DUMPS = {
    "a rollout dump of verl": {"input", "output", "score"},
    "a completions log of TRL": {"prompt", "completion", "advantage"},
    "rollouts of open-instruct": {"prompt_tokens", "response_tokens"},
    "traces of prime-rl": {"nodes", "rewards"},
    "samples of lm-eval": {"doc_id", "resps"},
    "samples of HumanEval": {"task_id", "completion"},
    "an eval log of inspect-ai": {"input", "scores", "epoch"},
}
_ABSENT = object()
_EMPTY = {
    "outcome": "every outcome needs a name",
    "label": "write the answer that the outcome stands for, or leave the whole field out, "
    "which makes each outcome its own answer",
}
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def names_of(rows: Sequence[Row]) -> list[str]:
    """The fields of all rows, in the order in which they come."""
    return list(dict.fromkeys(name for row in rows for name in row.values))


def reference_kind(path: Path, rows: Sequence[Row]) -> str | None:
    """The one field of `REFERENCES` that the rows have; None for rows that are samples.

    Raises:
        ValueError: several; `outcome` or `reward` nowhere; a field that seems to be one of those.
    """
    names = names_of(rows)
    missing = [field for field in ("outcome", "reward") if field not in names]
    if missing:
        raise ValueError(_advice(path, missing, names))
    given = [field for field in REFERENCES if field in names]
    if len(given) > 1:
        raise ValueError(
            f"{path}: at most one of the fields 'reference', 'log_reference', 'count' is wanted; "
            f"got {', '.join(map(repr, given))}"
        )
    wanted = [field for field in ("label", *REFERENCES) if field not in names]
    if given:
        wanted = [field for field in wanted if field == "label"]
    right = [  # the right answer of the prompt
        name
        for name in names
        if _bare(name) in _OTHERS["label"].split() and not _first_other(rows, name)
    ]
    for field, name in _likely(wanted, [name for name in names if name not in right]).items():
        raise ValueError(
            f"{path}, field {shown(name)}: is '{field}' meant? Rename it to '{field}', or leave "
            "it out"
        )
    return given[0] if given else None


def check_one_prompt(path: Path, rows: Sequence[Row]) -> None:
    """Refuses rows of several prompts: many problems in one file.

    An id that is different on every row is refused too where no prompt stands beside it: it may
    number the samples of one prompt, or name prompts with one sample each, and the file cannot
    tell which.
    """
    names = {name: _bare(name) for name in names_of(rows)}
    prompts = [name for name, bare in names.items() if bare in _PROMPTS.split()]
    groups = [] if prompts else [name for name, bare in names.items() if bare in _GROUPS.split()]
    for name in (*prompts, *groups):
        other = _first_other(rows, name)
        if other is None:
            continue
        here, there = (
            shown(row.values[name]) if name in row.values else "missing" for row in (other, rows[0])
        )
        advice = f"; if {shown(name)} only tells rows of one prompt apart, leave it out"
        raise ValueError(
            f"{path}, line {other.line}, field {shown(name)}: {here}, but {there} in line "
            f"{rows[0].line}. Each prompt is a problem of its own: write a file for each"
            f"{advice if name in groups else ''}"
        )


def _first_other(rows: Sequence[Row], name: str) -> Row | None:
    """The first row that says something else in a field than the first of all."""
    value = rows[0].values.get(name, _ABSENT)
    return next((row for row in rows if row.values.get(name, _ABSENT) != value), None)


def check_samples(path: Path, rows: Sequence[Row]) -> None:
    """Refuses lines without a count, none of them a repetition, that may have a weight after all.

    That is a field under a name of its own whose numbers differ and have one sign, as counts,
    probabilities and their logarithms have.
    """
    for name in names_of(rows):
        if name in _KNOWN or _bare(name) in f"{_PROMPTS} {_GROUPS}".split():
            continue
        words = [_word(row.values.get(name)) for row in rows]
        if not all(map(_NUMBER.fullmatch, words)):
            continue
        numbers = [float(word) for word in words]
        if min(numbers) < max(numbers) and (min(numbers) >= 0 or max(numbers) <= 0):
            raise ValueError(
                f"{path}, field {shown(name)}: no outcome comes twice, and this may be how often "
                "each was seen, or its probability. Rename it to 'count', 'reference' or "
                "'log_reference'; if each line is one sample, add a field 'count' of 1, or leave "
                "it out"
            )


def text(path: Path, row: Row, field: str) -> str:
    """The text of `outcome` or `label`, as it stands in the file."""
    where, value = f"{path}, line {row.line}, field '{field}'", row.values.get(field, "")
    if field not in row.values:
        raise ValueError(f"{where}: missing; other lines have it")
    if value is None or value == "":
        raise ValueError(f"{where}: empty; {_EMPTY[field]}")
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str) or (isinstance(value, Number) and not _NUMBER.fullmatch(value)):
        raise ValueError(f"{where}: {shown(value)} is not a text")
    bad = re.search("[\0\ud800-\udfff]", value)
    if bad:
        what = "a NUL character" if bad[0] == "\0" else "half of a surrogate pair"
        raise ValueError(f"{where}: {shown(value)} holds {what}")
    return value


def number(path: Path, row: Row, field: str) -> float:
    """The number of a field, written as `-1`, `0.5`, `1e-3`, and checked for what it is meant for.

    A reward may be true or false, 1 and 0; a reward and a `log_reference` may be -inf.
    """
    where, value = f"{path}, line {row.line}, field '{field}'", row.values.get(field)
    if value is None or value == "":
        raise ValueError(f"{where}: missing")
    word = _word(value)
    if field == "reward" and word in ("true", "false"):
        return float(word == "true")
    if field in ("reward", "log_reference") and word in ("-inf", "-infinity"):
        return -math.inf
    if isinstance(value, bool) or not _NUMBER.fullmatch(word):
        raise ValueError(f"{where}: not a number: {shown(value)}")
    found = float(word)
    if math.isinf(found):
        raise ValueError(f"{where}: {shown(value)} is more than a float can hold")
    if field in ("reference", "count") and found == 0 and re.match(r"[+-]?[0.]*[1-9]", word):
        raise ValueError(
            f"{where}: {shown(value)} is less than a float can hold; log_reference can"
        )
    # Above 0, or 1, by no more than a logarithm rounded in float32 or in a printed file.
    legal, wanted = {
        "reward": (True, ""),
        "reference": (0 <= found < 1 + 1e-6, "a probability; field 'count' takes weights"),
        "log_reference": (found < 1e-6, "the logarithm of a probability"),
        "count": (found >= 0, "a count"),
    }[field]
    if not legal:
        raise ValueError(f"{where}: {shown(value)} is not {wanted}")
    return found


def _word(value: Any) -> str:
    """A value of one word as JSON writes it, in small letters; of others nothing."""
    if isinstance(value, str):
        return value.strip(" \t").lower()
    return "" if isinstance(value, list | dict) else shown(value)


def _bare(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())


def _likely(fields: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """For each field that is missing the name in the file that is likely meant for it, if any."""
    free = {_bare(name): name for name in reversed(names) if name not in _KNOWN}
    found = {}
    for field in fields:
        for bare in (_bare(field), *_OTHERS[field].split()):
            if field not in found and bare in free:
                found[field] = free.pop(bare)
    for field in fields:
        near = difflib.get_close_matches(_bare(field), free, n=1, cutoff=0.8)
        if field not in found and near:
            found[field] = free.pop(near[0])
    return found


def _advice(path: Path, missing: Sequence[str], names: Sequence[str]) -> str:
    """What to say where `outcome` or `reward` is in no row."""
    found = ", ".join(map(shown, names[:20])) + (", ..." if len(names) > 20 else "")
    lacking = " and ".join(repr(field) for field in missing)
    parts = [f"{path}: no field {lacking}; the fields are {found}"]
    parts += [
        f"This looks like {dump}: keep the rows of one prompt"
        for dump, known in _DUMPS.items()
        if known <= set(names)
    ][:1]
    likely = _likely(missing, names)
    if likely:
        renames = (f"{shown(name)} to '{field}'" for field, name in likely.items())
        parts.append(f"Rename {', '.join(renames)}")
    elif any(_NUMBER.fullmatch(name) for name in names):
        parts.append("The first line of a .csv file must name the fields")
    return ". ".join(parts)
