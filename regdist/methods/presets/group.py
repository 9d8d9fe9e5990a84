"""The known methods by name: rewards beside those of a group, and what the ratio does to them.

`options` are those of `compose`: beta, estimator, placement, clip_low, clip_high and so on; `help`
shows what a preset takes, with its defaults. Where a name stands for code, the code's form and
defaults are meant; one step has no lengths, so that whatever divides by them is left out. G is the
group size.
"""

from typing import Unpack

from regdist.methods.advantage import OptimalBaseline, RangeAtRisk
from regdist.methods.bundles import Bundled
from regdist.methods.composition import Detailed, Options, Penalized, compose
from regdist.methods.method import Method
from regdist.methods.presets.catalog import preset
from regdist.methods.presets.parts import (
    CLIP,
    PPO,
    TRL_RLOO,
    relative,
    standardized,
    whitened,
)
from regdist.methods.surrogate import CappedRatio, GeometricMean, SoftGate
from regdist.numerics.records import Number, as_number, check_count
from regdist.regularizers.regularizer import Regularizer

__all__ = [
    "cispo",
    "dapo",
    "dr_grpo",
    "gmpo",
    "gpg",
    "grpo",
    "grpo_of_others",
    "gspo",
    "natural_policy_gradient",
    "opo",
    "policy_gradient",
    "ppo",
    "reinforce",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "remax",
    "riskpo",
    "rloo",
    "sapo",
    "vcpo",
]


@preset(papers=("2005.06392",))
def policy_gradient(regularizer: Regularizer | None = None) -> Method:
    """Plain gradient ascent on the logits of a softmax table (arXiv 2005.06392).

    Update direction p_i (w_i - E_p w), with w = R - d regularizer/dp. Regularized, it converges
    linearly, at a rate that the least likely action of the target sets; until every action is
    near its target it can sit on a plateau. Without a regularizer it collapses onto one action.

    Args:
        regularizer: subtracted from the expected reward; None for the plain reward.
    """
    return compose(relative("none"), regularizer=regularizer)


@preset(papers=("2007.06558",))
def natural_policy_gradient(regularizer: Regularizer | None = None) -> Method:
    """Natural policy gradient, which for a table is mirror descent in KL (arXiv 2007.06558).

    Update direction w_i - E_p w. With reverse KL and step size eta one step is
    p <- p^(1 - eta beta) q^(eta beta) e^(eta R), normalized: the log-ratio to the target contracts
    by exactly 1 - eta beta, and eta = 1/beta arrives in one step.

    Args:
        regularizer: subtracted from the expected reward; None for the plain reward.
    """
    return compose(relative("none"), regularizer=regularizer, geometry="natural")


@preset(unsourced="the textbook's: the score times what is paid")
def reinforce(**options: Unpack[Options]) -> Method:
    """REINFORCE: the raw reward times the score. Expected update grad E R."""
    return compose(relative("none"), **options)


@preset(
    papers=("1707.06347", "1912.09729"),
    code=(
        "verl core_algos.compute_gae_advantage_return",
        "OpenRLHF experience_maker.compute_advantages_and_returns",
    ),
    options=PPO,
    variants={"whitened": {"whiten": "unbiased"}, "whitened-biased": {"whiten": "biased"}},
    averaging="token",
)
def ppo(whiten: str = "none", **options: Unpack[Options]) -> Method:
    """PPO (1707.06347) with dual clip (1912.09729) and a perfect critic: A = r - E r.

    The critic knows the old policy's expected reward; what an imperfect one changes is noise, and,
    once samples are old, which side of the clip they are on. This is the paper's advantage.
    Trainers whiten it over the batch: verl always, OpenRLHF unless `no_std_norm`. On one prompt
    the critic then cancels, and a penalty in the loss acts at beta times the deviation of the
    rewards. On sequences this critic knows prompts alone: `ppo_gae` has one that knows states.

    Args:
        whiten: "none"; "unbiased", (A - mean)/sqrt(unbiased variance + 1e-8), verl's; "biased",
            (A - mean)/sqrt(max(biased variance, 1e-8)), OpenRLHF's.
        options: as in `compose`.
    """
    advantage = relative("value") if whiten == "none" else whitened(whiten, "advantages")
    return compose(advantage, **options)


@preset(
    papers=("2310.10505",),
    code=("verl core_algos.compute_remax_outcome_advantage",),
    options=PPO,
    averaging="token",
)
def remax(**options: Unpack[Options]) -> Method:
    """ReMax (2310.10505): the baseline is the reward of the likeliest action."""
    return compose(relative("greedy"), **options)


@preset(
    papers=("2402.14740",),
    code=("verl core_algos.compute_rloo_outcome_advantage", "TRL rloo_trainer"),
    options=PPO,
    variants={"trl": TRL_RLOO},
    averaging="token",
)
def rloo(**options: Unpack[Options]) -> Method:
    """RLOO (2402.14740): the baseline is the mean of the others; unbiased for grad E R.

    A group of one keeps its reward (verl `compute_rloo_outcome_advantage`). TRL's trainer is
    `rloo(beta=0.05, estimator="k1", placement="reward", clip_dual=math.inf)`: the penalty before
    the baseline, and no dual clip.
    """
    return compose(relative("others", singleton="raw"), **options)


@preset(
    papers=("2402.03300",),
    code=("verl core_algos.compute_grpo_outcome_advantage", "TRL grpo_trainer"),
    options=CLIP,
    variants={
        "no-penalty": {"beta": 0.0},
        "trl": {"eps": 1e-4, "averaging": "token", "ratio_corrected": "old"},
        "verl": {
            "averaging": "token",
            "clip_dual": 3.0,
            "clamp_ratio": 20.0,
            "clamp_value": 10.0,
        },
    },
    averaging="sequence",
)
def grpo(
    beta: Number = 0.04,
    estimator: str = "k3",
    placement: str = "loss",
    normalize_std: bool = True,
    *,
    eps: Number = 1e-6,
    **options: Unpack[Detailed],
) -> Method:
    """GRPO (2402.03300): (r - mean)/(std + eps), PPO's clip, k3 in the loss.

    The penalty k3 in the loss has the gradient of the *forward* KL(reference || policy). The
    standard deviation is unbiased; a group of one keeps its reward, equal rewards move nothing.

    Args:
        beta: coefficient of the penalty: 0.04 in the paper, 0.001 in verl, 0 in TRL.
        estimator: of the penalty.
        placement: of the penalty.
        normalize_std: False for the mean baseline alone.
        eps: 1e-6 in verl, 1e-4 in TRL, 1e-9 in OpenRLHF.
        options: as in `compose`. clip_dual=3 is verl's; clamps as in verl are clamp_ratio=20,
            clamp_value=10.
    """
    advantage = standardized(normalize_std, eps)
    return compose(advantage, beta=beta, estimator=estimator, placement=placement, **options)


@preset(
    code=("NeMo-RL advantage_estimator.GRPOAdvantageEstimator",),
    options=CLIP,
    averaging="token",
)
def grpo_of_others(
    *, normalize_std: bool = True, eps: Number = 1e-6, **options: Unpack[Options]
) -> Method:
    """NeMo-RL's GRPO: less the mean of the other samples, over their deviation where it is not 0.

    A sample that alone differs has an advantage that is not divided at all. In float32 its code's
    deviation, a difference of squares, cancels where rewards are far from 0.
    """
    scale = "others" if normalize_std else "none"
    return compose(relative("others", scale, eps), **options)


@preset(papers=("2503.20783",), options=CLIP, averaging="constant")
def dr_grpo(**options: Unpack[Options]) -> Method:
    """Dr. GRPO (2503.20783): r - mean, no standard deviation; 1 - 1/G times grad E R."""
    return compose(relative("mean", singleton="raw"), **options)


@preset(
    papers=("2503.14476",),
    options={"clip_low": 0.2, "clip_high": 0.28, "clip_dual": 3.0},
    averaging="token",
)
def dapo(*, normalize_std: bool = True, eps: Number = 1e-6, **options: Unpack[Options]) -> Method:
    """DAPO (2503.14476): GRPO's advantage, clip 0.2 below and 0.28 above, no penalty.

    Its dynamic sampling drops groups that are all right or all wrong, which move nothing anyway;
    the batch is then filled up: on one prompt that rescales the update.
    """
    return compose(standardized(normalize_std, eps), **options)


@preset(
    papers=("2507.18071",),
    code=("verl core_algos.compute_policy_loss_gspo",),
    options=CLIP,
    averaging="sequence",
    ratio="sequence",
)
def gspo(*, normalize_std: bool = True, eps: Number = 1e-6, **options: Unpack[Options]) -> Method:
    """GSPO (2507.18071): the ratio of the sequence; in one step that is PPO without dual clip."""
    return compose(standardized(normalize_std, eps), **options)


@preset(
    papers=("2507.20673",),
    code=("verl core_algos.compute_policy_loss_geo_mean",),
    averaging="sequence",
)
def gmpo(
    clip_low: Number = 0.4,
    clip_high: Number = 0.4,
    *,
    normalize_std: bool = True,
    eps: Number = 1e-6,
    **options: Unpack[Penalized],
) -> Method:
    """GMPO (2507.20673): the ratio clipped in log space, between e^-low and e^high."""
    gate = GeometricMean(as_number(clip_low), as_number(clip_high))
    return compose(standardized(normalize_std, eps), gate, **options)


@preset(
    papers=("2506.13585",),
    code=("verl core_algos.compute_policy_loss_cispo", "TRL grpo_trainer"),
    variants={"trl": {"clip_low": 1.0, "clip_high": -0.8, "eps": 1e-4}},
    averaging="token",
)
def cispo(
    clip_low: Number = 0.2,
    clip_high: Number = 0.2,
    *,
    masked: bool = False,
    normalize_std: bool = True,
    eps: Number = 1e-6,
    **options: Unpack[Penalized],
) -> Method:
    """CISPO (2506.13585): the clipped ratio is a constant weight, so that no sample drops out.

    verl's bounds. TRL reads its epsilon_high as the absolute cap, and adds 1e-4 to the deviation:
    `cispo(1.0, cap - 1, eps=1e-4)`, with a cap of 0.2 where epsilon_high is not set. ROLL's
    `cispo_use_unified_mask` is `masked`: nothing beyond a bound on the side that A pushes to. Its
    `tis` is `cispo(1.0, 0.0)`: ratios cut to [0, 1].
    """
    gate = CappedRatio(1 - as_number(clip_low), 1 + as_number(clip_high), masked)
    return compose(standardized(normalize_std, eps), gate, **options)


@preset(
    papers=("2511.20347",),
    code=("verl core_algos.compute_policy_loss_sapo", "TRL grpo_trainer"),
    variants={"trl": {"eps": 1e-4}},
    averaging="sequence",
)
def sapo(
    tau_positive: Number = 1.0,
    tau_negative: Number = 1.05,
    *,
    normalize_std: bool = True,
    eps: Number = 1e-6,
    **options: Unpack[Penalized],
) -> Method:
    """SAPO (2511.20347): a smooth gate on the ratio, a temperature for each sign."""
    gate = SoftGate(as_number(tau_positive), as_number(tau_negative))
    return compose(standardized(normalize_std, eps), gate, **options)


@preset(
    papers=("2501.03262",),
    code=(
        "verl core_algos.compute_reinforce_plus_plus_outcome_advantage",
        "SkyRL ppo_utils.masked_whiten",
        "OpenRLHF experience_maker.compute_advantages_and_returns",
    ),
    options=PPO,
    variants={"biased": {"whiten": "biased"}},
    averaging="token",
)
def reinforce_plus_plus(whiten: str = "unbiased", **options: Unpack[Options]) -> Method:
    """REINFORCE++ (2501.03262): rewards whitened over the batch.

    The batch of one prompt is its group; over `rd.contexts` mean and scale are common to all
    prompts. verl and SkyRL refuse to whiten one number; here it becomes 0. On sequences samples are
    whitened; verl's code whitens the returns to go of steps, which is `reinforce_to_go`.

    Args:
        whiten: "unbiased", (r - mean)/sqrt(unbiased variance + 1e-8), as in verl and SkyRL;
            "biased", (r - mean)/sqrt(max(biased variance, 1e-8)), as in OpenRLHF and NeMo-RL.
        options: as in `compose`.
    """
    return compose(whitened(whiten, "rewards"), **options)


@preset(
    papers=("2501.03262",),
    code=(
        "verl core_algos.compute_reinforce_plus_plus_baseline_outcome_advantage",
        "NeMo-RL advantage_estimator.ReinforcePlusPlusAdvantageEstimator",
    ),
    options=PPO,
    variants={"biased": {"whiten": "biased"}},
    averaging="token",
)
def reinforce_plus_plus_baseline(whiten: str = "unbiased", **options: Unpack[Options]) -> Method:
    """REINFORCE++ with the group mean removed before whitening (2501.03262).

    Whitening removes the mean of the batch anyway: on one prompt this is `reinforce_plus_plus`,
    whose arguments it has. Over `rd.contexts` only the scale is common to all prompts.
    """
    return compose(whitened(whiten, "centered"), **options)


@preset(
    papers=("2505.23585",),
    code=("verl core_algos.compute_opo_outcome_advantage",),
    averaging="token",
)
def opo(**options: Unpack[Options]) -> Method:
    """OPO (2505.23585): the length-weighted mean as baseline; without lengths r - mean."""
    return compose(relative("mean", singleton="raw"), **options)


@preset(code=("verl core_algos.compute_gpg_outcome_advantage",), averaging="token")
def gpg(**options: Unpack[Options]) -> Method:
    """GPG: (r - mean) over the share of samples with a nonzero reward (verl `compute_gpg`).

    The paper means the share of groups whose rewards differ; the code counts nonzero scores. No
    ratio in the loss.
    """
    return compose(relative("mean", "nonzero", singleton="raw"), **options)


@preset(
    papers=("2602.17616",),
    variants={"paper": {"paper": True}},
    averaging="sequence",
    ratio="product",
)
def vcpo(paper: bool = False, cap: Number = 8.0, **options: Unpack[Penalized]) -> Method:
    """VCPO (2602.17616): the baseline of least variance, ratios cut at `cap`.

    The code weighs its baseline by min(w, cap)^2 w^2 |S|^2, the paper by w^2 |S|^2 (`paper=True`);
    on-policy they are one. Its step size follows the effective sample size: a matter of the
    optimizer. On sequences |S|^2 is that of a table of whole sequences.
    """
    advantage = OptimalBaseline(as_number(0.0 if paper else cap))
    return compose(advantage, CappedRatio(as_number(0), as_number(cap)), **options)


@preset(
    papers=("2510.00911",),
    options=PPO,
    averaging="token",
)
def riskpo(
    low: Number = 0.2,
    high: Number = 0.9,
    weight: Number = 1.5,
    bundle: int = 1,
    credit: str = "uniform",
    *,
    eps: Number = 1e-6,
    **options: Unpack[Options],
) -> Method:
    """RiskPO (2510.00911): range value-at-risk and a weighted lower tail, of sums over bundles.

    Args:
        low: quantile.
        high: quantile.
        weight: of the lower tail.
        bundle: how many prompts make one, 5 in its scripts; 1 is GRPO's group of one prompt, and
            more are for contexts.
        credit: of a sample in its bundle, as in `Bundled`: "uniform", its code's default; "std"
            and "share" ("sum-mean") in its scripts; "score".
        eps: added to denominators.
        options: as in `compose`.
    """
    part = RangeAtRisk(*map(as_number, (low, high, weight, eps)))
    if check_count("bundle", bundle) == 1 and credit == "uniform":
        return compose(part, **options)
    return compose(Bundled(part, bundle, credit), **options)
