"""The known methods by name: group methods of RL post-training. Each is a few parts and defaults.

`options` are those of `compose`: beta, estimator, placement, clip_low, clip_high and so on. Where
a name stands for code, the code's form and defaults are meant; one step has no lengths, so
that whatever divides by them is left out. G is the group size, p the chance of success, C the
correct actions (reward above 0).
"""

import math
from collections.abc import Mapping
from typing import Any, Unpack

import jax.numpy as jnp
from jax.typing import ArrayLike

from regdist.methods.advantage import (
    Advantage,
    BestMinusSecond,
    GroupRelative,
    MixedOnly,
    OptimalBaseline,
    PassAtK,
    RangeAtRisk,
    Signed,
)
from regdist.methods.composition import Detailed, Options, Penalized, compose
from regdist.methods.controller import AdaptiveEntropy, AdaptiveKL
from regdist.methods.matching import DistributionCentric, TemperedBonus
from regdist.methods.method import Method
from regdist.methods.penalty import KLCov
from regdist.methods.surrogate import Bapo, CappedRatio, Clip, LpReg, SoftGate, Surrogate
from regdist.methods.weight import ClipCov, SamplerRatio, Steer
from regdist.numerics.records import as_number, positive
from regdist.regularizers.regularizer import Entropy, Regularizer

_PPO: Options = {"clip_low": 0.2, "clip_high": 0.2, "clip_dual": 3.0}


def _relative(
    baseline: str, scale: str = "none", eps: ArrayLike = 0.0, singleton: str = "formula"
) -> Advantage:
    return GroupRelative(as_number(eps), baseline, scale, singleton)


def _build(
    advantage: Advantage,
    options: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
    surrogate: Surrogate | None = None,
    **parts: Any,
) -> Method:
    chosen: dict[str, Any] = {**(defaults or {}), **options}
    return compose(advantage, surrogate, **parts, **chosen)


def policy_gradient(regularizer: Regularizer | None = None) -> Method:
    """Plain gradient ascent on the logits of a softmax table (arXiv 2005.06392).

    Update direction p_i (w_i - E_p w), with w = R - d regulariser/dp. Regularised, it converges
    linearly, at a rate that the least likely action of the target sets; until every action is
    near its target it can sit on a plateau. Without a regulariser it collapses onto one action.

    Args:
        regularizer: subtracted from the expected reward; None for the plain reward.
    """
    return compose(_relative("none"), regularizer=regularizer)


def natural_policy_gradient(regularizer: Regularizer | None = None) -> Method:
    """Natural policy gradient, which for a table is mirror descent in KL (arXiv 2007.06558).

    Update direction w_i - E_p w. With reverse KL and step size eta one step is
    p <- p^(1 - eta beta) q^(eta beta) e^(eta R), normalised: the log-ratio to the target contracts
    by exactly 1 - eta beta, and eta = 1/beta arrives in one step.

    Args:
        regularizer: subtracted from the expected reward; None for the plain reward.
    """
    return compose(_relative("none"), regularizer=regularizer, geometry="natural")


def reinforce(**options: Unpack[Options]) -> Method:
    """REINFORCE: the raw reward times the score. Expected update grad E R."""
    return _build(_relative("none"), options)


def ppo(**options: Unpack[Options]) -> Method:
    """PPO (1707.06347) with dual clip (1912.09729) and a perfect critic: A = r - E r.

    The critic knows the old policy's expected reward; what an imperfect one changes is noise, and,
    once samples are old, which side of the clip they are on.
    """
    return _build(_relative("value"), options, _PPO)


def remax(**options: Unpack[Options]) -> Method:
    """ReMax (2310.10505): the baseline is the reward of the likeliest action."""
    return _build(_relative("greedy"), options, _PPO)


def rloo(**options: Unpack[Options]) -> Method:
    """RLOO (2402.14740): the baseline is the mean of the others; unbiased for grad E R.

    A group of one keeps its reward (verl `compute_rloo_outcome_advantage`). TRL's trainer is
    `rloo(beta=0.05, estimator="k1", placement="reward")`, the penalty before the baseline.
    """
    return _build(_relative("others", singleton="raw"), options, _PPO)


def grpo(
    beta: ArrayLike = 0.04,
    estimator: str = "k3",
    placement: str = "loss",
    normalize_std: bool = True,
    *,
    eps: ArrayLike = 1e-6,
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
    scale = "std" if normalize_std else "none"
    chosen: Options = {
        "clip_low": 0.2,
        "clip_high": 0.2,
        "beta": beta,
        "estimator": estimator,
        "placement": placement,
    }
    return _build(_relative("mean", scale, eps, "raw"), options, chosen)


def dr_grpo(**options: Unpack[Options]) -> Method:
    """Dr. GRPO (2503.20783): r - mean, no standard deviation; 1 - 1/G times grad E R."""
    advantage = _relative("mean", singleton="raw")
    return _build(advantage, options, {"clip_low": 0.2, "clip_high": 0.2})


def dapo(**options: Unpack[Options]) -> Method:
    """DAPO (2503.14476): GRPO's advantage, clip 0.2 below and 0.28 above, no penalty.

    Its dynamic sampling drops groups that are all right or all wrong, which move nothing anyway;
    the batch is then filled up: on one prompt that rescales the update.
    """
    defaults: Options = {"clip_low": 0.2, "clip_high": 0.28, "clip_dual": 3.0}
    return _build(_relative("mean", "std", 1e-6, "raw"), options, defaults)


def gspo(**options: Unpack[Options]) -> Method:
    """GSPO (2507.18071): the ratio of the sequence; in one step that is PPO without dual clip."""
    defaults: Options = {"clip_low": 0.2, "clip_high": 0.2}
    return _build(_relative("mean", "std", 1e-6, "raw"), options, defaults)


def gmpo(
    clip_low: ArrayLike = 0.4, clip_high: ArrayLike = 0.4, **options: Unpack[Penalized]
) -> Method:
    """GMPO (2507.20673): the ratio clipped in log space, between e^-low and e^high."""
    bounds = jnp.exp(-as_number(clip_low)), jnp.exp(as_number(clip_high))
    gate = Clip(*bounds, as_number(math.inf))
    return _build(_relative("mean", "std", 1e-6, "raw"), options, surrogate=gate)


def cispo(
    clip_low: ArrayLike = 0.2, clip_high: ArrayLike = 0.2, **options: Unpack[Penalized]
) -> Method:
    """CISPO (2506.13585): the clipped ratio is a constant weight, so that no sample drops out.

    verl's bounds. TRL reads its epsilon_high as the absolute cap: cispo(1.0, cap - 1).
    """
    gate = CappedRatio(1 - as_number(clip_low), 1 + as_number(clip_high))
    return _build(_relative("mean", "std", 1e-6, "raw"), options, surrogate=gate)


def sapo(
    tau_positive: ArrayLike = 1.0, tau_negative: ArrayLike = 1.05, **options: Unpack[Penalized]
) -> Method:
    """SAPO (2511.20347): a smooth gate on the ratio, a temperature for each sign."""
    gate = SoftGate(as_number(tau_positive), as_number(tau_negative))
    return _build(_relative("mean", "std", 1e-6, "raw"), options, surrogate=gate)


def reinforce_plus_plus(**options: Unpack[Options]) -> Method:
    """REINFORCE++ (2501.03262): rewards whitened over the batch, (r - mean)/sqrt(var + 1e-8).

    The batch is the one group here; over many prompts the scale is common to all of them.
    """
    return _build(_relative("mean", "whiten", 1e-8), options, _PPO)


def reinforce_plus_plus_baseline(**options: Unpack[Options]) -> Method:
    """REINFORCE++ with the group mean removed before whitening; one prompt makes them the same."""
    return _build(_relative("mean", "whiten", 1e-8, "raw"), options, _PPO)


def opo(**options: Unpack[Options]) -> Method:
    """OPO (2505.23585): the length-weighted mean as baseline; without lengths r - mean."""
    return _build(_relative("mean", singleton="raw"), options)


def gpg(**options: Unpack[Options]) -> Method:
    """GPG: (r - mean) over the share of samples with a nonzero reward (verl `compute_gpg`).

    The paper means the share of groups whose rewards differ; the code counts nonzero scores. No
    ratio in the loss.
    """
    return _build(_relative("mean", "nonzero", singleton="raw"), options)


def maxrl(**options: Unpack[Options]) -> Method:
    """MaxRL (2602.02710): (r - mean)/(mean + 1e-6); sum over k < G of grad pass@k / k, binary."""
    return _build(_relative("mean", "mean", 1e-6, "raw"), options, _PPO)


def one_sided_grpo(**options: Unpack[Options]) -> Method:
    """(r - mean)/sqrt(mean), beside MaxRL in its repository."""
    return _build(_relative("mean", "sqrt_mean", 1e-6), options, _PPO)


def pass_at_k_grpo(normalize_std: bool = True, **options: Unpack[Options]) -> Method:
    """The best sample gets its lead over the second (2503.19595, verl `grpo_passk`).

    Without the standard deviation the expected update is grad pass@G / G for a binary reward. It
    moves nothing under `Population()`, which is refused.
    """
    scale = "std" if normalize_std else "none"
    return _build(BestMinusSecond(as_number(1e-6), scale), options, _PPO)


def pass_at_k_training(k: ArrayLike = 4, **options: Unpack[Options]) -> Method:
    """Pass@k training (2508.10751): the analytic advantage of pass@k over groups of k."""
    return _build(PassAtK(positive("k", k, "k is how many tries count")), options, _PPO)


def psr(subset: bool = False, **options: Unpack[Options]) -> Method:
    """Positive samples alone (2506.01347). The code averages over them: `subset=True`."""
    return _build(Signed(as_number(1), as_number(0), subset), options, _PPO)


def nsr(subset: bool = False, **options: Unpack[Options]) -> Method:
    """Negative samples alone (2506.01347). The code averages over them: `subset=True`."""
    return _build(Signed(as_number(0), as_number(1), subset), options, _PPO)


def w_reinforce(weight: ArrayLike = 0.1, **options: Unpack[Options]) -> Method:
    """W-REINFORCE (2506.01347): `weight` on positive samples, 1 on negative ones."""
    return _build(Signed(as_number(weight), as_number(1)), options, _PPO)


def raft(**options: Unpack[Options]) -> Method:
    """RAFT (2304.06767; Minimal-RL 2504.11343): rewards below 0 count as 0.

    As gradient steps; a maximum-likelihood fit to the end of every round gives
    `rd.rejection(bandit, threshold)` at once.
    """
    return _build(Signed(as_number(1), as_number(0)), options)


def reinforce_rej(**options: Unpack[Options]) -> Method:
    """Reinforce-Rej (2504.11343): the raw reward, groups of equal rewards dropped."""
    return _build(MixedOnly(), options)


def vcpo(paper: bool = False, cap: ArrayLike = 8.0, **options: Unpack[Penalized]) -> Method:
    """VCPO (2602.17616): the baseline of least variance, ratios cut at `cap`.

    The code weighs its baseline by min(w, cap)^2 w^2 |S|^2, the paper by w^2 |S|^2 (`paper=True`);
    on-policy they are one. Its step size follows the effective sample size: a matter of the
    optimiser.
    """
    advantage = OptimalBaseline(as_number(0.0 if paper else cap))
    return _build(advantage, options, surrogate=CappedRatio(as_number(0), as_number(cap)))


def riskpo(
    low: ArrayLike = 0.2,
    high: ArrayLike = 0.9,
    weight: ArrayLike = 1.5,
    **options: Unpack[Options],
) -> Method:
    """RiskPO (2510.00911): range value-at-risk and a weighted lower tail, bundles of one prompt."""
    return _build(RangeAtRisk(*map(as_number, (low, high, weight, 1e-6))), options, _PPO)


def tis(cap: ArrayLike = 2.0, **options: Unpack[Detailed]) -> Method:
    """GRPO with truncated importance sampling: old policy/sampler, at most `cap` (verl's 2)."""
    weight = SamplerRatio(as_number(0.0), as_number(cap))
    return _grpo_with(options, weights=(weight,))


def icepop(low: ArrayLike = 0.5, high: ArrayLike = 5.0, **options: Unpack[Detailed]) -> Method:
    """GRPO with samples dropped whose old policy/sampler is out of bounds (OpenRLHF's IcePop)."""
    weight = SamplerRatio(as_number(low), as_number(high), True)
    return _grpo_with(options, weights=(weight,))


def clip_cov(
    fraction: ArrayLike = 2e-4,
    low: ArrayLike = 1.0,
    high: ArrayLike = 5.0,
    **options: Unpack[Detailed],
) -> Method:
    """Clip-Cov (2505.22617, verl): drops a random few samples that move the entropy most."""
    weight = ClipCov(*map(as_number, (fraction, low, high, 0.8, 1.2)))
    return _grpo_with(options, weights=(weight,))


def kl_cov(
    fraction: ArrayLike = 2e-4, kl_coef: ArrayLike = 0.1, **options: Unpack[Penalized]
) -> Method:
    """KL-Cov (2505.22617, verl): |log ratio| on the samples of largest covariance; no clip.

    Does nothing in the first update of a step. verl's defaults; the authors' own are a share of
    0.002 and a coefficient of 1.
    """
    ratio = Clip(as_number(0.0), as_number(math.inf), as_number(math.inf))
    penalty = KLCov(as_number(kl_coef), as_number(fraction))
    advantage = _relative("mean", "std", 1e-6, "raw")
    return _build(advantage, options, surrogate=ratio, penalties=(penalty,))


def steer(least: ArrayLike = 0.8, **options: Unpack[Detailed]) -> Method:
    """STEER (2510.10150): samples that move the entropy most weigh less, at least `least`."""
    return _grpo_with(options, weights=(Steer(as_number(least), as_number(0.02)),))


def lp_reg(
    fraction: ArrayLike = 0.01,
    floor: ArrayLike = 0.02,
    kl_coef: ArrayLike = 1.0,
    **options: Unpack[Penalized],
) -> Method:
    """Lp-Reg (2510.03222): protects unlikely negative samples that a min-p filter would keep.

    It acts only if `fraction` of the negative samples of a batch is more than one sample: at its
    default not below 200 of them. Actions that the filter removes are never protected.
    """
    clip = Clip(as_number(0.0), as_number(10.0), as_number(math.inf))
    gate = LpReg(clip, *map(as_number, (kl_coef, fraction, floor)))
    return _build(_relative("mean", "std", 1e-6, "raw"), options, surrogate=gate)


def bapo(
    share: ArrayLike = 1.0,
    lower: tuple[float, float] = (0.6, 0.8),
    upper: tuple[float, float] = (1.2, 2.0),
    step: float = 0.05,
    **options: Unpack[Penalized],
) -> Method:
    """BAPO (2510.18927): PPO bounds that move until positive samples reach `share` of negative."""
    bounds = jnp.asarray(lower, float), jnp.asarray(upper, float)
    steps = max(math.ceil((b - a) / step - 1e-9) for a, b in (lower, upper))
    gate = Bapo(*bounds, as_number(step), as_number(share), as_number(3.0), steps)
    return _build(_relative("mean", "std", 1e-6, "raw"), options, surrogate=gate)


def aepo(
    target: ArrayLike,
    share: ArrayLike = 60 / 2560,
    hot: ArrayLike = 1.2,
    cold: ArrayLike = 0.8,
    **options: Unpack[Options],
) -> Method:
    """AEPO, arbitrary entropy (2510.08141): correct samples at another temperature mixed in.

    In expectation (1 - share) of GRPO's update and share of t - p; t is p^{1/T} on the correct
    actions, T hot while the entropy is at or below `target`, else cold at half the share. It holds
    an entropy below log(number of correct actions), and no higher one. Its code draws new samples
    for this, 60 in a batch of 2560; drawn groups here weigh their own by t/p, of the same mean.
    """
    inner = _relative("mean", "std", 1e-6, "raw")
    numbers = map(as_number, (target, share, hot, cold))
    return _build(TemperedBonus(inner, *numbers), options, _PPO)


def dcpo(
    target: ArrayLike = 0.5,
    most: ArrayLike = 0.1,
    hot: ArrayLike = 1.2,
    cold: ArrayLike = 0.8,
    **options: Unpack[Options],
) -> Method:
    """DCPO, AEPO's distribution-centric sibling: own correct samples weighed by p^{1/T}/p.

    Args:
        target: entropy to hold.
        most: bound on the error of the entropy that is answered.
        hot: T while the entropy is at or below the target.
        cold: T above it.
        options: as in `compose`.
    """
    inner = _relative("mean", "std", 1e-6, "raw")
    numbers = map(as_number, (target, most, hot, cold))
    return _build(DistributionCentric(inner, *numbers), options, _PPO)


def _grpo_with(options: Mapping[str, Any], **parts: Any) -> Method:
    return _build(_relative("mean", "std", 1e-6, "raw"), options, _PPO, **parts)


def entropy_bonus(
    alpha: ArrayLike, sampled_loss: bool = False, **options: Unpack[Options]
) -> Method:
    """REINFORCE with an entropy bonus: alpha times the true entropy, or the sampled "loss".

    Some trainers' entropy loss is the mean of log p at the samples, differentiated through these
    alone: its expected gradient is 0 (`sampled_loss=True`).
    """
    if sampled_loss:
        chosen: Options = {"beta": alpha, "estimator": "k1", "anchor": "uniform"}
        return _build(_relative("others", singleton="raw"), options, chosen)
    return _build(_relative("others", singleton="raw"), options, {"regularizer": Entropy(alpha)})


def adaptive_entropy(
    target: ArrayLike,
    alpha: ArrayLike = 0.0,
    step: ArrayLike = 0.005,
    largest: ArrayLike = 1.0,
    normalize_std: bool = True,
    **options: Unpack[Options],
) -> Method:
    """TRL's adaptive entropy bonus: alpha steps towards an entropy, and is off above it.

    Beside a standard deviation it may not hold: as the policy sharpens, the normalised advantage
    grows like 1/std, and `largest` caps the bonus. Without one it slides along its set-point.
    """
    control = AdaptiveEntropy(*map(as_number, (alpha, target, step, largest)))
    return _build(
        _relative("mean", "std" if normalize_std else "none", 1e-4, "raw"),
        options,
        {"clip_low": 0.2, "clip_high": 0.2, "regularizer": Entropy(1.0)},
        controller=control,
    )


def ppo_adaptive_kl(
    target: ArrayLike,
    beta: ArrayLike = 0.2,
    rate: ArrayLike = 0.01,
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
    chosen: Options = {**_PPO, "beta": beta, "estimator": "k1", "placement": "reward"}
    return _build(_relative("value"), options, chosen, controller=control)
