"""Bandits and trees that people can read."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from regdist.numerics.records import check_actions, described
from regdist.problems.bandit import Bandit
from regdist.problems.tree import Tree

MOST_TOKENS = 5_000_000
"""The most tokens, sequences times steps, that a named tree writes one by one."""


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


@dataclasses.dataclass(frozen=True)
class TreeTask:
    """A problem of sequences with names.

    Attributes:
        tree: the problem: L sequences over V tokens, S states.
        tokens: the name of each token, V strings.
        answers: the name of each label, in the order of the labels.
        about: what the problem is and where its reference comes from, one paragraph.

    Examples:
        >>> task = rd.problems.long_and_short(lengths=(1, 3))
        >>> task.outcomes
        ('right', 'wrong', 'think think right', 'think think wrong')
        >>> task.states, task.answer(2)
        (('', 'think', 'think think'), 'right')
    """

    tree: Tree
    tokens: tuple[str, ...]
    answers: tuple[str, ...]
    about: str

    @property
    def outcomes(self) -> tuple[str, ...]:
        """Each whole sequence as a text, L strings."""
        token = np.asarray(self.tree.paths.steps) % len(self.tokens)
        lengths = np.asarray(self.tree.length).tolist()
        return tuple(self.text(t[:n]) for t, n in zip(token.tolist(), lengths, strict=True))

    @property
    def states(self) -> tuple[str, ...]:
        """The prefix of each state as a text, S strings; nothing for the root."""
        return tuple(map(self.text, self.tree.prefixes))

    def text(self, tokens: Sequence[int]) -> str:
        """The names of tokens one after the other, with spaces between.

        Raises:
            ValueError: what is no token, such as the -1 that pads a table.
        """
        known = range(len(self.tokens))
        if not isinstance(tokens, Iterable) or not all(token in known for token in tokens):
            raise ValueError(
                f"tokens must be a list of integers from 0 to {len(known) - 1}; got "
                f"{described(tokens)}"
            )
        return " ".join(self.tokens[token] for token in tokens)

    def answer(self, leaf: int) -> str:
        """What the answer that a whole sequence stands for is called; `leaf` is its index."""
        check_actions("leaf", leaf, self.tree.num_leaves)
        return self.answers[int(self.tree.bandit.label[leaf])]


def check_tokens(sequences: int, steps: int, advice: str) -> None:
    """Refuses a tree that is too large to be written one sequence after the other.

    Args:
        sequences: how many there would be.
        steps: of the longest.
        advice: what to ask for instead.

    Raises:
        ValueError: more than `MOST_TOKENS` tokens.
    """
    if sequences * steps > MOST_TOKENS:
        raise ValueError(
            f"a named tree has at most {MOST_TOKENS:,} tokens, sequences times steps of the "
            f"longest; this one would have more. {advice}"
        )
