"""Facts about targets that follow from their definitions, as properties over random problems."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import given
from hypothesis import strategies as st

import regdist as rd
from tests.strategies import bandits, betas


@given(bandit=bandits(sizes=(5,), zeros=True), beta=betas(-1, 1.5))
def test_the_reward_rises_with_the_inverse_temperature_by_its_variance(bandit, beta):
    """d E[R]/d(1/b) = Var R, and dH/d(1/b) = -Cov(log p, R)."""

    def moments(u):
        log_p = rd.target(bandit, rd.ReverseKL(1 / u)).log_probs
        return jnp.stack(
            [rd.metrics.expected_reward(log_p, bandit.reward), rd.metrics.entropy(log_p)]
        )

    u = jnp.asarray(1 / beta)
    _, slope = jax.jvp(moments, (u,), (jnp.ones_like(u),))
    log_p = np.asarray(rd.target(bandit, rd.ReverseKL(beta)).log_probs)
    p, r = np.exp(log_p), np.asarray(bandit.reward)
    safe = np.where(np.isneginf(log_p), 0, log_p)
    variance = p @ (r - p @ r) ** 2
    covariance = p @ ((safe - p @ safe) * (r - p @ r))
    assert np.allclose(slope, [variance, -covariance], rtol=1e-9, atol=1e-13)


def test_entropy_is_not_monotone_in_the_inverse_temperature():
    """The smallest example: a likely bad action and a rare good one."""
    bandit = rd.bandit([1.0, 0.0], [0.1, 0.9])
    entropy = [
        rd.metrics.entropy(rd.target(bandit, rd.ReverseKL(b)).log_probs) for b in (1e3, 0.45, 0.01)
    ]
    assert entropy[0] < entropy[1] > entropy[2]


@given(bandit=bandits(sizes=(5,)), beta=betas(), key=st.integers(0, 10**6))
def test_the_regularised_map_is_lipschitz(bandit, beta, key):
    """|p - p'|_1 <= max |R - R'| / b for every regulariser that holds a reverse KL of weight b."""
    moved = bandit.reward + np.random.default_rng(key).normal(size=5)
    other = rd.Bandit(moved, bandit.log_ref, bandit.label)
    bound = float(jnp.max(jnp.abs(moved - bandit.reward))) / beta
    for reg in (rd.ReverseKL(beta), rd.ReverseKL(beta) + rd.TotalVariation(0.3)):
        distance = 2 * rd.metrics.total_variation(
            rd.target(bandit, reg).log_probs, rd.target(other, reg).log_probs
        )
        assert float(distance) <= bound * (1 + 1e-12) + 1e-14


@given(bandit=bandits(sizes=(5,)))
def test_both_kls_agree_to_first_order_at_large_beta(bandit):
    """q (1 + (R - E_q R)/b) + O(b^-2)."""
    q, r = np.exp(bandit.log_ref), np.asarray(bandit.reward)
    for make in (rd.ReverseKL, rd.ForwardKL):
        errors = []
        for beta in (1e3, 2e3):
            first = q * (1 + (r - q @ r) / beta)
            errors.append(np.abs(np.asarray(rd.target(bandit, make(beta)).probs) - first).max())
        assert errors[0] <= 40e-6
        assert errors[1] <= errors[0] * 0.26 + 1e-15


@given(bandit=bandits(sizes=(5,)), steps=st.integers(1, 40), rate=st.floats(0.01, 1))
def test_training_time_is_inverse_temperature(bandit, steps, rate):
    """T steps of size lr of the plain natural gradient are the target at 1/(lr T)."""
    logits = bandit.log_ref + steps * rate * bandit.reward
    target = rd.target(bandit, rd.ReverseKL(1 / (rate * steps)))
    assert np.allclose(rd.log_softmax(logits), target.log_probs, rtol=0, atol=1e-11)
    z = bandit.log_ref
    for _ in range(3):
        z = z + rate * rd.field(rd.methods.natural_policy_gradient(), z, bandit)
    assert np.allclose(
        rd.log_softmax(z), rd.target(bandit, rd.ReverseKL(1 / (3 * rate))).log_probs, atol=1e-12
    )


@given(alpha=betas(-1, 1), wrong=st.integers(1, 27), right=st.integers(1, 5))
def test_an_entropy_bonus_is_even_over_right_and_wrong(alpha, wrong, right):
    """p_C = |C| e^{1/a}/(|C| e^{1/a} + K - |C|), whatever the reference."""
    size = right + wrong
    reward = (jnp.arange(32) < right).astype(float)
    reward = jnp.where(jnp.arange(32) < size, reward, -jnp.inf)
    got = rd.metrics.success(rd.target(rd.bandit(reward), rd.Entropy(alpha)).log_probs, reward > 0)
    e = np.exp(1 / alpha)
    assert np.isclose(got, right * e / (right * e + wrong), rtol=1e-12)


def test_the_limit_of_the_target_is_not_the_end_of_gradient_descent():
    """b to 0 keeps q's odds in the best set; the plain gradient at b = 0 ends on one of them."""
    bandit = rd.bandit([1.0, 1.0, 0.0], [0.5, 0.25, 0.25])
    limit = rd.target(bandit, rd.ReverseKL(1e-6)).probs
    assert np.allclose(limit, [2 / 3, 1 / 3, 0], atol=1e-12)
    path = rd.run(
        rd.methods.policy_gradient(),
        bandit,
        steps=4000,
        optimizer=optax.sgd(5.0),
        record_every=4000,
    )
    end = np.exp(np.asarray(path.log_probs[-1]))
    assert end[0] / end[1] > 2.2
    # it conserves e^{-z_0} - e^{-z_1} in the limit of small steps, so the odds go on growing
    slow = rd.run(
        rd.methods.policy_gradient(),
        bandit,
        steps=4000,
        optimizer=optax.sgd(0.01),
        record_every=4000,
    )
    z = (
        np.asarray(slow.log_probs[-1])
        - np.asarray(slow.log_probs[-1]).mean()
        + np.asarray(bandit.log_ref).mean()
    )
    start = np.exp(-np.asarray(bandit.log_ref))
    assert np.isclose(np.exp(-z[0]) - np.exp(-z[1]), start[0] - start[1], rtol=2e-2)


@given(bandit=bandits(sizes=(5,)), beta=betas(-1, 1), share=st.floats(0, 1))
def test_the_target_of_a_mixture_of_teachers(bandit, beta, share):
    """sum w KL(t || p) is sum w times KL(mixture || p) and a constant: two forward KLs are one."""
    random = np.random.default_rng(int(1e6 * share))
    laws = jnp.log(jnp.asarray(random.dirichlet(np.ones(5), size=2)))
    w = beta * np.array([0.3 + 0.6 * share, 0.7 - 0.6 * share])
    two = rd.ForwardKL(w[0], anchor=laws[0]) + rd.ForwardKL(w[1], anchor=laws[1])
    mean = rd.ForwardKL(beta, anchor=rd.laws.mixture(laws, w))
    both, one = rd.target(bandit, two), rd.target(bandit, mean)
    assert np.allclose(both.probs, one.probs, rtol=0, atol=1e-11)
