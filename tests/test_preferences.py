import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given
from hypothesis import strategies as st

import regdist as rd
from regdist import preferences as pref
from tests.strategies import betas

Q = jnp.log(jnp.array([0.4, 0.1, 0.2, 0.3]))
W = jnp.log(jnp.array([0.5, 0.2, 0.2, 0.1]))
LOSERS = jnp.log(jnp.array([0.1, 0.4, 0.3, 0.2]))
REWARD = jnp.array([1.0, 0.0, -0.5, 0.3])


def dpo_loss(z, pairs, beta):
    """The loss as DPO states it, on logits (2305.18290, eq. 7)."""
    margin = beta * (rd.log_softmax(z) - Q)
    return -jnp.sum(pairs * jax.nn.log_sigmoid(margin[:, None] - margin[None, :]))


def ipo_loss(z, pairs, beta):
    margin = rd.log_softmax(z) - Q
    return jnp.sum(pairs * (margin[:, None] - margin[None, :] - 1 / (2 * beta)) ** 2)


def minimum(loss, pairs, beta):
    both = jax.jit(jax.value_and_grad(loss))
    found = scipy.optimize.minimize(
        lambda z: tuple(np.asarray(x) for x in both(jnp.asarray(z), pairs, beta)),
        np.zeros(4),
        jac=True,
        options={"gtol": 1e-12},
    )
    return jax.nn.softmax(jnp.asarray(found.x))


def skewed_pairs(reward):
    """Pairs that no sampler and no preference make."""
    weights = jnp.exp(W)[:, None] * jnp.exp(W) * pref.bradley_terry(reward) ** 0.5
    return weights / jnp.sum(weights)


@pytest.mark.parametrize("beta", [0.3, 2.0])
def test_losses_against_a_generic_optimiser(beta):
    """Closed forms, and the fits to pairs, minimise the losses as the papers state them."""
    pairs = pref.independent_pairs(W, LOSERS)
    want = minimum(dpo_loss, pairs, beta)
    assert np.allclose(np.exp(pref.dpo(Q, W, LOSERS, beta)), want, rtol=0, atol=1e-6)
    fit = pref.dpo_from_pairs(Q, pairs, beta)
    assert fit.converged
    assert np.allclose(fit.log_probs, pref.dpo(Q, W, LOSERS, beta), rtol=1e-10)
    skewed = skewed_pairs(REWARD)
    fit = pref.dpo_from_pairs(Q, skewed, beta)
    assert np.allclose(fit.probs, minimum(dpo_loss, skewed, beta), rtol=0, atol=1e-6)
    for joint in (pairs, skewed):
        fit = pref.ipo(Q, joint, beta)
        assert fit.converged
        assert np.allclose(fit.probs, minimum(ipo_loss, joint, beta), rtol=0, atol=1e-5)


@given(beta=betas(-1, 1), key=st.integers(0, 10**6))
def test_bradley_terry_labels_give_the_tilt(beta, key):
    """q e^{r/b}, whoever is compared."""
    random = np.random.default_rng(key)
    sampler = jnp.log(jnp.asarray(random.dirichlet(np.ones(4))) + 1e-3)
    pairs = pref.preference_pairs(rd.logspace.normalize(sampler), pref.bradley_terry(REWARD))
    fit = pref.dpo_from_pairs(Q, pairs, beta)
    tilt = rd.target(rd.bandit(REWARD, log_reference=Q), rd.ReverseKL(beta))
    assert fit.converged
    assert np.allclose(fit.log_probs, tilt.log_probs, rtol=0, atol=1e-9 * (1 + 1 / beta))
    implicit = pref.implicit_reward(fit.log_probs, Q, beta)
    assert np.allclose(implicit - implicit[0], REWARD - REWARD[0], rtol=0, atol=1e-8)


def test_ipo_of_one_sampler_is_bounded():
    """q e^{P(y beats s)/tau}, with hard labels too (2310.12036)."""
    hard = (REWARD[:, None] > REWARD[None, :]).astype(float) + 0.5 * jnp.eye(4)
    for preference in (hard, pref.bradley_terry(REWARD)):
        fit = pref.ipo(Q, pref.preference_pairs(W, preference), 0.7)
        wins = preference @ jnp.exp(W)
        want = rd.logspace.normalize(Q + wins / 0.7)
        assert np.allclose(fit.log_probs, want, rtol=1e-12)


def test_hard_labels_make_dpo_diverge():
    hard = (REWARD[:, None] > REWARD[None, :]).astype(float) + 0.5 * jnp.eye(4)
    fit = pref.dpo_from_pairs(Q, pref.preference_pairs(W, hard), 0.5)
    assert not fit.converged
    assert float(jnp.ptp(fit.margin)) > 20
    # what never loses takes all
    sure = pref.dpo(Q, W, jnp.log(jnp.array([0.0, 0.5, 0.5, 0.0])), 0.5)
    assert np.allclose(np.exp(sure), [4 / 7, 0, 0, 3 / 7])
    never = pref.dpo(Q, jnp.log(jnp.array([0.0, 0.5, 0.5, 0.0])), LOSERS, 0.5)
    assert np.isneginf(never[0])
    assert np.isneginf(never[3])


@given(beta=betas(-1.5, 1), key=st.integers(0, 10**6))
def test_the_loser_law_makes_a_wanted_target_optimal(beta, key):
    wanted = jnp.log(jnp.asarray(np.random.default_rng(key).dirichlet(np.ones(4))))
    losers = pref.loser_law(wanted, Q, W, beta)
    assert np.isclose(np.exp(losers).sum(), 1)
    assert np.allclose(pref.dpo(Q, W, losers, beta), wanted, rtol=0, atol=1e-9 * (1 + 1 / beta))


def test_derivatives():
    """Through the fit by implicit differentiation, against differences."""

    def law(x, beta):
        return pref.dpo_from_pairs(Q, skewed_pairs(x), beta).log_probs

    h = 1e-5
    for mode in (jax.jacfwd, jax.jacrev):
        got = mode(law)(REWARD, jnp.array(0.5))
        for i in range(4):
            move = h * jnp.eye(4)[i]
            want = (law(REWARD + move, 0.5) - law(REWARD - move, 0.5)) / (2 * h)
            assert np.allclose(got[:, i], want, rtol=0, atol=1e-8)
    zero = jnp.log(jnp.array([0.5, 0.5, 0.0, 0.0]))
    for f in (
        lambda q: jnp.exp(pref.dpo(q, W, LOSERS, 0.5)),
        lambda q: jnp.exp(pref.loser_law(q, Q, W, 0.5)),
        lambda q: jnp.exp(pref.dpo_from_pairs(q, pref.independent_pairs(W, LOSERS), 0.5).log_probs),
    ):
        for mode in (jax.jacfwd, jax.jacrev):
            assert np.all(np.isfinite(mode(f)(zero)))


def test_float32():
    q, w, losers = (x.astype(jnp.float32) for x in (Q, W, LOSERS))
    for fit in (
        pref.dpo_from_pairs(q, pref.independent_pairs(w, losers), 0.5),
        pref.ipo(q, pref.independent_pairs(w, losers), 0.5),
    ):
        assert fit.log_probs.dtype == jnp.float32
        assert fit.converged
    assert np.allclose(pref.dpo(q, w, losers, 0.5), pref.dpo(Q, W, LOSERS, 0.5), rtol=0, atol=1e-5)


def test_tables_that_are_no_preferences_are_refused():
    log_q = jnp.log(jnp.array([0.5, 0.5]))
    with pytest.raises(ValueError, match="for actions 0 and 0 the sum is 2"):
        rd.preferences.preference_pairs(log_q, jnp.ones((2, 2)))
    for fit in (rd.preferences.dpo_from_pairs, rd.preferences.ipo):
        with pytest.raises(ValueError, match="the sum 4"):
            fit(log_q, jnp.ones((2, 2)), 1.0)
