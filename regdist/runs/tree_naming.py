"""Which target of a tree is an end? Three recursions, each with every family of regularizers.

At the target of a recursion U = A - beta B is equal among the steps of a state. A is the reward
expected after a step, and B what is lost there per unit of beta: by whole sequences, the expected
slope of their divergence; by steps, the slope of the state's own divergence, and where futures are
regularized the divergences of the states to come. From the end itself follow the beta that makes U
equal, the error of every log-probability, and how a target there moves with the problem.

n is of coordinates, B of the states that have some, L of leaves, D of directions.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from regdist.problems.state_table import StateTable
from regdist.regularizers.regularizer import Regularizer
from regdist.runs.naming import DEEP, FAMILIES, Fit, Response, preferred, slope_parts, told
from regdist.runs.tree_dynamics import TreeDynamics
from regdist.targets.solve import target
from regdist.targets.stepwise import stepwise

LEAF, STEPWISE, UNPENALISED = "leaf", "stepwise", "stepwise with unpenalised future"
FORMS = (LEAF, STEPWISE, UNPENALISED)
"""The recursions: `rd.target` of the leaves, and `rd.stepwise` with either future."""
_EPS = float(np.finfo(np.float64).eps)
_REFINED = 4  # times that beta is fitted to the errors of log p that the last one left


class _Side(NamedTuple):
    """A, or B at beta 1, and how it moves.

    Attributes:
        at: of each step, shape [n].
        by_z: its derivative in the logits, shape [n, n].
        by_ref: its derivative along directions of the log-reference, shape [n, D].
        scale: how log p answers to it, shape [n]: its weights where beta is fitted first.
    """

    at: np.ndarray
    by_z: np.ndarray
    by_ref: np.ndarray
    scale: np.ndarray


class Recursions:
    """The targets of a tree beside an end of a flow.

    Args:
        flow: of the method.
        z: logits of the end, all finite, shape [n].
    """

    def __init__(self, flow: TreeDynamics, z: np.ndarray):
        self.flow, self.tree = flow, flow.tree
        self.p, self.log_mass = np.exp(flow.law(z)), flow.log_mass(z)
        self.others, self.anchor = flow.held(z)
        shape = self.tree.paths.exists.shape
        self.log_steps = StateTable(self.tree).log_probs(jnp.asarray(flow.place(z).reshape(shape)))
        self.log_leaves = np.asarray(self.tree.leaves(self.log_steps))
        self.way_of_leaves = flow.ways_of_leaves()
        self.moved_leaves = flow.moved_way(self.way_of_leaves, self.p)
        # How often a path that takes a step comes to each leaf [n, L], and to each state [n, B].
        log_leaves = self.log_leaves[flow.comes]
        self.to_leaves = np.exp(log_leaves - self.log_mass[:, None]) * self.way_of_leaves.T
        log_visits = (self.log_mass - flow.law(z))[flow.first]
        beyond = flow.way[flow.first].T & (flow.block[:, None] != flow.block[flow.first])
        self.to_states = np.where(beyond, np.exp(log_visits - self.log_mass[:, None]), 0)
        reward = flow.reward[flow.comes]
        gained = self.to_leaves @ reward
        none = np.zeros((len(z), 0))
        self.gained = _Side(gained, self._passed(gained), none, np.ones(len(z)))

    @property
    def forms(self) -> tuple[str, ...]:
        """The recursions that are problems of their own here.

        With chance no law of whole sequences may be chosen. Where no path has two choices a step is
        all that is chosen, and the three are one.
        """
        flow = self.flow
        free = np.bincount(flow.block)[flow.block] > 1
        first = LEAF if self.tree.log_chance is None else STEPWISE
        if np.sum(flow.way & free, axis=1).max(initial=0) < 2:
            return (first,)
        return FORMS if first == LEAF else (STEPWISE, UNPENALISED)

    @property
    def has_edges(self) -> bool:
        """Whether it never takes a step that it might: a target may have mass there."""
        flow, tree = self.flow, self.tree
        comes = ~np.isneginf(np.asarray(tree.log_visits(self.log_steps)))
        might = np.asarray(tree.possible) & (np.asarray(tree.chooses) & comes)[:, None]
        return bool(np.any(might.reshape(-1) & ~flow.alive))

    def law(self, fit: Fit) -> np.ndarray:
        """The target of a fit, found by its own solver, of whole sequences [L]."""
        if fit.form == LEAF:
            return np.asarray(target(self.tree.bandit, fit.regularizer).log_probs)
        future = "regularized" if fit.form == STEPWISE else "reward"
        return np.asarray(stepwise(self.tree, fit.regularizer, future).log_probs)

    def _passed(self, x: np.ndarray) -> np.ndarray:
        """The derivative in the logits of what x of the steps beyond adds on average, [n, n]."""
        apart = self.p * (x - self.flow.mean(self.p, x))
        return self.to_states[:, self.flow.block] * apart

    def lost(self, form: str, regularizer: Regularizer, log_ref: np.ndarray) -> _Side:
        """B of a recursion, with its derivatives along directions of the log-reference [D, n].

        Not finite where a divergence is not, as where a forbidden step was the reference's.
        """
        with np.errstate(invalid="ignore"):
            return self._lost(form, regularizer, log_ref)

    def _lost(self, form: str, regularizer: Regularizer, log_ref: np.ndarray) -> _Side:
        flow, tree = self.flow, self.tree
        if form == LEAF:
            law = np.where(np.isneginf(self.log_leaves), DEEP, self.log_leaves)
            parts = slope_parts(regularizer, jnp.asarray(law), tree.bandit.log_ref)
            slope, by_p, by_ref = (np.asarray(x)[flow.comes] for x in parts)
            at = self.to_leaves @ slope
            by_z = self.to_leaves @ (by_p[:, None] * self.moved_leaves) + self._passed(at)
            moved = _times(by_ref, self.way_of_leaves @ log_ref.T)
            return _Side(at, by_z, self.to_leaves @ moved, self.to_leaves @ by_p)
        rows = _row_parts(regularizer, self.log_steps, tree.log_ref)
        slope, by_p, by_ref, value, value_by_ref = (np.asarray(x) for x in rows)
        at, by_p, by_ref, value_by_ref = (
            x.reshape(-1)[flow.index] for x in (slope, by_p, by_ref, value_by_ref)
        )
        same = flow.block[:, None] == flow.block
        by_z = by_p[:, None] * (np.eye(len(at)) - same * self.p)
        moved, scale = _times(by_ref, log_ref.T), by_p
        if form == STEPWISE:
            states = flow.index[flow.first] // tree.paths.exists.shape[1]
            spent = np.add.reduceat(_times(value_by_ref, log_ref.T), flow.first, axis=0)
            at = at + self.to_states @ value[states]
            by_z = by_z + self._passed(at)
            moved = moved + self.to_states @ spent
        return _Side(at, by_z, moved, scale)

    def families(self, own: Sequence[float]) -> list[Fit]:
        """Every family in every recursion, at the beta that explains the end best."""
        fits = []
        for form in self.forms:
            for name, make in FAMILIES.items():
                if form == STEPWISE and LEAF in self.forms and make(1.0).merges():
                    continue  # reverse KL and the entropy add up along a path: one target
                side = self.lost(form, make(1.0), np.zeros((0, len(self.p))))
                beta, error = self._best_beta(side)
                if beta is None:
                    continue
                beta, error = preferred(own, beta, error, lambda x, side=side: self._error(side, x))
                fits.append(Fit(name, beta, make(beta), error, form=form))
        return fits

    def fixed(self, name: str, regularizer: Regularizer) -> list[Fit]:
        """A regularizer with its coefficients, in every recursion."""
        none = np.zeros((0, len(self.p)))
        forms = [f for f in self.forms if f != STEPWISE or not regularizer.merges()]
        forms = forms if LEAF in forms else list(self.forms)
        errors = [self._error(self.lost(f, regularizer, none), 1.0) for f in forms]
        return [Fit(name, None, regularizer, e, form=f) for f, e in zip(forms, errors, strict=True)]

    def compare(self, fit: Fit, response: Response) -> Fit:
        """The fit with its response beside the end's."""
        if response.log_p is None or fit.regularizer.follows_policy():
            return fit
        side = self.lost(fit.form, fit.regularizer, response.log_ref)
        inverse = self._inverse(side, 1.0)
        if inverse is None or not np.all(np.isfinite(side.by_ref)):
            return fit
        by_reward = self.to_leaves @ response.reward[:, self.flow.comes].T
        wants = -self._steps(inverse, by_reward - side.by_ref).T
        by_beta = self._steps(inverse, side.at[:, None])[:, 0]
        weight = np.exp(self.log_mass)
        moved, odds = response.log_p, len(self.others)
        return told(fit, moved, response.error, list(wants), by_beta, weight, odds)

    def _best_beta(self, side: _Side) -> tuple[float | None, float]:
        if not np.all(np.isfinite(side.at)) or not np.all(side.scale > 0):
            return None, np.inf
        weight = (side.scale.min() / side.scale) ** 2
        total = self.flow.mean(weight, np.ones(len(weight)))
        a, b = (x - self.flow.mean(weight, x) / total for x in (self.gained.at, side.at))
        size = float(weight @ b**2)
        beta = float(weight @ (a * b)) / size if size > 0 else 0.0
        for _ in range(_REFINED):
            if not beta > 0:
                return None, np.inf
            inverse = self._inverse(side, beta)
            if inverse is None:
                return None, np.inf
            off = self.way_of_leaves @ self._off(side, beta, inverse)
            by_beta = self.way_of_leaves @ self._steps(inverse, side.at[:, None])[:, 0]
            size = float(by_beta @ by_beta)
            # `off` is how far the target's log p is from the end's, and moves with its beta.
            beta -= float(off @ by_beta) / size if size > 0 else 0.0
        return (beta, self._error(side, beta)) if beta > 0 else (None, np.inf)

    def _inverse(self, side: _Side, beta: float) -> np.ndarray | None:
        """The inverse of the derivative of U, of and by what is not held; None if it has none."""
        by_z = self.gained.by_z - beta * side.by_z
        by_z = (by_z - by_z[self.anchor])[np.ix_(self.others, self.others)]
        if not np.all(np.isfinite(by_z)):
            return None
        size = np.abs(by_z).max(axis=1)
        if not np.all(size > 0):
            return None
        try:
            return np.linalg.inv(by_z / size[:, None]) / size
        except np.linalg.LinAlgError:
            return None

    def _steps(self, inverse: np.ndarray, u: np.ndarray) -> np.ndarray:
        """The moves of log p that move U by u, shape [n, D] each."""
        moved = np.zeros(u.shape)
        moved[self.others] = inverse @ (u - u[self.anchor])[self.others]
        return moved - self.flow.mean(self.p, moved)

    def _off(self, side: _Side, beta: float, inverse: np.ndarray) -> np.ndarray:
        """How far the target's log p is from the end's, to first order, shape [n]."""
        u = self.gained.at - beta * side.at
        return -self._steps(inverse, u[:, None])[:, 0]

    def _error(self, side: _Side, beta: float) -> float:
        """The largest error of the log-probability of a leaf, less what rounding may do."""
        if not np.all(np.isfinite(side.at)) or not np.all(side.scale > 0):
            return np.inf
        inverse = self._inverse(side, beta)
        if inverse is None:
            return np.inf
        off = self.way_of_leaves @ self._off(side, beta, inverse)
        size = 8 * _EPS * (np.abs(self.flow.reward[self.flow.comes]).max() + beta * np.abs(side.at))
        blurred = np.zeros(len(self.p))
        blurred[self.others] = np.abs(inverse) @ (size + size[self.anchor])[self.others]
        return float(np.maximum(np.abs(off) - self.way_of_leaves @ blurred, 0).max())


def _times(slope: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """Each row of moves [n, D] times its slope [n]; 0 where nothing moves."""
    return np.where(moves != 0, slope[:, None] * moves, 0)


@jax.jit
def _row_parts(regularizer: Regularizer, log_p: Any, log_ref: Any) -> Any:
    """Of the law of each state: slopes and their derivatives, the value, and that by log q."""
    ones = jnp.ones(log_p.shape[-1], log_p.dtype)

    def row(at: Any, q: Any) -> Any:
        slope, by_p = jax.jvp(lambda at: regularizer.slope(at, q), (at,), (ones,))
        by_ref = jax.jvp(lambda q: regularizer.slope(at, q), (q,), (ones,))[1]
        value, value_by_ref = jax.value_and_grad(lambda q: regularizer.value(at, q))(q)
        return slope, by_p, by_ref, value, value_by_ref

    return jax.vmap(row)(log_p, log_ref)
