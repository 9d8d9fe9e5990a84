"""Making trees: from sequences, rewards, a reference and what chance does."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from regdist.numerics.logspace import normalize
from regdist.numerics.records import (
    Table,
    as_array,
    check_kind,
    described,
    is_concrete,
    is_numeric,
)
from regdist.problems.bandit import Outcomes, bandit
from regdist.problems.paths import Paths, paths_of, read_sequences
from regdist.problems.tree import Tree, refuse_rows


def tree(
    sequences: Any,
    reward: Table,
    *,
    reference: Table | None = None,
    log_reference: Table | None = None,
    step_log_reference: Table | None = None,
    chance: Mapping[tuple[int, ...], Any] | None = None,
    ended: Table | None = None,
    label: Table | None = None,
) -> Tree:
    """A tree from its whole sequences.

    States are the prefixes that go on, sorted by depth and then by their tokens, the root first;
    `prefixes` lists them.

    Args:
        sequences: L lists of tokens, integers from 0, none a prefix of another; or one table of
            them padded with -1, shape [L, T]. They must be known, not traced.
        reward: R of each, shape [L]; -inf forbids one.
        reference: q, probabilities of whole sequences, shape [L]. Default: uniform at every step.
        log_reference: log q of whole sequences instead, in nats.
        step_log_reference: log q of steps instead, in nats, shape [S, V], -inf where there is no
            step. What it says of states where chance moves is not used.
        chance: states whose law is given and not moved, such as what a tool answers: from the
            tokens of a prefix, () for the root, to the probabilities of its tokens, as
            {token: probability} or a table of V.
        ended: False for sequences that were cut off, shape [L]. Default: all ended.
        label: which answer each sequence stands for, as in `rd.bandit`.

    Raises:
        TypeError: arguments of another kind.
        ValueError: a sequence that is empty, occurs twice or is a prefix of another; a chance law
            of no state, that does not sum to 1, or that goes where no sequence does; a reference
            that moves chance; more than one reference; and what `rd.bandit` refuses.

    Examples:
        >>> t = tree([[0], [1, 0], [1, 1]], [0.0, 0.0, 1.0])
        >>> t.prefixes
        [(), (1,)]
        >>> print(jnp.exp(t.log_ref))
        [[0.5 0.5]
         [0.5 0.5]]
        >>> print(rd.target(t.bandit, rd.ReverseKL(0.5)).probs.round(4))
        [0.1925 0.0963 0.7112]

        A tool that fails one time in ten: after token 1, chance moves.

        >>> t = tree([[0], [1, 0], [1, 1]], [0.4, 0.0, 1.0], chance={(1,): {0: 0.1, 1: 0.9}})
        >>> print(rd.stepwise(t, rd.ReverseKL(0.5)).probs.round(4))
        [0.2689 0.0731 0.658 ]
    """
    token, length = read_sequences(sequences)
    paths = paths_of(token, length)
    references = {
        "reference": reference,
        "log_reference": log_reference,
        "step_log_reference": step_log_reference,
    }
    given = [name for name, table in references.items() if table is not None]
    if len(given) > 1:
        raise ValueError(f"give one reference at most; got {' and '.join(given)}")
    size = len(length)
    if np.shape(rewards := as_array("reward", reward, None)) != (size,):
        raise ValueError(
            f"reward must have shape ({size},), one for each sequence; got {rewards.shape}"
        )
    law = None if chance is None else _chance_laws(paths, chance)
    rough = Tree(None, paths, law, _ended(ended, size))
    if reference is not None or log_reference is not None:
        leaves = bandit(reward, reference, log_reference=log_reference, label=label)
        if law is None:
            return dataclasses.replace(rough, bandit=leaves)
        steps = rough.conditionals(leaves.log_ref)
        _check_chance_kept(rough, leaves.log_ref, given[0])
    elif step_log_reference is not None:
        steps = _step_reference(rough, step_log_reference)
    else:
        steps = rough.even()
    log_leaves = rough.leaves(rough.with_chance(steps))
    leaves = bandit(reward, log_reference=log_leaves, label=label)
    if law is not None:
        leaves = Outcomes(leaves.reward, leaves.log_ref, leaves.label)
    return dataclasses.replace(rough, bandit=leaves)


def _ended(ended: Table | None, size: int) -> Array:
    if ended is None:
        return jnp.ones(size, bool)
    known = np.asarray(ended) if is_numeric(ended) else np.zeros(0)
    if known.dtype != bool or known.shape != (size,):
        raise ValueError(
            f"ended must say True or False for each of {size} sequences; got {described(ended)}"
        )
    return jnp.asarray(known)


def _chance_laws(paths: Paths, chance: Mapping[tuple[int, ...], Any]) -> Array | None:
    """The laws of chance as a table of steps, -inf where the policy moves; None for no law."""
    check_kind("chance", chance, Mapping, "Such as {(1,): {0: 0.1, 1: 0.9}}, by prefixes")
    if not chance:
        return None
    states = {prefix: state for state, prefix in enumerate(paths.prefixes)}
    exists = np.asarray(paths.exists)
    laws = np.full(exists.shape, -np.inf)
    for prefix, given in chance.items():
        tokens = tuple(prefix) if isinstance(prefix, Sequence) else (prefix,)
        if tokens not in states:
            raise ValueError(
                f"chance has a law at the prefix {prefix!r}, after which no sequence goes on; a "
                "prefix is a tuple of tokens, () for the root"
            )
        place, state = f"the chance law at the prefix {tokens}", states[tokens]
        law = _probabilities(place, given, exists.shape[1])
        if np.any(law[~exists[state]] > 0):
            token = int(np.argmax((law > 0) & ~exists[state]))
            raise ValueError(
                f"{place} gives {law[token]:.6g} to token {token}, but no sequence has it there"
            )
        if abs(law.sum() - 1) > rounding():
            raise ValueError(f"{place} must sum to 1; it sums to {law.sum():.10g}")
        with np.errstate(divide="ignore"):
            laws[state] = np.log(law / law.sum())
    return jnp.asarray(laws, float)


def rounding() -> float:
    """How far a sum of probabilities may be from 1: the root of epsilon of jax's usual floats."""
    return float(np.sqrt(jnp.finfo(jnp.asarray(0.0).dtype).eps))


def _probabilities(place: str, given: Any, vocabulary: int) -> np.ndarray:
    """One chance law over all tokens."""
    law = np.zeros(vocabulary)
    if isinstance(given, Mapping):
        for token, probability in given.items():
            if token not in range(vocabulary):
                raise ValueError(f"{place} names token {token!r}; tokens are 0 to {vocabulary - 1}")
            law[token] = as_array(place, probability)
    else:
        table = np.asarray(as_array(place, given))
        if table.shape != law.shape:
            raise ValueError(
                f"{place} must be {{token: probability}} or a table of {vocabulary}; got shape "
                f"{table.shape}"
            )
        law = table
    if not np.all((law >= 0) & (law <= 1)):
        raise ValueError(f"{place} must be probabilities, between 0 and 1; got {law.tolist()}")
    return law


def _step_reference(rough: Tree, given: Table) -> Array:
    """A reference given by steps, each row to the last digit."""
    steps, exists = as_array("step_log_reference", given), rough.paths.exists
    if steps.shape != exists.shape:
        raise ValueError(
            "step_log_reference must be a row of log-probabilities for each state, one for each "
            f"token, shape {exists.shape}; got {steps.shape}. States are "
            "sorted by depth, then by their tokens: rd.tree(sequences, reward).prefixes lists them"
        )
    steps = rough.with_chance(steps)
    if is_concrete(steps):
        refuse_rows(rough, np.asarray(steps), "step_log_reference")
    return jax.vmap(normalize)(steps)


def _check_chance_kept(rough: Tree, log_leaves: Array, name: str) -> None:
    """Refuses a reference of whole sequences that moves chance."""
    if not is_concrete(log_leaves):
        return
    plain = dataclasses.replace(rough, log_chance=None)
    raw = plain.conditionals(log_leaves)
    visited = np.asarray(jnp.exp(plain.log_visits(raw))) > 0
    off = np.abs(np.exp(np.asarray(raw)) - np.exp(np.asarray(rough.with_chance(raw)))).max(axis=1)
    wrong = np.flatnonzero(visited & (off > float(np.sqrt(jnp.finfo(raw.dtype).eps))))
    if wrong.size:
        raise ValueError(
            f"{name} moves chance: at the prefix {rough.prefixes[int(wrong[0])]} its law of the "
            f"next token differs from the chance law by {off[wrong[0]]:.3g}. Give "
            "step_log_reference, which speaks of the policy's states alone"
        )
