"""The catalog of presets as a table, an entry in full, and plain values for JSON."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from regdist.methods.presets.catalog import PENALTIES, Preset, catalog, entry_of
from regdist.reports.plain import plain
from regdist.reports.tables import Sheet


def sheet() -> Sheet:
    """A row for each preset, short enough for a narrow terminal."""
    rows = [[entry.name, _brief(entry)] for entry in catalog()]
    return Sheet(
        f"{len(rows)} presets, each with its sources, the defaults that rd.methods.compose does "
        "not have, and its variants. grpo/k2 is a name too. Penalties are the variants "
        f"{', '.join(PENALTIES)}.",
        ["name", "what it is"],
        rows,
    )


def _brief(entry: Preset) -> str:
    own = [suffix for suffix in entry.variants if suffix not in PENALTIES]
    lines = {
        "": entry.summary,
        "from ": _sources(entry, "; "),
        "needs ": ", ".join(entry.required),
        "defaults ": _options(entry.own_defaults),
        "variants ": ", ".join([*own, *_penalties(entry)]),
    }
    return "\n".join(head + text for head, text in lines.items() if text) + "\n"


def _sources(entry: Preset, between: str) -> str:
    return between.join([*entry.papers, *entry.code]) or entry.unsourced


def _penalties(entry: Preset) -> list[str]:
    return ["penalties"] if PENALTIES.keys() <= entry.variants.keys() else []


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items())


def details(name: str) -> Sheet:
    """All about a preset or one of its variants.

    Raises:
        ValueError: an unknown name.
    """
    entry = entry_of(name)
    chosen = entry.options(name)
    needs = [parameter for parameter in entry.required if parameter not in chosen]
    variants = [f"{suffix}: {_options(options)}" for suffix, options in entry.variants.items()]
    coefficient = entry.coefficient_beside(chosen)
    later = "beta, once an estimator is given" if "estimator" in entry.defaults else "none"
    rows = {
        "about": _unwrapped(inspect.getdoc(entry.function) or ""),
        "from": _sources(entry, "\n"),
        "needs": ", ".join(needs),
        "coefficient": coefficient or later,
        "defaults": _options({**entry.defaults, **chosen}),
        "variants": "\n".join(variants),
    }
    lines = [[head, f"{text}\n"] for head, text in rows.items() if text]
    call = [repr(name), *(["beta"] if coefficient else [])]
    call += [f"{parameter}=..." for parameter in entry.missing(name)]
    return Sheet(f"rd.methods.named({', '.join(call)})", ["", entry.name], lines)


def _unwrapped(docstring: str) -> str:
    """A docstring whose paragraphs and arguments are a line each, for a terminal to wrap."""
    lines: list[str] = []
    for line in docstring.splitlines():
        depth = len(line) - len(line.lstrip())
        begins = depth == 4 or not line or not lines or not lines[-1] or lines[-1].endswith(":")
        if begins:
            lines.append(line)
        else:
            lines[-1] += f" {line.lstrip()}"
    return "\n".join(lines)


def as_json(names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The entries of names, by default all, as plain JSON values: infinities are strings.

    Raises:
        ValueError: an unknown name.
    """
    entries = dict.fromkeys(map(entry_of, names)) or catalog()
    return [
        {
            "name": entry.name,
            "summary": entry.summary,
            "papers": list(entry.papers),
            "code": list(entry.code),
            "unsourced": entry.unsourced,
            "required": list(entry.required),
            "coefficient": entry.coefficient,
            "defaults": plain(entry.defaults),
            "own_defaults": plain(entry.own_defaults),
            "variants": {suffix: plain(options) for suffix, options in entry.variants.items()},
        }
        for entry in entries
    ]
