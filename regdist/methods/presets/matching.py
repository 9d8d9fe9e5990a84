"""The known methods by name: distribution matching and preferences.

`options` are those of `compose`; l is the log-ratio of the policy p to the reference q.
"""

from typing import Unpack

import jax.numpy as jnp

from regdist.methods.composition import Common, Options, compose
from regdist.methods.matching import (
    Balance,
    Contrast,
    Exponential,
    MatchTarget,
    OptimalAdvantage,
    Pairwise,
    WithReference,
)
from regdist.methods.method import Method
from regdist.methods.penalty import TrustRegion
from regdist.methods.presets.catalog import preset
from regdist.methods.presets.parts import relative, standardized
from regdist.methods.signal import ClusterMass, NashMD
from regdist.methods.surrogate import CappedRatio
from regdist.numerics.records import Number, Table, as_array, as_number, positive
from regdist.regularizers.divergence import KL, Divergence

__all__ = [
    "a_star_po",
    "disco",
    "drpo",
    "fdpg",
    "flowrl",
    "gvpo",
    "mpo",
    "nash_md",
    "online_dpo",
    "online_ipo",
    "self_labelled",
    "trajectory_balance",
    "vargrad",
    "xpo",
]

_BETA = "The target is q e^{R/beta}"


@preset(papers=("2201.13259",), code=("torchgfn gflownet.TBGFlowNet",))
def trajectory_balance(beta: Number, **options: Unpack[Common]) -> Method:
    """(log Z + log p - log q - R/beta)^2 with log Z where it ends up (2201.13259, torchgfn).

    One step. Target q e^{R/beta}/Z.
    """
    b = positive("beta", beta, _BETA)
    return compose(Balance(relative("none"), b, 2 / b, as_number(1.0), "log_z"), **options)


@preset(papers=("2505.20686",), code=("TRL a2po_trainer",), coefficient="beta")
def a_star_po(beta: Number = 1e-3, value_beta: Number = 0.5, **options: Unpack[Common]) -> Method:
    """A*-PO (2505.20686): (beta log p/q - (R - V))^2, V the reference's own optimal value.

    Args:
        beta: TRL's `beta2`. Target q e^{R/beta}.
        value_beta: TRL's `beta1`, of V alone, which moves nothing in expectation.
        options: as in `compose`.
    """
    b = positive("beta", beta, _BETA)
    part = OptimalAdvantage(b, positive("value_beta", value_beta, "It is the price of V's KL"))
    return compose(part, **options)


@preset(papers=("2302.05446",), code=("torchgfn gflownet.LogPartitionVarianceGFlowNet",))
def vargrad(beta: Number, **options: Unpack[Common]) -> Method:
    """The residual of `trajectory_balance` less its mean over the group, squared (2302.05446).

    torchgfn's log-partition variance. On-policy its expected gradient is
    2 grad KL(p || target) (1 - 1/G).
    """
    b = positive("beta", beta, _BETA)
    return compose(Balance(relative("none"), b, 2 / b, as_number(1.0)), **options)


@preset(papers=("2504.19599",), variants={"old-anchor": {"anchor": "old"}})
def gvpo(beta: Number = 0.1, anchor: str = "reference", **options: Unpack[Common]) -> Method:
    """GVPO (2504.19599): sum over a group of (beta (l - mean l) - (r - mean r))^2 / (2 (G - 1)).

    Args:
        beta: coefficient of the log-ratio l.
        anchor: "reference": target q e^{R/beta}; "old": mirror descent, which ends on the best.
        options: as in `compose`.
    """
    b = positive("beta", beta, _BETA)
    return compose(Balance(relative("none"), b, b, as_number(1.0), "mean", True, anchor), **options)


@preset(papers=("2509.15207",))
def flowrl(
    gain: Number = 15.0,
    cap: Number = 10.0,
    *,
    normalize_std: bool = True,
    eps: Number = 1e-6,
    **options: Unpack[Common],
) -> Method:
    """FlowRL (2509.15207): trajectory balance on 15 times GRPO's *advantage*, not the reward.

    Weighted by the ratio, at most `cap`. Its target q exp(15 (R - mean)/std) depends on the policy.
    On sequences the code's residual has the mean of log(p/q) over tokens; here it has their sum.
    """
    inner = standardized(normalize_std, eps)
    residual = Balance(inner, as_number(1.0), as_number(2.0), as_number(gain))
    return compose(residual, CappedRatio(as_number(0.0), as_number(cap)), **options)


@preset(papers=("2302.08215",))
def fdpg(beta: Number, divergence: Divergence | None = None, **options: Unpack[Common]) -> Method:
    """f-DPG (2302.08215): minimizes D_f(p || p*), p* = q e^{R/beta}/Z, for any f.

    Args:
        beta: of the target.
        divergence: f, a `rd.Divergence`; default KL(p || p*).
        options: as in `compose`.
    """
    match = MatchTarget(KL() if divergence is None else divergence, positive("beta", beta, _BETA))
    return compose(match, **options)


@preset(papers=("1806.06920",), code=("rlax mpo_ops",))
def mpo(epsilon: Number = 0.1, **options: Unpack[Common]) -> Method:
    """MPO (1806.06920): fit to the samples weighted by e^{R/eta}, eta from the dual."""
    return compose(Exponential(positive("epsilon", epsilon, "nats between steps")), **options)


@preset(papers=("2312.00886",), code=("TRL nash_md_trainer",))
def nash_md(beta: Number = 0.1, mix: Number = 0.5, **options: Unpack[Common]) -> Method:
    """Nash-MD (2312.00886; TRL): (P(y beats the opponent) - 1/2) log p - beta sg(l) log p.

    The opponent's logits are mix * reference + (1 - mix) * policy, P the sigmoid of reward gaps.
    Fixed point p proportional to q e^{P opponent/beta}: the regularized Nash equilibrium only
    when the opponent is the policy itself (mix = 0).
    """
    return compose(
        relative("none"), signal=NashMD(as_number(mix)), beta=beta, estimator="k2", **options
    )


@preset(code=("TRL online_dpo_trainer",), variants={"soft": {"hard": False}})
def online_dpo(beta: Number = 0.1, hard: bool = True, **options: Unpack[Common]) -> Method:
    """Online DPO: pairs from the policy, judged, -log sigmoid(beta (l_win - l_lose)).

    Args:
        beta: as in DPO.
        hard: the judge always prefers the larger reward: margins then grow without bound. False:
            with probability sigmoid of the reward gap; the target is q e^{R/beta}. Of equal
            rewards each wins half the time: TRL takes the first of a pair that has no order.
        options: as in `compose`.
    """
    return compose(Pairwise(positive("beta", beta, _BETA), "dpo", hard), **options)


@preset(
    papers=("2310.12036",), code=("TRL online_dpo_trainer",), variants={"soft": {"hard": False}}
)
def online_ipo(beta: Number = 0.1, hard: bool = True, **options: Unpack[Common]) -> Method:
    """Online IPO (2310.12036): pairs from the policy, (l_win - l_lose - 1/(2 beta))^2."""
    return compose(Pairwise(positive("beta", beta, _BETA), "ipo", hard), **options)


@preset(
    papers=("2505.12366",),
    variants={"ratio": {"score": "ratio"}, "plain": {"plain": True}},
)
def disco(
    tau: Number | None = None,
    score: str = "log",
    plain: bool = False,
    **options: Unpack[Options],
) -> Method:
    """DisCO (2505.12366): correct samples against wrong ones, not a mean reward.

    On sequences the code's score is a mean over tokens; here it is that of the whole sequence.

    Args:
        tau: temperature of the wrong samples; 10 for log p, 1 for the ratio.
        score: "log" or "ratio".
        plain: DisCO-b, wrong samples weighted evenly: with log p its update is grad logit p_C.
        options: as in `compose`.
    """
    default = 10.0 if score == "log" else 1.0
    contrast = Contrast(as_number(default if tau is None else tau), None, score, plain)
    return compose(contrast, penalties=(_trust_region(),), **options)


@preset(papers=("2510.04474",))
def drpo(length: Table, decay: Number = 0.1, **options: Unpack[Options]) -> Method:
    """DRPO (2510.04474): DisCO whose correct samples weigh e^{(1 - length/longest)/decay}.

    On sequences the score is as in `disco`.

    Args:
        length: of each action, shape [K].
        decay: Lambda.
        options: as in `compose`.
    """
    lengths = as_array("length", length)
    log_weight = (1 - lengths / jnp.max(lengths)) / as_number(decay)
    contrast = Contrast(as_number(10.0), log_weight)
    return compose(contrast, penalties=(_trust_region(),), **options)


def _trust_region() -> TrustRegion:
    """DisCO's own, and DRPO's: beta = 1e3, delta = 1e-4 nats."""
    return TrustRegion(as_number(1e3), as_number(1e-4))


@preset(
    papers=("2405.21046",),
    code=("TRL xpo_trainer",),
    variants={"soft": {"hard": False}, "ipo": {"loss": "ipo"}},
)
def xpo(
    beta: Number = 0.1,
    alpha: Number = 1e-5,
    hard: bool = True,
    loss: str = "dpo",
    **options: Unpack[Common],
) -> Method:
    """XPO (2405.21046): online DPO against the reference's samples, with optimism alpha.

    Args:
        beta: as in DPO.
        alpha: coefficient of log p at the reference's sample.
        hard: as in `online_dpo`, but of equal rewards the policy's sample wins (TRL
            `xpo_trainer`): it is pushed above equally good samples of the reference.
        loss: "dpo" (TRL's "sigmoid") or "ipo".
        options: as in `compose`.
    """
    pair = Pairwise(positive("beta", beta, _BETA), loss, hard)
    return compose(WithReference(pair, as_number(alpha)), **options)


@preset(unsourced="the plainest reward of this kind: the share of samples with one's own answer")
def self_labelled(label: Table, **options: Unpack[Options]) -> Method:
    """The reward is the mass of one's own answer: it ends on the initial plurality.

    Args:
        label: the answer of each action, as in `Bandit.label`.
        options: as in `compose`.
    """
    labels = as_array("label", label)
    same = labels[:, None] == labels[None, :]
    signal = ClusterMass(jnp.where(same, as_number(1.0), as_number(0.0)))
    return compose(relative("none"), signal=signal, **options)
