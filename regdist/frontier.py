"""Balls in KL, laws of selection, and the frontier of reward against divergence.

K is the number of actions; laws are log-probabilities in nats, q is the reference.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float

from regdist.laws import restrict
from regdist.logspace import expect, log1mexp, normalize
from regdist.metrics import kl, label_log_probs
from regdist.problem import Bandit
from regdist.records import Law, as_number, is_concrete, record
from regdist.roots import accepted, implicit_root, increasing_root


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


@record
class Constrained(Law):
    """An optimum under constraints.

    Attributes:
        log_probs: log p in nats, shape [K].
        value: the objective without the constraints: E_p R, less the regulariser if there is one.
        multipliers: the price of each constraint, d value / d limit, shape [M]; [] for a ball.
        residual: the KKT residual: the largest violation of a constraint, or product of a price
            and its slack, relative to the size of what is constrained.
        converged: whether the residual is below eps^0.55.
    """

    log_probs: Float[Array, "*batch K"]
    value: Float[Array, "*batch"]
    multipliers: Float[Array, "..."]
    residual: Float[Array, "*batch"]
    converged: Bool[Array, "*batch"]


@jax.jit
def _kl_ball(bandit: Bandit, radius: Array) -> Constrained:
    reward, log_q = bandit.reward, bandit.log_ref
    active = ~(jnp.isneginf(reward) | jnp.isneginf(log_q))
    best = jnp.max(jnp.where(active, reward, -jnp.inf))
    gap = jnp.where(active, best - reward, 0)
    log_q = jnp.where(active, log_q, -jnp.inf)
    # Forbidden actions make even the best law without rewards differ from q.
    log_free = jax.nn.logsumexp(log_q)
    span = jnp.max(gap)
    scale = jnp.where(span > 0, span, 1)
    on_top = restrict(log_q, active & (gap == 0))
    largest = kl(on_top, bandit.log_ref)
    free = (span == 0) | (radius >= largest)
    shut = radius <= -log_free
    fixed = free | shut

    inputs = log_q, gap / scale, bandit.log_ref, radius

    def law(v: Array, inputs: tuple) -> Array:
        log_w, steps = inputs[:2]
        return normalize(
            jnp.where(active, jnp.where(active, log_w, 0) - jnp.exp(v) * steps, -jnp.inf)
        )

    def excess(v: Array, inputs: tuple) -> Array:
        return jnp.log(kl(law(v, inputs), inputs[2])) - jnp.log(jnp.where(fixed, 1, inputs[3]))

    low, high = jnp.full_like(radius, -40.0), jnp.full_like(radius, 60.0)
    still = jax.lax.stop_gradient(inputs)
    found, _ = increasing_root(lambda v: excess(v, still), low, high, ended=fixed)
    found = jnp.where(fixed, 0, found)
    v = implicit_root(lambda v: jnp.where(fixed, v - found, excess(v, inputs)), found)
    log_p = jnp.where(free, on_top, jnp.where(shut, normalize(log_q), law(v, inputs)))
    beta = jnp.where(free, 0, jnp.where(shut, jnp.inf, scale * jnp.exp(-v)))
    used = kl(log_p, bandit.log_ref)
    size = jnp.where(radius > 0, radius, 1)
    residual = jnp.where(free, jnp.maximum(used - radius, 0), jnp.abs(used - radius)) / size
    return Constrained(log_p, expect(log_p, reward), beta, residual, accepted(residual))


def kl_ball(bandit: Bandit, radius: ArrayLike) -> Constrained:
    """Max E_p R subject to KL(p || q) <= radius, in nats.

    The tilt q e^{R/b} with b the root of KL = radius; b is the multiplier. From radius
    -log q(argmax R) on it is q restricted to the best actions, at multiplier 0. At radius 0 it is
    q, at multiplier +inf.

    Args:
        bandit: rewards and reference.
        radius: >= 0, in nats; any radius.

    Raises:
        ValueError: the radius is negative, NaN, or too small to leave forbidden actions out.

    >>> ball = kl_ball(rd.bandit([1.0, 0.0], [0.5, 0.5]), 0.1)
    >>> print(rd.metrics.kl(ball.log_probs, jnp.log(jnp.array([0.5, 0.5]))).round(9))
    0.1
    """
    if is_concrete(radius) and not np.all(np.asarray(radius) >= 0):
        raise ValueError(f"radius must be a number >= 0, in nats; got radius={radius!r}")
    if is_concrete(bandit, radius):
        least = -float(
            jax.nn.logsumexp(jnp.where(jnp.isneginf(bandit.reward), -jnp.inf, bandit.log_ref))
        )
        if np.any(np.asarray(radius) < least * (1 - 1e-12)):
            raise ValueError(
                f"radius must be at least {least:.6g}: no law nearer to the reference leaves out "
                f"the forbidden actions; got radius={radius!r}"
            )
    return _kl_ball(bandit, as_number(radius).astype(bandit.reward.dtype))


def reward_kl_frontier(bandit: Bandit, radii: Float[Array, " N"]) -> Float[Array, " N"]:
    """The largest E_p R at each KL(p || q) <= radius: concave and increasing (2404.01730).

    >>> b = rd.bandit([1.0, 0.0], [0.5, 0.5])
    >>> print(reward_kl_frontier(b, jnp.array([0.0, 0.1, 1.0])).round(4))
    [0.5    0.7198 1.    ]
    """
    if is_concrete(radii) and not np.all(np.asarray(radii) >= 0):
        raise ValueError(f"radii must be numbers >= 0, in nats; got radii={radii!r}")
    return jax.vmap(lambda radius: kl_ball(bandit, radius).value)(radii)


def best_of_n(bandit: Bandit, n: ArrayLike, log_p: Float[Array, " K"] | None = None) -> Selection:
    """The law of the best of n independent draws, F(y)^n - F(y-)^n in the order of rewards.

    Ties share by their probability. KL(best of n || q) <= log n - (n - 1)/n, and at equal KL the
    tilt's E_p R is at least as good (arXiv 2404.01730). n may be any real number > 0.

    Args:
        bandit: rewards and reference.
        n: draws; data, so a sweep is one trace.
        log_p: the law drawn from, default the reference: with a target's, the best of n under it.

    Raises:
        ValueError: n is not a finite number above 0.

    >>> print(best_of_n(rd.bandit([1.0, 0.0], [0.5, 0.5]), 2).probs)
    [0.75 0.25]
    """
    if is_concrete(n) and not np.all((np.asarray(n) > 0) & np.isfinite(np.asarray(n))):
        raise ValueError(
            f"n must be a finite number above 0; got n={n!r}. For the limit use "
            "rd.rejection(bandit, bandit.reward.max())"
        )
    law = bandit.log_ref if log_p is None else log_p
    reward = bandit.reward
    draws = as_number(n).astype(law.dtype)
    order = jnp.argsort(reward)
    ranked, log_w = reward[order], law[order]
    empty = jnp.full(1, -jnp.inf, law.dtype)
    up = jnp.concatenate([empty, jax.lax.cumlogsumexp(log_w)])
    down = jnp.concatenate([jax.lax.cumlogsumexp(log_w, reverse=True), empty])
    first = jnp.searchsorted(ranked, reward, side="left")
    after = jnp.searchsorted(ranked, reward, side="right")
    log_level = label_log_probs(law, first)[first]
    # log F from what lies above where F is near 1; log F-/F from the level where that is small.
    tail = jnp.exp(down[after])
    near = tail < 0.5
    log_f = jnp.where(near, jnp.log1p(-jnp.where(near, tail, 0)), jnp.where(near, 0, up[after]))
    drawn = ~jnp.isneginf(log_level)
    share = jnp.where(drawn, jnp.minimum(jnp.where(drawn, log_level, 0) - log_f, 0), -1)
    lowest = jnp.isneginf(up[first])
    below = jnp.where(lowest, 0, up[first]) - log_f
    large = share > -0.5
    log_less = jnp.where(large, below, log1mexp(jnp.where(large, -1, share)))
    rest = jnp.where(lowest, 0, log1mexp(jnp.where(lowest, -1, draws * log_less)))
    log_share = draws * log_f + rest
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


def rejection(
    bandit: Bandit, threshold: ArrayLike, log_p: Float[Array, " K"] | None = None
) -> Selection:
    """The law of draws kept when R >= threshold: q restricted to them (RAFT, arXiv 2304.06767).

    It keeps the odds of q among what it keeps, and is the limit of reverse KL with reward
    1[R >= threshold] for beta to 0.

    Raises:
        ValueError: nothing that the law can draw reaches the threshold.

    >>> print(rejection(rd.bandit([1.0, 0.5, 0.0], [0.2, 0.2, 0.6]), 0.5).probs)
    [0.5 0.5 0. ]
    """
    law = bandit.log_ref if log_p is None else log_p
    keep = bandit.reward >= as_number(threshold).astype(bandit.reward.dtype)
    if is_concrete(keep, law) and not np.any(np.asarray(keep & ~jnp.isneginf(law))):
        raise ValueError(f"threshold {threshold!r} is above every reward that the law can draw")
    kept = restrict(law, keep)
    return Selection(kept, expect(kept, bandit.reward), kl(kept, bandit.log_ref))
