"""The folder of a sweep: finished chunks, each a file, and the fingerprint of their grid."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from regdist.scale.hosts import replacing

Range = tuple[int, int]
"""Blocks from the first up to, not including, the second."""


def rows_of(blocks: Range, block: int, num: int) -> slice:
    """The points of a range of blocks, of `num` in blocks of `block`: the last may be short."""
    return slice(blocks[0] * block, min(blocks[1] * block, num))


@dataclasses.dataclass(frozen=True)
class Store:
    """Finished chunks of a grid of `num` points in blocks of `block`; made by `store()`.

    A file holds the rows of a range of blocks, named by it: whoever reads it need not know how
    the work was cut when it was written.
    """

    path: Path
    num: int
    block: int
    leaves: tuple[tuple[tuple[int, ...], np.dtype], ...]

    def rows(self, blocks: Range) -> slice:
        """The points of a range of blocks."""
        return rows_of(blocks, self.block, self.num)

    def write(self, blocks: Range, leaves: Sequence[np.ndarray]) -> None:
        """Keep the rows of a range of blocks, one array for each leaf of the results."""
        with replacing(self.path / "chunks" / f"{blocks[0]:012d}-{blocks[1]:012d}.npz") as file:
            np.savez(file, *(x.view(np.uint8) if x.dtype.kind == "V" else x for x in leaves))

    def finished(self) -> list[Range]:
        """The ranges that are there, by their first block."""
        names = (p.stem.split("-") for p in (self.path / "chunks").glob("*.npz"))
        return sorted((int(first), int(last)) for first, last in names)

    def read(self, blocks: Range) -> list[np.ndarray]:
        """The rows of a finished range."""
        with np.load(self.path / "chunks" / f"{blocks[0]:012d}-{blocks[1]:012d}.npz") as file:
            arrays = [file[f"arr_{i}"] for i in range(len(self.leaves))]
        return [x.view(dtype) for x, (_, dtype) in zip(arrays, self.leaves, strict=True)]

    def assemble(self) -> None:
        """Put all finished chunks together, one .npy file for each leaf of the results."""
        for i, (shape, dtype) in enumerate(self.leaves):
            if self._whole(i).exists():
                continue
            part = self._whole(i).with_name(self._whole(i).name + ".part")
            whole = np.lib.format.open_memmap(part, "w+", dtype, (self.num, *shape))
            for blocks in self.finished():
                whole[self.rows(blocks)] = self.read(blocks)[i]
            whole.flush()
            os.replace(part, self._whole(i))

    def assembled(self) -> list[np.ndarray]:
        """The results as memory-mapped arrays, read as they are looked at."""
        return [
            np.load(self._whole(i), mmap_mode="r").view(dtype)
            for i, (_, dtype) in enumerate(self.leaves)
        ]

    def tidy(self) -> None:
        """Remove what a killed process had not finished; no other may be writing."""
        for left in self.path.glob("**/*.part"):
            left.unlink()

    def check_room(self, mapped: bool) -> None:
        """Refuses to start what the disk cannot hold.

        Raises:
            ValueError: fewer bytes are free than the results need.
        """
        point = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in self.leaves)
        there = sum(self.rows(b).stop - self.rows(b).start for b in self.finished())
        needed = max(self.num - there, 0) * point
        if mapped and not all(self._whole(i).exists() for i in range(len(self.leaves))):
            needed += self.num * point
        free = shutil.disk_usage(self.path).free
        if needed > free:
            raise ValueError(
                f"the results need {needed:,} bytes under out={str(self.path)!r}, where {free:,} "
                "are free: give a folder on a larger disk, or return less from fn"
            )

    def _whole(self, leaf: int) -> Path:
        return self.path / f"values-{leaf}.npy"


def store(
    path: Path,
    about: dict,
    num: int,
    block: int,
    leaves: Sequence[tuple[tuple[int, ...], np.dtype]],
) -> Store:
    """Open or begin the folder of a grid.

    Args:
        path: the folder.
        about: the fingerprint, as JSON: everything that the numbers depend on.
        num: points of the grid.
        block: points of a block.
        leaves: shape and dtype of each leaf of a point's result.

    Raises:
        ValueError: the folder holds another grid, or files that are no sweep's.
    """
    mark = path / "grid.json"
    if mark.exists():
        held = json.loads(mark.read_text())
        other = sorted(k for k in {*held, *about} if held.get(k) != about.get(k))
        if other:
            raise ValueError(
                f"out={str(path)!r} holds another sweep; it differs in {', '.join(other)}. "
                "Give another folder, or remove this one"
            )
    elif path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"out={str(path)!r} is not a sweep's folder, and not empty: give another")
    else:
        (path / "chunks").mkdir(parents=True, exist_ok=True)
        with replacing(mark) as file:
            file.write((json.dumps(about, indent=1, sort_keys=True) + "\n").encode())
    return Store(path, num, block, tuple(leaves))


def content_hash(arrays: Sequence[np.ndarray]) -> str:
    """SHA-256 of the bytes of arrays, read a part at a time."""
    total = hashlib.sha256()
    for x in arrays:
        step = max(1, 2**24 // max(1, x[:1].nbytes))  # 16 MiB: the arrays may be larger than memory
        for i in range(0, len(x), step):
            total.update(np.ascontiguousarray(x[i : i + step]).tobytes())
    return total.hexdigest()
