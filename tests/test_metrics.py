import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

import regdist as rd
from regdist import metrics
from tests.strategies import laws

LAWS = [*laws(6, 1), jnp.log(jnp.array([0.5, 0.25, 0.25, 0.0, 0.0, 0.0]))]
hill_number = jax.jit(metrics.hill_number)
hill_slope = jax.jit(jax.grad(metrics.hill_number))
vendi_score = jax.jit(jax.value_and_grad(metrics.vendi_score))


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
    assert np.isclose(hill_number(log_p, order), float(want), rtol=1e-12)


def test_hill_numbers_by_hand_and_their_derivative_at_one():
    log_p = jnp.log(jnp.array([0.5, 0.25, 0.25, 0.0]))
    assert np.isclose(metrics.hill_number(log_p, 0), 3)
    assert np.isclose(metrics.hill_number(log_p, 1), 2**1.5)
    assert np.isclose(metrics.hill_number(log_p, 2), 1 / (1 / 4 + 2 / 16))
    assert np.isclose(metrics.hill_number(log_p, jnp.inf), 2)
    # d log D / d order at 1 is minus half the variance of log p
    slope = jax.jit(jax.grad(lambda n: jnp.log(metrics.hill_number(log_p, n))))(1.0)
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
    gradient = jax.jit(jax.grad(lambda x: metrics.label_log_probs(x, label)[0]))(log_p)
    assert np.allclose(gradient, [2 / 3, 0, 1 / 3, 0, 0])


def test_log_odds_error():
    p, q = jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.log(jnp.array([0.4, 0.4, 0.2]))
    pairs = [abs(rd.log_odds(p, i, j) - rd.log_odds(q, i, j)) for i in range(3) for j in range(3)]
    assert np.isclose(metrics.log_odds_error(p, q), max(pairs), rtol=1e-14)
    lost = jnp.log(jnp.array([0.5, 0.5, 0.0]))
    assert metrics.log_odds_error(lost, q) == jnp.inf
    assert np.isfinite(metrics.log_odds_error(q, lost))


# Worked out on paper: p = (1/2, 1/2, 0), q = (1/4, 1/2, 1/4), r = (1/2, 1/4, 1/4).
_laws = {"p": [0.5, 0.5, 0.0], "q": [0.25, 0.5, 0.25], "r": [0.5, 0.25, 0.25]}
LOG2 = np.log(2)
BY_HAND = [
    ("kl", "pq", (), LOG2 / 2),
    ("kl", "qr", (), LOG2 / 4),
    ("kl", "qp", (), np.inf),
    ("alpha_divergence", "rq", (0,), LOG2 / 4),  # is KL(q || r)
    ("renyi_divergence", "pq", (2,), np.log(3 / 2)),  # 1/4 / (1/4) + 1/4 / (1/2)
    ("renyi_divergence", "pq", (0,), -np.log(3 / 4)),  # -log q(p > 0)
    ("renyi_divergence", "qp", (0,), 0),
    ("renyi_divergence", "pq", (np.inf,), LOG2),
    ("renyi_divergence", "qp", (1,), np.inf),
    ("chi_squared", "pq", (), 1 / 2),  # 1/16 / (1/4) twice
    ("chi_squared", "qr", (), 3 / 8),  # 1/16 / (1/2) + 1/16 / (1/4)
    ("chi_squared", "qp", (), np.inf),
    ("hellinger", "pq", (), np.sqrt(1 / 2 - np.sqrt(1 / 8))),
    ("total_variation", "pq", (), 1 / 4),
    ("js", "pq", (), 3 / 4 * LOG2 - 3 / 8 * np.log(3)),  # m = (3/8, 1/2, 1/8)
    ("effective_sample_size", "pq", (), 2 / 3),
    ("effective_sample_size", "qp", (), 0),
    ("concentrability", "pq", (), 2),
    ("concentrability", "qp", (), np.inf),
    ("squared_score_norm", "r", (), 5 / 8),
    ("tsallis_entropy", "p", (0,), 1),
    ("tsallis_entropy", "r", (0.5,), np.sqrt(2)),
    ("renyi_entropy", "r", (2,), np.log(8 / 3)),
    ("renyi_entropy", "r", (np.inf,), LOG2),
]


@pytest.mark.parametrize(("name", "arguments", "numbers", "want"), BY_HAND)
def test_by_hand(name, arguments, numbers, want):
    logs = [jnp.log(jnp.array(_laws[x])) for x in arguments]
    assert np.isclose(getattr(metrics, name)(*logs, *numbers), want, rtol=1e-14)


def test_baselines_by_hand():
    """|S|^2 = 1 - 2 r + 3/8 = (3/8, 7/8, 7/8) and r^2/q = (1, 1/8, 1/4)."""
    log_q, log_r = jnp.log(jnp.array(_laws["q"])), jnp.log(jnp.array(_laws["r"]))
    reward = jnp.array([1.0, 0.0, 0.0])
    assert np.isclose(metrics.optimal_baseline(log_r, reward), 6 / (6 + 7 + 7), rtol=1e-14)
    off_policy = metrics.optimal_baseline(log_r, reward, log_q)
    assert np.isclose(off_policy, 3 / (3 + 7 / 8 + 7 / 4), rtol=1e-14)
    sure = jnp.array([0.0, -jnp.inf])
    assert metrics.optimal_baseline(sure, jnp.array([4.0, 9.0])) == 4


def test_support_change_counts_and_weighs():
    log_p, log_q = jnp.log(jnp.array(_laws["p"])), jnp.log(jnp.array(_laws["q"]))
    for floor, want in [(0, (2, 1, 0, 0.25, 0)), (0.3, (1, 0, 1, 0, 0.5)), (0.6, (0,) * 5)]:
        assert np.allclose(metrics.support_change(log_p, log_q, floor), want, rtol=1e-15)
    assert jnp.issubdtype(metrics.support_change(log_p, log_q).kept.dtype, jnp.integer)


def test_almost_certain_laws_are_relatively_exact():
    """p = (1 - e, e) with e = 1e-20, and a second rare action."""
    e = 1e-20
    log_p = jnp.array([-2 * e, jnp.log(e), jnp.log(e)])
    rare = -2 * e * np.log(e)
    assert np.isclose(metrics.squared_score_norm(log_p), 4 * e, rtol=1e-14)
    assert np.isclose(metrics.tsallis_entropy(log_p, 3), 2 * e, rtol=1e-14)
    assert np.isclose(metrics.renyi_entropy(log_p, 2), 4 * e, rtol=1e-14)
    paths = jnp.array([[0, 0], [0, 1], [1, 0]])
    want = [rare / 2 + e, rare / 2 + e]
    assert np.allclose(metrics.token_entropies(log_p, paths), want, rtol=1e-14)
    # |S|^2 is (6 e^2, 2, 2); a uniform behaviour weighs it by (1, e^2, e^2)
    uniform = jnp.full(3, -jnp.log(3.0))
    baseline = metrics.optimal_baseline(log_p, jnp.array([1.0, 0.0, 0.0]), uniform)
    assert np.isclose(baseline, 6 / (6 + 2 + 2), rtol=1e-14)


def test_an_action_below_the_smallest_number_is_in_the_support():
    log_p = jnp.array([0.0, -900.0])
    assert np.isclose(metrics.hill_number(log_p, 0), 2)
    assert np.isclose(metrics.hill_number(log_p, 0.001), 1 + np.exp(-0.9), rtol=1e-3)


ORDERS = [0.0, 1e-12, 0.3, 0.999, 1 - 1e-9, 1 + 1e-12, 1.5, 30.0, 1e4]


def test_orders_through_1_have_no_seam():
    """Against 60 digits; at order 1 itself the derivatives are variances."""
    log_p, log_q = LAWS[0], LAWS[1]
    with mp.workdps(60):
        p, q = ([mp.exp(mp.mpf(float(x))) for x in law] for law in (log_p, log_q))
        p, q = ([x / mp.fsum(law) for x in law] for law in (p, q))
        renyi, tsallis = [], []
        for n in map(mp.mpf, ORDERS):
            powers = mp.fsum(x**n * y ** (1 - n) for x, y in zip(p, q, strict=True))
            renyi.append(mp.log(powers) / (n - 1))
            tsallis.append((1 - mp.fsum(x**n for x in p)) / (n - 1))
    orders = jnp.array(ORDERS)
    got = jax.jit(jax.vmap(lambda n: metrics.renyi_divergence(log_p, log_q, n)))(orders)
    assert np.allclose(got[1:], np.array(renyi, float)[1:], rtol=1e-14, atol=0)
    assert got[0] == 0
    got = jax.jit(jax.vmap(lambda n: metrics.tsallis_entropy(log_p, n)))(orders)
    assert np.allclose(got, np.array(tsallis, float), rtol=1e-14, atol=0)
    r = log_p - log_q
    variance = metrics.expected_reward(log_p, r**2) - metrics.kl(log_p, log_q) ** 2
    slope = jax.jit(jax.grad(lambda n: metrics.renyi_divergence(log_p, log_q, n)))(1.0)
    assert np.isclose(slope, variance / 2, rtol=1e-12)
    slope = jax.jit(jax.grad(lambda n: metrics.tsallis_entropy(log_p, n)))(1.0)
    assert np.isclose(slope, -metrics.expected_reward(log_p, log_p**2) / 2, rtol=1e-13)


@pytest.mark.parametrize(("n", "c", "k"), [(10**6, 3, 1000), (10**6, 7 * 10**5, 4), (300, 30, 299)])
def test_unbiased_pass_at_k_of_many_samples(n, c, k):
    want = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
    assert np.isclose(metrics.pass_at_k_unbiased(n, c, k), float(want), rtol=1e-14, atol=0)


def test_unbiased_pass_at_k_is_unbiased_and_undefined_beyond_the_samples():
    c, k = np.arange(9), np.arange(9)[:, None]
    estimate = metrics.pass_at_k_unbiased(8, c, k)
    mean = estimate @ scipy.stats.binom.pmf(c, 8, 0.3)
    assert np.allclose(mean, metrics.pass_at_k(0.3, k[:, 0]), rtol=1e-13)
    assert np.isnan(metrics.pass_at_k_unbiased(3, 1, 4))


def test_groups_that_teach_nothing():
    f = metrics.zero_advantage_probability
    assert np.isclose(f(0.5, 100), 2.0**-99, rtol=1e-14)
    assert np.isclose(f(1e-18, 10**17), np.exp(-0.1), rtol=1e-14)
    for size, slope in [(1, 0.0), (2, 2.0), (5, 5.0)]:
        gradient = jax.grad(f)
        assert gradient(jnp.array(1.0), size) == slope
        assert gradient(jnp.array(0.0), size) == -slope


@pytest.mark.parametrize(("k", "slope"), [(1, 1.0), (3, 0.0)])
def test_pass_at_k_of_a_sure_success_has_its_derivative(k, slope):
    assert jax.grad(metrics.pass_at_k)(jnp.array(1.0), k) == slope


@pytest.mark.parametrize("order", [0.0, 0.5, 1.0, 2.0, np.inf])
def test_vendi_score_between_nothing_and_everything_alike(order):
    log_p = LAWS[1]
    value, slope = vendi_score(log_p, jnp.eye(6), order)
    assert np.isclose(value, hill_number(log_p, order), rtol=1e-13)
    p = np.exp(log_p)
    want = hill_slope(log_p, order)
    assert np.allclose(slope - p * slope.sum(), want - p * want.sum(), rtol=1e-11, atol=1e-13)
    # repeated eigenvalues, and eigenvalues that are 0
    value, slope = vendi_score(jnp.full(6, -jnp.log(6.0)), jnp.eye(6), order)
    assert np.isclose(value, 6, rtol=1e-14)
    assert np.all(np.isfinite(slope))
    value, slope = vendi_score(log_p, jnp.ones((6, 6)), order)
    assert np.isclose(value, 1, rtol=1e-13)
    assert np.all(np.isfinite(slope))


def test_hypervolume_by_hand_and_its_gradient():
    """Two steps of a staircase and a point under it: 2 x 1 + 1 x 3 - 1 x 1 above (0, 0)."""
    points = jnp.array([[2.0, 1.0], [1.0, 3.0], [0.5, 0.5], [3.0, -1.0]])
    value, slope = jax.value_and_grad(metrics.hypervolume)(points, jnp.zeros(2))
    assert value == 4
    assert slope.tolist() == [[1, 1], [2, 1], [0, 0], [0, 0]]


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
