from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

import regdist as rd
from tests import judge

REWARD = np.array([1.0, 0.4, 0.0, 0.8, 1.1])
Q = np.array([0.05, 0.25, 0.45, 0.1, 0.15])
BANDIT = rd.bandit(REWARD, Q)
ALPHAS = {1.0: rd.ReverseKL, 0.0: rd.ForwardKL, 2.0: rd.Pearson}


def numbers(p, reward=REWARD, q=Q):
    held = p > 0
    log_p = np.log(np.where(held, p, 1))
    return {
        "expected_reward": float(np.sum(p * np.where(held, reward, 0))),
        "kl": float(np.sum(np.where(held, p * (log_p - np.log(np.where(q > 0, q, 1))), 0))),
        "entropy": float(-np.sum(p * log_p)),
    }


def roots(alpha, name, number, q=Q):
    """All solutions by an independent solver: a fine scan, then brentq."""

    def miss(x):
        return numbers(judge.float_target(REWARD, q, alpha, np.exp(x)), q=q)[name] - number

    grid = np.linspace(np.log(5e-3), np.log(1e4), 601)
    values = np.array([miss(x) for x in grid])
    at = np.flatnonzero(values[:-1] * values[1:] < 0)
    found: list[Any] = [brentq(miss, grid[k], grid[k + 1], xtol=1e-15) for k in at]
    return np.exp(found)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("name", ["expected_reward", "kl", "entropy"])
def test_solutions_are_those_of_brentq(alpha, name):
    for beta in (0.02, 0.3, 2.0):
        number = numbers(judge.float_target(REWARD, Q, alpha, beta))[name]
        if alpha == 2.0 and beta == 0.02:  # all is on the best action
            continue
        want = roots(alpha, name, number)
        assert np.any(np.isclose(want, beta, rtol=1e-9))
        found = rd.beta_for(BANDIT, ALPHAS[alpha], **{name: number})
        assert np.allclose(found.betas, want, rtol=1e-10)
        assert found.flat is None
        assert found.reason == ""
        assert found.proved == (name != "entropy")
        assert found.attainable[0] <= number <= found.attainable[1]


@pytest.mark.parametrize("alpha", [1.0, 0.0, 0.5, 2.0, -1.0])
def test_what_is_said_to_be_monotone_is(alpha):
    """E R and KL(p || q) fall with beta for one divergence; 60 random problems, 40 betas."""
    random = np.random.default_rng(0)
    for _ in range(60):
        reward, q = random.normal(size=5).round(1), random.dirichlet(np.full(5, 0.5))
        laws = [judge.float_target(reward, q, alpha, beta) for beta in np.geomspace(0.01, 100, 40)]
        found = [numbers(p, reward, q) for p in laws]
        for name in ("expected_reward", "kl"):
            assert np.diff([x[name] for x in found]).max() <= 1e-9


def test_the_entropy_rises_and_falls():
    """Two solutions near the top however near they are; one at it; none above, with the range."""

    def height(x):
        return -numbers(judge.float_target(REWARD, Q, 1.0, np.exp(x)))["entropy"]

    grid = np.linspace(-3, 3, 2001)
    top = grid[np.argmin([height(x) for x in grid])]
    for _ in range(4):  # the maximum itself is flat, and so easy
        grid = np.linspace(top - (grid[1] - grid[0]), top + (grid[1] - grid[0]), 101)
        top = grid[np.argmin([height(x) for x in grid])]
    most = -height(top)
    for drop in (1e-2, 1e-5, 1e-9):
        found = rd.beta_for(BANDIT, rd.ReverseKL, entropy=most - drop)
        low, high = np.log(found.betas)
        assert low < top < high
        assert np.allclose([height(low), height(high)], drop - most, rtol=0, atol=1e-14)
        assert not found.proved
    none = rd.beta_for(BANDIT, rd.ReverseKL, entropy=most + 1e-6)
    assert list(none.betas) == []
    assert "out of reach" in none.reason
    assert np.isclose(none.attainable[1], most, rtol=1e-14)
    even = rd.beta_for(BANDIT, rd.Entropy, entropy=1.2)
    assert even.proved
    assert np.isclose(
        rd.metrics.entropy(rd.target(BANDIT, rd.Entropy(even.betas[0])).log_probs), 1.2
    )


def test_limits_are_not_attained():
    uniform = float(np.sum(Q * REWARD))
    for family in (rd.ReverseKL, rd.ForwardKL):
        for number, place in ((1.1, "0"), (uniform, "inf")):
            found = rd.beta_for(BANDIT, family, expected_reward=number)
            assert list(found.betas) == []
            assert found.flat is None
            assert found.reason.endswith(f"is only the limit for beta to {place}")
            assert np.allclose(found.attainable, (uniform, 1.1), rtol=1e-12)
            assert found.proved
    for number, place in ((0.0, "inf"), (-np.log(0.15), "0")):
        found = rd.beta_for(BANDIT, rd.ReverseKL, kl=number)
        assert found.reason.endswith(f"is only the limit for beta to {place}")
    above = rd.beta_for(BANDIT, rd.ReverseKL, expected_reward=1.2)
    assert "between 0.395 and 1.1" in above.reason


def test_pieces_over_which_nothing_moves():
    """Pearson's target is the best action from a beta on; total variation is flat between jumps."""
    # q (1 + (R - L)/b)_+ = 1 on the best with the next at 0: b (1/q - 1) = L* gap: b = q gap
    edge = 0.15 * (1.1 - 1.0)
    found = rd.beta_for(BANDIT, rd.Pearson, expected_reward=1.1)
    assert found.flat == pytest.approx((0, edge), rel=1e-10)
    assert list(found.betas) == []
    assert found.reason == ""
    assert found.proved
    value = float(np.sum(Q * REWARD))
    found = rd.beta_for(BANDIT, rd.TotalVariation, expected_reward=value)
    assert found.flat == pytest.approx((1.1, np.inf), rel=1e-10)
    over = rd.beta_for(BANDIT, rd.TotalVariation, expected_reward=value + 0.1)
    assert over.reason.endswith("is jumped over at beta = 1.1")
    same = rd.bandit(np.ones(5), Q)
    assert rd.beta_for(same, rd.ReverseKL, expected_reward=1.0).flat == (0, np.inf)
    assert "out of reach" in rd.beta_for(same, rd.ReverseKL, expected_reward=0.9).reason


def test_digits_near_the_limits():
    """The shortfall of the expected reward keeps its digits down to 1e-12 of the spread."""
    two = rd.bandit([0.0, -1.0, -1.0, -1.0, -1.0], [0.5, 0.2, 0.1, 0.1, 0.1])
    for short in (1e-3, 1e-9, 1e-12):
        (beta,) = rd.beta_for(two, rd.ReverseKL, expected_reward=-short).betas
        assert np.isclose(beta, 1 / np.log((1 - short) / short), rtol=1e-12)
        (far,) = rd.beta_for(two, rd.ReverseKL, kl=short).betas
        p = 1 / (1 + np.exp(-1 / far))
        kl = p * np.log1p(2 * p - 1) + (1 - p) * np.log1p(1 - 2 * p)
        assert np.isclose(kl, short, rtol=1e-3 if short < 1e-9 else 1e-6)


def test_a_sum_with_a_fixed_part_is_searched():
    """Reverse KL beside a fixed entropy bonus: nothing is claimed to be all."""
    family = lambda b: rd.ReverseKL(b) + rd.Entropy(0.2)  # noqa: E731
    found = rd.beta_for(BANDIT, family, expected_reward=0.9)
    assert not found.proved
    for beta in found.betas:
        law = rd.target(BANDIT, family(beta)).log_probs
        assert np.isclose(rd.metrics.expected_reward(law, BANDIT.reward), 0.9, rtol=1e-12)
    # ahead of the limit 0.9297 at beta to 0, where the bonus alone is left
    assert len(found.betas) >= 1


def test_a_law_that_comes_from_a_problem_that_changes():
    """MARA pays by beta: the family is of targets, the reward asked for that of the problem."""

    def flat(beta):
        new = rd.mara(BANDIT, rd.ReverseKL(beta), 0.8)
        return rd.target(new, rd.ReverseKL(beta))

    found = rd.beta_for(BANDIT, flat, expected_reward=0.9)
    assert not found.proved
    (beta,) = found.betas
    p = flat(beta).probs
    assert np.isclose(p @ REWARD, 0.9, rtol=1e-12)
    assert np.isclose(p[0], p[4], rtol=1e-12)


def test_forbidden_actions_and_empty_ones():
    reward, q = np.array([1.0, -np.inf, 0.0, 0.7, 2.0]), np.array([0.1, 0.3, 0.4, 0.2, 0.0])
    bandit = rd.bandit(reward, q)
    for alpha, beta in ((1.0, 0.4), (0.0, 0.4), (0.0, 8.0)):
        number = numbers(judge.float_target(reward, q, alpha, beta), reward, q)["expected_reward"]
        found = rd.beta_for(bandit, ALPHAS[alpha], expected_reward=number)
        assert np.allclose(found.betas, [beta], rtol=1e-9)
        assert np.isclose(found.attainable[1], 2.0 if alpha == 0 else 1.0)
    assert jnp.isfinite(found.attainable[0])


def test_float32_finds_the_same_to_its_digits():
    reward, log_q = (x.astype(jnp.float32) for x in (BANDIT.reward, BANDIT.log_ref))
    single = rd.Bandit(reward, log_q, BANDIT.label)
    for asked in ({"expected_reward": 0.9}, {"entropy": 1.45}, {"kl": 0.1}):
        want = rd.beta_for(BANDIT, rd.ReverseKL, **asked)
        found = rd.beta_for(single, rd.ReverseKL, **asked)
        assert np.allclose(found.betas, want.betas, rtol=1e-4)
        assert len(found.betas) == (2 if "entropy" in asked else 1)
