"""Laws of selection: the best of n, and what a threshold keeps. K is the number of actions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from regdist.metrics import kl, label_log_probs
from regdist.numerics.logspace import expect, log1mexp, normalize
from regdist.numerics.records import (
    Law,
    Number,
    as_number,
    check_log_probs,
    is_concrete,
    positive,
    record,
)
from regdist.policies.laws import restrict
from regdist.policies.table import log_softmax
from regdist.problems.bandit import Bandit, takes_bandit


@record
class Selection(Law):
    """A law that a selection rule makes of the reference.

    Attributes:
        log_probs: log p in nats, shape [K].
        value: E_p R.
        kl: KL(p || q) in nats.
    """

    log_probs: Float[Array, "*batch K"]
    value: Float[Array, "*batch"]
    kl: Float[Array, "*batch"]


@takes_bandit
def best_of_n(bandit: Bandit, n: Number, log_p: Float[Array, " K"] | None = None) -> Selection:
    r"""The law of the best of n independent draws from q.

    $$p_i = \frac{q_i}{F(R_i) - F(R_i^-)} \bigl(F(R_i)^n - F(R_i^-)^n\bigr), \; F(r) = P(R \le r)$$

    Ties share by their probability. KL(best of n || q) <= log n - (n - 1)/n, and at equal KL the
    tilt's E_p R is at least as good (arXiv 2404.01730). n may be any real number > 0.

    Args:
        bandit: rewards and reference.
        n: draws; data, so a sweep is one trace.
        log_p: the law drawn from, default the reference: with a target's, the best of n under it.

    Raises:
        ValueError: n is not a finite number above 0.

    Examples:
        >>> print(best_of_n(rd.bandit([1.0, 0.0], [0.5, 0.5]), 2).probs)
        [0.75 0.25]
    """
    limit = "For the limit use rd.rejection(bandit, bandit.reward.max())"
    law = _drawn_from(bandit, log_p, "rd.best_of_n(bandit, n, log_p)")
    reward = bandit.reward
    draws = positive("n", n, limit).astype(law.dtype)
    # By rank of reward: up[i] and down[i] are the log-mass of the i worst, and of all but these.
    order = jnp.argsort(reward)
    ranked, log_w = reward[order], law[order]
    empty = jnp.full(1, -jnp.inf, law.dtype)
    up = jnp.concatenate([empty, jax.lax.cumlogsumexp(log_w)])
    down = jnp.concatenate([jax.lax.cumlogsumexp(log_w, reverse=True), empty])
    # Each action's level: the actions of its reward, those ranked from `first` to before `after`.
    first = jnp.searchsorted(ranked, reward, side="left")
    after = jnp.searchsorted(ranked, reward, side="right")
    log_level = label_log_probs(law, first)[first]
    # The level's share of the draws is F^n - F-^n = F^n (1 - (F-/F)^n). Where F is near 1 its
    # logarithm comes from what lies above the level; 1/2 is where neither form cancels.
    tail = jnp.exp(down[after])
    near = tail < 0.5
    log_f = jnp.where(near, jnp.log1p(-jnp.where(near, tail, 0)), jnp.where(near, 0, up[after]))
    # log F-/F from log of level/F where that is small, else from the masses; again 1/2 divides.
    drawn = ~jnp.isneginf(log_level)
    share = jnp.where(drawn, jnp.minimum(jnp.where(drawn, log_level, 0) - log_f, 0), -1)
    lowest = jnp.isneginf(up[first])
    below = jnp.where(lowest, 0, up[first]) - log_f
    large = share > -0.5
    log_less = jnp.where(large, below, log1mexp(jnp.where(large, -1, share)))
    rest = jnp.where(lowest, 0, log1mexp(jnp.where(lowest, -1, draws * log_less)))
    log_share = draws * log_f + rest
    # An action gets of its level's share what it holds of the level.
    taken = ~jnp.isneginf(law)
    log_best = jnp.where(
        taken, jnp.where(taken, law, 0) - jnp.where(drawn, log_level, 0) + log_share, -jnp.inf
    )
    log_best = normalize(log_best)
    # A forbidden action that can be drawn counts, however small its probability.
    forbidden = jnp.isneginf(reward)
    value = expect(log_best, jnp.where(forbidden, 0, reward))
    value = jnp.where(jnp.any(forbidden & ~jnp.isneginf(log_best)), -jnp.inf, value)
    return Selection(log_best, value, kl(log_best, bandit.log_ref))


@takes_bandit
def rejection(
    bandit: Bandit, threshold: Number, log_p: Float[Array, " K"] | None = None
) -> Selection:
    r"""The law of draws kept when R >= threshold: q restricted to them (RAFT, arXiv 2304.06767).

    $$p_i = \frac{q_i\, 1[R_i \ge \tau]}{\sum_j q_j\, 1[R_j \ge \tau]}$$

    It keeps the odds of q among what it keeps, and is the limit of reverse KL with reward
    1[R >= threshold] for beta to 0.

    Raises:
        ValueError: nothing that the law can draw reaches the threshold.

    Examples:
        >>> print(rejection(rd.bandit([1.0, 0.5, 0.0], [0.2, 0.2, 0.6]), 0.5).probs)
        [0.5 0.5 0. ]
    """
    law = _drawn_from(bandit, log_p, "rd.rejection(bandit, threshold, log_p)")
    keep = bandit.reward >= as_number(threshold, "threshold").astype(bandit.reward.dtype)
    if is_concrete(keep, law) and not np.any(np.asarray(keep & ~jnp.isneginf(law))):
        raise ValueError(f"threshold {threshold!r} is above every reward that the law can draw")
    kept = restrict(law, keep)
    return Selection(kept, expect(kept, bandit.reward), kl(kept, bandit.log_ref))


def _drawn_from(bandit: Bandit, log_p: Any, where: str) -> Array:
    """The law asked for, by default the reference."""
    if log_p is None:
        return bandit.log_ref
    return check_log_probs("log_p", log_p, where, bandit.num_actions)


def limit_laws(bandit: Bandit) -> dict[str, Float[Array, " K"]]:
    """Laws without a coefficient that methods end on, by name.

    The reference; the reference given a best action that it can take, the limit of both KLs for
    beta to 0; and the one of those actions that it holds likeliest, alone.

    Examples:
        >>> laws = limit_laws(rd.bandit([1.0, 1.0, 0.0], [0.1, 0.3, 0.6]))
        >>> print(jnp.exp(laws["reference on the best actions"]))
        [0.25 0.75 0.  ]
        >>> print(jnp.exp(laws["likeliest of the best actions"]))
        [0. 1. 0.]
    """
    log_q, reward = np.asarray(bandit.log_ref), np.asarray(bandit.reward)
    best = reward == reward[~np.isneginf(log_q)].max()
    on_best = np.where(best, log_q, -np.inf)
    likeliest = np.where(np.arange(len(reward)) == np.argmax(on_best), 0.0, -np.inf)
    laws = {
        "reference": log_q,
        "reference on the best actions": on_best,
        "likeliest of the best actions": likeliest,
    }
    return {name: log_softmax(jnp.asarray(law, reward.dtype)) for name, law in laws.items()}
