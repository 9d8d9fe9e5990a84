"""The flow of a method on a tree, in logits of steps. S states, V tokens, L leaves.

A coordinate, of n, is the log-probability of a step in its state, of the states where the policy
moves and where it comes; one logit of each state is held. The gain of a step is its rate under the
natural gradient; under a softmax its rate is that gain times how often the step is taken.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from regdist.methods import Expectation, Method
from regdist.problems.contexts import with_reference
from regdist.problems.state_table import StateTable
from regdist.problems.tree import Tree
from regdist.runs.dynamics import Dynamics, ways_of_levels
from regdist.runs.loop import Loop

MOST_STEPS = 512
"""Coordinates of a flow on a tree: each column of its dense Jacobian is a pass over the tree."""


def check_few_steps(tree: Tree, where: str) -> None:
    """Refuses a tree of more steps than a Jacobian is made for.

    Raises:
        ValueError: there are more than `MOST_STEPS`.
    """
    count = int(jnp.sum(tree.possible & tree.chooses[:, None]))
    if count > MOST_STEPS:
        raise ValueError(
            f"rd.{where} proves ends by a dense Jacobian, on a tree of at most {MOST_STEPS} steps "
            f"of the policy; here are {count:,}: one Jacobian would be {count:,} passes over "
            f"{tree.num_leaves:,} sequences. Take fewer sequences, or follow a run: rd.run"
        )


def steps_of(tree: Tree, log_leaves: np.ndarray) -> np.ndarray:
    """The steps of the policy that a law of whole sequences [L] takes; flat, [S V]."""
    steps = tree.conditionals(jnp.asarray(log_leaves))
    reach = tree.paths.log_reach(steps)
    return np.asarray(tree.chooses[:, None] & ~jnp.isneginf(reach)).reshape(-1)


def steps_alive(tree: Tree, logits: np.ndarray) -> np.ndarray:
    """The steps that a policy of logits [S, V] takes, where it moves; flat, [S V]."""
    held = jnp.where(tree.possible, jnp.asarray(logits, tree.log_ref.dtype), -jnp.inf)
    reach = tree.paths.log_reach(StateTable(tree).log_probs(held))
    return np.asarray(tree.chooses[:, None] & ~jnp.isneginf(reach)).reshape(-1)


class TreeDynamics(Dynamics):
    """Gains of a method on a tree, of the steps that are alive.

    Attributes:
        block: which of the states that have coordinates each is of, shape [n]; B states.
        first: the first coordinate of each of those states, shape [B].
        way: whether coordinate j is on the way to and with coordinate i, shape [n, n].
        comes: the leaves to which the policy comes.
    """

    faces = False
    edge = "steps"

    def __init__(
        self,
        method: Method,
        tree: Tree,
        expectation: Expectation,
        alive: np.ndarray,
        old: np.ndarray | None = None,
        loop: Loop | None = None,
    ):
        super().__init__(method, tree, expectation, alive, old, loop)
        self.tree = tree
        vocabulary = tree.paths.exists.shape[1]
        states = self.index // vocabulary
        _, self.first, self.block = np.unique(states, return_index=True, return_inverse=True)
        self.way, self.luck = self._ways(self.index)
        self.comes = np.flatnonzero(~np.isneginf(self.whole(np.zeros(len(states)))))
        self.unit = float(np.ptp(self.reward[self.comes])) or 1.0

    def of_problem(self) -> tuple[np.ndarray, np.ndarray]:
        """The rewards of leaves, shape [L], and the log-reference of steps, shape [n]."""
        tree = self.bandit
        return np.asarray(tree.bandit.reward), np.asarray(tree.log_ref).reshape(-1)[self.index]

    def _ways(self, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The coordinates on the way to and with flat steps, [N, n], and the luck of the way, [N].

        Luck is the log-probability of chance.
        """
        tree, n = self.tree, len(self.index)
        vocabulary, parent = tree.paths.exists.shape[1], np.asarray(tree.paths.parent)
        coordinate = np.full(self.alive.shape, n)  # column n is of what has none
        coordinate[self.index] = np.arange(n)
        chance = np.zeros(self.alive.shape)
        if tree.log_chance is not None:
            moves = np.asarray(tree.chooses)[:, None]
            chance = np.where(moves, 0, np.asarray(tree.log_chance)).reshape(-1)
        above = np.zeros((len(parent), n + 1), bool)
        luck = np.zeros(len(parent))
        for s in range(1, len(parent)):
            before = parent[s] // vocabulary
            above[s], luck[s] = above[before], luck[before] + chance[parent[s]]
            above[s, coordinate[parent[s]]] = True
        way = above[steps // vocabulary]
        way[np.arange(len(steps)), coordinate[steps]] = True
        return way[:, :n], luck[steps // vocabulary] + chance[steps]

    def law(self, z: np.ndarray) -> np.ndarray:
        """Log-probabilities of steps in their states, shape [n]."""
        beside = z - z[self.anchor(z)]
        return beside - np.log(np.add.reduceat(np.exp(beside), self.first))[self.block]

    def anchor(self, z: np.ndarray) -> np.ndarray:
        """For each coordinate the likeliest of its state, whose logit is held, shape [n]."""
        return np.lexsort((-z, self.block))[self.first][self.block]

    def mean(self, p: np.ndarray, x: np.ndarray) -> np.ndarray:
        """The mean of x, shape [n, ...], in each state under its law p [n]."""
        weighted = p.reshape(-1, *[1] * (x.ndim - 1)) * x
        return np.add.reduceat(weighted, self.first, axis=0)[self.block]

    def mass(self, z: np.ndarray) -> np.ndarray:
        """How often each step is taken, shape [n]."""
        return np.exp(self.log_mass(z))

    def log_mass(self, z: np.ndarray) -> np.ndarray:
        """The logarithm of `mass`, shape [n]."""
        return self.way @ self.law(z) + self.luck

    def moved_rate(self, z: np.ndarray, d: np.ndarray, m: np.ndarray) -> np.ndarray:
        """The derivative of mass (d - mean d) in the logits, where that of d is m, [n, n].

        The mass of i moves with z_j as itself times (1[j on the way to i] - p_j 1[the way to i
        passes the state of j]), and the mean in a state with its law and with d.
        """
        p, mass = np.exp(self.law(z)), self.mass(z)
        same = self.block[:, None] == self.block
        apart = d - self.mean(p, d)
        moved = apart[:, None] * self.moved_way(self.way, p)
        moved_mean = same * (p * apart) + self.mean(p, m)
        return mass[:, None] * (moved + m - moved_mean)

    def moved_way(self, way: np.ndarray, p: np.ndarray) -> np.ndarray:
        """The derivative in the logits of the log-probability of ways, rows of coordinates."""
        same = self.block[:, None] == self.block
        passes = (way.astype(float) @ same) > 0
        return way - passes * p

    def ways_of_leaves(self) -> np.ndarray:
        """As `way`, of the leaves to which the policy comes."""
        return self._ways(np.asarray(self.tree.paths.last)[self.comes])[0]

    def directions(self, random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Random ones of the rewards, shape [D, L], and of the log-reference, [D, n].

        Equal rewards move together, as a field may be rough where they part.
        """
        by_reward = ways_of_levels(self.reward, random, count)
        held = ~np.isneginf(self.log_ref)
        q = np.where(held, np.exp(self.log_ref), 0)
        by_ref = random.normal(size=(count, len(q))) * held
        total = self.mean(q, np.ones(len(q)))
        mean = self.mean(q, by_ref.T).T / np.where(total > 0, total, 1)
        return by_reward, (by_ref - mean) * held

    def with_problem(self, reward: np.ndarray, log_ref: np.ndarray) -> "TreeDynamics":
        """The same method on other rewards [L] and another reference of steps, shape [n]."""
        fresh = np.asarray(self.tree.log_ref).reshape(-1).copy()
        fresh[self.index] = log_ref
        rows = jnp.asarray(fresh.reshape(self.tree.paths.exists.shape))
        law = self.tree.with_chance(jax.vmap(jax.nn.log_softmax)(rows))
        leaves = dataclasses.replace(self.tree.bandit, reward=jnp.asarray(reward))
        tree = with_reference(dataclasses.replace(self.tree, bandit=leaves), law)
        method = dataclasses.replace(self.method, geometry="natural" if self.natural else "softmax")
        return TreeDynamics(method, tree, self.expectation, self.alive, self.old, self.loop)

    def read(self, law: np.ndarray) -> np.ndarray:
        """The coordinates, shape [n], of the log-probabilities of whole sequences, [L]."""
        return self.gather(np.asarray(self.tree.conditionals(jnp.asarray(law))))

    def gather(self, full: np.ndarray) -> np.ndarray:
        """The coordinates, shape [n], of logits of all steps, [S, V]."""
        return super().gather(full.reshape(-1))

    def whole(self, log_p: np.ndarray) -> np.ndarray:
        """The log-probabilities of whole sequences, shape [L], from those of the coordinates."""
        shape = self.tree.paths.exists.shape
        steps = StateTable(self.tree).log_probs(jnp.asarray(self.place(log_p).reshape(shape)))
        return np.asarray(self.tree.leaves(steps))
