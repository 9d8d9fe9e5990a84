"""The command `regdist`: parses, calls, prints."""

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from regdist.problems import names as problems
from regdist.regularizers import names as regularizers
from regdist.reports import atlas, folder, report, tables
from regdist.reports.atlas import Cell
from regdist.reports.report import Report


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status.

    0: done, every certificate passes. 1: done, a certificate fails. 2: bad input, or a folder that
    cannot be written; nothing is written.
    """
    options = _parser().parse_args(arguments)
    jax.config.update("jax_enable_x64", True)
    _keep_compiled()
    complaints = Console(stderr=True)
    console = Console(width=None if sys.stdout.isatty() else options.width)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    try:
        folder.check(options.out)
        with Progress(*columns, TimeElapsedColumn(), console=complaints) as progress:
            results = options.compute(options, progress)
        return options.show(results, options.out, console, complaints)
    except (ValueError, OSError) as error:
        complaints.print(f"regdist: {error}", style="bold red", highlight=False, markup=False)
        return 2


def _keep_compiled() -> None:
    """Compiled programs are kept between runs, unless jax has been told where already."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "regdist"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="regdist",
        description="Exact target distributions of regularized RL, and certificates of where "
        "policy-gradient methods go.",
    )
    version = importlib.metadata.version("regdist")
    parser.add_argument("--version", action="version", version=f"regdist {version}")
    jobs = parser.add_subparsers(required=True, metavar="JOB")
    _add_report(
        jobs.add_parser(
            "report",
            help="targets, certificates and figures for one problem",
            description="For a grid of coefficients and regularizers: the exact targets, runs of "
            "two methods, a certificate for each, tables, figures and a page.",
        )
    )
    _add_atlas(
        jobs.add_parser(
            "atlas",
            help="where every method goes, on several problems, under three expectations",
            description="A table and a figure per problem: verdicts, distances to the known "
            "targets, rates, and the entropy left at matched success. Finished cells are kept: a "
            "killed atlas goes on where it stopped.",
        )
    )
    return parser


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(compute=_report, show=_show_report, width=100)
    parser.add_argument(
        "--problem",
        metavar="P",
        default=report.DEFAULT_PROBLEM,
        help=f"{problems.CHOICES} with one outcome a line: outcome, reward, and reference or "
        "log_reference or count, optionally label (default: %(default)s, a Game of 24 hand)",
    )
    spread = f"{min(report.DEFAULT_BETAS):g} to {max(report.DEFAULT_BETAS):g}"
    parser.add_argument(
        "--beta",
        metavar="B,B,...",
        type=_numbers,
        help=f"coefficients (default: {spread} times the spread of the rewards)",
    )
    parser.add_argument(
        "--regularizers",
        metavar="N,N,...",
        type=_words,
        default=report.DEFAULT_REGULARIZERS,
        help=f"from {regularizers.CHOICES} and sums like reverse-kl+entropy "
        f"(default: {', '.join(report.DEFAULT_REGULARIZERS)})",
    )
    parser.add_argument(
        "--k",
        metavar="K,K,...",
        type=_integers,
        default=report.DEFAULT_KS,
        help=f"the k of pass@k (default: {', '.join(map(str, report.DEFAULT_KS))})",
    )
    parser.add_argument(
        "--success",
        metavar="R",
        type=float,
        help="outcomes with at least this reward are solutions (default: the largest reward)",
    )
    _add_out(parser, "regdist-report")


def _add_atlas(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(compute=_atlas, show=_show_atlas, width=200)
    for option, known in (("--methods", atlas.METHODS), ("--problems", atlas.PROBLEMS)):
        text = f"from {', '.join(known)} (default: all)"
        parser.add_argument(option, metavar="N,N,...", type=_words, help=text)
    _add_out(parser, "regdist-atlas")


def _add_out(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        default=Path(default),
        help="where to write (default: %(default)s)",
    )


def _words(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"write numbers as 0.1,0.5; got {text!r}") from error


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"write integers as 8,64; got {text!r}") from error


def _report(options: argparse.Namespace, progress: Progress) -> Report:
    return report.build(
        options.problem,
        options.beta,
        options.regularizers,
        options.k,
        options.success,
        progress,
    )


def _show_report(results: Report, out: Path, console: Console, complaints: Console) -> int:
    from regdist.reports import page  # imports matplotlib, which bad input need not wait for

    console.print(results.task.about, highlight=False, markup=False)
    tables.show(page.sheets(results), console)
    page.write(results, out)
    for cell in results.cells:
        for kind, certificate in cell.certificates.items():
            if not certificate.passes or not cell.target.converged:
                name = f"{cell.regularizer} beta={cell.beta:g} {kind}"
                complaints.print(f"FAILS {name}: {certificate}", markup=False)
    console.print(f"Open {out / 'index.html'} (figures, tables, report.json beside it).")
    return 0 if results.passes else 1


def _atlas(options: argparse.Namespace, progress: Progress) -> list[Cell]:
    return atlas.build(options.out, options.methods, options.problems, progress)


def _show_atlas(results: list[Cell], out: Path, console: Console, complaints: Console) -> int:
    from regdist.reports import atlas_page  # imports matplotlib, as above

    tables.show(atlas_page.sheets(results).values(), console)
    atlas_page.write(results, out)
    console.print(f"Open {out / 'atlas.md'} (figures and atlas.json beside it).")
    return 0
