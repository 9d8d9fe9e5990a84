"""Run the benchmarks: `python -m benchmarks`, each contender in a process of its own.

With `--toy` all run in this process, at tiny sizes: to see that they still run.
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import jax
from rich.console import Console
from rich.progress import Progress

from benchmarks import curves, limits, runs, scale, targets
from benchmarks.work import Contender, Work, measure

ROOT = Path(__file__).parent
PACKAGES = ("regdist", "jax", "jaxlib", "numpy", "scipy", "optax", "torch", "optimistix", "cvxpy")
NEEDS = {"torch": "torch", "optimistix": "optimistix", "cvxpy": "cvxpy"}


def works(toy: bool) -> dict[str, Work]:
    """All of them, in order."""
    parts = (limits.limits, targets.targets, runs.runs, scale.scale)
    return {name: work for part in parts for name, work in part(toy).items()}


def measured(name: str, contender: str, arguments: argparse.Namespace) -> dict:
    """Measure one contender in this process."""
    work = works(arguments.toy)[name]
    return measure(work.contenders[contender], work.data(), arguments.seconds)


def apart(name: str, contender: str, about: Contender, arguments: argparse.Namespace) -> dict:
    """Measure one contender in a process of its own."""
    command = [sys.executable, "-m", "benchmarks", "--child", name, contender]
    command += ["--seconds", str(arguments.seconds)]
    env = {**os.environ, **about.env, "PYTHONPATH": str(ROOT.parent)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=ROOT.parent)
    if done.returncode:
        raise SystemExit(f"{name}, {contender} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def parent(arguments: argparse.Namespace) -> list[dict]:
    """Measure all contenders, one after the other."""
    chosen = {n: w for n, w in works(arguments.toy).items() if arguments.only in n}
    total = sum(len(work.contenders) for work in chosen.values())
    found = []
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("benchmarks", total=total)
        for name, work in chosen.items():
            times = {}
            for contender, about in work.contenders.items():
                progress.update(bar, advance=1, description=f"{name}: {contender}")
                missing = [p for word, p in NEEDS.items() if word in contender and not _has(p)]
                if missing:
                    times[contender] = {"missing": missing[0]}
                    continue
                if arguments.toy:
                    times[contender] = measured(name, contender, arguments)
                else:
                    times[contender] = apart(name, contender, about, arguments)
            found.append({"work": name, "about": work.about, "times": times, **_shares(work)})
    return found


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _shares(work: Work) -> dict:
    keys = ("goals", "bytes", "exponentials", "dtype", "exact")
    return {key: getattr(work, key) for key in keys}


def table(found: list[dict]) -> list[str]:
    """Markdown: times, ratios to regdist, goals, and shares of the limits measured in this run."""
    most = {}
    for row in found:
        for kind in ("copy", "exp"):
            if row["work"].startswith(f"{kind}, "):
                amount = row["bytes"] if kind == "copy" else row["exponentials"]
                most[kind, row["dtype"]] = amount / next(iter(row["times"].values()))["least"]
    lines = [
        "| work | contender | time | ratio to regdist | goal | of the copy | of the exponentials "
        "| same answer to |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        first = next(iter(row["times"].values()))
        for contender, time in row["times"].items():
            if "missing" in time:
                lines.append(f"| {row['work']} | {contender} | not installed | | | | | |")
                continue
            goal = row["goals"].get(contender)
            shares = []
            for kind, amount in (("copy", row["bytes"]), ("exp", row["exponentials"])):
                peak = most.get((kind, row["dtype"]))
                known = peak and amount and contender.startswith("regdist")
                shares.append(f"{amount / time['least'] / peak:.2f}" if known else "")
            differs = ""
            if row["exact"] and time is not first:
                pairs = zip(time["answer"], first["answer"], strict=False)
                differs = f"{max(abs(a - b) for a, b in pairs):.0e}"
            cells = [
                row["work"],
                contender,
                f"{1e3 * time['least']:.4g} ms",
                "" if time is first else f"{time['least'] / first['least']:.3g}",
                "" if goal is None else f"{goal:.3g}",
                *shares,
                differs,
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def told(found: list[dict], chosen: dict[str, Work]) -> list[str]:
    """Sentences of works whose answers say more than their times."""
    lines = []
    for row in found:
        reads = chosen[row["work"]].reads
        first = next(iter(row["times"].values()))
        if reads is not None and "answer" in first:
            lines.append(f"- {row['work']}: {reads(first['answer'])}")
    return lines


def grown(arguments: argparse.Namespace) -> list[curves.Curve]:
    """The cost curves, in a process of their own."""
    if arguments.toy:
        return curves.curves(0.0, {"K": curves.SIZES["K"][:2]})
    command = [sys.executable, "-m", "benchmarks", "--curves"]
    command += ["--seconds", str(arguments.seconds)]
    env = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, cwd=ROOT.parent)
    done.check_returncode()
    return [curves.Curve(*row) for row in json.loads(done.stdout.splitlines()[-1])]


def machine() -> dict:
    """What it was measured on, and with what."""
    names = {line.split(":")[0].strip(): line for line in _cpuinfo()}
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": names.get("model name", platform.processor()).split(":")[-1].strip(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "device": str(jax.devices()[0].device_kind),
        "versions": {p: importlib.metadata.version(p) for p in PACKAGES if _has(p)},
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def main() -> None:
    """Parse, measure, write."""
    about = "Times of regdist beside its rivals, with their answers."
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=about)
    parser.add_argument("--toy", action="store_true", help="tiny sizes: that nothing rots")
    parser.add_argument("--only", default="", help="works whose name holds this text")
    parser.add_argument("--seconds", type=float, default=1.0, help="to spend on each contender")
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="a folder")
    parser.add_argument("--child", nargs=2, metavar=("WORK", "CONTENDER"), help=argparse.SUPPRESS)
    parser.add_argument("--curves", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    if arguments.child:
        print(json.dumps(measured(*arguments.child, arguments)))
        return
    if arguments.curves:
        print(json.dumps(curves.curves(arguments.seconds / 5)))
        return
    found, here = parent(arguments), machine()
    lines = [*table(found), "", *told(found, works(arguments.toy))]
    lengths = grown(arguments) if arguments.toy or arguments.only in "cost curves" else []
    if lengths:
        lines += ["", "Cost curves, float64, one device; in the figure beside this file.", ""]
        lines += curves.told(lengths)
    arguments.out.mkdir(parents=True, exist_ok=True)
    name = "toy" if arguments.toy else f"{here['device']}-{here['cores']}".lower()
    title = ", ".join(f"{k} {v}" for k, v in here.items() if k != "versions")
    versions = ", ".join(f"{k} {v}" for k, v in here["versions"].items())
    text = "\n".join([f"Measured: {title}.", "", f"With {versions}.", "", *lines, ""])
    (arguments.out / f"{name}.md").write_text(text)
    (arguments.out / f"{name}.json").write_text(
        json.dumps({"machine": here, "works": found, "curves": lengths}, indent=1)
    )
    if lengths:
        curves.drawn(lengths, arguments.out / f"{name}.png")
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
