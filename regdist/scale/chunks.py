"""A grid of points, one program for its blocks, and chunks that fit a budget.

N is the number of points, B that of a block, C the blocks that a device is given in a chunk, D the
devices of this process.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import inspect
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import SingleDeviceSharding

from regdist.numerics.records import check_kind, described, warn_if_cut
from regdist.scale.store import Range, content_hash, rows_of

# Points and bytes of a block, at most. A block is one vmap: large enough for its operations to
# outweigh their calls, small beside the grid, whose last block is computed whole. From 64 to 4,096
# points of 16 actions the speed on a CPU stays within a factor of two.
BLOCK, BLOCK_BYTES = 256, 2**22
# A chunk is what a killed sweep loses and a bar moves by: about a second, and no more rows and
# results than 64 MiB.
CHUNK_BYTES, CHUNK_SECONDS = 2**26, 1.0


@dataclasses.dataclass(frozen=True)
class Grid:
    """The product of some axes; made by `grid()`.

    Points are numbered row by row over the axes sorted by name, so that the order in which a
    caller names them changes nothing.

    Attributes:
        axes: by name, in the caller's order, trees of numpy arrays with the grid axis first.
        lengths: of the axes, by name, sorted.
    """

    axes: dict[str, Any]
    lengths: dict[str, int]

    @property
    def num(self) -> int:
        """The number of points, N."""
        return math.prod(self.lengths.values())

    def rows(self, points: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The index along each axis, and the values there, of some points."""
        places = np.unravel_index(points, tuple(self.lengths.values()))
        index = {name: i.astype(np.int32) for name, i in zip(self.lengths, places, strict=True)}
        take = {n: jax.tree.map(lambda x, i=i: x[i], self.axes[n]) for n, i in index.items()}
        return index, take

    def shaped(self, flat: np.ndarray) -> np.ndarray:
        """Results of all points, shape [N, *leaf], with an axis each, in the caller's order."""
        names = list(self.lengths)
        split = flat.reshape(*self.lengths.values(), *flat.shape[1:])
        order = [names.index(name) for name in self.axes]
        return split.transpose(*order, *range(len(names), split.ndim))

    def about(self) -> dict:
        """Names, shapes, dtypes and contents, as JSON."""
        leaves = {name: jax.tree.leaves(self.axes[name]) for name in self.lengths}
        return {
            f"axis {name}": [
                str(jax.tree.structure(self.axes[name])),
                [[str(x.dtype), list(x.shape)] for x in arrays],
                content_hash(arrays),
            ]
            for name, arrays in leaves.items()
        }


def grid(axes: Mapping[str, Any]) -> Grid:
    """Check axes and count them.

    Raises:
        ValueError: there are none, one is empty or a single number, or its arrays differ in length.
        TypeError: an axis is of typed keys.
    """
    check_kind("axes", axes, Mapping, 'By name: {"beta": betas}')
    if not axes:
        raise ValueError('axes must name at least one axis: {"beta": betas}')
    held, lengths = {}, {}
    for name in axes:
        check_kind("each name in axes", name, str, 'As fn calls it: {"beta": betas}')
    for name in sorted(axes):
        held[name] = _axis(name, axes[name])
        sizes = {x.shape[0] if x.ndim else None for x in jax.tree.leaves(held[name])}
        if len(sizes) != 1 or None in sizes or 0 in sizes:
            shapes = ", ".join(str(x.shape) for x in jax.tree.leaves(held[name])) or "no arrays"
            raise ValueError(
                f"axis {name!r} must be an array, or a tree of arrays with one common first "
                f"length above 0; got {shapes}. A number that does not vary belongs into fn"
            )
        (lengths[name],) = sizes
    return Grid({name: held[name] for name in axes}, lengths)


def _axis(name: str, given: Any) -> Any:
    """An axis as a tree of numpy arrays of numbers."""
    leaves = jax.tree.leaves(given)
    for leaf in leaves:
        warn_if_cut(f"axis {name!r}", leaf)
    if any(_is_key(x) for x in leaves):
        raise TypeError(
            f"axis {name!r} holds random keys: give seeds, and make the key of each inside fn, "
            "or give key=, and fn its own key at each point"
        )
    try:
        table = np.asarray(given) if isinstance(given, list) else given
    except ValueError as error:
        raise TypeError(f"axis {name!r} has rows of different lengths") from error
    held = jax.tree.map(np.asanyarray, table)
    kinds = [x.dtype for x in jax.tree.leaves(held)]
    if not all(jnp.issubdtype(kind, np.number) or kind.kind == "b" for kind in kinds):
        raise TypeError(
            f"axis {name!r} must be an array of numbers, or a tree of them, such as records made "
            f"under jax.vmap; got {described(given)}"
        )
    return held


def check_call(fn: Callable[..., Any], names: Sequence[str]) -> None:
    """Refuses a function that cannot be called with these keywords.

    Raises:
        TypeError: it lacks one, or wants another.
    """
    if not callable(fn):
        raise TypeError(f"fn must be a function of one point of the grid; got {described(fn)}")
    try:
        inspect.signature(fn).bind(**dict.fromkeys(names))
    except TypeError as error:
        raise TypeError(
            f"fn must take the keywords {', '.join(names)}: the names of the axes, and key when "
            f"key= is given; {error}"
        ) from error


@dataclasses.dataclass(frozen=True)
class Program:
    """A function of one point, made into one of a block; made by `program()`.

    Attributes:
        grid: the points.
        key: folded with each point's indices, or None.
        block: B.
        compute: from key, indices [B] and values [B, ...] to results [B, ...], jitted.
        tree: structure of a point's result.
        leaves: shape and dtype of each leaf of it.
        about: the fingerprint of all that the numbers depend on, as JSON.
    """

    grid: Grid
    key: Array | None
    block: int
    compute: Callable[..., Any]
    tree: Any
    leaves: tuple[tuple[tuple[int, ...], np.dtype], ...]
    about: dict

    @property
    def blocks(self) -> int:
        """How many there are; the last may be short."""
        return -(-self.grid.num // self.block)

    def rows(self, blocks: Range) -> slice:
        """The points of a range of blocks."""
        return rows_of(blocks, self.block, self.grid.num)

    @property
    def point_bytes(self) -> int:
        """Bytes of the result of a point."""
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.leaves)

    @property
    def row_bytes(self) -> int:
        """Bytes that go to a device for a point."""
        return _bytes(self.grid.rows(np.zeros(1, int)))

    def lower(self, device: Any, capacity: int) -> jax.stages.Lowered:
        """From key, count and the rows of C blocks to their results, on one device.

        How many blocks are filled is data. So the loop has no length that the compiler knows, and
        its body is compiled the same way whatever C is.
        """
        place = SingleDeviceSharding(device)

        def on_device(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

        def work(key: Array | None, count: Array, rows: Any) -> list[Array]:
            def step(i: Array, results: list[Array]) -> list[Array]:
                here = jax.tree.map(
                    lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), rows
                )
                fresh = jax.tree.leaves(self.compute(key, *here))
                return [
                    jax.lax.dynamic_update_index_in_dim(whole, x, i, 0)
                    for whole, x in zip(results, fresh, strict=True)
                ]

            blank = [jnp.zeros((capacity, self.block, *s), d) for s, d in self.leaves]
            return jax.lax.fori_loop(0, count, step, blank)

        rows = jax.tree.map(
            lambda x: on_device((capacity, self.block, *x.shape[1:]), x.dtype),
            jax.eval_shape(lambda: self.grid.rows(np.zeros(1, int))),
        )
        key = None if self.key is None else on_device(self.key.shape, self.key.dtype)
        return jax.jit(work).lower(key, on_device((), np.int32), rows)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A program compiled for C blocks on each of D devices; made by `plan()`.

    Attributes:
        program: what it computes.
        devices: of this process.
        calls: the program on each of them.
        capacity: C.
        bytes: what a chunk takes: on the devices as the compiler says, and its rows on the host.
    """

    program: Program
    devices: tuple[Any, ...]
    calls: tuple[jax.stages.Compiled, ...]
    capacity: int
    bytes: int

    def chunk(self, blocks: Range) -> list[np.ndarray]:
        """The results of a range of at most D C blocks, one array [points, *leaf] a leaf.

        Devices get equal numbers of blocks, one more or less; the rows of the last block that
        are beyond the grid repeat its last point, and are cut.
        """
        grid, block = self.program.grid, self.program.block
        shares = [s for s in np.array_split(np.arange(*blocks), len(self.devices)) if len(s)]
        outputs = []
        for device, call, share in zip(self.devices, self.calls, shares, strict=False):
            first = np.zeros((self.capacity, 1), int)
            first[: len(share), 0] = share * block
            rows = grid.rows(np.minimum(first + np.arange(block), grid.num - 1))
            given = jax.device_put((self.program.key, np.int32(len(share)), rows), device)
            outputs.append(call(*given))
        points = self.program.rows(blocks)
        results = []
        for parts in zip(*outputs, strict=True):
            held = [np.asarray(x)[: len(share)] for x, share in zip(parts, shares, strict=True)]
            whole = np.concatenate(held).reshape(-1, *parts[0].shape[2:])
            results.append(whole[: points.stop - points.start])
        return results

    def results(self, ranges: Sequence[Range]) -> Iterator[tuple[Range, list[np.ndarray]]]:
        """The chunks of some ranges, each of about a second, as they are finished."""
        width, devices = 1, len(self.devices)
        for first, last in ranges:
            while first < last:
                blocks = first, min(last, first + devices * width)
                began = time.perf_counter()
                yield blocks, self.chunk(blocks)
                wanted = width * CHUNK_SECONDS / (time.perf_counter() - began)
                # at most eightfold: the first chunks are short, and their times rough
                width = max(1, min(self.capacity, 8 * width, int(wanted)))
                first = blocks[1]


def program(
    fn: Callable[..., Any], points: Grid, key: Array | None, block: int | None = None
) -> Program:
    """Trace a function of one point, once, and choose the size of a block.

    Raises:
        TypeError: it returns keys, or what is no array.
    """

    @jax.jit
    def one(key: Array | None, index: dict, row: dict) -> Any:
        if key is not None:
            row = {**row, "key": functools.reduce(jax.random.fold_in, index.values(), key)}
        result = fn(**row)
        for leaf in jax.tree.leaves(result):
            if not isinstance(leaf, Array | np.ndarray | np.generic | int | float | complex):
                raise TypeError(f"fn must return arrays of numbers; got {described(leaf)}")
        return result

    index, row = jax.eval_shape(lambda: points.rows(np.zeros(1, int)))
    point = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (index, row))
    result = jax.eval_shape(one, key, *point)
    leaves, tree = jax.tree.flatten(result)
    if not leaves or any(_is_key(x) for x in leaves):
        raise TypeError(
            "fn must return at least one array of numbers, and no random keys "
            "(jax.random.key_data makes numbers of them)"
        )
    shapes = tuple((x.shape, np.dtype(x.dtype)) for x in leaves)
    if block is None:
        size = sum(math.prod(s) * d.itemsize for s, d in shapes) + _bytes(point)
        # A small grid has at least four blocks, of a power of two.
        small = 2 ** max(0, (points.num // 8).bit_length())
        block = max(1, min(BLOCK, small, BLOCK_BYTES // max(size, 1)))
    compute = jax.jit(jax.vmap(one, in_axes=(None, 0, 0)))
    rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct((block, *x.shape), x.dtype), point)
    text = compute.lower(key, *rows).as_text()
    about = {
        "format": 1,
        "regdist": importlib.metadata.version("regdist"),
        "jax": jax.__version__,
        "x64": bool(jax.config.read("jax_enable_x64")),
        "block": block,
        "fn": [getattr(fn, "__qualname__", type(fn).__name__), _digest(text.encode())],
        "key": None if key is None else np.asarray(jax.random.key_data(key)).tolist(),
        "results": [str(tree), [[str(d), list(s)] for s, d in shapes]],
        **points.about(),
    }
    return Program(points, key, block, compute, tree, shapes, about)


def plan(
    program: Program,
    devices: Sequence[Any],
    held: int,
    budget: int,
    most: int,
    advice: str,
) -> Plan:
    """Compile for the largest chunk that fits beside what is held.

    Args:
        program: what to compile.
        devices: of this process.
        held: bytes that are spoken for: the results.
        budget: bytes for all.
        most: blocks that there are to compute.
        advice: what to do when it does not fit.

    Raises:
        ValueError: one block a device does not fit.
    """
    block = program.block * (program.row_bytes + program.point_bytes)
    left = max(0, budget - held)
    # A quarter: rows and results stand on the devices and on the host, and the program has its own.
    room = min(CHUNK_BYTES, left // 4) // (block * len(devices))
    capacity = max(1, min(room, -(-most // len(devices))))
    while True:
        first = program.lower(devices[0], capacity).compile()
        stats, needed = first.memory_analysis(), 2 * capacity * block
        if stats is not None:
            needed = stats.argument_size_in_bytes + stats.output_size_in_bytes
            needed += stats.temp_size_in_bytes
        needed = len(devices) * (needed + capacity * block)
        if needed <= left:
            break
        if capacity == 1:
            raise ValueError(
                f"the budget is {budget:,} bytes; results take {held:,} and the smallest chunk, a "
                f"block of {program.block} points on each of {len(devices)} devices, {needed:,}: "
                f"{advice}"
            )
        capacity = max(1, min(capacity // 2, int(capacity * left / needed)))
    with ThreadPoolExecutor() as pool:
        lowered = [program.lower(device, capacity) for device in devices[1:]]
        others = pool.map(lambda x: x.compile(), lowered)
        return Plan(program, tuple(devices), (first, *others), capacity, needed)


def gaps(wanted: Range, finished: Sequence[Range]) -> list[Range]:
    """What is left of a range of blocks beside finished ones, sorted by their first.

    Examples:
        >>> from regdist.scale.chunks import gaps
        >>> gaps((0, 10), [(0, 2), (1, 4), (6, 20)])
        [(4, 6)]
    """
    left, at = [], wanted[0]
    for first, last in finished:
        if at < first:
            left.append((at, min(first, wanted[1])))
        at = max(at, last)
        if at >= wanted[1]:
            return left
    return [*left, (at, wanted[1])]


def _is_key(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.extended)


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()
