"""The axes of a grid: numbers that are what they were when they are computed with."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regdist.numerics.records import check_kind, described, warn_if_cut
from regdist.scale.seals import checksum_of_arrays


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

    def rows(self, places: Sequence[np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The index along each axis, and the values there, of points given by their indices."""
        index = {name: i.astype(np.int32) for name, i in zip(self.lengths, places, strict=True)}
        take = {n: jax.tree.map(lambda x, i=i: x[i], self.axes[n]) for n, i in index.items()}
        return index, take

    def row(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The first point, shapes [1, ...]."""
        return self.rows([np.zeros(1, int)] * len(self.lengths))

    def shaped(self, flat: np.ndarray) -> np.ndarray:
        """Results of all points, shape [N, *leaf], with an axis each, in the caller's order."""
        names = list(self.lengths)
        split = flat.reshape(*self.lengths.values(), *flat.shape[1:])
        order = [names.index(name) for name in self.axes]
        return split.transpose(*order, *range(len(names), split.ndim))

    def about(self, lengths: Sequence[int]) -> dict:
        """Names, shapes, dtypes and contents of so many first values of each axis, as JSON."""
        held = {}
        for (name, length), asked in zip(self.lengths.items(), lengths, strict=True):
            first = [x[: min(asked, length)] for x in jax.tree.leaves(self.axes[name])]
            held[f"axis {name}"] = {
                "length": min(asked, length),
                "values": [[str(x.dtype), list(x.shape[1:])] for x in first],
                "tree": str(jax.tree.structure(self.axes[name])),
                "sha256": checksum_of_arrays(first),
            }
        return held


def grid(axes: Mapping[str, Any]) -> Grid:
    """Check axes and count them.

    Raises:
        ValueError: there are none, one is empty or a single number, its arrays differ in length,
            or its values are not kept by the dtype that they are computed with.
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
        _check_kept(name, jax.tree.leaves(held[name]))
    return Grid({name: held[name] for name in axes}, lengths)


def _axis(name: str, given: Any) -> Any:
    """An axis as a tree of numpy arrays of numbers."""
    leaves = jax.tree.leaves(given)
    for leaf in leaves:
        warn_if_cut(f"axis {name!r}", leaf)
    if any(is_key(x) for x in leaves):
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


def _check_kept(name: str, leaves: Sequence[np.ndarray]) -> None:
    """Refuses values that jax computes with as others, where its x64 mode is off.

    An integer must be the same in 32 bits; a float may be rounded (`warn_if_cut`), but become
    neither infinite, nor 0, nor so small that processors take it for 0. Two points of the axis
    that differ must go on to differ.
    """
    with np.errstate(all="ignore"):
        kept = [x.astype(jax.dtypes.canonicalize_dtype(x.dtype), copy=False) for x in leaves]
    if not any(x.dtype != y.dtype and x.size for x, y in zip(leaves, kept, strict=True)):
        return
    remedy = 'jax\'s x64 mode is off: jax.config.update("jax_enable_x64", True) keeps 64 bits'
    for x, y in zip(leaves, kept, strict=True):
        if x.dtype != y.dtype and np.any(lost := _lost(x, y)):
            at = tuple(map(int, np.argwhere(lost)[0]))
            raise ValueError(
                f"axis {name!r} has {x[at]!s} at index {', '.join(map(str, at))}, which {y.dtype} "
                f"does not hold; it would be computed with as {y[at]!s}. {remedy}"
            )
    before, after = _bytes_of_rows(leaves), _bytes_of_rows(kept)
    _, first, group = np.unique(after, return_index=True, return_inverse=True)
    merged = np.flatnonzero(before != before[first[group]])
    if len(merged):
        one, other = int(first[group[merged[0]]]), int(merged[0])
        kinds = ", ".join(sorted({str(y.dtype) for y in kept}))
        raise ValueError(
            f"axis {name!r} has values at index {one} and {other} that differ, and are the same "
            f"in {kinds}: two points would be one. {remedy}"
        )


def _lost(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Where values are others in a shorter dtype, more than by rounding."""
    if x.dtype.kind == "c":
        return _lost(np.real(x), np.real(y)) | _lost(np.imag(x), np.imag(y))
    if x.dtype.kind != "f":
        return y.astype(x.dtype) != x
    overflown = np.isfinite(x) & ~np.isfinite(y)
    return overflown | ((x != 0) & (np.abs(y) < np.finfo(y.dtype).tiny))


def _bytes_of_rows(leaves: Sequence[np.ndarray]) -> np.ndarray:
    """The bytes of all arrays at each index of their axis, as one value of a dtype without kind."""
    flat = [np.ascontiguousarray(x).reshape(len(x), -1).view(np.uint8) for x in leaves if x.size]
    rows = np.concatenate(flat, 1)
    return rows.view(np.dtype((np.void, rows.shape[1]))).reshape(-1)


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


def is_key(x: Any) -> bool:
    """Whether it is an array of typed random keys."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.extended)
