"""Contexts: many problems, such as prompts, with weights, whose policy may share parameters.

C contexts; K actions each, or trees of S states and V tokens. Tables are stacked, [C, K] or
[C, S, V], in nats.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from regdist.numerics.logspace import expect
from regdist.numerics.records import (
    Table,
    as_array,
    check_log_probs,
    described,
    is_concrete,
    record,
)
from regdist.problems.bandit import Bandit, Outcomes, check_bandit
from regdist.problems.tree import Tree, check_steps


@record
class Contexts:
    """Many problems with weights; made by `contexts()`.

    Attributes:
        problems: the problems, stacked: a `Bandit` or a `Tree` whose tables have a first axis C.
        weights: how often each is met, shape [C]; they sum to 1.
        sizes: how many actions each has of its own, shape [C]; None where all have as many.
    """

    problems: Any
    weights: Float[Array, " C"]
    sizes: Int[Array, " C"] | None = None

    no_bandit: ClassVar[str] = (
        "They are many problems: ask for each of contexts.each, or move them together by "
        "rd.field and rd.run"
    )

    @property
    def num_contexts(self) -> int:
        """The number of problems, C."""
        return self.weights.shape[0]

    @property
    def leaves(self) -> Bandit | Outcomes:
        """The problems of one step, stacked: the bandits, or the leaves of the trees."""
        problems = self.problems
        return problems.bandit if isinstance(problems, Tree) else problems

    @property
    def each(self) -> list[Any]:
        """The problems one by one; bandits with as many actions as the largest."""
        return [self._at(c) for c in range(self.num_contexts)]

    def _at(self, c: int) -> Any:
        problems = self.problems
        if not isinstance(problems, Tree):
            return jax.tree.map(lambda x: x[c], problems)
        return dataclasses.replace(
            problems,
            bandit=jax.tree.map(lambda x: x[c], problems.bandit),
            log_chance=None if problems.log_chance is None else problems.log_chance[c],
        )

    def map(self, fn: Callable[..., Any], *tables: Any) -> Any:
        """fn(problem, row of each table) for every problem, stacked; None stays None."""
        problems = self.problems
        rows = [None if table is None else 0 for table in tables]
        if not isinstance(problems, Tree):
            return jax.vmap(fn, in_axes=(0, *rows))(problems, *tables)

        def one(bandit: Any, log_chance: Array | None, *rows: Any) -> Any:
            return fn(dataclasses.replace(problems, bandit=bandit, log_chance=log_chance), *rows)

        moved = None if problems.log_chance is None else 0
        mapped = jax.vmap(one, in_axes=(0, moved, *rows))
        return mapped(problems.bandit, problems.log_chance, *tables)

    def with_reference(self, log_ref: Float[Array, "C ..."]) -> "Contexts":
        """The same problems beside other references: laws of actions, or of the steps of trees."""
        leaves = dataclasses.replace(self.leaves, log_ref=self.map(whole_law, log_ref))
        problems: Any = leaves
        if isinstance(self.problems, Tree):
            problems = dataclasses.replace(self.problems, bandit=leaves)
        return dataclasses.replace(self, problems=problems)

    @property
    def log_ref(self) -> Float[Array, "C ..."]:
        """The references, in nats, shape [C, K] or [C, S, V]."""
        return self.map(lambda problem: problem.log_ref)

    @property
    def forbidden(self) -> Bool[Array, "C ..."]:
        """What no policy may do in each, shaped like its table."""
        return self.map(forbidden_of)

    def rewards(self, log_probs: Float[Array, "C ..."]) -> Float[Array, " C"]:
        """E R in each problem of laws of actions or steps, shape [C].

        Examples:
            >>> both = rd.contexts([rd.bandit([1.0, 0.0]), rd.bandit([0.0, 1.0], [0.9, 0.1])])
            >>> print(both.rewards(both.log_ref))
            [0.5 0.1]
        """
        laws = self.map(whole_law, log_probs)
        return jax.vmap(expect)(laws, self.leaves.reward)


def forbidden_of(problem: Any) -> Array:
    """What no policy may do: actions, or steps of a tree, shaped like its table."""
    if isinstance(problem, Tree | Contexts):
        return problem.forbidden
    return jnp.isneginf(problem.reward)


def with_reference(problem: Any, log_ref: Float[Array, "..."]) -> Any:
    """A problem beside another reference: a law of actions, or of the steps of a tree."""
    if isinstance(problem, Contexts):
        return problem.with_reference(log_ref)
    if not isinstance(problem, Tree):
        return dataclasses.replace(problem, log_ref=log_ref)
    leaves = dataclasses.replace(problem.bandit, log_ref=problem.leaves(log_ref))
    return dataclasses.replace(problem, bandit=leaves)


def with_rewards(problem: Any, reward: Array) -> Any:
    """A problem with other rewards, of its actions or of its whole sequences."""
    if isinstance(problem, Contexts):
        return dataclasses.replace(problem, problems=with_rewards(problem.problems, reward))
    if not isinstance(problem, Tree):
        return dataclasses.replace(problem, reward=reward)
    return dataclasses.replace(problem, bandit=with_rewards(problem.bandit, reward))


def whole_law(problem: Any, log_probs: Array) -> Array:
    """The law of actions, or of whole sequences."""
    if isinstance(problem, Contexts):
        return problem.map(whole_law, log_probs)
    return problem.leaves(log_probs) if isinstance(problem, Tree) else log_probs


def check_law(name: str, law: Any, problem: Any, where: str) -> Array:
    """A law over actions, or of the steps of a tree; or a row of such for each context.

    Raises:
        TypeError: not numbers.
        ValueError: another shape, or no normalized log-probabilities.
    """
    if isinstance(problem, Contexts):
        rows = as_array(f"{name} of {where}", law, None)
        if rows.shape != problem.log_ref.shape:
            raise ValueError(
                f"{name} of {where} must be laws, one for each context, shape "
                f"{problem.log_ref.shape}; got {rows.shape}"
            )
        if is_concrete(rows, problem):
            for c, (one, row) in enumerate(zip(problem.each, rows, strict=True)):
                check_law(f"row {c} of {name}", row, one, where)
        return rows
    if isinstance(problem, Tree):
        return check_steps(problem, law, where, name)
    return check_log_probs(name, law, where, problem.num_actions)


def contexts(problems: Iterable[Bandit | Tree], weights: Table | None = None) -> Contexts:
    """Many problems, such as prompts, that one policy meets.

    Args:
        problems: bandits, of any numbers of actions, or trees of the same sequences.
        weights: how often each is met, shape [C], made to sum to 1; default even.

    Returns:
        A `Contexts`. Bandits with fewer actions than the largest get forbidden ones (reward -inf).

    Raises:
        TypeError: no problems, or of both kinds.
        ValueError: none at all, trees of different sequences, or weights that are none.

    Examples:
        >>> easy, hard = rd.bandit([1.0, 0.0], [0.5, 0.5]), rd.bandit([1.0, 0.0], [0.01, 0.99])
        >>> both = contexts([easy, hard], [0.25, 0.75])
        >>> print(rd.field(rd.methods.reinforce(), both.log_ref, both)[:, 0].round(4))
        [0.0625 0.0074]
    """
    if isinstance(problems, Bandit | Tree | Contexts) or not isinstance(problems, Iterable):
        raise TypeError(f"problems must be a list of problems; got {described(problems)}")
    given = list(problems)
    if not given:
        raise ValueError("problems must be at least one; got none")
    trees = [problem for problem in given if isinstance(problem, Tree)]
    bandits = [problem for problem in given if not isinstance(problem, Tree)]
    if trees and bandits:
        raise TypeError(
            "problems must be all bandits or all trees; a bandit is also "
            "rd.tree([[0], [1], ...], reward)"
        )
    for problem in bandits:
        check_bandit(problem)
    stacked = _stacked_trees(trees) if trees else _stacked_bandits(bandits)
    dtype = given[0].log_ref.dtype
    w = jnp.ones(len(given), dtype) if weights is None else as_array("weights", weights, dtype)
    if w.shape != (len(given),):
        raise ValueError(f"weights must be one for each of {len(given)} problems; got {w.shape}")
    if is_concrete(w):
        known = np.asarray(w)
        if not (np.all(known >= 0) and np.all(np.isfinite(known)) and known.sum() > 0):
            raise ValueError(f"weights must be >= 0 and not all 0; got {weights!r}")
    own = [bandit.num_actions for bandit in bandits]
    return Contexts(stacked, w / jnp.sum(w), jnp.asarray(own) if len(set(own)) > 1 else None)


def _stacked_bandits(given: list[Bandit]) -> Bandit:
    most = max(bandit.num_actions for bandit in given)

    def wide(table: Array, fill: float) -> Array:
        return jnp.pad(table, (0, most - table.shape[0]), constant_values=fill)

    def label(bandit: Bandit) -> Array:
        return jnp.concatenate([bandit.label, jnp.arange(bandit.num_actions, most)])

    return Bandit(
        reward=jnp.stack([wide(bandit.reward, -jnp.inf) for bandit in given]),
        log_ref=jnp.stack([wide(bandit.log_ref, -jnp.inf) for bandit in given]),
        label=jnp.stack([label(bandit) for bandit in given]),
    )


def _stacked_trees(given: list[Tree]) -> Tree:
    first = given[0]
    for i, other in enumerate(given[1:], 1):
        alike = jax.tree.structure(other) == jax.tree.structure(first)
        if alike and is_concrete(first, other):
            pairs = zip(
                jax.tree.leaves((first.paths, first.ended, first.chooses)),
                jax.tree.leaves((other.paths, other.ended, other.chooses)),
                strict=True,
            )
            alike = all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)
        if not alike:
            raise ValueError(
                f"problem {i} is a tree of other sequences than problem 0, or with chance in other "
                "states: contexts of trees share their sequences. Give each the sequences of all, "
                "with reward -inf where one of them does not exist"
            )
    chances = [tree.log_chance for tree in given if tree.log_chance is not None]
    return dataclasses.replace(
        first,
        bandit=jax.tree.map(lambda *x: jnp.stack(x), *(tree.bandit for tree in given)),
        log_chance=jnp.stack(chances) if chances else None,
    )
