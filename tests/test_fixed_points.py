import itertools

import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

import regdist as rd
from regdist import feedback
from tests.strategies import bandits


def binary(q):
    return rd.bandit([1.0, 0.0], [q, 1 - q])


def binary_roots(q, beta):
    """All p with logit p = logit q + 1/(beta sqrt(p (1 - p))), at 30 digits.

    The difference has one critical point, where p (1 - p) = 1/(4 (1 + beta^2)) and p > 1/2: it
    rises before it and falls after, so there are two roots or none.
    """
    with mp.workdps(40):
        q, b = mp.mpf(q), mp.mpf(beta)

        def g(z):
            # in z = logit p, where p (1 - p) = 1/(2 + 2 cosh z)
            return z - mp.log(q / (1 - q)) - mp.sqrt(2 + 2 * mp.cosh(z)) / b

        top = 2 * mp.asinh(b)
        if g(top) < 0:
            return []
        low = top
        while g(low) > 0:
            low -= 1
        high = top + 1
        while g(high) > 0:
            high += 1
        roots = [mp.findroot(g, x, solver="anderson") for x in ((low, top), (top, high))]
        return [float(1 / (1 + mp.exp(-z))) for z in roots]


@pytest.mark.parametrize(
    ("q", "beta"), list(itertools.product([1e-3, 0.1, 0.5, 0.9], [0.5, 1.0, 2.0, 5.0]))
)
def test_grpo_fixed_points_of_a_binary_reward(q, beta):
    """logit p = logit q + 1/(beta sqrt(p (1 - p))): the same roots (2503.06639)."""
    want = binary_roots(q, beta)
    found = rd.fixed_points(
        binary(q), rd.ReverseKL(beta), feedback.std_normalized(binary(q), rd.ReverseKL(beta))
    )
    assert found.certified
    assert len(found.x) == len(want)
    assert np.allclose(np.sort(found.probs[:, 0]), want, rtol=1e-9)
    if want:
        order = np.argsort(found.probs[:, 0])
        assert found.stable[order].tolist() == [True, False]


def test_near_a_fold_nothing_is_invented():
    """Two roots merge at some beta: on one side two, on the other none."""

    def gap(beta):
        top = 2 * np.arcsinh(beta)
        return top - np.log(0.1 / 0.9) - np.sqrt(2 + 2 * np.cosh(top)) / beta

    fold = scipy.optimize.brentq(gap, 0.3, 1.0, xtol=1e-14)
    for shift, count in ((1e-4, 2), (-1e-4, 0)):
        reg = rd.ReverseKL(fold + shift)
        found = rd.fixed_points(binary(0.1), reg, feedback.std_normalized(binary(0.1), reg))
        assert found.certified
        assert len(found.x) == count
    # at the fold itself it cannot be decided, and it says so
    reg = rd.ReverseKL(fold)
    found = rd.fixed_points(
        binary(0.1), reg, feedback.std_normalized(binary(0.1), reg), resolution=1e-5
    )
    assert len(found.undecided) or len(found.x) == 2
    assert found.certified == (len(found.undecided) == 0)


@settings(max_examples=8)
@given(bandit=bandits(sizes=(5,)), log_beta=st.floats(-0.5, 1))
def test_graded_rewards_against_a_fine_scan(bandit, log_beta):
    """Every sign change on a grid of a million inverse deviations is found, each once."""
    reward = np.asarray(bandit.reward)
    if np.ptp(reward) == 0:
        return
    beta = 10**log_beta * np.ptp(reward)
    reg = rd.ReverseKL(beta)
    loop = feedback.std_normalized(bandit, reg)
    found = rd.fixed_points(bandit, reg, loop)
    x = np.linspace(loop.low, loop.high, 1_000_000)
    log_w = np.asarray(bandit.log_ref)[:, None] + (reward - reward.max())[:, None] * x / beta
    p = np.exp(log_w - log_w.max(axis=0))
    p /= p.sum(axis=0)
    mean = reward @ p
    g = x * np.sqrt(np.sum(p * (reward[:, None] - mean) ** 2, axis=0)) - 1
    changes = np.flatnonzero(np.sign(g[1:]) != np.sign(g[:-1]))
    assert len(found.x) == len(changes)
    step = x[1] - x[0]
    assert np.allclose(found.x, x[changes], rtol=0, atol=2 * step)
    for at, law in zip(found.x, found.probs, strict=True):
        assert np.isclose(at, 1 / np.sqrt(law @ (reward - law @ reward) ** 2), rtol=1e-8)


@pytest.mark.parametrize("k", [1, 1.5, 2, 8])
def test_pass_at_k_has_one_fixed_point_and_it_is_the_optimum(k):
    bandit, correct = rd.bandit([1.0, 0.0, 1.0], [0.1, 0.7, 0.2]), jnp.array([True, False, True])
    reg = rd.ReverseKL(0.3)
    found = rd.fixed_points(bandit, reg, feedback.pass_at_k(bandit, reg, correct, k))
    assert found.certified
    assert found.stable.tolist() == [True]
    p = found.probs[0]
    assert np.isclose(p[0] / p[2], 0.5)

    def utility(z):
        law = np.exp(z - np.logaddexp.reduce(z))
        return (1 - law[correct].sum()) ** k - 1 + 0.3 * law @ np.log(law / np.exp(bandit.log_ref))

    best = scipy.optimize.minimize(utility, np.zeros(3), method="BFGS", options={"gtol": 1e-9})
    assert np.allclose(p, np.exp(best.x - np.logaddexp.reduce(best.x)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", ["lower", "upper"])
@pytest.mark.parametrize("level", [0.1, 0.35, 0.8])
def test_tail_means(side, level):
    """Each fixed point is the target at its own quantile; the upper tail, concave, has one."""
    bandit = rd.bandit([0.0, 1.0, 2.0, 3.0], [0.3, 0.4, 0.2, 0.1])
    reg = rd.ReverseKL(0.5)
    found = rd.fixed_points(bandit, reg, feedback.tail_mean(bandit, reg, level, side))
    assert found.certified
    assert len(found.x) >= 1
    wanted = level if side == "lower" else 1 - level
    for x, p in zip(found.x, found.probs, strict=True):
        below, upto = (
            p[np.asarray(bandit.reward) < x - 1e-9].sum(),
            p[np.asarray(bandit.reward) <= x + 1e-9].sum(),
        )
        assert below <= wanted + 1e-9
        assert upto >= wanted - 1e-9

    # the utility itself, maximised from many starts, ends at one of them
    def utility(z):
        log_p = rd.log_softmax(jnp.asarray(z))
        ends = (0.0, level) if side == "lower" else (1 - level, 1.0)
        tail = rd.metrics.range_value_at_risk(log_p, bandit.reward, *ends)
        return float(0.5 * rd.metrics.kl(log_p, bandit.log_ref) - tail)

    best = min(
        (
            scipy.optimize.minimize(
                utility,
                s,
                method="Nelder-Mead",
                options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 2000},
            )
            for s in (np.zeros(4), np.asarray(bandit.log_ref))
        ),
        key=lambda run: run.fun,
    )
    values = [utility(np.log(p)) for p in found.probs]
    assert min(values) <= best.fun + 1e-7


def test_a_feedback_of_ones_own_is_not_certified_without_a_bound():
    """Cluster mass: x = mass of the first answer, paid to it. Three fixed points at small beta."""
    bandit = rd.bandit([0.0, 0.0], [0.5, 0.5])
    loop = feedback.Feedback(
        lambda x: jnp.stack([x, 1 - x]), lambda x, log_p: x - jnp.exp(log_p[0]), 0.0, 1.0
    )
    reg = rd.ReverseKL(0.4)
    found = rd.fixed_points(bandit, reg, loop)
    assert not found.certified
    assert found.stable.tolist() == [True, False, True]
    assert np.isclose(found.x[1], 0.5)
    # p = sigmoid((2x - 1)/beta)
    assert np.allclose(found.x, 1 / (1 + np.exp(-(2 * found.x - 1) / 0.4)), rtol=1e-9)
    bounded = feedback.Feedback(
        loop.reward, loop.mismatch, 0.0, 1.0, lambda a, b: 0 * (a + b) + 1 + 1 / (2 * 0.4)
    )
    again = rd.fixed_points(bandit, reg, bounded)
    assert again.certified
    assert np.allclose(again.x, found.x, rtol=1e-9)
    one = rd.fixed_points(bandit, rd.ReverseKL(0.6), loop)
    assert len(one.x) == 1


def test_wrong_calls():
    bandit, reg = binary(0.3), rd.ReverseKL(1.0)
    with pytest.raises(ValueError, match="reverse-KL and entropy terms"):
        feedback.std_normalized(bandit, rd.ForwardKL(1.0))
    with pytest.raises(ValueError, match="two different rewards"):
        feedback.std_normalized(rd.bandit([1.0, 1.0]), reg)
    with pytest.raises(ValueError, match="k must be at least 1"):
        feedback.pass_at_k(bandit, reg, bandit.reward > 0, 0.5)
    with pytest.raises(ValueError, match=r"level must be in \(0, 1\)"):
        feedback.tail_mean(bandit, reg, 1.0)
    with pytest.raises(ValueError, match="'lower', 'upper'"):
        feedback.tail_mean(bandit, reg, 0.5, "both")


@pytest.mark.parametrize("root", [0.0, 1.0])
def test_a_root_at_an_end_of_the_interval_is_found(root):
    bandit, reg = rd.bandit([1.0, 0.0]), rd.ReverseKL(0.5)
    feedback = rd.feedback.Feedback(
        lambda x: bandit.reward, lambda x, log_p: x - root, 0.0, 1.0, lambda a, b: 1 + 0 * a
    )
    found = rd.fixed_points(bandit, reg, feedback)
    assert found.x.tolist() == [root]
    assert found.certified


def test_an_interval_without_ends_is_refused():
    bandit, reg = rd.bandit([1.0, 0.0]), rd.ReverseKL(0.5)
    for low, high in ((0.0, np.inf), (1.0, 0.0)):
        feedback = rd.feedback.Feedback(lambda x: bandit.reward, lambda x, p: x, low, high)
        with pytest.raises(ValueError, match="finite interval with low < high"):
            rd.fixed_points(bandit, reg, feedback)
