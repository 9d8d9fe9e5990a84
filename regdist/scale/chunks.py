"""One program for the blocks of a grid, and chunks of them that fit a budget.

N is the number of points, B that of a block, C the blocks that a device is given in a chunk, D the
devices of this process.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import SingleDeviceSharding

from regdist.numerics.records import described
from regdist.scale.axes import Grid, is_key
from regdist.scale.tiles import Range, Tiles, cut

# Points and bytes of a block, at most. A block is one vmap: large enough for its operations to
# outweigh their calls, small beside the grid, whose last block is computed whole. From 64 to 4,096
# points of 16 actions the speed on a CPU stays within a factor of two.
BLOCK, BLOCK_BYTES = 256, 2**22
# A chunk is what a killed sweep loses and a bar moves by: about a second, and no more rows and
# results than 64 MiB.
CHUNK_BYTES, CHUNK_SECONDS = 2**26, 1.0


# Primitives that run what is not in the program: Python on the host, and foreign code.
HOST = ("callback", "debug_print", "ffi_call")


@dataclasses.dataclass(frozen=True)
class Program:
    """A function of one point, made into one of a block; made by `program()`.

    Attributes:
        grid: the points.
        tiles: how they are cut into blocks.
        key: folded with each point's indices, or None.
        compute: from key, indices [B] and values [B, ...] to results [B, ...], jitted.
        tree: structure of a point's result.
        leaves: shape and dtype of each leaf of it.
        job: the fingerprint of all that the numbers depend on beside the axes, as JSON.
        host: the primitives in it that run code which the fingerprint does not see.
    """

    grid: Grid
    tiles: Tiles
    key: Array | None
    compute: Callable[..., Any]
    tree: Any
    leaves: tuple[tuple[tuple[int, ...], np.dtype], ...]
    job: dict
    host: tuple[str, ...]

    @property
    def block(self) -> int:
        """Points of a block, B."""
        return self.tiles.block

    def about(self, lengths: Sequence[int]) -> dict:
        """The whole fingerprint, for a grid of so many first values of each axis, as JSON."""
        return {**self.job, **self.grid.about(lengths)}

    @property
    def point_bytes(self) -> int:
        """Bytes of the result of a point."""
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.leaves)

    @property
    def row_bytes(self) -> int:
        """Bytes that go to a device for a point."""
        return _bytes(self.grid.row())

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
            jax.eval_shape(self.grid.row),
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

        Devices get equal numbers of blocks, one more or less. What a block computes beyond the
        grid is cut.
        """
        grid, tiles = self.program.grid, self.program.tiles
        shares = [s for s in np.array_split(np.arange(*blocks), len(self.devices)) if len(s)]
        outputs, kept = [], []
        for device, call, share in zip(self.devices, self.calls, shares, strict=False):
            taken = np.zeros(self.capacity, int)
            taken[: len(share)] = share
            places, inside = tiles.places(taken)
            given = (self.program.key, np.int32(len(share)), grid.rows(places))
            outputs.append(call(*jax.device_put(given, device)))
            kept.append(inside[: len(share)])
        return [
            np.concatenate([np.asarray(x)[: len(i)][i] for x, i in zip(parts, kept, strict=True)])
            for parts in zip(*outputs, strict=True)
        ]

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
    fn: Callable[..., Any],
    points: Grid,
    key: Array | None,
    block: int | Sequence[int] | None = None,
    version: str | None = None,
) -> Program:
    """Trace a function of one point, once, and choose the size of a block.

    Args:
        fn: of one point.
        points: all of them.
        key: folded with each point's indices, or None.
        block: points of a block, at most; or how many values of each axis it spans.
        version: of what the program does not show, by the caller's word.

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

    point = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), jax.eval_shape(points.row)
    )
    result = jax.eval_shape(one, key, *point)
    leaves, tree = jax.tree.flatten(result)
    if not leaves or any(is_key(x) for x in leaves):
        raise TypeError(
            "fn must return at least one array of numbers, and no random keys "
            "(jax.random.key_data makes numbers of them)"
        )
    shapes = tuple((x.shape, np.dtype(x.dtype)) for x in leaves)
    lengths = tuple(points.lengths.values())
    if block is None:
        size = sum(math.prod(s) * d.itemsize for s, d in shapes) + _bytes(point)
        # A small grid has at least four blocks.
        small = 2 ** max(0, (points.num // 8).bit_length())
        block = max(1, min(BLOCK, small, BLOCK_BYTES // max(size, 1)))
    sides = cut(lengths, block) if isinstance(block, int | np.integer) else tuple(block)
    tiles = Tiles(lengths, sides)
    compute = jax.jit(jax.vmap(one, in_axes=(None, 0, 0)))
    rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct((tiles.block, *x.shape), x.dtype), point)
    traced = compute.trace(key, *rows)
    text = traced.lower().as_text()
    job = {
        "format": 2,
        "regdist": importlib.metadata.version("regdist"),
        "jax": jax.__version__,
        "x64": bool(jax.config.read("jax_enable_x64")),
        "block": dict(zip(points.lengths, map(int, sides), strict=True)),
        "fn": [getattr(fn, "__qualname__", type(fn).__name__), _digest(text.encode())],
        "version": version,
        "key": None if key is None else np.asarray(jax.random.key_data(key)).tolist(),
        "results": [str(tree), [[str(d), list(s)] for s, d in shapes]],
    }
    names = sorted({x for x in _primitives(traced.jaxpr) if any(word in x for word in HOST)})
    return Program(points, tiles, key, compute, tree, shapes, job, tuple(names))


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


def _primitives(tree: Any) -> Iterator[str]:
    """The names of all primitives of a program, those in its loops, branches and rules included."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list | tuple):
        for part in tree:
            yield from _primitives(part)
    elif hasattr(tree, "jaxpr"):
        yield from _primitives(tree.jaxpr)
    elif hasattr(tree, "eqns"):
        for equation in tree.eqns:
            yield equation.primitive.name
            yield from _primitives(equation.params)


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()
