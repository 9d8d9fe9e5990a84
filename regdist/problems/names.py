"""Problems by the names that commands use."""

from collections.abc import Callable
from pathlib import Path

from regdist.problems.files import load
from regdist.problems.game24 import game_of_24
from regdist.problems.landscapes import two_modes
from regdist.problems.task import Task

NAMED: dict[str, Callable[[], Task]] = {"two-modes": two_modes}
"""Problems that a name alone describes."""

CHOICES = f"game24:4,7,8,8 (any hand), {', '.join(NAMED)}, or a .csv or .jsonl file"
"""What a problem may be called."""


def by_name(spec: str, *, normalize: bool = False, rest: float | None = None) -> Task:
    """The problem that a name means.

    `game24:A,B,C,D` (optionally `game24:A,B,C,D=TARGET`), a name of `NAMED`, or the path of a
    `.csv` or `.jsonl` file, of which `normalize` and `rest` tell `load` what to do with references
    that do not sum to 1.

    Raises:
        ValueError: unknown, a bad hand or file, or no file to normalize.
        OSError: the file cannot be read.

    Examples:
        >>> by_name("two-modes").bandit.num_actions
        40
    """
    known = spec in NAMED or spec.startswith("game24:")
    if not known and (Path(spec).suffix or Path(spec).exists()):
        return load(spec, normalize=normalize, rest=rest)
    if normalize or rest is not None:
        raise ValueError(f"normalize and rest are for a .csv or .jsonl file; got {spec!r}")
    if spec in NAMED:
        return NAMED[spec]()
    if spec.startswith("game24:"):
        hand, _, goal = spec.removeprefix("game24:").partition("=")
        try:
            cards, number = [int(card) for card in hand.split(",")], int(goal) if goal else 24
        except ValueError as error:
            raise ValueError(
                f"a hand is written game24:4,7,8,8 with four positive integers; got {spec!r}"
            ) from error
        return game_of_24(cards, number)
    raise ValueError(f"unknown problem {spec!r}: give {CHOICES}")
