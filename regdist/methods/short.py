"""The update on the policy's own samples in one exponential an action, where that is allowed.

What a run takes instead of the full update where they are equal: half of a step or less.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Key

from regdist.methods.advantage import GroupRelative
from regdist.methods.batch import Batch, Tables, paid_rewards
from regdist.methods.groups import draw
from regdist.methods.method import Method
from regdist.methods.surrogate import LogProb
from regdist.problems.bandit import Bandit
from regdist.regularizers.divergence import KL

Direction = Callable[[Float[Array, " K"], Key[Array, ""] | None], Float[Array, " K"]]
"""From the logits of a table, and a key if it draws, to the update direction there."""


def plain_gradient(method: Method, bandit: Bandit) -> Direction | None:
    """The exact gradient of rewards less reverse KLs or entropies; None for other methods.

    For surrogates that are the advantage itself at ratio 1: the caller has asked. Logits must be
    -inf where the reward or the reference is. With Q = R + sum_t beta_t log q_t the
    marginal gain is Q - beta z up to a constant, which cancels in the baseline, so that the
    log-probabilities are not needed.
    """
    advantage, regularizer = method.advantage, method.regularizer
    terms = () if regularizer is None else regularizer.terms
    known = (
        not _has_more_parts(method)
        and isinstance(advantage, GroupRelative)
        and advantage.scale == "none"
        and method.geometry in ("softmax", "natural")
        and all(isinstance(t.divergence, KL) and t.anchor is None for t in terms)
    )
    if not known:
        return None
    gain, beta = bandit.reward, jnp.zeros((), bandit.reward.dtype)
    for part in () if regularizer is None else regularizer.reduce(bandit.log_ref):
        excluded = jnp.isneginf(part.log_anchor)
        anchored = part.beta * jnp.where(excluded, 0, part.log_anchor)
        gain, beta = jnp.where(excluded, -jnp.inf, gain + anchored), beta + part.beta
    gain = jnp.where(jnp.isneginf(gain), 0, gain)

    def toward(logits: Array, key: Array | None) -> Array:
        del key
        e = jnp.exp(logits - jnp.max(logits))
        held = ~jnp.isneginf(logits)
        w = gain - beta * jnp.where(held, logits, 0)
        total = jnp.sum(e)
        lead = w - jnp.sum(e * w) / total
        return e * lead / total if method.geometry == "softmax" else jnp.where(held, lead, 0)

    return toward


def climbs_objective(method: Method) -> bool:
    """Whether a method is the exact gradient of E R less its regularizer, and nothing else.

    That objective is concave in p, so that its flow, plain or natural, comes to the optimum from
    every start that has all actions.
    """
    advantage, regularizer = method.advantage, method.regularizer
    return (
        not _has_more_parts(method)
        and isinstance(advantage, GroupRelative)
        and advantage.scale == "none"
        and isinstance(method.surrogate, LogProb)
        and method.geometry in ("softmax", "natural")
        and not (regularizer is not None and regularizer.follows_policy())
    )


def plain_drawn(
    method: Method, bandit: Bandit, group_size: int, num_groups: int
) -> Direction | None:
    """Drawn groups that compare rewards alone, without a regularizer; None for other methods.

    Coefficients are added up by action, in a batch whose ratios are 1, whatever the policy is.
    """
    if (
        _has_more_parts(method)
        or method.regularizer is not None
        or method.geometry != "softmax"
        or not method.compares_rewards_alone
    ):
        return None
    paid = paid_rewards(bandit)
    share = jnp.full(group_size, 1 / group_size, paid.dtype)
    even = jnp.zeros(group_size, paid.dtype)
    no_label = jnp.zeros(group_size, int)

    def toward(logits: Array, key: Array | None) -> Array:
        assert key is not None
        e = jax.lax.optimization_barrier(jnp.exp(logits - jnp.max(logits)))
        total = jnp.sum(e)
        actions = draw(key, e, (num_groups, group_size))
        facts = paid[jnp.argmax(e)], jnp.sum(e * paid) / total

        def coefficients(reward: Array) -> Array:
            tables = Tables(reward, even, even, even, even, no_label)
            batch = Batch(reward, share, jnp.ones(group_size, bool), share[0], *facts, tables)
            return method.coefficients(batch, method.advantages(batch))

        weight = jax.vmap(coefficients)(paid[actions]) / actions.size
        moved = -e * (jnp.sum(weight) / total)
        return moved.at[actions].add(weight)

    return toward


def _has_more_parts(method: Method) -> bool:
    return any((method.penalties, method.weights, method.signal, method.controller))
