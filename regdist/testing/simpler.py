"""Problems as exact numbers, and simpler ones near them. K is the number of actions.

A problem is a bandit, a number or an array, or a tuple of these; its parts are shrunk one by one.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regdist.numerics.records import is_numeric
from regdist.problems.bandit import Bandit, bandit
from regdist.problems.rational import Rational

Entry = Fraction | float
"""A fraction; a float only where it is infinite or NaN."""

_DENOMINATORS = (1, 2, 3, 4, 5, 6, 8, 10, 16, 32, 64, 100, 1000)
_SHARES = (*range(2, 13), 16, 20, 32, 64, 100, 1000, 10**6)
_LONGEST = 1000  # a denominator that is still printed as a fraction


@dataclasses.dataclass(frozen=True)
class Numbers:
    """A number or an array: its entries in order, and the range in which they may be changed."""

    entries: tuple[Entry, ...]
    shape: tuple[int, ...]
    dtype: Any
    span: tuple[float, float]

    def value(self) -> Any:
        """What the predicate gets."""
        return jnp.asarray(
            np.array([float(x) for x in self.entries]).reshape(self.shape), self.dtype
        )

    def text(self) -> str:
        """Python for it."""
        if not self.shape:
            return as_text(self.entries[0])
        words = np.array([as_text(x) for x in self.entries], object).reshape(self.shape)
        return f"jnp.array({_listed(words.tolist())})"

    def exact(self) -> Any:
        """The same in fractions, None where an entry is not finite."""
        if not all(isinstance(x, Fraction) for x in self.entries):
            return None
        if not self.shape:
            return self.entries[0]
        rows = np.empty(len(self.entries), object)
        rows[:] = self.entries
        return rows.reshape(self.shape).tolist()

    def cost(self) -> int:
        """How long it is to write."""
        return sum(map(_cost, self.entries))

    def simpler(self) -> Iterator["Numbers"]:
        """Candidates, not all of which are simpler."""
        integral = np.issubdtype(self.dtype, np.integer)
        for entries in _simpler_rows(self.entries, self.span):
            if not integral or all(isinstance(x, Fraction) and x.denominator == 1 for x in entries):
                yield dataclasses.replace(self, entries=entries)

    def without(self, gone: Sequence[int], size: int) -> "Numbers":
        """Without the entries of some actions, if there is one for each of K."""
        if self.shape != (size,):
            return self
        kept = tuple(x for i, x in enumerate(self.entries) if i not in gone)
        return dataclasses.replace(self, entries=kept, shape=(len(kept),))


@dataclasses.dataclass(frozen=True)
class Table:
    """A bandit: its reference as fractions once one is found, as stored logarithms before."""

    reward: tuple[Entry, ...]
    reference: tuple[Fraction, ...] | None
    log_reference: tuple[float, ...]
    label: tuple[int, ...]
    dtype: Any
    span: tuple[float, float]
    depth: tuple[float, float]

    def value(self) -> Bandit:
        """What the predicate gets: what `text` makes.

        Raises:
            ValueError: it is no problem, as where all that is left is forbidden.
        """
        reward = np.array([float(x) for x in self.reward], self.dtype)
        if self.reference is not None:
            q = np.array([float(x) for x in self.reference], self.dtype)
            return bandit(reward, q, label=np.array(self.label))
        log_q = np.array(self.log_reference, self.dtype)
        return bandit(reward, log_reference=log_q, label=np.array(self.label))

    def text(self) -> str:
        """Python for it."""
        told = [_listed([as_text(x) for x in self.reward])]
        if self.reference is not None:
            told.append(_listed([as_text(x) for x in self.reference]))
        else:
            told.append(f"log_reference={_listed([_float(x) for x in self.log_reference])}")
        if self.label != tuple(range(len(self.label))):
            told.append(f"label={list(self.label)}")
        return f"rd.bandit({', '.join(told)})"

    def exact(self) -> Rational | None:
        """The same in fractions; None without such a reference, or with a forbidden action."""
        rewards = tuple(x for x in self.reward if isinstance(x, Fraction))
        if self.reference is None or len(rewards) < len(self.reward):
            return None
        return Rational(rewards, self.reference)

    def cost(self) -> int:
        """How long it is to write."""
        reference = 10**4 * len(self.label) if self.reference is None else 0
        return sum(map(_cost, (*self.reward, *(self.reference or ())))) + reference

    def simpler(self) -> Iterator["Table"]:
        """Candidates, not all of which are simpler."""
        for reference in self._references():
            yield dataclasses.replace(self, reference=reference)
        for reward in _simpler_rows(self.reward, self.span):
            yield dataclasses.replace(self, reward=reward)

    def without(self, gone: Sequence[int], size: int) -> "Table":
        """Without some actions, the reference of the others normalized."""
        if len(self.label) != size:
            return self
        kept = [i for i in range(size) if i not in gone]
        labels = np.unique(np.array(self.label)[kept], return_inverse=True)[1]
        log_q = np.array(self.log_reference)[kept]
        if not np.any(np.isfinite(log_q)):
            return self
        part, reference = self.reference, None
        if part is not None:
            total = sum((part[i] for i in kept), Fraction(0))
            reference = tuple(part[i] / total for i in kept)
        return dataclasses.replace(
            self,
            reward=tuple(self.reward[i] for i in kept),
            reference=reference,
            log_reference=tuple((log_q - np.logaddexp.reduce(log_q)).tolist()),
            label=tuple(labels.tolist()),
        )

    def _references(self) -> Iterator[tuple[Fraction, ...]]:
        """Rational references with the same support, near the present one or even."""
        log_q = self.log_reference if self.reference is None else _logs(self.reference)
        here = [i for i, x in enumerate(log_q) if x > -math.inf]
        q = {i: math.exp(log_q[i]) for i in here}
        most = max(here, key=lambda i: q[i])
        weights = [dict.fromkeys(here, Fraction(1))]
        weights += [{i: Fraction(max(1, round(q[i] * n))) for i in here} for n in _SHARES]
        small = {i: Fraction(1, 10 ** max(1, round(-log_q[i] / math.log(10)))) for i in here}
        rest = 1 + small[most] - sum(small.values(), Fraction(0))
        if rest > 0:
            weights.append({**small, most: rest})
        for row in weights:
            total = sum(row.values(), Fraction(0))
            made = tuple(row.get(i, Fraction(0)) / total for i in range(len(log_q)))
            low, high = self.depth[0] - 1e-9, self.depth[1] + 1e-9
            if all(low <= x <= high for x in _logs(made) if x > -math.inf):
                yield made


@dataclasses.dataclass(frozen=True)
class Kept:
    """What is left as it is, and Python that makes it again."""

    held: Any
    source: str

    def value(self) -> Any:
        """What the predicate gets."""
        return self.held

    def text(self) -> str:
        """Python for it."""
        return self.source

    def exact(self) -> None:
        """It is not known in fractions."""

    def cost(self) -> int:
        """Nothing that could become less."""
        return 0

    def simpler(self) -> Iterator["Kept"]:
        """No candidates."""
        return iter(())

    def without(self, gone: Sequence[int], size: int) -> "Kept":
        """Itself."""
        return self


Part = Numbers | Table | Kept


def part_of(value: Any, drawn: Any, source: str) -> Part:
    """A part of a problem, from what its generator drew there for many problems: see `Numbers`.

    A law, probabilities or their logarithms, is kept as it is: its entries depend on each other.
    """
    if isinstance(value, Bandit) and np.ndim(value.reward) == 1:
        log_q = np.asarray(value.log_ref).astype(float)
        return Table(
            _entries(value.reward),
            None,
            tuple(log_q.tolist()),
            tuple(np.asarray(value.label).tolist()),
            value.reward.dtype,
            _span(drawn.reward),
            _span(drawn.log_ref),
        )
    if is_numeric(value) and not isinstance(value, list | tuple):
        known = np.asarray(value)
        if known.dtype != bool and known.size and not _is_law(known):
            return Numbers(_entries(known), known.shape, known.dtype, _span(drawn))
    return Kept(value, source)


def _is_law(known: np.ndarray) -> bool:
    if known.ndim == 0 or known.size < 2:
        return False
    with np.errstate(over="ignore"):
        sums = [np.exp(known.astype(float)).sum(-1)]
    if np.all(known >= 0):
        sums.append(known.sum(-1))
    return any(bool(np.all(np.abs(x - 1) < 1e-5)) for x in sums)


def _entries(values: Any) -> tuple[Entry, ...]:
    flat = np.asarray(values).astype(float).ravel().tolist()
    return tuple(Fraction(x) if math.isfinite(x) else x for x in flat)


def _span(drawn: Any) -> tuple[float, float]:
    known = np.asarray(drawn).astype(float)
    finite = known[np.isfinite(known)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def _logs(row: Sequence[Fraction]) -> list[float]:
    """Logarithms of fractions that may lie below all floats."""
    return [math.log(x.numerator) - math.log(x.denominator) if x else -math.inf for x in row]


def _cost(x: Entry) -> int:
    """Digits in base 2, of which the denominator's count twice, and the sign."""
    if not isinstance(x, Fraction):
        return 1
    return abs(x.numerator).bit_length() + 2 * x.denominator.bit_length() + (x < 0)


def _simpler_rows(row: tuple[Entry, ...], span: tuple[float, float]) -> Iterator[tuple[Entry, ...]]:
    """Rows of simpler entries: all rounded alike, moved to [0, 1], or one entry changed."""
    finite = [x for x in row if isinstance(x, Fraction)]
    if not finite:
        return
    low, size = min(finite), max(finite) - min(finite)
    rows = [row]
    if len(row) > 1 and size:
        rows += [_each(row, lambda x: x - low), _each(row, lambda x: (x - low) / size)]
        rows += [_each(row, lambda x: x / max(map(abs, finite)))]
    for base in rows:
        for d in _DENOMINATORS:
            yield from _within(_each(base, lambda x, d=d: x.limit_denominator(d)), span)
        for digits in (1, 2, 3):
            yield from _within(_each(base, lambda x, n=digits: _rounded(x, n)), span)
    for i, x in enumerate(row):
        if isinstance(x, Fraction):
            near = [Fraction(n) for n in (0, 1, -1, 2, 10)] + [Fraction(1, n) for n in (2, 4, 10)]
            near += [x.limit_denominator(d) for d in _DENOMINATORS]
            near += [_rounded(x, n) for n in (1, 2, 3)]
            for y in sorted({y for y in near if _cost(y) < _cost(x)}, key=_cost):
                yield from _within((*row[:i], y, *row[i + 1 :]), span)


def _each(row: tuple[Entry, ...], change: Any) -> tuple[Entry, ...]:
    return tuple(change(x) if isinstance(x, Fraction) else x for x in row)


def _within(row: tuple[Entry, ...], span: tuple[float, float]) -> Iterator[tuple[Entry, ...]]:
    if all(span[0] <= float(x) <= span[1] for x in row if isinstance(x, Fraction)):
        yield row


def _rounded(x: Fraction, digits: int) -> Fraction:
    """To so many significant digits."""
    return Fraction(f"{float(x):.{digits - 1}e}")


def as_text(x: Entry) -> str:
    """Python for a number: a fraction if it is short, else the float.

    Examples:
        >>> as_text(Fraction(1, 2)), as_text(Fraction(0.1)), as_text(Fraction(3))
        ('1/2', '0.1', '3')
    """
    if isinstance(x, Fraction) and x.denominator <= _LONGEST and abs(x.numerator) < 10**6:
        return str(x)
    return _float(float(x))


def _float(x: float) -> str:
    return repr(x) if math.isfinite(x) else f"float('{x}')"


def _listed(words: Any) -> str:
    return f"[{', '.join(map(_listed, words))}]" if isinstance(words, list) else words


def split(problem: Any, drawn: Any, sources: Any) -> tuple[list[Part], Any]:
    """The parts of a problem, a tuple or one part, and how they are put together.

    Args:
        problem: the problem.
        drawn: what its generator made for many keys, a tree like it with an axis in front.
        sources: Python that makes it, or for a tuple of arguments each.
    """
    leaves, shape = jax.tree.flatten(problem, is_leaf=lambda x: type(x) is not tuple)
    samples = shape.flatten_up_to(drawn)
    places = shape.flatten_up_to(_places(problem, sources))
    return [part_of(*x) for x in zip(leaves, samples, places, strict=True)], shape


def _places(problem: Any, source: Any) -> Any:
    if type(problem) is not tuple:
        return source
    named = type(source) is tuple
    inside = source if named else [f"{source}[{i}]" for i in range(len(problem))]
    return tuple(_places(*x) for x in zip(problem, inside, strict=True))


def joined(texts: Any) -> str:
    """Python for a tuple of texts, or of tuples of them."""
    if type(texts) is not tuple:
        return texts
    inside = ", ".join(map(joined, texts))
    return f"({inside},)" if len(texts) == 1 else f"({inside})"
