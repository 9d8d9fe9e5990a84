"""Trainers' own names for how tokens are added up and what a ratio is of."""

from collections.abc import Callable, Mapping
from typing import Any

from regdist.numerics.records import check_choice, described

Levels = dict[str, Any]
"""`averaging`, `ratio` and, where there is one, `max_length`: options of every preset."""


def _levels(averaging: str, ratio: str = "token", max_length: Any = None) -> Levels:
    levels: Levels = {"averaging": averaging, "ratio": ratio}
    return levels if max_length is None else {**levels, "max_length": max_length}


_VERL = {
    "token-mean": "token",
    "token-sum": "sum",
    "seq-mean-token-sum": "sum",
    "seq-mean-token-mean": "sequence",
    "seq-mean-token-sum-norm": "constant",
}
_FORCED = {"gspo": "sequence", "sapo": "token", "geo_mean": "token"}


def _verl(
    loss_agg_mode: str = "token-mean", loss_scale_factor: Any = None, loss_mode: str = "vanilla"
) -> Levels:
    check_choice("loss_agg_mode", loss_agg_mode, _VERL, "verl")
    if loss_mode in _FORCED:  # whatever the mode says
        return _levels("sequence", _FORCED[loss_mode])
    averaging = _VERL[loss_agg_mode]
    return _levels(averaging, "token", loss_scale_factor if averaging == "constant" else None)


_TRL = {
    "grpo": "sequence",
    "sapo": "sequence",
    "bnpo": "token",
    "dapo": "token",
    "cispo": "token",
    "vespo": "token",
    "dr_grpo": "constant",
    "luspo": "sum",
}


def _trl(
    loss_type: str = "dapo",
    importance_sampling_level: str = "token",
    max_completion_length: Any = None,
) -> Levels:
    check_choice("loss_type", loss_type, _TRL, "TRL")
    levels = ("token", "sequence")
    level = check_choice("importance_sampling_level", importance_sampling_level, levels, "TRL")
    if loss_type == "luspo" and level == "token":
        raise ValueError(
            "TRL's loss_type='luspo' at importance_sampling_level='token' is a mean over padding "
            "too: no averaging here is that. Give importance_sampling_level='sequence'"
        )
    # Of a sequence's ratio too: d log of the geometric mean and the number of equal terms cancel.
    averaging = _TRL[loss_type]
    return _levels(averaging, level, max_completion_length if averaging == "constant" else None)


def _openrlhf(token_level_loss: bool = True, policy_loss_type: str = "ppo") -> Levels:
    check_choice("policy_loss_type", policy_loss_type, ("ppo", "gspo"), "OpenRLHF")
    if policy_loss_type == "gspo":
        return _levels("sequence", "sequence")
    return _levels("token" if token_level_loss else "sequence")


_SKYRL = {
    "token_mean": "token",
    "token_mean_legacy": "token",
    "prompt_mean": "token",
    "sequence_mean": "sequence",
    "seq_mean_token_sum_norm": "constant",
}


def _skyrl(loss_reduction: str = "token_mean", max_seq_len: Any = None) -> Levels:
    check_choice("loss_reduction", loss_reduction, _SKYRL, "SkyRL")
    averaging = _SKYRL[loss_reduction]
    return _levels(averaging, "token", max_seq_len if averaging == "constant" else None)


def _nemo_rl(
    token_level_loss: bool = True, sequence_level_importance_ratios: bool = False
) -> Levels:
    if token_level_loss and sequence_level_importance_ratios:
        raise ValueError(
            "NeMo-RL wants token_level_loss=False beside sequence_level_importance_ratios=True"
        )
    ratio = "sequence" if sequence_level_importance_ratios else "token"
    return _levels("token" if token_level_loss else "sequence", ratio)


_TRAINERS: Mapping[str, Callable[..., Levels]] = {
    "verl": _verl,
    "trl": _trl,
    "openrlhf": _openrlhf,
    "skyrl": _skyrl,
    "nemo_rl": _nemo_rl,
}


def aggregation(trainer: str, **options: Any) -> Levels:
    """The averaging and ratio that a trainer's own options ask for, as options of a preset.

    An option that is left out has the trainer's default. Token means of a batch of many prompts are
    "token" over `rd.contexts`; over one prompt they are those of its group, as in a micro-batch. A
    constant without its number divides by the longest sequence, where verl takes the padded width.
    verl's "token-sum" is a sum up to the number of sequences, which is a step size.

    Args:
        trainer: "verl", "trl", "openrlhf", "skyrl" or "nemo_rl".
        options: as the trainer names them. verl `core_algos.agg_loss`: loss_agg_mode,
            loss_scale_factor, loss_mode (gspo, sapo and geo_mean choose by themselves). TRL
            `GRPOConfig`: loss_type, importance_sampling_level, max_completion_length. OpenRLHF
            `PolicyLoss`: token_level_loss, policy_loss_type. SkyRL: loss_reduction, max_seq_len.
            NeMo-RL: token_level_loss, sequence_level_importance_ratios.

    Raises:
        TypeError: an option that the trainer has not.
        ValueError: a trainer or a choice that is not known, or two that no averaging here is.

    Examples:
        >>> aggregation("verl", loss_agg_mode="seq-mean-token-mean")
        {'averaging': 'sequence', 'ratio': 'token'}
        >>> gspo = aggregation("trl", loss_type="grpo", importance_sampling_level="sequence")
        >>> rd.methods.grpo(**gspo).averaging.over
        'sequence'
    """
    read = _TRAINERS[check_choice("trainer", trainer, _TRAINERS)]
    known = read.__annotations__
    for name in options:
        if name not in known:
            taken = ", ".join(key for key in known if key != "return")
            raise TypeError(f"{trainer} has no option {name!r} here: it takes {taken}")
    for name in ("token_level_loss", "sequence_level_importance_ratios"):
        if not isinstance(options.get(name, True), bool):
            raise TypeError(f"{name} must be True or False; got {described(options[name])}")
    return read(**options)
