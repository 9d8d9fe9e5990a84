"""One bar for long work: shown to a person, silent for a program."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from regdist.numerics.records import described

if TYPE_CHECKING:
    from rich.progress import Progress


def check_progress(progress: Any) -> None:
    """Refuses what says neither whether there is to be a bar, nor is one.

    Raises:
        TypeError: it is of another kind.
    """
    from rich.progress import Progress

    if not isinstance(progress, Progress | bool | None):
        raise TypeError(
            "progress must be True, False, None or a bar of rich's, rich.progress.Progress(); got "
            f"{described(progress)}"
        )


@contextlib.contextmanager
def bar(
    progress: "bool | Progress | None",
    name: str,
    total: int,
    completed: int = 0,
    quiet: bool = False,
) -> Iterator[Callable[..., Any]]:
    """A bar over `total` items, on the error output; yields what moves it on by some of them.

    Args:
        progress: True or False for a bar or none; None for one where somebody looks, a terminal
            or a notebook; or a bar of one's own, which gets a line.
        name: of the line.
        total: items.
        completed: items that are done already.
        quiet: no bar of its own.

    Raises:
        TypeError: progress is of another kind.
    """
    from rich.console import Console
    from rich.progress import Progress

    check_progress(progress)
    if isinstance(progress, Progress):
        shown = contextlib.nullcontext(progress)
    else:
        console = Console(stderr=True)
        visible = (console.is_terminal or console.is_jupyter) and not quiet
        wanted = visible if progress is None else progress
        shown = Progress(console=console, disable=not wanted)
    with shown as line:
        task = line.add_task(name, total=total, completed=completed)
        yield lambda items=1: line.update(task, advance=items)
