"""NeMo-RL's GRPO: its YAML as a composition."""

from typing import Any

import regdist.methods as m
from regdist.methods.advantage import Advantage
from regdist.methods.penalty import Penalty, PositiveNLL
from regdist.methods.presets.parts import relative
from regdist.methods.token_advantage import Bounded
from regdist.methods.weight import SamplerRatio, Weight
from regdist.numerics.records import as_number
from regdist.trainers.kl import penalty, pitfalls
from regdist.trainers.settings import Option, Settings
from regdist.trainers.trainer import OTHER_LAW, Plan, Trainer

_TRUNCATED = "loss_fn.truncated_importance_sampling_"

OPTIONS = {
    "grpo.num_generations_per_prompt": Option(16, "G"),
    "grpo.normalize_rewards": Option(True, "scale of the advantage"),
    "grpo.use_leave_one_out_baseline": Option(True, "mean and deviation of the others"),
    "grpo.adv_estimator.name": Option("grpo", "advantage", ("grpo", "reinforce_plus_plus", "gdpo")),
    "grpo.adv_estimator.normalize_rewards": Option("${grpo.normalize_rewards}", "as above"),
    "grpo.adv_estimator.use_leave_one_out_baseline": Option(
        "${grpo.use_leave_one_out_baseline}", "as above"
    ),
    "grpo.adv_estimator.minus_baseline": Option(True, "of reinforce_plus_plus"),
    "grpo.advantage_clip_low": Option(None, "`token_advantage.Bounded`"),
    "grpo.advantage_clip_high": Option(None, "`token_advantage.Bounded`"),
    "loss_fn.reference_policy_kl_penalty": Option(0.01, "beta"),
    "loss_fn.reference_policy_kl_type": Option("k3", "estimator", ("k1", "k2", "k3")),
    "loss_fn.kl_input_clamp_value": Option(20.0, "clamp_ratio", optional=True),
    "loss_fn.kl_output_clamp_value": Option(10.0, "clamp_value", optional=True),
    "loss_fn.use_kl_in_reward": Option(False, "of reinforce_plus_plus"),
    "loss_fn.ratio_clip_min": Option(0.2, "clip_low"),
    "loss_fn.ratio_clip_max": Option(0.2, "clip_high"),
    "loss_fn.ratio_clip_c": Option(None, "clip_dual"),
    "loss_fn.use_on_policy_kl_approximation": Option(False, "the ratio is to the sampler"),
    "loss_fn.use_importance_sampling_correction": Option(False, "`weight.SamplerRatio`"),
    f"{_TRUNCATED}type": Option(None, "its kind", ("tis", "icepop", "seq-mask-tis")),
    f"{_TRUNCATED}ratio": Option(None, "its upper bound"),
    f"{_TRUNCATED}ratio_min": Option(None, "its lower bound"),
    "loss_fn.sequence_level_importance_ratios": Option(False, "ratio, and weights, of samples"),
    "loss_fn.token_level_loss": Option(True, "averaging"),
    "loss_fn.force_on_policy_ratio": Option(False, "no ratio"),
    "loss_fn.use_cispo": Option(False, "`surrogate.CappedRatio`"),
    "loss_fn.disable_ppo_ratio": Option(False, "no ratio"),
    "loss_fn.positive_example_nll_weight": Option(0.0, "`penalty.PositiveNLL`"),
}
_BEYOND: dict[str, tuple[str, Any]] = {
    "policy.generation.temperature": (OTHER_LAW, 1.0),
    "policy.generation.top_p": (OTHER_LAW, 1.0),
    "policy.generation.top_k": (OTHER_LAW, None),
    "grpo.overlong_filtering": ("cut samples do not count: leave them out of the tree", False),
    "grpo.use_dynamic_sampling": ("groups of equal rewards are drawn anew", False),
    "grpo.reward_shaping.enabled": ("rewards lose by length: put it in the problem's", False),
    "grpo.reward_scaling.enabled": ("rewards are mapped linearly: map the problem's", False),
    "grpo.async_grpo.enabled": ("samples of older policies: `rd.loop(staleness=)`", False),
    "grpo.seq_logprob_error_threshold": ("samples far from the sampler are dropped", None),
    "grpo.invalid_tool_call_advantage": ("an advantage for some tokens", None),
    "grpo.malformed_thinking_advantage": ("an advantage for some tokens", None),
    "reward_penalties\\.penalize.*": ("rewards of some samples become 0", False),
}
_ASIDE = (
    "grpo\\.(num_prompts|max_|val_|stop_|seed|dynamic_sampling|batch_multiplier|calculate).*",
    "grpo\\.(reward_(shaping|scaling)|async_grpo|skip_).*",
    "(policy|data|env|logger|cluster|checkpointing|defaults|data_plane|value|on_policy_dist).*",
    "reward_penalties\\.token_ids.*",
    "loss_fn\\.use_fused.*",
)


def compose(settings: Settings) -> Plan:
    """The configuration of a run."""
    _check(settings)
    size = settings.count("grpo.num_generations_per_prompt")
    of_samples = settings["loss_fn.sequence_level_importance_ratios"]
    token = settings["loss_fn.token_level_loss"]
    nll = settings["loss_fn.positive_example_nll_weight"]
    further: tuple[Penalty, ...] = (PositiveNLL(as_number(nll)),) if nll else ()
    plan = Plan(m.reinforce(), size)
    method = m.compose(
        _advantage(settings, plan),
        _surrogate(settings),
        penalties=further,
        weights=_weights(settings, of_samples),
        ratio="sequence" if of_samples else "token",
        averaging="token" if token else "sequence",
        **_penalty(settings, plan),
    )
    plan.method = method
    plan.pitfalls += pitfalls(method, size)
    if nll and not token:
        plan.beyond.append("positive_example_nll_weight: its own mean is over tokens all the same")
    return plan


def _advantage(settings: Settings, plan: Plan) -> Advantage:
    name = settings["grpo.adv_estimator.name"]
    low, high = (settings.number(f"grpo.advantage_clip_{side}") for side in ("low", "high"))
    if name == "gdpo":
        raise ValueError(
            "grpo.adv_estimator.name=gdpo compares several rewards: give them to "
            'rd.methods.gdpo(rewards, whiten="plain", others=True)'
        )
    if name == "reinforce_plus_plus":
        own = settings["grpo.adv_estimator.minus_baseline"]
        made = m.reinforce_plus_plus_baseline if own else m.reinforce_plus_plus
        advantage: Advantage = made("biased").advantage
    else:
        scaled = settings["grpo.adv_estimator.normalize_rewards"]
        others = settings["grpo.adv_estimator.use_leave_one_out_baseline"]
        advantage = m.grpo_of_others(normalize_std=scaled).advantage
        if not others:
            advantage = relative("mean", "std" if scaled else "none", 1e-6)
        elif scaled:
            plan.pitfalls.append(
                "a sample that alone differs is not divided: the others have no deviation"
            )
    if low is None and high is None:
        return advantage
    infinity = float("inf")
    bounds = -infinity if low is None else low, infinity if high is None else high
    return Bounded(advantage, *map(as_number, bounds))


def _check(settings: Settings) -> None:
    """What NeMo-RL itself asserts of options that exclude each other."""
    others = [
        "loss_fn.disable_ppo_ratio",
        "loss_fn.force_on_policy_ratio",
        "loss_fn.sequence_level_importance_ratios",
        "loss_fn.ratio_clip_c",
    ]
    if settings["loss_fn.use_cispo"]:
        beside = [name for name in others if settings[name]]
        beside += [] if settings["loss_fn.token_level_loss"] else ["loss_fn.token_level_loss=false"]
        if beside:
            raise ValueError(f"NeMo-RL refuses loss_fn.use_cispo beside {', '.join(beside)}")
    of_samples = settings["loss_fn.sequence_level_importance_ratios"]
    if of_samples and settings["loss_fn.token_level_loss"]:
        raise ValueError(f"NeMo-RL refuses {others[2]} beside loss_fn.token_level_loss=true")


def _surrogate(settings: Settings) -> m.surrogate.Surrogate:
    low, high = settings["loss_fn.ratio_clip_min"], settings["loss_fn.ratio_clip_max"]
    if settings["loss_fn.disable_ppo_ratio"] or settings["loss_fn.force_on_policy_ratio"]:
        return m.surrogate.LogProb()
    if settings["loss_fn.use_cispo"]:
        return m.cispo(low, high).surrogate
    dual = settings.number("loss_fn.ratio_clip_c")
    dual = float("inf") if dual is None else dual
    return m.grpo(0.0, clip_low=low, clip_high=high, clip_dual=dual).surrogate


def _penalty(settings: Settings, plan: Plan) -> dict[str, Any]:
    beta, kind = (
        settings["loss_fn.reference_policy_kl_penalty"],
        settings["loss_fn.reference_policy_kl_type"],
    )
    named = settings["grpo.adv_estimator.name"] == "reinforce_plus_plus"
    if settings["loss_fn.use_kl_in_reward"]:
        if not named:
            plan.pitfalls.append("use_kl_in_reward without reinforce_plus_plus: no penalty at all")
            return {}
        # there the cuts are those of `calculate_kl` itself, whatever is set
        return penalty(beta, kind, "reward", clamp_ratio=20.0, clamp_value=10.0)
    cuts = {}
    for name, option in (("clamp_ratio", "input"), ("clamp_value", "output")):
        cut = settings.number(f"loss_fn.kl_{option}_clamp_value")
        cuts[name] = float("inf") if cut is None else cut
    to_sampler = settings["loss_fn.use_on_policy_kl_approximation"]
    plan.other_kl = "there is none: k1 and k3 are the reverse KL, k2 is no KL"
    return penalty(beta, kind, "loss", ratio_corrected="sampler" if to_sampler else "live", **cuts)


def _weights(settings: Settings, of_samples: bool) -> tuple[Weight, ...]:
    if not settings["loss_fn.use_importance_sampling_correction"]:
        return ()
    kind, over = settings[f"{_TRUNCATED}type"], "sequence" if of_samples else "token"
    high, low = settings.number(f"{_TRUNCATED}ratio"), settings.number(f"{_TRUNCATED}ratio_min")
    free = SamplerRatio(as_number(0.0), as_number(float("inf")), False, over)
    if kind is None or high is None:
        return (free,)
    if kind == "seq-mask-tis":
        return m.grpo_gated(low or 0.0, high, "mean").weights
    return (SamplerRatio(as_number(low or 0.0), as_number(high), kind == "icepop", over),)


NEMO_RL = Trainer(
    "nemo-rl",
    "NeMo-RL, GRPO",
    "August 2026",
    OPTIONS,
    ("loss_fn.", "grpo."),
    _ASIDE,
    _BEYOND,
    compose,
)
