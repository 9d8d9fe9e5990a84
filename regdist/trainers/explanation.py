"""What a configuration of a trainer optimizes: its composition, and where that goes."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import regdist.methods as m
from regdist.methods.advantage import GroupRelative
from regdist.methods.expectation import Expectation, Group, Population
from regdist.methods.groups import num_groups
from regdist.methods.presets.parts import relative
from regdist.numerics.records import check_kind
from regdist.problems.bandit import Bandit
from regdist.problems.bandit import bandit as make
from regdist.regularizers.regularizer import Regularizer
from regdist.runs.identify import Identification, identify
from regdist.trainers.kl import DEVIATIONS, anchors, within
from regdist.trainers.nemo_rl import NEMO_RL
from regdist.trainers.openrlhf import OPENRLHF
from regdist.trainers.settings import Settings, nearest, read
from regdist.trainers.trainer import Plan, Trainer
from regdist.trainers.trl import GRPO, RLOO
from regdist.trainers.verl import VERL

TRAINERS: Mapping[str, Trainer] = {t.name: t for t in (GRPO, RLOO, VERL, OPENRLHF, NEMO_RL)}
"""The trainers whose configurations are known, by name."""

# The coefficient at which a penalty is named, where rewards differ by 1: no target is deep there,
# and every family differs from every other.
_CLEAR = 0.3
# Groups that are enumerated for a sentence: a moment's work.
_MOST_GROUPS = 5_000


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What `explain` says.

    Attributes:
        trainer: its name.
        version: whose defaults were taken: that which is installed, else that which was read.
        method: the composition.
        group_size: samples a prompt.
        anchored: where the penalty holds a policy that is paid plain rewards, at a coefficient at
            which families are told apart; None where there is no penalty.
        factor: how many times the configured coefficient the anchor's is, in groups of this size;
            NaN where that hangs on the rewards, such as on their deviation, or is not known.
        ends: where the method itself goes on the problem, averaged over actions; None where it
            moves nothing in groups of infinite size.
        ends_in_groups: and over all groups of `group_size`; None where they are too many.
        other_kl: what to set for the other direction of the KL.
        pitfalls: what people would not expect.
        idle: options that are given and do nothing beside the others.
        beyond: what is set and is not in the composition, with the reason.
        unknown: names that the trainer does not have, with the nearest that it has.
        aside: names that do not touch what is optimized.
    """

    trainer: str
    version: str
    method: m.Method
    group_size: int
    anchored: Identification | None
    factor: float
    ends: Identification | None
    ends_in_groups: Identification | None
    other_kl: str
    pitfalls: tuple[str, ...]
    idle: tuple[str, ...]
    beyond: tuple[str, ...]
    unknown: tuple[str, ...]
    aside: tuple[str, ...]

    @property
    def anchor(self) -> Regularizer | None:
        """The regularizer whose gradient the penalty is; None where it is none that is known."""
        return None if self.anchored is None else self.anchored.regularizer

    def __str__(self) -> str:
        title = f"{TRAINERS[self.trainer].title}, {self.version}"
        groups = f"in groups of {self.group_size}"
        where = {
            "the penalty": self._anchor(),
            "where it goes": _told(self.ends, "it moves nothing in groups of infinite size"),
            groups: _told(self.ends_in_groups, "not enumerated, for there are too many"),
            "the other KL": self.other_kl,
        }
        lists = {
            "pitfalls": self.pitfalls,
            "no effect here": self.idle,
            "not in the composition": self.beyond,
            "unknown options": self.unknown,
        }
        if self.aside:
            where["aside"] = f"{len(self.aside)} options that do not touch what is optimized"
        lines = [title, *(f"  {head}: {text}" for head, text in where.items() if text)]
        for head, texts in lists.items():
            lines += [f"  {head}:", *(f"    - {text}" for text in texts)] if texts else []
        return "\n".join(lines)

    def _anchor(self) -> str:
        beside = self.method.regularizer
        exact = "" if beside is None else f"; exactly, {beside!r}"
        if self.anchored is None:
            return f"no estimate of a divergence from the reference{exact}"
        if self.anchor is None:
            return f"none that is known; plain rewards end so: {self.anchored}{exact}"
        name, advantage = repr(self.anchor).partition("(")[0], within(self.method.advantage)
        if not np.isnan(self.factor):
            return f"{name}, its coefficient times {self.factor:.4g}{exact}"
        if isinstance(advantage, GroupRelative) and advantage.scale in DEVIATIONS:
            return f"{name}, its coefficient times the deviation of the rewards{exact}"
        return f"{name}, beside rewards on a scale of their own{exact}"


def explain(
    source: str | Path | Mapping[str, Any] | Iterable[str],
    trainer: str | None = None,
    *,
    bandit: Bandit | None = None,
) -> Explanation:
    """What a configuration of TRL, verl, OpenRLHF or NeMo-RL optimizes.

    The options are read as the trainer reads them, defaults from the package where it is installed,
    and composed; the composition is then followed exactly on a table of actions. A table has one
    prompt and one step: what acts on steps or on many prompts is named and left out.

    Args:
        source: a mapping; a YAML or JSON file; a script; or words, `name=value` or `--name value`.
        trainer: one of `rd.trainers.TRAINERS`; default, by the names of its options.
        bandit: the problem; default four actions of rewards 1, 0, 0.4 and 0.7.

    Raises:
        ValueError: a file that cannot be read, an unknown trainer, or a value that an option of it
            cannot have.

    Examples:
        >>> verl = {"actor_rollout_ref.actor.use_kl_loss": True, "algorithm.adv_estimator": "grpo"}
        >>> found = explain({**verl, "actor_rollout_ref.rollout.n": 8})
        >>> found.anchor, found.other_kl
        (ForwardKL(0.3), 'actor_rollout_ref.actor.kl_loss_type=mse')
        >>> print(found.pitfalls[0])
        k3 in the loss has the gradient of the *forward* KL
    """
    chosen, version, settings, plan = plan_of(source, trainer)
    aside, beyond, unknown = chosen.sort(settings.given)
    problem = _problem() if bandit is None else bandit
    check_kind("bandit", problem, Bandit, "rd.bandit(reward, reference)")
    anchored, factor = anchor_of(plan)
    return Explanation(
        trainer=chosen.name,
        version=version,
        method=plan.method,
        group_size=plan.group_size,
        anchored=anchored,
        factor=factor,
        ends=_in_population(plan, problem),
        ends_in_groups=_in_groups(plan, problem),
        other_kl=plan.other_kl,
        pitfalls=tuple(plan.pitfalls),
        idle=tuple(settings.idle()),
        beyond=(*plan.beyond, *beyond),
        unknown=tuple(_beside(name, chosen) for name in unknown),
        aside=tuple(aside),
    )


def plan_of(
    source: str | Path | Mapping[str, Any] | Iterable[str], trainer: str | None = None
) -> tuple[Trainer, str, Settings, Plan]:
    """The trainer of a configuration, the version whose defaults it has, and what it composes.

    Raises:
        ValueError: as `explain`.
    """
    given = read(source)
    chosen = _trainer(given, trainer)
    version, defaults = chosen.installed()
    settings = Settings(given, chosen.options, defaults)
    plan = chosen.compose(settings)
    settings.idle()  # refuses what an option cannot be, though it does nothing here
    return chosen, version, settings, plan


def _trainer(given: Mapping[str, Any], name: str | None) -> Trainer:
    if name is not None:
        if name not in TRAINERS:
            raise ValueError(f"unknown trainer {name!r}: one of {', '.join(TRAINERS)}")
        return TRAINERS[name]
    for trainer in TRAINERS.values():
        if any(key.startswith(mark) for key in given for mark in trainer.marks):
            return trainer
    if not given or any(key in GRPO.options for key in given):
        return GRPO
    known = ", ".join(TRAINERS)
    raise ValueError(f"no option of a known trainer is set: name it, trainer=... of {known}")


def _problem() -> Bandit:
    return make([1.0, 0.0, 0.4, 0.7], [0.2, 0.4, 0.3, 0.1])


def _followed(method: m.Method, problem: Bandit, expectation: Expectation) -> Identification:
    return identify(method, problem, expectation=expectation, starts=problem.log_ref[None])


def _told(end: Identification | None, otherwise: str) -> str:
    return otherwise if end is None else str(end)


def _in_population(plan: Plan, problem: Bandit) -> Identification | None:
    if plan.method.advantage.needs == "group":
        return None
    return _followed(plan.method, problem, Population())


def _in_groups(plan: Plan, problem: Bandit) -> Identification | None:
    levels = len(np.unique(np.asarray(problem.reward)))
    if not plan.method.compares_rewards_alone:
        levels = problem.num_actions
    if num_groups(plan.group_size, levels) > _MOST_GROUPS:
        return None
    return _followed(plan.method, problem, Group(plan.group_size))


def anchor_of(plan: Plan) -> tuple[Identification | None, float]:
    """Where the penalty holds a policy paid plain rewards, and the factor on its coefficient.

    On four actions that tell all families apart, whatever the problem is that was asked about.
    """
    if not anchors(plan.method):
        return None, float("nan")
    problem = _problem()
    found = _followed(_at(plan.method, _CLEAR), problem, Population())
    if found.regularizer is None:
        return found, float("nan")
    return found, _factor(plan) * float(found.regularizer.terms[0].beta) / _CLEAR


def _factor(plan: Plan) -> float:
    """What rewards lose in groups and a penalty beside them does not."""
    advantage, size = within(plan.method.advantage), plan.group_size
    if not isinstance(advantage, GroupRelative):
        return float("nan")
    if any(p.regroups for p in anchors(plan.method)):
        return 1.0
    if advantage.scale != "none":
        return float("nan")
    return size / (size - 1) if advantage.baseline == "mean" and size > 1 else 1.0


def _at(method: m.Method, beta: float) -> m.Method:
    """The method with plain rewards, its anchors at one coefficient, and nothing beside them."""
    penalties = tuple(dataclasses.replace(p, beta=jnp.asarray(beta)) for p in anchors(method))
    return dataclasses.replace(
        method, advantage=relative("mean"), penalties=penalties, regularizer=None
    )


def _beside(name: str, trainer: Trainer) -> str:
    near = nearest(name, trainer.options)
    return f"{name} (did you mean {near}?)" if near else name


def as_json(found: Explanation) -> dict[str, Any]:
    """What was found as plain values, records as they print."""
    ends = {"population": found.ends, "groups": found.ends_in_groups}
    return {
        "trainer": found.trainer,
        "version": found.version,
        "method": repr(found.method),
        "group_size": found.group_size,
        "anchor": None if found.anchor is None else repr(found.anchor).partition("(")[0],
        "factor": None if np.isnan(found.factor) else found.factor,
        "ends": {name: None if end is None else _end(end) for name, end in ends.items()},
        "other_kl": found.other_kl,
        "pitfalls": found.pitfalls,
        "idle": found.idle,
        "beyond": found.beyond,
        "unknown": found.unknown,
        "aside": found.aside,
    }


def _end(end: Identification) -> dict[str, Any]:
    named = None if end.regularizer is None else repr(end.regularizer)
    probs = [float(p) for p in end.probs]
    return {"verdict": end.verdict, "sentence": end.sentence, "target": named, "probs": probs}


def options_page() -> str:
    r"""Every option that is read, as Markdown: a table for each trainer.

    Examples:
        >>> print("\n".join(options_page().splitlines()[:6]))
        ## TRL, GRPOTrainer
        <BLANKLINE>
        Read at 1.16.0.
        <BLANKLINE>
        | option | default | here |
        | --- | --- | --- |
    """
    parts = []
    for trainer in TRAINERS.values():
        rows = [
            f"| `{name}` | {_default(option.default)} | {option.about} |"
            for name, option in trainer.options.items()
        ]
        reasons = [f"- `{_plain(name)}`: {text}" for name, (text, _) in trainer.beyond.items()]
        head = ["| option | default | here |", "| --- | --- | --- |"]
        parts += [f"## {trainer.title}", "", f"Read at {trainer.version}.", "", *head, *rows, ""]
        parts += ["Named, and not in the composition:", "", *reasons, ""]
    return "\n".join(parts)


def _default(value: Any) -> str:
    return "" if value is None else f"`{value}`"


def _plain(pattern: str) -> str:
    return pattern.replace("\\.", ".").replace(".*", "*")
