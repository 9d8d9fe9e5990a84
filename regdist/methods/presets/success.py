"""The known methods by name: what counts is success, in one try or in k.

`options` are those of `compose`. G is the group size, p the chance of success, correct samples are
those of a reward above 0.
"""

from typing import Unpack

import numpy as np

from regdist.methods.advantage import BestMinusSecond, MaxAtK, MixedOnly, PassAtK, Signed
from regdist.methods.composition import Options, Penalized, compose
from regdist.methods.method import Method
from regdist.methods.presets.catalog import preset
from regdist.methods.presets.parts import PPO, relative, standardized
from regdist.methods.token_shaping import Voted
from regdist.numerics.records import Number, as_number, is_concrete, positive

__all__ = [
    "maxrl",
    "nsr",
    "one_sided_grpo",
    "pass_at_k_grpo",
    "pass_at_k_training",
    "pkpo",
    "psr",
    "raft",
    "reinforce_rej",
    "ttrl",
    "w_reinforce",
]


@preset(
    papers=("2602.02710",),
    code=("tajwarfahim/maxrl core_algos.compute_p_normalization_outcome_advantage",),
    options=PPO,
    averaging="token",
)
def maxrl(*, eps: Number = 1e-6, **options: Unpack[Options]) -> Method:
    """MaxRL (2602.02710): (r - mean)/(mean + 1e-6); sum over k < G of grad pass@k / k, binary."""
    return compose(relative("mean", "mean", eps, "raw"), **options)


@preset(
    code=("tajwarfahim/maxrl core_algos.compute_one_sided_grpo_outcome_advantage",),
    options=PPO,
    averaging="token",
)
def one_sided_grpo(*, eps: Number = 1e-6, **options: Unpack[Options]) -> Method:
    """(r - mean)/(sqrt(mean) + 1e-6), beside MaxRL in its repository."""
    return compose(relative("mean", "sqrt_mean", eps), **options)


@preset(
    papers=("2503.19595",),
    code=("verl core_algos.compute_grpo_passk_outcome_advantage",),
    options=PPO,
    variants={"no-std": {"normalize_std": False}},
    averaging="token",
)
def pass_at_k_grpo(
    normalize_std: bool = True, *, eps: Number = 1e-6, **options: Unpack[Options]
) -> Method:
    """The best sample gets its lead over the second (2503.19595, verl `grpo_passk`).

    Without the standard deviation the expected update is grad pass@G / G for a binary reward. It
    moves nothing under `Population()`, which is refused.
    """
    scale = "std" if normalize_std else "none"
    return compose(BestMinusSecond(as_number(eps), scale), **options)


@preset(
    papers=("2508.10751",),
    options=PPO,
    variants={"pass-at-2": {"k": 2}},
    averaging="token",
)
def pass_at_k_training(k: Number = 4, **options: Unpack[Options]) -> Method:
    """Pass@k training (2508.10751): the analytic advantage of pass@k over groups of k."""
    return compose(PassAtK(positive("k", k, "k is how many tries count")), **options)


@preset(papers=("2505.15201",), variants={"max-at-2": {"k": 2}})
def pkpo(k: Number = 4, **options: Unpack[Penalized]) -> Method:
    """PKPO (2505.15201): an unbiased gradient of the expected best of k samples of a group.

    Its s^(loo-1), G times: the paper adds samples up where trainers take their mean.

    Args:
        k: 2 to G.
        options: as in `compose`.
    """
    tries = positive("k", k, "k is how many tries count")
    if is_concrete(tries) and not np.all(np.asarray(tries) >= 2):
        raise ValueError(f"k must be at least 2, of one sample take rd.methods.rloo; got k={k!r}")
    return compose(MaxAtK(tries), **options)


@preset(
    papers=("2506.01347",), options=PPO, variants={"subset": {"subset": True}}, averaging="token"
)
def psr(subset: bool = False, **options: Unpack[Options]) -> Method:
    """Positive samples alone (2506.01347). The code averages over them: `subset=True`."""
    return compose(Signed(as_number(1), as_number(0), subset), **options)


@preset(
    papers=("2506.01347",), options=PPO, variants={"subset": {"subset": True}}, averaging="token"
)
def nsr(subset: bool = False, **options: Unpack[Options]) -> Method:
    """Negative samples alone (2506.01347). The code averages over them: `subset=True`."""
    return compose(Signed(as_number(0), as_number(1), subset), **options)


@preset(
    papers=("2506.01347",),
    options=PPO,
    averaging="token",
)
def w_reinforce(weight: Number = 0.1, **options: Unpack[Options]) -> Method:
    """W-REINFORCE (2506.01347): `weight` on positive samples, 1 on negative ones."""
    return compose(Signed(as_number(weight), as_number(1)), **options)


@preset(papers=("2304.06767", "2504.11343"), averaging="token")
def raft(**options: Unpack[Options]) -> Method:
    """RAFT (2304.06767; Minimal-RL 2504.11343): rewards below 0 count as 0.

    As gradient steps; a maximum-likelihood fit to the end of every round gives
    `rd.rejection(bandit, threshold)` at once.
    """
    return compose(Signed(as_number(1), as_number(0)), **options)


@preset(papers=("2504.11343",), averaging="token")
def reinforce_rej(**options: Unpack[Options]) -> Method:
    """Reinforce-Rej (2504.11343): the raw reward, groups of equal rewards dropped."""
    return compose(MixedOnly(), **options)


@preset(
    papers=("2504.16084",),
    code=("PRIME-RL/TTRL ttt_metrics.test_time_train_metrics",),
    options=PPO,
    averaging="token",
)
def ttrl(*, normalize_std: bool = True, eps: Number = 1e-6, **options: Unpack[Options]) -> Method:
    """TTRL (2504.16084): GRPO whose reward is agreement with the answer that most samples give.

    Answers are labels; rewards of the problem are not looked at. Under `Population()` the likeliest
    answer is elected.
    """
    return compose(Voted(standardized(normalize_std, eps)), **options)
