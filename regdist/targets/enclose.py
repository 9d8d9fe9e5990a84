"""Proved bounds of the optimum for one term. K is the number of actions, q the anchor."""

import dataclasses
import decimal
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np

from regdist.numerics import balls
from regdist.numerics.balls import Ball, UnresolvedError
from regdist.numerics.records import check_count, check_kind, is_concrete
from regdist.problems.bandit import Bandit, check_bandit
from regdist.problems.rational import Rational, as_fraction
from regdist.regularizers.anchor import TemperedSelf
from regdist.regularizers.divergence import AlphaFamily, JensenShannon, TotalVariation
from regdist.regularizers.regularizer import Regularizer, check_regularizer
from regdist.regularizers.term import Term
from regdist.targets.solvers.exact import (
    AlphaCurve,
    Curved,
    JensenShannonCurve,
    Moved,
    Tilt,
    Weights,
)

_MOST_BITS = 2**15  # rewards and references in doubles that need more have not been met


@dataclasses.dataclass(frozen=True)
class Enclosure:
    """Proved bounds of every probability of an optimum; made by `enclose()`.

    Attributes:
        bounds: for each action a lower and an upper bound of p_i, exact decimals; both are 0 where
            p_i = 0 is proved.
        log_bounds: the same of log p_i in nats; -Infinity where p_i = 0.
        digits: correct digits asked for.
        bits: the precision that it took.
    """

    bounds: tuple[tuple[Decimal, Decimal], ...] = dataclasses.field(repr=False)
    log_bounds: tuple[tuple[Decimal, Decimal], ...] = dataclasses.field(repr=False)
    digits: int
    bits: int

    @property
    def lower(self) -> np.ndarray:
        """Lower bounds of p, as doubles rounded down, shape [K]."""
        return np.array([balls.outward(low, -1) for low, _ in self.bounds])

    @property
    def upper(self) -> np.ndarray:
        """Upper bounds of p, as doubles rounded up, shape [K]."""
        return np.array([balls.outward(high, 1) for _, high in self.bounds])

    @property
    def log_lower(self) -> np.ndarray:
        """Lower bounds of log p in nats, as doubles rounded down, shape [K]."""
        return np.array([balls.outward(low, -1) for low, _ in self.log_bounds])

    @property
    def log_upper(self) -> np.ndarray:
        """Upper bounds of log p in nats, as doubles rounded up, shape [K]."""
        return np.array([balls.outward(high, 1) for _, high in self.log_bounds])

    @property
    def width(self) -> float:
        """The largest (upper - lower)/upper of `bounds`: below 10^-digits, or 1 out of range."""
        wide = decimal.Context(
            prec=20,
            rounding=decimal.ROUND_UP,
            Emin=decimal.MIN_EMIN,
            Emax=decimal.MAX_EMAX,
        )
        relative = [
            wide.divide(wide.subtract(high, low), high) for low, high in self.bounds if high > 0
        ]
        return balls.outward(max(relative), 1)

    def __str__(self) -> str:
        return "\n".join(f"{low} <= p_{i} <= {high}" for i, (low, high) in enumerate(self.bounds))


def enclose(
    bandit: Bandit | Rational,
    regularizer: Regularizer,
    digits: int = 30,
    *,
    beta: Fraction | int | float | str | None = None,
) -> Enclosure:
    r"""Proved bounds of the p that maximizes E_p R - regularizer(p): see `target` for the problem.

    $$p_i = q_i \, \bigl[(f')^{-1}((R_i - L)/\beta)\bigr]_+ \quad\text{with } \sum_i p_i = 1$$

    Everything is computed in ball arithmetic (Arb), with as many bits as it takes. The multiplier
    L lies between two numbers at which sum p - 1 has opposite signs, which the balls prove; as each
    p_i is monotone in it, bounds of p follow. What is 0 is proved to be: off the support, and where
    a sparse optimum ends. Total variation and reverse KL are closed forms.

    What is given is taken exactly. A `Bandit` means its rewards, and q_i = e^{l_i}/sum_j e^{l_j}
    with l its `log_ref` as stored: `target` reads l_i itself for log q_i, which differs by as much
    as their exponentials miss 1, some 1e-16. An anchor is read in the same way. Coefficients are
    the floats that the regularizer holds, cast to the dtype of the bandit as `target` does.
    Forbidden actions (reward -inf) are left out of the problem.

    Args:
        bandit: rewards and reference, K actions: `rd.bandit`, or `rd.rational` for fractions.
        regularizer: one term with a named divergence, or a sum of reverse-KL and entropy terms.
        digits: bounds of each p_i differ by less than 10^-digits of it. A p_i below 1e-10^17, where
            decimals end, is bounded by 0 and that.
        beta: the coefficient of the one term as an exact number, such as Fraction(1, 3), instead
            of its own.

    Raises:
        ImportError: python-flint is not installed: the extra `enclosures`.
        TypeError: an argument of another kind.
        ValueError: the optimum is not unique (total variation at a corner, tied best actions off
            the support); the regularizer is another sum or of a divergence of your own; no optimum
            is known; numbers that are not known yet, under jit or vmap; or no proof is found, as
            where mass is exactly 1 at the edge of the support without a rational reason.

    Examples:
        >>> problem = rd.rational([1, 0, "1/2"], ["1/4", "1/4", "1/2"])
        >>> print(enclose(problem, rd.ForwardKL(0.5), digits=10))
        0.553579935844383 <= p_0 <= 0.553579935844384
        0.101973972888607 <= p_1 <= 0.101973972888608
        0.344446091267009 <= p_2 <= 0.344446091267010
        >>> bandit = rd.bandit([0.9, 0.5, -0.3])
        >>> enclosure = enclose(bandit, rd.Tsallis(2, 0.5))
        >>> print(enclosure.bounds[2], enclosure.width < 1e-30)
        (Decimal('0'), Decimal('0')) True
    """
    check_count("digits", digits)
    problem = read(bandit, regularizer, beta)
    bits = 64 + int(3.4 * digits)
    while bits <= _MOST_BITS:
        with balls.precision(bits):
            try:
                logs = problem.solve()
                most = balls.ball(Fraction(1, 4 * 10**digits))
                if all(balls.is_nothing(x) or x.upper() - x.lower() < most for x in logs):
                    bounds = tuple(_probability(x, digits + 5) for x in logs)
                    log_bounds = tuple(balls.decimals(x, digits + 5) for x in logs)
                    return Enclosure(bounds, log_bounds, digits, bits)
            except UnresolvedError:
                pass
        bits *= 2
    raise ValueError(
        f"no bounds are proved with {_MOST_BITS} bits for {regularizer!r}: either an action is at "
        "the very edge of the support, so that no precision tells its side, or the numbers of the "
        "problem are too far apart"
    )


def read(
    bandit: Bandit | Rational, regularizer: Regularizer, beta: Any = None
) -> Tilt | Moved | Curved:
    """The problem in exact numbers; see `enclose` for its arguments and what is refused."""
    check_regularizer(regularizer)
    advice = (
        "Make one: rd.bandit(reward, reference), or rd.rational(reward, reference) for fractions"
    )
    advice = getattr(bandit, "no_bandit", advice)
    check_kind("bandit", bandit, (Bandit, Rational), advice)
    terms = regularizer.terms
    if not is_concrete(bandit, regularizer):
        raise ValueError(
            "rd.enclose reads numbers that are known: it does not run under jax.jit or jax.vmap. "
            "Call it on one problem"
        )
    if isinstance(bandit, Rational):
        reward, dtype = bandit.reward, None
        reference = Weights(bandit.reference, (Fraction(0),) * bandit.num_actions, False)
    else:
        check_bandit(bandit)
        reward = tuple(Fraction(x) if np.isfinite(x) else None for x in _floats(bandit.reward))
        dtype, reference = bandit.log_ref.dtype, _weights(bandit.log_ref)
    if not terms or (len(terms) > 1 and not regularizer.merges()):
        raise ValueError(
            "rd.enclose takes one term, or a sum of reverse-KL and entropy terms; got "
            f"{regularizer!r}. Its target is rd.target's, without a proof"
        )
    if beta is not None and len(terms) > 1:
        raise ValueError(f"beta= is for one term; {regularizer!r} has {len(terms)}")
    given = None if beta is None else as_fraction("beta", beta)
    if given is not None and given <= 0:
        raise ValueError(f"beta must be above 0; got beta={beta!r}")
    if regularizer.merges():
        return Tilt(reward, tuple(_tilted(term, reference, given, dtype) for term in terms))
    return _one(regularizer.terms[0], reward, reference, given, dtype)


def _one(
    term: Term, reward: Any, reference: Weights, beta: Fraction | None, dtype: Any
) -> Tilt | Moved | Curved:
    """One term that is not reverse KL by its class."""
    divergence = term.divergence
    if isinstance(term.anchor, TemperedSelf):
        raise ValueError(f"no target is known for {term!r}: its anchor moves with the policy")
    coefficient = _number(term.beta, dtype) if beta is None else beta
    weights = _anchor(term, reference)
    if isinstance(divergence, TotalVariation):
        return Moved(reward, coefficient, weights)
    if isinstance(divergence, JensenShannon):
        return Curved(reward, coefficient, weights, JensenShannonCurve())
    if not isinstance(divergence, AlphaFamily):
        raise ValueError(
            f"no enclosure is known for {term!r}: its divergence is your own. Known are the alpha "
            "family, Jensen-Shannon and total variation"
        )
    power = _number(divergence.alpha, dtype) - 1
    if term.is_bonus:  # beta S_n is beta n times D_n to the weights 1, a constant apart
        coefficient *= power + 1
    if power == 0:
        return Tilt(reward, ((coefficient, weights),))
    return Curved(reward, coefficient, weights, AlphaCurve(power))


def _tilted(
    term: Term, reference: Weights, beta: Fraction | None, dtype: Any
) -> tuple[Fraction, Weights]:
    """A reverse-KL or entropy term: its coefficient and its anchor."""
    coefficient = _number(term.beta, dtype) if beta is None else beta
    if isinstance(term.anchor, TemperedSelf):
        coefficient *= 1 - 1 / _number(term.anchor.temperature, dtype)
    return coefficient, _anchor(term, reference)


def _anchor(term: Term, reference: Weights) -> Weights:
    size = len(reference.factor)
    if term.is_bonus or isinstance(term.anchor, TemperedSelf):
        return Weights((Fraction(1),) * size, (Fraction(0),) * size, False)
    if term.anchor is None:
        return reference
    if term.anchor.shape != (size,):
        raise ValueError(
            f"anchor must have the shape of the reference, ({size},); got {term.anchor.shape}"
        )
    return _weights(term.anchor)


def _weights(log_q: Any) -> Weights:
    """The law that log-probabilities in floats mean: their exponentials over their exact sum."""
    logs = _floats(log_q)
    finite = [bool(np.isfinite(x)) for x in logs]
    return Weights(
        tuple(Fraction(int(here)) for here in finite),
        tuple(Fraction(x) if here else Fraction(0) for x, here in zip(logs, finite, strict=True)),
        True,
    )


def _floats(values: Any) -> list[float]:
    return np.asarray(values).astype(float).tolist()


def _number(value: Any, dtype: Any) -> Fraction:
    """A coefficient as `target` reads it: a float in the dtype of the bandit, exactly."""
    if np.ndim(value):
        raise ValueError(
            f"one problem takes scalar coefficients; got shape {np.shape(value)}. Call rd.enclose "
            "for each"
        )
    known = np.asarray(value)
    return Fraction(float(known if dtype is None else known.astype(dtype)))


def _probability(log_p: Ball, digits: int) -> tuple[Decimal, Decimal]:
    if balls.is_nothing(log_p):
        return Decimal(0), Decimal(0)
    if log_p == 0:
        return Decimal(1), Decimal(1)
    low, high = balls.decimals(log_p.exp(), digits)
    return max(low, Decimal(0)), min(high, Decimal(1))
