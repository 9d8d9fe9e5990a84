"""Functions of laws look at what they are given, where values are known, before they compute."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax.numpy as jnp
import numpy as np
from jax import Array

from regdist.numerics.records import (
    as_array,
    check_log_probs,
    described,
    is_concrete,
    is_numeric,
)

Function = TypeVar("Function", bound=Callable[..., Any])

TABLES: dict[str, tuple[str, str]] = {
    "reward": ("numbers", "K"),
    "preference": ("numbers", "K K"),
    "pairs": ("numbers", "K K"),
    "similarity": ("numbers", "K K"),
    "sequences": ("integers", "K T"),
    "label": ("integers", "K"),
    "correct": ("booleans", "K"),
    "keep": ("booleans", "K"),
}
"""Arguments beside a law over K actions that are tables, what they hold, and their shapes."""

_KINDS = {
    "numbers": ((np.floating, np.integer, np.bool_), "be a table of numbers"),
    "integers": ((np.integer,), "be a table of integers"),
    "booleans": ((np.bool_,), "say True or False for each action, such as bandit.reward >= 1"),
}


def takes_laws(place: str) -> Callable[[Function], Function]:
    """Lets a function refuse arguments of a wrong kind, in words that name the call.

    Arguments called `log_...` are laws: one row of normalized log-probabilities each, over the
    same actions. `TABLES` says what else goes by actions. All others are numbers. Values are
    looked at where they are known: not under jit, vmap or grad, which cost nothing.

    Args:
        place: where the function is, such as "rd.metrics".
    """

    def wrap(fn: Function) -> Function:
        signature = inspect.signature(fn)
        where = f"{place}.{fn.__name__}({', '.join(signature.parameters)})"

        @functools.wraps(fn)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                given = signature.bind(*args, **kwargs).arguments
            except TypeError as error:
                raise TypeError(f"{where}: {error}") from error
            sizes = {}
            for name, value in given.items():
                if value is None and signature.parameters[name].default is None:
                    continue
                if name.startswith("log_"):
                    given[name] = check_log_probs(name, value, where)
                    sizes[name] = given[name].shape
            if len(set(sizes.values())) > 1:
                raise ValueError(f"the laws of {where} must be over the same actions; got {sizes}")
            shape = next(iter(sizes.values()), None)
            for name, value in given.items():
                if name not in sizes and not (value is None and name in TABLES):
                    given[name] = _beside(name, value, where, shape)
            return fn(**given)

        return cast(Function, call)

    return wrap


def _beside(name: str, value: Any, where: str, shape: tuple[int, ...] | None) -> Any:
    """An argument that is no law, as the function takes it."""
    if name == "success":
        _check_chance(value, where)
    if name not in TABLES or shape is None:
        if not is_numeric(value):
            as_array(f"{name} of {where}", value)
        return value
    kind, layout = TABLES[name]
    types, wanted = _KINDS[kind]
    table: Any = value
    if isinstance(value, list | tuple) and is_numeric(value):
        table = as_array(f"{name} of {where}", value, None)
    is_array = isinstance(table, Array | np.ndarray)
    if not (is_array and any(jnp.issubdtype(table.dtype, t) for t in types)):
        raise TypeError(f"{name} of {where} must {wanted}; got {described(value)}")
    dims = layout.split()
    fits = (n == shape[0] for n, dim in zip(table.shape, dims, strict=False) if dim == "K")
    if table.ndim != len(dims) or not all(fits):
        raise ValueError(
            f"{name} of {where} must have shape [{', '.join(dims)}], K = {shape[0]} as in the law; "
            f"got {table.shape}"
        )
    if name == "label" and is_concrete(table):
        known = np.asarray(table)
        if known.min() < 0 or known.max() >= shape[0]:
            raise ValueError(f"{name} of {where} must be in [0, {shape[0]}); got {known}")
    return table


def _check_chance(success: Any, where: str) -> None:
    if is_concrete(success) and is_numeric(success):
        known = np.asarray(success)
        if not np.all((known >= 0) & (known <= 1) | np.isnan(known)):
            raise ValueError(
                f"success of {where} must be a probability, between 0 and 1; got {success!r}"
            )
