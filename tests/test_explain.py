"""Configurations of trainers, against the losses that their options write down."""

import dataclasses
import functools
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regdist as rd
from regdist.cli import main
from regdist.trainers import TRAINERS, as_json, explain, read
from regdist.trainers.explanation import anchor_of, plan_of
from regdist.trainers.settings import Settings
from regdist.trainers.trainer import dataclass_defaults
from tests import losses
from tests import written_trainers as w

BANDIT = rd.bandit([1.0, 0.0, 0.4, 0.4], [0.2, 0.4, 0.3, 0.1])
LOGITS = jnp.array([0.3, -0.2, 0.4, -0.6])
OLD = rd.log_softmax(jnp.array([0.1, 0.25, -0.1, -0.3]))
SIZE = 3

ACTOR, LOSS = "actor_rollout_ref.actor.", "actor_rollout_ref.actor.policy_loss."
GATE = "algo.advantage.is_correction_"
PLACES = {
    "trl": {},
    "trl-rloo": {},
    "verl": {
        **dict.fromkeys(("adv_estimator", "norm_adv_by_std_in_grpo"), "algorithm."),
        **dict.fromkeys(("use_kl_in_reward", "kl_penalty"), "algorithm."),
        "kl_coef": "algorithm.kl_ctrl.",
        **dict.fromkeys(("loss_mode", "dro_beta"), LOSS),
        "": ACTOR,
    },
    "openrlhf": {
        **dict.fromkeys(("estimator", "no_std_norm"), "algo.advantage."),
        **dict.fromkeys(("init_coef", "use_loss", "unbiased_gradient"), "algo.kl."),
        "kl.estimator": "algo.",
        "": "actor.",
    },
    "nemo-rl": {
        "name": "grpo.adv_estimator.",
        **dict.fromkeys(("normalize_rewards", "use_leave_one_out_baseline"), "grpo."),
        **dict.fromkeys(("advantage_clip_low", "advantage_clip_high"), "grpo."),
        "": "loss_fn.",
    },
}
SIZES = {
    "trl": "num_generations",
    "trl-rloo": "num_generations",
    "verl": "actor_rollout_ref.rollout.n",
    "openrlhf": "rollout.n_samples_per_prompt",
    "nemo-rl": "grpo.num_generations_per_prompt",
}
WRITTEN = {
    "trl": w.trl,
    "trl-rloo": w.trl_rloo,
    "verl": w.verl,
    "openrlhf": w.openrlhf,
    "nemo-rl": w.nemo_rl,
}


def placed(trainer, options):
    """The options under the trainer's own names, and the size of a group."""
    where = PLACES[trainer]
    named = {f"{where.get(k, where.get('', ''))}{k}": v for k, v in options.items()}
    return {**named, SIZES[trainer]: SIZE}


def composed(trainer, options):
    """The method that a configuration is; nothing is followed."""
    known = TRAINERS[trainer]
    return known.compose(Settings(placed(trainer, options), known.options)).method


KL = {"use_kl_loss": True, "kl_loss_coef": 0.3}
CASES = {
    "trl": [
        {},
        {"beta": 0.3},
        {"beta": 0.3, "use_bias_correction_kl": False},
        {"beta": 0.3, "scale_rewards": "none"},
        {"loss_type": "cispo", "epsilon_high": 1.1, "beta": 0.2},
        {"loss_type": "cispo"},
        {"loss_type": "sapo"},
        {"loss_type": "dr_grpo", "epsilon": 0.1, "epsilon_high": 0.3, "scale_rewards": "none"},
        {"loss_type": "grpo", "delta": 1.3, "epsilon": 0.1},
    ],
    "trl-rloo": [{}, {"beta": 0.4, "epsilon": 0.1}, {"beta": 0.0}],
    "verl": [
        {},
        *({**KL, "adv_estimator": "grpo", "kl_loss_type": kind} for kind in ("low_var_kl", "mse")),
        *({**KL, "adv_estimator": "grpo", "kl_loss_type": kind} for kind in ("kl", "abs", "k3+")),
        {**KL, "adv_estimator": "grpo", "norm_adv_by_std_in_grpo": False},
        {**KL, "adv_estimator": "gae"},
        {"adv_estimator": "grpo", "use_kl_in_reward": True, "kl_coef": 0.3},
        {"adv_estimator": "rloo", "use_kl_in_reward": True, "kl_coef": 0.3, "kl_penalty": "mse"},
        {"adv_estimator": "gae", "use_kl_in_reward": True, "kl_coef": 0.2},
        {"adv_estimator": "reinforce_plus_plus", "clip_ratio_high": 0.1, "clip_ratio_c": 1.5},
        {"adv_estimator": "opo", "loss_mode": "gspo"},
        {"adv_estimator": "grpo", "loss_mode": "cispo", "clip_ratio_low": 0.1},
        {"adv_estimator": "rloo", "loss_mode": "gpg", "entropy_coeff": 0.1},
        {"adv_estimator": "grpo", "loss_mode": "dro", "dro_beta": 0.5},
        {"adv_estimator": "grpo", "loss_mode": "dppo_tv", "clip_ratio_high": 0.02},
    ],
    "openrlhf": [
        {},
        {"estimator": "group_norm", "init_coef": 0.3},
        {"estimator": "rloo", "init_coef": 0.3, "kl.estimator": "k2"},
        {"estimator": "reinforce_baseline", "init_coef": 0.2},
        {"estimator": "reinforce", "no_std_norm": True},
        {"estimator": "gae", "no_std_norm": True, "init_coef": 0.2},
        {"estimator": "dr_grpo", "use_loss": True, "init_coef": 0.3, "kl.estimator": "k3"},
        {
            "estimator": "group_norm",
            "use_loss": True,
            "init_coef": 0.3,
            "kl.estimator": "k1",
            "unbiased_gradient": True,
        },
        {"estimator": "group_norm", "dual_clip": 1.1, "eps_clip_low_high": [0.3, 0.1]},
    ],
    "nemo-rl": [
        {},
        *(
            {"reference_policy_kl_type": k, "reference_policy_kl_penalty": 0.3}
            for k in ("k1", "k2")
        ),
        {"use_leave_one_out_baseline": False, "use_on_policy_kl_approximation": True},
        {"normalize_rewards": False, "reference_policy_kl_penalty": 0.4},
        {"name": "reinforce_plus_plus"},
        {"use_cispo": True, "ratio_clip_min": 1.0},
        {"force_on_policy_ratio": True, "advantage_clip_low": -0.3, "advantage_clip_high": 1.0},
        {"ratio_clip_c": 1.1, "positive_example_nll_weight": 0.2},
    ],
}
ROWS = [(trainer, options) for trainer, rows in CASES.items() for options in rows]


@pytest.mark.parametrize(
    ("trainer", "options"), ROWS, ids=[f"{t} {','.join(map(str, o)) or 'default'}" for t, o in ROWS]
)
def test_a_configuration_is_the_loss_that_its_options_write_down(trainer, options):
    """Over all groups of three, off policy."""
    method = composed(trainer, options)
    written = functools.partial(WRITTEN[trainer], o=options)
    want, _ = losses.expected_update(written, SIZE, LOGITS, OLD, BANDIT.log_ref, BANDIT.reward)
    got = rd.field(method, LOGITS, BANDIT, rd.Group(SIZE), old=OLD)
    assert np.allclose(got, want, rtol=0, atol=1e-12)
    assert np.abs(want).max() > 1e-3


ANCHORS = [
    ("trl", {"beta": 0.04}, "ReverseKL"),
    ("trl", {"beta": 0.04, "use_bias_correction_kl": False, "scale_rewards": "none"}, "ForwardKL"),
    ("trl-rloo", {}, "ReverseKL"),
    ("verl", {**KL, "adv_estimator": "grpo"}, "ForwardKL"),
    ("verl", {**KL, "adv_estimator": "rloo", "kl_loss_type": "mse"}, "ReverseKL"),
    ("verl", {**KL, "adv_estimator": "grpo", "kl_loss_type": "k3+"}, "ReverseKL"),
    ("verl", {**KL, "adv_estimator": "grpo", "kl_loss_type": "kl"}, None),
    ("verl", {"use_kl_in_reward": True}, "ReverseKL"),
    ("openrlhf", {"estimator": "group_norm"}, "ReverseKL"),
    ("openrlhf", {"use_loss": True, "kl.estimator": "k3"}, "ForwardKL"),
    ("openrlhf", {"use_loss": True, "kl.estimator": "k3", "unbiased_gradient": True}, "ReverseKL"),
    ("nemo-rl", {}, "ReverseKL"),
    ("nemo-rl", {"reference_policy_kl_type": "k2"}, None),
]


def family(regularizer):
    return None if regularizer is None else repr(regularizer).partition("(")[0]


@pytest.mark.parametrize(("trainer", "options", "name"), ANCHORS)
def test_the_anchor_is_named_and_the_other_one_is_what_it_says(trainer, options, name):
    """What it says to set for the other KL leads there."""
    given = placed(trainer, options)
    plan = plan_of(given, trainer)[3]
    found, _ = anchor_of(plan)
    assert family(found.regularizer) == name
    if trainer in ("trl", "verl") and name and "use_kl_in_reward" not in options:
        option, _, value = plan.other_kl.partition("=")
        other = plan_of({**given, option: value}, trainer)[3]
        assert {name, family(anchor_of(other)[0].regularizer)} == {"ReverseKL", "ForwardKL"}


def test_the_factor_is_that_of_the_group():
    """Two methods agree on the coefficient: groups of four, and the factor 4/3."""
    options = {"beta": 0.3, "scale_rewards": "none", "num_generations": 4}
    found = explain({**options, "use_bias_correction_kl": False}, "trl")
    assert np.isclose(found.factor, 4 / 3)
    assert found.ends_in_groups is not None
    assert np.isclose(float(found.ends_in_groups.regularizer.terms[0].beta), 0.3 * 4 / 3)
    assert np.isclose(float(found.ends.regularizer.terms[0].beta), 0.3)
    plans = [plan_of(*x)[3] for x in (({"beta": 0.3}, "trl"), ({}, "trl-rloo"))]
    assert [str(anchor_of(plan)[1]) for plan in plans] == ["nan", "1.0"]


def test_every_option_is_named_or_refused():
    given = {
        "beta": 0.1,
        "learning_rate": 1e-6,
        "temperature": 0.7,
        "top_p": 1.0,
        "entropy_coeff": 0.1,
        "sapo_temperature_pos": 2.0,
    }
    found = explain(given)
    assert found.aside == ("learning_rate",)
    assert found.unknown == ("entropy_coeff (did you mean entropy_coef?)",)
    assert found.idle == ("sapo_temperature_pos",)
    (beyond,) = found.beyond
    assert beyond.startswith("temperature=0.7: samples are drawn from another law")
    text = str(found)
    for part in (*found.unknown, *found.idle, *found.beyond, *found.pitfalls):
        assert part in text


VERL_YAML = """
algorithm:
  adv_estimator: grpo
  kl_ctrl: {kl_coef: 1e-3}
actor_rollout_ref:
  actor:
    use_kl_loss: True
    kl_loss_coef: 1e-2
    loss_agg_mode: seq-mean-token-sum-norm
  rollout: {n: 4, temperature: 1.0}
data: {max_response_length: 8, train_files: train.parquet}
trainer: {total_epochs: 1}
"""
VERL_SCRIPT = """
#!/bin/bash
set -x
export LEVEL=1
python3 -m verl.trainer.main_ppo --config-name x \\
    algorithm.adv_estimator=grpo \\
    actor_rollout_ref.actor.use_kl_loss=True \\
    actor_rollout_ref.actor.kl_loss_coef=0.01 \\
    +actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm \\
    actor_rollout_ref.rollout.n=4 data.max_response_length=8 $@
"""
OPENRLHF_SCRIPT = """
python3 -m openrlhf.cli.train_ppo_ray \\
   --algo.advantage.estimator group_norm \\
   --algo.kl.init_coef 1e-2 --algo.kl.use_loss --algo.kl.estimator k3 \\
   --actor.eps_clip_low_high 0.2 0.28 \\
   --rollout.n_samples_per_prompt 4
"""
NEMO_YAML = """
grpo:
  num_generations_per_prompt: 4
  normalize_rewards: false
  adv_estimator: {name: grpo, normalize_rewards: "${grpo.normalize_rewards}"}
loss_fn: {reference_policy_kl_penalty: 0.01, kl_output_clamp_value: null}
policy: {model_name: x}
"""


def test_files_of_all_trainers(tmp_path):
    """YAML, JSON and launch scripts; a script and the YAML that says the same are one."""
    files = {
        "verl.yaml": VERL_YAML,
        "verl.sh": VERL_SCRIPT,
        "openrlhf.sh": OPENRLHF_SCRIPT,
        "nemo.yaml": NEMO_YAML,
        "trl.json": json.dumps({"beta": 0.1, "num_generations": 4, "output_dir": "x"}),
    }
    found = {}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        trainer, _, settings, plan = plan_of(tmp_path / name)
        found[name] = trainer.name, settings, plan.method
        assert plan.group_size == 4
        assert trainer.sort(settings.given)[2] == []
    assert repr(found["verl.yaml"][2]) == repr(found["verl.sh"][2])
    assert float(found["verl.yaml"][2].averaging.most) == 8
    assert found["verl.yaml"][1].idle() == ["algorithm.kl_ctrl.kl_coef"]
    assert float(found["openrlhf.sh"][2].surrogate.upper) == 1.28
    assert found["nemo.yaml"][2].advantage.scale == "none"
    assert [x[0] for x in found.values()] == ["verl", "verl", "openrlhf", "nemo-rl", "trl"]


def test_the_corrections_of_a_sampler_are_parts():
    prefix = "algorithm.rollout_correction."
    options = {
        f"{prefix}rollout_is": "sequence",
        f"{prefix}rollout_is_threshold": "0.5_2.0",
        f"{prefix}rollout_rs": "token_k1,seq_max_k3",
        f"{prefix}rollout_rs_threshold": "0.5_2.0,0.01",
    }
    ratio, first, second = plan_of(options, "verl")[3].method.weights
    assert (ratio.over, ratio.mask, float(ratio.low), float(ratio.high)) == (
        "sequence",
        True,
        0.5,
        2,
    )
    assert np.allclose([first.low, first.high], [-np.log(2), np.log(2)])
    assert (second.statistic, second.over, float(second.high)) == ("k3", "every", 0.01)
    gate = {
        "algo.advantage.is_correction_level": "seq",
        "algo.advantage.is_correction_gating": "binary_kl",
        "algo.advantage.is_correction_threshold": 0.01,
    }
    free, mask = plan_of(gate)[3].method.weights
    assert (mask.statistic, mask.over, mask.drop) == ("binary_kl", "mean", False)
    assert np.isinf(free.high)
    vllm = {"use_vllm": True, "vllm_importance_sampling_mode": "token_truncate"}
    (weight,) = plan_of(vllm)[3].method.weights
    assert (weight.over, weight.mask, float(weight.high)) == ("token", False, 3)


def words(given, trainer=None):
    """What is said of the penalty, and the pitfalls."""
    found = explain(given, trainer)
    return str(found).split("\n")[1].strip(), " ".join(found.pitfalls)


def test_a_brake_a_bonus_and_a_scale_of_their_own_are_not_called_anchors_or_deviations():
    """DRO's square is to the old policy; an entropy bonus is exact; GPG divides by a share."""
    said, pitfalls = words({f"{LOSS}loss_mode": "dro", f"{LOSS}dro_beta": 0.1}, "verl")
    assert said == "the penalty: no estimate of a divergence from the reference"
    assert "no anchor" in pitfalls
    assert "sigma" not in pitfalls
    said, _ = words({"entropy_coef": 0.1}, "trl")
    assert said.endswith("no estimate of a divergence from the reference; exactly, Entropy(0.1)")
    given = {"algorithm.adv_estimator": "gpg", **placed("verl", KL)}
    said, pitfalls = words(given)
    assert said == "the penalty: ForwardKL, beside rewards on a scale of their own"
    assert "sigma" not in pitfalls


def test_what_moves_nothing_in_infinite_groups_is_asked_in_its_own():
    found = explain({"algorithm.adv_estimator": "grpo_passk", "actor_rollout_ref.rollout.n": 2})
    assert found.ends is None
    assert found.ends_in_groups is not None
    assert "where it goes: it moves nothing in groups of infinite size" in str(found)
    assert as_json(found)["ends"]["population"] is None


def test_a_cut_of_k1_in_the_reward_is_no_bound_of_reward_gaps():
    """Ten nats below the reference is further than ten below the best, where the best is rare."""
    q = np.array([np.exp(-5.0), 1 - np.exp(-5.0)])
    bandit = rd.bandit([1.2, 0.0], q)
    given = {"algo.kl.init_coef": 0.1, "algo.advantage.estimator": "dr_grpo"}
    found = explain({**given, "rollout.n_samples_per_prompt": 4}, bandit=bandit)
    target = rd.target(bandit, rd.ReverseKL(0.1))
    assert np.allclose(found.ends.log_probs, target.log_probs, atol=1e-6)
    assert "is pulled back no harder" in " ".join(found.pitfalls)
    assert "lost" not in " ".join(found.pitfalls)


MISSPELT = [
    ("verl", f"{ACTOR}entropy_coef"),
    ("verl", "actor_rollout_ref.rollout.nn"),
    ("verl", "data.max_responce_length"),
    ("openrlhf", "rollout.n_sample_per_prompt"),
    ("openrlhf", "use_loss"),
]


@pytest.mark.parametrize(("trainer", "name"), MISSPELT)
def test_a_misspelt_option_is_not_put_aside(trainer, name):
    """Though it begins as names do that touch nothing."""
    aside, beyond, unknown = TRAINERS[trainer].sort({name: 1})
    assert (aside, beyond, unknown) == ([], [], [name])


def test_every_word_of_every_option_is_composed_or_refused_in_words():
    refused = []
    for name, trainer in TRAINERS.items():
        for option, known in trainer.options.items():
            for word in known.words:
                try:
                    plan_of({option: word}, name)
                except ValueError as error:
                    refused.append((word, str(error)))
    assert {word for word, _ in refused} == {"dro", "gdpo"}  # a loss and rewards that are missing


def test_the_cut_of_a_penalty_in_nemos_reward_is_its_own():
    given = {
        "grpo.adv_estimator.name": "reinforce_plus_plus",
        "loss_fn.use_kl_in_reward": True,
        "loss_fn.kl_output_clamp_value": 3.0,
    }
    _, _, settings, plan = plan_of(given)
    assert float(plan.method.penalties[0].clamp_value) == 10
    assert settings.idle() == ["loss_fn.kl_output_clamp_value"]


def test_commands_around_a_script_are_no_values(tmp_path):
    """What follows an operator, and other lines, belong to the shell."""
    (tmp_path / "run.sh").write_text(
        "ray job submit --address x -- python3 -m openrlhf.cli.train_ppo_ray \\\n"
        "  --algo.kl.use_loss --rollout.n_samples_per_prompt 4 2>&1 | tee log.txt\n"
        "echo done\n"
    )
    assert read(tmp_path / "run.sh") == {
        "address": "x",
        "algo.kl.use_loss": True,
        "rollout.n_samples_per_prompt": 4,
    }
    (tmp_path / "bad.sh").write_text("echo 'open\n")
    with pytest.raises(ValueError, match="cannot be read: No closing quotation in"):
        read(tmp_path / "bad.sh")


WRONG = [
    ({"loss_type": "dapoo"}, "loss_type must be one of grpo, bnpo, .*; got 'dapoo'"),
    ({"beta": "much"}, "beta must be a number; got 'much'"),
    ({"use_bias_correction_kl": "maybe"}, "use_bias_correction_kl must be true or false"),
    ({"hello": 1}, "no option of a known trainer is set: name it"),
    ({f"{ACTOR}use_kl_loss": True, f"{ACTOR}kl_loss_type": "full"}, "full raises Not"),
    ({f"{LOSS}loss_mode": "dro"}, "dro_beta must be a number above 0"),
    ({f"{ACTOR}clip_ratio_low": "${x.y}"}, "is not in the configuration: write its value"),
    ({f"{ACTOR}clip_ratio_low": "${oc.env:X}"}, "write the value that it stands for"),
    ({"num_generations": 2.5}, "num_generations must be a positive whole number; got 2.5"),
    ({"num_generations": 0}, "num_generations must be a positive whole number; got 0"),
    ({"algo.kl.init_coef": 0.1, "actor.eps_clip_low_high": [0.1, 0.2, 0.3]}, "one number or two"),
    ({f"{GATE}level": "seq", f"{GATE}mode": "clip"}, "OpenRLHF refuses .*mode=clip but for"),
    ({f"{GATE}level": "seq", f"{GATE}gating": "tv"}, "OpenRLHF refuses a lower bound of tv"),
    (
        {"loss_fn.use_cispo": True, "loss_fn.disable_ppo_ratio": True},
        "NeMo-RL refuses loss_fn.use_cispo beside loss_fn.disable_ppo_ratio",
    ),
    ({"loss_fn.sequence_level_importance_ratios": True}, "beside loss_fn.token_level_loss=true"),
    (["beta", "0.1"], "write settings as name=value or --name value; got 'beta'"),
]


@pytest.mark.parametrize(("given", "words"), WRONG)
def test_wrong_values_are_refused_in_words(given, words):
    with pytest.raises(ValueError, match=words):
        explain(given)


def test_wrong_files_are_refused_in_words(tmp_path):
    with pytest.raises(ValueError, match="there is no file"):
        explain(tmp_path / "none.yaml")
    (tmp_path / "a.yaml").write_text("- 1\n- 2\n")
    with pytest.raises(ValueError, match="must hold settings"):
        explain(tmp_path / "a.yaml")
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        explain(tmp_path / "b.json")
    with pytest.raises(ValueError, match="unknown trainer 'ppo': one of trl"):
        explain({}, "ppo")
    assert read({"a": {"b": 1}, "c": 2}) == {"a.b": 1, "c": 2}


def test_defaults_of_an_installed_release_are_read_from_its_text(tmp_path):
    (tmp_path / "config.py").write_text(
        "class GRPOConfig:\n"
        "    beta: float = field(default=0.25, metadata={'help': 'KL'})\n"
        "    loss_type: str = 'grpo'\n"
        "    none: int | None = field(default=None)\n"
    )
    found = dataclass_defaults(tmp_path / "config.py", "GRPOConfig")
    assert found == {"beta": 0.25, "loss_type": "grpo", "none": None}
    known = TRAINERS["trl"]
    plan = known.compose(Settings({}, known.options, {"beta": 0.25, "loss_type": "grpo"}))
    assert float(plan.method.penalties[0].beta) == 0.25
    assert plan.method.averaging.over == "sequence"


def test_a_release_that_cannot_be_read_leaves_the_defaults_here():
    """A package without a version, and one whose files are elsewhere."""
    known = TRAINERS["trl"]
    for package in ("json", "rich"):
        assert dataclasses.replace(known, package=package).installed() == (known.version, {})


@pytest.mark.parametrize("name", TRAINERS)
def test_defaults_here_are_those_of_the_release_that_was_read(name):
    """Where that release is installed; else there is nothing to hold them to."""
    version, defaults = TRAINERS[name].installed()
    if version != TRAINERS[name].version or not defaults:
        pytest.skip(f"{name} {TRAINERS[name].version} is not installed")
    assert {k: TRAINERS[name].options[k].default for k in defaults} == defaults


def test_the_command(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(VERL_YAML)
    assert main(["explain", str(tmp_path / "run.yaml"), "actor_rollout_ref.rollout.n=2"]) == 0
    out = capsys.readouterr().out
    assert "verl, PPO trainer" in out
    assert "ForwardKL" in out
    assert main(["explain", "--trainer", "trl", "--json", "beta=0.1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["anchor"], found["factor"], found["group_size"]) == ("ReverseKL", None, 8)
    assert found["ends"]["population"]["verdict"] in rd.VERDICTS
    assert main(["explain", "loss_type=nonsense"]) == 2
    flags = ["--algo.kl.use_loss", "--algo.kl.estimator", "k3"]
    assert main(["explain", "--trainer", "openrlhf", "--", *flags]) == 0
    assert "*forward* KL" in capsys.readouterr().out
    assert os.listdir(tmp_path) == ["run.yaml"]


def test_the_page_of_options_is_what_the_mapping_says(capsys):
    """Made by `regdist explain --options`."""
    page = Path(__file__).parent.parent / "docs" / "trainer_options.md"
    text = page.read_text(encoding="utf-8")
    assert main(["explain", "--options"]) == 0
    assert text.partition("\n## ")[2] == capsys.readouterr().out.removeprefix("## ").rstrip() + "\n"


def test_a_problem_of_ones_own():
    bandit = rd.bandit([1.0, 0.0], [0.1, 0.9])
    found = explain({"beta": 0.2}, "trl-rloo", bandit=bandit)
    want = rd.target(bandit, rd.ReverseKL(0.2)).probs
    assert np.allclose(found.ends.probs, want, atol=1e-9)
    assert family(found.anchor) == "ReverseKL", (
        "two actions tell no families apart; these do not ask"
    )
    assert explain({}, "trl", bandit=bandit).anchor is None
    with pytest.raises(TypeError, match="bandit must be a Bandit"):
        explain({}, "trl", bandit=jax.numpy.ones(2))
