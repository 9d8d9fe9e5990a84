"""Named jobs whose results are kept in a folder, dealt to devices and processes."""

import hashlib
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from regdist.scale import hosts
from regdist.scale.seals import checksum_of_json, read_sealed, write_sealed

Name = tuple[str, ...]


def run(
    work: Callable[[Name], Any],
    names: Sequence[Name],
    folder: Path,
    fingerprint: str,
    *,
    mesh: Mesh | None = None,
    done: Callable[[Name], None] = lambda _: None,
) -> list[Any]:
    """The results of `work` on all names, taken from `folder` where they are there.

    Each result is a file, written whole as it is made, so that a killed run goes on where it
    stopped; the file says whose result it is, and a checksum proves it when it is read. Names are
    dealt to the processes of the mesh (default: all devices), and within a process each of several
    devices has a thread: Ctrl-C waits for what these have begun, and stops a single device at once.
    With several processes `folder` is one, seen by all.

    Args:
        work: a name to its result, as plain JSON values without NaN or infinities.
        names: what there is to do, each once.
        folder: where results are kept.
        fingerprint: all that results depend on beside their names.
        mesh: whose devices and processes work.
        done: called with each of this process's names, in order, once its result is there.

    Raises:
        ValueError: the folder was begun with another fingerprint, a file in it does not prove
            itself, or the processes disagree.
    """
    members = hosts.team(mesh)
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / "fingerprint"
    if mark.exists() and mark.read_text() != fingerprint:
        raise ValueError(
            f"{folder} holds results made with other settings or another version: give another "
            "folder, or remove it"
        )
    with hosts.replacing(mark) as file:
        file.write(fingerprint.encode())
    free: queue.SimpleQueue = queue.SimpleQueue()
    for device in members.devices:
        free.put(device)

    def keep(name: Name) -> None:
        if _file(folder, name).exists():
            _read(folder, name, fingerprint)
            return
        device = free.get()
        try:
            with jax.default_device(device):
                result = work(name)
        finally:
            free.put(device)
        about = {"name": list(name), "fingerprint": fingerprint, "result": result}
        write_sealed(_file(folder, name), about)

    own = [names[i] for i in members.mine(len(names))]
    with ThreadPoolExecutor(len(members.devices)) as pool:
        deal = map if len(members.devices) == 1 else pool.map  # Ctrl-C reaches the main thread
        for name, _ in zip(own, deal(keep, own), strict=True):
            done(name)
    digest = bytes.fromhex(checksum_of_json([fingerprint, *names]))
    hosts.agree(members, digest, "their jobs")
    return [_read(folder, name, fingerprint) for name in names]


def _read(folder: Path, name: Name, fingerprint: str) -> Any:
    """A result that is there.

    Raises:
        ValueError: the file does not prove that it is the result of this name.
    """
    path = _file(folder, name)
    remedy = "delete that file, and its job is done again; or give another folder"
    about, _ = read_sealed(path, remedy)
    if about.get("name") != list(name) or about.get("fingerprint") != fingerprint:
        raise ValueError(
            f"{path} does not hold the result of {'/'.join(name)} with these settings: {remedy}"
        )
    return about["result"]


def _file(folder: Path, name: Name) -> Path:
    return folder / (hashlib.sha256("/".join(name).encode()).hexdigest()[:20] + ".json")
