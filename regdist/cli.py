"""The command `regdist`: parses, calls, prints."""

import argparse
import importlib.metadata
import io
import json
import os
import re
import runpy
import shlex
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from regdist.methods import Method
from regdist.problems import Task
from regdist.problems import names as problems
from regdist.regularizers import names as regularizers
from regdist.reports import atlas, catalog, folder, report, tables
from regdist.trainers import TRAINERS, as_json, explain, options_page
from regdist.trainers import read as read_settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status.

    0: done, every certificate passes. 1: done, one fails or is undecided. 2: bad input, or a folder
    that cannot be written; nothing is written. 130: stopped by Ctrl-C; it is said what is kept.
    """
    options = _parser().parse_args(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    options.command = shlex.join(["regdist", *given])
    jax.config.update("jax_enable_x64", True)
    _keep_compiled()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name may hold what the encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    complaints = Console(stderr=True)
    console = Console(width=None if sys.stdout.isatty() else options.width)
    try:
        return options.job(options, console, complaints)
    except (ValueError, OSError) as error:
        status, sentence = 2, str(error)
    except KeyboardInterrupt:
        status, sentence = 130, f"stopped: {options.kept.format(options)}"
    complaints.print(f"regdist: {sentence}", style="bold red", highlight=False, markup=False)
    return status


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
    for name, add, text, about in (
        (
            "report",
            _add_report,
            "targets, certificates and figures for one problem",
            "For a grid of coefficients and regularizers: the exact targets, runs of two methods, "
            "a certificate for each, tables, figures and a page.",
        ),
        (
            "atlas",
            _add_atlas,
            "where every method goes, on several problems, under three expectations",
            "A table and a figure per problem: verdicts, distances to the known targets, rates, "
            "and the entropy left at matched success. Finished cells are kept: an atlas that was "
            "stopped goes on where it was.",
        ),
        (
            "methods",
            _add_methods,
            "the catalog of methods: sources, defaults, variants",
            "Every preset of the catalog, or the named ones in full.",
        ),
        (
            "explain",
            _add_explain,
            "what a configuration of a trainer optimizes",
            "The composition that the options of TRL, verl, OpenRLHF or NeMo-RL are, the target "
            "or limit that it has on a table of actions, what people would not expect of it, what "
            "is not covered, and what is not known.",
        ),
    ):
        add(
            jobs.add_parser(
                name,
                help=text,
                description=textwrap.fill(about, 79),
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
        )
    return parser


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(job=_report, width=100, kept="nothing is written")
    parser.epilog = _listing("regularizers", {k: f.label for k, f in regularizers.NAMED.items()})
    parser.add_argument(
        "--problem",
        metavar="P",
        default=report.DEFAULT_PROBLEM,
        help=f"{problems.CHOICES} with one outcome a line: outcome, reward, and count, reference "
        "or log_reference, optionally label; or one sample a line, without a count "
        "(default: %(default)s, a Game of 24 hand)",
    )
    parser.add_argument(
        "--normalize",
        action="store_true",
        help="divide the references of a file by their sum, where that is not 1",
    )
    parser.add_argument(
        "--rest",
        metavar="R0",
        type=_number,
        help="add an outcome of reward R0 with the probability that the references of a file leave",
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
        help="those below, alpha:A, and sums like reverse-kl+entropy "
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
        type=_number,
        help="outcomes with at least this reward are solutions (default: the largest reward)",
    )
    _add_out(parser, "regdist-report")


def _add_atlas(parser: argparse.ArgumentParser) -> None:
    kept = "finished cells are kept in {0.out}/cells; the same command goes on with the others"
    parser.set_defaults(job=_atlas, width=200, kept=kept)
    drawn = textwrap.fill(
        "  ".join(atlas.METHODS),
        79,
        initial_indent="  ",
        subsequent_indent="  ",
        break_on_hyphens=False,
    )
    parser.epilog = "\n\n".join(
        [
            _listing("problems", {name: about for name, (about, _) in atlas.PROBLEMS.items()}),
            f"methods of the default:\n{drawn}",
        ]
    )
    for option, read, text in (
        (
            "--methods",
            _words,
            "names that `regdist methods` shows, or mine.py:name, a function of your own from a "
            "coefficient to a method (default: those below)",
        ),
        ("--problems", _problem_words, "those below, or what report takes (default: all)"),
    ):
        parser.add_argument(option, metavar="N,N,...", type=read, help=text)
    _add_out(parser, "regdist-atlas")


def _add_methods(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(job=_methods, width=100, kept="nothing is written")
    parser.add_argument("names", metavar="NAME", nargs="*", help="such as grpo or grpo/trl")
    parser.add_argument("--json", action="store_true", help="print the entries as JSON")


def _add_explain(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(job=_explain, width=100, kept="nothing is written")
    parser.epilog = _listing("trainers", {name: t.title for name, t in TRAINERS.items()}) + (
        "\n\nexamples:\n  regdist explain config.yaml algorithm.adv_estimator=grpo"
        "\n  regdist explain --trainer openrlhf -- --algo.kl.init_coef 0.01 --algo.kl.use_loss"
    )
    parser.add_argument(
        "settings",
        metavar="FILE|NAME=VALUE",
        nargs="*",
        help="files (YAML, JSON, or a script that sets options) and options; later ones win; flags "
        "after --; none for the trainer's defaults",
    )
    parser.add_argument(
        "--trainer", choices=list(TRAINERS), help="default: by the names of the options"
    )
    parser.add_argument(
        "--problem",
        metavar="P",
        help=f"{problems.CHOICES} as in report (default: four actions, rewards 1, 0, 0.4 and 0.7)",
    )
    parser.add_argument("--json", action="store_true", help="print what is found as JSON")
    parser.add_argument(
        "--options", action="store_true", help="print every option that is read, as Markdown"
    )


def _listing(title: str, rows: Mapping[str, str]) -> str:
    """Names and what they are, a line each, for the end of a help."""
    width = max(map(len, rows))
    return "\n".join([f"{title}:", *(f"  {name:{width}}  {about}" for name, about in rows.items())])


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


def _problem_words(text: str) -> list[str]:
    """The same of problems: the commas within a hand of the Game of 24 are its own."""
    return re.findall(r"game24:[^,]*(?:,[\d=]+(?=,|$))*|[^,]+", text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"write a number as 0.5; got {text!r}") from error


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


def _progress(complaints: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), console=complaints)


def _report(options: argparse.Namespace, console: Console, complaints: Console) -> int:
    folder.check(options.out)
    with _progress(complaints) as progress:
        results = report.build(
            options.problem,
            options.beta,
            options.regularizers,
            options.k,
            options.success,
            progress,
            options.normalize,
            options.rest,
        )
    from regdist.reports import page  # imports matplotlib, which bad input need not wait for

    about = f"{results.task.about} {results.counted}."
    console.print(about, highlight=False, markup=False)
    tables.show(page.sheets(results), console)
    options.kept = "{0.out} may hold some of the files"
    page.write(results, options.out, options.command)
    options.kept = "the results are in {0.out}"
    console.print(page.headline(results), highlight=False, markup=False)
    for cell in results.cells:
        for kind, certificate in cell.certificates.items():
            if not certificate.passes or not cell.target.converged:
                name = f"{cell.regularizer} beta={cell.beta:g} {kind}"
                complaints.print(f"FAILS {name}: {certificate}", markup=False)
    where = f"Open {options.out / 'index.html'} (figures, tables, report.json beside it)."
    console.print(where, markup=False)
    return 0 if results.passes else 1


def _atlas(options: argparse.Namespace, console: Console, complaints: Console) -> int:
    folder.check(options.out)
    with _progress(complaints) as progress:
        methods, problems = options.methods or [], options.problems or []
        own = {x: x.rpartition(":")[2] for x in methods if ".py:" in x}
        files = {x: _plain(x) for x in problems if x not in atlas.PROBLEMS}
        _check_names_differ(own)
        _check_names_differ(files)
        cells = atlas.build(
            options.out,
            [x for x in methods if x not in own],
            [x for x in problems if x not in files],
            progress,
            own_methods={name: _function(x) for x, name in own.items()},
            own_problems={name: _problem(x).bandit for x, name in files.items()},
        )
    from regdist.reports import atlas_page  # imports matplotlib, as above

    tables.show(atlas_page.sheets(cells).values(), console)
    atlas_page.write(cells, options.out)
    where = f"Open {options.out / 'atlas.md'} (figures and atlas.json beside it)."
    console.print(where, markup=False)
    return 0


def _check_names_differ(names: Mapping[str, str]) -> None:
    """Refuses two places that would be one row: a name is all that a table has of them."""
    places: dict[str, str] = {}
    for place, name in names.items():
        if name in places:
            raise ValueError(f"{places[name]} and {place} are both called {name}: rename one")
        places[name] = place


def _function(place: str) -> Callable[[float], Method]:
    """The function that `file.py:name` means."""
    path, _, name = place.rpartition(":")
    if not Path(path).is_file():
        raise ValueError(f"{place}: there is no file {path}")
    found = runpy.run_path(path)
    if not callable(found.get(name)):
        raise ValueError(f"{place}: {path} has no function {name}")
    return found[name]


def _problem(name: str) -> Task:
    is_hand = name.startswith("game24:")
    if not (is_hand or Path(name).suffix or name in problems.NAMED):
        known = ", ".join([*atlas.PROBLEMS, *problems.NAMED, "game24:4,7,8,8 (any hand)"])
        raise ValueError(f"unknown problem: {name!r}. Known: {known}, or a .csv or .jsonl file")
    return problems.by_name(name)


def _plain(name: str) -> str:
    """A name that a file may have."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", Path(name).stem)


def _methods(options: argparse.Namespace, console: Console, complaints: Console) -> int:
    del complaints
    if options.json:
        print(json.dumps(catalog.as_json(options.names), indent=1, allow_nan=False))
        return 0
    tables.show([catalog.details(name) for name in options.names] or [catalog.sheet()], console)
    return 0


def _is_file(word: str) -> bool:
    return Path(word).is_file() or Path(word).suffix in (".yaml", ".yml", ".json", ".sh")


def _explain(options: argparse.Namespace, console: Console, complaints: Console) -> int:
    del complaints
    if options.options:
        print(options_page())
        return 0
    files = [word for word in options.settings if _is_file(word)]
    given = {name: value for file in files for name, value in read_settings(file).items()}
    given |= read_settings([word for word in options.settings if word not in files])
    bandit = None if options.problem is None else _problem(options.problem).bandit
    found = explain(given, options.trainer, bandit=bandit)
    if options.json:
        print(json.dumps(as_json(found), indent=1, allow_nan=False))
    else:
        console.print(str(found), highlight=False, markup=False)
    return 0
