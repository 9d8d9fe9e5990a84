"""A bandit in exact rational numbers, for what is to be proved. K is the number of actions."""

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from regdist.numerics.records import described
from regdist.problems.bandit import Bandit, bandit


@dataclasses.dataclass(frozen=True)
class Rational:
    """A bandit whose numbers are exact; made by `rational()`.

    Attributes:
        reward: R, K rationals.
        reference: q, K rationals >= 0 that sum to 1.
    """

    reward: tuple[Fraction, ...]
    reference: tuple[Fraction, ...]

    @property
    def num_actions(self) -> int:
        """The number of actions, K."""
        return len(self.reward)

    @property
    def bandit(self) -> Bandit:
        """The nearest problem in floats: see `rd.bandit`."""
        return bandit([float(x) for x in self.reward], [float(x) for x in self.reference])


def rational(
    reward: Sequence[Fraction | int | float | str],
    reference: Sequence[Fraction | int | float | str] | None = None,
) -> Rational:
    """A bandit problem in exact rationals: what `rd.enclose` takes beside a `Bandit`.

    Args:
        reward: R, K numbers: integers, fractions, text such as "1/3"; a float is taken for exactly
            the binary fraction that it is.
        reference: q, K probabilities of the same kinds that sum to exactly 1. Default: uniform.

    Raises:
        TypeError: an entry is no such number.
        ValueError: an infinite or NaN entry, an empty table, lengths that differ, a negative
            probability, or another sum.

    Examples:
        >>> rational([1, 0, "1/2"], ["1/4", "1/4", "1/2"]).reference[2]
        Fraction(1, 2)
        >>> print(rational([1, 0]).bandit.reward)
        [1. 0.]
    """
    rewards = _row("reward", reward)
    if reference is None:
        return Rational(rewards, (Fraction(1, len(rewards)),) * len(rewards))
    q = _row("reference", reference)
    if len(q) != len(rewards):
        raise ValueError(
            f"reference must have an entry for each of {len(rewards)} rewards; got {len(q)}"
        )
    if min(q) < 0 or sum(q) != 1:
        raise ValueError(
            "reference must be probabilities >= 0 that sum to exactly 1; got a sum of "
            f"{sum(q)}. Floats such as 0.1 are binary fractions: write '1/10', or divide by the sum"
        )
    return Rational(rewards, q)


def as_fraction(name: str, value: Any) -> Fraction:
    """A number that is taken for exactly what it is.

    Raises:
        TypeError: no number.
        ValueError: infinite or NaN, or text that is no fraction.
    """
    known = isinstance(value, Fraction | int | float | str | np.integer | np.floating)
    if not known or isinstance(value, bool):
        raise TypeError(
            f"{name} must be an exact number: an integer, a fraction, a float or text such as "
            f"'1/3'; got {described(value)}"
        )
    try:
        return Fraction(value.item() if isinstance(value, np.generic) else value)
    except (ValueError, OverflowError, ZeroDivisionError) as error:
        raise ValueError(f"{name} must be a finite number; got {value!r}") from error


def _row(name: str, values: Any) -> tuple[Fraction, ...]:
    if isinstance(values, str) or not (
        isinstance(values, Sequence | np.ndarray) or hasattr(values, "__array__")
    ):
        raise TypeError(f"{name} must be a row of exact numbers; got {described(values)}")
    listed = values if isinstance(values, Sequence) else np.asarray(values)
    row = tuple(as_fraction(f"{name}[{i}]", x) for i, x in enumerate(listed))
    if not row:
        raise ValueError(f"{name} must have one entry for each action; got none")
    return row
