"""A Markov decision process of a few steps as a tree of its trajectories. S states, A actions."""

import numpy as np
from jax import Array
from jax import numpy as jnp
from jaxtyping import Float, Int

from regdist.numerics.records import check_count, is_concrete, record
from regdist.problems.grow import tree
from regdist.problems.mdp import MDP, check_mdp, check_policy
from regdist.problems.tree import Tree

MOST_TRAJECTORIES = 100_000
"""The most trajectories that are listed."""


@record
class Unrolled:
    """A tree of trajectories; made by `unroll()`. N is the number of the tree's states.

    Attributes:
        tree: tokens are actions where the policy moves, and next states where chance does; S says
            that the discount has ended it.
        mdp: what it was made of.
        state: the state of the MDP at each prefix, -1 where chance moves, shape [N].
    """

    tree: Tree
    mdp: MDP
    state: Int[Array, " N"]

    def lift(self, log_probs: Float[Array, "S A"]) -> Float[Array, "N V"]:
        """The law of the tree's steps under a law of the MDP's actions, in nats.

        `tree.leaves` of it is the law of whole trajectories.

        Raises:
            TypeError: not numbers.
            ValueError: another shape, a row that is no law, or that takes an action that does not
                exist.

        Examples:
            >>> m = rd.mdp([[[1, 0], [0, 1]], [[0, 1], [1, 0]]], [[0, 0], [1, 0]], 0.9)
            >>> u = rd.planning.unroll(m, 2)
            >>> print(u.tree.num_leaves, jnp.exp(u.tree.leaves(u.lift(m.log_ref)))[:3])
            12 [0.1125 0.1125 0.025 ]
        """
        law = check_policy(self.mdp, log_probs, "unrolled.lift(log_probs)")
        exists = self.tree.paths.exists
        wide = jnp.pad(law, ((0, 0), (0, exists.shape[1])), constant_values=-jnp.inf)
        rows = jnp.where(exists, wide[self.state][:, : exists.shape[1]], -jnp.inf)
        return self.tree.with_chance(rows)


def unroll(mdp: MDP, steps: int) -> Unrolled:
    """The trajectories of a number of steps, as a tree of actions and of what chance answers.

    The discount is the chance of going on: after each action but the last it ends with probability
    1 - discount, and the reward of a sequence is the plain sum along it. So a mean over sequences
    is a discounted return, and `rd.stepwise(unrolled.tree, regularizer)` is as many steps of value
    iteration from V = 0. Where several states may come first, chance moves at the root.

    Args:
        mdp: S states, A actions, all its tables known, not traced.
        steps: the most actions of a trajectory; fewer where it comes to a terminal state.

    Raises:
        TypeError: it is no MDP.
        ValueError: steps that are no count, traced tables, a start where all has ended, or more
            than `MOST_TRAJECTORIES` trajectories.

    Examples:
        >>> m = rd.mdp([[[1, 0], [0, 1]], [[0, 1], [1, 0]]], [[0, 0], [1, 0]], 0.9, start=[1, 0])
        >>> u = unroll(m, 2)
        >>> print(rd.stepwise(u.tree, rd.ReverseKL(0.5)).value.round(4))
        0.4202
        >>> T = lambda v: rd.planning.bellman(m, rd.ReverseKL(0.5), v).value
        >>> print(T(T(jnp.zeros(2)))[0].round(4))
        0.4202
    """
    check_mdp(mdp)
    check_count("steps", steps)
    if not is_concrete(mdp):
        raise ValueError("mdp must be known, not traced, to be unrolled: call it outside jax.jit")
    ends, exists, first = (np.asarray(x) for x in (mdp.terminal, mdp.exists, mdp.start))
    if not np.any(first[~ends] > 0):
        raise ValueError("all has ended in every state that start can take: nothing to unroll")
    law = _outcomes(mdp)
    _check_size(law > 0, ends, exists, first > 0, steps)
    reward = np.asarray(mdp.reward)
    paid: dict[tuple[int, ...], float] = {}
    chance: dict[tuple[int, ...], dict[int, float]] = {}
    states: dict[tuple[int, ...], int] = {}
    root = np.flatnonzero(first > 0).tolist()
    if len(root) > 1:
        chance[()] = {s: float(first[s]) for s in root}
    going: list[tuple[tuple[int, ...], int, float, int]]
    going = [((s,) if len(root) > 1 else (), s, 0.0, steps) for s in root]
    while going:
        prefix, s, earned, left = going.pop()
        if s == len(ends) or ends[s] or not left:
            paid[prefix] = earned
            continue
        states[prefix] = s
        for a in np.flatnonzero(exists[s]).tolist():
            taken, gain = (*prefix, a), earned + float(reward[s, a])
            if left == 1:
                going.append((taken, s, gain, 0))
                continue
            chance[taken] = {t: float(law[s, a, t]) for t in np.flatnonzero(law[s, a]).tolist()}
            going.extend(((*taken, t), t, gain, left - 1) for t in chance[taken])
    return _planted(mdp, paid, chance, states)


def _planted(
    mdp: MDP,
    paid: dict[tuple[int, ...], float],
    chance: dict[tuple[int, ...], dict[int, float]],
    states: dict[tuple[int, ...], int],
) -> Unrolled:
    """The tree, with the reference of the MDP."""
    inner = sorted({*chance, *states}, key=lambda prefix: (len(prefix), prefix))
    state = jnp.asarray([states.get(prefix, -1) for prefix in inner])
    leaves = sorted(paid)
    reward = jnp.asarray([paid[leaf] for leaf in leaves], mdp.reward.dtype)
    rough = Unrolled(tree(leaves, reward, chance=chance), mdp, state)
    steps = rough.lift(mdp.log_ref)
    return Unrolled(tree(leaves, reward, step_log_reference=steps, chance=chance), mdp, state)


def _outcomes(mdp: MDP) -> np.ndarray:
    """The law of the next state, the last of which is the end by discount, [S, A, S + 1]."""
    transition, discount = np.asarray(mdp.transition), float(mdp.discount)
    ended = np.sum(transition, axis=2, keepdims=True) * (1 - discount)
    return np.concatenate([discount * transition, ended], axis=2)


def _check_size(
    leads: np.ndarray, ends: np.ndarray, exists: np.ndarray, first: np.ndarray, steps: int
) -> None:
    """Refuses more trajectories than are listed; a trajectory more makes none fewer."""
    going = np.where(ends, 1, np.sum(exists, axis=1)).astype(object)
    for k in range(1, steps + 1):
        if k > 1:
            onward = np.sum(leads * np.append(going, 1), axis=2)
            going = np.where(ends, 1, np.sum(onward * exists, axis=1))
        count = int(np.sum(going[first]))
        if count > MOST_TRAJECTORIES:
            raise ValueError(
                f"steps={steps} are too many to list: there are {count:,} trajectories of {k}; at "
                f"most {MOST_TRAJECTORIES:,} are listed. rd.planning.value_iteration needs no list"
            )
