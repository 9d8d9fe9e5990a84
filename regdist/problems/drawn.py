"""Rewards that are drawn: a law of the reward given the action, as a tree with chance in it.

K actions, M levels of reward. An action is the policy's one step; chance then draws its reward.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from regdist.numerics.records import Table, as_array, is_concrete
from regdist.problems.bandit import Bandit, bandit
from regdist.problems.grow import tree
from regdist.problems.tree import Tree


class Drawn(NamedTuple):
    """A problem whose rewards are drawn, in two views; made by `drawn_rewards()`.

    Attributes:
        tree: what methods see: an action, then its level, which chance draws. A leaf is a pair.
        mean: what targets see: the bandit of expected rewards.
        action: of each leaf, shape [L].
    """

    tree: Tree
    mean: Bandit
    action: Int[Array, " L"]

    def lift(self, logits: Float[Array, " K"]) -> Float[Array, "S V"]:
        """Logits, or a law, of the actions as a table of the tree's steps.

        Chance keeps its own law. `rd.field`, `rd.run` and `rd.identify` take it as parameters.

        Raises:
            TypeError: not numbers.
            ValueError: another shape.

        Examples:
            >>> d = drawn_rewards([0.0, 1.0], [[0.1, 0.9], [0.8, 0.2]])
            >>> print(d.lift(d.mean.log_ref).round(3))
            [[-0.693 -0.693]
             [-2.303 -0.105]
             [-0.223 -1.609]]
        """
        size, exists = self.mean.num_actions, self.tree.paths.exists
        given = as_array("logits", logits, self.mean.reward.dtype)
        if given.shape != (size,):
            raise ValueError(
                f"logits of drawn.lift(logits) must have shape {(size,)}, one for each action; got "
                f"{given.shape}"
            )
        row = jnp.pad(given, (0, exists.shape[1] - size), constant_values=-jnp.inf)
        rows = jnp.where(jnp.arange(exists.shape[0])[:, None] == 0, row, 0.0)
        return self.tree.with_chance(jnp.where(exists, rows, -jnp.inf))

    def lower(self, table: Float[Array, "*batch S V"]) -> Float[Array, "*batch K"]:
        """Of a table of the tree's steps, what concerns the actions."""
        return table[..., 0, : self.mean.num_actions]


def drawn_rewards(
    levels: Table, chances: Table, reference: Table | None = None, label: Any = None
) -> Drawn:
    """Actions whose reward is drawn anew with every sample: a noisy verifier, a random reward.

    What an advantage compares, a clip cuts or a quantile ranks is then the drawn reward, not its
    mean: `rd.field(method, d.lift(logits), d.tree, rd.Group(8))` is exact over all groups of
    actions and levels. A target is that of the mean, `rd.target(d.mean, regularizer)`, since the
    objective is linear in rewards; for reverse KL and entropies `rd.stepwise(d.tree, ...)` says the
    same.

    Args:
        levels: the rewards that there are, shape [M].
        chances: of each level given the action, rows that sum to 1, shape [K, M]; or shape [K], the
            chance of the second of two levels.
        reference: probabilities of the actions, default even.
        label: of the actions, as in `rd.bandit`.

    Raises:
        ValueError: traced tables, other shapes, levels that are equal, or rows that are no law.

    Examples:
        A verifier that is wrong one time in five is a factor on what a difference of rewards moves;
        GRPO divides by the deviation of what was drawn, and loses more.

        >>> clean, noisy = (drawn_rewards([0.0, 1.0], p) for p in ([1.0, 0.0], [0.8, 0.2]))
        >>> logits = jnp.array([0.5, -0.5])
        >>> for method in (rd.methods.reinforce(), rd.methods.grpo(0.0)):
        ...     moved = [rd.field(method, d.lift(logits), d.tree) for d in (clean, noisy)]
        ...     print((noisy.lower(moved[1]) / clean.lower(moved[0])).round(3))
        [0.6 0.6]
        [0.554 0.554]
    """
    values, law = _checked(levels, chances)
    size = law.shape[0]
    leaves: list[list[int]] = []
    paid: list[float] = []
    chance: dict[tuple[int, ...], dict[int, float]] = {}
    for a in range(size):
        drawn = np.flatnonzero(law[a]).tolist()
        if len(drawn) > 1:
            chance[a,] = {m: float(law[a, m]) for m in drawn}
        leaves += [[a, m] for m in drawn] if len(drawn) > 1 else [[a]]
        paid += values[drawn].tolist()
    mean = bandit(law @ values, reference, label=label)
    action = jnp.asarray([leaf[0] for leaf in leaves])
    rough = Drawn(tree(leaves, paid, chance=chance), mean, action)
    whole = tree(
        leaves,
        paid,
        step_log_reference=rough.lift(mean.log_ref),
        chance=chance,
        label=mean.label[action],
    )
    return Drawn(whole, mean, action)


def _checked(levels: Table, chances: Table) -> tuple[np.ndarray, np.ndarray]:
    """The levels, and their law for each action."""
    found = as_array("levels", levels), as_array("chances", chances)
    if not is_concrete(found):
        raise ValueError("levels and chances must be known, not traced: call it outside jax.jit")
    values, law = (np.asarray(x) for x in found)
    if values.ndim != 1 or len(np.unique(values)) != len(values) or not np.isfinite(values).all():
        raise ValueError(f"levels must be different rewards, shape [M]; got {values}")
    if law.ndim == 1 and len(values) == 2:
        law = np.stack([1 - law, law], axis=1)
    if law.ndim != 2 or law.shape[1] != len(values):
        raise ValueError(
            f"chances must have a row for each action, a column for each of {len(values)} levels; "
            f"got shape {law.shape}"
        )
    for a, row in enumerate(law):
        if not (np.all(row >= 0) and abs(row.sum() - 1) < 1e-6):
            raise ValueError(f"row {a} of chances must be probabilities that sum to 1; got {row}")
    return values, law / law.sum(axis=1, keepdims=True)
