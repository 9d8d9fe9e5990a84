"""The Game of 24 as sequences of tokens: expressions in postfix (reverse Polish) notation."""

import math
from collections.abc import Iterable, Iterator, Sequence

from regdist.numerics.records import described
from regdist.problems.game24 import OPERATORS, Expression, card, check_target, combine, is_integer
from regdist.problems.grow import tree
from regdist.problems.task import TreeTask, check_tokens


def game_of_24_postfix(
    numbers: Sequence[int] = (2, 3, 4), target: int = 24, operations: str = "+-*/"
) -> TreeTask:
    """Every way to write an expression over some numbers in postfix; reward 1 if it is right.

    Tokens are the different numbers, in order, and then the operations. A number may be written as
    often as it is given, an operation where two values stand on the stack; an expression of n
    numbers has 2n - 1 tokens, and all that begins can be ended. Values are exact fractions, and
    division by zero is a legal step to reward 0. For n different numbers there are
    n! k^(n - 1) C(n - 1) sequences with k operations and Catalan's numbers C: 7,680 for four and
    four.

    The reference takes all legal tokens alike. For different numbers it is that of
    `rd.problems.game_of_24`, for which two equal numbers are two choices and here one. Labels say
    which expressions are the same up to commuting and re-associating; an answer is called by the
    first of its expressions.

    Args:
        numbers: two positive integers or more, repeats allowed.
        target: the integer to reach.
        operations: some of + - * /, each once.

    Raises:
        ValueError: numbers, a target or operations of another kind, or more sequences than one
            writes one by one.

    Examples:
        >>> task = rd.problems.game_of_24_postfix([2, 3, 4])
        >>> right = [i for i, r in enumerate(task.tree.bandit.reward) if r == 1]
        >>> len(task.outcomes), len(right), task.outcomes[right[0]], task.answer(right[0])
        (192, 12, '2 3 4 * *', '2 * (3 * 4)')
        >>> {task.answer(i) for i in right}  # twelve ways to say one thing
        {'2 * (3 * 4)'}
    """
    given = tuple(numbers) if isinstance(numbers, Iterable) else ()
    if len(given) < 2 or not all(is_integer(x) and x > 0 for x in given):
        raise ValueError(
            "numbers must be two positive integers or more, repeats allowed, like [2, 3, 4]; got "
            f"{described(numbers)}"
        )
    check_target(target)
    symbols = tuple(operations) if isinstance(operations, str) else ()
    if not symbols or len(set(symbols)) < len(symbols) or not set(symbols) <= set(OPERATORS):
        raise ValueError(
            f'operations must be some of + - * /, each once, like "+-"; got {described(operations)}'
        )
    values = tuple(sorted({int(x) for x in given}))
    counts = tuple(given.count(x) for x in values)
    size = len(given)
    orders = math.factorial(size) // math.prod(map(math.factorial, counts))
    shapes = math.comb(2 * size - 2, size - 1) // size
    check_tokens(
        orders * len(symbols) ** (size - 1) * shapes,
        2 * size - 1,
        f"Give fewer numbers or operations; got {size} and {len(symbols)}",
    )
    written = list(_endings(values, symbols, counts, (), ()))
    names: dict[tuple, str] = {}
    for _, expression in written:
        names.setdefault(expression.form, expression.shown)
    place = {form: i for i, form in enumerate(names)}
    reward = [float(e.value == target) for _, e in written]
    made = tree(
        [tokens for tokens, _ in written], reward, label=[place[e.form] for _, e in written]
    )
    about = (
        f"Game of {target} with the numbers {', '.join(map(str, given))} in postfix notation: "
        f"{len(written):,} sequences, of which {int(sum(reward)):,} are worth {target}. The "
        "reference chooses uniformly among the legal next tokens."
    )
    return TreeTask(made, (*map(str, values), *symbols), tuple(names.values()), about)


def _endings(
    values: tuple[int, ...],
    symbols: tuple[str, ...],
    left: tuple[int, ...],
    stack: tuple[Expression, ...],
    tokens: tuple[int, ...],
) -> Iterator[tuple[tuple[int, ...], Expression]]:
    """All whole sequences that begin with these tokens, of which the stack is what they made."""
    if not any(left) and len(stack) == 1:
        yield tokens, stack[0]
        return
    for i, value in enumerate(values):
        if left[i]:
            rest = (*left[:i], left[i] - 1, *left[i + 1 :])
            yield from _endings(values, symbols, rest, (*stack, card(value)), (*tokens, i))
    if len(stack) > 1:
        for i, symbol in enumerate(symbols, len(values)):
            joined = (*stack[:-2], combine(symbol, *stack[-2:]))
            yield from _endings(values, symbols, left, joined, (*tokens, i))
