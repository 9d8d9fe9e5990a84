"""OpenRLHF's `train_ppo_ray`: its dotted flags as a composition."""

import ast
import contextlib
from pathlib import Path
from typing import Any

import regdist.methods as m
from regdist.methods.advantage import Advantage
from regdist.methods.presets.parts import relative
from regdist.methods.weight import SamplerRatio, Weight
from regdist.numerics.records import as_number
from regdist.regularizers.regularizer import Entropy
from regdist.trainers.kl import penalty, pitfalls
from regdist.trainers.settings import Option, Settings
from regdist.trainers.trainer import OTHER_LAW, Plan, Trainer

_ESTIMATORS = (
    "gae",
    "reinforce",
    "rloo",
    "reinforce_baseline",
    "group_norm",
    "dr_grpo",
    "flash_reinforce",
)
_GATE = "algo.advantage.is_correction_"

OPTIONS = {
    "algo.advantage.estimator": Option("gae", "advantage", _ESTIMATORS),
    "algo.advantage.no_std_norm": Option(False, "no division by the deviation over the batch"),
    f"{_GATE}level": Option("off", "`weight.SamplerMask`", ("off", "token", "seq")),
    f"{_GATE}mode": Option("mask", "or clip: `weight.SamplerRatio`", ("mask", "clip")),
    f"{_GATE}gating": Option("ratio", "its statistic", ("ratio", "binary_kl", "tv")),
    f"{_GATE}threshold": Option((0.5, 5.0), "its bounds, or the upper one"),
    "algo.kl.init_coef": Option(0.01, "beta"),
    "algo.kl.estimator": Option("k1", "estimator", ("k1", "k2", "k3")),
    "algo.kl.use_loss": Option(False, "whether the penalty is in the loss"),
    "algo.kl.unbiased_gradient": Option(False, "the gradient of k2, times the ratio"),
    "algo.kl.target": Option(None, "adaptive controller"),
    "actor.eps_clip": Option(0.2, "clip_low and clip_high"),
    "actor.eps_clip_low_high": Option(None, "the two of them"),
    "actor.dual_clip": Option(None, "clip_dual"),
    "actor.policy_loss_type": Option("ppo", "ratio", ("ppo", "gspo")),
    "actor.loss_agg_mode": Option("token-mean", "averaging", ("token-mean", "seq-mean-token-mean")),
    "actor.entropy_coef": Option(None, "an exact entropy bonus"),
    "rollout.n_samples_per_prompt": Option(1, "G"),
}
_BEYOND: dict[str, tuple[str, Any]] = {
    "rollout.temperature": (OTHER_LAW, 1.0),
    "rollout.top_p": (OTHER_LAW, 1.0),
    "rollout.top_k": (OTHER_LAW, -1),
    "train.max_epochs": ("old samples are used again: `rd.loop(epochs=)`", 1),
    "algo.advantage.gamma": ("a discount of steps: `rd.methods.ppo_gae`", 1),
    "algo.advantage.lambd": ("of steps: `rd.methods.ppo_gae`", 1),
    "algo.dynamic_filtering_enable": ("groups out of a range are drawn anew", False),
    "reward.clip_range": ("rewards are cut: cut those of the problem", [-10, 10]),
    "reward.normalize_enable": ("rewards are normalized by a running mean", False),
    "reward.overlong_buffer_len": ("rewards lose by length: put it in the problem's", None),
    "reward.stop_properly_penalty_coef": ("cut samples lose: put it in the problem's", None),
    "train.partial_rollout_enable": ("samples of several policies: `rd.loop(staleness=)`", False),
    "train.async_enable": ("samples of older policies: `rd.loop(staleness=)`", False),
}
_ASIDE = (
    "(actor|critic)\\.(num_|model|optim|muon|adam|lr_|min_lr|max_norm|gradient|aux|freeze|learn).*",
    "(ref|vllm|data|ckpt|logger|eval|ds|ray|lora|train|critic|reward|reg|agent|fsdp)\\..*",
    "rollout\\.(max_(tokens_per_gpu|new_tokens)|batch_size|vllm_.*|micro_batch_size)",
    "(actor|algo)\\.(kl\\.horizon|dynamic_filtering_range|save.*|value.*|loss_scale.*)",
    "local_rank|use_ms",
)


def compose(settings: Settings) -> Plan:
    """The flags of a run."""
    size, name = (
        settings.count("rollout.n_samples_per_prompt"),
        settings["algo.advantage.estimator"],
    )
    two = settings["actor.eps_clip_low_high"] is not None
    clips = settings.bounds("actor.eps_clip_low_high" if two else "actor.eps_clip")
    dual = settings.number("actor.dual_clip")
    gspo = settings["actor.policy_loss_type"] == "gspo"
    by_sequence = gspo or settings["actor.loss_agg_mode"] != "token-mean"
    bonus = settings.number("actor.entropy_coef")
    method = m.compose(
        _advantage(settings, name),
        clip_low=clips[0],
        clip_high=clips[-1],
        clip_dual=float("inf") if dual is None else dual,
        weights=_weights(settings, gspo),
        regularizer=Entropy(bonus) if bonus else None,
        ratio="sequence" if gspo else "token",
        averaging="sequence" if by_sequence else "token",
        **_penalty(settings, name),
    )
    plan = Plan(method, size, pitfalls(method, size), other_kl=_other(settings))
    if settings.number("algo.kl.target") is not None:
        plan.beyond.append("algo.kl.target: the coefficient moves: `rd.methods.ppo_adaptive_kl`")
    if gspo and settings[f"{_GATE}level"] != "off":
        plan.beyond.append("gspo with is_correction: its ratio is policy/sampler")
    if name == "flash_reinforce":
        plan.beyond.append(
            "flash_reinforce: its baseline is the mean over all prompts; here over one"
        )
    return plan


def _advantage(settings: Settings, name: str) -> Advantage:
    plain = settings["algo.advantage.no_std_norm"] if name in _WHITENED else False
    if name == "gae":
        return relative("mean") if plain else m.ppo("biased").advantage
    if name in ("reinforce", "reinforce_baseline"):
        return relative("mean") if plain else m.reinforce_plus_plus("biased").advantage
    if name == "rloo":
        return relative("others")
    return m.grpo(0.0, eps=1e-9).advantage if name == "group_norm" else relative("mean")


_WHITENED = ("gae", "reinforce", "reinforce_baseline")


def _penalty(settings: Settings, name: str) -> dict[str, Any]:
    beta, estimator = settings["algo.kl.init_coef"], settings["algo.kl.estimator"]
    cut = {"clamp_value": 10.0}
    if not settings["algo.kl.use_loss"]:
        after = name not in _WHITENED
        return penalty(max(beta, 0.0), estimator, "reward", after_normalization=after, **cut)
    if settings["algo.kl.unbiased_gradient"]:
        return penalty(beta, f"{estimator}+", "loss", ratio_corrected="old", **cut)
    return penalty(beta, estimator, "loss", **cut)


def _other(settings: Settings) -> str:
    if not settings["algo.kl.use_loss"]:
        return "algo.kl.use_loss with algo.kl.estimator=k3 (forward) in the place of the reward's"
    forward = settings["algo.kl.estimator"] == "k3" and not settings["algo.kl.unbiased_gradient"]
    return f"algo.kl.estimator={'k2' if forward else 'k3'}, without algo.kl.unbiased_gradient"


def _weights(settings: Settings, gspo: bool) -> tuple[Weight, ...]:
    level = settings[f"{_GATE}level"]
    if level == "off" or gspo:
        return ()
    bounds, gating = settings.bounds(f"{_GATE}threshold"), settings[f"{_GATE}gating"]
    low, high = (0.0, *bounds)[-2:]
    if gating != "ratio" and low > 0:
        raise ValueError(f"OpenRLHF refuses a lower bound of {gating}: give {_GATE}threshold one")
    if settings[f"{_GATE}mode"] == "clip":
        if level == "seq" or gating != "ratio":
            raise ValueError(f"OpenRLHF refuses {_GATE}mode=clip but for level=token, gating=ratio")
        return (SamplerRatio(as_number(low), as_number(high)),)
    over = "mean" if level == "seq" else "token"
    return m.grpo_gated(low, high, over, gating).weights


def _defaults(package: Path) -> dict[str, Any]:
    """Of the flags, from the text of the command."""
    found: dict[str, Any] = {}
    tree = ast.parse((package / "cli" / "train_ppo_ray.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        first = node.args[0] if isinstance(node, ast.Call) and node.args else None
        if not isinstance(node, ast.Call) or not isinstance(first, ast.Constant):
            continue
        name, given = str(first.value), {k.arg: k.value for k in node.keywords}
        if name.startswith("--") and "default" in given:
            with contextlib.suppress(ValueError):  # what is computed is no default of ours
                found[name.removeprefix("--")] = ast.literal_eval(given["default"])
    return {name: tuple(x) if isinstance(x, list) else x for name, x in found.items()}


OPENRLHF = Trainer(
    "openrlhf",
    "OpenRLHF, train_ppo_ray",
    "0.11.2",
    OPTIONS,
    ("algo.",),
    _ASIDE,
    _BEYOND,
    compose,
    "openrlhf",
    _defaults,
)
