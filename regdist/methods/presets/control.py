"""The known methods by name: what holds an entropy, a KL or the share of clipped samples.

`options` are those of `compose`; p is the policy.
"""

import math
from typing import Unpack

from regdist.methods.composition import Detailed, Options, Penalized, compose
from regdist.methods.controller import AdaptiveEntropy, AdaptiveKL
from regdist.methods.matching import DistributionCentric, TemperedBonus
from regdist.methods.method import Method
from regdist.methods.penalty import KLCov
from regdist.methods.presets.catalog import preset
from regdist.methods.presets.parts import (
    CLIP,
    NO_DUAL_CLIP,
    PPO,
    relative,
    standardized,
    with_weight,
)
from regdist.methods.surrogate import Bapo, Clip, LpReg
from regdist.methods.weight import ClipCov, Steer
from regdist.numerics.records import Number, as_array, as_number, positive
from regdist.regularizers.regularizer import Entropy

__all__ = [
    "adaptive_entropy",
    "aepo",
    "bapo",
    "clip_cov",
    "dcpo",
    "entropy_bonus",
    "kl_cov",
    "lp_reg",
    "ppo_adaptive_kl",
    "steer",
]


@preset(
    code=("verl core_algos.compute_entropy_loss",),
    variants={"sampled-loss": {"sampled_loss": True}},
    coefficient="alpha",
)
def entropy_bonus(alpha: Number, sampled_loss: bool = False, **options: Unpack[Options]) -> Method:
    """REINFORCE with an entropy bonus: alpha times the true entropy, or the sampled "loss".

    Some trainers' entropy loss is the mean of log p at the samples, differentiated through these
    alone: its expected gradient is 0 (`sampled_loss=True`). On sequences the entropy is that of
    whole ones, which adds up over steps, and the reward is summed beside it; verl averages the
    entropies of tokens.
    """
    advantage = relative("others", singleton="raw")
    if sampled_loss:
        sampled: Options = {"beta": alpha, "estimator": "k1", "anchor": "uniform"}
        options = {**sampled, **options}
        return compose(advantage, **options)
    bonus, further = Entropy(alpha), options.get("regularizer")
    options["regularizer"] = bonus if further is None else bonus + further
    return compose(advantage, **options)


@preset(code=("TRL grpo_trainer",), options=CLIP, coefficient="alpha")
def adaptive_entropy(
    target: Number,
    alpha: Number = 0.0,
    step: Number = 0.005,
    largest: Number = 1.0,
    normalize_std: bool = True,
    *,
    eps: Number = 1e-4,
    **options: Unpack[Options],
) -> Method:
    """TRL's adaptive entropy bonus: alpha steps toward an entropy, and is off above it.

    On sequences the entropy is that of whole ones and all is summed, as in `entropy_bonus`. Beside
    a standard deviation it may not hold: as the policy sharpens, the normalized advantage
    grows like 1/std, and `largest` caps the bonus. Without one it slides along its set-point.
    """
    control = AdaptiveEntropy(*map(as_number, (alpha, target, step, largest)))
    if options.get("regularizer") is None:
        options["regularizer"] = Entropy(1.0)
    return compose(standardized(normalize_std, eps), controller=control, **options)


@preset(
    papers=("1909.08593",),
    code=("verl core_algos.AdaptiveKLController",),
    options=PPO,
    averaging="token",
)
def ppo_adaptive_kl(
    target: Number,
    beta: Number = 0.2,
    rate: Number = 0.01,
    **options: Unpack[Detailed],
) -> Method:
    """PPO with k1 in the reward and a beta that follows a KL (1909.08593, verl).

    Args:
        target: set-point of KL(policy || reference), nats.
        beta: to start from.
        rate: samples a step over the horizon.
        options: as in `compose`.
    """
    positive("beta", beta, "It is multiplied, so that 0 stays 0")
    control = AdaptiveKL(*map(as_number, (beta, target, rate, 0.2)))
    advantage = relative("value")
    return compose(
        advantage, beta=beta, estimator="k1", placement="reward", controller=control, **options
    )


@preset(
    papers=("2505.22617",),
    code=("verl core_algos.compute_policy_loss_clip_cov",),
    options=PPO,
    averaging="token",
)
def clip_cov(
    fraction: Number = 2e-4,
    low: Number = 1.0,
    high: Number = 5.0,
    *,
    normalize_std: bool = True,
    eps: Number = 1e-6,
    **options: Unpack[Options],
) -> Method:
    """Clip-Cov (2505.22617, verl): drops a random few samples that move the entropy most."""
    weight = ClipCov(*map(as_number, (fraction, low, high, 0.8, 1.2)))
    return compose(standardized(normalize_std, eps), **with_weight(weight, options))


@preset(
    papers=("2505.22617",), code=("verl core_algos.compute_policy_loss_kl_cov",), averaging="token"
)
def kl_cov(
    fraction: Number = 2e-4,
    kl_coef: Number = 0.1,
    *,
    normalize_std: bool = True,
    eps: Number = 1e-6,
    **options: Unpack[Penalized],
) -> Method:
    """KL-Cov (2505.22617, verl): |log ratio| on the samples of largest covariance; no clip.

    Does nothing in the first update of a step. verl's defaults; the authors' own are a share of
    0.002 and a coefficient of 1.
    """
    ratio = Clip(as_number(0.0), as_number(math.inf), as_number(NO_DUAL_CLIP))
    penalty = KLCov(as_number(kl_coef), as_number(fraction))
    return compose(standardized(normalize_std, eps), ratio, penalties=(penalty,), **options)


@preset(
    papers=("2510.10150",),
    options=PPO,
    averaging="token",
)
def steer(
    least: Number = 0.8,
    *,
    normalize_std: bool = True,
    eps: Number = 1e-6,
    **options: Unpack[Options],
) -> Method:
    """STEER (2510.10150): samples that move the entropy most weigh less, at least `least`."""
    weight = Steer(as_number(least), as_number(0.02))
    return compose(standardized(normalize_std, eps), **with_weight(weight, options))


@preset(papers=("2510.03222",), averaging="token")
def lp_reg(
    fraction: Number = 0.01,
    floor: Number = 0.02,
    kl_coef: Number = 1.0,
    *,
    normalize_std: bool = True,
    eps: Number = 1e-6,
    **options: Unpack[Penalized],
) -> Method:
    """Lp-Reg (2510.03222): protects unlikely negative samples that a min-p filter would keep.

    It acts only if `fraction` of the negative samples of a batch is more than one sample: at its
    default not below 200 of them. Actions that the filter removes are never protected.
    """
    clip = Clip(as_number(0.0), as_number(10.0), as_number(NO_DUAL_CLIP))
    gate = LpReg(clip, *map(as_number, (kl_coef, fraction, floor)))
    return compose(standardized(normalize_std, eps), gate, **options)


@preset(papers=("2510.18927",), averaging="token")
def bapo(
    share: Number = 1.0,
    lower: tuple[float, float] = (0.6, 0.8),
    upper: tuple[float, float] = (1.2, 2.0),
    step: float = 0.05,
    *,
    normalize_std: bool = True,
    eps: Number = 1e-6,
    **options: Unpack[Penalized],
) -> Method:
    """BAPO (2510.18927): PPO bounds that move until positive samples reach `share` of negative."""
    bounds = as_array("lower", lower), as_array("upper", upper)
    if any(bound.shape != (2,) for bound in bounds):
        raise ValueError(
            f"lower and upper must be a first and a last bound each; got {lower!r} and {upper!r}"
        )
    # 1e-9: a whole number of steps may come out a few ulps above itself
    steps = max(math.ceil((b - a) / step - 1e-9) for a, b in (lower, upper))
    gate = Bapo(*bounds, as_number(step), as_number(share), as_number(3.0), steps)
    return compose(standardized(normalize_std, eps), gate, **options)


@preset(
    papers=("2510.08141",),
    options=PPO,
    averaging="token",
)
def aepo(
    target: Number,
    share: Number = 60 / 2560,
    hot: Number = 1.2,
    cold: Number = 0.8,
    *,
    normalize_std: bool = True,
    eps: Number = 1e-6,
    **options: Unpack[Options],
) -> Method:
    """AEPO, arbitrary entropy (2510.08141): correct samples at another temperature mixed in.

    In expectation (1 - share) of GRPO's update and share of t - p; t is p^{1/T} on the correct
    actions, T hot while the entropy is at or below `target`, else cold at half the share. It holds
    an entropy below log(number of correct actions), and no higher one. Its code draws new samples
    for this, 60 in a batch of 2560; drawn groups here weigh their own by t/p, of the same mean.
    """
    inner, numbers = standardized(normalize_std, eps), map(as_number, (target, share, hot, cold))
    return compose(TemperedBonus(inner, *numbers), **options)


@preset(
    code=("597358816/DCPO",),
    options=PPO,
    averaging="token",
)
def dcpo(
    target: Number = 0.5,
    most: Number = 0.1,
    hot: Number = 1.2,
    cold: Number = 0.8,
    *,
    normalize_std: bool = True,
    eps: Number = 1e-6,
    **options: Unpack[Options],
) -> Method:
    """DCPO, AEPO's distribution-centric sibling: own correct samples weighed by p^{1/T}/p.

    Args:
        target: entropy to hold.
        most: bound on the error of the entropy that is answered.
        hot: T while the entropy is at or below the target.
        cold: T above it.
        normalize_std: of GRPO's advantage, which is the rest of it.
        eps: likewise.
        options: as in `compose`.
    """
    inner, numbers = standardized(normalize_std, eps), map(as_number, (target, most, hot, cold))
    return compose(DistributionCentric(inner, *numbers), **options)
