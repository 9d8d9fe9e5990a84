"""The known methods by name: samples that are no longer, or never were, the policy's own.

`options` are those of `compose`. The old policy is what the samples were drawn from, unless a
sampler is given too.
"""

import math
from typing import Unpack

from regdist.methods.composition import Common, Options, Penalized, compose
from regdist.methods.method import Method
from regdist.methods.presets.catalog import preset
from regdist.methods.presets.parts import CLIP, PPO, relative, standardized, with_weight
from regdist.methods.surrogate import GammaWeight, LogProb, TrustMask
from regdist.methods.weight import SamplerRatio, SequenceMask
from regdist.numerics.records import Number, as_number, positive

__all__ = [
    "dppo",
    "dro",
    "grpo_sequence_mask",
    "icepop",
    "prime_rl",
    "prime_rl_ipo",
    "tis",
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
        cap: the largest ratio; SkyRL has none.
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
    code=("verl rollout_corr_helper",),
    options=PPO,
    averaging="token",
)
def tis(
    cap: Number = 2.0,
    *,
    normalize_std: bool = True,
    eps: Number = 1e-6,
    **options: Unpack[Options],
) -> Method:
    """GRPO with truncated importance sampling: old policy/sampler, at most `cap` (verl's 2)."""
    weight = SamplerRatio(as_number(0.0), as_number(cap))
    return compose(standardized(normalize_std, eps), **with_weight(weight, options))


@preset(
    code=("OpenRLHF models.loss.PolicyLoss",),
    options=PPO,
    averaging="token",
)
def icepop(
    low: Number = 0.5,
    high: Number = 5.0,
    *,
    normalize_std: bool = True,
    eps: Number = 1e-6,
    **options: Unpack[Options],
) -> Method:
    """GRPO with samples dropped whose old policy/sampler is out of bounds (OpenRLHF's IcePop)."""
    weight = SamplerRatio(as_number(low), as_number(high), True)
    return compose(standardized(normalize_std, eps), **with_weight(weight, options))
