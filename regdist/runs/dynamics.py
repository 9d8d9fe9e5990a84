"""The flow of a method in units without p. K is the number of actions, n of its coordinates.

A softmax gradient carries the factor p_i, so that it is small wherever p_i is, at rest or not. The
gain d_i of an action, the rate of log p_i against the mean under the natural gradient, does not:
rest points are where the gains of all actions that have mass are equal, in either geometry.

A coordinate is the log-probability of one action that is alive, or of several together: actions of
equal reward, reference and probability move alike, so that one number is enough for all of them.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import logsumexp

from regdist.methods import Expectation, Method
from regdist.methods.field import field
from regdist.methods.step import expected_pull, horizon_of, in_dtype, leaves_of, tables_of
from regdist.policies.table import log_softmax
from regdist.problems.bandit import Bandit
from regdist.problems.contexts import with_reference
from regdist.problems.placed import table_on
from regdist.problems.tree import Tree
from regdist.runs.loop import Loop

Anchor = int | np.ndarray
"""The coordinate whose logit is held, or for each coordinate that of its own state, shape [n]."""

TOGETHER = 128
"""Actions beyond which those that move alike share a coordinate."""
_EPS = float(np.finfo(np.float64).eps)
# Logits are shifted by these, which changes no policy, to see what rounding does to the gains; at
# few points it may do little, so what is seen is taken eightfold.
_SHIFTS, _SEEN = (0.739, 5.1, -3.3), 8.0
_APART = 1e-3  # of the points of a difference, in nats


def double_precision() -> AbstractContextManager[Any]:
    """Float64 inside, whatever the session has: a verdict should not hang on seven digits."""
    name = "jax" if hasattr(jax, "enable_x64") else "jax.experimental"  # before jax 0.8
    return importlib.import_module(name).enable_x64(True)


def widened(method: Method, problem: Any) -> tuple[Method, Any]:
    """A method and a bandit or a tree in float64, the reference normalized there."""
    wide = jax.tree.map(
        lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, problem
    )
    if problem.log_ref.dtype != jnp.float64:
        law = wide.log_ref - logsumexp(wide.log_ref, axis=-1, keepdims=True)
        wide = with_reference(wide, jnp.where(jnp.isneginf(wide.log_ref), -jnp.inf, law))
    return in_dtype(method, jnp.float64), wide


def ways_of_levels(reward: np.ndarray, random: np.random.Generator, count: int) -> np.ndarray:
    """Random directions of rewards, shape [D, ...], in which equal ones move together."""
    _, level = np.unique(reward, return_inverse=True)
    return random.normal(size=(count, level.max() + 1))[:, level.reshape(reward.shape)]


def difference(fn: Callable[[Array], Array], at: Array, way: Array) -> Array:
    """The derivative of fn along a way, by a fourth difference."""
    f = [fn(at + step * _APART * way) for step in (-2, -1, 1, 2)]
    return (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * _APART)


def log_normalized(z: np.ndarray) -> np.ndarray:
    """Log-probabilities of logits, shape [n]; -inf stays."""
    top = np.max(z)
    return z - top - np.log(np.sum(np.exp(z - top)))


def alike(*columns: np.ndarray) -> np.ndarray:
    """The class of each action, shape [K]: one for those whose numbers are equal in all columns."""
    # 1e-12: equal numbers that went different ways through a run
    rounded = np.stack([np.round(np.where(np.isneginf(x), -1e9, x), 12) for x in columns], axis=1)
    return np.unique(rounded, axis=0, return_inverse=True)[1].ravel()


class Dynamics:
    """Gains of a method on a problem, of the actions that are alive.

    `TreeDynamics` are those of the steps of a tree, where a law is one of each state. What follows
    the flow asks these for the law, for what is held, for means and for mass.

    Attributes:
        faces: whether ends are asked about where actions die out.
        edge: what dies out there.
        ahead: nats by which another coordinate must lead to become the one that is held.

    Args:
        method: in float64.
        bandit: in float64.
        expectation: exact, as the caller gave it.
        alive: which actions may have mass, shape [K].
        old: log-probabilities of the samples' policy, shape [K]; None for the policy itself.
        loop: what surrounds the method. Where steps are small its sampler counts, and whether its
            reference follows the policy; nothing else.
        classes: of actions that move alike, shape [K]; default each its own.
    """

    faces = True
    edge = "actions"
    ahead = 4.0

    def __init__(
        self,
        method: Method,
        bandit: Any,
        expectation: Expectation,
        alive: np.ndarray,
        old: np.ndarray | None = None,
        loop: Loop | None = None,
        classes: np.ndarray | None = None,
    ):
        self.method = dataclasses.replace(method, geometry="natural")
        self.natural = method.geometry == "natural"
        self.signed = method.geometry == "sign"
        self.bandit, self.expectation, self.old, self.loop = bandit, expectation, old, loop
        # Taken apart once: the records would cost more at each call than the gains themselves.
        ready = expectation.fitted(method, leaves_of(bandit), horizon_of(bandit))
        whole = (self.method, bandit, ready, old, loop)
        self.parts, self.form = jax.tree.flatten(whole)
        self.alive = alive
        living = np.flatnonzero(alive)
        names = living if classes is None else classes[living]
        _, first, member, self.copies = np.unique(
            names, return_index=True, return_inverse=True, return_counts=True
        )
        self.index = living[first]
        self.member = np.zeros(alive.shape, int)
        self.member[living] = member.ravel()
        self.given_classes = classes
        self.reward, self.log_ref = self.of_problem()
        self.unit = float(np.ptp(self.reward)) or 1.0
        self.exact = method.differentiable

    def of_problem(self) -> tuple[np.ndarray, np.ndarray]:
        """The rewards and the log-reference of single actions, shape [n] each."""
        bandit = self.bandit
        return np.asarray(bandit.reward)[self.index], np.asarray(bandit.log_ref)[self.index]

    def law(self, z: np.ndarray) -> np.ndarray:
        """Log-probabilities of logits, shape [n]; -inf stays."""
        return log_normalized(z)

    def anchor(self, z: np.ndarray) -> Anchor:
        """The likeliest coordinate, whose logit is held."""
        return int(np.argmax(z))

    def held(self, z: np.ndarray) -> tuple[np.ndarray, Anchor]:
        """The coordinates with mass whose logits are not held, and what is."""
        on, anchor = np.flatnonzero(~np.isneginf(z)), self.anchor(z)
        return on[on != np.broadcast_to(anchor, z.shape)[on]], anchor

    def mean(self, p: np.ndarray, x: np.ndarray) -> np.ndarray:
        """The mean of x, shape [n, ...], under probabilities [n]; broadcast to [n, ...]."""
        return p @ x

    def mass(self, z: np.ndarray) -> np.ndarray:
        """How often each coordinate is taken, shape [n]."""
        return np.exp(log_normalized(z))

    def directions(self, random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Random ones of the rewards and of the log-reference, shape [D, n] each.

        Equal rewards move together, as a field may be rough where they part.
        """
        by_reward = ways_of_levels(self.reward, random, count)
        held = ~np.isneginf(self.log_ref)
        q = np.exp(np.where(held, self.log_ref, 0)) * held
        by_ref = random.normal(size=(count, len(q))) * held
        q = q * self.copies
        return by_reward, (by_ref - (by_ref @ q / q.sum())[:, None]) * held

    def place(self, z: np.ndarray) -> np.ndarray:
        """Logits of all actions, shape [K], from the n coordinates."""
        return np.where(self.alive, (z - np.log(self.copies))[self.member], -np.inf)

    def gather(self, full: np.ndarray) -> np.ndarray:
        """The coordinates, shape [n], of logits of all actions."""
        return full[self.index] + np.log(self.copies)

    def read(self, law: np.ndarray) -> np.ndarray:
        """The coordinates, shape [n], of the log-probabilities of all actions, [K]."""
        return self.gather(law)

    def whole(self, log_p: np.ndarray) -> np.ndarray:
        """The log-probabilities of all actions, shape [K], from those of the coordinates."""
        return self.place(log_p)

    def share(self, z: np.ndarray) -> np.ndarray:
        """How often one action of each coordinate is taken, shape [n]."""
        return self.mass(z) / self.copies

    def with_problem(self, reward: np.ndarray, log_ref: np.ndarray) -> "Dynamics":
        """The same method on other rewards and another reference of single actions, each [n]."""
        fresh_reward = np.asarray(self.bandit.reward).copy()
        fresh_ref = np.asarray(self.bandit.log_ref).copy()
        living = np.flatnonzero(self.alive)
        fresh_reward[living] = reward[self.member[living]]
        fresh_ref[living] = log_ref[self.member[living]]
        bandit = dataclasses.replace(
            self.bandit, reward=jnp.asarray(fresh_reward), log_ref=jnp.asarray(fresh_ref)
        )
        method = dataclasses.replace(self.method, geometry="natural" if self.natural else "softmax")
        return Dynamics(
            method, bandit, self.expectation, self.alive, self.old, self.loop, self.given_classes
        )

    def gain(self, z: np.ndarray) -> np.ndarray:
        """w_i - E_p w at the logits z, shape [n]; of no meaning where z is -inf."""
        return self.gains(self.place(z - z[self.anchor(z)]))[self.index]

    def gains(self, full: np.ndarray) -> np.ndarray:
        """The gains of all actions at logits of all, shape [K]."""
        shape = self.bandit.log_ref.shape
        return np.asarray(_gain(self.form, self.parts, full.reshape(shape))).reshape(full.shape)

    def beside(self, z: np.ndarray, anchor: Anchor) -> np.ndarray:
        """Gains less that of what is held, which does not round in the mean, shape [n]."""
        g = self.gain(z)
        return g - g[anchor]

    def rounding(self, z: np.ndarray, anchor: Anchor) -> np.ndarray:
        """How far rounding may have moved `beside`, shape [n]."""
        g = self.gain(z)
        seen = [np.abs(self.beside(z + c, anchor) - (g - g[anchor])) for c in _SHIFTS]
        return _SEEN * np.max(seen, axis=0) + 8 * _EPS * (np.abs(g) + np.abs(g[anchor]) + self.unit)

    def slopes(self, z: np.ndarray) -> np.ndarray:
        """The derivative of `gain` in the coordinates, [n, n], over those with mass; else 0."""
        by_policy, by_samples, by_reference = self.partial_slopes(z)
        return by_policy + by_samples + by_reference

    def partial_slopes(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`slopes` by the policy, by that of the samples and by the reference, each [n, n].

        The second and third are 0 where samples and reference do not follow the policy.
        """
        z = z - z[self.anchor(z)]
        on = np.flatnonzero(~np.isneginf(z))
        columns = (self.member[None] == on[:, None]) & self.alive
        parts = []
        for moved in self.derivatives(self.place(z), columns.astype(float)):
            out = np.zeros((len(z), len(z)))
            out[np.ix_(on, on)] = moved[:, self.index[on]].T
            parts.append(out)
        return parts[0], parts[1], parts[2]

    def derivatives(self, full: np.ndarray, ways: np.ndarray) -> list[np.ndarray]:
        """The derivative of all gains along each of the ways, shape [D, K], by what moves.

        By the logits of the policy, of the samples and of the reference.
        """
        ways = np.where(np.isneginf(full), 0, ways)
        moving = [True, self.follows_samples, self.follows_reference]
        shape = self.bandit.log_ref.shape
        z, along = full.reshape(shape), ways.reshape(-1, *shape)
        made = [
            np.asarray(_derivatives(self.form, self.parts, z, along, which, self.exact))
            if moves
            else np.zeros(ways.shape)
            for which, moves in enumerate(moving)
        ]
        return [x.reshape(ways.shape) for x in made]

    def weigh(self, z: np.ndarray, m: np.ndarray, most: bool = False) -> np.ndarray:
        """The mass of each coordinate times its row of m [n, n]; `most`: m are errors."""
        del most
        return self.mass(z)[:, None] * m

    def paced(self, z: np.ndarray, m: np.ndarray, most: bool = False) -> np.ndarray:
        """The rates, but for a shift, that gains of m [n, n] give; `most`: m are errors."""
        del most
        return m if self.natural else self.share(z)[:, None] * m

    def depth(self, z: np.ndarray) -> float:
        """How far, in nats, what is least likely lies below what is likeliest beside it."""
        return float(-np.min(z))

    def motion(self, z: np.ndarray, slopes: np.ndarray) -> np.ndarray:
        """The derivative of the rates of the logits at a rest point from that of the gains."""
        return self.paced(z, slopes - self.mean(np.exp(self.law(z)), slopes))

    def sides(self, z: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
        """Gains where each log p in turn is a little larger and smaller, [n] each.

        All up to one constant. Nothing else moves, the sum of probabilities neither, so that a
        jump shows at the action that has it.
        """
        full = log_normalized(self.place(z))
        ways = (self.member[None] == np.arange(len(z))[:, None]) & self.alive
        ways = np.concatenate([np.zeros((1, len(full))), width * ways, -width * ways])
        made = np.asarray(_side(self.form, self.parts, full, ways))[:, self.index]
        base, moved = made[0], made[1:].reshape(2, len(z), len(z))
        likely = np.argsort(-z)[:2]
        beside = np.where(np.arange(len(z)) == likely[0], likely[-1], likely[0])
        own = np.arange(len(z))
        above, below = moved[:, own, own] - (moved[:, own, beside] - base[beside])
        return above, below

    @property
    def follows_samples(self) -> bool:
        """Whether samples come from a policy that is told apart from the one that moves."""
        return self.loop is not None and not self.loop.on_policy and self.old is None

    @property
    def follows_reference(self) -> bool:
        """Whether the reference moves with the policy."""
        return self.loop is not None and self.loop.sync_every is not None

    @property
    def slope_error(self) -> float:
        """The relative error of the entries of `slopes`."""
        # A fourth difference of width 1e-3 is cut off at 1e-12 and rounds at eps/1e-3.
        return 64 * _EPS if self.exact else 1e-9

    def rate(self, z: np.ndarray, anchor: Anchor) -> np.ndarray:
        """dz/dt less that of what is held, shape [n], to the digits of each p_i."""
        d = self.beside(z, anchor)
        if self.natural:
            return d
        p = np.exp(self.law(z))
        f = self.share(z) * (d - self.mean(p, np.where(p > 0, d, 0)))
        return (np.sign(f) - np.sign(f[anchor])) if self.signed else f - f[anchor]

    def rate_slopes(self, z: np.ndarray, anchor: Anchor) -> np.ndarray:
        """The derivative of `rate` in the logits, shape [n, n]."""
        m = self.slopes(z)
        m = m - m[anchor]
        if self.natural:
            return m
        out = self.moved_rate(z, self.beside(z, anchor), m)
        return out - out[anchor]

    def moved_rate(self, z: np.ndarray, d: np.ndarray, m: np.ndarray) -> np.ndarray:
        """The derivative of share (d - mean d) in the logits, where that of d is m, [n, n]."""
        p = np.exp(log_normalized(z))
        mean = p @ np.where(p > 0, d, 0)
        f, one = p * (d - mean), self.share(z)
        # p_i moves with z_j as p_i (1[i = j] - p_j), the mean with p and with the gains.
        moved_mean = f + p @ m
        out = np.diag(f) / self.copies - np.outer(one * (d - mean), p)
        return out + one[:, None] * (m - moved_mean)


def _gains(
    method: Method,
    z: Array,
    samples: Array,
    reference: Array,
    problem: Bandit | Tree,
    expectation: Expectation,
    old: Array | None,
    loop: Loop | None,
) -> Array:
    """The gains of a policy, where its samples and its reference may be those of others."""
    dtype, law = problem.log_ref.dtype, table_on(problem).log_probs
    z, samples, reference = (jnp.asarray(x, dtype) for x in (z, samples, reference))
    problem, old, sampler = surrounded(loop, problem, old, law, samples, reference)
    return field(method, z, problem, expectation, old=old, sampler=sampler)


def surrounded(
    loop: Loop | None,
    problem: Any,
    old: Array | None,
    law: Callable[[Any], Array],
    samples: Any,
    reference: Any,
) -> tuple[Any, Array | None, Array | None]:
    """The problem, the law of the samples and what they are drawn from, in a loop of small steps.

    Args:
        loop: what surrounds the method.
        problem: with the reference that it has if that stays.
        old: the law of the samples, if that stays.
        law: of parameters.
        samples: the parameters of the policy that samples come from.
        reference: those of the reference.
    """
    if loop is None:
        return problem, old, None
    if loop.sync_every:
        problem = with_reference(problem, law(reference))
    if not loop.on_policy and old is None:
        old = law(samples)
    if loop.sampler is None:
        return problem, old, None
    drawn_by = law(samples) if old is None else jnp.asarray(old)
    return problem, old, loop.law_of_samples(drawn_by, problem)


@functools.partial(jax.jit, static_argnums=0)
def _gain(form: Any, parts: list[Array], z: Array) -> Array:
    """The gains of a policy, its own samples and its own reference."""
    method, *rest = jax.tree.unflatten(form, parts)
    return _gains(method, z, z, z, *rest)


@functools.partial(jax.jit, static_argnums=0)
def _side(form: Any, parts: list[Array], log_p: Array, ways: Array) -> Array:
    """The gains beside a policy, [D, K], at numbers that need not sum to 1, without the mean."""
    method, bandit, expectation, old, loop = jax.tree.unflatten(form, parts)
    log_p, ways = jnp.asarray(log_p, bandit.reward.dtype), jnp.asarray(ways, bandit.reward.dtype)

    def at(log_p: Array) -> Array:
        sampler, given = None, bandit
        if loop is not None and loop.sync_every:
            given = dataclasses.replace(bandit, log_ref=log_softmax(log_p))
        if loop is not None and loop.sampler:
            sampler = loop.sampler(log_softmax(log_p) if old is None else jnp.asarray(old))
        tables = tables_of(method, log_p, given, old, sampler)
        pull = expected_pull(method, tables, expectation, None, old is None and sampler is None)
        return pull.gain

    return jax.vmap(lambda way: at(jnp.where(jnp.isneginf(log_p), log_p, log_p + way)))(ways)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _derivatives(
    form: Any, parts: list[Array], z: Array, ways: Array, which: int, exact: bool
) -> Array:
    """Derivatives of the gains along ways [D, ...] of one of the three that they hang on."""
    method, bandit, expectation, old, loop = jax.tree.unflatten(form, parts)
    z, ways = (jnp.asarray(x, bandit.log_ref.dtype) for x in (z, ways))
    together = loop is None or loop.is_bare

    def at(x: Array) -> Array:
        given = [x, x, x] if together else [x if i == which else z for i in range(3)]
        return _gains(method, given[0], given[1], given[2], bandit, expectation, old, loop)

    def along(way: Array) -> Array:
        if exact:
            return jax.jvp(at, (z,), (way,))[1]
        return difference(at, z, way)

    return jax.vmap(along)(ways)
