"""Losses of methods whose steps differ in worth, as trainers write them: part of the judge.

Each takes a `written_trees.Group`: padded tables [G, T] with a mask. Nothing here is shared with
the package; a value is a sum over all whole sequences through a state, not a recursion.
"""

import jax
import jax.numpy as jnp
import numpy as np

sg = jax.lax.stop_gradient


def clipped(g, a, low=0.2, high=0.2, dual=jnp.inf):
    """PPO's objective of each token, with a dual clip."""
    rho = jnp.exp(g.lp - g.old)
    gain = jnp.minimum(rho * a, jnp.clip(rho, 1 - low, 1 + high) * a)
    if np.isfinite(dual):
        gain = jnp.where(a < 0, jnp.maximum(gain, dual * a), gain)
    return gain


def last_own(mask):
    """1 at the last own step of each sample."""
    after = jnp.stack([mask[:, t + 1 :].sum(1) for t in range(mask.shape[1])], axis=1)
    return mask * jnp.where(after == 0, 1.0, 0.0)


def paid(g, rewards=None, beta=0.0):
    """What each step of the samples, and of all sequences, is paid, [G, T] and [L, T]."""
    steps, mask, _, reward = g.every
    flat = jnp.zeros(g.old_table.size) if rewards is None else jnp.ravel(rewards)
    k1 = jnp.where(jnp.isfinite(g.old_table), g.old_table - g.ref_table, 0).ravel()
    extra = flat - beta * k1
    some = g.r[:, None] * last_own(g.mask) + g.mask * extra[g.at]
    return some, reward[:, None] * last_own(mask) + mask * extra[steps]


def discounted(x, mask, gamma):
    """The discounted sum over own steps from each place on, chance passed over."""
    total, columns = jnp.zeros(len(x)), []
    for t in reversed(range(x.shape[1])):
        total = jnp.where(mask[:, t] > 0, x[:, t] + gamma * total, total)
        columns.append(total)
    return jnp.stack(columns[::-1], axis=1)


def state_values(g, every, gamma):
    """V of each state: the old law's mean, over the sequences through it, of what is paid on."""
    steps, mask, there, _ = g.every
    count, vocabulary = g.old_table.shape
    each = jnp.where(there, g.old_table.ravel()[steps], 0)
    rest = jnp.stack([each[:, t:].sum(1) for t in range(each.shape[1])], axis=1)
    weighted = jnp.where(there, jnp.exp(rest) * discounted(every, mask, gamma), 0)
    return jnp.zeros(count).at[(steps // vocabulary).ravel()].add(weighted.ravel())


def gae(g, gamma=0.9, lam=0.8, **extra):
    """Generalized advantage estimation, by verl's loop, with the exact values."""
    some, every = paid(g, **extra)
    value = state_values(g, every, gamma)[g.at // g.table.shape[1]]
    following, last, columns = jnp.zeros(len(some)), jnp.zeros(len(some)), []
    for t in reversed(range(some.shape[1])):
        delta = some[:, t] + gamma * following - value[:, t]
        own = g.mask[:, t]
        last = (delta + gamma * lam * last) * own + (1 - own) * last
        following = value[:, t] * own + (1 - own) * following
        columns.append(last)
    return sg(jnp.stack(columns[::-1], axis=1))


def to_go(g, gamma=1.0, forgets=False, **extra):
    """Returns to go; verl's start anew where the mask is 0."""
    some, _ = paid(g, **extra)
    if not forgets:
        return sg(discounted(some, g.mask, gamma))
    total, columns = jnp.zeros(len(some)), []
    for t in reversed(range(some.shape[1])):
        total = some[:, t] + gamma * total
        columns.append(total)
        total = total * g.mask[:, t]
    return sg(jnp.stack(columns[::-1], axis=1))


def whitened(g, a, biased=False):
    """Over all tokens of the batch, each sample with its weight."""
    share = g.w[:, None] * g.mask
    share = share / share.sum()
    first = a.ravel()[jnp.argmax(g.mask.ravel())]
    mean = first + (share * (a - first)).sum()
    variance = (share * (a - mean) ** 2).sum()
    if not biased and not g.endless:
        count = g.mask.sum()
        variance = jnp.where(count > 1, variance * count / jnp.maximum(count - 1, 1), variance)
    scale = jnp.maximum(variance, 1e-8) if biased else variance + 1e-8
    return sg((a - mean) / jnp.sqrt(scale))


def token_baseline(g, zero_tail=False, own=False, eps=1e-8, **extra):
    """verl's optimal token baseline, a column at a time."""
    some, _ = paid(g, **extra)
    p = jnp.where(jnp.isfinite(g.old_table), jnp.exp(g.old_table), 0)
    square = (p**2).sum(1)[g.at // p.shape[1]]
    energy = jnp.cumsum((1 - 2 * jnp.exp(g.old) + square) * g.mask, axis=1)
    returns = discounted(some, g.mask, 1.0)
    place = jnp.cumsum(g.mask, axis=1) - 1 if own else jnp.arange(some.shape[1], dtype=float)[None]
    baseline = jnp.zeros_like(returns)
    for k in range(some.shape[1]):
        here = g.mask * jnp.where(place == k, 1.0, 0.0)
        weight = g.w[:, None] * here * energy
        added = 0.0 if g.endless else eps / g.size
        whole = weight.sum() + added
        b = (weight * returns).sum() / jnp.where(whole > 0, whole, 1)
        if zero_tail and not g.endless:
            b = jnp.where(here.sum() == 1, 0, b)
        baseline = baseline + here * b
    if g.size == 1 and not g.endless:
        baseline = 0 * baseline
    return sg(returns - baseline)


def entropies(g):
    """H of the state of each step, under the policy that is moved."""
    table = jnp.where(jnp.isfinite(g.table), g.table, 0)
    each = -jnp.sum(jnp.where(jnp.isfinite(g.table), jnp.exp(table) * table, 0), axis=1)
    return sg(each)[g.at // g.table.shape[1]]


def entropy_shaped(g, a, alpha=0.4, kappa=1.0):
    return a + jnp.minimum(alpha * entropies(g), jnp.abs(a) / kappa)


def standardized(g, rewards):
    """GRPO's advantage of what the steps of each sample are paid in all."""
    some, _ = paid(g, rewards)
    total = g.total(some)
    if g.size == 1 and not g.endless:
        return sg(total / (1 + 1e-6))
    square = (g.w * (total - g.mean(total)) ** 2).sum()
    if not g.endless:
        square = square * g.size / (g.size - 1)
    return sg((total - g.mean(total)) / (jnp.sqrt(square) + 1e-6))
