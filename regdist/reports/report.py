"""The main job: targets of a problem over a grid, runs that certify them, numbers for a report."""

import dataclasses
import datetime
import importlib.metadata
import math
import platform
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from rich.progress import Progress

from regdist import methods, metrics, problems
from regdist.problems import Task
from regdist.regularizers.regularizer import ForwardKL, Regularizer, ReverseKL, by_name
from regdist.reports.cure import cure
from regdist.reports.plain import plain
from regdist.runs.certificate import Certificate
from regdist.runs.certify import certify
from regdist.runs.driver import Trajectory, run
from regdist.targets.odds import critical_beta
from regdist.targets.solve import Target, target

DEFAULT_PROBLEM = "game24:2,4,6,8"
DEFAULT_REGULARIZERS = ("reverse-kl", "forward-kl", "alpha:0.5", "entropy", "reverse-kl+entropy")
DEFAULT_BETAS = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Coefficients, in units of the spread of the rewards."""
DEFAULT_KS = (8, 64)
METHODS = {"natural": methods.natural_policy_gradient, "softmax": methods.policy_gradient}
# Steps of a run, and from record to record. At these rates the natural gradient of reverse KL
# halves its distance at each step: it has long come to rounding. The plain one shows its plateau.
_STEPS = {"natural": (400, 4), "softmax": (1000, 10)}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One regularizer at one beta: the target, and per method the run and its certificate."""

    regularizer: str
    beta: float
    target: Target
    paths: dict[str, Trajectory]
    certificates: dict[str, Certificate]
    numbers: dict[str, Any]

    @property
    def passes(self) -> bool:
        """Whether the target is solved and every method has it as its limit."""
        return bool(self.target.converged) and all(c.passes for c in self.certificates.values())


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that is printed, drawn and saved.

    Attributes:
        spec: the problem as it was asked for.
        task: the problem.
        betas: the grid.
        ks: the k of pass@k.
        correct: which actions count as solutions, shape [K].
        counted: how many those are and why, in words.
        cells: regularizer-major over the grid.
        critical_betas: of pairs of a solution and its likeliest rival.
        cure: what keeps more than few solutions, at matched expected reward; see `cure`.
        curve_betas: a finer grid for the curves.
        curves: name of the regularizer to effective numbers of answers over the finer grid.
        solutions_of_reference: the effective number of solutions under the reference.
    """

    spec: str
    task: Task
    betas: tuple[float, ...]
    ks: tuple[int, ...]
    correct: np.ndarray
    counted: str
    cells: list[Cell]
    critical_betas: list[dict[str, Any]]
    cure: list[dict[str, Any]]
    curve_betas: np.ndarray
    curves: dict[str, np.ndarray]
    solutions_of_reference: float

    @property
    def passes(self) -> bool:
        """Whether every certificate passes."""
        return all(cell.passes for cell in self.cells)

    def tally(self) -> dict[str, dict[str, int]]:
        """How many certificates of each method have each verdict."""
        return {
            kind: dict(Counter(cell.certificates[kind].verdict for cell in self.cells))
            for kind in METHODS
        }


def build(
    spec: str = DEFAULT_PROBLEM,
    betas: Sequence[float] | None = None,
    regularizers: Sequence[str] = DEFAULT_REGULARIZERS,
    ks: Sequence[int] = DEFAULT_KS,
    threshold: float | None = None,
    progress: Progress | None = None,
    normalize: bool = False,
    rest: float | None = None,
) -> Report:
    """Compute the whole report; long, so it moves a bar.

    Args:
        spec: the problem, see `rd.problems.by_name`.
        betas: the grid; by default `DEFAULT_BETAS` times the spread of the rewards.
        regularizers: see `names.parse`.
        ks: the k of pass@k.
        threshold: outcomes with at least this reward are solutions; default the largest reward.
        progress: where the bar goes, if anywhere.
        normalize: see `rd.problems.load`.
        rest: see `rd.problems.load`.

    Raises:
        ValueError: anything asked for is unknown or out of range.
    """
    task = problems.by_name(spec, normalize=normalize, rest=rest)
    constructors = {name: by_name(name) for name in regularizers}
    bandit, reward = task.bandit, np.asarray(task.bandit.reward)
    spread = float(np.ptp(reward[np.isfinite(reward)])) or 1.0
    grid = tuple(b * spread for b in DEFAULT_BETAS) if betas is None else tuple(map(float, betas))
    if not grid or min(grid) <= 0 or not np.all(np.isfinite(grid)):
        raise ValueError(f"betas must be finite numbers above 0; got {grid}")
    if not ks or min(ks) < 1:
        raise ValueError(f"the k of pass@k must be positive integers; got {tuple(ks)}")
    correct = _solutions(spec, task, threshold)
    progress = progress or Progress(disable=True)
    cells = _cells(task, constructors, grid, spread, correct, ks, progress)
    fine = np.geomspace(min(grid) / 2, max(grid) * 4, 49)
    return Report(
        spec=spec,
        task=task,
        betas=grid,
        ks=tuple(ks),
        correct=correct,
        counted=_counted(task, correct, threshold),
        cells=cells,
        critical_betas=_critical_betas(task, correct),
        cure=_cure(task, correct, progress),
        curve_betas=fine,
        curves={name: _curve(task, make, fine) for name, make in constructors.items()},
        solutions_of_reference=float(
            metrics.effective_labels(bandit.log_ref, bandit.label, jnp.asarray(correct))
        ),
    )


def _cure(task: Task, correct: np.ndarray, progress: Progress) -> list[dict[str, Any]]:
    bar = progress.add_task("the cure", total=4)
    return cure(task, correct, lambda: progress.advance(bar))


def _solutions(spec: str, task: Task, threshold: float | None) -> np.ndarray:
    """Which actions count as solutions, shape [K]; refuses problems without any."""
    reward = np.asarray(task.bandit.reward)
    possible = np.exp(np.asarray(task.bandit.log_ref)) > 0
    if np.ptp(reward[possible]) == 0:
        raise ValueError(
            f"every outcome has reward {reward[0]:g}, so every target is its anchor"
            + ("; this hand has no solution" if spec.startswith("game24:") else "")
        )
    best = reward[possible].max() if threshold is None else threshold
    correct = reward >= best
    if not (correct & possible).any():
        raise ValueError(f"no outcome that the reference can take has reward >= {best:g}")
    return correct


def _counted(task: Task, correct: np.ndarray, threshold: float | None) -> str:
    reward = np.asarray(task.bandit.reward)
    level = reward[correct].min() if threshold is None else threshold
    why = "the largest" if threshold is None else "as asked"
    said = (
        f"{correct.sum():,} of {len(reward):,} outcomes count as solutions: reward >= {level:g}, "
    )
    levels = len(np.unique(reward[np.isfinite(reward)]))
    if threshold is None and levels > 2 and correct.sum() < 0.05 * len(reward):  # graded: few
        return f"{said}{why} of {levels:,} different ones; --success sets another level"
    return said + why


def _cells(
    task: Task,
    constructors: dict[str, Callable[[Any], Regularizer]],
    betas: Sequence[float],
    spread: float,
    correct: np.ndarray,
    ks: Sequence[int],
    progress: Progress,
) -> list[Cell]:
    total = len(constructors) * (len(betas) + 1)
    bar = progress.add_task("targets, runs, certificates", total=total)
    cells = []
    for name, make in constructors.items():
        progress.update(bar, description=f"{name}: compiling")
        solve = jax.jit(lambda beta, make=make: _solve(task, make, spread, beta))
        for beta in betas:
            optimum, paths = jax.block_until_ready(solve(beta))
            progress.update(bar, description=f"{name}, beta {beta:g}: certifying")
            numbers = _numbers(task, correct, ks, optimum)
            certificates = _certificates(task, make(beta), spread, optimum, paths)
            cells.append(Cell(name, beta, optimum, paths, certificates, numbers))
            progress.advance(bar)
        progress.advance(bar)
    return cells


def learning_rates(regularizer: Regularizer, spread: float) -> dict[str, Array]:
    """Step sizes at half the stability limit, or less.

    The natural field's Jacobian has entries sum_j beta_j t f_j''(t) at the target, t = p/q, where
    beta_j |f_j'(t)| is at most the spread of the rewards (terms with one anchor have one sign):
    term j adds beta_j + k_j spread, with k_j its divergence's `steepening`. The softmax's entries
    are smaller by p.
    """
    beta = sum((t.beta for t in regularizer.terms), start=jnp.zeros(()))
    steepening = sum((t.divergence.steepening() for t in regularizer.terms), start=jnp.zeros(()))
    return {"natural": 0.5 / (beta + steepening * spread), "softmax": 1 / (beta + spread)}


def _solve(
    task: Task, make: Callable[[Any], Regularizer], spread: float, beta: Array
) -> tuple[Target, dict[str, Trajectory]]:
    import optax

    regularizer = make(beta)
    rates = learning_rates(regularizer, spread)
    paths = {
        kind: run(
            METHODS[kind](regularizer),
            task.bandit,
            steps=_STEPS[kind][0],
            optimizer=optax.sgd(rates[kind]),
            record_every=_STEPS[kind][1],
            tolerance=1e-13 * spread,  # what rounding leaves of a field that vanishes
        )
        for kind in METHODS
    }
    return target(task.bandit, regularizer), paths


def _certificates(
    task: Task,
    regularizer: Regularizer,
    spread: float,
    optimum: Target,
    paths: dict[str, Trajectory],
) -> dict[str, Certificate]:
    import optax

    rates = learning_rates(regularizer, spread)
    return {
        kind: certify(
            METHODS[kind](regularizer),
            task.bandit,
            optimum,
            paths[kind],
            optimizer=optax.sgd(float(rates[kind])),
        )
        for kind in METHODS
    }


def _numbers(task: Task, correct: np.ndarray, ks: Sequence[int], optimum: Target) -> dict[str, Any]:
    log_p, bandit = optimum.log_probs, task.bandit
    solved = float(metrics.success(log_p, jnp.asarray(correct)))
    top = np.argsort(-np.asarray(log_p))[:20]
    solutions = None
    if solved > 0:
        solutions = float(metrics.effective_labels(log_p, bandit.label, jnp.asarray(correct)))
    return {
        "expected_reward": float(metrics.expected_reward(log_p, bandit.reward)),
        "success": solved,
        "pass_at_k": {str(k): float(metrics.pass_at_k(solved, k)) for k in ks},
        "entropy": float(metrics.entropy(log_p)),
        "effective_actions": float(metrics.hill_number(log_p)),
        "effective_answers": float(metrics.effective_labels(log_p, bandit.label)),
        "effective_solutions": solutions,
        "kl_to_reference": float(metrics.kl(log_p, bandit.log_ref)),
        "kl_from_reference": float(metrics.kl(bandit.log_ref, log_p)),
        "total_variation_to_reference": float(metrics.total_variation(log_p, bandit.log_ref)),
        "value": float(optimum.value),
        "multiplier": float(optimum.multiplier),
        "residual": float(optimum.residual),
        "converged": bool(optimum.converged),
        "likeliest": [
            {
                "outcome": task.outcomes[i],
                "reward": float(bandit.reward[i]),
                "log_prob": float(log_p[i]),
            }
            for i in top
        ],
    }


def _curve(task: Task, make: Callable[[Any], Regularizer], betas: np.ndarray) -> np.ndarray:
    def count(beta: Array) -> Array:
        optimum = target(task.bandit, make(beta))
        return metrics.effective_labels(optimum.log_probs, task.bandit.label)

    return np.asarray(jax.jit(lambda b: jax.lax.map(count, b))(jnp.asarray(betas)))


def _critical_betas(task: Task, correct: np.ndarray, most: int = 10) -> list[dict[str, Any]]:
    """The likeliest form of each solution against the likeliest wrong action, worst odds last."""
    log_q, reward = np.asarray(task.bandit.log_ref), np.asarray(task.bandit.reward)
    label = np.asarray(task.bandit.label)
    lower = np.flatnonzero(~correct & np.isfinite(reward) & np.isfinite(log_q))
    if lower.size == 0:
        return []
    rival = lower[np.argmax(log_q[lower])]
    forms: dict[int, int] = {}
    for i in np.argsort(-log_q, kind="stable"):
        if correct[i] and np.isfinite(log_q[i]):
            forms.setdefault(int(label[i]), int(i))
    return [
        {
            "good": task.answer(i),
            "rival": task.answer(int(rival)),
            "reward_gap": float(reward[i] - reward[rival]),
            "log_reference_odds": float(log_q[i] - log_q[rival]),
            **{name: beta for name, (beta, _) in found.items()},
            **{f"{name}_words": words for name, (_, words) in found.items()},
        }
        for i in list(forms.values())[:most]
        for found in [
            {
                name: in_words(critical_beta(task.bandit, i, int(rival), family))
                for name, family in (("reverse_kl", ReverseKL), ("forward_kl", ForwardKL))
            }
        ]
    ]


def in_words(critical: Any) -> tuple[float, str]:
    """A critical beta, and from where the solution leads."""
    beta = float(critical)
    if math.isnan(beta):
        return beta, "undecided by beta: equal rewards"
    if beta == 0:
        return beta, "never"
    return beta, "always" if math.isinf(beta) else f"below {beta:.3g}"


def provenance(report: Report, command: str | None = None) -> dict[str, Any]:
    """What made a report: versions, the command, when, on what, with which numbers."""
    packages = ("regdist", "jax", "numpy", "scipy", "optax", "matplotlib")
    return {
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": {"platform": platform.platform(), "device": jax.devices()[0].device_kind},
        "float": str(report.task.bandit.reward.dtype),
    }


def as_json(report: Report, made: dict[str, Any]) -> dict[str, Any]:
    """All numbers, inputs and `provenance`, as plain JSON values: infinities are strings."""
    bandit = report.task.bandit
    return plain(
        {
            "passes": report.passes,
            "verdicts": report.tally(),
            "problem": {
                "spec": report.spec,
                "about": report.task.about,
                "actions": bandit.num_actions,
                "answers": len(np.unique(np.asarray(bandit.label))),
                "solutions": int(report.correct.sum()),
                "solutions_are": report.counted,
                "success_of_reference": float(
                    metrics.success(bandit.log_ref, jnp.asarray(report.correct))
                ),
                "effective_solutions_of_reference": report.solutions_of_reference,
            },
            "betas": report.betas,
            "pass_at_k": report.ks,
            "cells": [
                {
                    "regularizer": cell.regularizer,
                    "beta": cell.beta,
                    "passes": cell.passes,
                    **cell.numbers,
                    "certificates": {
                        k: {**dataclasses.asdict(c), "passes": c.passes}
                        for k, c in cell.certificates.items()
                    },
                }
                for cell in report.cells
            ],
            "critical_betas": report.critical_betas,
            "cure": report.cure,
            "curves": {"beta": report.curve_betas, "effective_answers": report.curves},
            **made,
        }
    )
