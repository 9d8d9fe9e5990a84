"""Small trees that show what sequences do and single actions cannot.

L sequences over V tokens; rewards, probabilities and costs are plain numbers.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from regdist.numerics.records import Number, Table, as_array, check_count
from regdist.problems.grow import rounding, tree
from regdist.problems.task import TreeTask, check_tokens


class Leaf(NamedTuple):
    """A whole sequence: its tokens, probability under the reference, reward and label."""

    tokens: tuple[int, ...]
    probability: float
    reward: float
    label: int


def one_or_two(
    words: Table = (0.75, 0.15),
    rewards: Table = (1.0, 1.0),
    talk: Number = 0.2,
    fillers: int = 1,
) -> TreeTask:
    """A model is told to say "one" or "two", prefers one of them, and both are right.

    It may first say "well", and then says "one", "two", or "three", which is worth nothing. Labels
    are what it says in the end. Equal rewards keep the reference's odds at every coefficient of
    either KL (arXiv 2510.20817): training makes it obey, and no more even than it was.

    Args:
        words: the reference's probabilities of "one" and "two"; the rest is of "three".
        rewards: of "one" and "two".
        talk: the probability of each "well".
        fillers: how many of them it may say, from 0.

    Raises:
        TypeError: what is no number.
        ValueError: no probabilities, another number of them, or a sum above 1.

    Examples:
        >>> task = rd.problems.one_or_two()
        >>> task.outcomes
        ('one', 'two', 'three', 'well one', 'well two', 'well three')
        >>> bandit = task.tree.bandit
        >>> for law in (jnp.exp(bandit.log_ref), rd.target(bandit, rd.ReverseKL(0.1)).probs):
        ...     print(jnp.bincount(bandit.label, law, length=3).round(4))
        [0.75 0.15 0.1 ]
        [0.8333 0.1667 0.    ]
    """
    said = _probabilities("words", words, 2)
    if sum(said) > 1 + rounding():
        raise ValueError(f"words must have a sum of at most 1; they sum to {sum(said):.10g}")
    paid = _numbers("rewards", rewards, 2)
    again = _probability("talk", talk)
    check_count("fillers", fillers, least=0)
    check_tokens(3 * (fillers + 1), fillers + 1, f"Give less than fillers={fillers}")
    law = [*said, max(1 - sum(said), 0.0)]
    leaves = []
    for n in range(fillers + 1):
        begun = again**n * (1 - again if n < fillers else 1)
        leaves += [
            Leaf((3,) * n + (i,), begun * law[i], reward, i) for i, reward in enumerate([*paid, 0])
        ]
    about = (
        'A model told to say "one" or "two": it says them with probability '
        f'{said[0]:g} and {said[1]:g}, else "three", after at most {fillers} "well" with '
        f"probability {again:g} each. Rewards are {paid[0]:g} and {paid[1]:g}, else 0."
    )
    spoken = ("one", "two", "three")
    return _named(leaves, (*spoken, "well"), spoken, about)


def long_and_short(
    lengths: Sequence[int] = (2, 6),
    right: Table = (0.15, 0.15),
    wrong: Table = (0.35, 0.35),
) -> TreeTask:
    """Right answers of different lengths, and wrong ones: who is pushed how hard?

    A sequence of n tokens is n - 1 times "think" and then "right" or "wrong", which it may say at
    the given lengths. Labels say which. By default right and wrong answers have one law of lengths,
    so that length says nothing about reward. Under averages by 1/length each answer's push is
    divided by its length (arXiv 2503.20783): the short right ones are favored, and of the wrong
    ones the long.

    Args:
        lengths: in tokens, each once, from 1.
        right: the reference's probability of the right answer of each length.
        wrong: of the wrong answer of each length.

    Raises:
        TypeError: what is no number.
        ValueError: a length that is none or occurs twice, another number of probabilities than of
            lengths, or probabilities that do not sum to 1 together.

    Examples:
        >>> tree = rd.problems.long_and_short().tree
        >>> for averaging in ("sum", "sequence"):
        ...     push = rd.field(rd.methods.dr_grpo(averaging=averaging), tree.log_ref, tree)
        ...     print((push[1, :2] / push[5, :2]).round(4))  # of the short over the long
        [1. 1.]
        [3. 3.]
    """
    each = list(lengths) if isinstance(lengths, Iterable) else [lengths]
    for length in each:
        check_count("length", length)
    if not each or len(set(each)) < len(each):
        raise ValueError(f"lengths must be at least one, each once; got {lengths!r}")
    good = _probabilities("right", right, len(each))
    bad = _probabilities("wrong", wrong, len(each))
    law = _law("right and wrong together", [*good, *bad])
    check_tokens(2 * len(each), max(each), f"Give shorter lengths; got {each}")
    leaves = []
    for i, length in enumerate(each):
        before = (2,) * (length - 1)
        leaves.append(Leaf((*before, 0), law[i], 1, 0))
        leaves.append(Leaf((*before, 1), law[i + len(each)], 0, 1))
    about = (
        f"Answers of {', '.join(map(str, each))} tokens, right with probability "
        f"{', '.join(f'{x:g}' for x in good)} and wrong with {', '.join(f'{x:g}' for x in bad)}. "
        "Reward 1 for right ones."
    )
    return _named(leaves, ("right", "wrong", "think"), ("right", "wrong"), about)


def think_then_answer(
    thoughts: Table = (0.7, 0.1, 0.1, 0.1),
    answers: Table = ((0.9, 0.1), (0.2, 0.8), (0.2, 0.8), (0.2, 0.8)),
    rewards: Table = (0.0, 1.0),
    steps: int = 1,
) -> TreeTask:
    """Thoughts, and then an answer that many of them lead to; the answer alone is paid.

    Each thought has a law of answers; the reference draws thoughts independently, and the answer
    from the mean of their laws. Labels are the answers: many sequences, few answers, so that the
    entropy of sequences and that of answers may move apart (arXiv 2507.14843). By default the
    usual thought leads astray and three rare ones lead to the right answer.

    Args:
        thoughts: the reference's probability of each thought, H of them.
        answers: its probability of each answer after each thought, shape [H, A].
        rewards: of each answer, A of them.
        steps: how many thoughts come before the answer.

    Raises:
        TypeError: what is no number.
        ValueError: no laws, other numbers of them than of thoughts and rewards, or more sequences
            than one writes one by one.

    Examples:
        >>> bandit = rd.problems.think_then_answer().tree.bandit
        >>> best = rd.target(bandit, rd.ReverseKL(0.3))
        >>> for log_p in (bandit.log_ref, best.log_probs):  # of sequences, and of answers
        ...     mass = jnp.log(jnp.bincount(bandit.label, jnp.exp(log_p), length=2))
        ...     print(f"{rd.metrics.entropy(log_p):.4f} {rd.metrics.entropy(mass):.4f}")
        1.3181 0.6191
        1.5744 0.2628
    """
    thought = _law("thoughts", thoughts)
    as_array("answers", answers)
    size, table = len(thought), np.asarray(answers, float)
    if table.ndim != 2 or table.shape[0] != size or not table.shape[1]:
        raise ValueError(
            f"answers must have a row of probabilities for each of {size} thoughts, shape [H, A]; "
            f"got shape {table.shape}"
        )
    speaks = [_law(f"row {i} of answers", row) for i, row in enumerate(table.tolist())]
    count = table.shape[1]
    paid = _numbers("rewards", rewards, count)
    check_count("steps", steps)
    advice = f"Give fewer thoughts or steps; got {size} and steps={steps}"
    check_tokens(size ** min(steps, FAR) * count, steps + 1, advice)
    leaves = []
    for path in itertools.product(range(size), repeat=steps):
        begun = math.prod(thought[i] for i in path)
        for a in range(count):
            chance = math.fsum(speaks[i][a] for i in path) / steps
            leaves.append(Leaf((*path, size + a), begun * chance, paid[a], a))
    about = (
        f"Thoughts, {steps} in a row out of {size}, and then one of {count} answers, from the "
        f"mean of the laws of these thoughts. Rewards are {', '.join(f'{x:g}' for x in paid)}."
    )
    said = tuple(f"answer{a + 1}" for a in range(count))
    return _named(leaves, (*(f"thought{i + 1}" for i in range(size)), *said), said, about)


def forks(turns: int = 3, branches: int = 2, forced: int = 4, right: Number = 0.5) -> TreeTask:
    """Few states that decide, and many in which there is but one token to say.

    At each turn one of some branches is taken, and then a stretch is walked. The reward is 1 where
    every turn was the first branch, else 0; each way is an answer of its own. Forced states have no
    entropy and are never moved, but their tokens count in lengths and in quantiles of entropies
    (arXiv 2506.01939): by default one token in five decides.

    Args:
        turns: how many there are on each way.
        branches: at each turn, from 2.
        forced: tokens after each turn, from 0.
        right: the reference's probability of the first branch; the others share the rest evenly.

    Raises:
        TypeError: what is no number.
        ValueError: numbers that are too small, no probability, or more sequences than one writes
            one by one.

    Examples:
        >>> tree = rd.problems.forks().tree
        >>> entropy = rd.metrics.state_entropies(tree, tree.log_ref)
        >>> visits = jnp.exp(tree.log_visits(tree.log_ref))
        >>> print(tree.num_states, jnp.sum(entropy > 0), visits[entropy > 0].sum() / visits.sum())
        63 7 0.2
    """
    check_count("turns", turns)
    check_count("branches", branches, least=2)
    check_count("forced", forced, least=0)
    good = _probability("right", right)
    advice = f"Give less of turns={turns}, branches={branches} and forced={forced}"
    check_tokens(branches ** min(turns, FAR), turns * (forced + 1), advice)
    law = [good, *[(1 - good) / (branches - 1)] * (branches - 1)]
    stretch = (branches,) * forced
    leaves, names = [], [f"turn{i + 1}" for i in range(branches)]
    ways = list(itertools.product(range(branches), repeat=turns))
    for label, way in enumerate(ways):
        tokens = tuple(itertools.chain.from_iterable((i, *stretch) for i in way))
        leaves.append(Leaf(tokens, math.prod(law[i] for i in way), float(not any(way)), label))
    about = (
        f"Turns, {turns} in a row with {branches} branches each, and {forced} forced tokens after "
        "each. Reward 1 for the first branch at every turn, which the reference takes with "
        f"probability {good:g} each time."
    )
    answers = tuple(" ".join(names[i] for i in way) for way in ways)
    return _named(leaves, (*names, "walk"), answers, about)


def tool_call(
    call: Number = 0.3,
    queries: Table = (0.5, 0.5),
    works: Table = (0.9, 0.4),
    right: Table = (0.3, 0.9, 0.2),
    cost: Number = 0.1,
) -> TreeTask:
    """Two turns: the policy answers, or calls a tool, which answers by chance, and then answers.

    A call has one of Q queries; the tool finds something or nothing with a probability of the
    query's, which is the world's and no policy's: these are states of chance. The reward is 1 for
    the right answer, less the cost of a call. Labels say whether the answer is right.

    Args:
        call: the reference's probability of calling the tool.
        queries: its probability of each query, given a call.
        works: the tool's probability of finding something, for each query.
        right: the reference's probability of the right answer: without a call, after something
            found, and after nothing found.
        cost: of a call, in units of reward.

    Raises:
        TypeError: what is no number.
        ValueError: no probabilities, other numbers of them, or a cost that is not finite.

    Examples:
        A policy that stays near the reference learns to call, for it knows more with the tool; one
        that may go far learns the answer itself, and that a call costs.

        >>> tree = rd.problems.tool_call().tree
        >>> print(f"{jnp.exp(tree.bandit.log_ref) @ tree.bandit.reward:.4f}")
        0.3765
        >>> for beta in (10.0, 0.5, 0.02):  # P(call)
        ...     best = rd.stepwise(tree, rd.ReverseKL(beta))
        ...     print(f"{jnp.exp(best.log_steps[0, 4:]).sum():.4f}")
        0.3053
        0.3654
        0.0055
    """
    calls, ask = _probability("call", call), _law("queries", queries)
    finds = _probabilities("works", works, len(ask))
    direct, told, untold = _probabilities("right", right, 3)
    (price,) = _numbers("cost", [cost], 1)
    leaves = [Leaf((0,), (1 - calls) * direct, 1, 0), Leaf((1,), (1 - calls) * (1 - direct), 0, 1)]
    for i, (asked, found) in enumerate(zip(ask, finds, strict=True)):
        for result, chance, knows in ((2, found, told), (3, 1 - found, untold)):
            begun = calls * asked * chance
            leaves.append(Leaf((4 + i, result, 0), begun * knows, 1 - price, 0))
            leaves.append(Leaf((4 + i, result, 1), begun * (1 - knows), -price, 1))
    chances = {(4 + i,): {2: found, 3: 1 - found} for i, found in enumerate(finds)}
    about = (
        f"An answer, or a call of a tool with one of {len(ask)} queries, which finds something "
        f"with probability {', '.join(f'{x:g}' for x in finds)}, and then an answer. Reward 1 for "
        f"the right answer, less {price:g} for a call."
    )
    names = ("right", "wrong", "found", "nothing", *(f"call{i + 1}" for i in range(len(ask))))
    return _named(leaves, names, ("right", "wrong"), about, chances)


FAR = 64
"""A power of two or more beyond which no tree is written: larger ones need not be known."""


def _named(
    leaves: Sequence[Leaf],
    tokens: tuple[str, ...],
    answers: tuple[str, ...],
    about: str,
    chance: Mapping[tuple[int, ...], Any] | None = None,
) -> TreeTask:
    """The task of some leaves; of the last tokens those that occur."""
    sequences, probability, reward, label = map(list, zip(*leaves, strict=True))
    made = tree(sequences, reward, reference=probability, chance=chance, label=label)
    return TreeTask(made, tokens[: made.paths.exists.shape[1]], answers, about)


def _numbers(name: str, given: Table, size: int | None = None) -> list[float]:
    """A row of finite numbers, `size` of them where it is known."""
    as_array(name, given)
    row = np.asarray(given, float)
    if row.ndim != 1 or not row.size or size not in (None, row.size):
        wanted = "a row of numbers" if size is None else f"{size} numbers"
        raise ValueError(f"{name} must be {wanted}; got shape {row.shape}")
    if not np.all(np.isfinite(row)):
        raise ValueError(f"{name} must be finite; got {given!r}")
    return row.tolist()


def _probabilities(name: str, given: Table, size: int | None = None) -> list[float]:
    """A row of numbers between 0 and 1."""
    row = _numbers(name, given, size)
    if not all(0 <= x <= 1 for x in row):
        raise ValueError(f"{name} must be probabilities, between 0 and 1; got {given!r}")
    return row


def _probability(name: str, given: Number) -> float:
    """One number between 0 and 1."""
    if np.ndim(as_array(name, given)) or not 0 <= float(np.asarray(given, float)) <= 1:
        raise ValueError(f"{name} must be a probability, between 0 and 1; got {given!r}")
    return float(np.asarray(given, float))


def _law(name: str, given: Table) -> list[float]:
    """Probabilities that sum to 1."""
    row = _probabilities(name, given)
    if abs(sum(row) - 1) > rounding():
        raise ValueError(f"{name} must sum to 1; the sum is {sum(row):.10g}")
    return [x / sum(row) for x in row]
