"""Rows of a text file, CSV or JSON lines, each with the line on which it begins."""

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SUFFIXES = (".csv", ".jsonl")
_INSTEAD = {
    ".json": "write each object on a line of its own, in a file named .jsonl",
    ".parquet": 'of a pandas table: table.to_json("mine.jsonl", orient="records", lines=True)',
    ".tsv": "separate the cells by commas",
}


class Number(str):
    """A number of a JSON file, as it is written there."""


class Row(NamedTuple):
    """One line of a file: where it begins, and its values by field.

    Values are texts (`Number` for a number of JSON), True, False, None, lists or dictionaries.
    """

    line: int
    values: Mapping[str, Any]


def read(path: Path) -> list[Row]:
    """All rows of a `.csv` or `.jsonl` file in UTF-8; blank lines are none.

    Raises:
        ValueError: the file is of another kind, or broken; it names the file and the line.
        OSError: the file cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        hint = f"; {_INSTEAD[suffix]}" if suffix in _INSTEAD else ""
        raise ValueError(f"{path}: a problem file ends in .csv or .jsonl{hint}")
    if "\udc80" <= max(str(path)) <= "\udcff":
        raise ValueError(f"{str(path)!r}: a file whose name is UTF-8 is wanted")
    text = _text(path)
    return list(_csv_rows(path, text) if suffix == ".csv" else _json_rows(path, text))


def shown(value: Any) -> str:
    """A value in an error: its beginning on one line, in characters that every terminal has."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    cut = str(value) if len(value) <= 60 else value[:57] + "..."
    return cut if isinstance(value, Number) else repr(cut)


def _text(path: Path) -> str:
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{path}, line 1: not UTF-8 text but UTF-16; save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = _line_at(error.object[: error.start].decode("latin-1"))
        raise ValueError(f"{path}, line {line}: not UTF-8 text ({error.reason})") from error
    if "\0" in text:
        line = _line_at(text[: text.index("\0")])
        raise ValueError(f"{path}, line {line}: not UTF-8 text (a NUL character)")
    return text


def _line_at(before: str) -> int:
    return 1 + len(re.findall(r"\r\n?|\n", before))


def _csv_rows(path: Path, text: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    names: list[str] = []
    line, following = 1, 1
    try:
        for cells in reader:
            line, following = following, reader.line_num + 1
            if "".join(cells).strip(" \t") == "" and len(cells) < 2:
                continue
            if not names:
                names = cells
                _check_header(path, line, names)
                continue
            if len(cells) != len(names):
                count = f"{len(cells)} cell{'' if len(cells) == 1 else 's'}"
                raise ValueError(
                    f"{path}, line {line}: {count} under a header of {len(names)}: "
                    f"{', '.join(map(shown, names))}"
                )
            yield Row(line, dict(zip(names, cells, strict=True)))
    except csv.Error as error:
        hint = "; a .jsonl file takes longer texts" if "limit" in str(error) else ""
        raise ValueError(f"{path}, line {following}: not CSV: {error}{hint}") from error


def _check_header(path: Path, line: int, names: Sequence[str]) -> None:
    marks = re.findall(r"[;\t|]", names[0])
    if len(names) == 1 and marks:
        raise ValueError(
            f"{path}, line {line}: the file seems to be separated by {marks[0]!r}; separate the "
            f"cells by commas. The header is {shown(names[0])}"
        )
    for i, name in enumerate(names):
        if name in names[:i]:
            raise ValueError(f"{path}, line {line}, field {shown(name)}: given twice")


def _json_rows(path: Path, text: str) -> Iterator[Row]:
    for line, part in enumerate(io.StringIO(text, newline=None), start=1):
        if not part.strip(" \t\n"):
            continue
        array = f"{path}, line {line}: a JSON array; write one object a line, without brackets"
        try:
            value = json.loads(
                part,
                object_pairs_hook=_object,
                parse_int=Number,
                parse_float=Number,
                parse_constant=Number,
            )
        except json.JSONDecodeError as error:
            if part.lstrip().startswith("["):
                raise ValueError(array) from error
            raise ValueError(
                f"{path}, line {line}: not JSON ({error.msg}, column {error.colno}); a whole "
                "object on each line is wanted"
            ) from error
        except RecursionError as error:
            raise ValueError(f"{path}, line {line}: nested too deeply") from error
        except KeyError as error:
            name = shown(error.args[0])
            raise ValueError(f"{path}, line {line}, field {name}: given twice") from error
        if isinstance(value, list):
            raise ValueError(array)
        if not isinstance(value, dict):
            raise ValueError(f"{path}, line {line}: a JSON object is wanted; got {shown(value)}")
        yield Row(line, value)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise KeyError(next(name for name in names if names.count(name) > 1))
    return values
