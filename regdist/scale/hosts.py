"""Devices, processes and files: who computes what, how results meet, files whole or absent."""

import contextlib
import dataclasses
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


@dataclasses.dataclass(frozen=True)
class Team:
    """The processes of a mesh, seen from one of them; made by `team()`.

    Attributes:
        devices: the devices of the mesh that belong to this process, in the order of the mesh.
        leads: the first device of each process of the mesh, by process.
        rank: the place of this process among them.
    """

    devices: tuple[Any, ...]
    leads: tuple[Any, ...]
    rank: int

    @property
    def size(self) -> int:
        """Number of processes."""
        return len(self.leads)

    def mine(self, num: int) -> range:
        """Which of `num` items are this process's: dealt in turn, like cards."""
        return range(self.rank, num, self.size)


def team(mesh: Mesh | None = None) -> Team:
    """Who works on a mesh of any shape; by default on all devices of all processes.

    Raises:
        ValueError: no device of the mesh belongs to this process.

    Examples:
        >>> print(team().size, list(team().mine(3)))
        1 [0, 1, 2]
    """
    devices = jax.devices() if mesh is None else list(mesh.devices.flat)
    leads = {d.process_index: d for d in reversed(devices)}
    here = jax.process_index()
    if here not in leads:
        raise ValueError(
            f"process {here} has no device in the mesh, which holds devices of processes "
            f"{', '.join(map(str, sorted(leads)))}: build the mesh from jax.devices(), "
            "or make this call in those processes only"
        )
    return Team(
        devices=tuple(d for d in devices if d.process_index == here),
        leads=tuple(leads[p] for p in sorted(leads)),
        rank=sorted(leads).index(here),
    )


def gather(members: Team, array: np.ndarray) -> np.ndarray:
    """The arrays of all processes, one shape and dtype, stacked in their order, bit for bit.

    Every process of the team must call it; one device of each takes part.

    Raises:
        RuntimeError: another process is gone.
    """
    if members.size == 1:
        return array[None]
    raw = np.frombuffer(array.tobytes(), np.uint8)
    mesh = Mesh(np.array(members.leads), ("process",))
    split, everywhere = (NamedSharding(mesh, PartitionSpec(*p)) for p in (("process",), ()))
    mine = jax.device_put(raw[None], members.leads[members.rank])
    try:
        stacked = jax.make_array_from_single_device_arrays((members.size, raw.size), split, [mine])
        whole = np.asarray(jax.jit(lambda x: x, out_shardings=everywhere)(stacked))
    except jax.errors.JaxRuntimeError as error:
        raise RuntimeError(
            f"process {jax.process_index()} waited for results of the others, and one of them is "
            "gone. What was finished under out= is kept: start all processes again to go on"
        ) from error
    return whole.view(array.dtype).reshape(members.size, *array.shape)


def agree(members: Team, digest: bytes, what: str) -> None:
    """Wait for all processes, and refuse when they differ.

    Raises:
        ValueError: some process came with another digest.
    """
    seen = {row.tobytes() for row in gather(members, np.frombuffer(digest, np.uint8))}
    if len(seen) > 1:
        raise ValueError(
            f"the processes of this run do not agree on {what}: run the same script, with the "
            "same arguments, in each"
        )


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` when it is whole and on disk.

    Until then it has a name of its own that ends in `.part`, so that processes may write the same
    file at once; a killed one leaves it behind.
    """
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
