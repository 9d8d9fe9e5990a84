"""What a policy answers: parameters to log-probabilities, and the way back. K is of actions."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree
from jaxtyping import Bool, Float

Params = Any
"""The parameters of a policy: one array, or a tree of arrays."""
# Times the rounding of a score: what the decomposition adds, and the norm in place of the largest
# singular value.
_BLURS = 8


class Policy:
    """From parameters to log-probabilities, and from a weighted score to a direction.

    A policy of one's own is a record with one method, `log_probs`; numbers that it holds, such as
    features, are data. The ways back follow by automatic differentiation, and a policy overrides
    what it knows in closed form.

    `excludes` says that an action can be given probability 0 by its parameters, which problems
    with forbidden actions need; `is_array` that its parameters are one array, which people may
    write as a list.

    Examples:
        Two actions that share a parameter, as `rd.policies.LogLinear` has them:

        >>> @rd.record
        ... class Features(rd.policies.Policy):
        ...     features: jax.Array  # [K, D]
        ...     def log_probs(self, params):
        ...         return jax.nn.log_softmax(self.features @ params)
        >>> policy = Features(jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
        >>> b = rd.bandit([1.0, 0.0, 0.0])
        >>> rd.field(rd.methods.reinforce(), jnp.zeros(2), b, policy=policy).round(4)
        Array([ 0.1111, -0.1111], dtype=float64)
    """

    excludes: ClassVar[bool] = False
    is_array: ClassVar[bool] = False

    def log_probs(self, params: Params) -> Float[Array, "*K"]:
        """Log p, normalized, in nats."""
        raise NotImplementedError

    def start(self, log_ref: Float[Array, "*K"]) -> Params:
        """The parameters of the reference policy, where a run begins unless told otherwise."""
        del log_ref
        raise ValueError(
            f"a run of {type(self).__name__} needs parameters to start from: give init=..., or let "
            "the policy have start(log_ref)"
        )

    def pull_back(self, params: Params, weighted: Float[Array, "*K"]) -> Params:
        """sum_i weighted_i grad log p_i, shaped like the parameters."""
        return jax.vjp(self.log_probs, params)[1](weighted)[0]

    def natural(
        self, params: Params, gain: Float[Array, "*K"], weighted: Float[Array, "*K"]
    ) -> Params:
        """The natural gradient, the inverse Fisher matrix times `pull_back`.

        It is the smallest x that minimizes sum_i p_i (gain_i - E gain - x . grad log p_i)^2: the
        best fit of the gains by scores (Kakade 2001).

        Args:
            params: where.
            gain: the derivative of the objective in each p_i, up to a constant.
            weighted: p_i times it, with its limit where p_i = 0; its sum is E gain.
        """
        flat, shape_back = ravel_pytree(params)
        log_p = self.log_probs(params)
        root = jnp.exp(log_p / 2)
        scores = jax.jacrev(lambda x: self.log_probs(shape_back(x)))(flat)
        wanted = jnp.where(root > 0, root * (gain - jnp.sum(weighted)), 0)
        return shape_back(fit_by_scores(scores, root, wanted))

    def exclude(self, params: Params, gone: Bool[Array, "*K"]) -> Params:
        """The parameters with some actions at probability 0, if the policy `excludes`."""
        del gone
        return params

    def freeze(self, direction: Params, gone: Bool[Array, "*K"]) -> Params:
        """A direction that leaves the parameters of some actions alone, if they have their own."""
        del gone
        return direction


def fit_by_scores(
    scores: Float[Array, "N D"], root: Float[Array, " N"], wanted: Float[Array, " N"]
) -> Float[Array, " D"]:
    """The smallest x that minimizes the square of root scores x - wanted.

    A score is good to rounding in its own size, not in that of the row that `root` makes of it:
    where one action has all but the whole mass, the rows that are left are small, and a direction
    that moves no law must still be told from one that moves rare actions.

    Args:
        scores: of each action by each parameter; not looked at where `root` is 0.
        root: square roots of how often each is taken.
        wanted: what the weighted scores should add up to.
    """
    inside = (root > 0)[:, None]
    scores = jnp.where(inside, scores, 0)
    rows = root[:, None] * scores
    blur = jnp.finfo(rows.dtype).eps * max(rows.shape) * jnp.max(jnp.abs(scores)) * jnp.max(root)
    size = jnp.linalg.norm(rows)
    least: Any = _BLURS * blur / jnp.where(size > 0, size, 1)
    return jnp.linalg.lstsq(rows, wanted, rcond=least)[0]
