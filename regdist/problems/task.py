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
        answers: the name of each label, in the order of the labels; None to name an answer by its
            likeliest outcome.
    """

    bandit: Bandit
    outcomes: tuple[str, ...]
    about: str
    answers: tuple[str, ...] | None = None

    def answer(self, action: int) -> str:
        """What the answer that an action stands for is called, if `action` is its likeliest."""
        if self.answers is None:
            return self.outcomes[action]
        return self.answers[int(self.bandit.label[action])]
