"""The main job: targets of a problem over a grid, runs that certify them, numbers for a report."""

import dataclasses
import importlib.metadata
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from rich.progress import Progress

from regdist import methods, metrics
from regdist.problems import Task, game_of_24, load, two_modes
from regdist.regularizers.regularizer import (
    AlphaDivergence,
    Entropy,
    ForwardKL,
    JensenShannon,
    Regularizer,
    ReverseKL,
    TotalVariation,
)
from regdist.runs.certify import Certificate, certify
from regdist.runs.driver import Trajectory, run
from regdist.targets.odds import critical_beta
from regdist.targets.solve import Target, target

DEFAULT_PROBLEM = "game24:2,4,6,8"
DEFAULT_REGULARIZERS = ("reverse-kl", "forward-kl", "alpha:0.5", "entropy", "reverse-kl+entropy")
DEFAULT_BETAS = (0.05, 0.1, 0.2, 0.5, 1.0)
METHODS = {"natural": methods.natural_policy_gradient, "softmax": methods.policy_gradient}
_STEPS = {"natural": (400, 4), "softmax": (1000, 10)}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One regulariser at one beta: the target, and per method the run and its certificate."""

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
        tries: the k of pass@k.
        correct: which actions count as solutions, shape [K].
        cells: regulariser-major over the grid.
        rivals: critical betas of the best rival pairs.
        curve_betas: a finer grid for the curves.
        curves: name of the regulariser to effective numbers of answers over the finer grid.
        solutions_of_reference: the effective number of solutions under the reference.
    """

    spec: str
    task: Task
    betas: tuple[float, ...]
    tries: tuple[int, ...]
    correct: np.ndarray
    cells: list[Cell]
    rivals: list[dict[str, Any]]
    curve_betas: np.ndarray
    curves: dict[str, np.ndarray]
    solutions_of_reference: float

    @property
    def passes(self) -> bool:
        """Whether every certificate passes."""
        return all(cell.passes for cell in self.cells)


def problem(spec: str) -> Task:
    """The task that a `--problem` names.

    `game24:A,B,C,D` (optionally `game24:A,B,C,D=TARGET`), `two-modes`, or the path of a `.csv` or
    `.jsonl` file.

    Raises:
        ValueError: unknown, or a bad hand or file.

    >>> problem("two-modes").bandit.num_actions
    40
    """
    if spec == "two-modes":
        return two_modes()
    if spec.startswith("game24:"):
        hand, _, goal = spec.removeprefix("game24:").partition("=")
        try:
            cards, aim = [int(card) for card in hand.split(",")], int(goal) if goal else 24
        except ValueError as error:
            raise ValueError(
                f"a hand is written game24:4,7,8,8 with four positive integers; got {spec!r}"
            ) from error
        return game_of_24(cards, aim)
    if Path(spec).suffix in (".csv", ".jsonl"):
        return load(spec)
    raise ValueError(
        f"unknown problem {spec!r}: give game24:4,7,8,8, two-modes, or a .csv or .jsonl file"
    )


def regularizer(spec: str) -> Callable[[Any], Regularizer]:
    """The constructor from beta that a `--regularizers` entry names.

    `reverse-kl`, `forward-kl`, `jensen-shannon`, `total-variation`, `entropy`, `alpha:A`, or sums
    of them joined by `+`, each with coefficient beta.

    Raises:
        ValueError: unknown.

    >>> regularizer("reverse-kl+entropy")(0.5)
    ReverseKL(0.5) + Entropy(0.5)
    >>> regularizer("forward-kl+jensen-shannon")(0.5)
    ForwardKL(0.5) + JensenShannon(0.5)
    """
    known: dict[str, Callable[[Any], Regularizer]] = {
        "reverse-kl": ReverseKL,
        "forward-kl": ForwardKL,
        "entropy": Entropy,
        "jensen-shannon": JensenShannon,
        "total-variation": TotalVariation,
    }
    makers = []
    for name in spec.split("+"):
        if name.startswith("alpha:"):
            try:
                order = float(name.removeprefix("alpha:"))
            except ValueError as error:
                raise ValueError(f"alpha:A wants a number, like alpha:0.5; got {name!r}") from error
            makers.append(lambda beta, order=order: AlphaDivergence(order, beta))
        elif name in known:
            makers.append(known[name])
        else:
            raise ValueError(
                f"unknown regulariser {name!r}: give {', '.join(known)}, alpha:A, or a sum with +"
            )

    def make(beta: Any) -> Regularizer:
        total = makers[0](beta)
        for maker in makers[1:]:
            total = total + maker(beta)
        return total

    return make


def build(
    spec: str,
    betas: Sequence[float] | None,
    regularizers: Sequence[str],
    tries: Sequence[int],
    threshold: float | None,
    progress: Progress | None = None,
) -> Report:
    """Compute the whole report; long, so it moves a bar.

    Args:
        spec: see `problem`.
        betas: the grid; by default `DEFAULT_BETAS` times the spread of the rewards.
        regularizers: see `regularizer`.
        tries: the k of pass@k.
        threshold: outcomes with at least this reward are solutions; default the largest reward.
        progress: where the bar goes.

    Raises:
        ValueError: anything asked for is unknown or out of range.
    """
    progress = progress or Progress(disable=True)
    task = problem(spec)
    makers = {name: regularizer(name) for name in regularizers}
    bandit = task.bandit
    reward = np.asarray(bandit.reward)
    spread = float(np.ptp(reward[np.isfinite(reward)])) or 1.0
    grid = tuple(b * spread for b in DEFAULT_BETAS) if betas is None else tuple(map(float, betas))
    if not grid or min(grid) <= 0 or not np.all(np.isfinite(grid)):
        raise ValueError(f"betas must be finite numbers above 0; got {grid}")
    if not tries or min(tries) < 1:
        raise ValueError(f"the k of pass@k must be positive integers; got {tuple(tries)}")
    bar = progress.add_task("targets, runs, certificates", total=len(makers) * (len(grid) + 1))
    possible = np.exp(np.asarray(bandit.log_ref)) > 0
    if np.ptp(reward[possible]) == 0:
        raise ValueError(
            f"every outcome has reward {reward[0]:g}, so every target is its anchor"
            + ("; this hand has no solution" if spec.startswith("game24:") else "")
        )
    best = reward[possible].max() if threshold is None else threshold
    correct = reward >= best
    if not (correct & possible).any():
        raise ValueError(f"no outcome that the reference can take has reward >= {best:g}")

    cells = []
    for name, make in makers.items():
        progress.update(bar, description=f"{name}: compiling")
        solve = jax.jit(lambda beta, make=make: _solve(task, make, spread, beta))
        for beta in grid:
            aim, paths = jax.block_until_ready(solve(beta))
            progress.update(bar, description=f"{name}, beta {beta:g}: certifying")
            numbers = _numbers(task, correct, tries, aim)
            proofs = _certificates(task, make(beta), spread, aim, paths)
            cells.append(Cell(name, beta, aim, paths, proofs, numbers))
            progress.advance(bar)
        progress.advance(bar)
    fine = np.geomspace(min(grid) / 2, max(grid) * 4, 49)
    return Report(
        spec=spec,
        task=task,
        betas=grid,
        tries=tuple(tries),
        correct=correct,
        cells=cells,
        rivals=_rivals(task, correct),
        curve_betas=fine,
        curves={name: _curve(task, make, fine) for name, make in makers.items()},
        solutions_of_reference=float(
            metrics.effective_labels(bandit.log_ref, bandit.label, jnp.asarray(correct))
        ),
    )


def learning_rates(reg: Regularizer, spread: float) -> dict[str, Array]:
    """Step sizes at half the stability limit, or less.

    The natural field's Jacobian has entries sum_j beta_j t f_j''(t) at the target, t = p/q, where
    beta_j |f_j'(t)| is at most the spread of the rewards for terms of one sign: term j adds
    beta_j + k_j spread, with k_j its divergence's `steepening`. The softmax's entries are smaller by p.
    """
    beta = sum((t.beta for t in reg.terms), start=jnp.zeros(()))
    steepening = sum((t.divergence.steepening() for t in reg.terms), start=jnp.zeros(()))
    return {"natural": 0.5 / (beta + steepening * spread), "softmax": 1 / (beta + spread)}


def _solve(
    task: Task, make: Callable[[Any], Regularizer], spread: float, beta: Array
) -> tuple[Target, dict[str, Trajectory]]:
    import optax

    reg = make(beta)
    rates = learning_rates(reg, spread)
    paths = {
        kind: run(
            METHODS[kind](reg),
            task.bandit,
            _STEPS[kind][0],
            optax.sgd(rates[kind]),
            record_every=_STEPS[kind][1],
            tolerance=1e-13 * spread,
        )
        for kind in METHODS
    }
    return target(task.bandit, reg), paths


def _certificates(
    task: Task, reg: Regularizer, spread: float, aim: Target, paths: dict[str, Trajectory]
) -> dict[str, Certificate]:
    import optax

    rates = learning_rates(reg, spread)
    return {
        kind: certify(
            METHODS[kind](reg),
            task.bandit,
            aim,
            paths[kind],
            optimizer=optax.sgd(float(rates[kind])),
        )
        for kind in METHODS
    }


def _numbers(task: Task, correct: np.ndarray, tries: Sequence[int], aim: Target) -> dict[str, Any]:
    log_p, bandit = aim.log_probs, task.bandit
    solved = float(metrics.success(log_p, jnp.asarray(correct)))
    top = np.argsort(-np.asarray(log_p))[:20]
    solutions = None
    if solved > 0:
        solutions = float(metrics.effective_labels(log_p, bandit.label, jnp.asarray(correct)))
    return {
        "expected_reward": float(metrics.expected_reward(log_p, bandit.reward)),
        "success": solved,
        "pass_at_k": {str(k): float(metrics.pass_at_k(solved, k)) for k in tries},
        "entropy": float(metrics.entropy(log_p)),
        "effective_actions": float(metrics.hill_number(log_p)),
        "effective_answers": float(metrics.effective_labels(log_p, bandit.label)),
        "effective_solutions": solutions,
        "kl_to_reference": float(metrics.kl(log_p, bandit.log_ref)),
        "kl_from_reference": float(metrics.kl(bandit.log_ref, log_p)),
        "total_variation_to_reference": float(metrics.total_variation(log_p, bandit.log_ref)),
        "value": float(aim.value),
        "multiplier": float(aim.multiplier),
        "residual": float(aim.residual),
        "converged": bool(aim.converged),
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
        aim = target(task.bandit, make(beta))
        return metrics.effective_labels(aim.log_probs, task.bandit.label)

    return np.asarray(jax.jit(lambda b: jax.lax.map(count, b))(jnp.asarray(betas)))


def _rivals(task: Task, correct: np.ndarray, most: int = 10) -> list[dict[str, Any]]:
    """The likeliest form of each solution against the likeliest wrong action, worst odds last."""
    log_q, reward = np.asarray(task.bandit.log_ref), np.asarray(task.bandit.reward)
    label = np.asarray(task.bandit.label)
    lower = np.flatnonzero(~correct & np.isfinite(reward) & np.isfinite(log_q))
    if lower.size == 0:
        return []
    favourite = lower[np.argmax(log_q[lower])]
    chosen: dict[int, int] = {}
    for i in np.argsort(-log_q, kind="stable"):
        if correct[i] and np.isfinite(log_q[i]):
            chosen.setdefault(int(label[i]), int(i))
    return [
        {
            "good": task.outcomes[i],
            "rival": task.outcomes[favourite],
            "reward_gap": float(reward[i] - reward[favourite]),
            "log_reference_odds": float(log_q[i] - log_q[favourite]),
            "reverse_kl": _number(critical_beta(task.bandit, i, int(favourite), ReverseKL)),
            "forward_kl": _number(critical_beta(task.bandit, i, int(favourite), ForwardKL)),
        }
        for i in list(chosen.values())[:most]
    ]


def _number(x: Array) -> float | None:
    return float(x) if np.isfinite(x) else None


def as_json(report: Report) -> dict[str, Any]:
    """All numbers, inputs and versions, as plain JSON values: infinities are strings."""
    bandit = report.task.bandit
    packages = ("regdist", "jax", "numpy", "scipy", "optax", "matplotlib")
    return _plain(
        {
            "passes": report.passes,
            "problem": {
                "spec": report.spec,
                "about": report.task.about,
                "actions": bandit.num_actions,
                "answers": len(np.unique(np.asarray(bandit.label))),
                "solutions": int(report.correct.sum()),
                "success_of_reference": float(
                    metrics.success(bandit.log_ref, jnp.asarray(report.correct))
                ),
                "effective_solutions_of_reference": report.solutions_of_reference,
            },
            "betas": report.betas,
            "pass_at_k": report.tries,
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
            "critical_betas": report.rivals,
            "curves": {"beta": report.curve_betas, "effective_answers": report.curves},
            "versions": {name: importlib.metadata.version(name) for name in packages},
            "python": platform.python_version(),
            "machine": {"platform": platform.platform(), "device": jax.devices()[0].device_kind},
            "float": str(bandit.reward.dtype),
        }
    )


def _plain(x: Any) -> Any:
    if isinstance(x, dict):
        return {str(k): _plain(v) for k, v in x.items()}
    if isinstance(x, list | tuple | np.ndarray):
        return [_plain(v) for v in x]
    if isinstance(x, complex | np.complexfloating):
        return _plain(x.real) if x.imag == 0 else [_plain(x.real), _plain(x.imag)]
    if isinstance(x, float | np.floating):
        return None if np.isnan(x) else float(x) if np.isfinite(x) else str(float(x))
    return x.item() if isinstance(x, np.generic) else x
