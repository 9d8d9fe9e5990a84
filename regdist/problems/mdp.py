"""Small Markov decision processes: every state is a bandit whose actions lead on to other states.

S states, A actions.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from regdist.numerics.logspace import full_precision, normalize
from regdist.numerics.records import (
    Number,
    Table,
    as_array,
    as_number,
    check_kind,
    described,
    is_concrete,
    is_numeric,
    record,
    warn_if_cut,
)


@record
class MDP:
    """A finite Markov decision process; made by `mdp()`.

    Attributes:
        transition: the law of the next state after each action, shape [S, A, S]; rows of 0 where
            there is no next state: in terminal states, and for actions that do not exist.
        reward: R of each action, shape [S, A]; -inf where there is no such action, 0 in terminal
            states.
        discount: what a reward one step later counts, in [0, 1]; at 1 every policy ends.
        log_ref: the reference's law of actions in each state, in nats, shape [S, A].
        start: the probabilities of the first state, shape [S].
        terminal: the states where all has ended, shape [S]. Their value is 0 and nothing is chosen.
    """

    transition: Float[Array, "*batch S A S"]
    reward: Float[Array, "*batch S A"]
    discount: Float[Array, "*batch"]
    log_ref: Float[Array, "*batch S A"]
    start: Float[Array, "*batch S"]
    terminal: Bool[Array, "*batch S"]

    no_bandit: ClassVar[str] = (
        "What its actions are worth hangs on what comes after: "
        "rd.planning.policy_iteration(mdp, regularizer) is the optimum in all states"
    )

    @property
    def num_states(self) -> int:
        """The number of states, S."""
        return self.reward.shape[0]

    @property
    def num_actions(self) -> int:
        """The number of actions, A."""
        return self.reward.shape[1]

    @property
    def exists(self) -> Bool[Array, "S A"]:
        """Which actions there are; none in a terminal state."""
        return ~jnp.isneginf(self.reward) & ~self.terminal[:, None]

    @full_precision
    def action_values(self, value: Float[Array, " S"]) -> Float[Array, "S A"]:
        """Q = R + discount times the mean of `value` over the next state, in units of reward.

        Examples:
            >>> m = rd.mdp([[[0.5, 0.5]], [[0, 1]]], [[1.0], [0.0]], 0.9)
            >>> print(m.action_values(jnp.array([0.0, 2.0])))
            [[1.9]
             [1.8]]
        """
        return self.reward + self.discount * (self.transition @ value)

    @full_precision
    def moves(self, log_probs: Float[Array, "S A"]) -> Float[Array, "S S"]:
        """The probability of each next state under a law of actions, times the discount.

        Examples:
            >>> m = rd.mdp([[[1, 0], [0, 1]], [[0, 1], [1, 0]]], jnp.zeros((2, 2)), 0.5)
            >>> print(m.moves(m.log_ref))
            [[0.25 0.25]
             [0.25 0.25]]
        """
        return self.discount * jnp.einsum("sa,sat->st", jnp.exp(log_probs), self.transition)


def mdp(
    transition: Table,
    reward: Table,
    discount: Number,
    *,
    reference: Table | None = None,
    log_reference: Table | None = None,
    start: Table | None = None,
    terminal: Table | None = None,
) -> MDP:
    """A Markov decision process from its tables.

    Args:
        transition: P(t | s, a), shape [S, A, S], [state, action, next state]. Rows of terminal
            states and of actions that do not exist are not looked at.
        reward: R(s, a), shape [S, A]; -inf where there is no such action.
        discount: in [0, 1). At 1 every policy must come to a terminal state.
        reference: q(a | s), shape [S, A]. Default: even over the actions that exist.
        log_reference: log q instead, in nats.
        start: the probabilities of the first state, shape [S]. Default: even over the states that
            are not terminal.
        terminal: True for states where all has ended, shape [S]. Default: none.

    Raises:
        TypeError: arguments of another kind.
        ValueError: shapes that differ, a row of transition that is no law, a reward that is NaN or
            +inf, a state without actions, a discount outside [0, 1], or of 1 where a policy may go
            on forever, a reference that is no law or takes actions that do not exist; each by the
            state and the action. Values are checked when they are known, that is, not under jit
            or vmap.

    Examples:
        Two states; the second action changes the state.

        >>> stay, change = [[1, 0], [0, 1]], [[0, 1], [1, 0]]
        >>> m = mdp(jnp.array([stay, change]).swapaxes(0, 1), [[0, 0], [1, 0]], 0.9)
        >>> print(rd.planning.policy_iteration(m, rd.ReverseKL(0.5)).probs.round(4))
        [[0.1588 0.8412]
         [0.9751 0.0249]]
    """
    for name, given in (("transition", transition), ("reward", reward)):
        if is_numeric(given):
            warn_if_cut(name, given)
    r = as_array("reward", reward, None)
    r = r if jnp.issubdtype(r.dtype, jnp.floating) else r.astype(float)
    p = as_array("transition", transition, r.dtype)
    _check_shapes(p, r)
    ends = _terminal(terminal, r.shape[:1])
    rate = as_number(discount, "discount").astype(r.dtype)
    if reference is not None and log_reference is not None:
        raise ValueError("give reference or log_reference, not both")
    q, log_q, first, what = None, None, None, "a row of probabilities for each state"
    if reference is not None:
        q = _like("reference", reference, r.shape, r.dtype, what)
    if log_reference is not None:
        what = f"the logarithms of {what}"
        log_q = _like("log_reference", log_reference, r.shape, r.dtype, what)
    if start is not None:
        what = "the probability of each state to be the first"
        first = _like("start", start, r.shape[:1], r.dtype, what)
    _check_values(p, r, rate, q, log_q, first, ends)
    return _made(p, r, rate, q, log_q, first, ends)


@jax.jit
def _made(
    transition: Array,
    reward: Array,
    discount: Array,
    q: Array | None,
    log_q: Array | None,
    start: Array | None,
    terminal: Array,
) -> MDP:
    """The tables, with nothing where nothing is looked at; laws sum to 1 to the last digit."""
    ends = terminal[:, None]
    reward = jnp.where(ends, 0, reward)
    even = jnp.where(jnp.isneginf(reward), -jnp.inf, jnp.zeros_like(reward))
    if q is not None:
        log_q = jnp.where(q > 0, jnp.log(jnp.where(q > 0, q, 1)), -jnp.inf)
    log_ref = even if log_q is None else jnp.where(ends, even, log_q)
    first = jnp.where(terminal, 0, jnp.ones_like(reward[:, 0])) if start is None else start
    taken = jnp.where((jnp.isneginf(reward) | ends)[:, :, None], 0, transition)
    total = jnp.sum(taken, axis=2, keepdims=True)
    return MDP(
        transition=taken / jnp.where(total > 0, total, 1),
        reward=reward,
        discount=discount,
        log_ref=jax.vmap(normalize)(log_ref),
        start=first / jnp.sum(first),
        terminal=terminal,
    )


def check_mdp(mdp: Any) -> None:
    """Refuses what is not one `MDP`.

    Raises:
        TypeError: it is something else.
        ValueError: it is a batch of them.
    """
    check_kind("mdp", mdp, MDP, "Make one: rd.mdp(transition, reward, discount)")
    if np.ndim(mdp.reward) != 2:
        raise ValueError(
            f"mdp must be one problem; got rewards of shape {np.shape(mdp.reward)}. Use jax.vmap"
        )


def check_policy(mdp: MDP, log_probs: Any, where: str) -> Array:
    """A law of actions in each state, in nats.

    Raises:
        TypeError: the MDP is none, or the law not numbers.
        ValueError: another shape; when known, a row that is no law, or that takes an action that
            does not exist. Rows of terminal states are not looked at.
    """
    check_mdp(mdp)
    name = f"log_probs of {where}"
    law = as_array(name, log_probs, None)
    if law.shape != mdp.reward.shape:
        raise ValueError(
            f"{name} must be a row of log-probabilities for each state, shape "
            f"{mdp.reward.shape}; got {law.shape}"
        )
    if is_concrete(law, mdp):
        with np.errstate(over="ignore"):
            chances = np.exp(np.asarray(law))
        lives = ~np.asarray(mdp.terminal)
        _check_laws(name, chances, lives, "log-probabilities in nats; their exponentials")
        _check_taken(name, np.where(lives[:, None], chances, 0), np.asarray(mdp.reward))
    return law.astype(mdp.reward.dtype)


def _like(name: str, given: Any, shape: tuple[int, ...], dtype: Any, what: str) -> Array:
    """What was given, as an array of a shape and a dtype."""
    if is_numeric(given):
        warn_if_cut(name, given)
    values = as_array(name, given, dtype)
    if values.shape != shape:
        raise ValueError(f"{name} must be {what}, shape {shape}; got {values.shape}")
    return values


def _check_shapes(transition: Array, reward: Array) -> None:
    if reward.ndim != 2 or 0 in reward.shape:
        raise ValueError(
            f"reward must have shape [S, A], a row for each state; got {reward.shape}. One that "
            "hangs on the next state counts by its mean, jnp.sum(transition * reward, axis=2)"
        )
    wanted = (*reward.shape, reward.shape[0])
    if transition.shape != wanted:
        raise ValueError(
            f"transition must have shape {wanted}, [state, action, next state], as reward has a "
            f"row of {wanted[1]} actions for each of {wanted[0]} states; got {transition.shape}. "
            "A table with actions first turns by jnp.swapaxes(transition, 0, 1)"
        )


def _terminal(terminal: Table | None, states: tuple[int, ...]) -> Array:
    if terminal is None:
        return jnp.zeros(states, bool)
    mask = as_array("terminal", terminal, None) if is_numeric(terminal) else jnp.zeros(0)
    if mask.dtype != bool or mask.shape != states:
        raise ValueError(
            f"terminal must say True or False for each of {states[0]} states; got "
            f"{described(terminal)}"
        )
    if is_concrete(mask) and np.all(np.asarray(mask)):
        raise ValueError("terminal must leave a state where something is chosen; got all True")
    return mask


def _check_rewards(reward: np.ndarray) -> None:
    for bad, what in ((np.isnan(reward), "NaN"), (np.isposinf(reward), "+inf")):
        if bad.any():
            state, action = map(int, np.argwhere(bad)[0])
            raise ValueError(
                "reward must be real numbers (-inf where there is no such action); got "
                f"{what} in state {state}, action {action}"
            )
    none = np.flatnonzero(np.all(np.isneginf(reward), axis=1))
    if none.size:
        raise ValueError(
            f"reward is -inf for every action of state {none[0]}: there is none to take. If all "
            "ends there, say so in terminal"
        )


def _check_laws(
    name: str, table: np.ndarray, looked: Any = True, kind: str = "probabilities; they"
) -> None:
    """Refuses the first row of a table that is no law, by its state and its action."""
    total = np.asarray(np.sum(table, axis=-1))
    tolerance = float(np.sqrt(np.finfo(table.dtype).eps))
    good = np.all(table >= 0, axis=-1) & (np.abs(total - 1) <= tolerance)
    wrong = np.argwhere(~good & looked)
    if not len(wrong):
        return
    at = tuple(map(int, wrong[0]))
    named = [f"{what} {i}" for what, i in zip(("state", "action"), at, strict=False)]
    place = f", in {', '.join(named)}," if at else ""
    least = f"; the smallest is {table[at].min():.6g}" if table[at].min() < 0 else ""
    raise ValueError(f"{name}{place} must be {kind} must sum to 1, not {total[at]:.10g}{least}")


def _check_taken(name: str, chances: np.ndarray, reward: np.ndarray) -> None:
    """Refuses a law that takes an action that does not exist."""
    taken = np.argwhere((chances > 0) & np.isneginf(reward))
    if taken.size:
        state, action = map(int, taken[0])
        raise ValueError(
            f"{name} gives {chances[state, action]:.6g} to action {action} of state {state}, "
            "which does not exist: its reward is -inf"
        )


def _check_values(
    transition: Array,
    reward: Array,
    discount: Array,
    q: Array | None,
    log_q: Array | None,
    start: Array | None,
    terminal: Array,
) -> None:
    """Refuses tables that are no MDP's, as far as they are known."""
    if discount.ndim != 0:
        raise ValueError(
            f"discount must be a number; got shape {discount.shape}. For a sweep use jax.vmap"
        )
    if is_concrete(discount) and not 0 <= float(discount) <= 1:
        raise ValueError(f"discount must be between 0 and 1; got {float(discount):.10g}")
    if start is not None and is_concrete(start):
        _check_laws("start", np.asarray(start))
    if not is_concrete(reward, terminal):
        return
    lives = ~np.asarray(terminal)
    paid = np.where(lives[:, None], reward, 0)
    _check_rewards(paid)
    exists = lives[:, None] & (paid > -np.inf)
    if is_concrete(transition):
        known = np.where(exists[:, :, None], transition, 0)
        _check_laws("transition", known, exists)
        if is_concrete(discount) and discount == 1:
            _check_ends(known > 0, exists)
    given = log_q if q is None else q
    if given is not None and is_concrete(given):
        name = "log_reference" if q is None else "reference"
        chances = np.exp(np.asarray(given)) if q is None else np.asarray(given)
        _check_laws(name, chances, lives)
        _check_taken(name, np.where(lives[:, None], chances, 0), paid)


def _check_ends(leads: np.ndarray, can: np.ndarray) -> None:
    """Refuses what is not discounted if a policy may go on forever."""
    trap = np.any(can, axis=1)
    while True:  # states that an action keeps among those that are left
        stays = can & ~np.any(leads & ~trap, axis=2)
        left = trap & np.any(stays, axis=1)
        if np.array_equal(left, trap):
            break
        trap = left
    if trap.any():
        state = int(np.argmax(trap))
        raise ValueError(
            f"discount 1 needs every policy to end, but from state {state} one may go on forever: "
            f"action {int(np.argmax(stays[state]))} stays among the states "
            f"{np.flatnonzero(trap).tolist()}. Take a discount below 1, or say in terminal where "
            "all ends"
        )
