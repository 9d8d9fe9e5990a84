"""Where an estimate of a KL sits: the options of a composition, and what follows from them."""

from typing import Any

import numpy as np

from regdist.methods import Method
from regdist.methods.advantage import Advantage, GroupRelative
from regdist.methods.penalty import Estimated

Penalty = dict[str, Any]
"""Options of `rd.methods.compose` about the penalty."""


def penalty(beta: float | None, estimator: str, placement: str, **how: Any) -> Penalty:
    """The options of an estimate; none where its coefficient is 0."""
    return {"beta": beta, "estimator": estimator, "placement": placement, **how} if beta else {}


def pitfalls(method: Method, size: int) -> list[str]:
    """What people would not expect of where the estimate of a composition sits.

    Args:
        method: the composition.
        size: of a group.
    """
    estimate = next(iter(anchors(method)), None)
    if estimate is None:
        if method.regularizer is not None:
            return []
        return ["there is no anchor: no part of the loss holds the policy to the reference"]
    found = [text for holds, text in _of_estimate(estimate) if holds]
    beta, advantage = float(estimate.beta), within(method.advantage)
    if isinstance(advantage, GroupRelative) and not estimate.regroups:
        if advantage.scale in DEVIATIONS:
            found.append(
                f"rewards are divided by their deviation sigma and the penalty is not: its "
                f"coefficient is {beta:g} sigma, and sigma shrinks as training succeeds"
            )
        elif advantage.scale == "none" and advantage.baseline == "mean" and size > 1:
            found.append(
                f"the mean of a group holds the sample itself, which shrinks rewards by 1 - 1/G "
                f"and the penalty not: its coefficient is {beta:g} G/(G-1), "
                f"{beta * size / (size - 1):.4g} at G = {size}"
            )
    return found


def _of_estimate(estimate: Estimated) -> list[tuple[bool, str]]:
    name, straight = estimate.estimator.removesuffix("+"), estimate.estimator.endswith("+")
    bare = estimate.placement == "loss" and not straight and estimate.corrected == "none"
    paid = estimate.placement == "reward"
    cut = float(np.asarray(estimate.clamp_value))
    return [
        (
            bare and name == "k1",
            "k1 in the loss has the mean gradient 0 on the policy's own samples: noise, no anchor",
        ),
        (bare and name == "k3", "k3 in the loss has the gradient of the *forward* KL"),
        (bare and name == "abs", "|log p/q| in the loss is twice the total variation"),
        (
            bare and name == "k3" and np.isfinite(cut),
            f"k3 is cut at {cut:g} with no gradient beyond: an action that has fallen far below "
            "its reference is not pulled back",
        ),
        (
            estimate.corrected != "none" and name == "k2" and not straight,
            "k2 times a live ratio is the mean of l^2/2: no KL, and its end may hang on the start",
        ),
        (
            paid and np.isfinite(cut),
            f"an estimate is cut at {cut:g}: an action that is rarer than that beside its "
            "reference is pulled back no harder",
        ),
        (paid and name == "k2", "k2 in the reward is no KL: it may rest in several places"),
        (paid and name == "k3", "k3 in the reward drives off actions below their reference"),
        (
            paid and estimate.after,
            "the penalty comes off after rewards are normalized: it weighs against sigma",
        ),
    ]


DEVIATIONS = ("std", "std_biased", "whiten", "whiten_biased", "others")
"""Scales of `GroupRelative` that are a standard deviation."""


def anchors(method: Method) -> list[Estimated]:
    """The estimates of a divergence from the reference; one from the old policy holds nothing."""
    found = (p for p in method.penalties if isinstance(p, Estimated))
    return [p for p in found if p.anchor != "old"]


def within(advantage: Advantage) -> Advantage:
    """What is inside of wrappers."""
    inner = getattr(advantage, "inner", None)
    return advantage if inner is None else within(inner)
