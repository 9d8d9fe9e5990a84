"""Trees: sequences of steps, some of them moves of chance, whose leaves are a problem of one step.

S states, V tokens, L leaves, T steps of the longest leaf. Laws of steps are padded tables [S, V] of
log-probabilities in nats, -inf where there is no step: every function of a law over K actions works
on a state by `jax.vmap`, and a bandit is the tree of one state.
"""

import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from regdist.numerics.logspace import expect, log_mean_exp, log_ratio, log_sum_exp
from regdist.numerics.records import (
    Number,
    as_array,
    check_kind,
    check_log_probs,
    is_concrete,
    positive,
    record,
)
from regdist.problems.paths import Paths


@record
class Tree:
    """An enumerated tree of sequences; made by `tree()`.

    Attributes:
        bandit: the leaves as a problem of one step, L actions. Where chance moves they are
            `Outcomes`, which are no bandit: nobody may choose what chance does.
        paths: the index arrays, without probabilities; see `Paths`.
        log_chance: the laws of the states where chance moves, -inf in all others, shape [S, V];
            None where it never does.
        ended: whether each leaf ended by itself; False where it was cut off. Shape [L].
    """

    bandit: Any
    paths: Paths
    log_chance: Float[Array, "*batch S V"] | None
    ended: Bool[Array, " L"]

    no_bandit: ClassVar[str] = (
        "Give tree.bandit, its whole sequences as actions; rd.stepwise(tree, regularizer) is the "
        "optimum of the sum over its steps"
    )

    @property
    def num_leaves(self) -> int:
        """The number of whole sequences, L."""
        return self.paths.length.shape[0]

    @property
    def num_states(self) -> int:
        """The number of prefixes that go on, S."""
        return self.paths.exists.shape[0]

    @property
    def prefixes(self) -> list[tuple[int, ...]]:
        """The tokens that lead to each state, the root's () first."""
        return self.paths.prefixes

    @property
    def length(self) -> Array:
        """The number of steps of each leaf, shape [L]."""
        return self.paths.length

    @property
    def chooses(self) -> Bool[Array, " S"]:
        """The states where the policy moves; in the others chance does."""
        if self.log_chance is None:
            return jnp.ones(self.num_states, bool)
        return jnp.all(jnp.isneginf(self.log_chance), axis=1)

    @property
    def forbidden(self) -> Bool[Array, "S V"]:
        """The steps beyond which every sequence is forbidden (reward -inf)."""
        allowed = jnp.where(jnp.isneginf(self.bandit.reward), 0.0, 1.0)
        return self.paths.exists & (self.paths.sums(allowed) == 0)

    @property
    def log_ref(self) -> Float[Array, "S V"]:
        """The reference's law of steps, and chance's own, in nats."""
        return _log_ref(self)

    @property
    def possible(self) -> Bool[Array, "S V"]:
        """The steps that exist and are not forbidden; in a state where all are, those that exist.

        The policy never comes to such a state.
        """
        open_steps = self.paths.exists & ~self.forbidden
        return jnp.where(jnp.any(open_steps, axis=1, keepdims=True), open_steps, self.paths.exists)

    def leaves(self, log_steps: Float[Array, "S V"]) -> Float[Array, " L"]:
        """The law of whole sequences under a law of steps: sums along paths.

        Examples:
            >>> t = rd.tree([[0], [1, 0], [1, 1]], [0.0, 0.0, 1.0])
            >>> print(jnp.exp(t.leaves(t.log_ref)))
            [0.5  0.25 0.25]
        """
        log_steps = check_steps(self, log_steps, "tree.leaves(log_steps)")
        return _leaves(self.paths, log_steps)

    def conditionals(self, log_leaves: Float[Array, " L"]) -> Float[Array, "S V"]:
        """The law of steps under a law of whole sequences: what goes on by each step.

        A state that the law never visits has none: there it is even over the steps that exist,
        and chance's own where chance moves.

        Examples:
            >>> t = rd.tree([[0], [1, 0], [1, 1]], [0.0, 0.0, 1.0])
            >>> print(jnp.exp(t.conditionals(jnp.log(jnp.array([0.2, 0.4, 0.4])))))
            [[0.2 0.8]
             [0.5 0.5]]
        """
        where = "tree.conditionals(log_leaves)"
        log_leaves = check_log_probs("log_leaves", log_leaves, where, self.num_leaves)
        return _conditionals(self, log_leaves)

    def even(self, dtype: Any = float) -> Float[Array, "S V"]:
        """The law that takes all steps of a state alike, and chance's own where chance moves."""
        return _even(self, dtype)

    def with_chance(self, log_steps: Float[Array, "S V"]) -> Float[Array, "S V"]:
        """A law of steps with chance's own where chance moves."""
        if self.log_chance is None:
            return log_steps
        return jnp.where(self.chooses[:, None], log_steps, self.log_chance.astype(log_steps.dtype))

    def log_visits(self, log_steps: Float[Array, "S V"]) -> Float[Array, " S"]:
        """Log-probability that a path comes to each state; 0 for the root.

        Examples:
            >>> t = rd.tree([[0], [1, 0], [1, 1]], [0.0, 0.0, 1.0])
            >>> print(jnp.exp(t.log_visits(t.log_ref)))
            [1.  0.5]
        """
        log_steps = check_steps(self, log_steps, "tree.log_visits(log_steps)")
        return _log_visits(self.paths, log_steps)

    def values(self, log_steps: Float[Array, "S V"]) -> Float[Array, "S V"]:
        """Q: the expected reward of a law after each step, shape [S, V]; 0 where there is none.

        Examples:
            >>> t = rd.tree([[0], [1, 0], [1, 1]], [0.0, 0.0, 1.0])
            >>> print(t.values(t.log_ref))
            [[0.  0.5]
             [0.  1. ]]
        """
        log_steps = check_steps(self, log_steps, "tree.values(log_steps)")
        return _values(self, log_steps)

    def soft_values(self, beta: Number) -> Float[Array, "S V"]:
        r"""Q of the optimum of reverse KL after each step: what a soft Bellman recursion passes up.

        $$Q(s, v) = \beta \log \sum_w q(w \mid sv) \, e^{Q(sv, w) / \beta}$$

        where the policy moves, the mean under chance's law where chance does, and the reward at a
        leaf, in units of reward. Without chance it is beta log E_q[e^{R/beta} | the prefix]. Where
        the reference never comes, q is even.

        Args:
            beta: above 0.

        Examples:
            >>> t = rd.tree([[0], [1, 0], [1, 1]], [0.0, 0.0, 1.0])
            >>> print(t.soft_values(0.5).round(4))
            [[0.     0.7169]
             [0.     1.    ]]
        """
        beta = positive("beta", beta, "It is the coefficient of rd.ReverseKL(beta)")
        return _soft_values(self, beta.astype(self.bandit.reward.dtype))

    def process_rewards(self, log_steps: Float[Array, "S V"], beta: Number) -> Float[Array, "S V"]:
        r"""The implicit reward of each step, beta log(p/q), in units of reward, shape [S, V].

        $$r(s, v) = \beta \log \frac{p(v \mid s)}{q(v \mid s)}$$

        At the optimum of reverse KL it is Q(s, v) less the soft value of s; along a path it adds up
        to R less the value of the root (arXiv 2412.01981). 0 where chance moves and where there is
        no step.

        Examples:
            >>> t = rd.tree([[0], [1, 0], [1, 1]], [0.0, 0.0, 1.0])
            >>> best = rd.target(t.bandit, rd.ReverseKL(0.5))
            >>> print(t.process_rewards(t.conditionals(best.log_probs), 0.5).round(4))
            [[-0.4772  0.2397]
             [-0.7169  0.2831]]
        """
        beta = positive("beta", beta, "It is the coefficient of rd.ReverseKL(beta)")
        log_steps = check_steps(self, log_steps, "tree.process_rewards(log_steps, beta)")
        real = self.paths.exists & self.chooses[:, None]
        return jnp.where(real, beta.astype(log_steps.dtype) * log_ratio(log_steps, self.log_ref), 0)


# What a tree is asked is one program each: op by op, every depth would compile its own slices.
@jax.jit
def _log_ref(tree: Tree) -> Float[Array, "S V"]:
    return tree.with_chance(tree.conditionals(tree.bandit.log_ref))


@jax.jit
def _leaves(paths: Paths, log_steps: Float[Array, "S V"]) -> Float[Array, " L"]:
    return paths.log_reach(log_steps).reshape(-1)[paths.last]


@jax.jit
def _conditionals(tree: Tree, log_leaves: Float[Array, " L"]) -> Float[Array, "S V"]:
    below = tree.paths.log_sums(log_leaves)
    total = jax.vmap(log_sum_exp)(below)
    never = jnp.isneginf(total)[:, None]
    steps = jnp.where(never, 0, below) - jnp.where(never, 0, total[:, None])
    return jnp.where(never, tree.even(log_leaves.dtype), steps)


@functools.partial(jax.jit, static_argnames="dtype")
def _even(tree: Tree, dtype: Any) -> Float[Array, "S V"]:
    exists = tree.paths.exists
    count = jnp.sum(exists, axis=1, keepdims=True).astype(dtype)
    return tree.with_chance(jnp.where(exists, -jnp.log(count), -jnp.inf))


@jax.jit
def _log_visits(paths: Paths, log_steps: Float[Array, "S V"]) -> Float[Array, " S"]:
    return paths.to_states(paths.log_reach(log_steps), 0.0)


@jax.jit
def _values(tree: Tree, log_steps: Float[Array, "S V"]) -> Float[Array, "S V"]:
    def mean(rows: Array, states: slice) -> Array:
        return jax.vmap(expect)(log_steps[states], rows)

    return tree.paths.upward(tree.bandit.reward, mean)


@jax.jit
def _soft_values(tree: Tree, beta: Float[Array, ""]) -> Float[Array, "S V"]:
    log_ref, chooses = tree.log_ref, tree.chooses

    def soft(rows: Array, states: slice) -> Array:
        chosen = beta * jax.vmap(log_mean_exp)(log_ref[states], rows / beta)
        if tree.log_chance is None:
            return chosen
        mean = jax.vmap(expect)(log_ref[states], rows)
        return jnp.where(chooses[states], chosen, mean)

    return tree.paths.upward(tree.bandit.reward, soft)


def check_tree(tree: Any) -> None:
    """Refuses what is not a `Tree`.

    Raises:
        TypeError: it is something else.
    """
    check_kind("tree", tree, Tree, "Make one: rd.tree(sequences, reward)")


def check_steps(tree: Tree, log_steps: Any, where: str, name: str = "log_steps") -> Array:
    """A law of steps of a tree, as an array.

    Raises:
        TypeError: the tree is none, or the law not numbers.
        ValueError: another shape; when known, a row of the policy that does not sum to 1, a step
            that does not exist, or a row of chance that is not chance's own.
    """
    check_tree(tree)
    exists = tree.paths.exists
    steps = as_array(f"{name} of {where}", log_steps, None)
    if steps.shape != exists.shape:
        raise ValueError(
            f"{name} of {where} must be a law of steps, a row for each state, shape "
            f"{exists.shape}; got {steps.shape}. tree.conditionals(log_probs) makes one of a law "
            "of whole sequences"
        )
    if is_concrete(steps, exists):
        refuse_rows(tree, np.asarray(steps), f"{name} of {where}")
    return steps


def refuse_rows(tree: Tree, known: np.ndarray, name: str) -> None:
    """Refuses a table that is no law of steps, by the prefix of the first wrong state."""
    exists, moved = np.asarray(tree.paths.exists), np.zeros(len(known), bool)
    tolerance = float(np.sqrt(np.finfo(known.dtype).eps))
    with np.errstate(over="ignore"):
        total = np.sum(np.exp(known), axis=1)
    off = ~(np.abs(total - 1) <= tolerance)
    stray = ~exists & (known > -np.inf)
    if tree.log_chance is not None:
        away = np.abs(np.exp(known) - np.exp(np.asarray(tree.log_chance))).max(axis=1)
        moved = ~np.asarray(tree.chooses) & ~(away <= tolerance)
    wrong = np.flatnonzero(off | np.any(stray, axis=1) | moved)
    if not wrong.size:
        return
    state = int(wrong[0])
    place = f"{name}, at the prefix {tree.prefixes[state]},"
    if off[state]:
        raise ValueError(
            f"{place} must be log-probabilities in nats; their exponentials sum to "
            f"{total[state]:.10g}"
        )
    if np.any(stray[state]):
        raise ValueError(
            f"{place} has token {int(np.argmax(stray[state]))}, which no sequence has there: it "
            "must be -inf"
        )
    raise ValueError(f"{place} moves chance: the row there must be tree.log_chance's own")
