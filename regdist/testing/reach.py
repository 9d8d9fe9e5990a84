"""Whether a function names an entry that its arrays do not have.

jax clamps such an index without a word, so that a predicate about action 3 also runs on a problem
with two actions, where it says something else.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

_ARITHMETIC = ("lt", "add", "select_n", "broadcast_in_dim", "convert_element_type", "concatenate")
"""What jax does to an index that is known when the function is traced."""


def reaches_outside(fn: Callable[..., Any], *args: Any) -> bool:
    """Whether a fixed index in `fn` is out of bounds of what it is taken from, for these arguments.

    Indices that are computed from the data are not looked at.

    Examples:
        >>> reaches_outside(lambda x: x[2], jnp.ones(3)), reaches_outside(
        ...     lambda x: x[2], jnp.ones(2)
        ... )
        (False, True)
    """
    traced = jax.make_jaxpr(fn)(*args)
    return _outside(traced.jaxpr, dict(zip(traced.jaxpr.constvars, traced.consts, strict=True)))


def _outside(jaxpr: Any, known: dict[Any, Any]) -> bool:
    for step in jaxpr.eqns:
        values = [x.val if isinstance(x, Literal) else known.get(x) for x in step.invars]
        inner = step.params.get("jaxpr")
        if step.primitive.name in _INDEX and _INDEX[step.primitive.name](step, values):
            return True
        if step.primitive.name in ("pjit", "jit") and inner is not None:
            given = dict(zip(inner.jaxpr.invars, values, strict=True))
            given |= dict(zip(inner.jaxpr.constvars, inner.consts, strict=True))
            if _outside(inner.jaxpr, given):
                return True
        elif step.primitive.name in _ARITHMETIC and all(x is not None for x in values):
            known[step.outvars[0]] = step.primitive.bind(*values, **step.params)
    return False


def _slice_outside(step: Any, values: list[Any]) -> bool:
    shape, sizes = step.invars[0].aval.shape, step.params["slice_sizes"]
    starts = values[1:]
    return any(
        x is not None and not 0 <= int(x) <= n - size
        for x, n, size in zip(starts, shape, sizes, strict=True)
    )


def _gather_outside(step: Any, values: list[Any]) -> bool:
    sizes, axes = step.params["slice_sizes"], step.params["dimension_numbers"].start_index_map
    return _rows_outside(step, values[1], axes, sizes)


def _scatter_outside(step: Any, values: list[Any]) -> bool:
    axes = step.params["dimension_numbers"].scatter_dims_to_operand_dims
    return _rows_outside(step, values[1], axes, (1,) * len(step.invars[0].aval.shape))


def _rows_outside(step: Any, index: Any, axes: tuple[int, ...], sizes: tuple[int, ...]) -> bool:
    """Whether a row of an index, an entry for each axis, does not fit."""
    if index is None:
        return False
    shape = step.invars[0].aval.shape
    most = np.array([shape[axis] - sizes[axis] for axis in axes])
    rows = np.asarray(index)
    return bool(np.any((rows < 0) | (rows > most)))


_INDEX: dict[str, Callable[[Any, list[Any]], bool]] = {
    "dynamic_slice": _slice_outside,
    "gather": _gather_outside,
    "scatter": _scatter_outside,
    "scatter-add": _scatter_outside,
}
