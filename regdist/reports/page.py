"""The report as figures, tables and one self-contained page, written all at once or not at all."""

import base64
import html
import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from regdist.plots import figures as plot
from regdist.regularizers.names import NAMED, label
from regdist.reports import folder
from regdist.reports.report import METHODS, Cell, Report, as_json
from regdist.reports.tables import Sheet, short

_METHOD_NAMES = {"natural": "natural gradient", "softmax": "plain gradient"}
_TARGET_COLUMNS = {
    "E[R]": "expected_reward",
    "entropy": "entropy",
    "actions": "effective_actions",
    "solutions": "effective_solutions",
    "KL": "kl_to_reference",
}


def sheets(report: Report) -> list[Sheet]:
    """The tables of a report."""
    return [_targets(report), _certificates(report), _critical_betas(report)]


def _targets(report: Report) -> Sheet:
    rows = [
        [
            label(cell.regularizer),
            short(cell.beta),
            *(short(cell.numbers[key], 4) for key in _TARGET_COLUMNS.values()),
            *(short(p, 4) for p in cell.numbers["pass_at_k"].values()),
        ]
        for cell in report.cells
    ]
    return Sheet(
        "Targets. Entropy and KL(target || reference) in nats; effective numbers are "
        "e^entropy, of solutions given success",
        ["regularizer", "beta", *_TARGET_COLUMNS, *(f"pass@{k}" for k in report.ks)],
        rows,
    )


def _certificates(report: Report) -> Sheet:
    rows = []
    for cell in report.cells:
        natural, plain = (cell.certificates[kind] for kind in METHODS)
        rows.append(
            [
                label(cell.regularizer),
                short(cell.beta),
                f"{cell.target.residual:.0e}",
                natural.verdict,
                f"{natural.distance.total_variation:.0e}",
                short(natural.pace.measured),
                short(natural.pace.predicted),
                plain.verdict,
                f"{plain.distance.total_variation:.0e}",
                "-" if plain.remaining_steps is None else f"{plain.remaining_steps:.0e}",
            ]
        )
    heads = ["regularizer", "beta", "KKT", "natural", "TV", "rate", "predicted"]
    return Sheet(
        "Certificates. KKT: residual of the target; then for natural and plain gradient the "
        "verdict, the total variation left, rates per step of sqrt KL, steps to go",
        [*heads, "plain", "TV", "to go"],
        rows,
    )


def _critical_betas(report: Report) -> Sheet:
    keys = ("good", "rival", "reward_gap", "log_reference_odds", "reverse_kl", "forward_kl")
    rows = [
        [pair[k] if isinstance(pair[k], str) else short(pair[k]) for k in keys]
        for pair in report.critical_betas
    ]
    return Sheet(
        "Critical beta: below it the solution (in its likeliest form) is likelier than the "
        "rival, the likeliest failure; - where it is ahead at every beta",
        ["solution", "rival", "gap", "log q odds", "reverse KL", "forward KL"],
        rows,
    )


def figures(report: Report) -> dict[str, tuple[Figure, str]]:
    """File name to figure and caption."""
    cells = _at_middle(report)
    with matplotlib.rc_context(plot.style()):
        return {
            "targets": _draw_targets(report, cells),
            "solutions": _draw_solutions(report, cells),
            "effective_number": _draw_effective_number(report),
            "convergence": _draw_convergence(cells),
        }


def _at_middle(report: Report) -> dict[str, Cell]:
    """The cells at the middle beta, by what people call their regularizer."""
    beta = report.betas[(len(report.betas) - 1) // 2]
    return {label(cell.regularizer): cell for cell in report.cells if cell.beta == beta}


def _beta(cells: dict[str, Cell]) -> float:
    return next(iter(cells.values())).beta


def _draw_targets(report: Report, cells: dict[str, Cell]) -> tuple[Figure, str]:
    figure = Figure()
    targets = {name: cell.target for name, cell in cells.items()}
    plot.rank_curves(report.task.bandit, targets, figure.subplots())
    caption = (
        f"Every target at beta = {_beta(cells):g}: the probability of each action, from the "
        "likeliest down. The best-rewarded actions rise above the reference on the left; the level "
        "that is left to the others is what the regularizer asks for."
    )
    return figure, caption


def _draw_solutions(report: Report, cells: dict[str, Cell]) -> tuple[Figure, str]:
    bandit = report.task.bandit
    answer, log_q = np.asarray(bandit.label), np.asarray(bandit.log_ref)
    masks = [report.correct & (answer == i) for i in np.unique(answer[report.correct])]
    masks = sorted(masks, key=lambda mask: -np.exp(log_q[mask]).sum())[:8]
    likeliest = [np.flatnonzero(mask)[np.argmax(log_q[mask])] for mask in masks]
    outcomes = [report.task.outcomes[i] for i in likeliest]
    bars = [name if len(name) < 24 else name[:21] + "..." for name in outcomes]
    familiar = [NAMED[spec].label for spec in ("reverse-kl", "forward-kl", "entropy")]
    shown = [name for name in cells if name in familiar] or list(cells)[:3]
    figure = Figure(figsize=(2 * plot.COLUMN, 2.8))
    targets = {name: cells[name].target for name in shown}
    plot.mass_bars(bandit, targets, bars, masks, figure.subplots())
    caption = (
        f"The mass of each different solution at beta = {_beta(cells):g} (the {len(bars)} "
        "likeliest under the reference, each named by its likeliest form). Both KLs keep the "
        "reference's odds between equal rewards: the target solves the task and stays as uneven as "
        "the reference. An entropy bonus ignores the reference and weighs a solution by its number "
        "of forms."
    )
    return figure, caption


def _draw_effective_number(report: Report) -> tuple[Figure, str]:
    figure = Figure()
    reward = np.asarray(report.task.bandit.reward)
    one_level = np.ptp(reward[report.correct]) == 0
    ceiling = "solutions, under the reference's odds"
    plot.effective_number(
        report.curve_betas,
        {label(name): values for name, values in report.curves.items()},
        {ceiling: report.solutions_of_reference} if one_level else None,
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
            "reference comes down to the gray line: the effective number of solutions that the "
            "reference's own odds leave. Less regularization cannot lift it. An entropy bonus has "
            "a floor of its own: it is even over actions, so that a solution counts as often as it "
            "has forms."
        )
    return figure, caption


def _draw_convergence(cells: dict[str, Cell]) -> tuple[Figure, str]:
    figure = Figure(figsize=(2 * plot.COLUMN, 2.5))
    targets = {name: cell.target for name, cell in cells.items()}
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, kind in ((left, "natural"), (right, "softmax")):
        paths = {name: cell.paths[kind] for name, cell in cells.items()}
        certificates = {name: cell.certificates[kind] for name, cell in cells.items()}
        plot.convergence(paths, targets, certificates, axes)
        axes.set_title(_METHOD_NAMES[kind])
    right.get_legend().remove()
    right.set_ylabel("")
    caption = (
        f"Distance to the target during training at beta = {_beta(cells):g}. Left: the natural "
        "gradient shrinks it at the rate that the spectrum predicts (thin black lines). Right: the "
        "plain gradient from the same start, whose rate is scaled by the probability of each "
        "action; a flat curve is a plateau, not a failure of the target."
    )
    return figure, caption


def write(report: Report, out: Path) -> list[Path]:
    """Write report.json, targets.npz, the figures and index.html into `out`, all or none."""
    with folder.filling(out) as fresh:
        text = json.dumps(as_json(report), indent=1, allow_nan=False)
        (fresh / "report.json").write_text(text + "\n", encoding="utf-8")
        bandit = report.task.bandit
        log_probs: dict[str, Any] = {
            f"{cell.regularizer}@{cell.beta:g}": np.asarray(cell.target.log_probs)
            for cell in report.cells
        }
        np.savez_compressed(
            fresh / "targets.npz",
            outcome=np.array(report.task.outcomes),
            reward=np.asarray(bandit.reward),
            log_ref=np.asarray(bandit.log_ref),
            label=np.asarray(bandit.label),
            **log_probs,
        )
        images = {}
        for name, (figure, caption) in figures(report).items():
            plot.save(figure, fresh / name)
            images[name] = (fresh / f"{name}.png").read_bytes(), caption
        (fresh / "index.html").write_text(_page(report, images), encoding="utf-8")
        return sorted(out / path.name for path in fresh.iterdir())


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
        "<h1>Where regularized training really goes</h1>",
        f"<p>{html.escape(report.task.about)}</p><p><strong>{headline}</strong> A target is the "
        "exact optimum of expected reward minus the regularizer; a certificate says that the "
        "training method has it as its limit, and how far the run has come.</p>",
    ]
    for name, (png, caption) in images.items():
        data = base64.b64encode(png).decode()
        parts.append(
            f"<figure><img alt='{name}' src='data:image/png;base64,{data}'>"
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    for sheet in sheets(report):
        parts.append(f"<h2>{html.escape(sheet.title)}</h2><div class='wide'>")
        parts.append(f"{sheet.html()}</div>")
    parts.append("<p>All numbers: report.json; all distributions: targets.npz.</p></body></html>")
    return "\n".join(parts)
