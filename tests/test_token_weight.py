"""Masks and ranks over steps against losses written over padded tokens, over all groups."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

import regdist as rd
from tests import written_tokens as wt
from tests.test_token_advantage import agrees
from tests.test_tokens import BANDIT, ONE_STATE

m = rd.methods


def k3(g):
    return jnp.exp(g.ref - g.lp) - (g.ref - g.lp) - 1


METHODS = {
    "forking tokens, k3": (
        m.forking_tokens(0.4, beta=0.1, estimator="k3", clip_dual=3.0),
        lambda g: g.by_token(0.1 * k3(g) - wt.high_entropy(g, 0.4) * ppo(g)),
    ),
    "forking tokens, counted": (
        m.forking_tokens(0.4, "count", clip_dual=3.0),
        lambda g: -among(g, wt.ranked(g, wt.entropies(g), 0.4), ppo(g)),
    ),
    "clip-cov": (m.clip_cov(0.3, 0.02, 0.6, averaging="token"), wt.clip_cov),
    "kl-cov": (m.kl_cov(0.3, 0.5, averaging="token"), wt.kl_cov),
    "lp-reg": (m.lp_reg(0.7, 0.4, 1.5, averaging="token"), wt.lp_reg),
    "gtpo": (m.gtpo(most=0.9), functools.partial(wt.gtpo, most=0.9)),
    "luspo": (m.luspo(), wt.luspo),
}


def ppo(g):
    return wt.clipped(g, g.z()[:, None], dual=3.0)


def among(g, kept, x):
    """A mean over the tokens that are kept."""
    return (g.w * (kept * x).sum(1)).sum() / (g.w * kept.sum(1)).sum()


@pytest.mark.parametrize("name", METHODS)
def test_every_field_is_the_gradient_of_the_written_loss(name):
    """Under the law itself and over all groups of two or three, on and off policy."""
    method, loss = METHODS[name]
    size = 3 - list(METHODS).index(name) % 2
    for where, expectation in (("chance", rd.Population()), ("forced", rd.Group(size))):
        agrees(method, loss, where, expectation)


def test_one_state_is_the_bandit_bit_for_bit():
    logits, old = jnp.array([0.3, -0.2, 0.1]), rd.log_softmax(jnp.array([0.5, 0.0, -0.3]))
    for name in ("forking tokens, k3", "forking tokens, counted", "gtpo", "luspo"):
        method, over = METHODS[name][0], rd.Group(3)
        one = rd.field(method, logits, BANDIT, over, old=old)
        got = rd.field(method, logits[None], ONE_STATE, over, old=old[None])
        assert np.array_equal(got[0], one), name


def test_in_one_step_they_are_methods_of_one_step():
    """Up to rounding, in groups and off policy."""
    logits, old = jnp.array([0.3, -0.2, 0.1]), rd.log_softmax(jnp.array([0.5, 0.0, -0.3]))
    for method, plain in (
        (m.ppo_gae(0.9, 0.5), m.ppo("unbiased")),
        (m.ppo_gae(whiten="none"), m.ppo()),
        (m.reinforce_to_go(0.9), m.reinforce_plus_plus()),
        (m.reinforce_to_go(whiten="biased"), m.reinforce_plus_plus("biased")),
        (m.forking_tokens(), m.grpo(0.0)),
        (m.forking_tokens(0.5, "count"), m.grpo(0.0)),
        (m.luspo(), m.gspo(eps=1e-4)),
        (m.gtpo(scale=0.0, most=9.0), m.opo()),
        (m.detailed_balance(0.4), m.trajectory_balance(0.4)),
        (m.sub_trajectory_balance(0.4), m.trajectory_balance(0.4)),
    ):
        got, want = (rd.field(x, logits, BANDIT, rd.Group(3), old=old) for x in (method, plain))
        assert np.allclose(got, want, rtol=0, atol=1e-13)
