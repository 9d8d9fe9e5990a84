"""Figures of the records: each function draws on matplotlib axes and returns them.

Series differ in color (Okabe and Ito's color-blind-safe set), line style and marker, so that
they stay apart in gray. `style()` holds sizes for a figure one column (3.4 inches) wide.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from jax import Array
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from regdist.metrics import kl
from regdist.numerics.records import Law, check_kind
from regdist.problems.bandit import Bandit, check_bandit
from regdist.runs.certificate import Certificate
from regdist.runs.checks import check_target
from regdist.runs.driver import Trajectory
from regdist.targets.solve import Target

__all__ = [
    "convergence",
    "effective_number",
    "kl_to",
    "mass_bars",
    "rank_curves",
    "show_steps_to_go",
    "style",
]

COLUMN = 3.4
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "P")
_GRAY = "#555555"


def style() -> dict[Any, Any]:
    """RcParams for print: use as `with matplotlib.rc_context(rd.plot.style()):`."""
    return {
        "figure.figsize": (COLUMN, 2.5),
        "figure.dpi": 200,
        "figure.constrained_layout.use": True,
        "font.size": 8,
        "axes.labelsize": 8,
        "axes.titlesize": 8,
        "legend.fontsize": 7,
        "legend.frameon": False,
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        "lines.linewidth": 1.3,
        "lines.markersize": 3.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "pdf.fonttype": 42,
    }


def save(figure: Figure, stem: Path) -> None:
    """Writes `stem`.pdf and `stem`.png in the style of `style()`.

    Matplotlib chooses the fonts of a file as it writes: a figure does not remember its style.
    """
    with plt.rc_context(style()), warnings.catch_warnings():
        # of a name in a script that the font lacks: the figure shows boxes, the tables the name
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from", UserWarning)
        figure.savefig(f"{stem}.pdf", metadata={"CreationDate": None})
        figure.savefig(f"{stem}.png")


def _look(i: int) -> dict[str, Any]:
    return {"color": _COLORS[i % 6], "linestyle": _LINES[i % 6]}


def _axes(ax: Axes | None) -> Axes:
    if ax is None:
        return plt.subplots()[1]
    check_kind("ax", ax, Axes, "From plt.subplots(), or None for a new figure")
    return ax


def _check_names(name: str, given: Any, advice: str) -> None:
    check_kind(name, given, Mapping, f"By name: {advice}")


def _series(bandit: Bandit, targets: Mapping[str, Target]) -> dict[str, Array]:
    """The reference and the targets by name, as log-probabilities."""
    check_bandit(bandit)
    _check_names("targets", targets, '{"reverse KL": rd.target(bandit, rd.ReverseKL(0.1))}')
    for law in targets.values():
        check_target(law, bandit)
    return {"reference": bandit.log_ref, **{k: t.log_probs for k, t in targets.items()}}


def rank_curves(bandit: Bandit, targets: Mapping[str, Target], ax: Axes | None = None) -> Axes:
    """Probabilities of each target from the likeliest action down, against rank, on log axes.

    The reference is the gray line. Actions of probability 0 are left out.
    """
    series = _series(bandit, targets)
    ax = _axes(ax)
    for i, (name, log_p) in enumerate(series.items()):
        p = np.sort(np.exp(np.asarray(log_p)))[::-1]
        p = p[p > 0]
        look = {"color": _GRAY, "linewidth": 2.5, "alpha": 0.5} if i == 0 else _look(i - 1)
        ax.plot(np.arange(1, p.size + 1), p, label=name, **look)
    # Under a few dozen actions ranks are numbers to be read, over it decades.
    few = bandit.num_actions <= 30
    ax.set(yscale="log", xlabel="rank of the action", ylabel="probability")
    ax.set_xscale("linear" if few else "log")
    if few:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend()
    return ax


def mass_bars(
    bandit: Bandit,
    targets: Mapping[str, Target],
    names: Sequence[str],
    groups: Sequence[np.ndarray],
    ax: Axes | None = None,
) -> Axes:
    """Mass of groups of actions under the reference and each target, as grouped bars.

    Args:
        bandit: the problem.
        targets: one bar a group each.
        names: a name for each group.
        groups: a boolean mask [K] for each, in the order of the bars.
        ax: where to draw; by default a new figure.
    """
    series = _series(bandit, targets)
    ax = _axes(ax)
    masks = [np.asarray(mask) for mask in groups]
    if any(m.dtype != bool or m.shape != bandit.reward.shape for m in masks):
        raise ValueError(
            f"groups must be boolean masks over the actions, shape {bandit.reward.shape} each, "
            "such as [bandit.reward >= 1]"
        )
    if isinstance(names, str) or len(names) != len(masks):
        raise ValueError(f"names must be one for each of {len(masks)} groups; got {names!r}")
    width = 0.8 / len(series)
    hatches = ("", "", "////", "....", "xxxx", "\\\\\\\\")
    for i, (name, log_p) in enumerate(series.items()):
        p = np.exp(np.asarray(log_p))
        heights = [p[mask].sum() for mask in masks]
        at = np.arange(len(groups)) + (i - (len(series) - 1) / 2) * width
        color = "#BBBBBB" if i == 0 else _COLORS[(i - 1) % 6]
        ax.bar(
            at,
            heights,
            width,
            label=name,
            color=color,
            edgecolor="black",
            linewidth=0.4,
            hatch=hatches[i % 6],
        )
    ax.set_xticks(np.arange(len(groups)), names, rotation=35, ha="right", rotation_mode="anchor")
    ax.set(ylabel="probability")
    ax.legend()
    return ax


def effective_number(
    betas: np.ndarray,
    curves: Mapping[str, np.ndarray],
    ceilings: Mapping[str, float] | None = None,
    ylabel: str = "effective number",
    ax: Axes | None = None,
) -> Axes:
    """Effective numbers (Hill numbers of order 1) against beta, on a log axis.

    The numbers have a log axis too where they span more than a factor of ten.

    Args:
        betas: coefficients, shape [N].
        curves: name to values, each of shape [N].
        ceilings: name to a value drawn as a thin horizontal line with its name.
        ylabel: what is counted.
        ax: where to draw; by default a new figure.
    """
    _check_names("curves", curves, '{"reverse KL": numbers}')
    for name, values in curves.items():
        if np.shape(values) != np.shape(betas):
            raise ValueError(
                f"curves must have a value at each of betas, shape {np.shape(betas)}; {name!r} has "
                f"shape {np.shape(values)}"
            )
    ax = _axes(ax)
    for i, (name, values) in enumerate(curves.items()):
        every = max(1, len(betas) // 6)
        ax.plot(betas, values, label=name, marker=_MARKERS[i % 6], markevery=(i, every), **_look(i))
    shown = np.concatenate([*curves.values(), list((ceilings or {}).values())])
    yscale = "log" if shown.max() > 10 * shown.min() else "linear"
    ax.set(xscale="log", yscale=yscale, ylabel=ylabel)
    if yscale == "log" and shown.max() < 1e4 * shown.min():
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel(r"coefficient $\beta$ (reward per nat)")
    for name, value in (ceilings or {}).items():
        ax.axhline(value, color=_GRAY, linewidth=0.7)
        ax.annotate(
            name,
            (1, value),
            xycoords=("axes fraction", "data"),
            fontsize=6.5,
            xytext=(0, 2),
            textcoords="offset points",
            ha="right",
            color=_GRAY,
        )
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return ax


def convergence(
    paths: Mapping[str, Trajectory],
    targets: Mapping[str, Target],
    certificates: Mapping[str, Certificate] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """KL(p || target) in nats against steps, on a log axis, with the predicted rate.

    The thin black line behind a run that has come near its target has the slope that the Jacobian
    of the method there predicts for it.
    """
    _check_names("paths", paths, '{"GRPO": rd.run(method, bandit)}')
    _check_names("targets", targets, '{"GRPO": rd.target(bandit, regularizer)}, as in paths')
    if missing := [name for name in paths if name not in targets]:
        raise ValueError(f"targets must have the names of paths; it lacks {missing}")
    distances = {name: kl_to(path, targets[name]) for name, path in paths.items()}
    ax = _axes(ax)
    drawn = False
    for i, (name, path) in enumerate(paths.items()):
        step = np.asarray(path.step)
        distance = distances[name]
        # Laws that agree to 14 digits are 1e-28 apart: below that the distance is rounding.
        shown = (distance > 1e-28) & np.append(True, np.diff(step) > 0)
        ax.plot(
            step[shown],
            distance[shown],
            label=name if np.any(shown) else None,  # infinite: nothing is drawn
            marker=_MARKERS[i % 6],
            markevery=max(1, int(shown.sum()) // 8),
            **_look(i),
        )
        rate = certificates[name].pace.predicted if certificates else None
        if rate is None or not np.isfinite(rate) or shown.sum() < 2:
            continue
        # The line goes through the last record that is clear of rounding.
        clear = np.flatnonzero(distance > 1e-22)[-1]
        line = distance[clear] * np.exp(-2 * rate * (step - step[clear]))
        inside = (line > distance[shown].min() / 3) & (line < distance.max() * 3)
        ax.plot(
            step[inside],
            line[inside],
            color="black",
            linewidth=0.7,
            zorder=1,
        )
        drawn = True
    if drawn:
        ax.plot(
            [], [], color="black", linewidth=0.7, label="predicted rate"
        )  # the last in the legend
    ax.set(yscale="log", xlabel="step", ylabel=r"KL$(p\,\|\,$target$)$ in nats")
    ax.legend()
    return ax


def show_steps_to_go(ax: Axes, certificates: Mapping[str, Certificate]) -> None:
    """A log axis for steps, and a dotted line from the end of each run to where the flow arrives.

    Args:
        ax: drawn by `convergence`.
        certificates: by the names of its paths.
    """
    ax.set_xscale("symlog", linthresh=10)
    for line in list(ax.lines):
        x, y = (np.asarray(v, float) for v in line.get_data())
        c = certificates.get(str(line.get_label()))
        if c is None or not c.remaining_steps or not len(x):
            continue
        # KL is about 2 TV^2 at its least (Pinsker), and the flow ends at a TV of 1e-6.
        end, color = x[-1] + c.remaining_steps, line.get_color()
        ax.plot([x[-1], end], [y[-1], 2e-12], ":", color=color, linewidth=0.8)
        ax.plot([end], [2e-12], "o", color=color, markersize=3, fillstyle="none")


def kl_to(path: Trajectory, target: Target) -> np.ndarray:
    """KL(p || target) at every record of a run, in nats, shape [N].

    Raises:
        TypeError: no run, or no target.
        ValueError: they are over different actions.
    """
    check_kind("path", path, Trajectory, "It is what rd.run returns")
    check_kind("target", target, Law, "Make one: rd.target(bandit, regularizer)")
    return np.asarray(jax.vmap(lambda p: kl(p, target.log_probs))(path.log_probs))
