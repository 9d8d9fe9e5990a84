"""The paths of a tree: which states and steps there are, and sums along them.

S states (prefixes that go on), V tokens, L leaves (whole sequences), T steps of the longest. A step
is a token in a state; flat it is state V + token. No probabilities: policies and rewards share it.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from regdist.numerics.logspace import log_sum_exp
from regdist.numerics.records import described, record, static

MOST_STEPS = 50_000_000
"""The most steps, states times tokens, that a table is made for: 400 MB in float64."""


@record
class Paths:
    """The index arrays of a tree; made by `paths_of`.

    Attributes:
        steps: the steps of each leaf in order, flat, 0 beyond its end, shape [L, T].
        length: how many there are, shape [L].
        last: the step that ends each leaf, shape [L].
        parent: the step that leads to each state, shape [S]; 0 for the root, which none leads to.
        exists: which steps there are, shape [S, V].
        levels: where the states of each depth begin, and S: states are sorted by depth, then by
            their prefixes.
    """

    steps: Int[Array, "L T"]
    length: Int[Array, " L"]
    last: Int[Array, " L"]
    parent: Int[Array, " S"]
    exists: Bool[Array, "S V"]
    levels: tuple[int, ...] = static()

    def _deeper(self) -> list[tuple[int, int]]:
        """The slices of states of each depth below the root, the shallowest first."""
        return list(itertools.pairwise(self.levels[1:]))

    def upward(
        self,
        leaves: Float[Array, " L"],
        value: Callable[[Array, slice], Array],
        none: float = 0.0,
    ) -> Float[Array, "S V"]:
        """What the states beyond pass up, at each step; one slice of states a depth.

        Args:
            leaves: what the step that ends each leaf has.
            value: from rows of such a table, [n, V], and which states they are, to what those pass
                up, [n].
            none: of steps that do not exist.
        """
        shape = self.exists.shape
        table = jnp.full(shape[0] * shape[1], none, leaves.dtype).at[self.last].set(leaves)
        for first, end in reversed(self._deeper()):
            passed = value(table.reshape(shape)[first:end], slice(first, end))
            table = table.at[self.parent[first:end]].set(passed)
        return table.reshape(shape)

    @jax.jit
    def sums(self, x: Float[Array, " L"]) -> Float[Array, "S V"]:
        """For each step, the sum of x over the leaves beyond it."""
        return self.upward(x, lambda rows, _: jnp.sum(rows, axis=1))

    @jax.jit
    def log_sums(self, log_x: Float[Array, " L"]) -> Float[Array, "S V"]:
        """For each step, log of the sum of x over the leaves beyond it; -inf for no step."""
        return self.upward(log_x, lambda rows, _: jax.vmap(log_sum_exp)(rows), -jnp.inf)

    @jax.jit
    def log_reach(self, log_steps: Float[Array, "S V"]) -> Float[Array, "S V"]:
        """Log-probability that a path takes each step."""
        shape, flat = log_steps.shape, log_steps.reshape(-1)
        for first, end in self._deeper():
            came = flat[self.parent[first:end]]
            rows = flat.reshape(shape)[first:end] + came[:, None]
            flat = jax.lax.dynamic_update_slice(flat, rows.reshape(-1), (first * shape[1],))
        return flat.reshape(shape)

    def to_states(self, table: Float[Array, "S V"], root: float) -> Float[Array, " S"]:
        """What a table has at the step that leads to each state; `root` for the root."""
        return table.reshape(-1)[self.parent].at[0].set(root)

    def along(self, table: Float[Array, "S V"], beyond: float = 0.0) -> Float[Array, "L T"]:
        """What a table has at the steps of each leaf; `beyond` after its end."""
        return jnp.where(self.there, table.reshape(-1)[self.steps], beyond)

    @property
    def there(self) -> Bool[Array, "L T"]:
        """Which entries of `steps` are steps of their leaf."""
        return jnp.arange(self.steps.shape[1], dtype=self.length.dtype) < self.length[:, None]

    @property
    def prefixes(self) -> list[tuple[int, ...]]:
        """The tokens that lead to each state, S tuples; () for the root."""
        vocabulary = self.exists.shape[1]
        known: list[tuple[int, ...]] = [()]
        for step in np.asarray(self.parent)[1:].tolist():
            known.append((*known[step // vocabulary], step % vocabulary))
        return known


def read_sequences(sequences: Any) -> tuple[np.ndarray, np.ndarray]:
    """Tokens, shape [L, T], -1 beyond the end of each sequence, and the lengths, shape [L].

    Raises:
        TypeError: not sequences of integers.
        ValueError: none, an empty one, a token below 0, or one after the end of its sequence.
    """
    if hasattr(sequences, "__array__"):
        token = np.asarray(sequences)
        if token.ndim != 2 or not np.issubdtype(token.dtype, np.integer):
            raise TypeError(
                "sequences must be lists of tokens, integers from 0, or one table of them padded "
                f"with -1, shape [L, T]; got {described(sequences)}"
            )
        length = np.sum(token >= 0, axis=1)
    else:
        listed = [_tokens(i, tokens) for i, tokens in enumerate(_listed(sequences))]
        length = np.array([len(tokens) for tokens in listed], int)
        token = np.full((len(listed), max(length, default=0)), -1)
        for i, tokens in enumerate(listed):
            token[i, : len(tokens)] = tokens
    if not len(token):
        raise ValueError("sequences must have at least one sequence; got none")
    if np.any(length == 0):
        raise ValueError(f"sequence {int(np.argmin(length))} is empty: a leaf has at least a token")
    after = (token >= 0) != (np.arange(token.shape[1]) < length[:, None])
    if np.any(token < -1) or np.any(after):
        wrong = int(np.argmax(np.any((token < -1) | after, axis=1)))
        raise ValueError(
            f"sequence {wrong} is {token[wrong].tolist()}: tokens are integers from 0, and -1 "
            "stands only after the last one"
        )
    return token[:, : int(length.max())], length


def _listed(sequences: Any) -> Iterable[Any]:
    if isinstance(sequences, str | bytes) or not isinstance(sequences, Iterable):
        raise TypeError(
            "sequences must be a list of lists of tokens, integers from 0, such as "
            f"[[0], [1, 0], [1, 1]]; got {described(sequences)}"
        )
    return sequences


def _tokens(i: int, tokens: Any) -> list[int]:
    """One sequence as a list of ints."""
    is_list = isinstance(tokens, Sequence | np.ndarray) and not isinstance(tokens, str | bytes)
    listed: list[Any] = list(tokens) if is_list else [tokens]
    kinds = (int, np.integer)
    if not is_list or any(isinstance(t, bool) or not isinstance(t, kinds) for t in listed):
        raise TypeError(
            f"sequence {i} must be a list of tokens, integers from 0; got {described(tokens)}. "
            "Words become integers by numpy.unique(words, return_inverse=True)[1]"
        )
    if any(t < 0 for t in listed):
        raise ValueError(f"sequence {i}, {list(map(int, listed))}, has a token below 0")
    return [int(t) for t in listed]


def paths_of(token: np.ndarray, length: np.ndarray) -> Paths:
    """The index arrays of sequences; one pass over them for each depth.

    Raises:
        ValueError: a sequence occurs twice or is a prefix of another, or the table of steps has
            more than `MOST_STEPS` entries.
    """
    vocabulary = int(token.max()) + 1
    state, count = np.zeros(len(token), np.int64), 1
    steps, parents, levels = np.zeros(token.shape, np.int64), [np.zeros(1, np.int64)], [0, 1]
    for t in range(token.shape[1]):
        alive, onward = length > t, length > t + 1
        step = state * vocabulary + token[:, t]
        steps[alive, t] = step[alive]
        ends = np.flatnonzero(alive & ~onward)
        fresh, which = np.unique(step[onward], return_inverse=True)
        _check_prefix_free(token, length, step, ends, fresh)
        if fresh.size:
            state[onward] = count + which
            parents.append(fresh)
            count += fresh.size
            levels.append(count)
        if count * vocabulary > MOST_STEPS:
            raise ValueError(
                f"the sequences have at least {count:,} prefixes over {vocabulary:,} tokens; a "
                f"table of steps may have {MOST_STEPS:,} entries. Tokens that do not occur cost as "
                "much as others: number those that do, numpy.unique(tokens, return_inverse=True)[1]"
            )
    exists = np.zeros(count * vocabulary, bool)
    for t in range(token.shape[1]):
        exists[steps[length > t, t]] = True
    small = np.int32 if count * vocabulary < 2**31 else np.int64
    last = steps[np.arange(len(token)), length - 1]
    return Paths(
        steps=jnp.asarray(steps.astype(small)),
        length=jnp.asarray(length.astype(small)),
        last=jnp.asarray(last.astype(small)),
        parent=jnp.asarray(np.concatenate(parents).astype(small)),
        exists=jnp.asarray(exists.reshape(count, vocabulary)),
        levels=tuple(levels),
    )


def _check_prefix_free(
    token: np.ndarray, length: np.ndarray, step: np.ndarray, ends: np.ndarray, fresh: np.ndarray
) -> None:
    """Refuses sequences that end where another ends, or goes on."""
    order = ends[np.argsort(step[ends], kind="stable")]
    twice = np.flatnonzero(np.diff(step[order]) == 0)
    if twice.size:
        first, second = sorted(order[twice[0] : twice[0] + 2].tolist())
        tokens = token[first, : length[first]].tolist()
        raise ValueError(
            f"sequences {first} and {second} are both {tokens}: give each once; rewards of one "
            "sequence that differ by chance are a chance state after it"
        )
    inner = np.flatnonzero(np.isin(step[ends], fresh))
    if inner.size:
        short = int(ends[inner[0]])
        longer = int(np.flatnonzero((length > length[short]) & (step == step[short]))[0])
        raise ValueError(
            f"sequence {short}, {token[short, : length[short]].tolist()}, is a prefix of sequence "
            f"{longer}, {token[longer, : length[longer]].tolist()}: whole sequences end, for "
            "instance with a token that says so"
        )
