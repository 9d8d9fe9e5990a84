"""The report as figures, tables and one self-contained page, written all at once or not at all."""

import base64
import html
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from regdist.plots import figures as plot
from regdist.reports.report import METHODS, Cell, Report, as_json

_NAMES = {"reverse-kl": "reverse KL", "forward-kl": "forward KL"}
_METHOD_NAMES = {"natural": "natural gradient", "softmax": "plain gradient"}


def pretty(name: str) -> str:
    """A regulariser's name as people write it."""
    parts = [_NAMES.get(p, p.replace("alpha:", "alpha = ")) for p in name.split("+")]
    return " + ".join(parts)


def _short(x: float | None, digits: int = 3) -> str:
    return "-" if x is None else f"{x:.{digits}g}"


def tables(report: Report) -> list[tuple[str, list[str], list[list[str]]]]:
    """The tables: title, column names, and rows of text."""
    targets = [
        [
            pretty(c.regularizer),
            _short(c.beta),
            *(_short(c.numbers[key], 4) for key in _TARGET_COLUMNS.values()),
            *(_short(p, 4) for p in c.numbers["pass_at_k"].values()),
        ]
        for c in report.cells
    ]
    heads = ["regulariser", "beta", *_TARGET_COLUMNS, *(f"pass@{k}" for k in report.tries)]
    proofs = []
    for c in report.cells:
        natural, plain = (c.certificates[kind] for kind in METHODS)
        proofs.append(
            [
                pretty(c.regularizer),
                _short(c.beta),
                f"{c.target.residual:.0e}",
                natural.verdict,
                f"{natural.total_variation:.0e}",
                _short(natural.measured_rate),
                _short(natural.predicted_rate),
                plain.verdict,
                f"{plain.total_variation:.0e}",
                f"{plain.remaining_steps:.0e}",
            ]
        )
    proof_heads = ["regulariser", "beta", "KKT", "natural", "TV", "rate", "predicted"]
    proof_heads += ["plain", "TV", "to go"]
    keys = ("good", "rival", "reward_gap", "log_reference_odds", "reverse_kl", "forward_kl")
    rivals = [
        [r[k] if isinstance(r[k], str) else _short(r[k]) for k in keys] for r in report.rivals
    ]
    rival_heads = ["solution", "rival", "gap", "log q odds", "reverse KL", "forward KL"]
    return [
        (
            "Targets. Entropy and KL(target || reference) in nats; effective numbers are "
            "e^entropy, of solutions given success",
            heads,
            targets,
        ),
        (
            "Certificates. KKT: residual of the target; then for natural and plain gradient the "
            "verdict, the total variation left, rates per step of sqrt KL, steps to go",
            proof_heads,
            proofs,
        ),
        (
            "Critical beta: below it the solution (in its likeliest form) is likelier than the "
            "rival, the likeliest failure; - where it is ahead at every beta",
            rival_heads,
            rivals,
        ),
    ]


_TARGET_COLUMNS = {
    "E[R]": "expected_reward",
    "entropy": "entropy",
    "actions": "effective_actions",
    "solutions": "effective_solutions",
    "KL": "kl_to_reference",
}


def print_tables(report: Report, console: Console) -> None:
    """The tables in a terminal, each regulariser named once."""
    for title, heads, rows in tables(report):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for i, head in enumerate(heads):
            table.add_column(head, justify="left" if i == 0 else "right")
        before = ""
        for row in rows:
            table.add_row("" if row[0] == before else row[0], *row[1:])
            before = row[0]
        console.print(title, style="bold", highlight=False)
        console.print(table)


def figures(report: Report) -> dict[str, tuple[Figure, str]]:
    """File name to figure and caption."""
    chosen = _at_middle(report)
    drawings: list[tuple[str, Callable[[Report, dict[str, Cell]], tuple[Figure, str]]]] = [
        ("targets", _draw_targets),
        ("solutions", _draw_solutions),
        ("effective_number", _draw_effective_number),
        ("convergence", _draw_convergence),
    ]
    with matplotlib.rc_context(plot.style()):
        return {name: draw(report, chosen) for name, draw in drawings}


def _at_middle(report: Report) -> dict[str, Cell]:
    beta = report.betas[(len(report.betas) - 1) // 2]
    return {pretty(c.regularizer): c for c in report.cells if c.beta == beta}


def _draw_targets(report: Report, chosen: dict[str, Cell]) -> tuple[Figure, str]:
    figure = Figure()
    aims = {name: cell.target for name, cell in chosen.items()}
    plot.rank_curves(report.task.bandit, aims, figure.subplots())
    beta = next(iter(chosen.values())).beta
    caption = (
        f"Every target at beta = {beta:g}: the probability of each action, from the likeliest "
        "down. The best-rewarded actions rise above the reference on the left; the level that is "
        "left to the others is what the regulariser asks for."
    )
    return figure, caption


def _draw_solutions(report: Report, chosen: dict[str, Cell]) -> tuple[Figure, str]:
    bandit, task = report.task.bandit, report.task
    label, log_q = np.asarray(bandit.label), np.asarray(bandit.log_ref)
    groups = []
    for answer in np.unique(label[report.correct]):
        mask = report.correct & (label == answer)
        groups.append((np.exp(log_q[mask]).sum(), mask))
    groups = sorted(groups, key=lambda g: -g[0])[:8]
    names = [task.outcomes[np.flatnonzero(m)[np.argmax(log_q[m])]] for _, m in groups]
    names = [n if len(n) < 24 else n[:21] + "..." for n in names]
    figure = Figure(figsize=(2 * plot.COLUMN, 2.8))
    axes = figure.subplots()
    shown = [n for n in chosen if n in ("reverse KL", "forward KL", "entropy")] or list(chosen)[:3]
    plot.mass_bars(
        bandit, {n: chosen[n].target for n in shown}, names, [m for _, m in groups], axes
    )
    beta = next(iter(chosen.values())).beta
    caption = (
        f"The mass of each different solution at beta = {beta:g} (the {len(names)} likeliest under "
        "the reference, each named by its likeliest form). Both KLs keep the reference's odds "
        "between equal rewards: the target solves the task and stays as uneven as the reference. "
        "An entropy bonus ignores the reference and weighs a solution by its number of forms."
    )
    return figure, caption


def _draw_effective_number(report: Report, chosen: dict[str, Cell]) -> tuple[Figure, str]:
    del chosen
    figure = Figure()
    reward = np.asarray(report.task.bandit.reward)
    one_level = np.ptp(reward[report.correct]) == 0
    name = "solutions, under the reference's odds"
    plot.effective_number(
        report.curve_betas,
        {pretty(name): values for name, values in report.curves.items()},
        {name: report.solutions_of_reference} if one_level else None,
        "effective number of answers",
        figure.subplots(),
    )
    caption = (
        "The effective number of different answers (e to the entropy over labels, wrong ones "
        "included) against the coefficient."
    )
    if one_level:
        caption += (
            " As beta falls the mass leaves the wrong answers, and every divergence to the "
            "reference comes down to the grey line: the effective number of solutions that the "
            "reference's own odds leave. Less regularisation cannot lift it. An entropy bonus has "
            "a floor of its own: it is even over actions, so that a solution counts as often as it "
            "has forms."
        )
    return figure, caption


def _draw_convergence(report: Report, chosen: dict[str, Cell]) -> tuple[Figure, str]:
    figure = Figure(figsize=(2 * plot.COLUMN, 2.5))
    aims = {name: cell.target for name, cell in chosen.items()}
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, kind in ((left, "natural"), (right, "softmax")):
        paths = {name: cell.paths[kind] for name, cell in chosen.items()}
        proofs = {name: cell.certificates[kind] for name, cell in chosen.items()}
        plot.convergence(paths, aims, proofs, axes)
        axes.set_title(_METHOD_NAMES[kind])
    right.get_legend().remove()
    right.set_ylabel("")
    beta = next(iter(chosen.values())).beta
    caption = (
        f"Distance to the target during training at beta = {beta:g}. Left: the natural gradient "
        "shrinks it at the rate that the spectrum predicts (thin black lines). Right: the plain "
        "gradient from the same start, whose rate is scaled by the probability of each action; "
        "a flat curve is a plateau, not a failure of the target."
    )
    return figure, caption


def write(report: Report, out: Path) -> list[Path]:
    """Write report.json, targets.npz, the figures and index.html into `out`; nothing by halves.

    All files are made in a temporary folder beside it and then moved.
    """
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        text = json.dumps(as_json(report), indent=1, allow_nan=False)
        (fresh / "report.json").write_text(text + "\n", encoding="utf-8")
        bandit = report.task.bandit
        laws: dict[str, Any] = {
            f"{c.regularizer}@{c.beta:g}": np.asarray(c.target.log_probs) for c in report.cells
        }
        np.savez_compressed(
            fresh / "targets.npz",
            outcome=np.array(report.task.outcomes),
            reward=np.asarray(bandit.reward),
            log_ref=np.asarray(bandit.log_ref),
            label=np.asarray(bandit.label),
            **laws,
        )
        drawn = figures(report)
        for name, (figure, _) in drawn.items():
            figure.savefig(fresh / f"{name}.pdf", metadata={"CreationDate": None})
            figure.savefig(fresh / f"{name}.png")
        images = {n: ((fresh / f"{n}.png").read_bytes(), c) for n, (_, c) in drawn.items()}
        (fresh / "index.html").write_text(_page(report, images), encoding="utf-8")
        out.mkdir(exist_ok=True)
        written = []
        for path in sorted(fresh.iterdir()):
            os.replace(path, out / path.name)
            written.append(out / path.name)
        return written
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


_CSS = """
body { font: 16px/1.5 Georgia, serif; color: #1a1a1a; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; }
h1, h2 { font-weight: 600; line-height: 1.2; } h1 { margin-bottom: .2rem; }
figure { margin: 2rem 0; } img { max-width: 100%; }
figcaption { max-width: 44rem; color: #333; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font: 13px/1.4 system-ui, sans-serif; }
th, td { padding: .2rem .6rem; text-align: right; white-space: nowrap; }
th { border-bottom: 1px solid #1a1a1a; } td { border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
"""


def _page(report: Report, images: dict[str, tuple[bytes, str]]) -> str:
    passing = sum(c.passes for c in report.cells)
    headline = (
        f"All {passing} targets are certified."
        if report.passes
        else f"{len(report.cells) - passing} of {len(report.cells)} certificates fail."
    )
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width'>",
        f"<title>regdist: {html.escape(report.spec)}</title><style>{_CSS}</style></head><body>",
        "<h1>Where regularised training really goes</h1>",
        f"<p>{html.escape(report.task.about)}</p><p><strong>{headline}</strong> A target is the "
        "exact optimum of expected reward minus the regulariser; a certificate says that the "
        "training method has it as its limit, and how far the run has come.</p>",
    ]
    for name, (png, caption) in images.items():
        data = base64.b64encode(png).decode()
        parts.append(
            f"<figure><img alt='{name}' src='data:image/png;base64,{data}'>"
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    for title, heads, rows in tables(report):
        parts.append(f"<h2>{html.escape(title)}</h2><div class='wide'><table>")
        parts.append(_row("th", heads))
        parts.extend(_row("td", row) for row in rows)
        parts.append("</table></div>")
    parts.append("<p>All numbers: report.json; all distributions: targets.npz.</p></body></html>")
    return "\n".join(parts)


def _row(tag: str, texts: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(t)}</{tag}>" for t in texts) + "</tr>"
