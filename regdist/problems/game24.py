"""The Game of 24: every arithmetic expression over four numbers, exactly valued."""

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from regdist.problems.bandit import bandit
from regdist.problems.task import Task

OPERATORS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}


class Expression(NamedTuple):
    """An arithmetic expression: its text, exact value (None if it divides by 0) and canonical form.

    Two expressions have one canonical form when commuting and re-associating sums (with
    differences) and products (with quotients) turns one into the other.
    """

    text: str
    value: Fraction | None
    form: tuple

    @property
    def shown(self) -> str:
        """The text without the brackets around all of it."""
        return self.text[1:-1] if self.text.startswith("(") else self.text


def game_of_24(hand: Sequence[int], target: int = 24) -> Task:
    """Every expression that uses each of four numbers once, with + - * /; reward 1 if it is right.

    Outcomes are the distinct expression trees (7,680 for four different numbers); values are
    exact fractions, and an expression that divides by zero is an outcome of reward 0. The
    reference is the law of a generator that writes postfix notation: at each step it chooses
    uniformly among the cards left to push (two equal cards are two choices) and, when two values
    are on the stack, the four operators, until the cards are used up and one value is left.
    Labels say which expressions are the same up to commuting and re-associating.

    Args:
        hand: four positive integers, repeats allowed.
        target: the integer to reach.

    Raises:
        ValueError: the hand is not four positive integers, or the target not an integer.

    Examples:
        >>> task = rd.problems.game_of_24([3, 3, 8, 8])
        >>> [o for o, r in zip(task.outcomes, task.bandit.reward) if r == 1]
        ['8 / (3 - (8 / 3))']
    """
    cards = tuple(hand) if isinstance(hand, Iterable) else ()
    if len(cards) != 4 or not all(is_integer(c) and c > 0 for c in cards):
        raise ValueError(
            f"a hand is four positive integers, repeats allowed, like [4, 7, 8, 8]; got {hand!r}"
        )
    check_target(target)
    outcomes = sorted(_postfix(tuple(sorted(int(c) for c in cards)), ()), key=lambda e: e[0].text)
    expressions = [expression for expression, _ in outcomes]
    reward = [float(e.value == target) for e in expressions]
    log_q = np.array([math.log(p.numerator) - math.log(p.denominator) for _, p in outcomes])
    numbers: dict[tuple, int] = {}
    label = [numbers.setdefault(e.form, len(numbers)) for e in expressions]
    solutions = len({e.form for e in expressions if e.value == target})
    shown = ", ".join(str(c) for c in cards)
    about = (
        f"Game of {target} with the cards {shown}: {len(expressions):,} expressions, of which "
        f"{sum(e.value == target for e in expressions)} are worth {target}; up to commuting and "
        f"re-associating these are {solutions} different solutions. The reference writes postfix "
        "notation, choosing uniformly among its legal next symbols."
    )
    names = tuple(e.shown for e in expressions)
    return Task(bandit(reward, log_reference=log_q, label=np.array(label)), names, about)


def is_integer(x: object) -> bool:
    """Whether it is an integer; True and False are none."""
    return isinstance(x, int | np.integer) and not isinstance(x, bool)


def check_target(target: object) -> None:
    """Refuses a number to reach that is no integer.

    Raises:
        ValueError: it is none.
    """
    if not is_integer(target):
        raise ValueError(f"target must be an integer; got {target!r}")


def card(value: int) -> Expression:
    """A number that stands alone."""
    return Expression(str(value), Fraction(value), ("card", value))


def _postfix(
    cards: tuple[int, ...], stack: tuple[Expression, ...]
) -> Iterator[tuple[Expression, Fraction]]:
    """All expressions reachable from this state, with their exact probabilities."""
    if not cards and len(stack) == 1:
        yield stack[0], Fraction(1)
        return
    choices = len(cards) + (4 if len(stack) >= 2 else 0)
    for value in sorted(set(cards)):
        rest = list(cards)
        rest.remove(value)
        pushed = (*stack, card(value))
        chance = Fraction(cards.count(value), choices)
        for expression, p in _postfix(tuple(rest), pushed):
            yield expression, chance * p
    if len(stack) >= 2:
        for symbol in OPERATORS:
            joined = (*stack[:-2], combine(symbol, stack[-2], stack[-1]))
            for expression, p in _postfix(cards, joined):
                yield expression, p / choices


def combine(symbol: str, a: Expression, b: Expression) -> Expression:
    """Two expressions joined by one of + - * /; its value is None if that divides by 0."""
    value = None
    if a.value is not None and b.value is not None and not (symbol == "/" and b.value == 0):
        value = OPERATORS[symbol](a.value, b.value)
    kind = "sum" if symbol in "+-" else "product"
    power = 1 if symbol in "+*" else -1
    parts = [*_parts(kind, a.form, 1), *_parts(kind, b.form, power)]
    return Expression(f"({a.text} {symbol} {b.text})", value, (kind, *sorted(parts, key=repr)))


def _parts(kind: str, form: tuple, power: int) -> list[tuple[int, tuple]]:
    """The (sign or exponent, part) pairs of a form inside a sum or a product."""
    if form[0] == kind:
        return [(power * inner, part) for inner, part in form[1:]]
    return [(power, form)]
