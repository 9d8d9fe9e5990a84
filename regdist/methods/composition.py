"""Composing a method from parts by the options that trainers have, with advice on wrong ones."""

import math
from typing import Any, TypedDict

import numpy as np

from regdist.methods.advantage import Advantage
from regdist.methods.geometry import GEOMETRIES
from regdist.methods.method import Method
from regdist.methods.penalty import ESTIMATORS, Estimated
from regdist.methods.surrogate import Clip, LogProb, Surrogate
from regdist.numerics.records import Number, as_number, is_concrete
from regdist.regularizers.regularizer import Regularizer, ReverseKL


class Common(TypedDict, total=False):
    """What every preset takes; see `compose` for all of these."""

    regularizer: Regularizer | None
    geometry: str
    weights: tuple[Any, ...]


class Clipped(Common, total=False):
    """And what presets with a ratio take."""

    clip_low: Number
    clip_high: Number
    clip_dual: Number


class Details(TypedDict, total=False):
    """Where and how a penalty is estimated."""

    after_normalization: bool
    ratio_corrected: bool
    anchor: str
    clamp_ratio: Number
    clamp_value: Number


class Penalized(Details, Common, total=False):
    """And what presets with a penalty take."""

    beta: Number
    estimator: str
    placement: str


class Detailed(Details, Clipped, total=False):
    """Ratio and the details of a penalty."""


class Options(Penalized, Clipped, total=False):
    """All of them."""


def compose(
    advantage: Advantage,
    surrogate: Surrogate | None = None,
    *,
    beta: Number | None = None,
    estimator: str | None = None,
    placement: str | None = None,
    after_normalization: bool = False,
    ratio_corrected: bool = False,
    anchor: str = "reference",
    clamp_ratio: Number = math.inf,
    clamp_value: Number = math.inf,
    clip_low: Number | None = None,
    clip_high: Number | None = None,
    clip_dual: Number = math.inf,
    penalties: tuple[Any, ...] = (),
    weights: tuple[Any, ...] = (),
    signal: Any = None,
    controller: Any = None,
    regularizer: Regularizer | None = None,
    geometry: str = "softmax",
) -> Method:
    """A method from its parts.

    Args:
        advantage: one of `rd.methods.advantage`, `rd.methods.matching`.
        surrogate: one of `rd.methods.surrogate`; default: PPO's clip if clip_low or clip_high is
            given, else A log pi without a ratio.
        beta: coefficient of the KL penalty; None or 0 for none.
        estimator: "k1", "k2", "k3" (default), "abs", one of these with "+" (its value, the
            gradient of k2), or "full": the exact KL(policy || reference), summed over actions.
        placement: "loss" (default) or "reward".
        after_normalization: for the reward: subtract from the advantage instead.
        ratio_corrected: for the loss: times the ratio to the old policy, not detached.
        anchor: "reference", "old" or "uniform".
        clamp_ratio: |log(policy/anchor)| beyond it is cut.
        clamp_value: an estimate beyond it is cut.
        clip_low: ratios below 1 - clip_low are clipped.
        clip_high: ratios above 1 + clip_high are clipped.
        clip_dual: with a negative advantage, ratios above it are clipped.
        penalties: further ones.
        weights: factors on the coefficients.
        signal: what is paid in place of the reward.
        controller: what moves a coefficient during a run.
        regularizer: subtracted exactly.
        geometry: "softmax", "natural" or "sign".

    Raises:
        ValueError: an unknown choice, or parts that cannot act together.

    Examples:
        >>> adv = rd.methods.advantage.GroupRelative(jnp.array(0.0), "mean")
        >>> compose(adv, clip_low=0.2, clip_high=0.28, beta=0.1, estimator="k2").surrogate
        Clip(...)
    """
    clips = clip_low is not None or clip_high is not None
    if surrogate is None:
        surrogate = LogProb()
        if clips:
            low = 1.0 if clip_low is None else clip_low
            high = math.inf if clip_high is None else clip_high
            surrogate = Clip(1 - as_number(low), 1 + as_number(high), as_number(clip_dual))
    elif clips:
        raise ValueError(
            f"clip_low and clip_high have no meaning for {type(surrogate).__name__}, which has no "
            "clipped ratio to an old policy: leave them out, or leave the surrogate out"
        )
    for name, value, known in (
        ("estimator", estimator, (*ESTIMATORS, "full")),
        ("placement", placement, ("loss", "reward")),
        ("anchor", anchor, ("reference", "old", "uniform")),
        ("geometry", geometry, tuple(GEOMETRIES)),
    ):
        if value is not None and value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}; got {name}={value!r}")
    if beta is None and (estimator is not None or placement is not None):
        raise ValueError(
            f"an estimator without a coefficient does nothing (estimator={estimator!r}, "
            f"placement={placement!r}): give beta, or leave both out"
        )
    if beta is not None and is_concrete(beta) and not np.all(np.asarray(beta) >= 0):
        raise ValueError(f"beta must be at least 0; got beta={beta!r}")
    where = placement or "loss"
    if after_normalization and where == "loss":
        raise ValueError("after_normalization is about the reward: give placement='reward'")
    if ratio_corrected and where == "reward":
        raise ValueError("ratio_corrected is about the loss: give placement='loss'")
    none = beta is None or (is_concrete(beta) and not np.any(np.asarray(beta)))
    if beta is not None and not none and estimator == "full":
        if where == "reward" or anchor != "reference":
            raise ValueError(
                "estimator='full' is the exact KL to the reference, summed over all actions: it "
                "is neither in the reward nor to another anchor. Use placement='loss', or "
                "regularizer=rd.ReverseKL(beta, anchor=log_probs)"
            )
        exact = ReverseKL(beta)
        regularizer = exact if regularizer is None else regularizer + exact
    elif beta is not None and not none:
        penalty = Estimated(
            as_number(beta),
            as_number(clamp_ratio),
            as_number(clamp_value),
            estimator or "k3",
            where,
            after_normalization,
            ratio_corrected,
            anchor,
        )
        penalties = (penalty, *penalties)
    return Method(
        advantage, surrogate, penalties, weights, regularizer, signal, controller, geometry
    )
