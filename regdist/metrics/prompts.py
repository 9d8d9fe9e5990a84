"""Functions of laws over many prompts: the answers of all, and what a prompt says of its own.

C contexts of K actions or sequences each. Laws are stacked, [C, K], or of steps [C, S, V].
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp
from jaxtyping import Float

from regdist.metrics.entropies import entropy, label_log_probs
from regdist.numerics.records import check_kind
from regdist.problems.contexts import Contexts, check_law, whole_law

__all__ = ["answers_over_prompts", "prompt_information"]


def _laws(contexts: Contexts, log_probs: Any, name: str) -> Array:
    """The law of whole answers to each prompt, [C, K].

    Raises:
        TypeError: no contexts, or no numbers.
        ValueError: another shape; when known, a row that is no law.
    """
    check_kind("contexts", contexts, Contexts, "Make them: rd.contexts(problems)")
    where = f"rd.metrics.{name}(contexts, log_probs)"
    return contexts.map(whole_law, check_law("log_probs", log_probs, contexts, where))


@jax.jit
def _masses(contexts: Contexts, laws: Array) -> Array:
    return jax.vmap(label_log_probs)(laws, contexts.leaves.label)


def answers_over_prompts(
    contexts: Contexts, log_probs: Float[Array, "C ..."]
) -> Float[Array, " K"]:
    r"""The law of the answer to a prompt that is drawn by the weights, in nats, shape [K].

    $$\log \sum_c w_c \, P_c(\text{answer} = a)$$

    Answers are the labels of actions or sequences, the same number the same answer to every prompt.
    Where prompts are templates of one question this is what a user of all of them sees, and its
    `entropy` or `hill_number` the diversity over templates: a policy may answer each template one
    way and still have many answers.

    Args:
        contexts: C problems with weights.
        log_probs: a law for each, such as a run over contexts records.

    Raises:
        TypeError: no contexts, or no numbers.
        ValueError: laws of another shape, or a row that is none.

    Examples:
        >>> two = rd.contexts([rd.bandit([1.0, 1.0]), rd.bandit([1.0, 1.0])])
        >>> sure = jnp.log(jnp.array([[1.0, 0.0], [0.0, 1.0]]))  # each template its own answer
        >>> print(jnp.exp(answers_over_prompts(two, sure)))
        [0.5 0.5]
    """
    masses = _masses(contexts, _laws(contexts, log_probs, "answers_over_prompts"))
    return logsumexp(jnp.log(contexts.weights)[:, None] + masses, axis=0)


def prompt_information(contexts: Contexts, log_probs: Float[Array, "C ..."]) -> Float[Array, ""]:
    r"""What a prompt says of its answer, in nats: H(answer) - sum_c w_c H(answer | c), at least 0.

    $$I = H\Bigl(\sum_c w_c P_c\Bigr) - \sum_c w_c H(P_c)$$

    Of the diversity over all prompts, the part that is between them: all of it where each has one
    answer, none where all answer alike. Arguments and errors as of `answers_over_prompts`.

    Examples:
        >>> two = rd.contexts([rd.bandit([1.0, 1.0]), rd.bandit([1.0, 1.0])])
        >>> sure = jnp.log(jnp.array([[1.0, 0.0], [0.0, 1.0]]))
        >>> print(prompt_information(two, sure), prompt_information(two, two.log_ref))
        0.693... 0.0
    """
    laws = _laws(contexts, log_probs, "prompt_information")
    masses = _masses(contexts, laws)
    over = logsumexp(jnp.log(contexts.weights)[:, None] + masses, axis=0)
    within = jnp.sum(contexts.weights * jax.vmap(entropy)(masses))
    return jnp.maximum(entropy(over) - within, 0)
