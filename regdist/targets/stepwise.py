"""Optima by steps: the sum over steps of divergences, by a backward recursion over a tree.

S states, V tokens, L leaves.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from regdist.numerics.logspace import expect
from regdist.numerics.records import Law, check_choice, record
from regdist.problems.bandit import Bandit
from regdist.problems.tree import Tree, check_tree
from regdist.regularizers.regularizer import Regularizer, check_regularizer
from regdist.targets.solve import target

FUTURES = ("regularized", "reward")
"""What a state passes up: its best value, or the plain reward to go of its law."""


@record
class Stepwise(Law):
    """The optimum by steps; made by `stepwise()`.

    Attributes:
        log_steps: the law of steps, in nats, shape [S, V]; chance's own where chance moves.
        log_probs: the law of whole sequences under it, shape [L].
        values: Q, what is to come after each step, shape [S, V], in units of reward; 0 where there
            is no step.
        value: what is to come at the root.
        residual: the largest KKT residual of a state's law.
        unique: whether each state's law is its only optimum.
        converged: whether all were found.
    """

    log_steps: Float[Array, "*batch S V"]
    log_probs: Float[Array, "*batch L"]
    values: Float[Array, "*batch S V"]
    value: Float[Array, "*batch"]
    residual: Float[Array, "*batch"]
    unique: Bool[Array, "*batch"]
    converged: Bool[Array, "*batch"]


def stepwise(tree: Tree, regularizer: Regularizer, future: str = "regularized") -> Stepwise:
    r"""The law of steps that is the optimum in every state, given what comes after it.

    $$p(\cdot \mid s) = \arg\max_p \; \mathbb{E}_p Q(s, \cdot) - \Omega(p; q(\cdot \mid s))$$

    With `future="regularized"`, Q(s, v) is the best value of the state it leads to, and p the
    optimum of E R less the sum over the policy's steps of Omega (the regularized MDP of arXiv
    1901.11275). With `future="reward"`, Q is the expected plain reward to go under p: where a
    penalty in the loss of each token stands still, for it has no part in what earlier tokens earn.
    Where chance moves, Q is the mean under its law, and Omega is of the policy's steps alone.

    Without chance, for reverse KL and Shannon's entropy, which add up along a path, the first is
    `target(tree.bandit, regularizer)`. For all others, Tsallis' entropies among them, a divergence
    of the law of sequences and a sum over steps are two problems.

    Args:
        tree: L sequences.
        regularizer: Omega, any regularizer or sum whose anchors are no tables.
        future: "regularized" or "reward".

    Raises:
        TypeError: an argument of another kind.
        ValueError: an unknown future, or an anchor that is a table: it belongs to one state.

    Examples:
        >>> t = rd.tree([[0], [1, 0], [1, 1]], [0.0, 0.0, 1.0])
        >>> print(stepwise(t, rd.ForwardKL(0.5)).probs.round(4))
        [0.2451 0.1442 0.6107]
        >>> print(rd.target(t.bandit, rd.ForwardKL(0.5)).probs.round(4))
        [0.2113 0.1057 0.683 ]
    """
    check_tree(tree)
    check_regularizer(regularizer)
    check_choice("future", future, FUTURES, "rd.stepwise")
    if any(isinstance(term.anchor, Array) for term in regularizer.terms):
        raise ValueError(
            "an anchor that is a table belongs to one state: in rd.stepwise the anchor of every "
            "state is the reference's own law there, or follows the policy"
        )
    return _recursion(tree, regularizer, future)


@functools.partial(jax.jit, static_argnames="future")
def _recursion(tree: Tree, regularizer: Regularizer, future: str) -> Stepwise:
    """One scan over depths, the deepest first: one solver in the program, whatever the depth."""
    paths, log_ref, reward = tree.paths, tree.log_ref, tree.bandit.reward
    num_states, vocabulary = paths.exists.shape
    log_even, chooses = tree.even(reward.dtype), tree.chooses

    def level(carry: tuple[Array, Array], states: Array) -> tuple[tuple[Array, Array], Any]:
        """The laws of the states of one depth; `num_states` stands for none."""
        q, log_steps = carry
        here = jnp.minimum(states, num_states - 1)
        law, exists, mine = log_ref[here], paths.exists[here], chooses[here]
        rows = jnp.where(exists, q.reshape(num_states, vocabulary)[here], -jnp.inf)
        dead = jnp.all(jnp.isneginf(rows) | jnp.isneginf(law), axis=1)
        asked = jnp.where((dead | ~mine)[:, None] & exists, 0, rows)
        label = jnp.zeros(vocabulary, int)
        best = jax.vmap(lambda r, log_q: target(Bandit(r, log_q, label), regularizer))(asked, law)
        chosen = jnp.where(mine[:, None], best.log_probs, law)
        chosen = jnp.where(dead[:, None], log_even[here], chosen)
        mean = jax.vmap(expect)(chosen, rows)
        worth = jnp.where(mine, best.value, mean) if future == "regularized" else mean
        worth = jnp.where(dead, -jnp.inf, worth)
        parent = jnp.where(states > 0, paths.parent[here], q.shape[0])  # none leads to the root
        parent = jnp.where(states < num_states, parent, q.shape[0])
        q = q.at[parent].set(worth, mode="drop")
        log_steps = log_steps.at[states].set(chosen, mode="drop")
        asks = mine & ~dead & (states < num_states)
        residual = jnp.max(jnp.where(asks, best.residual, 0))
        unique, converged = (jnp.all(x | ~asks) for x in (best.unique, best.converged))
        return (q, log_steps), (worth[0], residual, unique, converged)

    rewards = jnp.zeros(num_states * vocabulary, reward.dtype).at[paths.last].set(reward)
    begin = rewards, jnp.zeros_like(log_ref)
    (q, log_steps), found = jax.lax.scan(level, begin, jnp.asarray(_depths(paths.levels)))
    worth, residual, unique, converged = found
    return Stepwise(
        log_probs=tree.leaves(log_steps),
        log_steps=log_steps,
        values=q.reshape(log_ref.shape),
        value=worth[-1],
        residual=jnp.max(residual),
        unique=jnp.all(unique),
        converged=jnp.all(converged),
    )


def _depths(levels: tuple[int, ...]) -> np.ndarray:
    """The states of each depth, the deepest first, padded with their number."""
    sizes = np.diff(levels)
    place = np.arange(sizes.max())
    states = np.where(place < sizes[:, None], np.asarray(levels[:-1])[:, None] + place, levels[-1])
    return states[::-1]
