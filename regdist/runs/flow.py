"""The flow dz/dt = field(z), the limit of small steps, followed to its end. K is of actions."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from regdist.methods import Expectation, Method
from regdist.methods.field import field
from regdist.policies.table import log_softmax
from regdist.problems.bandit import Bandit
from regdist.runs.driver import run
from regdist.runs.jacobian import field_jacobian

# What a flow is followed by. A unit is the largest reward gap, and time is measured in its inverse.
_LONGEST = 1e12  # units of time: a table comes to a vertex like 1/t, so to within some 1e-12
_MOST_STEPS = 3000  # of the solver: 1,119 were the most of nine methods to a vertex, 505 elsewhere
_QUIET = 1e-13  # units of the field: below it there is little but rounding
_STILL = 1e-7  # units of the law's speed at which it stands, where logits run off
_WALK = 20_000  # steps of half a unit, 1e4 units of time, before they shrink
_NEARBY = 1e-2  # a step of Newton beyond it goes to another fixed point, if to any
_TURNS = 0.3  # how far a probability moves in the second half of the walk if it goes round


@dataclasses.dataclass(frozen=True)
class Flow:
    """Where a flow ended.

    Attributes:
        logits: at its end, shape [K].
        norm: largest |field| there.
        settled: whether it stands still.
        finite: whether it stayed finite.
        turns: whether it still turned at the end.
    """

    logits: np.ndarray
    norm: float
    settled: bool
    finite: bool
    turns: bool


def flow_to_end(
    method: Method, bandit: Bandit, expectation: Expectation, start: np.ndarray
) -> Flow:
    """The end of dz/dt = field(z), in time units of the largest reward gap."""
    import scipy.integrate

    inside = np.flatnonzero(~np.isneginf(start) & ~np.isneginf(np.asarray(bandit.reward)))

    def place(z: np.ndarray) -> np.ndarray:
        full = np.full(bandit.num_actions, -np.inf, bandit.reward.dtype)
        full[inside] = z
        return full

    def f(_: float, z: np.ndarray) -> np.ndarray:
        return np.asarray(field_at(method, place(z), bandit, expectation))[inside]

    def jacobian(_: float, z: np.ndarray) -> np.ndarray:
        return field_jacobian(method, bandit, expectation, place(z))

    reward = np.asarray(bandit.reward)[inside]
    unit = float(np.ptp(reward)) or 1.0
    z = start[inside] - np.max(start[inside])
    solver = scipy.integrate.BDF(
        f,
        0.0,
        z,
        _LONGEST / unit,
        rtol=1e-8,  # of the way; the end is polished
        atol=1e-9,
        jac=jacobian if method.differentiable else None,
    )
    quiet = max(_QUIET, float(np.finfo(bandit.reward.dtype).eps))
    settled, finite = False, True
    for _ in range(_MOST_STEPS):
        try:
            with np.errstate(all="ignore"):
                solver.step()
            finite = bool(np.all(np.isfinite(solver.y)))
        except ValueError:  # scipy refuses a Jacobian that is not finite
            finite = False
        if not finite:
            break
        z = solver.y
        if np.max(np.abs(f(0.0, z))) <= quiet * unit or solver.status == "finished":
            settled = True
            break
        if solver.status == "failed":
            break
    if not finite:  # logits may run off for ever while the law stands still
        p, f_z = np.exp(np.asarray(log_softmax(jnp.asarray(z)))), f(0.0, z)
        speed = np.max(np.abs(p * (f_z - p @ f_z)))
        settled = finite = bool(np.isfinite(speed) and speed < _STILL * unit)
    logits = np.full(bandit.num_actions, -np.inf)
    logits[inside] = _polish(f, jacobian, z) if settled and method.differentiable else z
    turns = False
    if finite and not settled:
        logits, turns = _slide(method, bandit, expectation, logits)
    norm = float(np.max(np.abs(f(0.0, logits[inside]))))
    return Flow(logits, norm, settled, finite, turns)


def _slide(
    method: Method, bandit: Bandit, expectation: Expectation, start: np.ndarray
) -> tuple[np.ndarray, bool]:
    """The end of steps that shrink, where the field jumps and no solver stands still.

    And whether it still turns at the end.
    """
    unit = float(np.ptp(np.asarray(bandit.reward)[~np.isneginf(start)])) or 1.0
    path = run(
        method,
        bandit,
        2 * _WALK,
        optimizer=_shrinking(unit),
        expectation=expectation,
        init=start,
        record_every=_WALK // 10,
    )
    walk = np.exp(np.asarray(path.log_probs[5:11]))  # the second half, before the steps shrink
    return np.asarray(path.log_probs[-1]), float(np.ptp(walk, axis=0).max()) > _TURNS


@functools.cache
def _shrinking(unit: float) -> Any:
    """Half a unit for as long as it takes to get there, then down by ten thousand."""
    import optax

    return optax.sgd(optax.exponential_decay(0.5 / unit, _WALK, 1e-4, transition_begin=_WALK))


def _polish(f: Callable, jacobian: Callable, z: np.ndarray) -> np.ndarray:
    """Newton steps onto the fixed point nearby, as long as they shrink the field."""
    for _ in range(4):  # digits double at each, from the solver's eight
        value = f(0.0, z)
        slopes = jacobian(0.0, z)
        if not np.all(np.isfinite(slopes)):
            break
        # The shift of all logits moves no policy: its singular value is rounding, and left out.
        step = np.linalg.lstsq(slopes, -value, rcond=1e-10)[0]
        fresh = z + step
        smaller = np.max(np.abs(f(0.0, fresh))) < np.max(np.abs(value))
        if not np.all(np.isfinite(fresh)) or np.max(np.abs(step)) > _NEARBY or not smaller:
            break
        z = fresh
    return z


@jax.jit
def field_at(
    method: Method, z: Array | np.ndarray, bandit: Bandit, expectation: Expectation
) -> Array:
    """The field at the logits z, compiled once for a method and a size."""
    return field(method, jnp.asarray(z, bandit.reward.dtype), bandit, expectation)
