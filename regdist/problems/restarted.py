"""Rollouts that begin at a prefix: one tree of all starts, whose copies share their parameters.

S states, V tokens, L leaves.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from regdist.numerics.records import check_kind
from regdist.policies.shared import Tied
from regdist.problems.grow import tree as make_tree
from regdist.problems.tree import Tree, check_tree


class Restarts(NamedTuple):
    """A tree of rollouts from several starts.

    Attributes:
        tree: chance takes the start at its root, then a copy of the tree goes on from there.
        policy: one logit for each step of the tree that was given, in all copies.
        params: the parameters of its reference, flat, shape [S V].
    """

    tree: Tree
    policy: Tied
    params: Array


def restarts(tree: Tree, shares: Mapping[tuple[int, ...], float]) -> Restarts:
    """Rollouts that begin at prefixes, each with a share of them; () is the root.

    What comes before a start is given, as a prompt is: it is not sampled and no gradient reaches
    it. With shares by the entropy of states these are rollouts that fork where the policy is
    undecided. The samples of a group are of all starts; one start alone is a share of 1.

    Args:
        tree: L sequences, chance and all.
        shares: from the tokens of a prefix after which the policy or chance goes on to a number
            above 0; they are made to sum to 1.

    Raises:
        TypeError: no tree, or no mapping.
        ValueError: no prefix after which sequences go on, or shares that are none.

    Examples:
        >>> t = rd.tree([[0], [1, 0], [1, 1]], [0.0, 0.0, 1.0])
        >>> halves = restarts(t, {(): 0.5, (1,): 0.5})
        >>> method = rd.methods.reinforce()
        >>> step = rd.field(method, halves.params, halves.tree, policy=halves.policy)
        >>> print(step.reshape(2, 2))  # the second step is pushed from both starts
        [[-0.0625  0.0625]
         [-0.1875  0.1875]]
    """
    check_tree(tree)
    check_kind("shares", shares, Mapping, "Such as {(): 0.5, (1,): 0.5}, by prefixes")
    prefixes = {prefix: state for state, prefix in enumerate(tree.prefixes)}
    starts = [tuple(start) for start in shares]
    weights = np.asarray([float(x) for x in shares.values()])
    strange = [start for start in starts if start not in prefixes]
    if strange or not starts:
        what = f"{strange[0]} is none" if strange else "got no prefix"
        raise ValueError(f"shares must be by prefixes after which sequences go on; {what}")
    if not (np.all(np.isfinite(weights)) and np.all(weights > 0)):
        raise ValueError(f"shares must be above 0; got {dict(shares)}")
    sequences, leaves = [], []
    for k, start in enumerate(starts):
        for leaf, tokens in enumerate(_sequences(tree)):
            if tokens[: len(start)] == start:
                sequences.append((k, *tokens[len(start) :]))
                leaves.append(leaf)
    chance: dict[tuple[int, ...], Any] = {(): dict(enumerate(weights / weights.sum()))}
    law = np.exp(np.asarray(tree.log_ref))
    laws, chooses = {}, np.asarray(tree.chooses)
    for k, start in enumerate(starts):
        for prefix, state in prefixes.items():
            if prefix[: len(start)] == start:
                laws[(k, *prefix[len(start) :])] = state
    for prefix, state in laws.items():
        if not chooses[state]:
            exists = np.flatnonzero(np.asarray(tree.paths.exists)[state])
            chance[prefix] = {int(v): float(law[state, v]) for v in exists}
    rough = make_tree(sequences, np.zeros(len(leaves)), chance=chance)
    vocabulary, wide = law.shape[1], rough.paths.exists.shape[1]
    of = [laws.get(prefix, 0) for prefix in rough.prefixes]
    token = np.minimum(np.arange(wide), vocabulary - 1)
    member = np.asarray(of)[:, None] * vocabulary + token
    log_ref = np.asarray(tree.log_ref)
    steps = np.where(rough.paths.exists, log_ref.reshape(-1)[member], -np.inf)
    whole = make_tree(
        sequences,
        tree.bandit.reward[jnp.asarray(leaves)],
        step_log_reference=steps,
        chance=chance,
        ended=np.asarray(tree.ended)[leaves],
        label=tree.bandit.label[jnp.asarray(leaves)],
    )
    params = jnp.where(tree.paths.exists, tree.log_ref, 0).reshape(-1)
    return Restarts(whole, Tied(member), params)


def _sequences(tree: Tree) -> list[tuple[int, ...]]:
    """The tokens of each leaf."""
    vocabulary = tree.paths.exists.shape[1]
    steps, length = np.asarray(tree.paths.steps), np.asarray(tree.paths.length)
    return [tuple((row[:n] % vocabulary).tolist()) for row, n in zip(steps, length, strict=True)]
