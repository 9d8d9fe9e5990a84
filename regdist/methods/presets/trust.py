"""The known methods by name: samples that are no longer, or never were, the policy's own.

`options` are those of `compose`. The old policy is what the samples were drawn from, unless a
sampler is given too.
"""

import math
from typing import Unpack

import jax.numpy as jnp

from regdist.methods.composition import Common, Options, Penalized, compose
from regdist.methods.method import Method
from regdist.methods.off_policy import GammaWeight, Tapered, TrustMask
from regdist.methods.presets.catalog import preset
from regdist.methods.presets.parts import CLIP, PPO, relative, standardized, with_weight
from regdist.methods.surrogate import LogProb
from regdist.methods.token_advantage import Standardized
from regdist.methods.weight import SamplerMask, SamplerRatio, SequenceMask
from regdist.numerics.records import Number, as_number, check_choice, positive

__all__ = [
    "asymre",
    "dppo",
    "dro",
    "grpo_gated",
    "grpo_rejection",
    "grpo_sequence_mask",
    "icepop",
    "kimi15",
    "prime_rl",
    "prime_rl_ipo",
    "tis",
    "topr",
    "vespo",
]


@preset(
    papers=("2602.04879",),
    code=(
        "verl core_algos.compute_policy_loss_dppo_tv",
        "verl core_algos.compute_policy_loss_dppo_kl",
        "SkyRL ppo_utils.dppo_policy_loss",
    ),
    options={"averaging": "token"},
    variants={"kl": {"measure": "kl"}, "skyrl": {"cap": math.inf}},
)
def dppo(
    low: Number = 0.2,
    high: Number = 0.2,
    measure: str = "tv",
    *,
    cap: Number = 20.0,
    normalize_std: bool = True,
    eps: Number = 1e-6,
    **options: Unpack[Penalized],
) -> Method:
    """DPPO (2602.04879): GRPO without the samples whose probability moved too far, as verl.

    Args:
        low: bound on the move where A < 0.
        high: where A > 0.
        measure: "tv", |p - p'|; "kl", of "this token or not".
        cap: the largest ratio: verl's `clip_ratio_c`, 20 in its code where a configuration has
            none, 3 in its files; SkyRL has none.
        normalize_std: of GRPO's advantage.
        eps: likewise.
        options: as in `compose`.
    """
    part = TrustMask(*map(as_number, (low, high, cap)), measure=measure)
    return compose(standardized(normalize_std, eps), part, **options)


@preset(code=("prime-rl loss.default_loss_fn",), options={"averaging": "token"})
def prime_rl(
    low: Number = 0.2,
    high: Number = 0.2,
    kl: Number = 1e-3,
    **options: Unpack[Common],
) -> Method:
    """prime-rl's default: r - mean, DPPO's mask without a cap, kl (log p/p')^2 to the sampler.

    Its `adv_tau` t is a factor on the whole beside kl/t.

    Args:
        low: `dppo_mask_low`.
        high: `dppo_mask_high`.
        kl: `kl_tau`; the square is twice k2.
        options: as in `compose`.
    """
    part = TrustMask(as_number(low), as_number(high), as_number(math.inf))
    advantage = relative("mean")
    return compose(advantage, part, beta=2 * as_number(kl), estimator="k2", anchor="old", **options)


@preset(code=("prime-rl loss.ipo_loss_fn",), options={"averaging": "token"})
def prime_rl_ipo(
    threshold: Number = 0.1,
    kl: Number = 1e-3,
    **options: Unpack[Common],
) -> Method:
    """prime-rl's "ipo": as its default, with |p - p'| bounded whatever the advantage is.

    Args:
        threshold: `ipo_threshold`.
        kl: `kl_tau`.
        options: as in `compose`.
    """
    bound = as_number(threshold)
    part = TrustMask(bound, bound, as_number(math.inf), sides="both")
    advantage = relative("mean")
    return compose(advantage, part, beta=2 * as_number(kl), estimator="k2", anchor="old", **options)


@preset(code=("verl core_algos.compute_policy_loss_dro",), options={"averaging": "token"})
def dro(
    beta: Number, *, normalize_std: bool = True, eps: Number = 1e-6, **options: Unpack[Common]
) -> Method:
    """A log p - beta/2 (log p/p')^2, no ratio, as verl's "dro"; one step of it is one of GRPO."""
    advantage = standardized(normalize_std, eps)
    b = positive("beta", beta, "It is the price of (log p/p')^2, in halves")
    return compose(advantage, LogProb(), beta=b, estimator="k2", anchor="old", **options)


@preset(code=("TRL grpo_trainer.get_gamma_weights",), options={"averaging": "token"})
def vespo(
    k_up: Number = 2.0,
    lam_up: Number = 3.0,
    k_down: Number = 3.0,
    lam_down: Number = 2.0,
    *,
    normalize_std: bool = True,
    eps: Number = 1e-4,
    **options: Unpack[Penalized],
) -> Method:
    """GRPO with the gamma weight of the ratio of whole sequences, TRL's "vespo"; see `GammaWeight`.

    Args:
        k_up: power of the ratio where A >= 0.
        lam_up: its rate there.
        k_down: power where A < 0.
        lam_down: rate there.
        normalize_std: of GRPO's advantage.
        eps: likewise.
        options: as in `compose`.
    """
    part = GammaWeight(*map(as_number, (k_up, lam_up, k_down, lam_down)))
    return compose(standardized(normalize_std, eps), part, **options)


@preset(code=("TRL grpo_trainer.get_off_policy_mask",), options={**CLIP, "averaging": "token"})
def grpo_sequence_mask(
    most: Number = 0.5,
    *,
    normalize_std: bool = True,
    eps: Number = 1e-4,
    **options: Unpack[Options],
) -> Method:
    """GRPO without failures that the policy has left, DeepSeek-V3.2's mask as TRL has it.

    Args:
        most: `off_policy_mask_threshold`, mean nats a step of log(sampler/policy); TRL has no
            default, and 0.5 is the example of its help.
        normalize_std: of GRPO's advantage.
        eps: likewise.
        options: as in `compose`.
    """
    weight = SequenceMask(as_number(most))
    return compose(standardized(normalize_std, eps), **with_weight(weight, options))


@preset(
    code=(
        "verl rollout_corr_helper.compute_rollout_correction_weights",
        "SkyRL off_policy_correction_utils.compute_tis_ratio",
    ),
    options=PPO,
    averaging="token",
    variants={"sequence": {"over": "sequence"}, "normalized": {"normalized": True}},
)
def tis(
    cap: Number = 2.0,
    over: str = "token",
    *,
    normalized: bool = False,
    normalize_std: bool = True,
    eps: Number = 1e-6,
    **options: Unpack[Options],
) -> Method:
    """GRPO with truncated importance sampling: old policy/sampler, at most `cap`.

    Args:
        cap: verl's `rollout_is_threshold`, 2 there.
        over: "token" or "sequence", its `rollout_is`.
        normalized: its `rollout_is_batch_normalize`.
        normalize_std: of GRPO's advantage.
        eps: likewise.
        options: as in `compose`.
    """
    weight = SamplerRatio(as_number(0.0), as_number(cap), False, over, normalized)
    return compose(standardized(normalize_std, eps), **with_weight(weight, options))


@preset(
    code=(
        "OpenRLHF models.loss.PolicyLoss",
        "verl rollout_corr_helper.compute_rollout_correction_weights",
    ),
    options=PPO,
    averaging="token",
    variants={"sequence": {"over": "sequence"}},
)
def icepop(
    low: Number = 0.5,
    high: Number = 5.0,
    over: str = "token",
    *,
    normalized: bool = False,
    normalize_std: bool = True,
    eps: Number = 1e-6,
    **options: Unpack[Options],
) -> Method:
    """GRPO with samples dropped whose old policy/sampler is out of bounds.

    Args:
        low: OpenRLHF's default; in verl `rollout_is_threshold="0.5_5.0"` is both.
        high: likewise.
        over: "token" or "sequence", verl's `rollout_is`.
        normalized: its `rollout_is_batch_normalize`.
        normalize_std: of GRPO's advantage.
        eps: likewise.
        options: as in `compose`.
    """
    weight = SamplerRatio(as_number(low), as_number(high), True, over, normalized)
    return compose(standardized(normalize_std, eps), **with_weight(weight, options))


@preset(
    code=("verl rollout_corr_helper.compute_rollout_rejection_mask",),
    options=PPO,
    averaging="token",
    variants={
        "token-k3": {"statistic": "k3", "high": 0.1},
        "sum-k1": {"over": "sum"},
        "mean-k1": {"over": "mean", "low": 0.999, "high": 1.001},
        "mean-k3": {"over": "mean", "statistic": "k3", "high": 0.01},
        "every-k2": {"over": "every", "statistic": "k2", "high": 0.5},
    },
)
def grpo_rejection(
    low: Number = 0.5,
    high: Number = 2.0,
    over: str = "token",
    statistic: str = "k1",
    *,
    normalize_std: bool = True,
    eps: Number = 1e-6,
    **options: Unpack[Options],
) -> Method:
    """GRPO on the samples that the sampler and the old policy agree on, verl's `rollout_rs`.

    What is rejected has no penalty in the loss either, and does not count in a mean over steps.

    Args:
        low: with k1, the least sampler/old policy; for the others there is none.
        high: the largest, or the largest estimate.
        over: "token", "sum" and "mean" over the steps of a sample, "every" (verl's `seq_max`).
        statistic: "k1", log(sampler/old policy); "k2"; "k3".
        normalize_std: of GRPO's advantage, which is that of all samples.
        eps: likewise.
        options: as in `compose`.
    """
    check_choice("statistic", statistic, ("k1", "k2", "k3"))
    least, most = as_number(-math.inf), as_number(high)
    if statistic == "k1":  # the mask is of log(old policy/sampler)
        advice = "It bounds the ratio sampler/old policy"
        least, most = (-jnp.log(positive(n, x, advice)) for n, x in (("high", high), ("low", low)))
    kind = "log_ratio" if statistic == "k1" else statistic
    weight = SamplerMask(least, most, statistic=kind, over=over)
    return compose(standardized(normalize_std, eps), **with_weight(weight, options))


@preset(
    code=("OpenRLHF models.loss.PolicyLoss",),
    options={**CLIP, "averaging": "token"},
    variants={
        "sequence": {"over": "mean"},
        "binary-kl": {"statistic": "binary_kl", "low": 0.0, "high": 0.01, "over": "mean"},
        "tv": {"statistic": "tv", "low": 0.0, "high": 0.1},
    },
)
def grpo_gated(
    low: Number = 0.5,
    high: Number = 5.0,
    over: str = "token",
    statistic: str = "ratio",
    *,
    normalize_std: bool = True,
    eps: Number = 1e-9,
    **options: Unpack[Options],
) -> Method:
    """GRPO, steps weighed by old policy/sampler where a gate lets them through, as OpenRLHF.

    The default is IcePop. Its `seq` and `binary_kl` are the gate that it calls FlashREINFORCE's.

    Args:
        low: `is_correction_threshold`; 0 for the two divergences.
        high: likewise; of "binary_kl" and "tv" OpenRLHF has no default.
        over: "token"; "mean", a sample goes by the mean over its steps (`is_correction_level` seq).
        statistic: "ratio", "binary_kl" or "tv": `is_correction_gating`.
        normalize_std: of GRPO's advantage.
        eps: likewise.
        options: as in `compose`.
    """
    check_choice("statistic", statistic, ("ratio", "binary_kl", "tv"))
    check_choice("over", over, ("token", "mean"))
    bounds = as_number(low), as_number(high)
    if statistic == "ratio":
        bounds = jnp.log(bounds[0]), jnp.log(bounds[1])
    kind = "log_ratio" if statistic == "ratio" else statistic
    free = SamplerRatio(as_number(0.0), as_number(math.inf))
    gate = with_weight(SamplerMask(*bounds, statistic=kind, over=over, drop=False), options)
    return compose(standardized(normalize_std, eps), **with_weight(free, gate))


@preset(
    papers=("2503.14286",),
    code=("ROLL actor_pg_worker._compute_topr_loss",),
    options={"averaging": "sequence"},
)
def topr(positive: Number = 1.0, negative: Number = 1.0, **options: Unpack[Penalized]) -> Method:
    """TOPR (2503.14286): the raw reward, ratios cut to [0, 1] where it is not above 0, as in ROLL.

    The paper's ratio is of whole samples (`ratio="product"`), ROLL's of each token. ROLL has any of
    its advantages in the reward's place: `compose` with `off_policy.Tapered`.

    Args:
        positive: `topr_positive_weight`.
        negative: `topr_negative_weight`.
        options: as in `compose`.
    """
    return compose(relative("none"), Tapered(as_number(positive), as_number(negative)), **options)


@preset(
    papers=("2501.12599",),
    code=("ROLL actor_pg_worker._compute_kimi15_loss",),
    options={"averaging": "sequence"},
    coefficient="tau",
)
def kimi15(tau: Number = 0.1, **options: Unpack[Common]) -> Method:
    """Kimi k1.5 (2501.12599): (r - mean) log p - tau/2 (log p/p')^2, no ratio, as in ROLL.

    The paper's square is of the ratio of whole samples, ROLL's of each token. One step of it on its
    own samples is the policy gradient: p' is what the samples were drawn from.

    Args:
        tau: `kimi15_tau`.
        options: as in `compose`.
    """
    b = positive("tau", tau, "It is the price of (log p/p')^2, in halves")
    how = {"beta": b, "estimator": "k2", "anchor": "old"}
    return compose(relative("mean"), LogProb(), **how, **options)


@preset(papers=("2506.20520",))
def asymre(delta: Number = -0.1, **options: Unpack[Penalized]) -> Method:
    """AsymRE (2506.20520): (r - V) log p on old samples without a ratio, V the mean plus `delta`.

    On samples that stay what they are, the place of V beside their mean decides how many actions
    keep mass. The mean is the group's, its own sample included.

    Args:
        delta: what is added to the mean.
        options: as in `compose`.
    """
    part = Standardized(relative("mean"), as_number(delta), as_number(1.0))
    return compose(part, **options)
