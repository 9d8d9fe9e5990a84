"""The command `regdist`."""

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import jax


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status.

    0: done, every certificate passes. 1: done, a certificate fails. 2: bad input, nothing written.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    jax.config.update("jax_enable_x64", True)
    _keep_compiled()
    return options.job(options)


def _keep_compiled() -> None:
    """Compiled programs are kept between runs, unless jax has been told where already."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "regdist"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="regdist",
        description="Exact target distributions of regularised RL, and certificates of where "
        "policy-gradient methods go.",
    )
    version = importlib.metadata.version("regdist")
    parser.add_argument("--version", action="version", version=f"regdist {version}")
    jobs = parser.add_subparsers(required=True, metavar="JOB")
    job = jobs.add_parser(
        "report",
        help="targets, certificates and figures for one problem",
        description="For a grid of coefficients and regularisers: the exact targets, runs of two "
        "methods, a certificate for each, tables, figures and a page.",
    )
    job.set_defaults(job=_report)
    job.add_argument(
        "--problem",
        metavar="P",
        help="game24:4,7,8,8 (any hand), two-modes, or a .csv or .jsonl file with one outcome a "
        "line: outcome, reward, and reference or log_reference or count, optionally label "
        "(default: a built-in Game of 24 hand)",
    )
    job.add_argument(
        "--beta",
        metavar="B,B,...",
        type=_numbers,
        help="coefficients (default: 0.05 to 1 times the spread of the rewards)",
    )
    job.add_argument(
        "--regularizers",
        metavar="N,N,...",
        type=lambda text: text.split(","),
        help="from reverse-kl, forward-kl, jensen-shannon, total-variation, entropy, alpha:A and "
        "sums like reverse-kl+entropy (default: reverse-kl, forward-kl, alpha:0.5, entropy, "
        "reverse-kl+entropy)",
    )
    job.add_argument(
        "--k", metavar="K,K,...", type=_integers, default=[8, 64], help="the k of pass@k"
    )
    job.add_argument(
        "--success",
        metavar="R",
        type=float,
        help="outcomes with at least this reward are solutions (default: the largest reward)",
    )
    job.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("regdist-report"), help="where to write"
    )
    atlas = jobs.add_parser(
        "atlas",
        help="where every method goes, on several problems, under three expectations",
        description="A table and a figure per problem: verdicts, distances to the known targets, "
        "rates, and the entropy left at matched success. Finished cells are kept: a killed atlas "
        "goes on where it stopped.",
    )
    atlas.set_defaults(job=_atlas)
    atlas.add_argument("--methods", metavar="N,N,...", type=lambda text: text.split(","))
    atlas.add_argument("--problems", metavar="N,N,...", type=lambda text: text.split(","))
    atlas.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("regdist-atlas"), help="where to write"
    )
    return parser


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _report(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from regdist.reports import page, report

    complaints = Console(stderr=True)
    console = Console(width=None if sys.stdout.isatty() else 100)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    try:
        if options.out.exists() and not options.out.is_dir():
            raise ValueError(f"--out {options.out} is a file; a folder is wanted")
        with Progress(*columns, TimeElapsedColumn(), console=complaints) as progress:
            made = report.build(
                options.problem or report.DEFAULT_PROBLEM,
                options.beta,
                options.regularizers or report.DEFAULT_REGULARIZERS,
                options.k,
                options.success,
                progress,
            )
    except (ValueError, OSError) as error:
        complaints.print(f"regdist: {error}", style="bold red", highlight=False, markup=False)
        return 2
    console.print(made.task.about, highlight=False)
    page.print_tables(made, console)
    page.write(made, options.out)
    for cell in made.cells:
        for kind, proof in cell.certificates.items():
            if not proof.passes or not cell.target.converged:
                complaints.print(f"FAILS {cell.regularizer} beta={cell.beta:g} {kind}: {proof}")
    console.print(f"Open {options.out / 'index.html'} (figures, tables, report.json beside it).")
    return 0 if made.passes else 1


def _atlas(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from regdist.reports import atlas

    complaints = Console(stderr=True)
    console = Console(width=None if sys.stdout.isatty() else 200)
    try:
        with Progress(console=complaints) as progress:
            cells = atlas.build(options.out, options.methods, options.problems, progress)
    except (ValueError, OSError) as error:
        complaints.print(f"regdist: {error}", style="bold red", highlight=False, markup=False)
        return 2
    atlas.print_tables(cells, console)
    atlas.write(cells, options.out)
    console.print(f"Open {options.out / 'atlas.md'} (figures and atlas.json beside it).")
    return 0
