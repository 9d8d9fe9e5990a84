"""Metrics look at what they are given, where values are known, before they are compiled."""

import functools
from typing import cast

import jax

from regdist.numerics.checks import Function, takes_laws

checked = takes_laws("rd.metrics")
"""Lets a metric refuse arguments that are no distributions, in words that name the call."""


def metric(fn: Function) -> Function:
    """`checked`, and compiled."""
    return checked(cast(Function, functools.wraps(fn)(jax.jit(fn))))
