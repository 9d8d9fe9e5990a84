"""One function over a grid of points: in chunks, on many devices, within a budget, resumable."""

import dataclasses
import functools
import hashlib
import itertools
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
from regdist.scale.axes import Grid, check_call, grid
from regdist.scale.chunks import Program, plan, program
from regdist.scale.progress import bar, check_progress
from regdist.scale.store import Store, kept_sides, store
from regdist.scale.tiles import Range, runs

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
        computed: points that this process computed now and that were not there; the rest were
            found finished under `out`, or came from the other processes.
        seconds: what that took, compilation not counted.
        compile_seconds: tracing and compilation.
        planned_bytes: the most memory that results, chunks and the compiled program take together
            in this process, its devices included, as planned before the start. The interpreter,
            jax itself and `axes` come on top.
        budget: the bytes that were allowed.
        block: points of one vmap.
        sides: how many values of each axis a block spans, by name; `block=` takes it.
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
    sides: dict[str, int]
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
    block: int | Mapping[str, int] | None = None,
    version: str | None = None,
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
            from there, and so does one with new values after the old ones of an axis: it computes
            those alone. What is read is proved first, by checksums. Results larger than half the
            budget become memory-mapped files in it. In a run of several processes it must be one
            folder, seen by all.
        mesh: the devices to use, as a mesh of any shape; default all, of all processes.
        block: points of a block, at most, or how many values of each axis it spans, by name.
            Default: that of the folder; else 256, less for small grids and large points. Another
            may change last digits, as the compiler sees another shape.
        version: names what `fn` runs outside of the compiled program, such as the Python of
            `jax.pure_callback`: one of another version is another sweep. With `out`, such a
            function needs it, as nothing else tells a changed one from the old.
        progress: False for none, or a `rich.progress.Progress` of one's own. Default: a bar if
            stderr is a terminal or a notebook. Time left is from points computed in this call.

    Raises:
        ValueError: no axes, an empty axis, arrays of an axis that differ in length, values that
            the dtype computed with does not hold (without x64); results that fit neither budget
            nor disk; a folder that holds another sweep, or a file that does not prove itself;
            a callback under `out` without `version`; processes that differ; a mesh without this
            process's devices.
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
    check_call(fn, [*points.axes, *([] if key is None else ["key"])])
    _check_options(key, budget, out, mesh, version)
    check_progress(progress)
    members = hosts.team(mesh)
    work = program(fn, points, key, _block(block, points, out), version)
    size = points.num * work.point_bytes
    mapped = out is not None and size > budget // 2  # the other half is for the chunks
    kept = _opened(out, work, members, mapped)
    mine, unit = _shares(work, members)
    left = work.tiles.sizes() if kept is None else kept.missing()
    todo = [part for blocks in mine for part in runs(blocks, left)]
    held = 0 if mapped else size + _exchange_bytes(work, members, unit)
    planned, chunk, chunks = _scheduled(work, members, todo, held, budget, mapped)
    flat = [] if mapped else _held(work, kept)
    computed, start = 0, time.perf_counter()
    total, rest = _sum(work.tiles.sizes(), mine), _sum(left, mine)
    with bar(progress, "sweep", total, total - rest, quiet=members.rank != 0) as advance:
        for blocks, parts in chunks:
            if kept is not None:
                kept.write(blocks, parts)
            if not mapped:
                _put(flat, work.tiles.numbers(blocks, work.tiles.lengths), parts)
            fresh = _sum(left, [blocks])
            computed += fresh
            advance(fresh)
    seconds = time.perf_counter() - start
    if kept is not None and mapped:
        flat = _assembled(kept, members)
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
        sides=dict(zip(points.lengths, work.tiles.sides, strict=True)),
        chunk=chunk,
        devices=len(members.devices),
        processes=members.size,
    )


def _check_options(key: Any, budget: Any, out: Any, mesh: Any, version: Any) -> None:
    check_key(key)
    check_count("budget", budget)
    if out is not None:
        check_kind("out", out, (str, Path), "The path of a folder")
    if mesh is not None:
        check_kind("mesh", mesh, Mesh, "Such as jax.make_mesh((2,), ('devices',))")
    if version is not None:
        check_kind("version", version, str, 'Such as "2"')


def _block(block: Any, points: Grid, out: str | Path | None) -> int | tuple[int, ...] | None:
    """Points of a block, or its sides; those of the folder, if it was begun with the same."""
    names = list(points.lengths)
    if isinstance(block, Mapping):
        if set(block) != set(names):
            raise ValueError(
                f"block must be a number, or have one for each axis, {', '.join(names)}; got "
                f"{dict(block)}"
            )
        return tuple(check_count(f"block[{name!r}]", block[name]) for name in names)
    if block is not None:
        check_count("block", block)
    sides = None if out is None else kept_sides(Path(out), names, block)
    return block if sides is None else sides


def _held(work: Program, kept: Store | None) -> list[np.ndarray]:
    """The results in memory, with those that a folder holds in their places."""
    flat = [np.zeros((work.tiles.points, *s), d) for s, d in work.leaves]
    if kept is not None:
        for chunk in kept.chunks():
            _put(flat, *kept.read(chunk))
    return flat


def _scheduled(
    work: Program,
    members: hosts.Team,
    todo: list[tuple[int, int]],
    held: int,
    budget: int,
    mapped: bool,
) -> tuple[int, int, Iterator[Any]]:
    """Bytes planned, points of a chunk, and the results of what is left to do, chunk by chunk."""
    if not todo:
        return held, 0, iter(())
    advice = "give a smaller block=" if mapped else "give out=, or return less from fn"
    most = max(last - first for first, last in todo)
    ready = plan(work, members.devices, held, budget, most, advice)
    chunk = ready.capacity * work.block * len(members.devices)
    return held + ready.bytes, chunk, ready.results(todo)


def _opened(
    out: str | Path | None, work: Program, members: hosts.Team, mapped: bool
) -> Store | None:
    """The folder, which one process begins, once all processes want the same of it."""
    about = functools.cache(work.about)
    asked = json.dumps([about(work.tiles.lengths), out is None, mapped], sort_keys=True).encode()
    if out is not None and work.host and work.job["version"] is None:
        raise ValueError(
            f"fn runs code that is not in the compiled program ({', '.join(work.host)}), so that "
            "under out= a changed function would pass for the old one. Name its version, "
            'version="1", and another when it changes; or leave out= away'
        )
    kept = None
    for rank in (0, members.rank):
        if out is not None and kept is None and members.rank == rank:
            kept = store(Path(out), about, work.tiles, work.leaves)
            if rank == 0:
                kept.tidy()
                kept.check_room(mapped)
                if mapped:
                    kept.prove()
        hosts.agree(members, hashlib.sha256(asked).digest(), "the sweep")
    return kept


def _shares(work: Program, members: hosts.Team) -> tuple[list[Range], int]:
    """The blocks of this process, and how many make a unit: all, or a 16th of its share.

    Units are dealt by number, whatever is finished, so that no process need ask another.
    """
    blocks = unit = work.tiles.num
    if members.size > 1:
        unit = -(-blocks // (16 * members.size))
    dealt = members.mine(-(-blocks // unit))
    return [(i * unit, min(blocks, (i + 1) * unit)) for i in dealt], unit


def _sum(points: np.ndarray, ranges: Sequence[Range]) -> int:
    return sum(int(points[slice(*blocks)].sum()) for blocks in ranges)


def _put(flat: Sequence[np.ndarray], points: np.ndarray, parts: Sequence[np.ndarray]) -> None:
    for whole, part in zip(flat, parts, strict=True):
        whole[points] = part


def _exchange_bytes(work: Program, members: hosts.Team, unit: int) -> int:
    """A unit of each process three times: sent, gathered, put together; and where it belongs."""
    if members.size == 1:
        return 0
    return members.size * unit * work.block * (3 * work.point_bytes + 8)


def _exchange(flat: Sequence[np.ndarray], work: Program, members: hosts.Team, unit: int) -> None:
    """Give every process the units of the others, one of each at a time."""
    tiles = work.tiles
    for first in range(0, tiles.num, unit * members.size):
        starts = [min(tiles.num, first + i * unit) for i in range(members.size + 1)]
        units = [tiles.numbers(x, tiles.lengths) for x in itertools.pairwise(starts)]
        for whole in flat:
            if not whole.size:
                continue
            own = np.zeros((unit * tiles.block, *whole.shape[1:]), whole.dtype)
            own[: len(units[members.rank])] = whole[units[members.rank]]
            for points, part in zip(units, hosts.gather(members, own), strict=True):
                whole[points] = part[: len(points)]


def _assembled(kept: Store, members: hosts.Team) -> list[np.ndarray]:
    """The results as files, which one process puts together when all have finished."""
    hosts.agree(members, b"finished", "the end")
    if members.rank == 0:
        missing = runs((0, kept.tiles.num), kept.missing())
        if missing:
            raise RuntimeError(
                f"blocks {missing} are not in out={str(kept.path)!r}: all processes must see one "
                "and the same folder"
            )
        kept.assemble()
    hosts.agree(members, b"assembled", "the end")
    return kept.assembled()


def _count(number: int, one: str, plural: str = "s") -> str:
    return f"{number} {one}{'' if number == 1 else plural}"


def _bytes(number: float | int) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.3g} {unit}"
        number /= 1024
    return f"{number:.3g} GiB"
