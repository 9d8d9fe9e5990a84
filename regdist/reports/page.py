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
from regdist.reports.report import METHODS, Cell, Report, as_json, provenance
from regdist.reports.tables import Sheet, one_line, short

_METHOD_NAMES = {"natural": "natural gradient", "softmax": "plain gradient"}
_TARGET_COLUMNS = {
    "E[R]": "expected_reward",
    "actions": "effective_actions",
    "solutions": "effective_solutions",
    "KL": "kl_to_reference",
}


def sheets(report: Report) -> list[Sheet]:
    """The tables of a report."""
    certificates = [_certificates(report, kind) for kind in METHODS]
    cures = [_cure(report)] if report.cure else []
    return [_targets(report), *cures, *certificates, _critical_betas(report)]


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
        "Targets. Actions and solutions: effective numbers, e^entropy, of solutions given success. "
        "KL(target || reference) in nats",
        ["regularizer", "beta", *_TARGET_COLUMNS, *(f"pass@{k}" for k in report.ks)],
        rows,
    )


def _cure(report: Report) -> Sheet:
    columns = ("beta", "expected_reward", "success", "effective_actions", "effective_solutions")
    missing = [f"{row['method']}: {row['reason']}" for row in report.cure if row["beta"] is None]
    return Sheet(
        "The cure. How many of the "
        f"{report.cure[0]['solutions']} solutions each keeps (effective number), all at the "
        f"expected reward {short(report.cure[0]['wanted'], 4)}. MARA pays for what the reference "
        "finds rare, over actions each form of a solution, over answers the solution; it has to be "
        "told which outcomes are good" + "".join(f". {text}" for text in missing),
        ["method", "beta", "E[R]", "success", "actions", "solutions"],
        [[row["method"], *(short(row.get(key), 4) for key in columns)] for row in report.cure],
    )


def _certificates(report: Report, kind: str) -> Sheet:
    rows = []
    for cell in report.cells:
        c = cell.certificates[kind]
        rows.append(
            [
                label(cell.regularizer),
                short(cell.beta),
                c.verdict,
                f"{c.distance.total_variation:.0e}",
                short(c.pace.measured),
                short(c.pace.predicted),
                "-" if c.remaining_steps is None else f"{c.remaining_steps:.0e}",
            ]
        )
    return Sheet(
        f"Certificates of the {_METHOD_NAMES[kind]}. TV: total variation left; rate, measured and "
        "predicted: of log sqrt KL, per step; to go: steps until TV is 1e-6",
        ["regularizer", "beta", "verdict", "TV", "rate", "predicted", "to go"],
        rows,
    )


def _critical_betas(report: Report) -> Sheet:
    def shown(words: str) -> str:
        return words.removeprefix("below ")

    rows = [
        [
            one_line(pair["good"]),
            one_line(pair["rival"]),
            short(pair["reward_gap"]),
            short(pair["log_reference_odds"]),
            shown(pair["reverse_kl_words"]),
            shown(pair["forward_kl_words"]),
        ]
        for pair in report.critical_betas
    ]
    return Sheet(
        "Critical beta. Below it the solution, in its likeliest form, is likelier than the rival, "
        "the likeliest failure; always: at every beta; never: at none",
        ["solution", "rival", "gap", "log odds", "reverse KL", "forward KL"],
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
    outcomes = [report.task.answer(int(i)) for i in likeliest]
    bars = [one_line(name, 24).replace("$", r"\$") for name in outcomes]  # no mathematics
    familiar = [NAMED[spec].label for spec in ("reverse-kl", "forward-kl", "entropy")]
    shown = [name for name in cells if name in familiar] or list(cells)[:3]
    figure = Figure(figsize=(2 * plot.COLUMN, 2.8))
    targets = {name: cells[name].target for name in shown}
    plot.mass_bars(bandit, targets, bars, masks, figure.subplots())
    caption = (
        f"The mass of each different solution at beta = {_beta(cells):g} (the {len(bars)} "
        "likeliest under the reference"
    )
    caption += ")." if report.task.answers is not None else ", each named by its likeliest form)."
    kls = [NAMED[spec].label for spec in ("reverse-kl", "forward-kl")]
    if np.ptp(np.asarray(bandit.reward)[report.correct]) > 0:
        caption += " Their rewards differ, and the targets tell them apart by that too."
    elif any(name in kls for name in shown):
        caption += (
            " A KL to the reference, either way, keeps the reference's odds between equal rewards: "
            "the target solves the task and stays as uneven as the reference."
        )
    if NAMED["entropy"].label in shown:
        caption += (
            " An entropy bonus ignores the reference and weighs a solution by its number of forms."
        )
    return figure, caption


def _draw_effective_number(report: Report) -> tuple[Figure, str]:
    figure = Figure()
    reward = np.asarray(report.task.bandit.reward)
    one_level = np.ptp(reward[report.correct]) == 0
    count = len(np.unique(np.asarray(report.task.bandit.label)[report.correct]))
    number = report.solutions_of_reference
    ceiling = f"{number:.3g} of {count} solutions, under the reference's odds"
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
            "reference's own odds leave. Less regularization cannot lift it."
        )
    if one_level and "entropy" in report.curves:
        caption += (
            " An entropy bonus has a floor of its own: it is even over actions, so that a solution "
            "counts as often as it has forms."
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
    plot.show_steps_to_go(right, {name: c.certificates["softmax"] for name, c in cells.items()})
    right.get_legend().remove()
    right.set_ylabel("")
    caption = (
        f"Distance to the target during training at beta = {_beta(cells):g}. Left: the natural "
        "gradient; thin black lines have the rate that the spectrum predicts. Right: the plain "
        "gradient from the same start, whose rate is scaled by the probability of each action. Its "
        "steps are on a log axis; a dotted line leads to the step at which the flow comes within a "
        "total variation of 1e-6."
    )
    plain = [cell.certificates["softmax"] for cell in cells.values()]
    if any(c.verdict == "plateau" for c in plain):
        caption += " A flat curve with such a line is a plateau, and on its way."
    return figure, caption


def write(report: Report, out: Path, command: str | None = None) -> list[Path]:
    """Write report.json, targets.npz, the figures and index.html into `out`, all or none.

    `command` is what was asked for, to be written down.
    """
    made = provenance(report, command)
    with folder.filling(out) as fresh:
        text = json.dumps(as_json(report, made), indent=1, allow_nan=False)
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
        (fresh / "index.html").write_text(_page(report, images, made), encoding="utf-8")
        return sorted(out / path.name for path in fresh.iterdir())


_CSS = """
body { font: 16px/1.5 Georgia, serif; color: #1a1a1a; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; }
h1, h2 { font-weight: 600; line-height: 1.2; } h1 { margin-bottom: .2rem; }
figure { margin: 2rem 0; } img { max-width: 100%; }
figcaption { max-width: 44rem; color: #333; }
.made { font-size: .8rem; color: #555; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font: 13px/1.4 system-ui, sans-serif; }
th, td { padding: .2rem .6rem; text-align: right; white-space: nowrap; }
th { border-bottom: 1px solid #1a1a1a; } td { border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
"""


def headline(report: Report) -> str:
    """How many certificates there are and what they say."""
    count = len(report.cells) * len(METHODS)
    failing = sum(not c.passes for cell in report.cells for c in cell.certificates.values())
    unsolved = sum(not bool(cell.target.converged) for cell in report.cells)
    first = f"All {count} certificates pass."
    if failing:
        first = f"{failing} of {count} certificates fail or are undecided."
    if unsolved:
        first += f" {unsolved} of {len(report.cells)} targets are not solved to rounding."
    said = []
    for kind, words in report.tally().items():
        counts = ", ".join(f"{n} {word}" for word, n in sorted(words.items()))
        said.append(f"{_METHOD_NAMES[kind]}: {counts}")
    return f"{first} Of {len(report.cells)} targets, {'; '.join(said)}."


def _page(report: Report, images: dict[str, tuple[bytes, str]], made: dict[str, Any]) -> str:
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width'>",
        f"<title>regdist: {html.escape(report.spec)}</title><style>{_CSS}</style></head><body>",
        "<h1>Where regularized training really goes</h1>",
        f"<p>{html.escape(report.task.about)} {html.escape(report.counted)}.</p>",
        f"<p><strong>{html.escape(headline(report))}</strong> A target is the exact optimum of "
        "expected reward minus the regularizer. A certificate says whether the run of a method has "
        "come to it (<em>converges</em>), is proved to be on its way (<em>plateau</em>, with the "
        "steps that remain), or neither.</p>",
    ]
    for name, (png, caption) in images.items():
        data = base64.b64encode(png).decode()
        parts.append(
            f"<figure><img alt='{name}' src='data:image/png;base64,{data}'>"
            f"<figcaption>{html.escape(caption)} <a href='{name}.pdf'>{name}.pdf</a>"
            "</figcaption></figure>"
        )
    for sheet in sheets(report):
        head, _, note = sheet.title.partition(". ")
        parts.append(f"<h2>{html.escape(head)}</h2><p>{html.escape(note)}.</p>")
        parts.append(f"<div class='wide'>{sheet.html()}</div>")
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    command = f"<code>{html.escape(made['command'])}</code>, " if made["command"] else ""
    parts.append(
        "<p>All numbers: <a href='report.json'>report.json</a>; all distributions: "
        "<a href='targets.npz'>targets.npz</a>.</p>"
        f"<p class='made'>{command}{html.escape(made['date'])}, {html.escape(made['float'])} on "
        f"{html.escape(made['machine']['device'])}; {html.escape(versions)}.</p></body></html>"
    )
    return "\n".join(parts)
