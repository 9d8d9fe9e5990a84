"""A bandit: K outcomes with rewards, a reference policy, and the answer each outcome stands for."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from regdist.numerics.logspace import normalize
from regdist.numerics.records import (
    Table,
    as_array,
    check_kind,
    described,
    is_concrete,
    is_numeric,
    record,
    warn_if_cut,
)

Function = TypeVar("Function", bound=Callable[..., Any])


@record
class Bandit:
    """A one-step problem over K actions; made by `bandit()`.

    Attributes:
        reward: R, shape [K], real; -inf forbids an action.
        log_ref: log q, the reference policy in nats, normalized, shape [K]; -inf is off support.
        label: the answer each action stands for, ints in [0, K), shape [K].
    """

    reward: Float[Array, "*batch K"]
    log_ref: Float[Array, "*batch K"]
    label: Int[Array, "*batch K"]

    @property
    def num_actions(self) -> int:
        """The number of actions, K."""
        return self.reward.shape[-1]


@record
class Outcomes:
    """The leaves of a tree where chance moves: like a `Bandit`, but nobody may choose among them.

    Attributes:
        reward: R, shape [L], real; -inf forbids an outcome.
        log_ref: the reference's law of outcomes, what chance does included, shape [L].
        label: the answer each outcome stands for, ints in [0, L), shape [L].
    """

    reward: Float[Array, "*batch L"]
    log_ref: Float[Array, "*batch L"]
    label: Int[Array, "*batch L"]

    no_bandit: ClassVar[str] = (
        "Chance moves in their tree, and a law over them would choose what it does: "
        "rd.stepwise(tree, regularizer) is the optimum of the policy's own steps"
    )

    @property
    def num_actions(self) -> int:
        """The number of outcomes, L."""
        return self.reward.shape[-1]


def check_bandit(bandit: Any) -> None:
    """Refuses what is not a `Bandit`.

    Raises:
        TypeError: it is something else; says what to call instead.
        ValueError: it is a batch of problems.
    """
    advice = getattr(bandit, "no_bandit", "Make one: rd.bandit(reward, reference)")
    check_kind("bandit", bandit, Bandit, advice)
    shape = np.shape(bandit.reward)
    if len(shape) != 1:
        raise ValueError(f"bandit must be one problem; got rewards of shape {shape}. Use jax.vmap")


def takes_bandit(fn: Function) -> Function:
    """Lets a function of a bandit refuse anything else as its first argument."""

    @functools.wraps(fn)
    def call(bandit: Any, *args: Any, **kwargs: Any) -> Any:
        check_bandit(bandit)
        return fn(bandit, *args, **kwargs)

    return cast(Function, call)


def bandit(
    reward: Table,
    reference: Table | None = None,
    *,
    log_reference: Table | None = None,
    label: Table | None = None,
) -> Bandit:
    """A bandit problem from rewards and a reference policy.

    Args:
        reward: R, shape [K]. Integers become floats; float32 stays float32. -inf forbids an action.
        reference: q, probabilities that sum to 1, shape [K]. Default: uniform.
        log_reference: log q in nats, instead of `reference`, for probabilities too small for a
            float; -inf is allowed.
        label: which answer each action stands for, ints in [0, K), shape [K]: several actions may
            share one. Default: each its own.

    Returns:
        A `Bandit` whose reference sums to 1 to the last digit (it must do so to
        sqrt(machine epsilon) as given).

    Raises:
        ValueError: NaN or +inf reward, no finite reward where the reference has mass, a reference
            with negative entries or another sum, shapes that differ, an empty table, bad labels.
            Values are checked when they are known, that is, not under jit or vmap.

    Examples:
        >>> b = bandit([1, 0, 0], [0.2, 0.5, 0.3])
        >>> b.reward
        Array([1., 0., 0.], dtype=float64)
    """
    for name, given in (
        ("reward", reward),
        ("reference", reference),
        ("log_reference", log_reference),
    ):
        if given is not None or name == "reward":
            if not is_numeric(given):
                raise TypeError(
                    f"{name} must be numbers, one for each action; got {described(given)}"
                )
            warn_if_cut(name, given)
    r = as_array("reward", reward, None)
    if not jnp.issubdtype(r.dtype, jnp.floating):
        r = r.astype(float)
    if r.ndim != 1 or r.shape[0] == 0:
        raise ValueError(
            f"reward must have shape [K] with K >= 1; got shape {r.shape}. "
            "For a batch of problems use jax.vmap(rd.bandit)"
        )
    if reference is not None and log_reference is not None:
        raise ValueError("give reference or log_reference, not both")
    if log_reference is not None:
        given = _table("log_reference", log_reference, r)
        _check_log_reference("log_reference", given)
        log_q = _normalized(given)
    elif reference is not None:
        q = _table("reference", reference, r)
        if is_concrete(q) and not np.all(np.asarray(q) >= 0):
            raise ValueError(
                f"reference must be probabilities >= 0; got a smallest entry of {np.min(q)}. "
                "Unnormalized log-weights go through rd.logspace.normalize into log_reference"
            )
        given = _logarithm(q)
        _check_log_reference("reference", given)
        log_q = _normalized(given)
    else:
        log_q = jnp.asarray(np.full(r.shape, -np.log(r.size)), r.dtype)
    if is_concrete(r, log_q):
        check_reward(np.asarray(r), np.asarray(log_q))
    return Bandit(r, log_q, _labels(label, r.shape[0]))


_normalized = jax.jit(normalize)


@jax.jit
def _logarithm(q: Array) -> Array:
    positive = q > 0
    return jnp.where(positive, jnp.log(jnp.where(positive, q, 1)), -jnp.inf)


def _table(name: str, values: Table, reward: Array) -> Array:
    table = as_array(name, values, reward.dtype)
    if table.shape != reward.shape:
        raise ValueError(f"{name} must have the shape of reward, {reward.shape}; got {table.shape}")
    return table


def _check_log_reference(name: str, log_q: Array) -> None:
    if not is_concrete(log_q):
        return
    known = np.asarray(log_q)
    if np.any(np.isnan(known)):
        raise ValueError(f"{name} has NaN at index {int(np.argmax(np.isnan(known)))}")
    total = float(np.sum(np.exp(known)))
    tolerance = float(np.sqrt(np.finfo(known.dtype).eps))
    if not abs(total - 1) <= tolerance:
        raise ValueError(
            f"{name} must sum to 1 (within {tolerance:.1e}); it sums to {total:.10g}. "
            "If these are weights, divide by their sum, or pass "
            "log_reference=rd.logspace.normalize(log_weights)"
        )


def check_reward(reward: np.ndarray, log_q: np.ndarray) -> None:
    """Refuses NaN, +inf, and rewards that forbid all that the reference can take."""
    for bad, what in ((np.isnan(reward), "NaN"), (np.isposinf(reward), "+inf")):
        if bad.any():
            raise ValueError(
                f"reward must be real numbers (-inf forbids an action); got {what} "
                f"at index {int(np.argmax(bad))}"
            )
    if not np.any(np.isfinite(reward) & (log_q > -np.inf)):
        raise ValueError(
            "reward must be finite for at least one action that the reference can take; "
            "here every action is forbidden or has reference 0"
        )


def _labels(label: Table | None, size: int) -> Array:
    if label is None:
        return jnp.asarray(np.arange(size))
    if is_concrete(label):
        try:
            known = np.asarray(label)
        except ValueError as error:  # rows of different lengths
            raise ValueError(f"label must be {size} ints in [0, {size}); got {label!r}") from error
        good = known.shape == (size,) and np.issubdtype(known.dtype, np.integer)
        if not good or known.min() < 0 or known.max() >= size:
            raise ValueError(
                f"label must be {size} ints in [0, {size}); got dtype {known.dtype}, shape "
                f"{known.shape}. For names use numpy.unique(names, return_inverse=True)[1]"
            )
    return jnp.asarray(label, dtype=int)
