"""The smallest counterexample: a violation shrunk to few actions and short numbers, and its proof.

K is the number of actions.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from regdist.numerics import balls
from regdist.testing.reach import reaches_outside
from regdist.testing.simpler import Kept, Part, Table, joined

_BATCH = 32  # candidates of one vmap: a program for each shape
_SAFETY = 8.0  # times what the last digits of the inputs do: those of what is computed add to it
_ROUNDS = 40  # accepted changes; hunts have been seen to need half of that
_PROOF_BITS = (128, 256, 512, 1024, 2048, 4096)


@dataclasses.dataclass(frozen=True)
class Smallest:
    """A counterexample that was made as simple as it gets; made by `falsify()`.

    Attributes:
        problem: what the predicate is given; a tuple where a tuple of generators was given.
        margin: of the predicate there, as computed in floats.
        error: how far rounding moves that margin: 8 times its own last digit and the most that
            31 changes of its inputs by an ulp do. It is measured, and no bound: constants of the
            predicate that cancel each other round without it.
        call: Python that makes the problem.
        proved: whether `proof` was given and ball arithmetic shows that its margin is a violation.
        bounds: the proved bounds of that margin; None without.
        note: why nothing is proved, or "".
    """

    problem: Any
    margin: float
    error: float
    call: str
    proved: bool = False
    bounds: tuple[Decimal, Decimal] | None = None
    note: str = "no proof= was given"

    def __str__(self) -> str:
        if self.proved and self.bounds:
            return f"{self.call}: proved: margin in [{self.bounds[0]}, {self.bounds[1]}]"
        kinds = [jnp.result_type(x) for x in jax.tree.leaves(self.problem)]
        floats = [str(kind) for kind in kinds if jnp.issubdtype(kind, jnp.floating)]
        said = f"refuted in {min(floats, default='integers')}, margin {self.margin:.3g}"
        return f"{self.call}: {said}, error about {self.error:.1g}, not proved: {self.note}"


class Claim:
    """A predicate over problems in parts, and which margins still refute it.

    Args:
        margin: from a problem to its margin, an array; traceable.
        names: of the predicate's arguments.
        shape: how the parts make a problem.
        several: whether the problem is a tuple of arguments.
        tolerance: of the hunt.
    """

    def __init__(
        self,
        margin: Callable[[Any], Array],
        names: Sequence[str],
        shape: Any,
        several: bool,
        tolerance: float | int,
    ):
        self.margin, self.names, self.shape, self.several = margin, names, shape, several
        self.tolerance = tolerance
        self.compiled = jax.jit(jax.vmap(margin))
        self.fits: dict[Any, bool] = {}

    def problem(self, parts: Sequence[Part]) -> Any:
        """What the predicate takes.

        Raises:
            ValueError: the parts make no problem.
        """
        return self.shape.unflatten([part.value() for part in parts])

    def call(self, parts: Sequence[Part]) -> str:
        """Python that makes it, under the names that the predicate has for it."""
        texts = self.shape.unflatten([part.text() for part in parts])
        rows = texts if self.several else (texts,)
        pairs = zip(self.names, map(joined, rows), strict=True)
        return "; ".join(f"{name} = {text}" for name, text in pairs)

    def margins(self, candidates: Sequence[Sequence[Part]]) -> list[float | None]:
        """Margins of candidates of one shape; None where it is no problem, or does not run."""
        made: dict[int, Any] = {}
        for i, parts in enumerate(candidates):
            try:
                made[i] = self.problem(parts)
            except ValueError:
                continue
        found: list[float | None] = [None] * len(candidates)
        if not made or not self._runs(next(iter(made.values()))):
            return found
        order = list(made)
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            filled = rows + rows[:1] * (_BATCH - len(rows))
            stacked = jax.tree.map(lambda *x: jnp.stack(x), *[made[i] for i in filled])
            values = np.asarray(self.compiled(stacked), float)
            found = [float(values[rows.index(i)]) if i in rows else x for i, x in enumerate(found)]
        return found

    def error(self, problem: Any) -> float:
        """How far a margin moves with the last digits of its inputs, and more."""
        random = np.random.default_rng(0)

        def moved(x: Any) -> np.ndarray:
            x = np.asarray(x)
            rows = np.broadcast_to(x, (_BATCH, *x.shape))
            if not jnp.issubdtype(x.dtype, jnp.floating):
                return rows
            eps = np.finfo(x.dtype).eps
            signs = random.choice([-1, 1], size=rows.shape)
            signs[0] = 0
            return np.where(np.isfinite(rows), rows * (1 + eps * signs), rows).astype(x.dtype)

        values = np.asarray(self.compiled(jax.tree.map(moved, problem)), float)
        digit = np.finfo(float).eps * abs(values[0])
        return float(_SAFETY * (np.max(np.abs(values - values[0])) + digit))

    def _runs(self, problem: Any) -> bool:
        """Whether the predicate can be traced on problems of this shape, every index inside."""
        key = tuple((np.shape(x), jnp.result_type(x)) for x in jax.tree.leaves(problem))
        if key not in self.fits:
            try:
                self.fits[key] = not reaches_outside(self.margin, problem)
            except Exception:  # whatever a predicate raises: then this shape is not taken
                self.fits[key] = False
        return self.fits[key]


def shrink(claim: Claim, parts: list[Part], worst: float) -> tuple[list[Part], float] | None:
    """Simpler parts that still refute the claim, and their margin; None if these do not.

    Fewer actions come first, then shorter numbers. A margin must stay a violation that is no
    rounding: a tenth of the worst one, or 0.001. NaN must stay NaN.
    """
    least = max(claim.tolerance, min(abs(worst) / 10, 1e-3))

    def refutes(margin: float | None) -> bool:
        if margin is None:
            return False
        if math.isnan(worst):
            return math.isnan(margin)
        return margin < -claim.tolerance and margin <= -least

    (margin,) = claim.margins([parts])
    if not refutes(margin) or margin is None:
        return None
    for _ in range(_ROUNDS):
        for candidates in _stages(parts):
            margins = claim.margins(candidates)
            good = [i for i, m in enumerate(margins) if refutes(m)]
            if good:
                chosen = min(good, key=lambda i: _cost(candidates[i]))
                parts, margin = candidates[chosen], margins[chosen] or margin
                break
        else:
            break
    return parts, margin


def _cost(parts: Sequence[Part]) -> int:
    return sum(part.cost() for part in parts)


def _stages(parts: list[Part]) -> Iterator[list[list[Part]]]:
    """Lists of candidates of one shape each, those that leave out most actions first."""
    for size in {len(part.label) for part in parts if isinstance(part, Table)}:
        count = size // 2
        while count and size - count >= 2:
            spans = [range(first, first + count) for first in range(size - count + 1)]
            yield [[part.without(gone, size) for part in parts] for gone in spans]
            count //= 2
    for i, part in enumerate(parts):
        made = [[*parts[:i], new, *parts[i + 1 :]] for new in part.simpler()]
        cheaper = [row for row in made if _cost(row) < _cost(parts)]
        if cheaper:
            yield cheaper


def prove(
    proof: Callable[..., Any], parts: Sequence[Part], claim: Claim
) -> tuple[bool, tuple[Decimal, Decimal] | None, str]:
    """Whether a margin over balls is a violation: the answer, its bounds, and why not."""
    exact = [part.exact() for part in parts]
    unknown = [part.text() for part, x in zip(parts, exact, strict=True) if x is None]
    if unknown:
        return False, None, f"no form in fractions is found for {unknown[0]}"
    problem = claim.shape.unflatten(exact)
    for bits in _PROOF_BITS:
        with balls.precision(bits):
            try:
                value = proof(*problem) if claim.several else proof(problem)
                if not isinstance(value, balls.flint().arb):
                    return False, None, f"proof must return a ball; it returned {value!r}"
                excess = value + balls.ball(claim.tolerance)
                if not (excess < 0 or excess >= 0) or not value.is_finite():
                    continue
                bounds = balls.decimals(value, 12)
            except balls.UnresolvedError:
                continue
            except Exception as error:  # the hunt's result is worth more than a broken proof
                return False, None, f"proof raised {type(error).__name__}: {error}"
        if excess < 0:
            return True, bounds, ""
        inside = f"[{bounds[0]}, {bounds[1]}]"
        return False, bounds, f"the margin of proof is no violation: it is in {inside}"
    return False, None, f"{_PROOF_BITS[-1]} bits do not tell the sign of the margin of proof"


def smallest(
    claim: Claim, parts: list[Part], worst: float, proof: Callable[..., Any] | None
) -> Smallest | None:
    """The worst problem, shrunk, and proved if there is a proof of it; None if `shrink` is."""
    shrunk = shrink(claim, parts, worst)
    if shrunk is None:
        return None
    found, margin = shrunk
    problem = claim.problem(found)
    made = Smallest(problem, margin, claim.error(problem), claim.call(found))
    kept = [part.text() for part in found if isinstance(part, Kept)]
    if kept:
        return dataclasses.replace(made, note=f"{', '.join(kept)} is left as it is")
    if proof is None:
        return made
    proved, bounds, note = prove(proof, found, claim)
    return dataclasses.replace(made, proved=proved, bounds=bounds, note=note)
