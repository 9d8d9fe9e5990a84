"""Balls for proofs: what a margin is made of, with an error that is proved. K is of actions.

A law is a list of K balls, its log-probabilities in nats, exactly -inf where an action has
probability 0. The functions are named as their likes in `rd.metrics`; a ball adds, multiplies and
divides with others and with integers, and knows `exp` and `log`. They take python-flint, the extra
`enclosures`, and work in the precision of its context: see `precision`. `rd.testing.falsify` sets
it, and raises it until the sign of a margin is proved.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from regdist.numerics import balls
from regdist.numerics.balls import Ball, UnresolvedError, precision
from regdist.problems.rational import Rational, as_fraction
from regdist.regularizers.regularizer import Regularizer
from regdist.targets.enclose import read

Law = Sequence[Ball]

__all__ = [
    "UnresolvedError",
    "effective_number",
    "entropy",
    "expected_reward",
    "kl",
    "log_odds",
    "log_reference",
    "number",
    "precision",
    "target",
    "total_variation",
]


def number(x: Fraction | int | float | str) -> Ball:
    """A number that is exact as given.

    Raises:
        TypeError: no number.
        ValueError: infinite or NaN.

    Examples:
        >>> with precision(100):
        ...     bool(2 * number("1/3") > number(0.6))
        True
    """
    return balls.ball(as_fraction("x", x))


def target(
    problem: Rational, regularizer: Regularizer, *, beta: Fraction | int | float | None = None
) -> list[Ball]:
    """The law of `rd.target`, with what `rd.enclose` takes and refuses.

    Raises:
        UnresolvedError: it takes more bits; `falsify` tries again with more.

    Examples:
        >>> with precision(100):
        ...     law = target(rd.rational([1, 0]), rd.ReverseKL(1.0), beta=Fraction(1, 3))
        ...     bool(log_odds(law, 0, 1) > number("299/100"))
        True
    """
    return read(problem, regularizer, beta).solve()


def log_reference(problem: Rational) -> list[Ball]:
    """The reference of a problem as a law."""
    return [balls.ball(q).log() if q else balls.nothing() for q in problem.reference]


def entropy(log_p: Law) -> Ball:
    """-sum_i p_i log p_i in nats."""
    return -balls.total([x.exp() * x for x in log_p if not balls.is_nothing(x)])


def effective_number(log_p: Law) -> Ball:
    """exp(entropy): `rd.metrics.hill_number` of order 1."""
    return entropy(log_p).exp()


def kl(log_p: Law, log_q: Law) -> Ball:
    """sum_i p_i log(p_i/q_i) in nats.

    Raises:
        ValueError: it is infinite.

    Examples:
        >>> with precision(100):
        ...     problem = rd.rational([1, 0], ["1/4", "3/4"])
        ...     law = target(problem, rd.ForwardKL(1.0))
        ...     bool(kl(law, log_reference(problem)) > 0)
        True
    """
    pairs = [(x, y) for x, y in zip(log_p, log_q, strict=True) if not balls.is_nothing(x)]
    if any(balls.is_nothing(y) for _, y in pairs):
        raise ValueError("kl is infinite: log_p holds an action that log_q excludes")
    return balls.total([x.exp() * (x - y) for x, y in pairs])


def total_variation(log_p: Law, log_q: Law) -> Ball:
    """sum_i |p_i - q_i|/2."""
    return balls.total([abs(x.exp() - y.exp()) for x, y in zip(log_p, log_q, strict=True)]) / 2


def log_odds(log_p: Law, i: int, j: int) -> Ball:
    """log(p_i/p_j) in nats.

    Raises:
        ValueError: one of them is 0.
    """
    if balls.is_nothing(log_p[i]) or balls.is_nothing(log_p[j]):
        raise ValueError(f"log_odds of actions {i} and {j} is infinite: one has probability 0")
    return log_p[i] - log_p[j]


def expected_reward(log_p: Law, reward: Sequence[Any]) -> Ball:
    """sum_i p_i R_i, for rewards that are exact numbers."""
    return balls.total([x.exp() * number(r) for x, r in zip(log_p, reward, strict=True)])
