"""What presets share: advantages that many of them pay, and PPO's clip."""

import math

from regdist.methods.advantage import GroupRelative
from regdist.methods.composition import Options
from regdist.methods.method import as_tuple
from regdist.methods.weight import Weight
from regdist.numerics.records import Number, as_number, check_choice

PPO: Options = {"clip_low": 0.2, "clip_high": 0.2, "clip_dual": 3.0}
"""verl's clip, with its dual clip."""

CLIP: Options = {"clip_low": 0.2, "clip_high": 0.2}
"""PPO's clip without one, as in the paper and in TRL."""

NO_DUAL_CLIP = math.inf

TRL_RLOO: Options = {
    "estimator": "k1",
    "placement": "reward",
    "clip_dual": NO_DUAL_CLIP,
    "averaging": "sum",
    "ratio": "product",
}
"""TRL's RLOO trainer: whole sequences, the penalty before the baseline, and no dual clip."""


def relative(
    baseline: str,
    scale: str = "none",
    eps: Number = 0.0,
    singleton: str = "formula",
    pooled: str = "none",
) -> GroupRelative:
    """(r - baseline)/scale; the words are those of `GroupRelative`."""
    return GroupRelative(as_number(eps), baseline, scale, singleton, pooled)


def standardized(normalize_std: bool = True, eps: Number = 1e-6) -> GroupRelative:
    """GRPO's (r - mean)/(std + eps), unbiased; r - mean without `normalize_std`.

    A group of one keeps its reward, as in verl `compute_grpo_outcome_advantage`.
    """
    return relative("mean", "std" if normalize_std else "none", eps, "raw")


def whitened(form: str, pooled: str) -> GroupRelative:
    """Rewards whitened over the batch, of one prompt its group; 1e-8 is everybody's.

    Args:
        form: "unbiased", (r - mean)/sqrt(unbiased variance + 1e-8): verl and SkyRL `masked_whiten`;
            "biased", (r - mean)/sqrt(max(biased variance, 1e-8)): OpenRLHF
            `compute_advantages_and_returns`, NeMo-RL.
        pooled: what is whitened where there are many prompts, as in `GroupRelative`.

    Raises:
        ValueError: another form.
    """
    scales = {"unbiased": "whiten", "biased": "whiten_biased"}
    check_choice("whiten", form, scales)
    return relative("mean", scales[form], 1e-8, pooled=pooled)


def with_weight(weight: Weight, options: Options) -> Options:
    """The options with one more factor on the coefficients, before those given."""
    return {**options, "weights": (weight, *as_tuple(options.get("weights", ())))}
