import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from regdist import logspace


def mp_shift(alpha, s, gap):
    k = 1 - mp.mpf(alpha)
    if k == 0:
        return mp.mpf(s) - mp.mpf(gap)
    base = 1 + k * mp.mpf(gap) * mp.exp(k * mp.mpf(s))
    return mp.mpf(s) - mp.log(base) / k


@pytest.mark.parametrize("alpha", [1.0, 0.0, 1 - 1e-9, 1 + 1e-12, 1e-10, 0.5, -1.0, -3.0])
@pytest.mark.parametrize("s", [0.0, 1e-9, 0.7, 30.0, 700.0])
@pytest.mark.parametrize("gap", [0.0, 1e-12, 0.3, 17.0, 1e6, 1e14])
def test_q_shift_and_its_derivatives_to_the_last_digits(alpha, s, gap):
    if alpha > 1 and gap > 1e10:
        pytest.skip("below the support")
    arguments = jnp.array(alpha), jnp.array(s), jnp.array(gap)
    with mp.workdps(150):
        exact = mp_shift(alpha, s, gap)
        k = 1 - mp.mpf(alpha)
        step = mp.mpf(10) ** -25
        by_alpha = (mp_shift(alpha + step, s, gap) - mp_shift(alpha - step, s, gap)) / (2 * step)
        expected = [by_alpha, mp.exp(k * (exact - s)), -mp.exp(k * exact)]
    value = logspace.q_shift(*arguments)
    scale = max(1.0, abs(float(exact)), s)
    assert abs(float(value) - float(exact)) <= 1e-15 * scale
    for got, want in zip(jax.grad(logspace.q_shift, (0, 1, 2))(*arguments), expected, strict=True):
        want = float(want)
        if abs(want) < 1e200:
            # exp of an exponent of size |k s| loses |k s| ulps
            rounding = 1e-13 + 3e-16 * abs((1 - alpha) * s)
            assert abs(float(got) - want) <= rounding * max(1.0, abs(want), scale**2 * 1e-2)


def test_q_shift_edges():
    # alpha = 2: p/q = 1 + x falls to 0 at gap = e^s; alpha = 0 has its pole at x = 1
    shift = logspace.q_shift
    assert shift(jnp.array(2.0), jnp.array(0.0), jnp.array(1.5)) == -jnp.inf
    assert shift(jnp.array(0.0), jnp.array(0.0), jnp.array(-1.5)) == jnp.inf
    gradient = jax.grad(shift, (0, 1, 2))(jnp.array(2.0), jnp.array(0.0), jnp.array(1.5))
    assert all(np.isfinite(g) for g in gradient)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (0, 0),
        (1e-9, -1e-9),
        (0.3, 0.3),
        (5, 5),
        (-7, 7),
        (40, 0),
        (-300, -300.5),
        (0.9, 1.1),
        (-0.5, 0.6),
        (0, 3),
    ],
)
def test_divided_difference_against_mpmath(x, y):
    def exact(x, y):
        # exp[0, x, y] as the integral over the simplex that the divided difference is
        return mp.quad(lambda t: mp.quad(lambda u: mp.exp(x * t + y * u), [0, 1 - t]), [0, 1])

    top, g = logspace.exp_divided_difference(jnp.array(float(x)), jnp.array(float(y)))
    with mp.workdps(30):
        want = exact(mp.mpf(x), mp.mpf(y)) * mp.exp(-mp.mpf(float(top)))
    assert abs(float(g) - float(want)) <= 4e-15 * float(want)


def test_divided_difference_has_no_seam():
    """Second derivatives at ties and across the change of formula match differences."""

    def f(x, y):
        top, g = logspace.exp_divided_difference(x, y)
        return jnp.exp(top) * g

    for x, y in jnp.array(
        [(2.0, 2.0), (0.0, 0.0), (1.0, 0.0), (0.5, -0.5), (-2.0, -2.0), (3.0, 0.0)]
    ):
        h = 1e-4
        second = (f(x + h, y) - 2 * f(x, y) + f(x - h, y)) / h**2
        got = jax.grad(jax.grad(f))(x, y)
        assert abs(got - second) < 1e-6 * max(1.0, float(jnp.exp(abs(x))))


@pytest.mark.parametrize("scale", [1e-14, 1e-8, 1e-3, 1.0, 300.0])
def test_log_mean_exp_is_relatively_exact(scale):
    q = np.array([0.2, 0.5, 0.3])
    r = scale * np.array([-1.0, 0.4, 0.9])
    with mp.workdps(50):
        q_exact = [mp.mpf(x) for x in q]
        total = mp.fsum(q_exact)
        exact = mp.log(
            mp.fsum(a / total * mp.exp(mp.mpf(b)) for a, b in zip(q_exact, r, strict=True))
        )
    got = logspace.log_mean_exp(jnp.log(jnp.asarray(q)), jnp.asarray(r))
    assert abs(float(got) - float(exact)) <= 1e-15 * scale


def test_zero_probability_in_value_and_gradient():
    log_p = jnp.array([-jnp.inf, jnp.log(0.5), jnp.log(0.5)])
    x = jnp.array([-jnp.inf, 1.0, 2.0])
    assert logspace.expect(log_p, x) == 1.5
    for g in jax.grad(logspace.expect, (0, 1))(log_p, x):
        assert np.all(np.isfinite(g))
    ratio = logspace.log_ratio(
        jnp.array([-jnp.inf, 0.0, -jnp.inf]), jnp.array([0.0, -jnp.inf, -jnp.inf])
    )
    assert ratio.tolist() == [-np.inf, np.inf, -np.inf]
    jacobian = jax.jacobian(logspace.log_ratio)(log_p, log_p)
    assert np.all(np.isfinite(jacobian))
