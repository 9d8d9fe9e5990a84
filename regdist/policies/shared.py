"""Policies that share parameters between actions, states or prompts: not every law is one.

Tables are [..., K]: of a bandit [K], of the steps of a tree [S, V], of prompts [C, K]. Each row is
normalized by a softmax. D is the number of parameters, in nats.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, Key

from regdist.numerics.records import (
    as_array,
    check_count,
    described,
    is_concrete,
    looked_at,
    record,
    static,
)
from regdist.policies.policy import Params, Policy


def _table(name: str, given: Any) -> Array:
    return as_array(name, given)


def _table_or_none(name: str, given: Any) -> Array | None:
    return None if given is None else as_array(name, given)


def _count(name: str, given: Any) -> int:
    check_count(name, given)
    return given


def _members(name: str, given: Any) -> Array:
    member = as_array(name, given, None)
    if not jnp.issubdtype(member.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers, a parameter's place each; got {member.dtype}")
    if is_concrete(member) and (not member.size or np.min(np.asarray(member)) < 0):
        raise ValueError(f"{name} must be integers from 0; got {given!r}")
    return member


def _function(name: str, given: Any) -> Any:
    if not callable(given):
        raise TypeError(
            f"{name} must be a function from parameters to a table; got {described(given)}"
        )
    return given


def _rows(logits: Float[Array, "*K"]) -> Float[Array, "*K"]:
    return jax.nn.log_softmax(logits, axis=-1)


def _shifted(logits: Array, offset: Array | None) -> Array:
    return logits if offset is None else offset + logits


def _fit(features: Array, log_ref: Array, name: str) -> Array:
    """The parameters whose logits are a law, up to one constant a row.

    Raises:
        ValueError: when known, that there are none.
    """
    finite = jnp.isfinite(log_ref)
    count = jnp.maximum(jnp.sum(finite, axis=-1, keepdims=True), 1).astype(log_ref.dtype)
    features = features.astype(log_ref.dtype)
    x = jnp.where(finite[..., None], features, 0)
    y = jnp.where(finite, log_ref, 0)
    x = jnp.where(finite[..., None], x - jnp.sum(x, axis=-2, keepdims=True) / count[..., None], 0)
    y = jnp.where(finite, y - jnp.sum(y, axis=-1, keepdims=True) / count, 0)
    x, y = x.reshape(-1, features.shape[-1]), y.reshape(-1)
    params = jnp.linalg.lstsq(x, y)[0]
    if is_concrete(x, y):
        off = float(np.max(np.abs(np.asarray(x @ params - y)), initial=0))
        if off > float(np.sqrt(np.finfo(y.dtype).eps)):
            raise ValueError(
                f"no parameters of {name} are the reference: the nearest are {off:.3g} nats away. "
                "Give init=..., or offset=log_ref, beside which parameters of 0 are the reference"
            )
    return params


@record
class LogLinear(Policy):
    r"""Log-linear in features: $p \propto \exp(\mathrm{offset} + \phi \cdot \theta)$ in each row.

    Attributes:
        features: phi, shape [K, D] of actions, [S, V, D] of states and actions, [C, K, D] of
            prompts and actions.
        offset: added to the logits, in nats, shaped like the table; default 0. The reference's
            log-probabilities make it the exponential family around the reference.

    Raises:
        TypeError: not numbers.

    Examples:
        >>> policy = LogLinear([[1.0], [1.0], [0.0]])
        >>> print(jnp.exp(policy.log_probs(jnp.log(jnp.array([2.0])))))
        [0.4 0.4 0.2]
    """

    features: Float[Array, "*K D"] = looked_at(_table)
    offset: Float[Array, "*K"] | None = looked_at(_table_or_none, default=None)

    is_array: ClassVar[bool] = True

    def log_probs(self, params: Float[Array, " D"]) -> Float[Array, "*K"]:
        """The logits of each row less the logarithm of their sum."""
        return _rows(_shifted(self.features @ params, self.offset))

    def start(self, log_ref: Float[Array, "*K"]) -> Float[Array, " D"]:
        """The parameters of the reference, if it has some."""
        return _fit(self.features, _less(log_ref, self.offset), "rd.policies.LogLinear")


@record
class Tied(Policy):
    """One logit for several places of the table: those of one number share it.

    Attributes:
        member: the parameter of each place, integers from 0, shaped like the table.
        offset: added to the logits, in nats, shaped like the table; default 0.

    Raises:
        TypeError: no integers.
        ValueError: one below 0.

    Examples:
        >>> policy = Tied([0, 0, 1])
        >>> print(jnp.exp(policy.log_probs(jnp.log(jnp.array([2.0, 1.0])))))
        [0.4 0.4 0.2]
    """

    member: Int[Array, "*K"] = looked_at(_members)
    offset: Float[Array, "*K"] | None = looked_at(_table_or_none, default=None)

    is_array: ClassVar[bool] = True

    def log_probs(self, params: Float[Array, " D"]) -> Float[Array, "*K"]:
        """The logits of each row less the logarithm of their sum."""
        return _rows(_shifted(params[self.member], self.offset))

    def start(self, log_ref: Float[Array, "*K"]) -> Float[Array, " D"]:
        """The parameters of the reference, if it has some; known members only."""
        number = int(np.max(np.asarray(self.member))) + 1
        features = jax.nn.one_hot(self.member, number, dtype=log_ref.dtype)
        return _fit(features, _less(log_ref, self.offset), "rd.policies.Tied")


def _less(log_ref: Array, offset: Array | None) -> Array:
    return log_ref if offset is None else log_ref - jnp.where(jnp.isfinite(log_ref), offset, 0)


@record
class LowRank(Policy):
    """Logits of low rank: offset + left right^T, rows by columns.

    Parameters are a pair: left, shape [S, r], of rows (states or prompts), and right, shape [V, r],
    of columns. With the reference as offset it is a low-rank adapter.

    Attributes:
        rank: r.
        offset: added to the logits, in nats, shape [S, V]; default 0.

    Raises:
        ValueError: a rank that is not a positive integer.

    Examples:
        >>> policy = LowRank(1)
        >>> left, right = jnp.array([[1.0], [2.0]]), jnp.array([[0.0], [1.0]])
        >>> print(policy.log_probs((left, right)).round(4))
        [[-1.3133 -0.3133]
         [-2.1269 -0.1269]]
    """

    rank: int = static(look=_count)
    offset: Float[Array, "S V"] | None = looked_at(_table_or_none, default=None)

    def log_probs(self, params: Params) -> Float[Array, "S V"]:
        """The logits of each row less the logarithm of their sum."""
        left, right = params
        return _rows(_shifted(left @ right.T, self.offset))

    def draw(self, key: Key[Array, ""], shape: tuple[int, int], scale: float = 1.0) -> Params:
        """Parameters to start from: a normal left, and a right of 0 beside an offset.

        A right of 0 is the law of the offset itself. Without one right is normal too: at left =
        right = 0 no gradient moves either.

        Args:
            key: of jax.
            shape: of the table, (S, V).
            scale: the standard deviation.
        """
        states, tokens = shape
        one, two = jax.random.split(key)
        left = scale * jax.random.normal(one, (states, self.rank))
        right = scale * jax.random.normal(two, (tokens, self.rank))
        return left, right if self.offset is None else jnp.zeros_like(right)

    def start(self, log_ref: Float[Array, "S V"]) -> Params:
        """Refused: there are many.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "a run of rd.policies.LowRank needs parameters to start from: give "
            f"init=policy.draw(jax.random.key(0), {tuple(log_ref.shape)})"
        )


@record
class FromFunction(Policy):
    """A function of one's own, from parameters of any kind to a table of logits or log-laws.

    Give the same function object again to reuse what is compiled.

    Attributes:
        fn: from parameters, arrays in any nesting, to a table shaped like the problem's, in nats;
            each row is normalized.

    Raises:
        TypeError: no function.

    Examples:
        >>> policy = FromFunction(lambda w: jnp.stack([w["bias"], 2 * w["bias"]]))
        >>> print(jnp.exp(policy.log_probs({"bias": jnp.log(3.0)})))
        [0.25 0.75]
    """

    fn: Callable[[Params], Array] = static(look=_function)

    def log_probs(self, params: Params) -> Float[Array, "*K"]:
        """What the function returns, each row normalized."""
        return _rows(self.fn(params))
