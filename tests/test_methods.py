import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import regdist as rd
from tests.strategies import REGULARIZERS, bandits, betas

every_regularizer = pytest.mark.parametrize("name", REGULARIZERS)
field = jax.jit(rd.field)


@jax.jit
def gradients_and_fields(z, bandit, regularizer):
    """By autodiff of the objective: in the logits, and by the inverse Fisher matrix of p.

    And the fields of the two methods: one program for a kind of regularizer.
    """

    def j(z):
        return rd.objective(rd.log_softmax(z), bandit, regularizer)

    plain = jax.grad(j)(z)
    p = jnp.exp(rd.log_softmax(z))
    fisher = jnp.diag(p) - jnp.outer(p, p)
    natural = jnp.linalg.pinv(fisher, rtol=1e-12) @ plain
    makes = rd.methods.policy_gradient, rd.methods.natural_policy_gradient
    fields = [rd.field(make(regularizer), z, bandit) for make in makes]
    return (plain, natural - p @ natural), fields


@every_regularizer
@given(bandit=bandits(sizes=(5,)), beta=betas(), key=st.integers(0, 10**6))
def test_fields_are_the_gradients_of_the_objective(name, bandit, beta, key):
    regularizer = REGULARIZERS[name].make(beta)
    z = jnp.asarray(np.random.default_rng(key).normal(size=5))
    (plain, natural), got = gradients_and_fields(z, bandit, regularizer)
    scale = 1 + float(jnp.abs(natural).max())
    assert np.allclose(got[0], plain, rtol=0, atol=1e-13 * scale)
    assert np.allclose(got[1], natural, rtol=0, atol=1e-9 * scale)


def test_logit_fields_by_hand():
    """p (w - E w) with w = R - b log p/q, and p (R - E R) + b (q - p)."""
    bandit = rd.bandit([1.0, 0.0, 0.5], [0.2, 0.5, 0.3])
    z = jnp.array([0.3, -0.2, 0.1])
    p, q, b = jax.nn.softmax(z), jnp.exp(bandit.log_ref), 0.4
    w = bandit.reward - b * jnp.log(p / q)
    reverse = rd.field(rd.methods.policy_gradient(rd.ReverseKL(b)), z, bandit)
    assert np.allclose(reverse, p * (w - p @ w), atol=1e-15)
    forward = rd.field(rd.methods.policy_gradient(rd.ForwardKL(b)), z, bandit)
    want = p * (bandit.reward - p @ bandit.reward) + b * (q - p)
    assert np.allclose(forward, want, atol=1e-15)
    plain = rd.field(rd.methods.policy_gradient(), z, bandit, rd.Population())
    assert np.allclose(plain, p * (bandit.reward - p @ bandit.reward), atol=1e-15)


@given(bandit=bandits(sizes=(5,)), beta=betas(-1, 1), eta=st.floats(0.01, 0.99))
def test_natural_gradient_contracts_exactly(bandit, beta, eta):
    """The log-ratio to the target shrinks by 1 - eta beta a step (2007.06558), all of it."""
    step = eta / beta
    aim = rd.target(bandit, rd.ReverseKL(beta)).log_probs
    method = rd.methods.natural_policy_gradient(rd.ReverseKL(beta))
    z = bandit.log_ref
    for _ in range(3):
        before = rd.log_softmax(z) - aim
        z = z + step * field(method, z, bandit)
        after = rd.log_softmax(z) - aim
        centered = [x - x[0] for x in (before, after)]  # log-odds: no normaliser
        size = 1 + float(jnp.abs(aim).max() + jnp.abs(z).max())
        assert np.allclose(centered[1], (1 - eta) * centered[0], rtol=0, atol=1e-14 * size)


def test_one_natural_step_arrives():
    """eta = 1/beta; and T steps of size lr without regulariser are the target at 1/(lr T)."""
    bandit = rd.bandit([1.0, 0.0, 0.5], [0.2, 0.5, 0.3])
    aim = rd.target(bandit, rd.ReverseKL(0.2)).log_probs
    method = rd.methods.natural_policy_gradient(rd.ReverseKL(0.2))
    path = rd.run(method, bandit, 1, optax.sgd(5.0), record_every=1)
    assert np.allclose(path.log_probs[-1], aim, atol=1e-14)
    hedge = rd.run(
        rd.methods.natural_policy_gradient(), bandit, 50, optax.sgd(0.1), record_every=50
    )
    assert np.allclose(hedge.log_probs[-1], aim, atol=1e-13)


def test_zero_mass_stays_zero():
    bandit = rd.bandit([1.0, 5.0, 0.0], [0.5, 0.0, 0.5])
    for make in (rd.methods.policy_gradient, rd.methods.natural_policy_gradient):
        for regularizer in (None, rd.ReverseKL(0.1), rd.ForwardKL(0.1), rd.Entropy(0.1)):
            path = rd.run(make(regularizer), bandit, 20, record_every=10)
            assert np.all(np.exp(path.log_probs[:, 1]) == 0)
            assert not np.any(np.isnan(path.log_probs))
            assert path.nonfinite == -1


def test_unregularised_gradient_flow_conserves_and_collapses():
    """exp(-z_i) - exp(-z_j) is conserved between correct actions: one of them wins."""
    bandit = rd.bandit([1.0, 1.0, 0.0], [0.3, 0.25, 0.45])
    path = rd.run(
        rd.methods.policy_gradient(), bandit, 40_000, optax.sgd(0.01), record_every=40_000
    )
    start, end = path.log_probs[0], path.log_probs[-1]
    # the flow keeps sum z as well, which fixes the logits from the probabilities
    logits = [x - jnp.mean(x) for x in (start, end)]
    kept = [jnp.exp(-z[0]) - jnp.exp(-z[1]) for z in logits]
    assert np.isclose(kept[0], kept[1], rtol=2e-2)  # Euler steps of 0.01
    assert rd.log_odds(end, 0, 1) > rd.log_odds(start, 0, 1) + 0.5


def test_a_wrong_expectation_is_refused():
    bandit = rd.bandit([1.0, 0.0])
    with pytest.raises(Exception, match=r"expectation"):
        rd.field(rd.methods.policy_gradient(), bandit.log_ref, bandit, "population")
