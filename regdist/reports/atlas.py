"""The atlas: where every method goes, on several problems, under three expectations.

A cell is one method on one problem under one expectation: the verdict of `identify`, its distances
to the known targets at the nominal beta, its rate, and the entropy it has left when it first
succeeds as often as `LEVEL`. `atlas_page` shows them.
"""

import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from rich.progress import Progress

from regdist import metrics
from regdist.methods import Expectation, Group, Method, Population, Sampled
from regdist.methods.expectation import prepared
from regdist.methods.field import field
from regdist.methods.presets.catalog import catalog, entry_of, named
from regdist.numerics.records import described
from regdist.policies.table import log_softmax
from regdist.problems.bandit import Bandit, bandit, check_bandit
from regdist.regularizers.names import NAMED
from regdist.regularizers.regularizer import by_name
from regdist.runs.driver import run
from regdist.runs.identify import identify
from regdist.runs.jacobian import field_jacobian
from regdist.scale import hosts, jobs
from regdist.targets.selection import limit_laws
from regdist.targets.solve import target

BETA = 0.2
"""The nominal coefficient."""
LEVEL = 0.6
"""The success at which the entropies left are compared."""
GROUP = 4
"""Samples of a group."""
SEEDS = 32
"""Drawn runs of a cell."""

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

METHODS: tuple[str, ...] = (
    "rloo/k1-in-reward",
    "rloo/k2",
    "rloo/k3",
    "rloo/k3-ratio-corrected",
    "rloo/k1",
    "rloo/abs",
    "rloo/k2-in-reward",
    "rloo/k3-in-reward",
    "rloo/full",
    "entropy_bonus",
    "entropy_bonus/sampled-loss",
    "grpo",
    "grpo/k2",
    "dr_grpo/k3",
    "maxrl/k2",
    "vargrad",
    "gvpo",
    "flowrl",
    "fdpg",
    "nash_md",
    "online_dpo",
    "online_dpo/soft",
    "online_ipo",
    "reinforce",
    "rloo",
    "grpo/no-penalty",
    "dapo",
    "maxrl",
    "pass_at_k_training/pass-at-2",
    "psr",
    "nsr",
    "mpo",
    "disco",
    "natural_policy_gradient",
)
"""Names of `rd.methods.catalog()`: what an atlas shows unless told otherwise."""

EXPECTATIONS: dict[str, Expectation] = {
    "population": Population(),
    f"groups of {GROUP}": Group(GROUP),
    "sampled": Sampled(GROUP),
}


def targets(problem: Bandit) -> dict[str, Array]:
    """The laws that distances are taken to, at the nominal beta, as log-probabilities."""
    laws = limit_laws(problem)
    return {
        **{
            NAMED[spec].label: target(problem, by_name(spec)(BETA)).log_probs
            for spec in ("reverse-kl", "forward-kl", "entropy")
        },
        "reference": laws["reference"],
        "reference on the best": laws["reference on the best actions"],
        "likeliest best": laws["likeliest of the best actions"],
    }


@dataclasses.dataclass(frozen=True)
class Cell:
    """One method on one problem under one expectation.

    Attributes:
        method: its name in the catalog.
        problem: its name.
        expectation: its name.
        verdict: of `identify`; "drawn" for sampled runs, which have none.
        sentence: the verdict in words.
        nearest: the nearest known target at its best beta.
        distances: total variation from the end to each of `targets`; the mean over seeds if drawn.
        rate: the slowest eigenvalue at the end, 0 where the approach is slower than any rate; None
            if drawn, not standing still, or at one action alone by another geometry.
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


def cell(names: tuple[str, str, str], method: Method, problem: Bandit) -> Cell:
    """Compute one cell, called by the names of the method, the problem and the expectation."""
    method_name, problem_name, expectation_name = names
    expectation = EXPECTATIONS[expectation_name]
    best = problem.reward == jnp.max(problem.reward)
    paths = _paths(method, problem, expectation)
    if expectation.draws:
        ends = paths[:, -1]
        verdict, sentence, nearest, rate = "drawn", f"{SEEDS} sampled runs", "", None
    else:
        identification = identify(method, problem, expectation=expectation)
        ends = jnp.asarray(identification.log_probs[None])
        verdict, sentence = identification.verdict, identification.sentence
        nearest = str(identification.candidates[0])
        stands = verdict in _STANDS
        rate = _rate(method, problem, expectation, identification.log_probs) if stands else None
    return Cell(
        method=method_name,
        problem=problem_name,
        expectation=expectation_name,
        verdict=verdict,
        sentence=sentence,
        nearest=nearest,
        distances={
            name: _mean(metrics.total_variation(end, law) for end in ends)
            for name, law in targets(problem).items()
        },
        rate=rate,
        entropy_at_level=_entropy_at_level(paths, best),
        entropy=_mean(metrics.entropy(end) for end in ends),
        success=_mean(metrics.success(end, best) for end in ends),
    )


_STANDS = ("converges", "coincides", "elsewhere", "vertex")
# Steps of a run, in which success may reach `LEVEL`, and from record to record.
_STEPS, _EVERY = 20_000, 10


def _mean(values: Iterable[Array]) -> float:
    return float(np.mean(list(values)))


def _paths(method: Method, problem: Bandit, expectation: Expectation) -> Array:
    """The policies of a run, or of one for each seed where groups are drawn, shape [S, N, K]."""

    def walk(key: Array | None) -> Array:
        return run(
            method, problem, _STEPS, expectation=expectation, key=key, record_every=_EVERY
        ).log_probs

    if expectation.draws:
        return jax.vmap(walk)(jax.random.split(jax.random.key(0), SEEDS))
    return walk(None)[None]


def _entropy_at_level(paths: Array, best: Array) -> float | None:
    """Entropy where success first crosses `LEVEL`, the mean over the paths that reach it."""
    entropies = []
    for path in paths:
        success = np.asarray(jax.vmap(lambda x: metrics.success(x, best))(path))
        reached = np.flatnonzero(success >= LEVEL)
        if len(reached) and reached[0] > 0:
            i = reached[0]
            h = np.asarray(jax.vmap(metrics.entropy)(path[i - 1 : i + 1]))
            entropies.append(float(np.interp(LEVEL, success[i - 1 : i + 1], h)))
    return float(np.mean(entropies)) if entropies else None


def _rate(
    method: Method, problem: Bandit, expectation: Expectation, end: np.ndarray
) -> float | None:
    if not method.differentiable:
        return None
    if np.sum(~np.isneginf(end)) == 1:  # the softmax gradient comes to it like 1/t
        return 0.0 if method.geometry == "softmax" else None
    slopes = field_jacobian(method, problem, prepared(expectation, method, problem), end)
    if not np.all(np.isfinite(slopes)):
        return None
    eigenvalues = np.linalg.eigvals(slopes)
    order = np.argsort(np.abs(eigenvalues))
    return max(0.0, -float(eigenvalues[order[1:]].real.max()))


_NAMES = "catalog"  # what cells call methods by; older folders have names of their own


def fingerprint() -> str:
    """What a cell depends on beside its names: a folder made otherwise is not mixed in."""
    laws = {
        k: [np.asarray(x).tolist() for x in (p().reward, p().log_ref)]
        for k, (_, p) in PROBLEMS.items()
    }
    about = [importlib.metadata.version("regdist"), _NAMES, BETA, LEVEL, GROUP, SEEDS, _STEPS, laws]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]


def build(
    out: Path,
    methods: Sequence[str] | None = None,
    problems: Sequence[str] | None = None,
    progress: Progress | None = None,
    mesh: Mesh | None = None,
    *,
    own_methods: Mapping[str, Callable[[float], Method]] | None = None,
    own_problems: Mapping[str, Bandit] | None = None,
) -> list[Cell]:
    """All cells, taken from `out/cells` where they are there, each written as it is made.

    See `jobs.run`: a killed atlas goes on where it stopped. A cell of a method or problem of one's
    own is known by what these compute, so that a changed one is another.

    Args:
        out: the folder; in a run of several processes it is one, seen by all.
        methods: names of the catalog, see `check_method`; default `METHODS`, or none beside own.
        problems: names from `PROBLEMS`, default all, or none beside own.
        progress: where a bar goes, if anywhere.
        mesh: whose devices and processes share the cells; default all.
        own_methods: by name, functions from a coefficient to a method.
        own_problems: by name.

    Raises:
        ValueError: a name that is unknown, taken or cannot be shown, or a folder that another
            version or setting has made.
    """
    own_methods, own_problems = dict(own_methods or {}), dict(own_problems or {})
    unknown = [name for name in problems or () if name not in PROBLEMS]
    if unknown:
        raise ValueError(f"unknown problem: {unknown[0]!r}. Known: {', '.join(PROBLEMS)}")
    for name in methods or ():
        check_method(name)
    _check_own(own_methods, [entry.name for entry in catalog()])
    _check_own(own_problems, PROBLEMS)
    for name, make in own_methods.items():
        if not callable(make):
            raise TypeError(
                f"own_methods[{name!r}] must be a function from a coefficient to a method; got "
                f"{described(make)}"
            )
    for problem in own_problems.values():
        check_bandit(problem)
    rows = {name: named(name, BETA) for name in methods or (() if own_methods else METHODS)}
    rows |= {name: make(BETA) for name, make in own_methods.items()}
    tables = {n: PROBLEMS[n][1]() for n in problems or (() if own_problems else PROBLEMS)}
    tables |= own_problems
    for name, method in rows.items():
        if not isinstance(method, Method):
            raise ValueError(f"{name} makes no method of a coefficient; got {described(method)}")
        for problem in tables.values() if name in own_methods else ():
            _check_shown(name, method, problem)
    work = {}
    for p, m in itertools.product(tables, rows):
        own = (_about(rows[m], tables[p]),) if m in own_methods or p in own_problems else ()
        work |= {(m, p, e, *own): (m, p, e) for e in EXPECTATIONS}
    progress = progress or Progress(disable=True)
    bar = progress.add_task("atlas", total=len(hosts.team(mesh).mine(len(work))))
    cells = jobs.run(
        lambda name: dataclasses.asdict(cell(work[name], rows[name[0]], tables[name[1]])),
        list(work),
        out / "cells",
        fingerprint(),
        mesh=mesh,
        done=lambda name: progress.update(bar, advance=1, description=f"{name[0]}, {name[1]}"),
    )
    return [Cell(**values) for values in cells]


def check_method(name: str) -> None:
    """Refuses what the atlas cannot show.

    Raises:
        ValueError: the name is not of the catalog, its preset needs more than a coefficient, or
            the method does not exist under one of the expectations.
    """
    missing = entry_of(name).missing(name)
    if missing:
        raise ValueError(
            f"{name} needs {', '.join(missing)}, and the atlas gives a coefficient alone: make "
            "it with rd.methods.named and call rd.identify"
        )
    _check_shown(name, named(name, BETA), next(iter(PROBLEMS.values()))[1]())


def _check_shown(name: str, method: Method, problem: Bandit) -> None:
    for label, expectation in EXPECTATIONS.items():
        try:
            prepared(expectation, method, problem)
        except ValueError as error:
            raise ValueError(f"the atlas cannot show {name} ({label}): {error}") from error


def _check_own(names: Iterable[str], taken: Iterable[str]) -> None:
    """Names of one's own are those of files too."""
    for name in names:
        if not re.fullmatch(r"[\w.-]+", name, re.ASCII):
            raise ValueError(f"a name of one's own has letters, digits, ., - and _; got {name!r}")
        if name in taken:
            raise ValueError(f"{name!r} is a name of regdist's: give yours another")


def _about(method: Method, problem: Bandit) -> str:
    """What a method computes on a problem at two policies, and the problem, as a digest."""
    uniform = log_softmax(jnp.zeros_like(problem.log_ref))
    at = [x for x in (problem.log_ref, uniform) if np.all(np.isfinite(x))]
    numbers = [problem.reward, problem.log_ref, *(field(method, x, problem) for x in at)]
    text = json.dumps([[f"{x:.10e}" for x in np.asarray(row)] for row in numbers])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
