"""Functions of laws of steps over a tree: entropies by states, answers by prefixes, perplexities.

S states, V tokens, L leaves, T steps of the longest. A law of steps is a table [S, V] of
log-probabilities in nats, such as `tree.conditionals(log_probs)`.
"""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from regdist.metrics.entropies import entropy
from regdist.numerics.checks import Function
from regdist.problems.tree import Tree, check_steps

__all__ = [
    "answer_entropies",
    "expected_length",
    "path_entropies",
    "perplexities",
    "state_entropies",
]


def _of_steps(fn: Function) -> Function:
    """Lets a metric refuse what is no tree, or no law of its steps; and compiled."""
    compiled, where = jax.jit(fn), f"rd.metrics.{getattr(fn, '__name__', '')}(tree, log_steps)"

    @functools.wraps(fn)
    def call(tree: Any, log_steps: Any) -> Any:
        return compiled(tree, check_steps(tree, log_steps, where))

    return cast(Function, call)


@_of_steps
def state_entropies(tree: Tree, log_steps: Float[Array, "S V"]) -> Float[Array, " S"]:
    """H(next token | s) of each state, in nats, shape [S]; chance's own where chance moves.

    Weighted by `tree.log_visits` over the policy's states, they add up to the entropy of the law of
    whole sequences, less what chance adds to it.

    Examples:
        >>> t = rd.tree([[0], [1, 0], [1, 1]], [0.0, 0.0, 1.0])
        >>> print(state_entropies(t, t.log_ref))
        [0.69314718 0.69314718]
    """
    del tree
    return jax.vmap(entropy)(log_steps)


@_of_steps
def path_entropies(tree: Tree, log_steps: Float[Array, "S V"]) -> Float[Array, "L T"]:
    """H(next token | prefix) at each step of each sequence, in nats; NaN beyond its end.

    Examples:
        >>> t = rd.tree([[0], [1, 0], [1, 1]], [0.0, 0.0, 1.0])
        >>> print(path_entropies(t, t.log_ref))
        [[0.69314718        nan]
         [0.69314718 0.69314718]
         [0.69314718 0.69314718]]
    """
    each = jax.vmap(entropy)(log_steps)
    return tree.paths.along(jnp.broadcast_to(each[:, None], log_steps.shape), jnp.nan)


@_of_steps
def perplexities(tree: Tree, log_steps: Float[Array, "S V"]) -> Float[Array, " L"]:
    r"""exp of the mean surprise of each sequence's own steps, (1/n) sum_t -log p(token t | prefix).

    Steps where chance moves do not count, as tokens that a model did not write; a sequence of
    nothing else has 1. inf for sequences of probability 0.

    Examples:
        >>> t = rd.tree([[0], [1, 0], [1, 1]], [0.0, 0.0, 1.0])
        >>> print(perplexities(t, t.conditionals(jnp.log(jnp.array([0.2, 0.4, 0.4])))))
        [5.         1.58113883 1.58113883]
    """
    own = jnp.broadcast_to(tree.chooses[:, None], log_steps.shape)
    paths = tree.paths
    surprise = jnp.sum(paths.along(jnp.where(own, -log_steps, 0)), axis=1)
    count = jnp.sum(paths.along(own.astype(log_steps.dtype)), axis=1)
    return jnp.exp(surprise / jnp.maximum(count, 1))


@_of_steps
def expected_length(tree: Tree, log_steps: Float[Array, "S V"]) -> Float[Array, ""]:
    """E |o|, the mean number of steps of a sequence, chance's included.

    Examples:
        >>> t = rd.tree([[0], [1, 0], [1, 1]], [0.0, 0.0, 1.0])
        >>> print(expected_length(t, t.log_ref))
        1.5
    """
    return jnp.sum(jnp.exp(tree.log_visits(log_steps)))


@_of_steps
def answer_entropies(tree: Tree, log_steps: Float[Array, "S V"]) -> Float[Array, " S"]:
    r"""H(answer | prefix) in each state, in nats: how open the answer still is, shape [S].

    $$H(A \mid s) = -\sum_a p(a \mid s) \log p(a \mid s)$$

    Answers are the labels of the leaves. Where the law never comes it is that of its conditionals
    from there on.

    Examples:
        >>> t = rd.tree([[0], [1, 0], [1, 1]], [0.0, 0.0, 1.0], label=[0, 0, 1])
        >>> print(answer_entropies(t, t.log_ref).round(4))
        [0.5623 0.6931]
    """
    # By pairs of a state and an answer, one for each step of each leaf, sorted.
    paths, (num_states, vocabulary) = tree.paths, log_steps.shape
    state = paths.steps // vocabulary
    # log p(the rest of the leaf | the prefix): sums from the end, so that no state need be visited.
    each = paths.along(log_steps)
    rest = jnp.cumsum(each[:, ::-1], axis=1)[:, ::-1]
    answer = jnp.broadcast_to(tree.bandit.label[:, None], state.shape)
    state = jnp.where(paths.there, state, num_states).reshape(-1)
    order = jnp.lexsort((answer.reshape(-1), state))
    state, answer = state[order], answer.reshape(-1)[order]
    fresh = (jnp.diff(state, prepend=-1) != 0) | (jnp.diff(answer, prepend=-1) != 0)
    pair = jnp.cumsum(fresh) - 1
    size = state.shape[0]
    mass = jax.ops.segment_sum(jnp.exp(rest.reshape(-1)[order]), pair, size)
    of_state = jnp.zeros(size, state.dtype).at[pair].set(state)
    surprise = jnp.maximum(-mass * jnp.log(jnp.where(mass > 0, mass, 1)), 0)
    return jax.ops.segment_sum(surprise, of_state, num_states + 1)[:num_states]
