"""`rd.beta_for` against laws by another route, and roots by scipy."""

import numpy as np
import pytest
import scipy.optimize

import regdist as rd
from regdist.reports.cure import cure

UNEVEN = rd.bandit([1.0, 0.0, 0.6], [0.05, 0.8, 0.15])


def reverse_law(beta):
    w = np.log([0.05, 0.8, 0.15]) + np.array([1.0, 0.0, 0.6]) / beta
    return np.exp(w - np.logaddexp.reduce(w))


VALUES = {
    "expected_reward": lambda p: p @ np.array([1.0, 0.0, 0.6]),
    "kl": lambda p: p @ (np.log(p) - np.log([0.05, 0.8, 0.15])),
    "entropy": lambda p: -p @ np.log(p),
}


@pytest.mark.parametrize("name", VALUES)
def test_all_solutions_under_reverse_kl(name):
    """Signs of the value on 4,000 betas, and brentq between them."""
    grid = np.geomspace(0.02, 1e3, 4000)
    values = np.array([VALUES[name](reverse_law(b)) for b in grid])
    counts = set()
    for want in np.linspace(values.min(), values.max(), 9)[1:-1]:
        turns = np.flatnonzero(np.diff(np.sign(values - want)))
        roots = [
            scipy.optimize.brentq(
                lambda b, want=want: VALUES[name](reverse_law(b)) - want,
                grid[i],
                grid[i + 1],
                xtol=1e-14,
            )
            for i in turns
        ]
        found = rd.beta_for(UNEVEN, rd.ReverseKL, **{name: want})
        assert np.allclose(found.betas, roots, rtol=1e-9)
        assert found.flat is None
        counts.add(len(roots))
    assert counts == ({1} if name != "entropy" else {1, 2})


def test_a_value_at_the_top_of_a_hump_has_two_betas_near_each_other():
    """The largest entropy is that of even odds, in between two points of the scan."""
    coin = rd.bandit([1.0, 0.0], [0.1, 0.9])
    below = np.log(2) - 1e-6
    found = rd.beta_for(coin, rd.ReverseKL, entropy=below).betas
    assert len(found) == 2
    assert found[0] < 1 / np.log(9) < found[1]
    for beta in found:
        assert np.isclose(rd.metrics.entropy(rd.target(coin, rd.ReverseKL(beta)).log_probs), below)
    assert len(rd.beta_for(coin, rd.ReverseKL, entropy=np.log(2) + 1e-6).betas) == 0


def test_none_with_its_reason_and_flat_with_its_interval():
    none = rd.beta_for(UNEVEN, rd.ForwardKL, expected_reward=0.0)
    assert len(none.betas) == 0
    assert none.reason.startswith("no beta: the expected reward of the targets runs from 0.14")
    with pytest.raises(ValueError, match="no single beta: no beta"):
        _ = none.beta
    kept = rd.beta_for(UNEVEN, rd.TotalVariation, kl=0.0)
    assert np.isclose(kept.flat[0], 1.0, rtol=1e-9)  # the spread of the rewards
    assert kept.flat[1] == np.inf
    level = rd.bandit([0.5, 0.5], [0.3, 0.7])
    assert rd.beta_for(level, rd.ReverseKL, kl=0.0).flat == (0.0, np.inf)


@pytest.mark.parametrize(
    ("make", "asked"),
    [
        (rd.ForwardKL, {"expected_reward": 0.5, "kl": 0.4, "entropy": 0.6}),
        (rd.JensenShannon, {"expected_reward": 0.5}),
        (rd.Entropy, {"kl": 0.4}),
    ],
)
def test_the_target_there_has_the_value(make, asked):
    for name, want in asked.items():
        for beta in rd.beta_for(UNEVEN, make, **{name: want}).betas:
            law = np.asarray(rd.target(UNEVEN, make(beta)).probs)
            law = np.where(law > 0, law, 1e-300)
            assert np.isclose(VALUES[name](law), want, rtol=1e-9)


def test_the_cure_is_compared_at_one_expected_reward():
    """Two forms of one solution, one of another, one failure."""
    bandit = rd.bandit([1.0, 1.0, 1.0, 0.0], [0.2, 0.15, 0.05, 0.6], label=[0, 0, 1, 2])
    task = rd.problems.Task(bandit, ("a", "a'", "b", "c"), "four")
    rows = {row["method"]: row for row in cure(task, np.asarray(bandit.reward) == 1)}
    assert all(np.isclose(row["expected_reward"], 0.4 + 0.9 * 0.6) for row in rows.values())
    assert np.isclose(rows["MARA over answers"]["effective_solutions"], 2)
    third = np.exp(-(np.log(1 / 3) / 3 + 2 * np.log(2 / 3) / 3))
    assert np.isclose(rows["MARA over actions"]["effective_solutions"], third)
    assert np.isclose(rows["entropy"]["effective_solutions"], third)
    alone = rd.problems.Task(rd.bandit([1.0, 0.0], [0.5, 0.5]), ("a", "b"), "two")
    assert cure(alone, np.array([True, False])) == []
