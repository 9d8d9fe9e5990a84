"""Prompts that share what they ask of a network: many problems and a policy for all of them."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from regdist.numerics.records import Number, Table, as_array
from regdist.policies.shared import LogLinear
from regdist.problems.bandit import bandit
from regdist.problems.contexts import Contexts, contexts


@dataclasses.dataclass(frozen=True)
class PromptTask:
    """Prompts with names, and the policy that they share.

    Attributes:
        contexts: the prompts, C of them.
        policy: log-linear in shared features; parameters of 0 are the references.
        prompts: the name of each prompt, C strings.
        about: what they are, one paragraph.
    """

    contexts: Contexts
    policy: LogLinear
    prompts: tuple[str, ...]
    about: str


def graded_prompts(
    successes: Table = (0.9, 0.5, 0.1, 0.01), overlap: Number = 0.5, weights: Table | None = None
) -> PromptTask:
    """Prompts from easy to hard, each with a right answer and a wrong one, that share features.

    The right answer of prompt c has the features sqrt(overlap) of a skill that all prompts share,
    and sqrt(1 - overlap) of one of its own; the wrong ones have none. A step that raises the
    log-odds of one prompt by 1 raises those of every other by `overlap`.

    Args:
        successes: the reference's probability of the right answer of each prompt, C of them.
        overlap: between 0, prompts that have nothing to do with each other, and 1, one skill.
        weights: how often each prompt is met, shape [C]; default even.

    Raises:
        TypeError: what is no number.
        ValueError: probabilities that are not inside (0, 1), or an overlap outside [0, 1].

    Examples:
        Trained on the easiest prompt alone, the policy learns the hardest too, by half as much.

        >>> task = graded_prompts(weights=[1, 0, 0, 0])
        >>> push = rd.field(rd.methods.reinforce(), jnp.zeros(5), task.contexts, policy=task.policy)
        >>> print((task.policy.features @ push)[:, 0].round(4))
        [0.09  0.045 0.045 0.045]
    """
    as_array("successes", successes)
    chance = np.asarray(successes, float)
    if chance.ndim != 1 or not chance.size or not np.all((chance > 0) & (chance < 1)):
        raise ValueError(
            f"successes must be a row of probabilities inside (0, 1); got {successes!r}"
        )
    share = np.asarray(as_array("overlap", overlap), float)
    if share.ndim or not 0 <= share <= 1:
        raise ValueError(f"overlap must be a number from 0 to 1; got {overlap!r}")
    count = len(chance)
    features = np.zeros((count, 2, count + 1))
    features[:, 0, 0] = np.sqrt(share)
    features[range(count), 0, range(1, count + 1)] = np.sqrt(1 - share)
    problems = contexts([bandit([1.0, 0.0], [p, 1 - p]) for p in chance.tolist()], weights)
    return PromptTask(
        contexts=problems,
        policy=LogLinear(jnp.asarray(features), problems.log_ref),
        prompts=tuple(f"success {p:g}" for p in chance.tolist()),
        about=(
            f"{count} prompts with a right answer each, which the reference finds with probability "
            f"{', '.join(f'{p:g}' for p in chance.tolist())}; features overlap by {float(share):g}."
        ),
    )
