"""Total variation to one or several anchors: a linear program, solved exactly by sorting."""

import jax.numpy as jnp
from jax import Array

from regdist.regularizers.term import Reduced
from regdist.targets.solvers.optimum import Optimum


def polyhedral(reward: Array, parts: list[Reduced]) -> Optimum:
    """The optimum of E_p R - sum_t beta_t TV(p, q_t).

    The gain of an action is piecewise linear in p_i and concave, with corners at the anchors. The
    unit of mass is poured into the segments in order of slope. With one anchor: mass moves
    from every action more than beta below the best one to the best one. Where actions tie for the
    last mass the optimum is not unique: the returned one stays at the anchors if it can, and tied
    best actions share evenly what comes to them.
    """
    allowed = ~jnp.isneginf(reward)
    top = jnp.argmax(reward)
    distance = reward[top] - jnp.where(allowed, reward, reward[top])
    beta = jnp.stack([part.beta for part in parts])
    anchors = jnp.exp(jnp.stack([part.log_anchor for part in parts]))  # [T, K]
    order = jnp.argsort(anchors, axis=0)
    corner = jnp.take_along_axis(anchors, order, axis=0)
    length = jnp.diff(corner, axis=0, prepend=0.0, append=corner[-1:])
    length = length.at[-1].set(1)  # the segment above every anchor has room for all the mass
    # In a segment the cost rises with the anchors below and falls with those above.
    passed = jnp.cumsum(beta[order], axis=0)
    slope = jnp.concatenate([jnp.zeros_like(passed[:1]), passed]) - jnp.sum(beta) / 2
    cost = jnp.where(allowed, distance + slope, jnp.inf)

    # The mass left for the segments at the marginal cost, as sums of positive numbers: what the
    # finite segments hold in all is 1 and what the anchors exceed the first one by.
    flat_cost, flat = cost.ravel(), length.ravel()
    last = jnp.zeros_like(length, bool).at[-1].set(True).ravel()
    ranked = jnp.argsort(flat_cost)
    rounding = 4 * len(reward) * jnp.finfo(flat.dtype).eps  # of a sum over all actions
    place = jnp.zeros_like(ranked).at[ranked].set(jnp.arange(len(ranked), dtype=ranked.dtype))
    final = jnp.argmax(jnp.cumsum(flat[ranked]) >= 1 - rounding)  # the place of the last mass
    level = flat_cost[ranked[final]]
    # By places: where the reward is computed in the same program, a compiler may round a cost in
    # two ways, so that it is not equal to itself.
    tied = (flat_cost == level) | (place == final)
    below = (place < final) & ~tied
    held = jnp.sum(jnp.where(~last & ~below, flat, 0)) - jnp.sum(corner[-1] - anchors[0])
    left = jnp.maximum(held - jnp.sum(jnp.where(last & below, flat, 0)), 0)
    near = tied & ~last
    room = jnp.sum(jnp.where(near, flat, 0))
    full = left >= room * (1 - rounding)
    share = jnp.where(full, 1, jnp.where(full, 0, left) / jnp.where(full, 1, room))
    even = jnp.maximum(left - room, 0) / jnp.maximum(jnp.sum(tied & last, dtype=flat.dtype), 1)
    fill = jnp.where(below, flat, jnp.where(near, share * flat, jnp.where(tied, even, 0)))
    p = jnp.sum(fill.reshape(length.shape), axis=0)
    log_p = jnp.where(p > 0, jnp.log(jnp.where(p > 0, p, 1)), -jnp.inf)
    choices = jnp.sum(jnp.any((tied & (flat > 0)).reshape(length.shape), axis=0))
    filled = left >= jnp.sum(jnp.where(tied, flat, 0)) - rounding
    unique = (choices <= 1) | filled | (left <= rounding)
    return Optimum(log_p, distance, top, level, jnp.array(True), unique)
