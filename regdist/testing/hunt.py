"""Hunt for counterexamples: a claim as a predicate, over millions of random problems.

K is the number of actions. A generator is a pure function from a key to one problem.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Key

from regdist.numerics import balls
from regdist.numerics.records import check_count, check_key, described, is_numeric
from regdist.scale.sweep import sweep
from regdist.testing.generators import Generator
from regdist.testing.shrink import Claim, Smallest, smallest
from regdist.testing.simpler import split

_SAMPLE = 1024  # problems whose numbers say in which range a generator draws

if TYPE_CHECKING:
    from rich.progress import Progress


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One problem that a claim was tried on.

    Attributes:
        index: its number: the problem is `problems(jax.random.fold_in(key, index))`.
        margin: by how much the claim holds there; NaN counts as a failure.
        problem: the problem; a tuple where a tuple of generators was given.
    """

    index: int
    margin: float
    problem: Any


@dataclasses.dataclass(frozen=True)
class Hunt:
    """What a hunt found; made by `falsify()`.

    Attributes:
        holds: whether no problem violates the claim. Not a proof.
        num: problems tried.
        violations: problems whose margin is below -tolerance, or NaN.
        tolerance: the margin allowed below 0.
        worst: the smallest margin; NaN if there is one.
        candidates: the problems of smallest margin, worst first, ties by index, whether the claim
            holds or not.
        seconds: computing, compilation not counted.
        rate: problems a second in this process, compilation not counted; NaN if all were found
            finished under `out`.
        smallest: the worst problem, made as simple as it gets; None if the claim holds, or without
            `shrink`.
    """

    holds: bool
    num: int
    violations: int
    tolerance: float | int
    worst: float
    candidates: list[Candidate] = dataclasses.field(repr=False)
    seconds: float
    rate: float
    smallest: Smallest | None = dataclasses.field(default=None, repr=False)

    def __str__(self) -> str:
        at = f"margin {self.worst:.3g} at problem {self.candidates[0].index}"
        if self.holds:
            return f"not refuted: it holds on all {self.num:,} problems; the smallest {at}"
        share = self.violations / self.num
        return (
            f"refuted: it fails on {self.violations:,} of {self.num:,} problems ({share:.2g}); "
            f"the worst {at}" + (f"\nsmallest: {self.smallest}" if self.smallest else "")
        )


def falsify(
    predicate: Callable[..., Any],
    problems: Generator | Sequence[Generator],
    num: int = 1_000_000,
    *,
    key: Key[Array, ""],
    top: int = 10,
    tolerance: float | int = 0,
    shrink: bool = True,
    proof: Callable[..., Any] | None = None,
    batch: int = 4096,
    budget: int = 2**30,
    mesh: Mesh | None = None,
    out: str | Path | None = None,
    version: str | None = None,
    progress: "bool | Progress | None" = None,
) -> Hunt:
    """Try a claim on many random problems and keep those where it does worst.

    The verdict depends on no choice of devices, processes or chunks: it is an `rd.sweep` over
    batches, and resumes from `out` as one.

    Args:
        predicate: from one problem to its margin, a real scalar that is >= 0 where the claim
            holds, or to a boolean (margin 1 or -1). Works under vmap.
        problems: a generator, or a tuple of them: then `predicate` takes an argument for each.
        num: how many problems, up to 2^32.
        key: problem i comes from `jax.random.fold_in(key, i)`; the j-th of a tuple of generators
            gets `jax.random.fold_in(jax.random.fold_in(key, i), j)`.
        top: how many candidates to keep.
        tolerance: a margin of at least -tolerance is no violation: rounding. Same units.
        shrink: whether to simplify the worst violation: fewer actions, short fractions for rewards,
            references and numbers. A change is kept while the margin stays a violation and every
            number in the range that the generator draws it from; nothing is known of how numbers
            depend on each other, which belongs into the predicate. Bandits, numbers and arrays that
            are no laws are shrunk, and tuples of these. An action is left out only where no index
            that is fixed in the predicate then points outside.
        proof: the same margin over `rd.testing.balls`: from the simplified problem with an
            `rd.rational` for each bandit and fractions for numbers to a ball. Where the ball lies
            below -tolerance the counterexample is proved.
        batch: problems of one vmap.
        budget: bytes for all, as in `rd.sweep`.
        mesh: as in `rd.sweep`.
        out: as in `rd.sweep`.
        version: as in `rd.sweep`.
        progress: as in `rd.sweep`.

    Raises:
        ValueError: num, top or batch not positive, a tolerance below 0, or above 0 with a boolean.
        TypeError: the predicate returns something else than one real number or boolean.
        ImportError: a `proof` without python-flint, the extra `enclosures`.

    Examples:
        Reverse KL keeps the reference's odds between equal rewards; it does not follow that forward
        KL at the same beta is the more diverse:

        >>> problems = (rd.testing.bandits(3, rewards="binary"), rd.testing.betas(0.1, 10))
        >>> def keeps_odds(bandit, beta):
        ...     law = rd.target(bandit, rd.ReverseKL(beta))
        ...     change = rd.log_odds(law.log_probs, 0, 1) - rd.log_odds(bandit.log_ref, 0, 1)
        ...     return jnp.where(bandit.reward[0] == bandit.reward[1], -jnp.abs(change), 0)
        >>> print(falsify(keeps_odds, problems, 4000, key=jax.random.key(0), tolerance=1e-12))
        not refuted: it holds on all 4,000 problems; the smallest margin ...
        >>> def forward_is_more_diverse(bandit, beta):
        ...     laws = [
        ...         rd.target(bandit, kl(beta)).log_probs for kl in (rd.ForwardKL, rd.ReverseKL)
        ...     ]
        ...     return rd.metrics.entropy(laws[0]) - rd.metrics.entropy(laws[1])
        >>> hunt = falsify(
        ...     forward_is_more_diverse, problems, 4000, key=jax.random.key(0), tolerance=1e-12
        ... )
        >>> print(hunt)
        refuted: it fails on 339 of 4,000 problems (0.085); the worst margin ... at problem ...
        smallest: bandit = rd.bandit([...], [...]); beta = ...: refuted in float64, margin -0...
        >>> bandit, beta = hunt.smallest.problem
        >>> bool(forward_is_more_diverse(bandit, beta) < 0)
        True
    """
    several = isinstance(problems, Sequence)
    makers = tuple(problems) if isinstance(problems, Sequence) else (problems,)
    _check_claim(predicate, makers, key)
    _check_numbers(num, top, batch, tolerance)
    _check_proof(proof, shrink, makers)
    size, kept = min(batch, num), min(top, batch, num)
    problem_of = _generator(makers, several, key)

    def margin_at(problem: Any) -> Array:
        return _margin(predicate(*problem) if several else predicate(problem), tolerance)

    def worst_of(start: Array) -> dict[str, Array]:
        index = start + jnp.arange(size, dtype=np.uint32)
        margin = jax.vmap(lambda i: margin_at(problem_of(i)))(index)
        real = index - start < np.uint32(num) - start  # the last batch may be short
        failed = real & ~(margin >= -tolerance)
        level = jnp.where(real, jnp.where(jnp.isnan(margin), -jnp.inf, margin), jnp.inf)
        first = jnp.lexsort((level, ~(jnp.isnan(margin) & real), ~real))[:kept]
        return {
            "margin": margin[first],
            "index": index[first],
            "real": real[first],
            "violations": jnp.sum(failed, dtype=np.int32),
        }

    at = {"start": np.arange(0, num, size, dtype=np.uint64).astype(np.uint32)}
    result = sweep(
        worst_of, at, block=1, budget=budget, mesh=mesh, out=out, version=version, progress=progress
    )
    real = result.values["real"].reshape(-1)
    margin, index = (result.values[name].reshape(-1)[real] for name in ("margin", "index"))
    violations = int(result.values["violations"].sum())
    sample = min(num, _SAMPLE) if shrink and violations else 0
    candidates, drawn = _worst(problem_of, margin, index, top, sample)
    hunt = Hunt(
        holds=violations == 0,
        num=num,
        violations=violations,
        tolerance=tolerance,
        worst=candidates[0].margin,
        candidates=candidates,
        seconds=result.seconds,
        rate=result.rate * num / result.num,
    )
    found = _smallest(hunt, predicate, margin_at, drawn, several, proof) if sample else None
    return dataclasses.replace(hunt, smallest=found)


def _generator(
    makers: tuple[Generator, ...], several: bool, key: Key[Array, ""]
) -> Callable[[Array], Any]:
    """From a number to its problem."""

    def problem_of(index: Array) -> Any:
        own = jax.random.fold_in(key, index)
        if not several:
            return makers[0](own)
        return tuple(make(jax.random.fold_in(own, j)) for j, make in enumerate(makers))

    return problem_of


def _worst(
    problem_of: Callable[[Array], Any], margin: np.ndarray, index: np.ndarray, top: int, sample: int
) -> tuple[list[Candidate], Any]:
    """The problems of smallest margin, NaN first, ties by index; and as drawn, with some more."""
    level = np.where(np.isnan(margin), -np.inf, margin)
    first = np.lexsort((index, level, ~np.isnan(margin)))[:top]
    more = np.concatenate([index[first], np.arange(sample, dtype=index.dtype)])
    drawn = jax.jit(jax.vmap(problem_of))(jnp.asarray(more))
    candidates = [
        Candidate(
            int(index[i]), float(margin[i]), jax.tree.map(lambda x, place=place: x[place], drawn)
        )
        for place, i in enumerate(first)
    ]
    return candidates, drawn


def _smallest(
    hunt: Hunt,
    predicate: Callable[..., Any],
    margin_at: Callable[[Any], Array],
    drawn: Any,
    several: bool,
    proof: Callable[..., Any] | None,
) -> Smallest:
    """The worst problem of a hunt, simplified: see `falsify`."""
    worst = hunt.candidates[0]
    own = f"jax.random.fold_in(key, {worst.index})"
    names = _names(predicate, len(worst.problem) if several else 1)
    sources = tuple(f"problems[{j}](jax.random.fold_in({own}, {j}))" for j in range(len(names)))
    if not several:
        sources = (f"problems({own})",)
    parts, shape = split(worst.problem, drawn, sources if several else sources[0])
    claim = Claim(margin_at, names, shape, several, hunt.tolerance)
    found = smallest(claim, parts, worst.margin, proof)
    if found is None:
        call = "; ".join(f"{x} = {text}" for x, text in zip(names, sources, strict=True))
        note = "alone it is no such violation: another compilation rounds otherwise"
        error = claim.error(worst.problem)
        found = Smallest(worst.problem, worst.margin, error, call, note=note)
    return found


def _names(predicate: Callable[..., Any], count: int) -> list[str]:
    """What the predicate calls its arguments."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = [x.name for x in inspect.signature(predicate).parameters.values() if x.kind in kinds]
    return found[:count] if len(found) >= count else [f"problem_{j}" for j in range(count)]


def _check_numbers(num: Any, top: Any, batch: Any, tolerance: Any) -> None:
    for name, count in (("num", num), ("top", top), ("batch", batch)):
        check_count(name, count)
    if num > 2**32:  # fold_in takes 32 bits
        raise ValueError(f"num must be at most 2^32; got num={num}")
    if not (is_numeric(tolerance) and 0 <= tolerance < math.inf):
        raise ValueError(f"tolerance must be a number >= 0; got {described(tolerance)}")


def _check_proof(proof: Any, shrink: Any, makers: tuple[Any, ...]) -> None:
    if not isinstance(shrink, bool):
        raise TypeError(f"shrink must be True or False; got {described(shrink)}")
    if proof is None:
        return
    if not shrink:
        raise ValueError("a proof is of the simplified problem: leave shrink=True")
    _check_takes("proof", proof, makers)
    balls.flint()


def _check_takes(name: str, fn: Any, makers: tuple[Any, ...]) -> None:
    if not callable(fn):
        raise TypeError(f"{name} must be a function of a problem; got {described(fn)}")
    try:
        inspect.signature(fn).bind(*makers)
    except TypeError as error:
        raise TypeError(
            f"{name} must take an argument for each generator, here {len(makers)}: {error}"
        ) from error


def _check_claim(predicate: Any, makers: tuple[Any, ...], key: Any) -> None:
    check_key(key, needed=True)
    example = "Such as rd.testing.bandits(4), or a tuple of several"
    if not makers or not all(map(callable, makers)):
        got = described(makers[0] if len(makers) == 1 else makers)
        raise TypeError(f"problems must be functions from a key to a problem; got {got}. {example}")
    _check_takes("predicate", predicate, makers)


def _margin(value: Any, tolerance: float | int) -> Array:
    margin = jnp.asarray(value) if is_numeric(value) else None
    real = margin is not None and not jnp.issubdtype(margin.dtype, np.integer)
    if margin is None or not real or margin.shape != ():
        raise TypeError(
            "predicate must return a margin, one real number that is >= 0 where the claim holds, "
            f"or a boolean; got {described(value)}. For a claim about each action take jnp.min of "
            "the margins, or jnp.all"
        )
    if margin.dtype != bool:
        return margin
    if tolerance:
        raise ValueError("a boolean has no margin: give tolerance=0, or return a margin")
    return jnp.where(margin, 1.0, -1.0)
