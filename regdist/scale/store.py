"""The folder of a sweep: its grid, its finished chunks, its results, all of which prove themselves.

- `grid.json`: the fingerprint of the sweep.
- `chunks/`: finished blocks. `40x13-000000000000-000000000004.chunk` has the first four of a grid
  of 40 x 13 points, the axes by name, and says so inside.
- `values-0.npy`: all results of the first leaf, where they are not to be held in memory, and
  `values.json`, the checksums of such files.
"""

import dataclasses
import functools
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regdist.scale.seals import checksum_of, checksum_of_json, read_sealed, write_sealed
from regdist.scale.tiles import Range, Tiles, cut

About = Callable[[tuple[int, ...]], dict[str, Any]]
"""The fingerprint of a sweep over so many first values of each axis, as JSON."""

_AGAIN = "delete that file, and its points are computed again; or give another folder"
_ANOTHER = "Give another folder, or remove this one"
_PART = re.compile(r".+\.[0-9a-f]{32}\.part")


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A file of finished blocks, as its name says.

    Attributes:
        path: the file.
        tiles: the grid when it was written.
        blocks: the range of its tiles.
    """

    path: Path
    tiles: Tiles
    blocks: Range


@dataclasses.dataclass(frozen=True)
class Store:
    """The folder of a sweep; made by `store()`.

    Attributes:
        path: the folder.
        tiles: the grid.
        leaves: shape and dtype of each leaf of a point's result.
        digest: the fingerprint of the sweep over so many first values of each axis.
    """

    path: Path
    tiles: Tiles
    leaves: tuple[tuple[tuple[int, ...], np.dtype], ...]
    digest: Callable[[tuple[int, ...]], str]

    def write(self, blocks: Range, leaves: Sequence[np.ndarray]) -> None:
        """Keep the rows of a range of blocks, one array for each leaf of the results."""
        write_sealed(self.path / "chunks" / _name(self.tiles, blocks), self._about(blocks), leaves)

    def chunks(self) -> list[Chunk]:
        """The finished chunks, those of smaller grids first.

        Raises:
            ValueError: a file of another name is among them, or one that is not of this grid.
        """
        folder = self.path / "chunks"
        if not folder.is_dir():
            raise ValueError(
                f"{folder} is missing: make an empty folder of that name, and all points are "
                "computed again; or give another folder"
            )
        names = sorted(p.name for p in folder.iterdir())
        # A name with a dot in front is the system's own.
        found = [self._chunk(n) for n in names if n[0] != "." and not _PART.fullmatch(n)]
        return sorted(found, key=lambda x: (x.tiles.points, x.tiles.lengths, x.blocks))

    def missing(self) -> np.ndarray:
        """How many points of each block are not there, shape [blocks].

        A block at the end of an axis that has got longer since may be in two chunks, as it was and
        as it is.

        Raises:
            ValueError: as `chunks`, or two chunks hold the same points.
        """
        there, seen = np.zeros(self.tiles.num, np.int32), {}
        for chunk in self.chunks():
            here = chunk.tiles.tiles(chunk.blocks, self.tiles.counts)
            sizes = chunk.tiles.sizes()[slice(*chunk.blocks)]
            twice = here[there[here] >= sizes]
            if len(twice):
                other = next(name for name, blocks in seen.items() if twice[0] in blocks)
                raise ValueError(f"{chunk.path} holds points that {other} holds too: {_AGAIN}")
            there[here] = sizes
            seen[chunk.path.name] = here
        return self.tiles.sizes() - there

    def read(self, chunk: Chunk) -> tuple[np.ndarray, list[np.ndarray]]:
        """The points of a finished chunk, and their rows.

        Raises:
            ValueError: the file does not prove that it is what its name says.
        """
        about, body = read_sealed(chunk.path, _AGAIN)
        wanted = self._about(chunk.blocks, chunk.tiles)
        wrong = {
            "grid": "belongs to another sweep, or to other values of its axes",
            "blocks": f"holds other points than its name says, blocks {about.get('blocks')}",
            "arrays": "holds arrays of other shapes or dtypes than the results",
        }
        for key, words in wrong.items():
            if about.get(key) != wanted[key]:
                raise ValueError(f"{chunk.path} {words}: {_AGAIN}")
        points, at, rows = chunk.tiles.numbers(chunk.blocks, self.tiles.lengths), 0, []
        for shape, dtype in self.leaves:
            size = int(np.prod((len(points), *shape))) * dtype.itemsize
            rows.append(body[at : at + size].view(dtype).reshape(len(points), *shape))
            at += size
        return points, rows

    def prove(self) -> None:
        """Read what results in files will come from, and refuse what does not prove itself.

        Raises:
            ValueError: a file is not what was written, or is not of this sweep.
        """
        if not self._is_assembled():
            for chunk in self.chunks():
                self.read(chunk)
            return
        remedy = "delete that file, and it is put together again from the chunks"
        about, _ = read_sealed(self._sums, remedy)
        if about.get("grid") != self.digest(self.tiles.lengths):
            raise ValueError(f"{self._sums} belongs to another sweep: {remedy}")
        for path in self._wholes():
            if about["files"].get(path.name) != checksum_of(path):
                raise ValueError(f"{path} is not as it was written, by its checksum: {remedy}")

    def assemble(self) -> None:
        """Put all finished chunks together, one .npy file for each leaf of the results.

        Files that are there have been proved.
        """
        if self._is_assembled():
            return
        parts = [self.path / f"{path.name}.{0:032x}.part" for path in self._wholes()]
        wholes = [
            np.lib.format.open_memmap(part, "w+", dtype, (self.tiles.points, *shape))
            for part, (shape, dtype) in zip(parts, self.leaves, strict=True)
        ]
        for chunk in self.chunks():
            points, rows = self.read(chunk)
            for whole, row in zip(wholes, rows, strict=True):
                whole[points] = row
        for whole, part, path in zip(wholes, parts, self._wholes(), strict=True):
            whole.flush()
            os.replace(part, path)
        sums = {path.name: checksum_of(path) for path in self._wholes()}
        write_sealed(self._sums, {"grid": self.digest(self.tiles.lengths), "files": sums})

    def assembled(self) -> list[np.ndarray]:
        """The results as memory-mapped arrays, read as they are looked at."""
        return [
            np.load(path, mmap_mode="r", allow_pickle=False).view(dtype)
            for path, (_, dtype) in zip(self._wholes(), self.leaves, strict=True)
        ]

    def forget_results(self) -> None:
        """Remove the results of all points, which the chunks hold as well."""
        for path in (self._sums, *self._wholes()):
            path.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove what a killed process had not finished; no other may be writing."""
        for folder in (self.path, self.path / "chunks"):
            for left in folder.glob("*.part"):
                if _PART.fullmatch(left.name):
                    left.unlink(missing_ok=True)

    def check_room(self, mapped: bool) -> None:
        """Refuses to start what the disk cannot hold.

        Raises:
            ValueError: fewer bytes are free than the results need.
        """
        point = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in self.leaves)
        needed = int(self.tiles.sizes()[self.missing() > 0].sum()) * point
        if mapped and not self._is_assembled():
            needed += self.tiles.points * point
        free = shutil.disk_usage(self.path).free
        if needed > free:
            raise ValueError(
                f"the results need {needed:,} bytes under out={str(self.path)!r}, where {free:,} "
                "are free: give a folder on a larger disk, or return less from fn"
            )

    @property
    def _sums(self) -> Path:
        return self.path / "values.json"

    def _is_assembled(self) -> bool:
        return all(path.exists() for path in (self._sums, *self._wholes()))

    def _wholes(self) -> list[Path]:
        return [self.path / f"values-{i}.npy" for i in range(len(self.leaves))]

    def _about(self, blocks: Range, tiles: Tiles | None = None) -> dict[str, Any]:
        """What a chunk says of itself."""
        tiles = tiles or self.tiles
        points = int(tiles.sizes()[slice(*blocks)].sum())
        return {
            "grid": self.digest(tiles.lengths),
            "blocks": list(blocks),
            "arrays": [[str(dtype), [points, *shape]] for shape, dtype in self.leaves],
        }

    def _chunk(self, name: str) -> Chunk:
        """A chunk by the name of its file."""
        path = self.path / "chunks" / name
        numbers = re.fullmatch(r"(\d+(?:x\d+)*)-(\d+)-(\d+)\.chunk", name, re.ASCII)
        if numbers:
            lengths = tuple(map(int, numbers[1].split("x")))
            blocks = int(numbers[2]), int(numbers[3])
            now = self.tiles.lengths
            if len(lengths) == len(now) and name == _name(Tiles(lengths, self.tiles.sides), blocks):
                tiles = Tiles(lengths, self.tiles.sides)
                larger = any(old > new for old, new in zip(lengths, now, strict=True))
                if larger or not blocks[0] < blocks[1] <= tiles.num:
                    raise ValueError(f"{path} is beyond the grid, by its name: {_AGAIN}")
                return Chunk(path, tiles, blocks)
        raise ValueError(
            f"{path} is no file of this sweep, by its name: take it away, or give another folder"
        )


def store(
    path: Path,
    about: About,
    tiles: Tiles,
    leaves: Sequence[tuple[tuple[int, ...], np.dtype]],
) -> Store:
    """Open or begin the folder of a sweep, or go on with one over fewer values of an axis.

    Args:
        path: the folder.
        about: the fingerprint, as JSON: everything that the numbers depend on.
        tiles: the grid.
        leaves: shape and dtype of each leaf of a point's result.

    Raises:
        ValueError: the folder holds another sweep, or files that are no sweep's, or its grid.json
            does not prove itself.
    """
    digest = functools.cache(lambda lengths: checksum_of_json(about(lengths)))
    opened = Store(path, tiles, tuple(leaves), digest)
    wanted = about(tiles.lengths)
    held = read_grid(path)
    if held is None:
        (path / "chunks").mkdir(parents=True, exist_ok=True)
        write_sealed(path / "grid.json", wanted)
    elif held != wanted:
        axes = [sorted(k for k in x if k.startswith("axis ")) for x in (held, wanted)]
        same = axes[0] == axes[1]
        first = about(tuple(held[k]["length"] for k in axes[0])) if same else {}
        other = _differences(held, wanted, first)
        if other:
            raise ValueError(
                f"out={str(path)!r} holds another sweep; it differs in {', '.join(other)}. "
                f"{_ANOTHER}"
            )
        opened.missing()  # refuses what is no chunk, before anything is changed
        opened.forget_results()  # first: with another grid they would be a stranger's
        write_sealed(path / "grid.json", wanted)
    return opened


def read_grid(path: Path) -> dict[str, Any] | None:
    """The fingerprint of the sweep in a folder; None if there is nothing in it.

    Raises:
        ValueError: the folder holds what is no sweep's, or an older version's, or its grid.json
            does not prove itself.
    """
    mark = path / "grid.json"
    if not mark.exists():
        begun = path.is_dir() and all(
            _PART.fullmatch(x.name) or (x.name == "chunks" and x.is_dir() and not any(x.iterdir()))
            for x in path.iterdir()
        )
        if path.exists() and not begun:
            raise ValueError(
                f"out={str(path)!r} is not a sweep's folder, and not empty: give another"
            )
        return None
    text = mark.read_bytes()
    if b'"format": 1,' in text and b"sha256" not in text:
        raise ValueError(
            f"{mark} was written by an older version of regdist, whose folders cannot be proved "
            f"and are not read. {_ANOTHER}"
        )
    return read_sealed(mark, _ANOTHER)[0]


def kept_sides(path: Path, names: Sequence[str], most: int | None) -> tuple[int, ...] | None:
    """How many values of each axis a block of the sweep in a folder spans.

    Args:
        path: the folder.
        names: of the axes, sorted.
        most: the points of a block that a caller asked for; None for what is there.

    Returns:
        None if no sweep over these axes is there, or its blocks are of another size.
    """
    held = read_grid(path)
    if held is None or list(held["block"]) != list(names):
        return None
    sides = tuple(held["block"].values())
    lengths = tuple(held[f"axis {name}"]["length"] for name in names)
    return sides if most is None or cut(lengths, most) == sides else None


def _differences(held: dict[str, Any], wanted: dict[str, Any], first: dict[str, Any]) -> list[str]:
    """In what two sweeps differ beyond the length of axes; `first` is the wanted one, shortened."""
    found = []
    for key in sorted({*held, *wanted}):
        there, here = held.get(key), wanted.get(key)
        if there == here or (key in first and there == first[key]):
            continue
        words = ""
        if key.startswith("axis "):
            words = " (not there)" if there is None else " (not here)"
            if there and here:
                words = f"{there['length']} values there, {here['length']} here"
                if there["values"] != here["values"] or there["tree"] != here["tree"]:
                    words = " there, ".join(map(_kind, (there, here))) + " here"
                elif there["length"] <= here["length"]:
                    words += ", which do not begin with those there"
                words = f" ({words})"
        elif key in ("block", "version", "jax", "regdist"):
            words = f" ({there} there, {here} here)"
        found.append(key + words)
    return found


def _kind(axis: dict[str, Any]) -> str:
    """The dtypes and shapes of the values of an axis."""
    return ", ".join(f"{dtype}{shape or ''}" for dtype, shape in axis["values"])


def _name(tiles: Tiles, blocks: Range) -> str:
    """The name of a chunk's file."""
    return f"{'x'.join(map(str, tiles.lengths))}-{blocks[0]:012d}-{blocks[1]:012d}.chunk"
