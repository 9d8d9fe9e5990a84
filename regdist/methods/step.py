"""One step of a method: its tables, the expected pull on each score, and the direction it gives.

The same five functions serve a bandit [K], a tree [S, V] and contexts [C, ...], one prompt after
the other by `jax.vmap`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Key

from regdist.methods.across import with_statistics
from regdist.methods.batch import Steps, Tables, by_step, paid_rewards
from regdist.methods.expectation import Expectation, Pull, contract, prepared
from regdist.methods.geometry import GEOMETRIES
from regdist.methods.method import Method
from regdist.numerics.logspace import full_precision, normalize
from regdist.policies.policy import Params, Policy
from regdist.problems.bandit import Bandit, Outcomes
from regdist.problems.contexts import Contexts, forbidden_of
from regdist.problems.tree import Tree

Problem = Bandit | Tree | Contexts
"""What a method is run on."""


def leaves_of(problem: Problem) -> Bandit | Outcomes:
    """The problem of one step: the bandit itself, or whole sequences; of contexts all, stacked."""
    if isinstance(problem, Contexts):
        return problem.leaves
    return problem.bandit if isinstance(problem, Tree) else problem


def horizon_of(problem: Problem) -> int:
    """The most steps of a sample."""
    one = problem.problems if isinstance(problem, Contexts) else problem
    return one.paths.steps.shape[1] if isinstance(one, Tree) else 1


def fitted(expectation: Expectation | None, method: Method, problem: Problem) -> Expectation:
    """The expectation asked for, made ready for a problem; of contexts for each."""
    leaves = leaves_of(problem)
    one: Any = problem.each[0] if isinstance(problem, Contexts) else problem
    asked = leaves_of(one)

    def sequences(shift: Array) -> Tables:
        law = one.conditionals(normalize(asked.log_ref + shift))
        return tables_of(method, one.with_chance(law), one)

    written = sequences if isinstance(one, Tree) else None
    return prepared(expectation, method, leaves, horizon_of(problem), asked, written)


def in_dtype(given: Any, dtype: Any) -> Any:
    """A method, or any other record, with its real numbers in a dtype; indices and masks stay."""

    def cast(x: Any) -> Array:
        x = jnp.asarray(x)
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast, given)


@full_precision
def tables_of(
    method: Method,
    log_p: Float[Array, "..."],
    problem: Problem,
    old: Float[Array, "..."] | None = None,
    sampler: Float[Array, "..."] | None = None,
) -> Tables:
    """The tables of a step, with what the method pays in place of the reward."""
    if isinstance(problem, Contexts):
        return _each_tables(method, problem, log_p, old, sampler)
    return _tables(method, problem, log_p, old, sampler)


@jax.jit
def _each_tables(
    method: Method, contexts: Contexts, log_p: Array, old: Array | None, sampler: Array | None
) -> Tables:
    def each(one: Bandit | Tree, size: Array | None, *laws: Any) -> Tables:
        tables = _tables(method, one, *laws)
        if size is None:
            return tables
        own = jnp.arange(tables.reward.shape[0]) < size
        even = jnp.where(own, -jnp.log(size.astype(tables.reward.dtype)), -jnp.inf)
        return dataclasses.replace(tables, log_even=even)

    return contexts.map(each, contexts.sizes, log_p, old, sampler)


def _tables(
    method: Method, problem: Bandit | Tree, log_p: Array, old: Array | None, sampler: Array | None
) -> Tables:
    laws, leaves, steps = _laws(log_p, old, sampler), leaves_of(problem), None
    if isinstance(problem, Tree):
        laws, steps = _of_sequences(problem, log_p, old, sampler)
    own, old, sampler = laws
    tables = Tables(paid_rewards(leaves), own, old, sampler, leaves.log_ref, leaves.label, steps)
    if method.signal is None:
        return tables
    return dataclasses.replace(tables, reward=method.signal(tables))


def _laws(log_p: Array, old: Array | None, sampler: Array | None) -> tuple[Array, Array, Array]:
    """The policy, the one that drew the batch, and what it was drawn from, by their defaults."""
    log_old = log_p if old is None else old
    return log_p, log_old, log_old if sampler is None else sampler


@jax.jit
def _of_sequences(
    tree: Tree, log_p: Array, old: Array | None, sampler: Array | None
) -> tuple[tuple[Array, Array, Array], Steps]:
    """The laws of whole sequences, and what they are made of."""
    given = (None if law is None else tree.leaves(law) for law in (old, sampler))
    return _laws(tree.leaves(log_p), *given), _steps(tree, *_laws(log_p, old, sampler))


def _steps(tree: Tree, log_p: Array, log_old: Array, log_sampler: Array) -> Steps:
    """The steps of a tree, each law a table of all of them, flat."""
    paths = tree.paths
    tables = Tables(
        reward=jnp.zeros(log_p.size, log_p.dtype),
        log_p=log_p.reshape(-1),
        log_old=log_old.reshape(-1),
        log_sampler=log_sampler.reshape(-1),
        log_ref=tree.log_ref.reshape(-1),
        label=jnp.zeros(log_p.size, int),
        rows=tree.num_states,
        log_even=tree.even(log_p.dtype).reshape(-1),
    )
    return Steps(tables, paths, tree.chooses, paths.log_reach(log_p).reshape(-1))


@full_precision
def with_policy(tables: Tables, problem: Problem, log_p: Float[Array, "..."]) -> Tables:
    """The tables of a step whose policy has moved since its samples were drawn."""
    if isinstance(problem, Contexts):
        return problem.map(lambda one, *rows: with_policy(rows[0], one, rows[1]), tables, log_p)
    if not isinstance(problem, Tree):
        return dataclasses.replace(tables, log_p=log_p)
    assert tables.steps is not None
    steps = dataclasses.replace(
        tables.steps,
        tables=dataclasses.replace(tables.steps.tables, log_p=log_p.reshape(-1)),
        log_reach=problem.paths.log_reach(log_p).reshape(-1),
    )
    return dataclasses.replace(tables, log_p=problem.leaves(log_p), steps=steps)


def drawn(
    expectation: Expectation, tables: Tables, key: Key[Array, ""] | None, problem: Problem
) -> Int[Array, "..."] | None:
    """The actions of the groups of a step, of each prompt; None where nothing is drawn."""
    if not isinstance(problem, Contexts):
        return expectation.draw(tables, key)
    if key is None or not expectation.draws:
        return None
    return jax.vmap(expectation.draw)(tables, jax.random.split(key, problem.num_contexts))


@full_precision
def expected_pull(
    method: Method,
    tables: Tables,
    expectation: Expectation,
    lists: Int[Array, "..."] | None,
    on_policy: bool,
    problem: Problem | None = None,
) -> Pull:
    """What multiplies grad log p_i, regularizer included; of contexts that of each."""
    if not isinstance(problem, Contexts):
        # Compiled where steps are many: op by op the first call on a tree takes twice as long.
        pull = _pull if tables.horizon == 1 else _compiled_pull
        return pull(method, tables, expectation, lists, on_policy)
    return _each_pull(method, tables, expectation, lists, problem.weights, on_policy)


@functools.partial(jax.jit, static_argnames="on_policy")
def _each_pull(
    method: Method,
    tables: Tables,
    expectation: Expectation,
    lists: Int[Array, "..."] | None,
    weights: Float[Array, " C"],
    on_policy: bool,
) -> Pull:
    method = with_statistics(method, tables, weights, expectation.inv_size)
    each = functools.partial(_pull, method, on_policy=on_policy)
    return jax.vmap(each)(tables, expectation, lists)


def _pull(
    method: Method,
    tables: Tables,
    expectation: Expectation,
    lists: Int[Array, "M G"] | None,
    on_policy: bool,
) -> Pull:
    gain, weighted = expectation.pull(method, tables, lists, on_policy)
    if method.regularizer is None:
        return Pull(gain, weighted)
    lost = method.regularizer.weighted_slope(tables.log_p, tables.log_ref)
    if tables.steps is not None:
        lost = contract(tables, total=by_step(tables.steps, lost[:, None]))
        return Pull(gain - lost.gain, weighted - lost.weighted)
    gain = gain - method.regularizer.slope(tables.log_p, tables.log_ref)
    return Pull(gain, weighted - lost)


_compiled_pull = jax.jit(_pull, static_argnames="on_policy")


@full_precision
def push(method: Method, policy: Policy, params: Params, problem: Problem, pull: Pull) -> Params:
    """The direction on the parameters, in the geometry of the method."""
    move = _move if isinstance(problem, Bandit) else _compiled_move
    return move(policy, params, problem, pull, method.geometry)


def _move(policy: Policy, params: Params, problem: Problem, pull: Pull, geometry: str) -> Params:
    forbidden = forbidden_of(problem)
    gain, weighted = (jnp.where(forbidden, 0, x.reshape(forbidden.shape)) for x in pull)
    if isinstance(problem, Contexts):
        weighted = weighted * problem.weights.reshape(-1, *[1] * (weighted.ndim - 1))
    toward = GEOMETRIES[geometry](policy, params, gain, weighted)
    return policy.freeze(toward, forbidden)


_compiled_move = jax.jit(_move, static_argnames="geometry")
