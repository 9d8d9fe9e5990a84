"""The known methods by name: what is about steps of sequences, and in one step mostly plain.

`options` are those of `compose`; averages over steps are those of the code that is named. Where
samples have one step there are no parts, no ranks by the state and no conflicts.
"""

from typing import Unpack

from regdist.methods.advantage import Advantage
from regdist.methods.composition import Clipped, Common, Options, Penalized, compose
from regdist.methods.method import Method
from regdist.methods.presets.catalog import preset
from regdist.methods.presets.parts import CLIP, PPO, relative, standardized, with_weight
from regdist.methods.surrogate import EntropyBand
from regdist.methods.token_advantage import Critic, ToGo, TokenBaseline, Whitened
from regdist.methods.token_balance import PathBalance
from regdist.methods.token_shaping import (
    CertaintyShaped,
    ConflictAware,
    EntropyShaped,
    OverTokens,
)
from regdist.methods.token_weight import TopEntropy
from regdist.numerics.records import Number, as_number, check_choice, positive

__all__ = [
    "certainty_advantage",
    "detailed_balance",
    "entropy_advantage",
    "forking_tokens",
    "gtpo",
    "hapo",
    "luspo",
    "optimal_token_baseline",
    "ppo_gae",
    "reinforce_to_go",
    "sub_trajectory_balance",
]

_TOKENS: Options = {**PPO, "averaging": "token"}
_BETA = "The target is q e^{R/beta}"


def _whitened(inner: Advantage, form: str) -> Advantage:
    """Over all steps of the batch; as in `parts.whitened`, which is over samples."""
    check_choice("whiten", form, ("none", "unbiased", "biased"))
    return inner if form == "none" else Whitened(inner, as_number(1e-8), form == "biased")


@preset(
    papers=("1506.02438", "1707.06347"),
    code=(
        "verl core_algos.compute_gae_advantage_return",
        "OpenRLHF experience_maker.compute_advantages_and_returns",
    ),
    options=_TOKENS,
    variants={"paper": {"whiten": "none"}, "whitened-biased": {"whiten": "biased"}},
)
def ppo_gae(
    gamma: Number = 1.0, lam: Number = 1.0, whiten: str = "unbiased", **options: Unpack[Options]
) -> Method:
    """PPO (1707.06347) with GAE (1506.02438) and a perfect critic, whitened over steps as in verl.

    In one step `ppo`, whatever gamma and lam are.

    Args:
        gamma: discount of a step.
        lam: 1 for returns less V(s), 0 for what one step is worth.
        whiten: "none", as in the papers; "unbiased", verl's; "biased", OpenRLHF's.
        options: as in `compose`.
    """
    return compose(_whitened(Critic(*map(as_number, (gamma, lam))), whiten), **options)


@preset(
    papers=("2501.03262",),
    code=("verl core_algos.compute_reinforce_plus_plus_outcome_advantage",),
    options=_TOKENS,
    variants={"biased": {"whiten": "biased"}},
)
def reinforce_to_go(
    gamma: Number = 1.0, whiten: str = "unbiased", **options: Unpack[Options]
) -> Method:
    """REINFORCE++ (2501.03262) by steps: returns to go, whitened over all steps of the batch.

    verl's returns start anew after a step of chance. In one step `reinforce_plus_plus`.

    Args:
        gamma: discount of a step.
        whiten: "none"; "unbiased", verl's; "biased", OpenRLHF's.
        options: as in `compose`; beta with estimator="k1", placement="reward" is paid by steps.
    """
    return compose(_whitened(ToGo(as_number(gamma), True), whiten), **options)


@preset(
    code=(
        "verl core_algos.compute_optimal_token_baseline_advantage",
        "verl core_algos.compute_multi_turn_optimal_token_baseline_advantage",
    ),
    options=_TOKENS,
    variants={"turns": {"turns": True}},
)
def optimal_token_baseline(
    turns: bool = False, *, eps: Number = 1e-8, **options: Unpack[Options]
) -> Method:
    """Returns to go less the baseline of least variance at each place, verl's.

    Args:
        turns: its form for several turns: places are the policy's own steps, and there is no
            baseline where only the longest sample goes on.
        eps: added to the sum of weights.
        options: as in `compose`.
    """
    return compose(TokenBaseline(as_number(eps), turns, turns), **options)


@preset(papers=("2506.14758",), code=("Linn3a/siren dp_actor",), options=_TOKENS)
def entropy_advantage(
    alpha: Number = 0.4,
    kappa: Number = 1.0,
    *,
    normalize_std: bool = True,
    eps: Number = 1e-6,
    **options: Unpack[Options],
) -> Method:
    """GRPO with A + min(alpha H, |A|/kappa), H of the step's state (2506.14758; siren's form).

    In one step the bonus is a constant but for its bound.
    """
    inner = standardized(normalize_std, eps)
    return compose(EntropyShaped(inner, *map(as_number, (alpha, kappa))), **options)


@preset(
    papers=("2506.01939",),
    code=(
        "TRL grpo_trainer.get_high_entropy_mask",
        "CarlanLark/Lp-Reg-dev core_algos.compute_policy_loss_8020_split",
    ),
    options={**CLIP, "averaging": "token"},
    variants={"counted": {"form": "count"}},
)
def forking_tokens(
    share: Number = 0.2,
    form: str = "quantile",
    *,
    normalize_std: bool = True,
    eps: Number = 1e-6,
    **options: Unpack[Options],
) -> Method:
    """GRPO at the 20 percent of steps of largest entropy (2506.01939); in one step GRPO.

    Args:
        share: of the steps that are kept.
        form: "quantile", TRL's; "count", as in Lp-Reg's code.
        normalize_std: of GRPO's advantage.
        eps: likewise.
        options: as in `compose`.
    """
    weight = TopEntropy(as_number(share), form)
    return compose(standardized(normalize_std, eps), **with_weight(weight, options))


@preset(papers=("2510.10649",), code=("xvolcano02/UCAS core_algos",), options=_TOKENS)
def certainty_advantage(
    up: Number = 0.25,
    down: Number = 0.35,
    price: Number = 0.05,
    *,
    normalize_std: bool = True,
    eps: Number = 1e-6,
    **options: Unpack[Options],
) -> Method:
    """GRPO that pays surprising successes more and likely tokens less (UCAS 2510.10649, shape).

    In one step certainties are all alike, and the price of likely actions remains.
    """
    numbers = map(as_number, (up, down, price))
    return compose(CertaintyShaped(standardized(normalize_std, eps), *numbers), **options)


@preset(
    code=("starriver030515/HAPO core_algos.compute_hapo_outcome_advantage",),
    options={"averaging": "token"},
    variants={"signed": {"signed": True}},
)
def hapo(
    low: Number = 0.2,
    high: Number = 0.2,
    dual: Number = 10.0,
    pivot: Number = 0.8,
    alpha: Number = 1.0,
    gain: Number = 1.0,
    *,
    signed: bool = False,
    normalize_std: bool = True,
    eps: Number = 1e-6,
    **options: Unpack[Penalized],
) -> Method:
    """HAPO: GRPO over tokens, its bounds and advantages by the entropy of the state, as its code.

    Its samples, drawn at a temperature by the entropy of the state, are `sampler=`. In one step
    PPO's clip of advantages over the biased deviation.

    Args:
        low: distance of the lower bound, at the pivot.
        high: distance of the upper one.
        dual: the dual clip.
        pivot: quantile of entropies.
        alpha: how far bounds move.
        gain: how far advantages do.
        signed: whether states below the pivot count as closed, as the words say; in the code they
            count as open.
        normalize_std: whether advantages are over their deviation.
        eps: added to it.
        options: as in `compose`.
    """
    band = EntropyBand(*map(as_number, (low, high, dual, pivot, alpha, gain)), signed=signed)
    inner = standardized(normalize_std, eps)
    part = OverTokens(inner, as_number(5.0))
    return compose(part, band, **options)


@preset(
    papers=("2508.03772",),
    code=("winstonsmith1897/GTPO gtpo_training",),
    options={"averaging": "sequence"},
)
def gtpo(
    up: Number = 2.0, scale: Number = 0.1, most: Number = 0.7, **options: Unpack[Common]
) -> Method:
    """GTPO (2508.03772): shared first and last tokens of good and bad samples are not pushed down.

    Less 0.1 times the mean entropy of a sample, which is left out above 0.7. Its code adds the
    samples of a group up; here they are averaged. In one step no token is in conflict.
    """
    numbers = map(as_number, (up, scale, most))
    return compose(ConflictAware(relative("mean"), *numbers), **options)


@preset(
    papers=("2602.05261",),
    code=("TRL grpo_trainer",),
    options={**CLIP, "averaging": "sum", "ratio": "sequence"},
    variants={"paper": {"clip_low": 2e-3, "clip_high": 2.5e-3}},
)
def luspo(*, normalize_std: bool = True, eps: Number = 1e-4, **options: Unpack[Clipped]) -> Method:
    """LUSPO (2602.05261): GSPO's objective of a sequence times its length; in one step GSPO.

    TRL's, with its clip and the sequence ratio that it asks for; the paper's bounds, as TRL gives
    them, are 0.002 and 0.0025. A penalty in TRL's loss would be averaged over padding too, so that
    there is none here.
    """
    return compose(standardized(normalize_std, eps), **options)


@preset(code=("torchgfn gflownet.DBGFlowNet",), options={"averaging": "token"})
def detailed_balance(beta: Number, **options: Unpack[Common]) -> Method:
    """(log F(s) + log p - log F(s'))^2 of each step, with F where it ends up (torchgfn).

    Target q e^{R/beta}/Z. In one step `trajectory_balance`.
    """
    b = positive("beta", beta, _BETA)
    return compose(PathBalance(b, as_number(0.0), "steps"), **options)


@preset(code=("torchgfn gflownet.SubTBGFlowNet",))
def sub_trajectory_balance(beta: Number, lam: Number = 0.9, **options: Unpack[Common]) -> Method:
    """The squared residuals of all parts of a sequence, weight lam^(length - 1) (torchgfn).

    Its "geometric_within" weights; "TB" is the limit of a large lam. Target q e^{R/beta}/Z. In one
    step `trajectory_balance`.
    """
    b = positive("beta", beta, _BETA)
    return compose(PathBalance(b, as_number(lam)), **options)
