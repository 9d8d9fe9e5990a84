"""Composing a method from parts by the options that trainers have, with advice on wrong ones."""

import math
from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from regdist.methods.advantage import Advantage
from regdist.methods.averaging import AVERAGES, Averaging
from regdist.methods.controller import Controller
from regdist.methods.method import Method, as_tuple
from regdist.methods.penalty import ANCHORS, CORRECTIONS, ESTIMATORS, PLACEMENTS, Estimated, Penalty
from regdist.methods.signal import Signal
from regdist.methods.surrogate import Clip, LogProb, OfSequence, Surrogate
from regdist.methods.weight import Weight
from regdist.numerics.records import (
    Number,
    as_number,
    check_choice,
    described,
    is_concrete,
    positive,
)
from regdist.regularizers.regularizer import Regularizer, ReverseKL


class Common(TypedDict, total=False):
    """What every preset takes; see `compose` for all of these."""

    regularizer: Regularizer | None
    geometry: str
    averaging: str
    max_length: Number | None
    ratio: str
    weights: Weight | Sequence[Weight]


class Clipped(Common, total=False):
    """And what presets with a ratio take."""

    clip_low: Number
    clip_high: Number
    clip_dual: Number


class Details(TypedDict, total=False):
    """Where and how a penalty is estimated."""

    after_normalization: bool
    ratio_corrected: bool | str
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
    ratio_corrected: bool | str = "none",
    anchor: str = "reference",
    clamp_ratio: Number = math.inf,
    clamp_value: Number = math.inf,
    clip_low: Number | None = None,
    clip_high: Number | None = None,
    clip_dual: Number = math.inf,
    penalties: Penalty | Sequence[Penalty] = (),
    weights: Weight | Sequence[Weight] = (),
    signal: Signal | None = None,
    controller: Controller | None = None,
    regularizer: Regularizer | None = None,
    geometry: str = "softmax",
    averaging: str = "sum",
    max_length: Number | None = None,
    ratio: str = "token",
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
        ratio_corrected: for the loss: times a ratio that is not detached: "old" or True, to the old
            policy; "sampler", to the sampler; "live", to the policy itself. See `Estimated`.
        anchor: "reference", "old" or "uniform".
        clamp_ratio: |log(policy/anchor)| beyond it is cut.
        clamp_value: an estimate beyond it is cut.
        clip_low: ratios below 1 - clip_low are clipped.
        clip_high: ratios above 1 + clip_high are clipped.
        clip_dual: with a negative advantage, ratios above it are clipped.
        penalties: further ones; one alone needs no tuple.
        weights: factors on the coefficients; likewise.
        signal: what is paid in place of the reward.
        controller: what moves a coefficient during a run.
        regularizer: subtracted exactly.
        geometry: "softmax", "natural" or "sign".
        averaging: what a step of a sequence counts: "sum", 1; "sequence", 1 over the length of its
            own; "token", 1 over the mean length of the group; "constant", 1 over `max_length`.
        max_length: for averaging "constant"; default the longest sequence of the tree.
        ratio: of the policy to the old one: "token", each step its own; "sequence", the geometric
            mean over the steps of a sequence; "product", that of whole sequences.

    Raises:
        ValueError: an unknown choice, or parts that cannot act together.

    Examples:
        >>> adv = rd.methods.advantage.GroupRelative(0.0, "mean")
        >>> compose(adv, clip_low=0.2, clip_high=0.28, beta=0.1, estimator="k2").surrogate
        Clip(...)
    """
    clamps = as_number(clamp_ratio, "clamp_ratio"), as_number(clamp_value, "clamp_value")
    as_number(0.0 if beta is None else beta, "beta")
    surrogate = _surrogate(surrogate, clip_low, clip_high, clip_dual)
    if check_choice("ratio", ratio, RATIOS) != "token":
        surrogate = OfSequence(surrogate, ratio == "sequence")
    check_choice("anchor", anchor, ANCHORS)
    check_choice("estimator", "k3" if estimator is None else estimator, (*ESTIMATORS, "full"))
    check_choice("placement", "loss" if placement is None else placement, PLACEMENTS)
    if beta is None and (estimator is not None or placement is not None):
        raise ValueError(
            f"an estimator without a coefficient does nothing (estimator={estimator!r}, "
            f"placement={placement!r}): give beta, or leave both out"
        )
    estimator, placement = estimator or "k3", placement or "loss"
    if after_normalization and placement == "loss":
        raise ValueError("after_normalization is about the reward: give placement='reward'")
    corrected = _corrected(ratio_corrected)
    if corrected != "none" and placement == "reward":
        raise ValueError("ratio_corrected is about the loss: give placement='loss'")
    beta = _some(beta)
    if beta is not None and estimator == "full":
        exact = _full_penalty(beta, placement, anchor)
        regularizer = exact if regularizer is None else regularizer + exact
    elif beta is not None:
        how = estimator, placement, after_normalization, corrected, anchor
        penalties = (Estimated(as_number(beta), *clamps, *how), *as_tuple(penalties))
    further = as_tuple(penalties), as_tuple(weights)
    whole = regularizer, signal, controller, geometry
    return Method(advantage, surrogate, *further, *whole, _averaging(averaging, max_length))


def _corrected(given: bool | str) -> str:
    """The word for what a penalty in the loss is times."""
    if isinstance(given, bool):
        return "old" if given else "none"
    return check_choice("ratio_corrected", given, CORRECTIONS)


def _some(beta: Number | None) -> Number | None:
    """A coefficient, or None where it is known to be 0."""
    if beta is None or not is_concrete(beta):
        return beta
    if not np.all(np.asarray(beta) >= 0):
        raise ValueError(f"beta must be at least 0; got beta={beta!r}")
    return beta if np.any(np.asarray(beta)) else None


RATIOS = ("token", "sequence", "product")
"""What the ratio of a step to the old policy is of."""


def _averaging(over: str, max_length: Number | None) -> Averaging:
    check_choice("averaging", over, AVERAGES)
    if over != "constant" and max_length is not None:
        raise ValueError(
            'averaging="constant" divides by max_length, and nothing else does; got '
            f"averaging={over!r}, max_length={max_length!r}"
        )
    advice = "It is the number of steps that a sample may have"
    return Averaging(
        None if max_length is None else positive("max_length", max_length, advice), over
    )


def _surrogate(
    surrogate: Surrogate | None,
    clip_low: Number | None,
    clip_high: Number | None,
    clip_dual: Number,
) -> Surrogate:
    """The surrogate given; PPO's clip if there are bounds; else A log pi."""
    clips = clip_low is not None or clip_high is not None
    if surrogate is not None and clips:
        raise ValueError(
            "clip_low and clip_high have no meaning beside a surrogate that is given, here "
            f"{described(surrogate)}: leave them out, or leave the surrogate out"
        )
    if surrogate is not None or not clips:
        return LogProb() if surrogate is None else surrogate
    low = 1.0 if clip_low is None else clip_low
    high = math.inf if clip_high is None else clip_high
    bounds = 1 - as_number(low, "clip_low"), 1 + as_number(high, "clip_high")
    return Clip(*bounds, as_number(clip_dual, "clip_dual"))


def _full_penalty(beta: Number, placement: str, anchor: str) -> Regularizer:
    """The exact KL to the reference, which is a regularizer."""
    if placement == "reward" or anchor != "reference":
        raise ValueError(
            "estimator='full' is the exact KL to the reference, summed over all actions: it "
            "is neither in the reward nor to another anchor. Use placement='loss', or "
            "regularizer=rd.ReverseKL(beta, anchor=log_probs)"
        )
    return ReverseKL(beta)
