"""What a dashboard shows, against sums over all groups as lists."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import regdist as rd

m = rd.methods
REWARD, REFERENCE = np.array([1.0, 0.0, 0.4, 0.4]), np.array([0.2, 0.4, 0.3, 0.1])
BANDIT = rd.bandit(REWARD, REFERENCE)
NOW = np.array([0.33, 0.28, 0.34, 0.05])
OLD = np.array([0.2, 0.4, 0.3, 0.1])
SAMPLER = np.array([0.22, 0.38, 0.25, 0.15])


def brute(size, dual, low=0.2, high=0.2):
    """Shares of samples beyond each bound, and of groups of equal rewards."""
    ratio, shares, equal = NOW / OLD, np.zeros(3), 0.0
    for group in itertools.product(range(4), repeat=size):
        g = np.array(group)
        chance = SAMPLER[g].prod()
        a = REWARD[g] - REWARD[g].mean()
        rho = ratio[g]
        shares += chance * np.array(
            [
                ((a < -1e-12) & (rho < 1 - low)).mean(),
                ((a > 1e-12) & (rho > 1 + high)).mean(),
                ((a < -1e-12) & (rho > dual)).mean(),
            ]
        )
        equal += chance * (np.ptp(REWARD[g]) == 0)
    return shares, equal


@pytest.mark.parametrize("size", [2, 3])
def test_shares_are_those_of_all_groups(size):
    method = m.grpo(0.0, clip_dual=1.1)
    got = rd.diagnostics(
        method,
        jnp.log(NOW),
        BANDIT,
        rd.Group(size),
        old=jnp.log(OLD),
        sampler=jnp.log(SAMPLER),
    )
    (low, high, dual), equal = brute(size, 1.1)
    assert np.allclose([got.clipped_low, got.clipped_high, got.clipped_dual], [low, high, dual])
    assert np.isclose(got.clipped, low + high)
    assert np.isclose(got.zero_deviation, equal)
    assert min(low, high, dual, equal) > 0.01


def test_means_are_sums_over_the_sampler():
    got = rd.diagnostics(m.rloo(), jnp.log(NOW), BANDIT, old=jnp.log(OLD), sampler=jnp.log(SAMPLER))
    x, rho = np.log(NOW / REFERENCE), NOW / OLD
    w = NOW / SAMPLER
    want = {
        "reward": SAMPLER @ REWARD,
        "reward_std": np.sqrt(SAMPLER @ (REWARD - SAMPLER @ REWARD) ** 2),
        "zero_deviation": 0.0,
        "entropy": -NOW @ np.log(NOW),
        "k1": SAMPLER @ x,
        "k2": SAMPLER @ x**2 / 2,
        "k3": SAMPLER @ (np.exp(-x) - 1 + x),
        "old_k1": -SAMPLER @ np.log(rho),
        "ratio": SAMPLER @ rho,
        "ratio_min": rho.min(),
        "ratio_max": rho.max(),
        "effective_samples": (SAMPLER @ w) ** 2 / (SAMPLER @ w**2),
    }
    for name, value in want.items():
        assert np.isclose(getattr(got, name), value, atol=1e-14), name
    field = rd.field(m.rloo(), jnp.log(NOW), BANDIT, old=jnp.log(OLD), sampler=jnp.log(SAMPLER))
    assert np.isclose(got.gradient_norm, np.linalg.norm(field))
    assert (
        rd.diagnostics(m.rloo(), jnp.log(NOW), rd.bandit([1.0, 1.0, 1.0, 1.0])).zero_deviation == 1
    )
    assert np.isnan(rd.diagnostics(m.sapo(), jnp.log(NOW), BANDIT).clipped)


def test_names_are_the_trainers():
    got = rd.diagnostics(m.grpo(), jnp.log(NOW), BANDIT, rd.Group(2), old=jnp.log(OLD))
    assert got.named("trl")["frac_reward_zero_std"] == got.zero_deviation
    assert got.named("verl")["actor/ppo_kl"] == got.old_k1
    with pytest.raises(ValueError, match="log names are known of trl, verl"):
        got.named("nemo")
    with pytest.raises(ValueError, match="means over all that may be drawn"):
        rd.diagnostics(m.grpo(), jnp.log(NOW), BANDIT, rd.Sampled(2))


def test_a_group_by_hand():
    """3 of 4: the mean 3/4, the deviation 1/2, the mean of the others 1 or 2/3."""
    shown = rd.show_group([1, 1, 0, 1], m.rloo())
    assert np.allclose(shown.advantages, [1 / 3, 1 / 3, -1, 1 / 3])
    assert (shown.mean, shown.deviation) == (0.75, 0.5)
    assert "reward 0          advantage -1" in str(shown)
    assert np.allclose(rd.show_group([0.5, 0.5], m.grpo()).advantages, 0)
    for method in (m.vargrad(0.1), m.optimal_token_baseline(), m.remax(), m.ppo()):
        with pytest.raises(ValueError, match=r"ask rd\.field"):
            rd.show_group([1, 0], method)
    with pytest.raises(ValueError, match="of one group, shape"):
        rd.show_group([[1, 0]], m.rloo())
