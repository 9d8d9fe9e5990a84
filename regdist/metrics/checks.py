"""Metrics look at what they are given, where values are known, before they are compiled."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax import Array

from regdist.numerics.records import check_log_probs, is_concrete

Function = TypeVar("Function", bound=Callable[..., Any])

LOG_PROBS = ("log_p", "log_q", "log_behavior")
"""Arguments that are distributions."""


def checked(fn: Function) -> Function:
    """Lets a metric refuse arguments that are no distributions, in words that name the call.

    Values are looked at where they are known: not under jit, vmap or grad, which cost nothing.
    """
    signature = inspect.signature(fn)
    where = f"rd.metrics.{fn.__name__}({', '.join(signature.parameters)})"

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        for name in LOG_PROBS:
            if given.get(name) is not None:
                given[name] = check_log_probs(name, given[name], where)
        sizes = {name: given[name].shape for name in LOG_PROBS if given.get(name) is not None}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"the tables of {where} must be over the same actions; got {sizes}")
        if "success" in given:
            _check_chance(given["success"], where)
        if "correct" in given and "log_p" in given:
            _check_mask(given["correct"], where)
        return fn(**given)

    return cast(Function, call)


def metric(fn: Function) -> Function:
    """`checked`, and compiled."""
    return checked(cast(Function, functools.wraps(fn)(jax.jit(fn))))


def _check_chance(success: Any, where: str) -> None:
    if is_concrete(success):
        known = np.asarray(success)
        if not np.all((known >= 0) & (known <= 1) | np.isnan(known)):
            raise ValueError(
                f"success of {where} must be a probability, between 0 and 1; got {success!r}"
            )


def _check_mask(correct: Any, where: str) -> None:
    if not (isinstance(correct, Array | np.ndarray) and correct.dtype == bool):
        got = getattr(correct, "dtype", type(correct).__name__)
        raise TypeError(
            f"correct of {where} must say True or False for each action, such as "
            f"bandit.reward >= 1; got {got}"
        )
