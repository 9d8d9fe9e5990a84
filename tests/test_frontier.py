import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given
from hypothesis import strategies as st

import regdist as rd
from tests.strategies import bandits, betas

BANDIT = rd.bandit([1.0, 0.0, 0.5, 0.9, -1.0], [0.1, 0.5, 0.2, 0.15, 0.05])
COSTS = np.array([[1.0, 0.0, 0.0, 1.0, 0.0], [0.0, 1.0, 2.0, 0.0, 3.0]])


def slsqp(bandit, constraints, regularizer=None):
    """A generic convex optimiser on the simplex."""

    @jax.jit
    @jax.value_and_grad
    def loss(p):
        log_p = jnp.log(p)
        cost = 0 if regularizer is None else regularizer.value(log_p, bandit.log_ref)
        return cost - jnp.sum(p * bandit.reward)

    size = bandit.num_actions
    return scipy.optimize.minimize(
        lambda p: tuple(np.asarray(x, float) for x in loss(jnp.asarray(p))),
        np.exp(bandit.log_ref) * 0.9 + 0.1 / size,
        jac=True,
        bounds=[(1e-12, 1)] * size,
        constraints=[{"type": "eq", "fun": lambda p: p.sum() - 1}, *constraints],
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 1000},
    )


# KL ball


def exact_ball(bandit, radius):
    """log p at 50 digits: the tilt whose KL is the radius, by bisection in log(1/b)."""
    with mp.workdps(60):
        r = [mp.mpf(float(x)) for x in bandit.reward]
        log_q = [mp.mpf(float(x)) for x in bandit.log_ref]
        log_z = mp.log(mp.fsum(map(mp.exp, log_q)))
        log_q = [x - log_z for x in log_q]

        def law(v):
            w = [x + mp.exp(v) * (y - max(r)) for x, y in zip(log_q, r, strict=True)]
            z = mp.log(mp.fsum(map(mp.exp, w)))
            return [x - z for x in w]

        def kl(p):
            return mp.fsum(mp.exp(x) * (x - y) for x, y in zip(p, log_q, strict=True))

        low, high = mp.mpf(-60), mp.mpf(60)
        for _ in range(200):
            v = (low + high) / 2
            low, high = (v, high) if kl(law(v)) < mp.mpf(float(radius)) else (low, v)
        return [float(x) for x in law(v)], float(mp.exp(-v))


@pytest.mark.parametrize("share", [1e-12, 1e-6, 0.01, 0.3, 0.9, 0.999])
def test_the_ball_against_50_digits(share):
    for key in range(6):
        random = np.random.default_rng(key)
        log_q = -random.random(5) * random.choice([1, 10, 100])
        reward = random.normal(size=5) * 10.0 ** random.integers(-3, 4)
        bandit = rd.bandit(reward, log_reference=log_q - np.logaddexp.reduce(log_q))
        radius = share * -float(bandit.log_ref[int(jnp.argmax(bandit.reward))])
        ball = rd.kl_ball(bandit, radius)
        log_p, beta = exact_ball(bandit, radius)
        assert np.allclose(ball.probs, np.exp(log_p), rtol=0, atol=1e-11)
        assert np.isclose(ball.multipliers, beta, rtol=1e-4 if share < 1e-9 else 1e-7)
        assert ball.converged


@given(bandit=bandits(sizes=(5,)), share=st.floats(0.02, 0.95))
def test_the_ball_against_a_generic_optimiser(bandit, share):
    ball_size = share * -float(bandit.log_ref[int(jnp.argmax(bandit.reward))])

    def left(p):
        return ball_size - np.sum(p * (np.log(p) - np.asarray(bandit.log_ref)))

    found = slsqp(bandit, [{"type": "ineq", "fun": left}])
    ball = rd.kl_ball(bandit, ball_size)
    scale = 1 + np.ptp(bandit.reward)
    assert -found.fun <= float(ball.value) + 1e-7 * scale
    assert rd.metrics.kl(ball.log_probs, bandit.log_ref) <= ball_size * (1 + 1e-9) + 1e-15
    tilt = rd.target(bandit, rd.ReverseKL(ball.multipliers)) if ball.multipliers > 0 else ball
    assert np.allclose(tilt.probs, ball.probs, rtol=0, atol=1e-9)


def test_the_ball_at_its_ends():
    none = rd.kl_ball(BANDIT, 0)
    assert np.allclose(none.probs, np.exp(BANDIT.log_ref), rtol=1e-15)
    assert none.multipliers == jnp.inf
    for radius in (np.log(10), 3.0, np.inf):
        wide = rd.kl_ball(BANDIT, radius)
        assert np.allclose(wide.probs, [1, 0, 0, 0, 0])
        assert wide.multipliers == 0
        assert wide.converged
    tied = rd.kl_ball(rd.bandit([1.0, 1.0, 0.0], [0.1, 0.3, 0.6]), 5.0)
    assert np.allclose(tied.probs, [0.25, 0.75, 0])
    flat = rd.kl_ball(rd.bandit([1.0, 1.0], [0.3, 0.7]), 0.1)
    assert np.allclose(flat.probs, [0.3, 0.7])
    forbidden = rd.bandit([-np.inf, 1.0, 0.0], [0.5, 0.25, 0.25])
    assert rd.kl_ball(forbidden, 0.8).probs[0] == 0
    with pytest.raises(ValueError, match="leaves out the forbidden"):
        rd.kl_ball(forbidden, 0.1)
    for bad in (-0.1, np.nan):
        with pytest.raises(ValueError, match="radius must be a number >= 0"):
            rd.kl_ball(BANDIT, bad)
    # d value / d radius is the multiplier, in both modes
    for mode in (jax.jacfwd, jax.jacrev):
        slope = mode(lambda r: rd.kl_ball(BANDIT, r).value)(0.3)
        assert np.isclose(slope, rd.kl_ball(BANDIT, 0.3).multipliers, rtol=1e-10)
        assert np.isfinite(mode(lambda r: rd.kl_ball(BANDIT, r).value)(3.0))


def test_the_frontier_is_concave_and_increasing():
    radii = jnp.linspace(0.01, 3, 60)
    values = np.asarray(rd.reward_kl_frontier(BANDIT, radii))
    assert np.all(np.diff(values) >= -1e-14)
    assert np.all(np.diff(values, 2) <= 1e-14)
    assert np.isclose(values[-1], 1.0)


# best of n


@pytest.mark.parametrize("n", [1, 2, 3])
def test_best_of_n_by_enumeration(n):
    """Every draw of n; ties in proportion to the reference (the first of equals is uniform)."""
    bandit = rd.bandit([1.0, 0.0, 1.0, 0.5], [0.1, 0.4, 0.2, 0.3])
    q, r = np.exp(bandit.log_ref), np.asarray(bandit.reward)
    want = np.zeros(4)
    for draw in np.ndindex(*(4,) * n):
        best = [a for a in draw if r[a] == max(r[list(draw)])]
        for a in best:
            want[a] += np.prod(q[list(draw)]) / len(best)
    got = rd.best_of_n(bandit, n)
    assert np.allclose(got.probs, want, rtol=1e-13)
    assert np.isclose(got.value, want @ r, rtol=1e-13)
    assert np.isclose(got.kl, np.sum(want * np.log(want / q)), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("n", [0.5, 4.0, 1e3, 1e9])
@pytest.mark.parametrize("depth", [3, 60, 700])
def test_best_of_n_at_50_digits(n, depth):
    random = np.random.default_rng(int(depth))
    log_q = -random.random(6) * depth
    bandit = rd.bandit(
        [0.0, 1.0, 1.0, 2.0, 3.0, 3.0], log_reference=log_q - np.logaddexp.reduce(log_q)
    )
    got = rd.best_of_n(bandit, n)
    with mp.workdps(400):
        q = [mp.exp(mp.mpf(float(x))) for x in bandit.log_ref]
        q = [x / mp.fsum(q) for x in q]
        r = bandit.reward.tolist()
        for i in range(6):
            upto = mp.fsum(q[j] for j in range(6) if r[j] <= r[i])
            below = mp.fsum(q[j] for j in range(6) if r[j] < r[i])
            level = mp.fsum(q[j] for j in range(6) if r[j] == r[i])
            want = mp.log(q[i] / level * (upto**n - below**n))
            assert abs(float(want - mp.mpf(float(got.log_probs[i])))) <= 1e-11 * max(
                1, abs(float(want))
            )


@given(bandit=bandits(sizes=(5,), zeros=True), n=st.floats(1, 64))
def test_best_of_n_is_never_above_the_tilt_of_its_kl(bandit, n):
    """KL(best of n || q) <= log n - (n - 1)/n, and the frontier is above (2404.01730)."""
    best = rd.best_of_n(bandit, n)
    assert float(best.kl) <= np.log(n) - (n - 1) / n + 1e-12
    assert float(rd.kl_ball(bandit, best.kl).value) >= float(best.value) - 1e-9
    assert np.isclose(best.probs.sum(), 1, rtol=1e-14)


def test_best_of_n_under_a_target_and_its_derivatives():
    law = rd.target(BANDIT, rd.ReverseKL(0.5)).log_probs
    moved = rd.Bandit(BANDIT.reward, law, BANDIT.label)
    assert np.allclose(rd.best_of_n(BANDIT, 3, law).probs, rd.best_of_n(moved, 3).probs)
    zero = rd.bandit([1.0, 0.0, 2.0], [0.5, 0.5, 0.0])
    for mode in (jax.jacfwd, jax.jacrev):
        assert np.all(np.isfinite(mode(lambda n: rd.best_of_n(zero, n).probs)(2.0)))
        assert np.all(np.isfinite(mode(lambda x: rd.best_of_n(zero, 2.0, x).probs)(zero.log_ref)))
    # exponential tilting is not best of n, but for many draws both end on the best
    assert np.allclose(rd.best_of_n(BANDIT, 1e6).probs, [1, 0, 0, 0, 0], atol=1e-12)
    with pytest.raises(ValueError, match="n must be a finite number above 0"):
        rd.best_of_n(BANDIT, 0)


def test_rejection():
    kept = rd.rejection(BANDIT, 0.5)
    assert np.allclose(kept.probs, np.array([0.1, 0, 0.2, 0.15, 0]) / 0.45)
    assert np.isclose(kept.kl, -np.log(0.45))
    binary = rd.transform.verify(BANDIT, 0.5)
    assert np.allclose(rd.target(binary, rd.ReverseKL(1e-3)).probs, kept.probs, atol=1e-12)
    with pytest.raises(ValueError, match="above every reward"):
        rd.rejection(BANDIT, 2.0)


# constraints

REGULARIZERS = [rd.ReverseKL(0.1), rd.ForwardKL(0.1), rd.Pearson(0.3), rd.JensenShannon(0.2)]


@pytest.mark.parametrize("reg", REGULARIZERS, ids=repr)
@pytest.mark.parametrize("limits", [[0.3, 0.9], [0.3, 5.0], [5.0, 5.0], [0.05, 1.2]], ids=str)
def test_constraints_against_a_generic_optimiser(reg, limits):
    t = rd.constrained(BANDIT, COSTS, limits, reg)
    assert t.converged
    used = COSTS @ np.asarray(t.probs)
    assert np.all(used <= np.array(limits) + 1e-12)
    assert np.all(np.asarray(t.multipliers) >= 0)
    assert np.all(np.asarray(t.multipliers) * (np.array(limits) - used) <= 1e-12)
    rows = [
        {"type": "ineq", "fun": lambda p, c=c, x=x: x - c @ p}
        for c, x in zip(COSTS, limits, strict=True)
    ]
    found = slsqp(BANDIT, rows, reg)
    assert np.isclose(-found.fun, t.value, rtol=0, atol=1e-7)
    # stationarity: t is the target of the priced reward
    priced = rd.transform.lagrangian(BANDIT, COSTS, t.multipliers, limits)
    assert np.allclose(rd.target(priced, reg).probs, t.probs, rtol=0, atol=1e-12)


@given(bandit=bandits(sizes=(5,)), beta=betas(-2, 1), key=st.integers(0, 10**6))
def test_random_constraints_have_a_true_residual(bandit, beta, key):
    random = np.random.default_rng(key)
    costs = random.normal(size=(2, 5))
    inside = random.dirichlet(np.ones(5))  # feasible by construction
    limits = costs @ inside + 0.05
    t = rd.constrained(bandit, costs, limits, rd.ReverseKL(beta))
    assert t.converged
    used = costs @ np.asarray(t.probs)
    size = np.abs(costs - limits[:, None]).max(axis=1)
    slack = (limits - used) / size
    amiss = np.where(np.asarray(t.multipliers) > 0, np.abs(slack), np.maximum(-slack, 0)).max()
    assert np.isclose(amiss, t.residual, rtol=0.5, atol=1e-14)


def test_prices_are_the_derivatives_of_the_value():
    reg, limits = rd.ReverseKL(0.1), jnp.array([0.3, 0.9])
    prices = rd.constrained(BANDIT, COSTS, limits, reg).multipliers
    for mode in (jax.jacfwd, jax.jacrev):
        got = mode(lambda x: rd.constrained(BANDIT, COSTS, x, reg).value)(limits)
        assert np.allclose(got, prices, rtol=1e-9)
    law = lambda b: rd.constrained(BANDIT, COSTS, [0.3, 0.9], rd.ReverseKL(b)).probs  # noqa: E731
    h = 1e-5
    want = (law(0.1 + h) - law(0.1 - h)) / (2 * h)
    assert np.allclose(jax.jacfwd(law)(0.1), want, rtol=0, atol=1e-8)


def test_moments_against_their_exponential_family():
    """q e^{lambda.phi} with E phi as asked (GDC, 2012.11635); lambda from outside."""
    bandit = rd.bandit(np.zeros(5), np.exp(BANDIT.log_ref))
    moments = [0.6, 0.5]
    t = rd.moment_matched(bandit, COSTS, moments)
    assert t.converged
    q = np.exp(bandit.log_ref)

    def law(lam):
        w = q * np.exp(lam @ COSTS)
        return w / w.sum()

    lam = scipy.optimize.root(lambda x: COSTS @ law(x) - moments, np.zeros(2), tol=1e-13).x
    assert np.allclose(t.probs, law(lam), rtol=0, atol=1e-10)
    assert np.allclose(t.multipliers, -lam, rtol=1e-8)


def test_infeasible_says_which():
    reg = rd.ReverseKL(0.1)
    with pytest.raises(
        ValueError, match=r"infeasible: limit 0 asks for a mean at most -0.1.* 0 to 1$"
    ):
        rd.constrained(BANDIT, COSTS, [-0.1, 1.0], reg)
    with pytest.raises(ValueError, match="together with the other limits, though each alone"):
        rd.constrained(BANDIT, COSTS, [0.3, 0.1], reg)
    with pytest.raises(ValueError, match="moment 1 asks for a mean equal 9"):
        rd.moment_matched(BANDIT, COSTS, [0.5, 9.0])
    # only what the reference can reach counts, unless the divergence may leave it
    off = rd.bandit([1.0, 0.0, 3.0], [0.5, 0.5, 0.0])
    with pytest.raises(ValueError, match="infeasible"):
        rd.constrained(off, [[1.0, 1.0, 0.0]], [0.5], reg)
    free = rd.constrained(off, [[1.0, 1.0, 0.0]], [0.5], rd.ForwardKL(2.0))
    assert np.isclose(free.probs[2], 0.5)
    with pytest.raises(ValueError, match="costs must have shape"):
        rd.constrained(BANDIT, [1.0, 2.0], [0.5], reg)


def test_frontier_in_float32_and_under_vmap():
    small = rd.bandit(np.float32([1.0, 0.0, 0.5]), np.float32([0.25, 0.5, 0.25]))
    big = rd.bandit([1.0, 0.0, 0.5], [0.25, 0.5, 0.25])
    pairs = [
        (lambda b: rd.kl_ball(b, 0.2)),
        (lambda b: rd.best_of_n(b, 3)),
        (lambda b: rd.constrained(b, [[1.0, 0.0, 0.0]], [0.3], rd.ReverseKL(0.2))),
    ]
    for f in pairs:
        one, two = f(small), f(big)
        assert one.log_probs.dtype == jnp.float32
        assert np.allclose(one.probs, two.probs, rtol=0, atol=1e-5)
    radii = jnp.array([0.0, 0.1, 0.5, 9.0])
    batch = jax.vmap(lambda r: rd.kl_ball(big, r).probs)(radii)
    assert np.allclose(batch, [rd.kl_ball(big, r).probs for r in radii], atol=1e-15)
    limits = jnp.array([[0.3], [0.5]])
    batch = jax.vmap(lambda x: rd.constrained(big, [[1.0, 0.0, 0.0]], x, rd.ReverseKL(0.2)).probs)(
        limits
    )
    assert np.allclose(batch[:, 0], [0.3, 0.5], atol=1e-12)


def test_radii_and_draws_out_of_range_are_refused():
    bandit = rd.bandit([1.0, 0.0])
    with pytest.raises(ValueError, match="radii must be numbers >= 0"):
        rd.reward_kl_frontier(bandit, jnp.array([0.1, -1.0]))
    with pytest.raises(ValueError, match="For the limit use"):
        rd.best_of_n(bandit, np.inf)


def test_a_forbidden_action_that_may_be_drawn_counts_at_any_n():
    bandit = rd.bandit([1.0, 0.5, -np.inf], [0.2, 0.3, 0.5])
    for n in (1, 1000, 10_000):
        assert np.isneginf(rd.best_of_n(bandit, n).value)
    never = rd.bandit([1.0, 0.5, -np.inf], [0.4, 0.6, 0.0])
    assert np.isclose(rd.best_of_n(never, 2).value, 0.64 + 0.36 / 2, rtol=1e-14)
