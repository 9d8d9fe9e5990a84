"""A grid cut into tiles of one shape: what a block holds, whatever the grid grows to."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

Range = tuple[int, int]
"""Blocks from the first up to, not including, the second."""


@dataclasses.dataclass(frozen=True)
class Tiles:
    """The blocks of a grid: each spans `sides` values of the axes; made by its constructor.

    Tiles are numbered row by row, as are the points in one. A tile at the end of an axis reaches
    beyond it: there it repeats the last value. So a point has its place in its tile from its own
    index alone, and tiles that were whole stay as they are when an axis gets longer.

    Attributes:
        lengths: of the axes, the names sorted.
        sides: how many values of each axis a tile spans.
    """

    lengths: tuple[int, ...]
    sides: tuple[int, ...]

    @property
    def points(self) -> int:
        """Points of the grid."""
        return math.prod(self.lengths)

    @property
    def block(self) -> int:
        """Points of a tile that lies within the grid."""
        return math.prod(self.sides)

    @property
    def counts(self) -> tuple[int, ...]:
        """Tiles along each axis."""
        return tuple(-(-n // side) for n, side in zip(self.lengths, self.sides, strict=True))

    @property
    def num(self) -> int:
        """Tiles of the grid."""
        return math.prod(self.counts)

    def sizes(self) -> np.ndarray:
        """How many points of the grid each tile holds, shape [num].

        Examples:
            >>> print(Tiles((3, 5), (1, 2)).sizes())
            [2 2 1 2 2 1 2 2 1]
        """
        held = np.ones((), np.int32)
        for n, side, count in zip(self.lengths, self.sides, self.counts, strict=True):
            along = np.minimum(side, n - side * np.arange(count)).astype(np.int32)
            held = np.multiply.outer(held, along)
        return held.reshape(-1)

    def places(self, tiles: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """The index along each axis of all points of some tiles, and which of them are inside.

        Shapes [*tiles.shape, block].
        """
        corners = np.unravel_index(tiles, self.counts)
        within = np.unravel_index(np.arange(self.block), self.sides)
        index, inside = [], np.ones((*tiles.shape, self.block), bool)
        for n, side, corner, step in zip(self.lengths, self.sides, corners, within, strict=True):
            along = corner[..., None] * side + step
            inside &= along < n
            index.append(np.minimum(along, n - 1))
        return index, inside

    def numbers(self, blocks: Range, lengths: Sequence[int]) -> np.ndarray:
        """The points of a range of tiles, numbered row by row in a grid of other lengths."""
        index, inside = self.places(np.arange(*blocks))
        return np.ravel_multi_index([i[inside] for i in index], tuple(lengths))

    def tiles(self, blocks: Range, counts: Sequence[int]) -> np.ndarray:
        """The numbers of a range of tiles where there are `counts` of them along the axes."""
        return np.ravel_multi_index(np.unravel_index(np.arange(*blocks), self.counts), counts)


def cut(lengths: Sequence[int], most: int) -> tuple[int, ...]:
    """Sides of tiles of at most so many points: long axes first, in parts of equal length.

    Examples:
        >>> print(cut((40, 13), 128), cut((3, 1000), 128))
        (40, 3) (1, 125)
    """
    sides = [1] * len(lengths)
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        parts = -(-lengths[i] // min(most, lengths[i]))
        sides[i] = -(-lengths[i] // parts)
        most //= sides[i]
    return tuple(sides)


def runs(wanted: Range, left: np.ndarray) -> list[Range]:
    """The parts of a range of blocks where something is left to do.

    Examples:
        >>> print(runs((1, 6), np.array([3, 3, 0, 0, 1, 2, 2])))
        [(1, 2), (4, 6)]
    """
    open_ = np.concatenate([[0], left[slice(*wanted)] > 0, [0]]).astype(np.int8)
    edges = wanted[0] + np.flatnonzero(np.diff(open_))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
