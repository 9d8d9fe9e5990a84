"""The known methods by name: several rewards of one sample.

`options` are those of `compose`.
"""

from typing import Unpack

from regdist.methods.advantage import Decoupled
from regdist.methods.composition import Options, compose
from regdist.methods.method import Method
from regdist.methods.presets.catalog import preset
from regdist.methods.presets.parts import NO_DUAL_CLIP, PPO, relative, standardized
from regdist.methods.token_advantage import Whitened
from regdist.numerics.records import Number, Table, as_array, as_number, check_choice

__all__ = ["gdpo"]


@preset(
    papers=("2601.05242",),
    code=(
        "verl core_algos.compute_gdpo_outcome_advantage",
        "TRL grpo_trainer",
        "NeMo-RL advantage_estimator.GDPOAdvantageEstimator",
    ),
    options=PPO,
    variants={
        "trl": {"whiten": "std", "eps": 1e-4, "clip_dual": NO_DUAL_CLIP},
        "nemo": {"whiten": "plain", "others": True},
    },
    averaging="token",
)
def gdpo(
    rewards: Table,
    reward_weights: Number = 1.0,
    whiten: str = "unbiased",
    *,
    others: bool = False,
    normalize_std: bool = True,
    eps: Number = 1e-6,
    **options: Unpack[Options],
) -> Method:
    """GDPO (2601.05242): several rewards, each normalized in the group, their sum whitened.

    The batch of one prompt is its group. TRL calls it "normalize_then_sum".

    Args:
        rewards: of each kind and action, shape [M, K]; the problem's own has no part in it,
            nor has a penalty in the reward that comes before the advantage.
        reward_weights: of the kinds, shape [M], or one for all.
        whiten: what is done to the sum: "unbiased", over steps, with 1e-8 under the root (verl);
            "std", over samples, 1e-4 beside the deviation (TRL); "plain", without (NeMo-RL).
        others: means and deviations are those of the other samples (NeMo-RL).
        normalize_std: of each reward.
        eps: added to the deviation of each.
        options: as in `compose`.
    """
    check_choice("whiten", whiten, ("unbiased", "std", "plain"))
    each = standardized(normalize_std, eps)
    if others:
        each = relative("others", "others" if normalize_std else "none", eps)
    whole = None
    if whiten != "unbiased":
        whole = relative("mean", "std", 1e-4 if whiten == "std" else 0.0)
    several = as_array("rewards", rewards), as_number(reward_weights, "reward_weights")
    part = Decoupled(*several, each, whole)
    return compose(Whitened(part, as_number(1e-8)) if whiten == "unbiased" else part, **options)
