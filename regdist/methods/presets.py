"""The known methods by name."""

import math

from jax.typing import ArrayLike

from regdist.methods.advantage import GroupRelative
from regdist.methods.method import Method
from regdist.methods.penalty import ESTIMATORS, Penalty
from regdist.methods.surrogate import Clip, LogProb
from regdist.records import as_number
from regdist.regularizer import Regularizer


def policy_gradient(regularizer: Regularizer | None = None) -> Method:
    """Plain gradient ascent on the logits of a softmax table (arXiv 2005.06392).

    Update direction p_i (w_i - E_p w), with w = R - d regulariser/dp. Regularised, it converges
    linearly, at a rate that the least likely action of the target sets; until every action is
    near its target it can sit on a plateau. Without a regulariser it collapses onto one action.

    Args:
        regularizer: subtracted from the expected reward; None for the plain reward.
    """
    return Method(GroupRelative(as_number(0)), regularizer=regularizer)


def natural_policy_gradient(regularizer: Regularizer | None = None) -> Method:
    """Natural policy gradient, which for a table is mirror descent in KL (arXiv 2007.06558).

    Update direction w_i - E_p w. With reverse KL and step size eta one step is
    p <- p^(1 - eta beta) q^(eta beta) e^(eta R), normalised: the log-ratio to the target contracts
    by exactly 1 - eta beta, and eta = 1/beta arrives in one step.

    Args:
        regularizer: subtracted from the expected reward; None for the plain reward.
    """
    return Method(GroupRelative(as_number(0)), regularizer=regularizer, geometry="natural")


def rloo() -> Method:
    return Method(GroupRelative(as_number(0), "others"))


def grpo(beta: ArrayLike = 0.04) -> Method:
    return Method(
        GroupRelative(as_number(1e-6), "mean", "std", "raw"),
        Clip(as_number(0.8), as_number(1.2), as_number(math.inf)),
        (Penalty(as_number(beta), as_number(20), as_number(10)),),
    )
