"""Rollouts from prefixes, against the value of each start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regdist as rd

SEQUENCES = [[0], [1, 0], [1, 1, 0], [1, 1, 1], [1, 2], [2, 0], [2, 1]]
REWARD = [0.3, 0.0, 1.0, 0.2, 0.5, 0.9, -0.2]
TREES = {
    "plain": rd.tree(SEQUENCES, REWARD, reference=[0.2, 0.1, 0.1, 0.2, 0.1, 0.1, 0.2]),
    "chance": rd.tree(
        SEQUENCES, REWARD, chance={(1,): [0.2, 0.5, 0.3]}, label=[0, 1, 2, 2, 1, 0, 1]
    ),
}


@pytest.mark.parametrize("name", TREES)
def test_the_field_is_the_gradient_of_the_values_of_the_starts(name):
    """E R from each start by the tree's own values, weighted, through the shared logits."""
    tree = TREES[name]
    shares = {(): 1.0, (1,): 2.0, (1, 1): 1.0}
    again = rd.problems.restarts(tree, shares)
    table = rd.problems.StateTable(tree)
    states = [tree.prefixes.index(start) for start in shares]

    def worth(params):
        law = table.log_probs(params.reshape(tree.log_ref.shape))
        values = jnp.sum(jnp.where(tree.paths.exists, jnp.exp(law) * tree.values(law), 0), axis=1)
        return jnp.array([0.25, 0.5, 0.25]) @ values[jnp.array(states)]

    for key in range(3):
        z = again.params + jnp.asarray(np.random.default_rng(key).normal(size=again.params.shape))
        got = rd.field(rd.methods.policy_gradient(), z, again.tree, policy=again.policy)
        assert np.allclose(got, jax.grad(worth)(z), rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", TREES)
def test_all_from_the_root_is_the_tree_itself(name):
    """What chance takes before a start counts in no length and has no gradient."""
    tree = TREES[name]
    again = rd.problems.restarts(tree, {(): 0.3})
    for method in (rd.methods.grpo(0.1), rd.methods.dapo(), rd.methods.gspo()):
        for over in (rd.Population(), rd.Group(3)):
            want = rd.field(method, tree.log_ref, tree, over).reshape(-1)
            got = rd.field(method, again.params, again.tree, over, policy=again.policy)
            assert np.allclose(got, want, rtol=0, atol=1e-14)


def test_what_a_start_has_of_the_tree():
    """Its sequences, their rewards and labels, and chance's laws."""
    tree = TREES["chance"]
    again = rd.problems.restarts(tree, {(1,): 1.0, (2,): 3.0}).tree
    assert again.num_leaves == 6
    assert np.allclose(again.bandit.reward, [REWARD[i] for i in (1, 2, 3, 4, 5, 6)])
    assert np.array_equal(again.bandit.label, [1, 2, 2, 1, 0, 1])
    law = np.exp(tree.bandit.log_ref)
    beyond = [law[1:5] / law[1:5].sum() / 4, law[5:] / law[5:].sum() * 3 / 4]
    assert np.allclose(np.exp(again.bandit.log_ref), np.concatenate(beyond), rtol=0, atol=1e-15)
    for bad in ({}, {(0,): 1.0}, {(): -1.0}):
        with pytest.raises(ValueError, match="shares must be"):
            rd.problems.restarts(tree, bad)
