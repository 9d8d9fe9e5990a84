import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regdist.regularizers.divergence import KL, Alpha
from tests import judge
from tests.strategies import laws

ALPHAS = [1.0, 0.0, 0.5, 2.0, -1.0, 3.0, 1 - 1e-8, 1e-8, 1 + 1e-8, 0.999]


def alpha(x):
    return Alpha(jnp.array(x))


def test_directions_by_hand():
    """p = (1/2, 1/2), q = (1/4, 3/4): every value worked out on paper."""
    log_p, log_q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
    reverse = 0.5 * np.log(2) + 0.5 * np.log(2 / 3)  # sum p log p/q
    forward = 0.25 * np.log(1 / 2) + 0.75 * np.log(3 / 2)  # sum q log q/p
    pearson = (1 / 16) / (1 / 4) + (1 / 16) / (3 / 4)  # sum (p - q)^2 / q = 1/3
    neyman = (1 / 16) / (1 / 2) * 2  # sum (p - q)^2 / p = 1/4
    hellinger = 1 - (np.sqrt(1 / 8) + np.sqrt(3 / 8))
    assert np.isclose(KL().value(log_p, log_q), reverse, rtol=1e-14)
    assert np.isclose(alpha(1.0).value(log_p, log_q), reverse, rtol=1e-14)
    assert np.isclose(alpha(0.0).value(log_p, log_q), forward, rtol=1e-14)
    assert np.isclose(alpha(2.0).value(log_p, log_q), pearson / 2, rtol=1e-14)
    assert np.isclose(alpha(-1.0).value(log_p, log_q), neyman / 2, rtol=1e-14)
    assert np.isclose(alpha(0.5).value(log_p, log_q), 4 * hellinger, rtol=1e-14)
    assert not np.isclose(reverse, forward, rtol=1e-2)


@pytest.mark.parametrize("a", ALPHAS)
def test_value_against_the_definition_at_50_digits(a):
    for log_p, log_q in zip(laws(5, 1), laws(5, 2), strict=True):
        log_p, log_q = (x - jax.nn.logsumexp(x) for x in (log_p, log_q))
        exact = float(judge.divergence(log_p.tolist(), log_q.tolist(), a))
        assert abs(float(alpha(a).value(log_p, log_q)) - exact) <= 4e-14 * abs(exact)


@pytest.mark.parametrize("a", ALPHAS)
def test_relative_accuracy_where_p_is_near_q(a):
    log_q = laws(5, 3)[1]
    log_p = log_q + 1e-9 * jnp.array([1.0, -2.0, 0.5, 3.0, 1.0])
    exact = float(judge.divergence(log_p.tolist(), log_q.tolist(), a))
    got = float(alpha(a).value(log_p, log_q))
    assert got > 0
    assert abs(got - exact) <= 1e-6 * exact  # the inputs differ by 1e-9 with an ulp of 2e-16


@pytest.mark.parametrize("a", [*ALPHAS, None])
def test_slope_inverse_shift_and_term_agree(a):
    """slope is f', log_inverse undoes it, shift is their composition, term is q f."""
    d = KL() if a is None else alpha(a)
    r = jnp.array([-3.0, -0.2, 0.0, 0.4, 2.5])
    assert np.allclose(d.log_inverse(d.slope(r)), r, rtol=0, atol=1e-12)
    gap = jnp.array([0.0, 1e-3, 0.02, 0.01, 0.05])
    composed = d.log_inverse(d.slope(r) - gap)
    assert np.allclose(jax.vmap(d.shift)(r, gap), composed, rtol=1e-11, atol=1e-12)
    log_q = jnp.log(jnp.array([0.1, 0.2, 0.3, 0.15, 0.25]))
    derivative = jax.vmap(jax.grad(d.term))(log_q + r, log_q)  # d q f(p/q) / d log p = p f'
    assert np.allclose(derivative, jnp.exp(log_q + r) * d.slope(r), rtol=1e-12, atol=1e-15)
    weighted = d.weighted_slope(log_q + r, log_q)
    assert np.allclose(weighted, jnp.exp(log_q + r) * d.slope(r), rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("a", [1.0, 0.0, 0.5, 2.0, -1.0, None])
def test_zero_probabilities(a):
    """0 log 0 = 0; p = 0 < q costs q f(0); q = 0 < p costs p f'(inf); gradients are finite."""
    d = KL() if a is None else alpha(a)
    a = 1.0 if a is None else a
    log = lambda *x: jnp.log(jnp.array(x))  # noqa: E731
    both = d.value(log(0.5, 0.5, 0.0), log(0.5, 0.5, 0.0))
    assert both == 0
    p_zero = d.value(log(1.0, 0.0), log(0.5, 0.5))
    f_at_2 = (
        2 * np.log(2) - 1
        if a == 1
        else 1 - np.log(2)
        if a == 0
        else ((2**a - 2 * a + a - 1) / (a * (a - 1)))
    )
    want = 0.5 * f_at_2 + (0.5 / a if a > 0 else np.inf)
    assert np.isclose(p_zero, want, rtol=1e-14)
    q_zero = d.value(log(0.5, 0.5), log(1.0, 0.0))
    assert np.isinf(q_zero) if a >= 1 else np.isfinite(q_zero)
    for p, q in [((1.0, 0.0), (0.5, 0.5)), ((0.5, 0.5), (1.0, 0.0)), ((0.0, 1.0), (0.0, 1.0))]:
        for g in jax.grad(d.value, (0, 1))(log(*p), log(*q)):
            assert not np.any(np.isnan(g))


def test_no_overflow_far_from_the_anchor():
    log_q = jnp.array([-700.0, jnp.log1p(-jnp.exp(-700.0))])
    log_p = jnp.array([0.0, -700.0])
    assert np.isclose(KL().value(log_p, log_q), 700.0)
    assert np.isclose(alpha(0.0).value(log_p, log_q), 700.0)
    assert np.all(np.isfinite(alpha(0.0).weighted_slope(log_p, log_q)))
