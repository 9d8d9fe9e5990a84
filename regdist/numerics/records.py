"""How records are made: frozen dataclasses that jax sees as trees of arrays."""

import dataclasses
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

if sys.version_info >= (3, 12):
    from typing import TypeAliasType
else:
    from typing_extensions import TypeAliasType

T = TypeVar("T")

# Aliases with a name, which `help` prints; of a bare union it prints all members.
Number = TypeAliasType("Number", ArrayLike)
"""What people type for a number: one of Python's, or an array."""

Table = TypeAliasType("Table", ArrayLike | Sequence[Any])
"""What people type for a table of numbers: an array, a number or a list."""


@dataclass_transform(frozen_default=True, eq_default=False)
def record(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass and a jax pytree.

    Fields are data unless declared with `static()`. jax rebuilds a record, with tracers or
    placeholders inside, without calling `__init__`.

    `jax.tree_util.register_dataclass` would do this too, but to it two classes with as many fields
    are one and the same tree (jaxlib 0.10): a call compiled for one divergence may then answer for
    another.
    """
    frozen = dataclasses.dataclass(frozen=True, eq=False)(cls)
    fields: tuple[Any, ...] = dataclasses.fields(frozen)  # pyright: ignore[reportArgumentType]
    data = [f.name for f in fields if not f.metadata.get("static")]
    choices = [f.name for f in fields if f.metadata.get("static")]
    keys = [jax.tree_util.GetAttrKey(name) for name in data]

    def flatten(x: T) -> tuple[list, tuple]:
        return [getattr(x, name) for name in data], tuple(getattr(x, name) for name in choices)

    def flatten_with_keys(x: T) -> tuple[list, tuple]:
        values, chosen = flatten(x)
        return list(zip(keys, values, strict=True)), chosen

    def unflatten(chosen: tuple, values: Iterable[Any]) -> T:
        x = object.__new__(frozen)
        for name, value in (*zip(choices, chosen, strict=True), *zip(data, values, strict=True)):
            object.__setattr__(x, name, value)
        return x

    jax.tree_util.register_pytree_with_keys(frozen, flatten_with_keys, unflatten, flatten)
    return frozen


class Law:
    """What a record of a law over actions shares, beside its field `log_probs`, shape [K]."""

    log_probs: Array

    @property
    def probs(self) -> Array:
        """p, shape [K]."""
        return jnp.exp(self.log_probs)


def static(**kwargs: Any) -> Any:
    """A record field that is a choice rather than a number: part of the trace, not of the data."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


def is_concrete(*values: Any) -> bool:
    """Whether all values are known now, so that a check on them can be made."""
    return not any(isinstance(v, Tracer) for v in jax.tree.leaves(values))


def as_number(value: Number) -> Array:
    """A number that people sweep, as one dtype whatever was typed: `1` and `1.0` are one trace."""
    return jnp.asarray(value, dtype=float)


def check_actions(name: str, actions: Any, size: int) -> None:
    """Refuses indices, when known, that name no action: jax would clamp them."""
    if is_concrete(actions):
        known = np.asarray(actions)
        if np.issubdtype(known.dtype, np.integer) and np.any((known < -size) | (known >= size)):
            raise ValueError(
                f"{name} must name one of {size} actions, 0 to {size - 1}; got {known}"
            )


def positive(name: str, value: Number, advice: str) -> Array:
    """`as_number(value)`, refused when it is known and not a finite number above zero."""
    if is_concrete(value):
        known = np.asarray(value)
        if not (np.issubdtype(known.dtype, np.number) and np.all(np.isfinite(known) & (known > 0))):
            raise ValueError(
                f"{name} must be a finite number above 0; got {name}={value!r}. {advice}"
            )
    return as_number(value)
