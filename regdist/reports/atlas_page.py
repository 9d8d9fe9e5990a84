"""The atlas as tables and figures, written all at once or not at all."""

import dataclasses
import importlib.metadata
import json
import math
from collections.abc import Sequence
from pathlib import Path

import jax
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from regdist.plots.figures import save, style
from regdist.reports import folder
from regdist.reports.atlas import BETA, EXPECTATIONS, GROUP, LEVEL, PROBLEMS, SEEDS, Cell
from regdist.reports.tables import Sheet, short

_GROUPS = f"groups of {GROUP}"


def sheets(cells: Sequence[Cell]) -> dict[str, Sheet]:
    """A table for each problem, with a row for each method."""
    return {problem: _sheet(cells, problem) for problem in _problems(cells)}


def _problems(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.problem for cell in cells))


def _sheet(cells: Sequence[Cell], problem: str) -> Sheet:
    heads = ["method", "population", "nearest target", f"nearest at beta {BETA:g}", _GROUPS]
    heads += ["nearest target", "rate", *(f"H, {e}" for e in EXPECTATIONS)]
    rows = []
    for method in dict.fromkeys(cell.method for cell in cells):
        at = {c.expectation: c for c in cells if (c.method, c.problem) == (method, problem)}
        first = at["population"]
        nearest = min(first.distances, key=lambda name: first.distances[name])
        rows.append(
            [
                method,
                first.verdict,
                first.nearest,
                f"{nearest} ({first.distances[nearest]:.2g})",
                at[_GROUPS].verdict,
                at[_GROUPS].nearest,
                short(first.rate, 2),
                *(short(at[e].entropy_at_level) for e in EXPECTATIONS),
            ]
        )
    about = f": {PROBLEMS[problem][0]}" if problem in PROBLEMS else ""
    return Sheet(problem + about, heads, rows)


_FLOOR = 1e-4  # distances below it are drawn, and written, as 0
_MARKS = {"depends on start": "*", "diverges": "!", "cycles": "~", "undecided": "?"}
_LOOKS = {
    "population": ("o", "black"),
    _GROUPS: ("|", "#d55e00"),
    "sampled": ("x", "#0072b2"),
}


def figure(cells: Sequence[Cell], problem: str) -> Figure:
    """Distances of every method to every target, and the entropy left at matched success."""
    methods = list(dict.fromkeys(cell.method for cell in cells))
    at = {(c.method, c.expectation): c for c in cells if c.problem == problem}
    with matplotlib.rc_context(style()):
        drawing = Figure(figsize=(7.0, 1.6 + 0.17 * len(methods)))
        left, right = drawing.subplots(1, 2, width_ratios=[3, 2], sharey=True)
        _draw_distances(left, [at[method, "population"] for method in methods])
        _draw_entropies(
            right, {e: [at[method, e].entropy_at_level for method in methods] for e in EXPECTATIONS}
        )
    return drawing


def _draw_distances(axes: Axes, cells: Sequence[Cell]) -> None:
    targets = list(cells[0].distances)
    distances = np.array([[max(c.distances[name], _FLOOR) for name in targets] for c in cells])
    axes.imshow(np.log10(distances), cmap="gray", vmin=math.log10(_FLOOR), vmax=0, aspect="auto")
    for (i, j), x in np.ndenumerate(distances):
        text = "0" if x <= _FLOOR else f"{x:.2f}" if x >= 0.005 else f"{x:.0e}"
        color = "white" if np.log10(x) < -1.6 else "black"  # on the dark half of the grays
        axes.text(j, i, text, ha="center", va="center", fontsize=5, color=color)
    axes.set_xticks(range(len(targets)), targets, rotation=35, ha="right")
    axes.set_yticks(
        range(len(cells)), [f"{c.method} {_MARKS.get(c.verdict, '')}".strip() for c in cells]
    )
    axes.set_title(f"total variation to the target at beta = {BETA:g}")
    axes.tick_params(length=0)
    axes.set_xlabel(
        "* depends on the start   ~ never stands still   ! leaves all bounds   ? undecided"
    )


def _draw_entropies(axes: Axes, entropies: dict[str, list[float | None]]) -> None:
    for name, values in entropies.items():
        mark, color = _LOOKS[name]
        x = [math.nan if value is None else value for value in values]
        axes.plot(x, range(len(x)), mark, color=color, label=name, markersize=4)
    axes.set_xlabel("nats (no mark: never reached)")
    axes.set_title(f"entropy at success {LEVEL:g}", pad=16)
    axes.tick_params(left=False)
    axes.grid(axis="y", linewidth=0.3)
    axes.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, 0.995),
        ncols=3,
        fontsize=6,
        handletextpad=0.1,
        columnspacing=0.8,
    )


def write(cells: Sequence[Cell], out: Path) -> None:
    """Write atlas.json, atlas.md and a figure per problem into `out`, all or none."""
    about = {
        "regdist": importlib.metadata.version("regdist"),
        "jax": jax.__version__,
        "beta": BETA,
        "level": LEVEL,
        "group": GROUP,
        "seeds": SEEDS,
        "cells": [dataclasses.asdict(cell) for cell in cells],
    }
    text = ["# Where methods go\n"]
    with folder.filling(out) as fresh:
        (fresh / "atlas.json").write_text(json.dumps(about, indent=1, allow_nan=False) + "\n")
        for problem, sheet in sheets(cells).items():
            text.append(f"## {sheet.title}\n\n![{problem}]({problem}.png)\n")
            text.append(sheet.markdown() + "\n")
            save(figure(cells, problem), fresh / problem)
        (fresh / "atlas.md").write_text("\n".join(text))
