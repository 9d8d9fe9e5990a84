"""The majority's answer as reward, against all ordered groups and a counter of their answers."""

import itertools
from collections import Counter

import numpy as np
import pytest

import regdist as rd

m = rd.methods
LABEL, LAW = [3, 1, 3, 0], np.array([0.3, 0.35, 0.15, 0.2])
BANDIT = rd.bandit([0.0, 1.0, 0.0, 2.0], LAW, label=LABEL)


def standardized(rewards):
    return (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-6)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_field_is_over_all_ordered_groups(size):
    """The first of the answers with most votes, as `Counter.most_common` has it."""
    want = np.zeros(4)
    for group in itertools.product(range(4), repeat=size):
        answers = [LABEL[k] for k in group]
        elected, _ = Counter(answers).most_common(1)[0]
        each = standardized(np.array([float(a == elected) for a in answers]))
        score = np.eye(4)[list(group)] - LAW
        want += np.prod(LAW[list(group)]) * each @ score / size
    got = rd.field(m.ttrl(), BANDIT.log_ref, BANDIT, rd.Group(size))
    assert np.allclose(got, want, rtol=0, atol=1e-13)


def test_of_many_samples_the_plurality_is_elected():
    """The limit of large groups is GRPO whose reward is 1 for the likeliest answer."""
    plain = rd.bandit([1.0, 0.0, 1.0, 0.0], LAW)
    got = rd.field(m.ttrl(), BANDIT.log_ref, BANDIT)
    assert np.allclose(got, rd.field(m.grpo(0.0), plain.log_ref, plain), rtol=0, atol=1e-15)


def test_the_rewards_of_the_problem_are_not_looked_at():
    other = rd.bandit([5.0, -1.0, 0.0, 0.5], LAW, label=LABEL)
    for over in (rd.Population(), rd.Group(3)):
        both = [rd.field(m.ttrl(), b.log_ref, b, over) for b in (BANDIT, other)]
        assert np.allclose(both[0], both[1], rtol=0, atol=1e-15)


def test_rollouts_that_fork_vote_over_their_branches():
    """Branches from one prefix: the votes of groups drawn there, by the law given the prefix."""
    tree = rd.tree([[0], [1, 0], [1, 1], [1, 2]], [0.0, 1.0, 0.0, 0.0], label=[0, 1, 2, 2])
    branch = rd.problems.restarts(tree, {(1,): 1.0})
    got = rd.field(m.ttrl(), branch.params, branch.tree, rd.Group(3), policy=branch.policy)
    inside = rd.bandit([1.0, 0.0, 0.0], label=[1, 2, 2])
    want = rd.field(m.ttrl(), inside.log_ref, inside, rd.Group(3))
    assert np.allclose(got.reshape(2, 3)[1], want, rtol=0, atol=1e-13)
    assert np.allclose(got.reshape(2, 3)[0], 0, rtol=0, atol=1e-15)
