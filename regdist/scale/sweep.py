"""One function over a grid of points: in chunks, on many devices, within a budget, resumable."""

import contextlib
import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from regdist.numerics.records import check_count, check_key, check_kind
from regdist.scale import hosts
from regdist.scale.chunks import Program, check_call, gaps, grid, plan, program
from regdist.scale.store import Range, Store, store

if TYPE_CHECKING:
    from rich.progress import Progress


@dataclasses.dataclass(frozen=True, repr=False)
class Sweep:
    """The results of a grid and how they were made; made by `sweep()`.

    Attributes:
        axes: coordinates by name, arrays or trees of arrays with a leading grid axis.
        values: what the function returned, numpy leaves of shape [n1, n2, ..., *leaf], the axes in
            the order of `axes`; memory-mapped files where they would not fit.
        num: points of the grid.
        computed: points that this process computed now; the rest were found finished under `out`,
            or came from the other processes.
        seconds: what that took, compilation not counted.
        compile_seconds: tracing and compilation.
        planned_bytes: the most memory that results, chunks and the compiled program take together
            in this process, its devices included, as planned before the start. The interpreter,
            jax itself and `axes` come on top.
        budget: the bytes that were allowed.
        block: points of one vmap.
        chunk: points of the largest chunk planned; 0 if nothing was left to compute.
        devices: devices of this process.
        processes: processes that shared the work.
    """

    axes: dict[str, Any]
    values: Any
    num: int
    computed: int
    seconds: float
    compile_seconds: float
    planned_bytes: int
    budget: int
    block: int
    chunk: int
    devices: int
    processes: int

    @property
    def rate(self) -> float:
        """Points a second in this process, compilation not counted; NaN if none was computed."""
        return self.computed / self.seconds if self.computed else math.nan

    def __repr__(self) -> str:
        grid = " x ".join(
            f"{name} {len(jax.tree.leaves(axis)[0])}" for name, axis in self.axes.items()
        )
        work = f"{self.computed:,} computed"
        if self.computed:
            work += f" in {self.seconds:.2g} s after {self.compile_seconds:.2g} s of compilation"
        return (
            f"Sweep of {self.num:,} points ({grid}): {work}, on {_count(self.devices, 'device')} "
            f"in {_count(self.processes, 'process', 'es')}; "
            f"planned {_bytes(self.planned_bytes)} of a budget of {_bytes(self.budget)}"
        )

    def to_xarray(self) -> Any:
        """An `xarray.Dataset`: a variable for each leaf of `values`, a dimension for each axis.

        Axes that are numbers become coordinates. Dimensions of a leaf are its name and a number.

        Raises:
            ImportError: xarray is not installed.
        """
        try:
            import xarray
        except ImportError as error:
            raise ImportError(
                "to_xarray needs xarray: pip install 'regdist[xarray]'. "
                "Sweep.values and Sweep.axes hold the same numbers"
            ) from error
        coordinates = {
            name: np.asarray(axis)
            for name, axis in self.axes.items()
            if isinstance(axis, np.ndarray) and axis.ndim == 1
        }
        variables = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.values):
            name = jax.tree_util.keystr(path, simple=True, separator=".") or "value"
            own = [f"{name}_{i}" for i in range(leaf.ndim - len(self.axes))]
            variables[name] = ([*self.axes, *own], leaf)
        return xarray.Dataset(variables, coordinates, {"about": repr(self)})


def sweep(
    fn: Callable[..., Any],
    axes: Mapping[str, Any],
    *,
    key: Array | None = None,
    budget: int = 2**30,
    out: str | Path | None = None,
    mesh: Mesh | None = None,
    block: int | None = None,
    progress: "bool | Progress | None" = None,
) -> Sweep:
    """Compute `fn` at every point of the product of some axes.

    The result is the same to the bit whatever the budget, the devices, the processes and the order
    of the axes, and whether or not the sweep was killed and resumed: each block of points runs
    the same compiled loop body, whatever else is in its chunk.

    In a run of several processes (`jax.distributed.initialize`) each must make the same call: the
    blocks are dealt among them, and each gets the whole result.

    Args:
        fn: from one point, by keywords that are the names of the axes (and `key`), to any tree of
            arrays. It is traced once.
        axes: by name, an array or tree of arrays (a stacked `Bandit`, say) with the grid axis
            first. Memory-mapped arrays stay on disk.
        key: gives each point its own `key`: the index along each axis folded in, the axes by name.
        budget: bytes that this process may use for results, chunks and the compiled program.
        out: a folder in which each chunk is kept when it is finished. The same call later goes on
            from there. Results larger than half the budget become memory-mapped files in it. In a
            run of several processes it must be one folder, seen by all.
        mesh: the devices to use, as a mesh of any shape; default all, of all processes.
        block: points of a block. Default: 256, less for small grids and large points. Another may
            change last digits, as the compiler sees another shape.
        progress: False for none, or a `rich.progress.Progress` of one's own. Default: a bar if
            stderr is a terminal or a notebook. Time left is from points computed in this call.

    Raises:
        ValueError: no axes, an empty axis, arrays of an axis that differ in length; results that
            fit neither budget nor disk; a folder that holds another sweep; processes that differ;
            a mesh without this process's devices.
        TypeError: `fn` does not take the names, or returns what is no array.
        RuntimeError: another process of the run has gone.

    Examples:
        >>> bandit = rd.bandit([1.0, 0.8, 0.0], [0.1, 0.3, 0.6])
        >>> def entropy(alpha, beta):
        ...     law = rd.target(bandit, rd.AlphaDivergence(alpha, beta))
        ...     return rd.metrics.entropy(law.log_probs)
        >>> axes = {"beta": jnp.geomspace(0.01, 10, 50), "alpha": [0.0, 0.5, 1.0]}
        >>> result = rd.sweep(entropy, axes)
        >>> print(result.values.shape, result.num)
        (50, 3) 150
    """
    began = time.perf_counter()
    points = grid(axes)
    check_key(key)
    check_call(fn, [*points.axes, *([] if key is None else ["key"])])
    _check_options(budget, block, out, mesh)
    members = hosts.team(mesh)
    work = program(fn, points, key, block)
    size = points.num * work.point_bytes
    mapped = out is not None and size > budget // 2  # the other half is for the chunks
    kept = _opened(out, work, members, mapped)
    mine, unit = _shares(work, members)
    finished = kept.finished() if kept is not None else []
    todo = [gap for blocks in mine for gap in gaps(blocks, finished)]
    held = 0 if mapped else size
    if members.size > 1 and not mapped:
        # The exchange holds a unit of each process three times: sent, gathered, put together.
        held += 3 * members.size * unit * work.block * work.point_bytes
    advice = "give a smaller block=" if mapped else "give out=, or return less from fn"
    planned, chunk, chunks = _scheduled(work, members, todo, held, budget, advice)
    flat = [] if mapped else [np.zeros((points.num, *s), d) for s, d in work.leaves]
    if kept is not None and not mapped:
        for blocks in finished:
            _put(flat, work, blocks, kept.read(blocks))
    computed, start = 0, time.perf_counter()
    with _bar(progress, members, _points(work, mine), _points(work, todo)) as advance:
        for blocks, parts in chunks:
            if kept is not None:
                kept.write(blocks, parts)
            if not mapped:
                _put(flat, work, blocks, parts)
            computed += len(parts[0])
            advance(len(parts[0]))
    seconds = time.perf_counter() - start
    if kept is not None and mapped:
        flat = _assembled(kept, work, members)
    elif members.size > 1:
        _exchange(flat, work, members, unit)
    return Sweep(
        axes=points.axes,
        values=jax.tree.unflatten(work.tree, [points.shaped(x) for x in flat]),
        num=points.num,
        computed=computed,
        seconds=seconds,
        compile_seconds=start - began,
        planned_bytes=planned,
        budget=budget,
        block=work.block,
        chunk=chunk,
        devices=len(members.devices),
        processes=members.size,
    )


def _check_options(budget: Any, block: Any, out: Any, mesh: Any) -> None:
    for name, number in (("budget", budget), ("block", block)):
        if number is not None:
            check_count(name, number)
    if out is not None:
        check_kind("out", out, (str, Path), "The path of a folder")
    if mesh is not None:
        check_kind("mesh", mesh, Mesh, "Such as jax.make_mesh((2,), ('devices',))")


def _scheduled(
    work: Program,
    members: hosts.Team,
    todo: list[tuple[int, int]],
    held: int,
    budget: int,
    advice: str,
) -> tuple[int, int, Iterator[Any]]:
    """Bytes planned, points of a chunk, and the results of what is left to do, chunk by chunk."""
    if not todo:
        return held, 0, iter(())
    most = max(last - first for first, last in todo)
    ready = plan(work, members.devices, held, budget, most, advice)
    chunk = ready.capacity * work.block * len(members.devices)
    return held + ready.bytes, chunk, ready.results(todo)


def _opened(
    out: str | Path | None, work: Program, members: hosts.Team, mapped: bool
) -> Store | None:
    """The folder, which one process begins, once all processes want the same of it."""
    asked = json.dumps([work.about, out is None, mapped], sort_keys=True).encode()
    kept = None
    for rank in (0, members.rank):
        if out is not None and kept is None and members.rank == rank:
            kept = store(Path(out), work.about, work.grid.num, work.block, work.leaves)
            if rank == 0:
                kept.tidy()
                kept.check_room(mapped)
        hosts.agree(members, hashlib.sha256(asked).digest(), "the sweep")
    return kept


def _shares(work: Program, members: hosts.Team) -> tuple[list[Range], int]:
    """The blocks of this process, and how many make a unit: all, or a 16th of its share.

    Units are dealt by number, whatever is finished, so that no process need ask another.
    """
    unit = work.blocks
    if members.size > 1:
        unit = -(-work.blocks // (16 * members.size))
    dealt = members.mine(-(-work.blocks // unit))
    return [(i * unit, min(work.blocks, (i + 1) * unit)) for i in dealt], unit


def _points(work: Program, ranges: Sequence[Range]) -> int:
    return sum(work.rows(blocks).stop - work.rows(blocks).start for blocks in ranges)


def _put(
    flat: Sequence[np.ndarray], work: Program, blocks: Range, parts: Sequence[np.ndarray]
) -> None:
    for whole, part in zip(flat, parts, strict=True):
        whole[work.rows(blocks)] = part


def _exchange(flat: Sequence[np.ndarray], work: Program, members: hosts.Team, unit: int) -> None:
    """Give every process the units of the others, one of each at a time."""
    for whole in flat:
        for first in range(0, work.blocks, unit * members.size):
            units = np.zeros((unit * members.size * work.block, *whole.shape[1:]), whole.dtype)
            rows = work.rows((first, first + unit * members.size))
            units[: rows.stop - rows.start] = whole[rows]
            own = np.split(units, members.size)[members.rank]
            together = np.concatenate(hosts.gather(members, own))
            whole[rows] = together[: rows.stop - rows.start]


def _assembled(kept: Store, work: Program, members: hosts.Team) -> list[np.ndarray]:
    """The results as files, which one process puts together when all have finished."""
    hosts.agree(members, b"finished", "the end")
    if members.rank == 0:
        missing = gaps((0, work.blocks), kept.finished())
        if missing:
            raise RuntimeError(
                f"blocks {missing} are not in out={str(kept.path)!r}: all processes must see one "
                "and the same folder"
            )
        kept.assemble()
    hosts.agree(members, b"assembled", "the end")
    return kept.assembled()


@contextlib.contextmanager
def _bar(
    progress: "bool | Progress | None", members: hosts.Team, total: int, left: int
) -> Iterator[Callable[[int], Any]]:
    """A bar over this process's points; its speed is that of the points still to compute."""
    from rich.console import Console
    from rich.progress import Progress

    if isinstance(progress, Progress):
        shown = contextlib.nullcontext(progress)
    else:
        console = Console(stderr=True)
        visible = (console.is_terminal or console.is_jupyter) and members.rank == 0
        wanted = visible if progress is None else progress
        shown = Progress(console=console, disable=not wanted)
    with shown as bar:
        task = bar.add_task("sweep", total=total, completed=total - left)
        yield lambda points: bar.update(task, advance=points)


def _count(number: int, one: str, plural: str = "s") -> str:
    return f"{number} {one}{'' if number == 1 else plural}"


def _bytes(number: float | int) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.3g} {unit}"
        number /= 1024
    return f"{number:.3g} GiB"
