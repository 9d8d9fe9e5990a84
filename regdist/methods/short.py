"""The same update in one exponential an action, where that is allowed."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Key

from regdist.methods.advantage import GroupRelative
from regdist.methods.batch import Batch, Laws
from regdist.methods.expectation import (
    Expectation,
    Population,
    Sampled,
    draw,
)
from regdist.methods.field import paid_rewards
from regdist.methods.method import Method
from regdist.problems.bandit import Bandit
from regdist.regularizers.divergence import KL

Direction = Callable[[Float[Array, " K"], Key[Array, ""] | None], Float[Array, " K"]]
"""From logits, and a key if it draws, to `direction` there."""


def plain_direction(method: Method, bandit: Bandit, expectation: Expectation) -> Direction | None:
    """`direction` on its own policy in one exponential an action; None where there is no such.

    For the exact policy gradient of rewards less reverse KLs or entropies, and for drawn groups
    that compare rewards alone, without a regulariser. Logits must be -inf where the reward or the
    reference is.
    """
    if any((method.penalties, method.weights, method.signal, method.controller)):
        return None
    if isinstance(expectation, Population):
        return _plain_gradient(method, bandit)
    if isinstance(expectation, Sampled):
        return _plain_drawn(method, bandit, expectation)
    return None


def _plain_gradient(method: Method, bandit: Bandit) -> Direction | None:
    """With Q = R + sum_t beta_t log q_t the marginal gain is Q - beta z up to a constant.

    The constant cancels in the baseline, so that the log-probabilities are not needed.
    """
    advantage, regularizer = method.advantage, method.regularizer
    terms = () if regularizer is None else regularizer.terms
    known = (
        isinstance(advantage, GroupRelative)
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


def _plain_drawn(method: Method, bandit: Bandit, over: Sampled) -> Direction | None:
    """Coefficients added up by action: in a batch whose ratios are 1, whatever the policy is."""
    if (
        method.regularizer is not None
        or method.geometry != "softmax"
        or not method.compares_rewards_alone
    ):
        return None
    size, paid = over.group_size, paid_rewards(bandit)
    share, even = jnp.full(size, 1 / size, paid.dtype), jnp.zeros(size, paid.dtype)

    def toward(logits: Array, key: Array | None) -> Array:
        assert key is not None
        e = jax.lax.optimization_barrier(jnp.exp(logits - jnp.max(logits)))
        total = jnp.sum(e)
        actions = draw(key, e, (over.num_groups, size))
        facts = paid[jnp.argmax(e)], jnp.sum(e * paid) / total

        def coefficients(reward: Array) -> Array:
            laws = Laws(reward, even, even, even, even)
            batch = Batch(reward, share, jnp.ones(size, bool), share[0], *facts, laws)
            return method.coefficients(batch, method.advantages(batch))

        weight = jax.vmap(coefficients)(paid[actions]) / actions.size
        moved = -e * (jnp.sum(weight) / total)
        return moved.at[actions].add(weight)

    return toward
