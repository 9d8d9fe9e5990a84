"""verl's PPO trainer: its hydra configuration as a composition."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

import regdist.methods as m
from regdist.methods.advantage import Advantage
from regdist.methods.weight import SamplerRatio, Weight
from regdist.numerics.records import as_number
from regdist.regularizers.regularizer import Entropy
from regdist.trainers.kl import penalty, pitfalls
from regdist.trainers.settings import Option, Settings, read
from regdist.trainers.trainer import OTHER_LAW, Plan, Trainer

_ACTOR, _LOSS, _CORRECTION = (
    "actor_rollout_ref.actor.",
    "actor_rollout_ref.actor.policy_loss.",
    "algorithm.rollout_correction.",
)
_KINDS = ("kl", "k1", "abs", "mse", "k2", "low_var_kl", "k3", "full")
_KL_WORDS = (*_KINDS, *(f"{kind}+" for kind in _KINDS))
_ESTIMATORS = {"kl": "k1", "mse": "k2", "low_var_kl": "k3"}

_ADVANTAGES: dict[str, Callable[..., m.Method]] = {
    "gae": lambda normalize: m.ppo("unbiased"),
    "grpo": lambda normalize: m.grpo(0.0, normalize_std=normalize),
    "grpo_vectorized": lambda normalize: m.grpo(0.0, normalize_std=normalize),
    "grpo_passk": lambda normalize: m.pass_at_k_grpo(normalize_std=normalize),
    "reinforce_plus_plus": lambda normalize: m.reinforce_plus_plus(),
    "reinforce_plus_plus_baseline": lambda normalize: m.reinforce_plus_plus_baseline(),
    "remax": lambda normalize: m.remax(),
    "rloo": lambda normalize: m.rloo(),
    "rloo_vectorized": lambda normalize: m.rloo(),
    "opo": lambda normalize: m.opo(),
    "gpg": lambda normalize: m.gpg(),
    "optimal_token_baseline": lambda normalize: m.optimal_token_baseline(),
    "tir_optimal_token_baseline": lambda normalize: m.named("optimal_token_baseline/turns"),
}
_LOSSES = (
    "vanilla",
    "gspo",
    "sapo",
    "gpg",
    "clip_cov",
    "kl_cov",
    "geo_mean",
    "cispo",
    "dppo_tv",
    "dppo_kl",
    "dro",
)
_AVERAGES = {
    "token-mean": "token",
    "seq-mean-token-sum": "sum",
    "seq-mean-token-mean": "sequence",
    "seq-mean-token-sum-norm": "constant",
}

OPTIONS = {
    "algorithm.adv_estimator": Option("gae", "advantage", tuple(_ADVANTAGES)),
    "algorithm.norm_adv_by_std_in_grpo": Option(True, "normalize_std"),
    "algorithm.use_kl_in_reward": Option(False, "whether the penalty is in the reward"),
    "algorithm.kl_penalty": Option("kl", "estimator in the reward", _KL_WORDS),
    "algorithm.kl_ctrl.type": Option("fixed", "controller", ("fixed", "adaptive")),
    "algorithm.kl_ctrl.kl_coef": Option(0.001, "beta in the reward"),
    f"{_CORRECTION}rollout_is": Option(None, "`weight.SamplerRatio`", ("token", "sequence")),
    f"{_CORRECTION}rollout_is_threshold": Option("2.0", "its bound, or low_high"),
    f"{_CORRECTION}rollout_is_batch_normalize": Option(False, "divided by its mean"),
    f"{_CORRECTION}rollout_rs": Option(None, "`weight.SamplerMask`"),
    f"{_CORRECTION}rollout_rs_threshold": Option(None, "its bounds"),
    f"{_ACTOR}clip_ratio": Option(0.2, "bounds, where the next two are null"),
    f"{_ACTOR}clip_ratio_low": Option(0.2, "clip_low", optional=True),
    f"{_ACTOR}clip_ratio_high": Option(0.2, "clip_high", optional=True),
    f"{_ACTOR}clip_ratio_c": Option(3.0, "clip_dual"),
    f"{_ACTOR}tau_pos": Option(1.0, "tau_positive of sapo"),
    f"{_ACTOR}tau_neg": Option(1.05, "tau_negative of sapo"),
    f"{_ACTOR}loss_agg_mode": Option("token-mean", "averaging", (*_AVERAGES, "token-sum")),
    f"{_ACTOR}loss_scale_factor": Option(None, "max_length"),
    f"{_ACTOR}entropy_coeff": Option(0.0, "an exact entropy bonus"),
    f"{_ACTOR}use_kl_loss": Option(False, "whether the penalty is in the loss"),
    f"{_ACTOR}kl_loss_coef": Option(0.001, "beta in the loss"),
    f"{_ACTOR}kl_loss_type": Option("low_var_kl", "estimator in the loss", _KL_WORDS),
    f"{_LOSS}loss_mode": Option("vanilla", "surrogate", _LOSSES),
    f"{_LOSS}clip_cov_ratio": Option(0.0002, "fraction of clip_cov"),
    f"{_LOSS}clip_cov_lb": Option(1.0, "its least covariance"),
    f"{_LOSS}clip_cov_ub": Option(5.0, "its largest"),
    f"{_LOSS}kl_cov_ratio": Option(0.0002, "fraction of kl_cov"),
    f"{_LOSS}ppo_kl_coef": Option(0.1, "its beta"),
    f"{_LOSS}dro_beta": Option(None, "beta of dro"),
    "actor_rollout_ref.rollout.n": Option(1, "G"),
    "data.max_response_length": Option(512, "max_length, where loss_scale_factor is null"),
}
_BEYOND: dict[str, tuple[str, Any]] = {
    "actor_rollout_ref.rollout.temperature": (OTHER_LAW, 1.0),
    "actor_rollout_ref.rollout.top_p": (OTHER_LAW, 1),
    "actor_rollout_ref.rollout.top_k": (OTHER_LAW, -1),
    f"{_ACTOR}ppo_epochs": ("old samples are used again: `rd.loop(epochs=)`", 1),
    "algorithm.gamma": ("a discount of steps: `rd.methods.ppo_gae`", 1.0),
    "algorithm.lam": ("of steps: `rd.methods.ppo_gae`", 1.0),
    "algorithm.filter_groups.enable": ("groups of equal rewards are drawn anew", False),
    "algorithm.use_pf_ppo": ("samples are drawn again by their rewards", False),
    "algorithm.kl_ctrl.target_kl": ("of the adaptive controller", 0.1),
    "actor_rollout_ref.rollout.do_sample": ("samples are the likeliest tokens", True),
    f"{_CORRECTION}bypass_mode": ("the sampler is the old policy: leave `old` out", False),
}
_ASIDE = (
    "config-(name|path|dir)",
    "data\\.(?!max_resp).*",
    "trainer\\..*",
    "critic\\..*",
    "(custom_)?reward.*",
    "global_profiler.*|ray_kwargs.*|transfer_queue.*|distillation.*|skip.*|hydra.*|defaults",
    "actor_rollout_ref\\.(model|ref|hybrid_engine|nccl_timeout).*",
    "actor_rollout_ref\\.rollout\\.(name|mode|nnodes|n_gpus.*|full_det.*|seed|prompt_len.*|dtype)",
    "actor_rollout_ref\\.rollout\\.(response_len.*|gpu.*|ignore_eos|enforce.*|cudagraph.*|free.*)",
    "actor_rollout_ref\\.rollout\\.(.*parallel_size|max_.*|enable_.*|logprobs_mode|scheduling.*)",
    "actor_rollout_ref\\.rollout\\.(load_format|layered.*|log_prob.*|disable.*|over_sample_rate)",
    "actor_rollout_ref\\.rollout\\.(multi_.*|engine_kwargs.*|val_kwargs.*|router.*|calculate.*)",
    "actor_rollout_ref\\.rollout\\.(agent.*|checkpoint.*|trace.*|skip.*|moe.*|profiler.*)",
    "actor_rollout_ref\\.rollout\\.(prometheus.*|quant.*|mtp.*|qat.*|disagg.*|_target_)",
    f"{_ACTOR}(_target_|rollout_n|strategy|ppo_(mini|micro|max).*|use_dynamic_bsz|freeze.*)",
    f"{_ACTOR}(calculate_.*|use_(prefix|torch|fused|remove).*|shuffle|data_loader_seed)",
    f"{_ACTOR}(checkpoint|optim|fsdp_config|megatron|profiler|router|grad_clip|ulysses).*",
    f"{_ACTOR}(entropy_(from_logits|checkpointing).*|pad_to_length|qat.*|defaults|.*_target_)",
    "algorithm\\.(_target_|.*\\._target_|kl_ctrl.horizon|filter_groups.*|pf_ppo.*)",
    f"{_CORRECTION}loss_type",
)


def compose(settings: Settings) -> Plan:
    """The configuration of a run."""
    size = settings.count("actor_rollout_ref.rollout.n")
    plan = Plan(m.reinforce(), size)
    base, kl = _surrogate(settings), _penalty(settings, plan)
    bonus = settings[f"{_ACTOR}entropy_coeff"]
    average = _averaging(settings, plan)
    method = m.compose(
        _advantage(settings),
        base.surrogate,
        penalties=base.penalties,
        weights=(*base.weights, *_weights(settings)),
        regularizer=Entropy(bonus) if bonus else None,
        **average,
        **kl,
    )
    plan.method = method
    plan.pitfalls += pitfalls(method, size)
    if size == 1 and str(settings["algorithm.adv_estimator"]).startswith("grpo"):
        plan.pitfalls.append("rollout.n is 1: the raw reward is GRPO's advantage")
    low, high = (settings[f"{_ACTOR}clip_ratio_{side}"] for side in ("low", "high"))
    if f"{_ACTOR}clip_ratio" in settings.given and low is not None and high is not None:
        plan.pitfalls.append("clip_ratio does nothing: clip_ratio_low and clip_ratio_high win")
    return plan


def _advantage(settings: Settings) -> Advantage:
    name = settings["algorithm.adv_estimator"]
    normalize = True
    if "grpo" in name:
        normalize = settings["algorithm.norm_adv_by_std_in_grpo"]
    return _ADVANTAGES[name](normalize).advantage


def _surrogate(settings: Settings) -> m.Method:
    mode = settings[f"{_LOSS}loss_mode"]
    either = settings[f"{_ACTOR}clip_ratio"]
    low, high = (settings.number(f"{_ACTOR}clip_ratio_{side}") for side in ("low", "high"))
    clips: Any = {
        "clip_low": either if low is None else low,
        "clip_high": either if high is None else high,
    }
    if mode in ("vanilla", "clip_cov", "kl_cov"):
        dual = {"clip_dual": settings[f"{_ACTOR}clip_ratio_c"]}
        if mode == "vanilla":
            return m.grpo(0.0, **clips, **dual)
        if mode == "kl_cov":
            names = (f"{_LOSS}kl_cov_ratio", f"{_LOSS}ppo_kl_coef")
            fraction, coefficient = (settings[name] for name in names)
            return m.kl_cov(fraction, coefficient)
        names = (f"{_LOSS}clip_cov_ratio", f"{_LOSS}clip_cov_lb", f"{_LOSS}clip_cov_ub")
        return m.clip_cov(*(settings[name] for name in names), **clips)
    if mode in ("dppo_tv", "dppo_kl"):
        cap = settings[f"{_ACTOR}clip_ratio_c"]
        return m.dppo(
            low=clips["clip_low"],
            high=clips["clip_high"],
            measure=mode.removeprefix("dppo_"),
            cap=cap,
        )
    if mode == "dro":
        price = settings.number(f"{_LOSS}dro_beta")
        if price is None:
            raise ValueError(f"{_LOSS}dro_beta must be a number above 0 where loss_mode is dro")
        return m.dro(price)
    if mode == "sapo":
        return m.sapo(settings[f"{_ACTOR}tau_pos"], settings[f"{_ACTOR}tau_neg"])
    if mode == "geo_mean":
        return m.gmpo(**clips)
    if mode == "gpg":
        return m.gpg()
    return m.gspo(**clips) if mode == "gspo" else m.cispo(**clips)


def _penalty(settings: Settings, plan: Plan) -> dict[str, Any]:
    """Of the loss, or of the reward; the loss's is composed where both are."""
    rewarded, lost = settings["algorithm.use_kl_in_reward"], settings[f"{_ACTOR}use_kl_loss"]
    if rewarded and lost:
        plan.beyond.append(
            "use_kl_in_reward and use_kl_loss: both; the one in the loss is composed"
        )
    if lost:
        kind = settings[f"{_ACTOR}kl_loss_type"]
        if kind.startswith("full"):
            raise ValueError("verl's kl_loss_type full raises NotImplementedError: take another")
        plan.other_kl = _other(kind)
        return penalty(settings[f"{_ACTOR}kl_loss_coef"], **_estimator(kind), placement="loss")
    if not rewarded:
        plan.other_kl = f"{_ACTOR}use_kl_loss=true, with kl_loss_type=low_var_kl or mse"
        return {}
    kind = settings["algorithm.kl_penalty"]
    if kind.startswith("full"):
        raise ValueError("verl's kl_penalty full raises NotImplementedError: take another")
    if settings["algorithm.kl_ctrl.type"] == "adaptive":
        plan.beyond.append("kl_ctrl.type=adaptive: the coefficient moves: `ppo_adaptive_kl`")
    plan.other_kl = (
        f"{_ACTOR}use_kl_loss=true, kl_loss_type=low_var_kl (forward) in the place of the reward's"
    )
    how = _estimator(kind.removesuffix("+"))  # what a "+" does to gradients, rewards do not have
    return penalty(settings["algorithm.kl_ctrl.kl_coef"], **how, placement="reward")


def _estimator(kind: str) -> dict[str, Any]:
    """The estimator, and verl's cut of k3."""
    plus = "+" if kind.endswith("+") else ""
    name = kind.removesuffix("+")
    name = _ESTIMATORS.get(name, name)
    cut = {"clamp_ratio": 20.0, "clamp_value": 10.0} if name == "k3" else {}
    return {"estimator": name + ("" if name == "k2" else plus), **cut}


def _other(kind: str) -> str:
    forward = _ESTIMATORS.get(kind, kind) == "k3"
    return f"{_ACTOR}kl_loss_type={'mse' if forward else 'low_var_kl'}"


def _averaging(settings: Settings, plan: Plan) -> dict[str, Any]:
    mode = settings[f"{_ACTOR}loss_agg_mode"]
    if settings[f"{_LOSS}loss_mode"] in ("sapo", "geo_mean"):
        return {"averaging": "sequence"}  # whatever loss_agg_mode is
    if mode == "token-sum":
        plan.beyond.append("loss_agg_mode=token-sum: a sum over the batch, not a mean: a step size")
        return {"averaging": "sum"}
    if mode != "seq-mean-token-sum-norm":
        return {"averaging": _AVERAGES[mode]}
    most = settings.number(f"{_ACTOR}loss_scale_factor")
    longest = settings["data.max_response_length"]
    return {"averaging": "constant", "max_length": longest if most is None else most}


def _weights(settings: Settings) -> tuple[Weight, ...]:
    weights: list[Weight] = []
    over = settings[f"{_CORRECTION}rollout_is"]
    if over is not None:
        low, high = _bounds(settings, f"{_CORRECTION}rollout_is_threshold")
        normalized = settings[f"{_CORRECTION}rollout_is_batch_normalize"]
        bounds = as_number(0.0 if low is None else low), as_number(high)
        weights.append(SamplerRatio(*bounds, low is not None, over, normalized))
    kinds = settings[f"{_CORRECTION}rollout_rs"]
    if kinds is not None:
        names = [word.strip() for word in str(kinds).split(",")]
        given = str(settings[f"{_CORRECTION}rollout_rs_threshold"]).split(",")
        limits = given * len(names) if len(given) == 1 else given
        if len(limits) != len(names):
            raise ValueError(f"rollout_rs has {len(names)} kinds, its thresholds are {len(given)}")
        weights += [_mask(name, limit) for name, limit in zip(names, limits, strict=True)]
    return tuple(weights)


def _mask(name: str, limit: str) -> Weight:
    over, _, statistic = name.rpartition("_")
    words = {"token": "token", "seq_sum": "sum", "seq_mean": "mean", "seq_max": "every"}
    if over not in words or statistic not in ("k1", "k2", "k3") or name == "seq_max_k1":
        raise ValueError(f"rollout_rs must be of token, seq_sum, seq_mean, seq_max; got {name!r}")
    low, high = _parse(limit, "rollout_rs_threshold")
    if statistic == "k1":
        low = 1 / high if low is None else low
    elif low is not None:
        raise ValueError(f"rollout_rs_threshold of {name} is one upper bound; got {limit!r}")
    method = m.grpo_rejection(1.0 if low is None else low, high, words[over], statistic)
    return method.weights[0]


def _bounds(settings: Settings, name: str) -> tuple[float | None, float]:
    return _parse(str(settings[name]), name)


def _parse(text: str, name: str) -> tuple[float | None, float]:
    """`high`, or `low_high`."""
    try:
        *low, high = (float(x) for x in text.split("_"))
    except ValueError as error:
        raise ValueError(f"{name} must be a number, or low_high; got {text!r}") from error
    return (low[0] if low else None), high


def _defaults(package: Path) -> dict[str, Any]:
    """Of the files of its configuration."""
    config, found = package / "trainer" / "config", {}
    places = {
        "": "ppo_trainer.yaml",
        _ACTOR: "actor/actor.yaml",
        "actor_rollout_ref.rollout.": "rollout/rollout.yaml",
        _CORRECTION: "algorithm/rollout_correction.yaml",
        "data.": "data/legacy_data.yaml",
    }
    for before, name in places.items():
        if (config / name).is_file():
            found.update(_read(config / name, before))
    return {name: str(x) if name.endswith("is_threshold") else x for name, x in found.items()}


def _read(path: Path, before: str) -> dict[str, Any]:
    nested = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {f"{before}{name}": value for name, value in read(nested).items()}


VERL = Trainer(
    "verl",
    "verl, PPO trainer",
    "0.9.1",
    OPTIONS,
    ("actor_rollout_ref.", "algorithm.", "critic.", "reward_model."),
    _ASIDE,
    _BEYOND,
    compose,
    "verl",
    _defaults,
)
