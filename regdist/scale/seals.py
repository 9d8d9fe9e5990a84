"""Files that prove themselves: a line of JSON, then the bytes of arrays, and a checksum of both."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regdist.scale.hosts import replacing


def write_sealed(path: Path, about: dict[str, Any], arrays: Sequence[np.ndarray] = ()) -> None:
    """Keep JSON values and arrays in a file that is whole or absent.

    Its first line is the JSON with the checksum in it, `sha256`; the bytes of the arrays follow.
    No pickle is written, nor read.
    """
    bodies = [np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in arrays]
    with replacing(path) as file:
        line = {**about, "sha256": _checksum(about, bodies)}  # in the order of the caller's names
        file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        for body in bodies:
            file.write(body.data)


def read_sealed(path: Path, remedy: str) -> tuple[dict[str, Any], np.ndarray]:
    """The JSON values, and the bytes that follow them.

    Raises:
        ValueError: the file cannot be read, or is not what was written; it says which file, what
            is wrong, and `remedy`.
    """
    try:
        line, _, body = path.read_bytes().partition(b"\n")
        about = json.loads(line)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is broken, or cut short: {remedy}") from error
    if not isinstance(about, dict) or "sha256" not in about:
        raise ValueError(f"{path} holds no checksum, so that it proves nothing: {remedy}")
    seal, held = about.pop("sha256"), np.frombuffer(body, np.uint8)
    if seal != _checksum(about, [held]):
        raise ValueError(f"{path} is not as it was written, by its checksum: {remedy}")
    return about, held


def checksum_of(path: Path) -> str:
    """SHA-256 of the bytes of a file, read a part at a time."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum_of_arrays(arrays: Sequence[np.ndarray]) -> str:
    """SHA-256 of the bytes of arrays, read a part at a time."""
    total = hashlib.sha256()
    for x in arrays:
        step = max(1, 2**24 // max(1, x[:1].nbytes))  # 16 MiB: the arrays may be larger than memory
        for i in range(0, len(x), step):
            total.update(np.ascontiguousarray(x[i : i + step]).tobytes())
    return total.hexdigest()


def checksum_of_json(about: Any) -> str:
    """SHA-256 of JSON values, whatever the order of their names."""
    return hashlib.sha256(_line(about)).hexdigest()


def _line(about: Any) -> bytes:
    return json.dumps(about, sort_keys=True, allow_nan=False).encode() + b"\n"


def _checksum(about: dict[str, Any], bodies: Sequence[np.ndarray]) -> str:
    total = hashlib.sha256(_line(about))
    for body in bodies:
        total.update(body.data)
    return total.hexdigest()
