"""TRL's GRPO and RLOO trainers: `GRPOConfig` and `RLOOConfig` as compositions."""

from pathlib import Path
from typing import Any

import regdist.methods as m
from regdist.methods.presets.parts import relative
from regdist.methods.weight import SamplerRatio, SequenceMask, Weight
from regdist.numerics.records import as_number
from regdist.regularizers.regularizer import Entropy
from regdist.trainers.kl import penalty, pitfalls
from regdist.trainers.settings import Option, Settings
from regdist.trainers.trainer import OTHER_LAW, Plan, Trainer, dataclass_defaults

_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo")
_AVERAGES = {"grpo": "sequence", "sapo": "sequence", "dr_grpo": "constant", "luspo": "sum"}
_SCALES = ("group", "batch", "none", "True", "False")
_MODES = ("sequence_mask", "sequence_truncate", "token_mask", "token_truncate")

_BOTH = {
    "num_generations": Option(8, "G"),
    "beta": Option(0.0, "coefficient of the KL"),
    "epsilon": Option(0.2, "clip_low, and clip_high where epsilon_high is left out"),
    "epsilon_high": Option(None, "clip_high; for cispo the cap itself"),
}
GRPO_OPTIONS = {
    **_BOTH,
    "max_completion_length": Option(512, "max_length of dr_grpo's average"),
    "loss_type": Option("dapo", "surrogate and averaging", _LOSSES),
    "scale_rewards": Option("group", "scale of the advantage", _SCALES),
    "use_bias_correction_kl": Option(True, "k3 times the ratio"),
    "delta": Option(None, "clip_dual"),
    "importance_sampling_level": Option("token", "ratio", ("token", "sequence")),
    "sapo_temperature_pos": Option(1.0, "tau_positive"),
    "sapo_temperature_neg": Option(1.05, "tau_negative"),
    "vespo_k_pos": Option(2.0, "k_up"),
    "vespo_lambda_pos": Option(3.0, "lam_up"),
    "vespo_k_neg": Option(3.0, "k_down"),
    "vespo_lambda_neg": Option(2.0, "lam_down"),
    "off_policy_mask_threshold": Option(None, "`weight.SequenceMask`"),
    "entropy_coef": Option(0.0, "an exact entropy bonus"),
    "use_vllm": Option(False, "whether the sampler is another program"),
    "vllm_importance_sampling_correction": Option(True, "`weight.SamplerRatio`"),
    "vllm_importance_sampling_mode": Option("sequence_mask", "its kind", _MODES),
    "vllm_importance_sampling_clip_max": Option(3.0, "its upper bound"),
    "vllm_importance_sampling_clip_min": Option(None, "its lower bound"),
}
RLOO_OPTIONS = {
    **_BOTH,
    "num_generations": Option(2, "G"),
    "beta": Option(0.05, "coefficient of the KL"),
    "normalize_advantages": Option(False, "divided by the deviation over the batch"),
    "reward_clip_range": Option(None, "rewards are cut"),
}

_STEPS = "it acts on steps of sequences, of which a table has one"
_MOVES = "the reference moves, so that there is no fixed anchor: `rd.loop(sync_every=, sync_mix=)`"
_BEYOND: dict[str, tuple[str, Any]] = {
    "temperature": (OTHER_LAW, 1.0),
    "top_p": (OTHER_LAW, 1.0),
    "top_k": (OTHER_LAW, 0),
    "min_p": (OTHER_LAW, None),
    "repetition_penalty": (OTHER_LAW, 1.0),
    "generation_kwargs": (OTHER_LAW, None),
    "num_iterations": ("old samples are used again: `rd.loop(epochs=)`", 1),
    "steps_per_generation": ("minibatches of old samples: `rd.loop(minibatches=)`", None),
    "generation_batch_size": ("minibatches of old samples: `rd.loop(minibatches=)`", None),
    "mask_truncated_completions": ("cut sequences do not count: leave them out of the tree", False),
    "sync_ref_model": (_MOVES, False),
    "top_entropy_quantile": (f"{_STEPS}: `rd.methods.forking_tokens`", 1.0),
    "use_adaptive_entropy": ("a bonus that moves: `rd.methods.adaptive_entropy`", False),
    "reward_weights": ("several rewards: add them up in the problem's", None),
    "multi_objective_aggregation": (
        "several rewards, each normalized: `rd.methods.gdpo(rewards, whiten='std', eps=1e-4)`",
        "sum_then_normalize",
    ),
    "router_aux_loss_coef": ("a loss of the network's own", None),
}
_ASIDE = (
    "vllm_(mode|model_impl|enable.*|structured.*|server.*|group_port|gpu.*|max_model.*|tensor.*)",
    "(entropy_(coef_(min|max|delta)|target)|ref_model_(mixup_alpha|sync_steps))",
    "(model_init_kwargs|trust_remote_code|disable_dropout|cast_lm_head_to_fp32|remove_unused.*)",
    "(num_generations_eval|ds3_gather.*|shuffle_dataset|pad_to_multiple_of|chat_template_kwargs)",
    "(cache_implementation|max_tool_calling_iterations|log_.*|num_completions_to_print)",
    "(use_transformers_.*|transformers_continuous.*|vllm_importance_sampling_cap|use_liger.*)",
    "(output_dir|run_name|seed|data_seed|learning_rate|weight_decay|adam_.*|optim.*|lr_scheduler.*)",
    "(warmup_.*|max_steps|num_train_epochs|max_grad_norm|per_device_.*|gradient_.*|auto_find.*)",
    "(logging_.*|save_.*|eval_.*|do_.*|report_to|bf16.*|fp16.*|tf32|fsdp.*|deepspeed|ddp_.*|hub_.*)",
    "(push_to_hub|resume_from_checkpoint|load_best.*|metric_for.*|greater_is_better|torch_.*)",
    "(dataloader_.*|disable_tqdm|local_rank|use_cpu|full_determinism|include_.*|model_name.*)",
    "(dataset_.*|torch_dtype|dtype|attn_implementation|use_peft|lora_.*|load_in_.*|reward_model.*)",
    "(reward_funcs.*|trainer|model_revision|config|max_prompt_length|accelerator_config|neftune.*)",
)


def grpo(settings: Settings) -> Plan:
    """`GRPOConfig`."""
    loss, size = settings["loss_type"], settings.count("num_generations")
    base = _surrogate(settings, loss)
    named = str(settings["scale_rewards"])
    scale = {"True": "group", "False": "none"}.get(named, named)
    advantage = relative("mean", "none" if scale == "none" else "std", 1e-4)
    corrected = settings["beta"] and settings["use_bias_correction_kl"]
    bonus = settings["entropy_coef"]
    method = m.compose(
        advantage,
        base.surrogate,
        weights=_weights(settings, loss),
        regularizer=Entropy(bonus) if bonus else None,
        averaging=_AVERAGES.get(loss, "token"),
        max_length=settings["max_completion_length"] if loss == "dr_grpo" else None,
        **penalty(settings["beta"], "k3", "loss", ratio_corrected=bool(corrected)),
    )
    plan = Plan(method, size, pitfalls(method, size))
    if loss == "cispo":
        cap = settings.number("epsilon_high") or settings["epsilon"]
        plan.pitfalls.append(
            f"cispo cuts ratios at {cap:g} itself, not at 1 + it: a weight of at most {cap:g} on "
            "rewards, and none on the penalty"
        )
    if scale == "batch":
        plan.beyond.append(
            "scale_rewards=batch: the deviation of all prompts; of one it is its own"
        )
    if settings["beta"]:
        plan.other_kl = f"use_bias_correction_kl={'false' if corrected else 'true'}"
    return plan


def _surrogate(settings: Settings, loss: str) -> m.Method:
    low, high = settings["epsilon"], settings.number("epsilon_high")
    level, dual = settings["importance_sampling_level"], settings.number("delta")
    if loss == "cispo":
        return m.cispo(1.0, (low if high is None else high) - 1, ratio=level)
    if loss == "sapo":
        return m.sapo(
            settings["sapo_temperature_pos"], settings["sapo_temperature_neg"], ratio=level
        )
    if loss == "vespo":
        names = ("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg")
        return m.vespo(*(settings[name] for name in names))
    clips = {"clip_low": low, "clip_high": low if high is None else high}
    if dual is not None:
        clips["clip_dual"] = dual
    return m.grpo(0.0, ratio=level, **clips)


def _weights(settings: Settings, loss: str) -> tuple[Weight, ...]:
    weights: list[Weight] = []
    most = settings.number("off_policy_mask_threshold")
    if most is not None:
        weights.append(SequenceMask(as_number(most)))
    if settings["use_vllm"] and settings["vllm_importance_sampling_correction"] and loss != "vespo":
        over, _, kind = settings["vllm_importance_sampling_mode"].partition("_")
        low = settings.number("vllm_importance_sampling_clip_min")
        high = settings.number("vllm_importance_sampling_clip_max")
        bounds = (
            as_number(0.0 if low is None else low),
            as_number(float("inf") if high is None else high),
        )
        weights.append(SamplerRatio(*bounds, kind == "mask", over))
    return tuple(weights)


def rloo(settings: Settings) -> Plan:
    """`RLOOConfig`."""
    size, high = settings.count("num_generations"), settings.number("epsilon_high")
    low = settings["epsilon"]
    method = m.rloo(
        **penalty(settings["beta"], "k1", "reward"),
        clip_low=low,
        clip_high=low if high is None else high,
        clip_dual=float("inf"),
        ratio="product",
        averaging="sum",
    )
    plan = Plan(method, size, pitfalls(method, size))
    if settings["normalize_advantages"]:
        plan.beyond.append(
            "normalize_advantages: over the whole batch, after the baseline; the steps of all "
            "prompts are scaled alike, and the target stays"
        )
    if settings["reward_clip_range"] is not None:
        plan.beyond.append("reward_clip_range: cut the rewards of the problem")
    plan.pitfalls.append("the ratio that is clipped is that of whole sequences")
    return plan


def _defaults(kind: str) -> Any:
    def read(package: Path) -> dict[str, Any]:
        return dataclass_defaults(
            package / "trainer" / f"{kind.lower()}_config.py", f"{kind}Config"
        )

    return read


GRPO = Trainer(
    "trl",
    "TRL, GRPOTrainer",
    "1.16.0",
    GRPO_OPTIONS,
    (),
    _ASIDE,
    _BEYOND,
    grpo,
    "trl",
    _defaults("GRPO"),
)
RLOO = Trainer(
    "trl-rloo",
    "TRL, RLOOTrainer",
    "1.16.0",
    RLOO_OPTIONS,
    (),
    (*_ASIDE, "max_completion_length"),
    {**_BEYOND, "use_vllm": (OTHER_LAW, False)},
    rloo,
    "trl",
    _defaults("RLOO"),
)
