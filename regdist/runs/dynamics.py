"""The flow of a method in units without p. K is the number of actions, n of those alive.

A softmax gradient carries the factor p_i, so that it is small wherever p_i is, at rest or not. The
gain d_i of an action, the rate of log p_i against the mean under the natural gradient, does not:
rest points are where the gains of all actions that have mass are equal, in either geometry.
"""

import dataclasses
import importlib
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import logsumexp

from regdist.methods import Expectation, Method
from regdist.methods.expectation import prepared
from regdist.methods.field import field, in_dtype
from regdist.problems.bandit import Bandit

_EPS = float(np.finfo(np.float64).eps)
# Logits are shifted by these, which changes no policy, to see what rounding does to the gains; at
# few points it may do little, so what is seen is taken eightfold.
_SHIFTS, _SEEN = (0.739, 5.1, -3.3), 8.0


def double_precision() -> AbstractContextManager[Any]:
    """Float64 inside, whatever the session has: a verdict should not hang on seven digits."""
    name = "jax" if hasattr(jax, "enable_x64") else "jax.experimental"  # before jax 0.8
    return importlib.import_module(name).enable_x64(True)


def widened(method: Method, bandit: Bandit) -> tuple[Method, Bandit]:
    """A method and a problem in float64, the reference normalized there."""
    wide = jax.tree.map(
        lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, bandit
    )
    if bandit.log_ref.dtype != jnp.float64:
        wide = dataclasses.replace(wide, log_ref=wide.log_ref - logsumexp(wide.log_ref))
    return in_dtype(method, jnp.float64), wide


def log_normalized(z: np.ndarray) -> np.ndarray:
    """Log-probabilities of logits, shape [n]; -inf stays."""
    top = np.max(z)
    return z - top - np.log(np.sum(np.exp(z - top)))


class Dynamics:
    """Gains of a method on a problem, of the actions that are alive.

    Args:
        method: in float64.
        bandit: in float64.
        expectation: exact, as the caller gave it.
        alive: which actions may have mass, shape [K]; n of them.
        old: log-probabilities of the samples' policy, shape [K]; None for the policy itself.
    """

    def __init__(
        self,
        method: Method,
        bandit: Bandit,
        expectation: Expectation,
        alive: np.ndarray,
        old: np.ndarray | None = None,
    ):
        self.method = dataclasses.replace(method, geometry="natural")
        self.natural = method.geometry == "natural"
        self.signed = method.geometry == "sign"
        self.bandit, self.expectation, self.old = bandit, expectation, old
        self.ready = prepared(expectation, method, bandit)
        self.alive = alive
        self.index = np.flatnonzero(alive)
        reward = np.asarray(bandit.reward)[self.index]
        self.reward = reward
        self.log_ref = np.asarray(bandit.log_ref)[self.index]
        self.unit = float(np.ptp(reward)) or 1.0
        self.exact = method.differentiable

    def place(self, z: np.ndarray) -> np.ndarray:
        """Logits of all actions, shape [K], from those of the n alive."""
        full = np.full(self.alive.shape, -np.inf)
        full[self.index] = z
        return full

    def with_problem(self, reward: np.ndarray, log_ref: np.ndarray) -> "Dynamics":
        """The same method on other rewards [n] and another reference [n] of those alive."""
        fresh_reward = np.asarray(self.bandit.reward).copy()
        fresh_ref = np.asarray(self.bandit.log_ref).copy()
        fresh_reward[self.index], fresh_ref[self.index] = reward, log_ref
        bandit = dataclasses.replace(
            self.bandit, reward=jnp.asarray(fresh_reward), log_ref=jnp.asarray(fresh_ref)
        )
        method = dataclasses.replace(self.method, geometry="natural" if self.natural else "softmax")
        return Dynamics(method, bandit, self.expectation, self.alive, self.old)

    def gain(self, z: np.ndarray) -> np.ndarray:
        """w_i - E_p w at the logits z, shape [n]; of no meaning where z is -inf."""
        z = z - np.max(z)
        out = _gain(self.method, self.place(z), self.bandit, self.ready, self.old)
        return np.asarray(out)[self.index]

    def beside(self, z: np.ndarray, anchor: int) -> np.ndarray:
        """Gains less that of an action, which does not round in the mean, shape [n]."""
        g = self.gain(z)
        return g - g[anchor]

    def rounding(self, z: np.ndarray, anchor: int) -> np.ndarray:
        """How far rounding may have moved `beside`, shape [n]."""
        g = self.gain(z)
        seen = [np.abs(self.beside(z + c, anchor) - (g - g[anchor])) for c in _SHIFTS]
        return _SEEN * np.max(seen, axis=0) + 8 * _EPS * (np.abs(g) + abs(g[anchor]) + self.unit)

    def slopes(self, z: np.ndarray) -> np.ndarray:
        """The derivative of `gain` in the logits, shape [n, n], over those with mass; else 0."""
        z = z - np.max(z)
        out = np.zeros((len(z), len(z)))
        on = np.flatnonzero(~np.isneginf(z))
        if self.exact:
            full = np.asarray(
                _slopes(self.method, self.place(z), self.bandit, self.ready, self.old)
            )
            part = full[np.ix_(self.index[on], self.index[on])]
        else:
            part = np.stack([self._difference(z, int(k))[on] for k in on], axis=1)
        out[np.ix_(on, on)] = part
        return out

    @property
    def slope_error(self) -> float:
        """The relative error of the entries of `slopes`."""
        # A fourth difference of width 1e-3 is cut off at 1e-12 and rounds at eps/1e-3.
        return 64 * _EPS if self.exact else 1e-9

    def _difference(self, z: np.ndarray, k: int) -> np.ndarray:
        def at(step: float) -> np.ndarray:
            moved = z.copy()
            moved[k] += step
            return self.gain(moved)

        h = 1e-3
        return (at(-2 * h) - 8 * at(-h) + 8 * at(h) - at(2 * h)) / (12 * h)

    def rate(self, z: np.ndarray, anchor: int) -> np.ndarray:
        """dz/dt less that of the anchor, shape [n], to the digits of each p_i."""
        d = self.beside(z, anchor)
        if self.natural:
            return d
        p = np.exp(log_normalized(z))
        mean = p @ np.where(p > 0, d, 0)
        f = p * (d - mean)
        return (np.sign(f) - np.sign(f[anchor])) if self.signed else f - f[anchor]

    def rate_slopes(self, z: np.ndarray, anchor: int) -> np.ndarray:
        """The derivative of `rate` in the logits, shape [n, n]."""
        m = self.slopes(z)
        m = m - m[anchor]
        if self.natural:
            return m
        p = np.exp(log_normalized(z))
        d = self.beside(z, anchor)
        mean = p @ np.where(p > 0, d, 0)
        f = p * (d - mean)
        # p_i moves with z_j as p_i (1[i = j] - p_j), the mean with p and with the gains.
        moved_mean = f + p @ m
        out = np.diag(f) - np.outer(f, p) + p[:, None] * (m - moved_mean)
        return out - out[anchor]


@jax.jit
def _gain(
    method: Method, z: Array, bandit: Bandit, expectation: Expectation, old: Array | None
) -> Array:
    return field(method, jnp.asarray(z, bandit.reward.dtype), bandit, expectation, old=old)


@jax.jit
def _slopes(
    method: Method, z: Array, bandit: Bandit, expectation: Expectation, old: Array | None
) -> Array:
    return jax.jacfwd(lambda z: field(method, z, bandit, expectation, old=old))(
        jnp.asarray(z, bandit.reward.dtype)
    )
