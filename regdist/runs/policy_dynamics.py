"""The flow of a method in the parameters of a policy. D parameters, L actions or sequences.

Coordinates are the directions of parameters that move the law, and one before them that is held at
0 and stands for nothing: n is one more than there are. Gains are the natural gradient, which has no
factor p; the rate of the plain gradient is the Fisher matrix times them.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from regdist.methods import Expectation, Method
from regdist.methods.field import field
from regdist.methods.step import horizon_of, leaves_of
from regdist.policies.policy import Params, Policy
from regdist.problems.contexts import Contexts, whole_law, with_reference, with_rewards
from regdist.problems.placed import own_policy
from regdist.problems.tree import Tree
from regdist.runs.dynamics import Dynamics, difference, surrounded, ways_of_levels
from regdist.runs.loop import Loop

_EPS = float(np.finfo(np.float64).eps)
# Of the largest singular value of the scores: below it a direction moves no law.
_STILL = 1e-9
_TRIED = 3  # places at which directions are looked for
_SEEN = 8.0  # times what a change of the last digits does to the gains


class PolicyDynamics(Dynamics):
    """Gains of a method on the parameters of a policy.

    Args:
        method: in float64.
        problem: a bandit, a tree or contexts, in float64.
        expectation: exact.
        policy: as it was placed on the problem.
        origin: parameters at which all coordinates are 0.
        old: the law that samples are drawn from, if it stays.
        loop: what surrounds the method.
        basis: the directions of flat parameters that move the law, shape [D, n - 1]; by default
            they are looked for.

    Raises:
        ValueError: which directions move the law differs from place to place.
    """

    faces = False
    ahead = np.inf

    def __init__(
        self,
        method: Method,
        problem: Any,
        expectation: Expectation,
        policy: Policy,
        origin: Params,
        old: np.ndarray | None = None,
        loop: Loop | None = None,
        basis: np.ndarray | None = None,
    ):
        self.natural, self.signed = method.geometry == "natural", method.geometry == "sign"
        self.method = dataclasses.replace(method, geometry="natural")
        self.bandit, self.expectation, self.old, self.loop = problem, expectation, old, loop
        self.policy, self.origin = policy, origin
        self.exact = False
        self.basis = moving(policy, problem, origin) if basis is None else basis
        ready = expectation.fitted(method, leaves_of(problem), horizon_of(problem))
        surroundings = problem, ready, old, loop, policy, origin, self.basis
        plain = dataclasses.replace(method, geometry="softmax")
        self.parts, self.form = jax.tree.flatten((self.method, *surroundings))
        self.plain_parts, self.plain_form = jax.tree.flatten((plain, *surroundings))
        self.reward = np.asarray(leaves_of(problem).reward)
        self.log_ref = np.asarray(problem.log_ref)
        self.unit = float(np.ptp(self.reward[np.isfinite(self.reward)])) or 1.0
        self.copies = np.ones(self.basis.shape[1] + 1)

    def place(self, z: np.ndarray) -> np.ndarray:
        """Flat parameters, shape [D], from the n coordinates."""
        return np.asarray(ravel_pytree(self.origin)[0]) + self.basis @ z[1:]

    def gather(self, full: np.ndarray) -> np.ndarray:
        """The coordinates, shape [n], of flat parameters."""
        away = full - np.asarray(ravel_pytree(self.origin)[0])
        return np.append(0.0, self.basis.T @ away)

    def params(self, z: np.ndarray) -> Params:
        """The parameters of a policy at coordinates [n]."""
        return ravel_pytree(self.origin)[1](jnp.asarray(self.place(z)))

    def law(self, z: np.ndarray) -> np.ndarray:
        """The coordinates themselves: what is normalized is their law, see `whole`."""
        return z

    def whole(self, log_p: np.ndarray) -> np.ndarray:
        """The log-probabilities of all actions or sequences at coordinates [n]."""
        table = self.policy.log_probs(self.params(log_p))
        return np.asarray(whole_law(self.bandit, table))

    def anchor(self, z: np.ndarray) -> int:
        """The coordinate that stands for nothing."""
        del z
        return 0

    def mean(self, p: np.ndarray, x: np.ndarray) -> np.ndarray:
        """0: natural gradients have no mean to be taken off."""
        del p
        return np.zeros(x.shape)

    def scores(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The derivatives of all log-probabilities by the coordinates, [.., n], and how likely."""
        made = _scores(self.plain_form, self.plain_parts, jnp.asarray(z[1:]))
        scores, share = (np.asarray(x) for x in made)
        return np.concatenate([np.zeros((len(scores), 1)), scores], axis=1), share

    def bends(self, z: np.ndarray) -> np.ndarray:
        """The second derivatives of all log-probabilities, shape [L, n - 1, n - 1]."""
        return np.asarray(_bends(self.plain_form, self.plain_parts, jnp.asarray(z[1:])))

    def of_leaves(self, table: np.ndarray) -> np.ndarray:
        """What changes of the log-probabilities of a table add up to, of actions or sequences."""
        return np.asarray(_of_leaves(self.bandit, jnp.asarray(table)))

    def weigh(self, z: np.ndarray, m: np.ndarray, most: bool = False) -> np.ndarray:
        """The Fisher matrix times m, shape [n, ...]; `most`: m are errors."""
        scores, share = self.scores(z)
        scores = np.abs(scores) if most else scores
        return scores.T @ (share[:, None] * (scores @ m))

    def paced(self, z: np.ndarray, m: np.ndarray, most: bool = False) -> np.ndarray:
        """The rates that gains of m give; `most`: m are errors."""
        return m if self.natural else self.weigh(z, m, most)

    def gain(self, z: np.ndarray) -> np.ndarray:
        """The natural gradient, shape [n]."""
        return np.append(0.0, np.asarray(_direction(self.form, self.parts, jnp.asarray(z[1:]))))

    def rounding(self, z: np.ndarray, anchor: Any) -> np.ndarray:
        """How far rounding may have moved `gain`, shape [n]: what the last digits of z do to it."""
        del anchor
        g = self.gain(z)
        random = np.random.default_rng(0)
        seen = [
            np.abs(self.gain(z + 4 * _EPS * (1 + np.abs(z)) * random.normal(size=z.shape)) - g)
            for _ in range(3)
        ]
        return _SEEN * np.max(seen, axis=0) + 64 * _EPS * (np.abs(g) + self.unit)

    def partial_slopes(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The derivative of `gain` by policy, samples and reference, each [n, n]."""
        moving = [True, self.follows_samples, self.follows_reference]
        parts = []
        for which, moves in enumerate(moving):
            out = np.zeros((len(z), len(z)))
            if moves:
                at = jnp.asarray(z[1:])
                out[1:, 1:] = np.asarray(_slopes(self.form, self.parts, at, which))
            parts.append(out)
        return parts[0], parts[1], parts[2]

    def depth(self, z: np.ndarray) -> float:
        """The largest -log p of what the policy takes at all."""
        law = self.whole(z)
        return float(-np.min(law[np.isfinite(law)]))

    def rate(self, z: np.ndarray, anchor: Any) -> np.ndarray:
        """dz/dt, shape [n]."""
        del anchor
        if self.natural:
            return self.gain(z)
        f = _direction(self.plain_form, self.plain_parts, jnp.asarray(z[1:]))
        return np.append(0.0, np.asarray(f))

    def rate_slopes(self, z: np.ndarray, anchor: Any) -> np.ndarray:
        """The derivative of `rate`, shape [n, n]; all that moves with the policy moves."""
        del anchor
        if self.natural:
            return self.slopes(z)
        out = np.zeros((len(z), len(z)))
        out[1:, 1:] = np.asarray(_slopes(self.plain_form, self.plain_parts, jnp.asarray(z[1:]), -1))
        return out

    def directions(self, random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Random ones of the rewards and of the log-reference, each shaped like it, [D, ...].

        Equal rewards move together, as a field may be rough where they part.
        """
        by_reward = ways_of_levels(self.reward, random, count)
        held = ~np.isneginf(self.log_ref)
        q = np.where(held, np.exp(self.log_ref), 0)
        by_ref = random.normal(size=(count, *q.shape)) * held
        by_ref = by_ref - np.sum(q * by_ref, axis=-1, keepdims=True)
        return by_reward, by_ref * held

    def with_problem(self, reward: np.ndarray, log_ref: np.ndarray) -> "PolicyDynamics":
        """The same method on other rewards and another reference."""
        law = jax.nn.log_softmax(jnp.asarray(log_ref), axis=-1)
        law = jnp.where(jnp.isneginf(jnp.asarray(log_ref)), -jnp.inf, law)
        problem = with_rewards(with_reference(self.bandit, law), jnp.asarray(reward))
        method = dataclasses.replace(self.method, geometry="natural" if self.natural else "softmax")
        return PolicyDynamics(
            method,
            problem,
            self.expectation,
            self.policy,
            self.origin,
            self.old,
            self.loop,
            self.basis,
        )


def moving(policy: Policy, problem: Any, origin: Params) -> np.ndarray:
    """The directions of flat parameters that move the law, shape [D, r].

    Raises:
        ValueError: they are not the same everywhere, so that what is left over is no rest point.
    """
    flat, back = ravel_pytree(origin)
    random = np.random.default_rng(0)

    def law(x: Array) -> Array:
        table = whole_law(problem, policy.log_probs(back(x)))
        return jnp.where(jnp.isneginf(table), 0, table).ravel()

    scores = [
        np.asarray(jax.jacfwd(law)(flat + jnp.asarray(shift)))
        for shift in random.normal(size=(_TRIED, len(flat)))
    ]
    ranks = [_rank(x)[0] for x in (*scores, np.concatenate(scores))]
    if len(set(ranks)) > 1:
        raise ValueError(
            f"the {len(flat)} parameters of {type(own_policy(policy)).__name__} move the law in "
            f"{min(ranks)} ways at one place and in {max(ranks)} over several: its rest points are "
            "no single ones in them. Give parameters that are all needed, or follow a run: rd.run"
        )
    rank, directions = _rank(np.concatenate(scores))
    return np.eye(len(flat)) if rank == len(flat) else directions[:rank].T


def _rank(scores: np.ndarray) -> tuple[int, np.ndarray]:
    _, size, directions = np.linalg.svd(scores)
    return int(np.sum(size > _STILL * size.max(initial=0.0))), directions


def _at(
    method: Method,
    y: Array,
    samples: Array,
    reference: Array,
    problem: Any,
    expectation: Expectation,
    old: Array | None,
    loop: Loop | None,
    policy: Policy,
    origin: Params,
    basis: Array,
) -> Array:
    """The direction of the coordinates, where samples and reference may be those of others."""
    flat, back = ravel_pytree(origin)

    def law(y: Array) -> Array:
        return policy.log_probs(back(flat + basis @ y))

    problem, old, sampler = surrounded(loop, problem, old, law, samples, reference)
    moved = field(
        method,
        back(flat + basis @ y),
        problem,
        expectation,
        policy=own_policy(policy),
        old=old,
        sampler=sampler,
    )
    return basis.T @ ravel_pytree(moved)[0]


@functools.partial(jax.jit, static_argnums=0)
def _direction(form: Any, parts: list[Array], y: Array) -> Array:
    """The direction of a policy, its own samples and its own reference."""
    method, *rest = jax.tree.unflatten(form, parts)
    return _at(method, y, y, y, *rest)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _slopes(form: Any, parts: list[Array], y: Array, which: int) -> Array:
    """The derivative of the direction by one of the three that it hangs on, or by all (-1)."""
    method, problem, expectation, old, loop, *rest = jax.tree.unflatten(form, parts)
    together = which < 0 or loop is None or loop.is_bare

    def at(x: Array) -> Array:
        a, b, c = (x if together or i == which else y for i in range(3))
        return _at(method, a, b, c, problem, expectation, old, loop, *rest)

    return jax.vmap(lambda way: difference(at, y, way), out_axes=1)(jnp.eye(len(y)))


def _law(form: Any, parts: list[Array], y: Array) -> tuple[Any, Array]:
    """The problem, and the law of its actions or sequences."""
    _, problem, _, _, _, policy, origin, basis = jax.tree.unflatten(form, parts)
    flat, back = ravel_pytree(origin)
    return problem, whole_law(problem, policy.log_probs(back(flat + basis @ y)))


def _finite(form: Any, parts: list[Array], y: Array) -> Array:
    law = _law(form, parts, y)[1].ravel()
    return jnp.where(jnp.isneginf(law), 0, law)


@functools.partial(jax.jit, static_argnums=0)
def _scores(form: Any, parts: list[Array], y: Array) -> tuple[Array, Array]:
    """The derivatives of log-probabilities [L, n - 1], flat, and the share of each in a batch."""
    problem, law = _law(form, parts, y)
    share = jnp.exp(law)
    if isinstance(problem, Contexts):
        share = share * problem.weights[:, None]
    return jax.jacfwd(lambda y: _finite(form, parts, y))(y), share.ravel()


@functools.partial(jax.jit, static_argnums=0)
def _bends(form: Any, parts: list[Array], y: Array) -> Array:
    """The second derivatives of log-probabilities, [L, n - 1, n - 1]."""
    return jax.jacfwd(jax.jacfwd(lambda y: _finite(form, parts, y)))(y)


@jax.jit
def _of_leaves(problem: Any, table: Array) -> Array:
    if isinstance(problem, Contexts):
        return problem.map(_of_leaves, table)
    if isinstance(problem, Tree):
        return jnp.sum(problem.paths.along(jnp.where(problem.paths.exists, table, 0)), axis=1)
    return table
