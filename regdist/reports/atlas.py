"""The atlas: where every method goes, on several problems, under three expectations.

A cell is one method on one problem under one expectation: the verdict of `identify`, its distances
to the known targets at the nominal beta, its rate, and the entropy it has left when it first
succeeds as often as `LEVEL`. Cells are files, so that a killed atlas goes on where it stopped.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax import Array
from jax.sharding import Mesh
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from regdist import methods as m
from regdist import metrics
from regdist.methods import Expectation, Group, Method, Population, Sampled
from regdist.methods.expectation import prepared
from regdist.plots.figures import style
from regdist.policies.table import log_softmax
from regdist.problems.bandit import Bandit, bandit
from regdist.regularizers.regularizer import Entropy, ForwardKL, ReverseKL
from regdist.runs.driver import run
from regdist.runs.identify import field_jacobian, identify
from regdist.scale import hosts
from regdist.targets.solve import target

BETA = 0.2
LEVEL = 0.6
GROUP = 4
SEEDS = 32

PROBLEMS: dict[str, tuple[str, Callable[[], Bandit]]] = {
    "graded": (
        "six rewards, the best of them unlikely",
        lambda: bandit([1.0, 0.8, 0.6, 0.4, 0.2, 0.0], [0.05, 0.1, 0.15, 0.2, 0.25, 0.25]),
    ),
    "binary": (
        "three right of six, the reference at odds 4:2:1 among them",
        lambda: bandit([1.0, 1.0, 1.0, 0.0, 0.0, 0.0], [0.12, 0.06, 0.03, 0.4, 0.25, 0.14]),
    ),
    "rare": (
        "one right answer in a thousand",
        lambda: bandit([1.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.001, 0.4, 0.25, 0.2, 0.1, 0.049]),
    ),
}

METHODS: dict[str, Callable[[float], Method]] = {
    "k1 in reward": lambda b: m.rloo(beta=b, estimator="k1", placement="reward"),
    "k2 in loss": lambda b: m.rloo(beta=b, estimator="k2"),
    "k3 in loss": lambda b: m.rloo(beta=b, estimator="k3"),
    "k3 in loss, x ratio": lambda b: m.rloo(beta=b, estimator="k3", ratio_corrected=True),
    "k1 in loss": lambda b: m.rloo(beta=b, estimator="k1"),
    "|l| in loss": lambda b: m.rloo(beta=b, estimator="abs"),
    "k2 in reward": lambda b: m.rloo(beta=b, estimator="k2", placement="reward"),
    "k3 in reward": lambda b: m.rloo(beta=b, estimator="k3", placement="reward"),
    "exact KL": lambda b: m.rloo(beta=b, estimator="full"),
    "entropy bonus": m.entropy_bonus,
    "sampled entropy loss": lambda b: m.entropy_bonus(b, sampled_loss=True),
    "GRPO (k3 in loss)": lambda b: m.grpo(b),
    "GRPO (k2 in loss)": lambda b: m.grpo(b, "k2"),
    "Dr. GRPO (k3 in loss)": lambda b: m.dr_grpo(beta=b, estimator="k3"),
    "MaxRL (k2 in loss)": lambda b: m.maxrl(beta=b, estimator="k2"),
    "VarGrad": m.vargrad,
    "GVPO": m.gvpo,
    "FlowRL": lambda _: m.flowrl(),
    "f-DPG": m.fdpg,
    "Nash-MD": m.nash_md,
    "online DPO": m.online_dpo,
    "online DPO, soft labels": lambda b: m.online_dpo(b, hard=False),
    "online IPO": m.online_ipo,
    "REINFORCE": lambda _: m.reinforce(),
    "RLOO": lambda _: m.rloo(),
    "GRPO": lambda _: m.grpo(0.0),
    "DAPO": lambda _: m.dapo(),
    "MaxRL": lambda _: m.maxrl(),
    "pass@k training": lambda _: m.pass_at_k_training(2),
    "positive samples": lambda _: m.psr(),
    "negative samples": lambda _: m.nsr(),
    "MPO": lambda _: m.mpo(),
    "DisCO": lambda _: m.disco(),
    "natural gradient": lambda _: m.natural_policy_gradient(),
}
"""Methods by name, each from the nominal beta."""

EXPECTATIONS: dict[str, Expectation] = {
    "population": Population(),
    f"groups of {GROUP}": Group(GROUP),
    "sampled": Sampled(GROUP),
}


def targets(problem: Bandit) -> dict[str, np.ndarray]:
    """The laws that distances are taken to, at the nominal beta, as log-probabilities."""
    log_q, reward = np.asarray(problem.log_ref), np.asarray(problem.reward)
    best = reward == reward.max()
    likeliest = np.arange(len(reward)) == np.argmax(np.where(best, log_q, -np.inf))
    return {
        "reverse KL": np.asarray(target(problem, ReverseKL(BETA)).log_probs),
        "forward KL": np.asarray(target(problem, ForwardKL(BETA)).log_probs),
        "entropy": np.asarray(target(problem, Entropy(BETA)).log_probs),
        "reference": log_q,
        "reference on the best": np.asarray(
            log_softmax(jnp.asarray(np.where(best, log_q, -np.inf)))
        ),
        "likeliest best": np.where(likeliest, 0.0, -np.inf),
    }


@dataclasses.dataclass(frozen=True)
class Cell:
    """One method on one problem under one expectation.

    Attributes:
        method: its name.
        problem: its name.
        expectation: its name.
        verdict: of `identify`; "drawn" for sampled runs, which have none.
        sentence: the verdict in words.
        nearest: the nearest known target at its best beta.
        distances: total variation from the end to each of `targets`; the mean over seeds if drawn.
        rate: the slowest eigenvalue at the end, 0 where the approach is slower than any rate; None
            if drawn or not standing still.
        entropy_at_level: nats left when success first reaches `LEVEL`; None if it does not.
        entropy: nats left at the end.
        success: mass on the best actions at the end.
    """

    method: str
    problem: str
    expectation: str
    verdict: str
    sentence: str
    nearest: str
    distances: dict[str, float]
    rate: float | None
    entropy_at_level: float | None
    entropy: float
    success: float


def cell(method: str, problem: str, expectation: str) -> Cell:
    """Compute one cell."""
    task, how = PROBLEMS[problem][1](), METHODS[method](BETA)
    over = EXPECTATIONS[expectation]
    best = task.reward == jnp.max(task.reward)
    paths = _paths(how, task, over)
    if over.draws:
        ends = np.asarray(paths[:, -1])
        verdict, sentence, nearest, rate = "drawn", f"{SEEDS} sampled runs", "", None
    else:
        found = identify(how, task, expectation=over)
        ends = found.log_probs[None]
        verdict, sentence, nearest = found.verdict, found.sentence, str(found.candidates[0])
        rate = _rate(how, task, over, found.log_probs) if verdict in _STANDS else None
    near = {
        name: float(np.mean([metrics.total_variation(jnp.asarray(e), aim) for e in ends]))
        for name, aim in ((k, jnp.asarray(v)) for k, v in targets(task).items())
    }
    laws = [jnp.asarray(e) for e in ends]
    return Cell(
        method=method,
        problem=problem,
        expectation=expectation,
        verdict=verdict,
        sentence=sentence,
        nearest=nearest,
        distances=near,
        rate=rate,
        entropy_at_level=_entropy_at_level(paths, best),
        entropy=float(np.mean([metrics.entropy(x) for x in laws])),
        success=float(np.mean([metrics.success(x, best) for x in laws])),
    )


_STANDS = ("converges", "elsewhere", "vertex")
_STEPS, _EVERY = 20_000, 10


def _paths(method: Method, task: Bandit, over: Expectation) -> Array:
    """The policies of a run, or of one for each seed where groups are drawn, shape [S, N, K]."""

    def walk(key: Array | None) -> Array:
        return run(method, task, _STEPS, expectation=over, key=key, record_every=_EVERY).log_probs

    if over.draws:
        return jax.vmap(walk)(jax.random.split(jax.random.key(0), SEEDS))
    return walk(None)[None]


def _entropy_at_level(paths: Array, best: Array) -> float | None:
    """Entropy where success first crosses `LEVEL`, the mean over the paths that reach it."""
    found = []
    for path in paths:
        success = np.asarray(jax.vmap(lambda x: metrics.success(x, best))(path))
        over_it = np.flatnonzero(success >= LEVEL)
        if len(over_it) and over_it[0] > 0:
            i = over_it[0]
            h = np.asarray(jax.vmap(metrics.entropy)(path[i - 1 : i + 1]))
            found.append(float(np.interp(LEVEL, success[i - 1 : i + 1], h)))
    return float(np.mean(found)) if found else None


def _rate(method: Method, task: Bandit, over: Expectation, end: np.ndarray) -> float | None:
    if not method.differentiable:
        return None
    slopes = field_jacobian(method, task, prepared(over, method, task), end)
    if not np.all(np.isfinite(slopes)):
        return None
    eigenvalues = np.linalg.eigvals(slopes)
    order = np.argsort(np.abs(eigenvalues))
    return max(0.0, -float(eigenvalues[order[1:]].real.max()))


def fingerprint() -> str:
    """What a cell depends on beside its names: a folder made otherwise is not mixed in."""
    laws = {
        k: [np.asarray(x).tolist() for x in (p().reward, p().log_ref)]
        for k, (_, p) in PROBLEMS.items()
    }
    about = [importlib.metadata.version("regdist"), BETA, LEVEL, GROUP, SEEDS, _STEPS, laws]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]


def build(
    out: Path,
    names: Sequence[str] | None = None,
    problems: Sequence[str] | None = None,
    progress: Progress | None = None,
    mesh: Mesh | None = None,
) -> list[Cell]:
    """All cells, taken from `out/cells` where they are there, each written as it is made.

    Cells are dealt to the processes of the mesh (default: all devices), and within a process each
    device has a thread. In a run of several processes `out` is one folder, seen by all.

    Raises:
        ValueError: an unknown name, or a folder that another version or setting has made.
    """
    chosen = _known("method", names, METHODS), _known("problem", problems, PROBLEMS)
    members = hosts.team(mesh)
    folder = out / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / "fingerprint"
    if mark.exists() and mark.read_text() != fingerprint():
        raise ValueError(
            f"{out} holds an atlas made with other settings or another version: give another "
            "--out, or remove it"
        )
    with hosts.replacing(mark) as file:
        file.write(fingerprint().encode())
    wanted = [(a, p, e) for p in chosen[1] for a in chosen[0] for e in EXPECTATIONS]
    paths = {
        x: folder / (hashlib.sha256("/".join(x).encode()).hexdigest()[:20] + ".json")
        for x in wanted
    }
    free: queue.SimpleQueue = queue.SimpleQueue()
    for device in members.devices:
        free.put(device)

    def make(names_of: tuple[str, str, str]) -> None:
        if paths[names_of].exists():
            return
        device = free.get()
        try:
            with jax.default_device(device):
                made = dataclasses.asdict(cell(*names_of))
        finally:
            free.put(device)
        with hosts.replacing(paths[names_of]) as file:
            file.write(json.dumps(made, allow_nan=False).encode())

    own = [wanted[i] for i in members.mine(len(wanted))]
    bar = progress.add_task("atlas", total=len(own)) if progress else None
    with ThreadPoolExecutor(len(members.devices)) as pool:
        for names_of, _ in zip(own, pool.map(make, own), strict=True):
            if progress and bar is not None:
                progress.update(bar, advance=1, description=f"{names_of[0]}, {names_of[1]}")
    hosts.agree(members, fingerprint().encode(), "the atlas")
    return [Cell(**json.loads(paths[x].read_text())) for x in wanted]


def _known(what: str, names: Sequence[str] | None, known: dict) -> list[str]:
    unknown = sorted(set(names or ()) - set(known))
    if unknown:
        raise ValueError(f"unknown {what}: {', '.join(unknown)}. Known: {', '.join(known)}")
    return list(names or known)


def _short(x: float | None, digits: int = 2) -> str:
    return "" if x is None else f"{x:.{digits}g}"


def rows(cells: Sequence[Cell], problem: str) -> list[list[str]]:
    """The table of one problem: a row per method."""
    table = []
    for method in dict.fromkeys(c.method for c in cells):
        at = {c.expectation: c for c in cells if (c.method, c.problem) == (method, problem)}
        first = at["population"]
        near = min(first.distances, key=lambda k: first.distances[k])
        table.append(
            [
                method,
                first.verdict,
                first.nearest,
                f"{near} ({first.distances[near]:.2g})",
                at[f"groups of {GROUP}"].verdict,
                at[f"groups of {GROUP}"].nearest,
                _short(first.rate),
                *(_short(at[e].entropy_at_level, 3) for e in EXPECTATIONS),
            ]
        )
    return table


HEADS = (
    "method",
    "population",
    "nearest target",
    f"nearest at beta {BETA:g}",
    f"groups of {GROUP}",
    "nearest target ",
    "rate",
    *(f"H, {e}" for e in EXPECTATIONS),
)


def print_tables(cells: Sequence[Cell], console: Console) -> None:
    """Verdicts, nearest targets and matched entropies in a terminal."""
    for problem in dict.fromkeys(c.problem for c in cells):
        grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for head in HEADS:
            grid.add_column(head)
        for row in rows(cells, problem):
            grid.add_row(*row)
        console.print(f"{problem}: {PROBLEMS[problem][0]}", style="bold", highlight=False)
        console.print(grid)


def figure(cells: Sequence[Cell], problem: str) -> Figure:
    """Distances of every method to every target, and the entropy left at matched success."""
    names = list(dict.fromkeys(c.method for c in cells))
    at = {(c.method, c.expectation): c for c in cells if c.problem == problem}
    columns = list(at[names[0], "population"].distances)
    floor = 1e-4
    near = np.array(
        [[max(at[n, "population"].distances[c], floor) for c in columns] for n in names]
    )
    with plt.rc_context(style()):
        made, (left, right) = plt.subplots(
            1, 2, figsize=(7.0, 1.6 + 0.17 * len(names)), width_ratios=[3, 2], sharey=True
        )
        left.imshow(np.log10(near), cmap="gray", vmin=math.log10(floor), vmax=0, aspect="auto")
        for (i, j), x in np.ndenumerate(near):
            shown = "0" if x <= floor else f"{x:.2f}" if x >= 0.005 else f"{x:.0e}"
            dark = np.log10(x) < -1.6
            left.text(
                j,
                i,
                shown,
                ha="center",
                va="center",
                fontsize=5,
                color="white" if dark else "black",
            )
        left.set_xticks(range(len(columns)), columns, rotation=35, ha="right")
        marks = {"depends on start": "*", "diverges": "!", "cycles": "~"}
        tags = [f"{n} {marks.get(at[n, 'population'].verdict, '')}".strip() for n in names]
        left.set_yticks(range(len(names)), tags)
        left.set_title(f"total variation to the target at beta = {BETA:g}")
        left.tick_params(length=0)
        left.set_xlabel("* depends on the start   ~ never stands still   ! leaves all bounds")
        looks = {
            "population": ("o", "black"),
            f"groups of {GROUP}": ("|", "#d55e00"),
            "sampled": ("x", "#0072b2"),
        }
        for name, (mark, color) in looks.items():
            x = [at[n, name].entropy_at_level for n in names]
            right.plot(
                [math.nan if v is None else v for v in x],
                range(len(names)),
                mark,
                color=color,
                label=name,
                markersize=4,
            )
        right.set_xlabel("nats (no mark: never reached)")
        right.set_title(f"entropy at success {LEVEL:g}", pad=16)
        right.tick_params(left=False)
        right.grid(axis="y", linewidth=0.3)
        right.legend(
            loc="lower center",
            bbox_to_anchor=(0.5, 0.995),
            ncols=3,
            fontsize=6,
            handletextpad=0.1,
            columnspacing=0.8,
        )
    return made


def write(cells: Sequence[Cell], out: Path) -> None:
    """atlas.json, atlas.md and a figure per problem."""
    about = {
        "regdist": importlib.metadata.version("regdist"),
        "jax": jax.__version__,
        "beta": BETA,
        "level": LEVEL,
        "group": GROUP,
        "seeds": SEEDS,
        "cells": [dataclasses.asdict(c) for c in cells],
    }
    (out / "atlas.json").write_text(json.dumps(about, indent=1, allow_nan=False) + "\n")
    text = ["# Where methods go\n"]
    for problem in dict.fromkeys(c.problem for c in cells):
        lines = [HEADS, ["---"] * len(HEADS), *rows(cells, problem)]
        text.append(f"## {problem}: {PROBLEMS[problem][0]}\n\n![{problem}]({problem}.png)\n")
        text.append(
            "\n".join(
                "| " + " | ".join(x.replace("|", "\\|") for x in line) + " |" for line in lines
            )
            + "\n"
        )
        made = figure(cells, problem)
        made.savefig(out / f"{problem}.pdf", metadata={"CreationDate": None})
        made.savefig(out / f"{problem}.png")
        plt.close(made)
    (out / "atlas.md").write_text("\n".join(text))
