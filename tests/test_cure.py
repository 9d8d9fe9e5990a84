"""The report's comparison of what spreads over solutions, by enumeration."""

import numpy as np

import regdist as rd
from regdist.reports.cure import cure


def task(reward, q, label):
    return rd.problems.Task(
        rd.bandit(reward, q, label=label), tuple(map(str, range(len(q)))), "made"
    )


def test_four_objectives_at_one_expected_reward():
    """Two solutions with 3 forms and 1: only over answers are they even."""
    q = np.array([0.1, 0.04, 0.01, 0.05, 0.5, 0.3])
    made = task([1.0, 1.0, 1.0, 1.0, 0.0, 0.0], q, [0, 0, 0, 1, 2, 3])
    correct = np.asarray(made.bandit.reward) >= 1
    rows = {row["method"]: row for row in cure(made, correct)}
    wanted = 0.2 + 0.9 * 0.8
    shares = {
        "reverse KL": [0.15, 0.05],
        "entropy": [3, 1],
        "MARA over actions": [3, 1],
        "MARA over answers": [1, 1],
    }
    assert list(rows) == list(shares)
    for name, share in shares.items():
        row, p = rows[name], np.array(share) / np.sum(share)
        assert np.isclose(row["expected_reward"], wanted, rtol=1e-12)
        assert np.isclose(row["success"], wanted, rtol=1e-12)
        assert np.isclose(row["effective_solutions"], np.exp(-np.sum(p * np.log(p))), rtol=1e-10)
    # reverse KL has the success 0.2 z/(0.2 z + 0.8) at z = e^(1/beta)
    assert np.isclose(rows["reverse KL"]["beta"], 1 / np.log(4 * wanted / (1 - wanted)), rtol=1e-11)


def test_what_cannot_have_the_expected_reward_says_why():
    """Most of the uniform law is right: an entropy bonus is above the reward at all betas."""
    made = task([1.0] * 19 + [0.0], [0.001] * 19 + [0.981], range(20))
    rows = cure(made, np.asarray(made.bandit.reward) >= 1)
    assert [row["beta"] is None for row in rows] == [False, True, False, False]
    assert "out of reach: over all beta it is between 0.95 and 1" in rows[1]["reason"]


def test_where_nothing_spreads_there_is_no_row():
    alone = task([1.0, 0.0], [0.5, 0.5], [0, 1])
    assert cure(alone, np.array([True, False])) == []
    level = task([1.0, 1.0], [0.5, 0.5], [0, 1])
    assert cure(level, np.array([True, True])) == []


def test_a_forbidden_outcome_is_left_out_of_the_expected_reward():
    made = task([1.0, 1.0, 0.0, -np.inf], [0.1, 0.1, 0.3, 0.5], [0, 1, 2, 3])
    rows = cure(made, np.array([True, True, False, False]))
    assert all(np.isclose(row["wanted"], 0.4 + 0.9 * 0.6) for row in rows)
    assert all(np.isclose(row["expected_reward"], row["wanted"]) for row in rows)
