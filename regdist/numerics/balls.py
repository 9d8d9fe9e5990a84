"""Ball arithmetic: numbers with a proved error, of Arb through python-flint. Knows no problem.

A ball is a midpoint and a radius, and what is computed from balls holds what the exact numbers
give. A comparison is true only where it holds for every number in the balls. The package is
imported when a ball is first made. Working precision is that of python-flint's context, in bits.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np

Ball = Any
"""`flint.arb`: python-flint brings no types for it, and is an extra."""

Exact = Fraction | int | float
"""A number that is taken for exactly what it is."""

# A Decimal holds exponents of 18 digits; smaller numbers lie between 0 and this.
_LEAST = Decimal("1E-100000000000000000")


class UnresolvedError(ArithmeticError):
    """The balls are too wide to tell a sign: more bits may."""


def flint() -> Any:
    """The module of python-flint.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import flint
    except ImportError as error:
        raise ImportError(
            "proved bounds need python-flint, the extra `enclosures`: "
            'pip install "regdist[enclosures]"'
        ) from error
    return flint


@contextlib.contextmanager
def precision(bits: int) -> Iterator[None]:
    """Balls of this many bits within."""
    context = flint().ctx
    before = context.prec
    context.prec = bits
    try:
        yield
    finally:
        context.prec = before


def ball(x: Exact) -> Ball:
    """A ball around a finite number that is exact as given, floats too.

    Examples:
        >>> bool(ball(Fraction(1, 3)) * 3 == 1), bool(ball(0.5) == ball(Fraction(1, 2)))
        (False, True)
    """
    library, fraction = flint(), x if isinstance(x, Fraction) else Fraction(x)
    return library.arb(library.fmpq(fraction.numerator, fraction.denominator))


def nothing() -> Ball:
    """The logarithm of 0, exactly -inf, whose `exp` is exactly 0."""
    return flint().arb("-inf")


def is_nothing(x: Ball) -> bool:
    """Whether a logarithm is that of exactly 0."""
    return bool(x == nothing())


def hull(low: Ball, high: Ball) -> Ball:
    """A ball that holds both."""
    return low.union(high)


def total(balls: Sequence[Ball]) -> Ball:
    """Their sum."""
    return sum(balls, flint().arb(0))


def log_sum(logs: Sequence[Ball]) -> Ball:
    """log sum e^x, without overflow; exactly -inf where every x is."""
    kept = [x for x in logs if not is_nothing(x)]
    if not kept:
        return nothing()
    top = max((x.mid() for x in kept), key=_Midpoint)
    return top + total([(x - top).exp() for x in kept]).log()


class _Midpoint:
    """Orders exact balls."""

    def __init__(self, x: Ball):
        self.x = x

    def __lt__(self, other: "_Midpoint") -> bool:
        return bool(self.x < other.x)


def sign(x: Ball) -> int:
    """-1 or 1, proved.

    Raises:
        UnresolvedError: the ball holds 0.
    """
    if x > 0:
        return 1
    if x < 0:
        return -1
    raise UnresolvedError(f"the sign of {x}")


def falling_root(f: Callable[[Ball], tuple[Ball, Ball]], low: Ball, high: Ball) -> Ball:
    """The root of a falling f, from its value and slope, between two bounds of the root.

    Newton's steps within the bounds find it; that the ball holds it is proved by f > 0 at its
    lower end and f < 0 at its upper one.

    Raises:
        UnresolvedError: no such ends are found at this precision.
    """
    bits = flint().ctx.prec
    low, high = low.mid(), high.mid()
    x, before = ((low + high) / 2).mid(), None
    for _ in range(4 * bits):
        value, slope = f(x)
        if value > 0:
            low = x
        elif value < 0:
            high = x
        else:  # as near as these bits tell, or NaN
            break
        newton, size = (x - value / slope).mid(), abs(value.mid())
        good = newton > low and newton < high and (before is None or 2 * size < before)
        step = newton if good else ((low + high) / 2).mid()
        before = size if good else None
        near = abs(step - x) <= (1 + abs(x)) * ball(Fraction(1, 2 ** (bits - 8)))
        x = step
        if near:
            break
    reach = (1 + abs(x)).mid() * ball(Fraction(1, 2 ** (bits - 16)))
    for _ in range(bits // 8):
        ends = (x - reach).mid(), (x + reach).mid()
        if f(ends[0])[0] > 0 and f(ends[1])[0] < 0:
            return hull(*ends)
        reach = 16 * reach
    raise UnresolvedError("the root")


def decimals(x: Ball, digits: int) -> tuple[Decimal, Decimal]:
    """Bounds of what a ball holds, as decimals of so many digits that are rounded outward.

    Examples:
        >>> decimals(ball(Fraction(2, 3)), 5)
        (Decimal('0.66666'), Decimal('0.66667'))
    """
    if is_nothing(x):
        return Decimal("-Infinity"), Decimal("-Infinity")
    return _decimal(x.lower(), digits, -1), _decimal(x.upper(), digits, 1)


def _decimal(x: Ball, digits: int, side: int) -> Decimal:
    """An exact number with so many digits, rounded down (side -1) or up (1)."""
    if x == 0:
        return Decimal(0)
    if x < 0:
        return _decimal(-x, digits, -side).copy_negate()  # a minus would round to 28 digits
    if not x > 0:
        raise UnresolvedError(f"{x}")
    with precision(flint().ctx.prec + 4 * digits + 64):
        place = int((x.log() / ball(10).log()).mid().floor().unique_fmpz())
        if place < -(10**17) - 2:  # the place may be one off
            return Decimal(0) if side < 0 else _LEAST
        scaled = x * ball(10) ** (digits - 1 - place)
        whole = scaled.lower().floor() if side < 0 else scaled.upper().ceil()
        return Decimal(f"{int(whole.unique_fmpz())}E{place - digits + 1}")


def outward(x: Decimal, side: int) -> float:
    """A double at or below a decimal (side -1), or at or above it (1).

    Examples:
        >>> outward(Decimal("0.1"), -1) < 0.1 == outward(Decimal("0.1"), 1)
        True
    """
    near = float(x)
    beyond = near > x if side < 0 else near < x
    return float(np.nextafter(near, side * np.inf)) if beyond else near
