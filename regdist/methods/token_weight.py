"""Weights and masks of steps by their place in the batch: which tokens have a gradient at all.

Like those in `weight`, functions of a batch and its advantages; of steps where samples are
sequences, so that a rank, a mean or a quantile is over all steps of the group. In a bandit all
steps have one state, and masks by the state keep all or none.
"""

from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from regdist.methods.batch import Batch, quantile, share_of_samples, top_share
from regdist.methods.weight import Weight
from regdist.metrics import entropy
from regdist.numerics.records import choice, record


@record
class TopEntropy(Weight):
    """Only the steps whose state has the largest entropy have a gradient (80/20, 2506.01939).

    The entropy is that of the policy that is moved, ranked over all steps of the batch. A penalty
    in the loss is not masked.

    Attributes:
        share: of the steps that are kept.
        form: "quantile", TRL's `top_entropy_quantile`: those at or above the quantile 1 - share,
            linear between order statistics, so that equal ones are kept together; averages still
            count all steps. "count", CarlanLark/Lp-Reg-dev
            `compute_policy_loss_8020_split`: int(share n) of n steps, at least one, equal ones in
            the mean over their orders; and a token mean is over those that are kept.

    Examples:
        The middle state is the most open one, and 0.087 of all steps are taken there.

        >>> t = rd.tree([[0], [1, 0], [1, 1, 0], [1, 1, 1]], [0.0, 0.3, 0.2, 1.0])
        >>> log_steps = jnp.log(jnp.array([[0.9, 0.1], [0.5, 0.5], [0.8, 0.2]]))
        >>> for share in (1.0, 0.05):
        ...     method = rd.methods.grpo(0.0, averaging="token", weights=TopEntropy(share))
        ...     print(rd.field(method, log_steps, t)[:, 1].round(4))
        [0.2108 0.0106 0.0454]
        [0.     0.0106 0.    ]
    """

    share: Array
    form: str = choice("quantile", "count", default="quantile")

    local: ClassVar[bool] = False

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """1 where the gradient stays; in form "count" more, as fewer steps share the mean."""
        del advantage
        each = batch.pick(batch.tables.each_row(entropy, batch.tables.log_p))
        if self.form == "count":
            share = share_of_samples(batch, self.share)
            return top_share(batch, each, share) / share
        least = quantile(batch, each, 1 - self.share)
        # 64 ulps: entropies that are equal in exact arithmetic are kept together
        rounding = 64 * jnp.finfo(each.dtype).eps * batch.largest(each)
        return jnp.where(each >= least - rounding, 1.0, 0.0).astype(each.dtype)
