"""How records are made: frozen dataclasses that jax sees as trees of arrays."""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

T = TypeVar("T")

Table = ArrayLike | Sequence[Any]
"""What people type for a table of numbers: an array, a number or a list."""


@dataclass_transform(frozen_default=True, eq_default=False)
def record(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass and a jax pytree.

    Fields are data unless declared with `static()`. jax calls `__init__` whenever it rebuilds a
    record, with tracers or placeholders inside, so records hold no checks: the constructor
    functions do.
    """
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True, eq=False)(cls))


def static(**kwargs: Any) -> Any:
    """A record field that is a choice rather than a number: part of the trace, not of the data."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


def is_concrete(*values: Any) -> bool:
    """Whether all values are known now, so that a check on them can be made."""
    return not any(isinstance(v, Tracer) for v in jax.tree.leaves(values))


def as_number(value: ArrayLike) -> Array:
    """A number that people sweep, as one dtype whatever was typed: `1` and `1.0` are one trace."""
    return jnp.asarray(value, dtype=float)


def positive(name: str, value: ArrayLike, advice: str) -> Array:
    """`as_number(value)`, refused when it is known and not a finite number above zero."""
    if is_concrete(value):
        known = np.asarray(value)
        if not (np.issubdtype(known.dtype, np.number) and np.all(np.isfinite(known) & (known > 0))):
            raise ValueError(
                f"{name} must be a finite number above 0; got {name}={value!r}. {advice}"
            )
    return as_number(value)
