"""A bandit that people can read."""

import dataclasses

from regdist.problems.bandit import Bandit


@dataclasses.dataclass(frozen=True)
class Task:
    """A problem with names.

    Attributes:
        bandit: the problem, K actions.
        outcomes: the name of each action, K strings.
        about: what the problem is and where its reference comes from, one paragraph.
    """

    bandit: Bandit
    outcomes: tuple[str, ...]
    about: str
