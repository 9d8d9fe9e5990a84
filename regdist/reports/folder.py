"""Folders of results: refused before the work or written whole."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def check(out: Path) -> None:
    """Refuse, before the work, a folder that cannot be made or written; leaves nothing behind.

    Raises:
        ValueError: it names a file, or the system says no.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; a folder is wanted")
    missing = [path for path in (out, *out.parents) if not path.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise ValueError(f"{out} cannot be written ({error.strerror}): give another") from error
    finally:
        for path in missing:
            with contextlib.suppress(OSError):  # not made, or in use by others since
                path.rmdir()


@contextlib.contextmanager
def filling(out: Path) -> Iterator[Path]:
    """An empty folder to write in, whose files move into `out` when all are there.

    It lies in `out`, so that a move is a change of name. On an error none of them moves.
    """
    new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".part-", dir=out))
    try:
        yield fresh
        for path in sorted(fresh.iterdir()):
            os.replace(path, out / path.name)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if new:
            with contextlib.suppress(OSError):  # it stays where anything was written
                out.rmdir()
