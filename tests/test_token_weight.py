"""Masks and ranks over steps against losses written over padded tokens, over all groups."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

import regdist as rd
from tests import written_tokens as wt
from tests.test_token_advantage import PPO, STANDARD, agrees
from tests.test_tokens import BANDIT, ONE_STATE

m, ta, tw = rd.methods, rd.methods.token_advantage, rd.methods.token_weight
RATIO = m.surrogate.Clip(0.0, jnp.inf, jnp.inf)
CENTRED = m.advantage.GroupRelative(0.0, "mean", singleton="formula")


def k3(g):
    return jnp.exp(g.ref - g.lp) - (g.ref - g.lp) - 1


def top(share, form="quantile"):
    return {**PPO, "averaging": "token", "weights": tw.TopEntropy(share, form)}


METHODS = {
    "top entropy, k3": (
        m.compose(STANDARD, **top(0.4), beta=0.1),
        lambda g: g.by_token(
            0.1 * k3(g) - wt.high_entropy(g, 0.4) * wt.clipped(g, g.z()[:, None], dual=3.0)
        ),
    ),
    "top entropy, counted": (
        m.compose(STANDARD, **top(0.4, "count")),
        lambda g: (
            -over(g, wt.ranked(g, wt.entropies(g), 0.4), wt.clipped(g, g.z()[:, None], dual=3.0))
        ),
    ),
    "clip-cov": (
        m.compose(
            STANDARD, **PPO, averaging="token", weights=m.weight.ClipCov(0.3, 0.02, 0.6, 0.8, 1.2)
        ),
        wt.clip_cov,
    ),
    "kl-cov": (
        m.compose(STANDARD, RATIO, averaging="token", penalties=m.penalty.KLCov(0.5, 0.3)),
        wt.kl_cov,
    ),
    "lp-reg": (
        m.compose(
            STANDARD,
            m.surrogate.LpReg(m.surrogate.Clip(0.0, 10.0, jnp.inf), 1.5, 0.7, 0.4),
            averaging="token",
        ),
        wt.lp_reg,
    ),
    "gtpo": (
        m.compose(ta.ConflictAware(CENTRED, 2.0, 0.1, 0.9), averaging="sequence"),
        functools.partial(wt.gtpo, most=0.9),
    ),
}


def over(g, kept, x):
    """A mean over the tokens that are kept."""
    return (g.w * (kept * x).sum(1)).sum() / (g.w * kept.sum(1)).sum()


@pytest.mark.parametrize("name", METHODS)
def test_every_field_is_the_gradient_of_the_written_loss(name):
    """Under the law itself and over all groups of two or three, on and off policy."""
    method, loss = METHODS[name]
    size = 3 - list(METHODS).index(name) % 2
    for where, expectation in (("chance", rd.Population()), ("forced", rd.Group(size))):
        agrees(method, loss, where, expectation)


@pytest.mark.parametrize("turn", range(2))
def test_one_state_is_the_bandit_bit_for_bit(turn):
    expectation = (rd.Population(), rd.Group(3))[turn]
    logits, old = jnp.array([0.3, -0.2, 0.1]), rd.log_softmax(jnp.array([0.5, 0.0, -0.3]))
    for name in ("top entropy, k3", "top entropy, counted", "gtpo"):
        method = METHODS[name][0]
        one = rd.field(method, logits, BANDIT, expectation, old=old)
        got = rd.field(method, logits[None], ONE_STATE, expectation, old=old[None])
        assert np.array_equal(got[0], one), name
