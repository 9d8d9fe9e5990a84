import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

import regdist as rd
from regdist import metrics
from tests.problems import laws

LAWS = [*laws(6, 1), jnp.log(jnp.array([0.5, 0.25, 0.25, 0.0, 0.0, 0.0]))]


@pytest.mark.parametrize("log_p", LAWS)
def test_entropy_and_divergences_against_scipy(log_p):
    p = np.exp(log_p)
    assert np.isclose(metrics.entropy(log_p), scipy.stats.entropy(p), rtol=1e-13)
    for log_q in LAWS:
        q = np.exp(log_q)
        assert np.isclose(
            metrics.kl(log_p, log_q), scipy.stats.entropy(p, q), rtol=1e-11, atol=1e-15
        )
        assert np.isclose(
            metrics.total_variation(log_p, log_q), np.abs(p - q).sum() / 2, rtol=1e-14
        )


@pytest.mark.parametrize("log_p", LAWS)
@pytest.mark.parametrize(
    "order", [0.0, 0.5, 1.0, 1 + 1e-12, 1 - 1e-7, 1.5, 2.0, 7.0, 300.0, np.inf]
)
def test_hill_numbers_against_their_definition(log_p, order):
    p = np.exp(np.asarray(log_p)).astype(np.longdouble)
    p = p[p > 0]
    if order == np.inf:
        want = 1 / p.max()
    elif abs(order - 1) < 1e-6:
        h = -(p * np.log(p)).sum()
        want = np.exp(h - (order - 1) / 2 * ((p * np.log(p) ** 2).sum() - h**2))
    else:
        want = (p**order).sum() ** (1 / (1 - np.longdouble(order)))
    assert np.isclose(metrics.hill_number(log_p, order), float(want), rtol=1e-12)


def test_hill_numbers_by_hand_and_their_derivative_at_one():
    log_p = jnp.log(jnp.array([0.5, 0.25, 0.25, 0.0]))
    assert np.isclose(metrics.hill_number(log_p, 0), 3)
    assert np.isclose(metrics.hill_number(log_p, 1), 2**1.5)
    assert np.isclose(metrics.hill_number(log_p, 2), 1 / (1 / 4 + 2 / 16))
    assert np.isclose(metrics.hill_number(log_p, jnp.inf), 2)
    # d log D / d order at 1 is minus half the variance of log p
    slope = jax.grad(lambda n: jnp.log(metrics.hill_number(log_p, n)))(1.0)
    assert np.isclose(slope, -np.var([np.log(2), np.log(2), np.log(4), np.log(4)]) / 2, rtol=1e-12)


@given(chance=st.floats(0, 1), k=st.integers(1, 200))
def test_pass_at_k(chance, k):
    assert np.isclose(metrics.pass_at_k(chance, k), scipy.stats.binom.sf(0, k, chance), rtol=1e-9)


def test_pass_at_k_of_a_rare_success_is_relatively_exact():
    assert np.isclose(metrics.pass_at_k(1e-18, 8), 8e-18, rtol=1e-14)
    assert metrics.pass_at_k(1, 0) == 0
    assert metrics.pass_at_k(1.0, 3) == 1
    assert np.isfinite(jax.grad(lambda p: metrics.pass_at_k(p, 3))(jnp.array(1.0)))


def test_labels():
    log_p = jnp.log(jnp.array([0.2, 0.3, 0.1, 0.4, 0.0]))
    label = jnp.array([0, 2, 0, 2, 4])
    mass = jnp.exp(metrics.label_log_probs(log_p, label))
    assert np.allclose(mass, [0.3, 0, 0.7, 0, 0], rtol=1e-14)
    assert np.isclose(metrics.effective_labels(log_p, label, order=2), 1 / (0.09 + 0.49))
    keep = jnp.array([True, True, False, False, True])
    assert np.isclose(metrics.effective_labels(log_p, label, keep, 2), 1 / (0.16 + 0.36))
    deep = metrics.label_log_probs(jnp.array([-800.0, -801.0, 0.0]), jnp.array([0, 0, 1]))
    assert np.isclose(deep[0], np.logaddexp(-800, -801))
    gradient = jax.grad(lambda x: metrics.label_log_probs(x, label)[0])(log_p)
    assert np.allclose(gradient, [2 / 3, 0, 1 / 3, 0, 0])


def test_log_odds_error():
    p, q = jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.log(jnp.array([0.4, 0.4, 0.2]))
    pairs = [abs(rd.log_odds(p, i, j) - rd.log_odds(q, i, j)) for i in range(3) for j in range(3)]
    assert np.isclose(metrics.log_odds_error(p, q), max(pairs), rtol=1e-14)
    lost = jnp.log(jnp.array([0.5, 0.5, 0.0]))
    assert metrics.log_odds_error(lost, q) == jnp.inf
    assert np.isfinite(metrics.log_odds_error(q, lost))


def test_defined_at_zero_in_value_and_gradient():
    log_p, log_q = jnp.log(jnp.array([1.0, 0.0, 0.0])), jnp.log(jnp.array([0.5, 0.5, 0.0]))
    functions = [
        metrics.entropy,
        lambda x: metrics.hill_number(x, 0.5),
        lambda x: metrics.kl(x, log_q),
        lambda x: metrics.kl(log_p, x),
        lambda x: metrics.total_variation(x, log_q),
        lambda x: metrics.expected_reward(x, jnp.array([1.0, 2.0, -jnp.inf])),
        lambda x: metrics.effective_labels(x, jnp.array([0, 1, 1])),
    ]
    for f in functions:
        value, slope = jax.value_and_grad(f)(log_p)
        assert np.isfinite(value)
        assert np.all(np.isfinite(slope))
    assert metrics.kl(log_q, log_p) == jnp.inf


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_kl_is_never_negative(dtype):
    random = np.random.default_rng(0)
    for scale in (1e-1, 1e-3, 1e-7, 1e-12):
        z = random.normal(size=50)
        p, q = (
            jax.nn.log_softmax(jnp.asarray(x, dtype))
            for x in (z, z + scale * random.normal(size=50))
        )
        value = metrics.kl(p, q)
        assert value.dtype == dtype
        assert value >= 0
