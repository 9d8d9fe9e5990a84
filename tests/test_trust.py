"""Masks by how far a probability moved, against losses written over padded tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regdist as rd
from tests import written_trees as w
from tests.test_tokens import BANDIT, ONE_STATE, problem

m = rd.methods
sg = jax.lax.stop_gradient


def verl_dppo(g, low=0.05, high=0.02, measure="tv", cap=1.1):
    """verl's: the truncated ratio is detached, and so is the mask."""
    a, rho = g.z()[:, None], sg(jnp.minimum(jnp.exp(g.lp - g.old), cap))
    p, old = sg(jnp.exp(g.lp)), jnp.exp(g.old)
    if measure == "tv":
        up, down = p - old <= high, p - old >= -low
    else:
        kl = old * (g.old - sg(g.lp)) + (1 - old) * jnp.log((1 - old + 1e-8) / (1 - p + 1e-8))
        up, down = (kl <= high) | (p <= old), (kl <= low) | (p >= old)
    return -g.by_token(a * rho * g.lp * jnp.where(jnp.where(a > 0, up, down), 1.0, 0.0))


def prime(g, kept, kl):
    """prime-rl's: the ratio is live, the square of its logarithm is not masked."""
    a, gap = (g.r - g.mean(g.r))[:, None], sg(jnp.exp(g.lp)) - jnp.exp(g.old)
    gain = jnp.where(kept(a, gap), 1.0, 0.0) * a * jnp.exp(g.lp - g.old)
    return g.by_token(kl * (g.lp - g.old) ** 2 - gain)


def trl_vespo(g):
    log_w = jnp.clip(g.total(g.mask * jnp.clip(g.lp - g.old, -20, 20)), np.log(1e-8), 20)[:, None]
    a = g.z(1e-4)[:, None]
    k, lam = jnp.where(a >= 0, 2.0, 3.0), jnp.where(a >= 0, 3.0, 2.0)
    return -g.by_token(sg(jnp.exp(lam + k * log_w - lam * jnp.exp(log_w))) * a * g.lp)


def trl_sequence_mask(g, most):
    a = g.z(1e-4)[:, None]
    away = (sg(g.total(g.mask * (g.old - g.lp))) / g.n)[:, None]
    rho = jnp.exp(g.lp - g.old)
    gain = jnp.minimum(rho * a, jnp.clip(rho, 0.8, 1.2) * a)
    return -g.by_token(gain * jnp.where((a >= 0) | (away <= most), 1.0, 0.0))


def one_sided(a, gap):
    return jnp.where(a > 0, gap <= 0.02, gap >= -0.05)


METHODS = {
    "dppo, tv": (m.dppo(0.05, 0.02, cap=1.1), verl_dppo),
    "dppo, kl": (
        m.dppo(2e-3, 1e-3, "kl", cap=1.1),
        functools.partial(verl_dppo, low=2e-3, high=1e-3, measure="kl"),
    ),
    "prime-rl": (m.prime_rl(0.05, 0.02, 0.1), functools.partial(prime, kept=one_sided, kl=0.1)),
    "prime-rl, ipo": (
        m.prime_rl_ipo(0.04, 0.1),
        functools.partial(prime, kept=lambda a, gap: jnp.abs(gap) <= 0.04, kl=0.1),
    ),
    "dro": (
        m.dro(0.3),
        lambda g: g.by_token(0.15 * (g.lp - g.old) ** 2 - g.z()[:, None] * g.lp),
    ),
    "vespo": (m.vespo(), trl_vespo),
    "sequence mask": (
        m.grpo_sequence_mask(0.02),
        functools.partial(trl_sequence_mask, most=0.02),
    ),
}


def of(method, tree, over, x, law):
    return rd.field(method, x, tree, over, old=law)


@pytest.mark.parametrize("name", METHODS)
def test_every_field_is_the_gradient_of_the_written_loss(name):
    """Under the law itself and over all groups of two or three, off policy and on it."""
    method, loss = METHODS[name]
    for where, size in (("chance", None), ("forced", 2 + list(METHODS).index(name) % 2)):
        tree, logits, old, log_ref, reward, facts = problem(where)
        over = rd.Population() if size is None else rd.Group(size)
        field = jax.jit(
            lambda x, law, over=over, tree=tree: rd.field(method, x, tree, over, old=law)
        )
        got = [field(logits, law) for law in (rd.problems.StateTable(tree).log_probs(logits), old)]
        for law, x in zip((rd.problems.StateTable(tree).log_probs(logits), old), got, strict=True):
            want = w.expected(loss, size, logits, law, log_ref, reward, *facts)
            assert np.allclose(x, want, rtol=0, atol=1e-12 * (1 + np.abs(want).max()))


def test_masks_cut_on_both_sides_of_the_problems_above():
    """Each of them drops some steps and keeps others, so that the judge above sees both."""
    tree, logits, old, *_ = problem("forced")
    for name, (method, _) in METHODS.items():
        if name in ("dro", "vespo"):
            continue
        free = rd.methods.compose(
            method.advantage, m.surrogate.Clip(0.0, np.inf, np.inf), averaging="token"
        )
        none = rd.field(free, logits, tree, old=old)
        got = rd.field(method, logits, tree, old=old)
        assert not np.allclose(got, none, atol=1e-3)
        assert np.abs(got).max() > 1e-3


def test_one_state_is_the_bandit_bit_for_bit():
    logits, old = jnp.array([0.3, -0.2, 0.1]), rd.log_softmax(jnp.array([0.5, 0.0, -0.3]))
    for over in (rd.Population(), rd.Group(2)):
        for name, (method, _) in METHODS.items():
            one = rd.field(method, logits, BANDIT, over, old=old)
            got = rd.field(method, logits[None], ONE_STATE, over, old=old[None])
            assert np.array_equal(got[0], one), name
