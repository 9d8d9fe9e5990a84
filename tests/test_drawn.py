"""Rewards that are drawn: against losses over all groups of pairs, and in two views."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regdist as rd
from tests import losses as w

m = rd.methods
LEVELS = np.array([0.0, 1.0, 0.4])
CHANCES = np.array([[0.2, 0.7, 0.1], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.25, 0.75]])
REFERENCE = np.array([0.2, 0.4, 0.3, 0.1])
DRAWN = rd.problems.drawn_rewards(LEVELS, CHANCES, REFERENCE)
LOGITS = jnp.array([0.3, -0.2, 0.4, -0.6])
OLD = rd.log_softmax(jnp.array([0.1, 0.25, -0.1, -0.3]))


def centred(x):
    return x - w.average(x)


METHODS = {
    "reinforce": (m.reinforce(), lambda g: -jnp.mean(g.lp * g.r)),
    "grpo": (m.grpo(0.3, eps=1e-6), lambda g: w.grpo(g, 0.3)),
    "rloo": (m.rloo(), lambda g: w.ppo(g, w.loo(g), dual=3.0)),
    "riskpo, quantiles": (m.riskpo(), w.riskpo),
    "dapo": (m.dapo(), lambda g: w.ppo(g, w.z_score(g), high=0.28)),
    "pass at k": (m.pass_at_k_training(2), lambda g: w.passk_analytic(g, 2)),
    "best and second": (m.pass_at_k_grpo(), w.passk_best),
    "k2 in reward": (
        m.opo(beta=0.3, estimator="k2", placement="reward"),
        lambda g: -jnp.mean(g.lp * centred(g.r - 0.15 * (g.old - g.ref) ** 2)),
    ),
}


def written(loss, size):
    """Minus the gradient, averaged over all groups of pairs of an action and its reward."""
    pairs = [(a, k) for a in range(4) for k in range(3) if CHANCES[a, k] > 0]
    total = np.zeros(4)

    def one(z, actions, rewards):
        g = w.group_of(actions, z, OLD, jnp.log(REFERENCE), jnp.zeros(4))
        g.r = rewards
        return loss(g)

    groups = list(itertools.product(range(len(pairs)), repeat=size))
    actions = jnp.asarray([[pairs[i][0] for i in group] for group in groups])
    rewards = jnp.asarray([[LEVELS[pairs[i][1]] for i in group] for group in groups])
    law = np.array([np.exp(OLD[a]) * CHANCES[a, k] for a, k in pairs])
    slopes = jax.jit(jax.vmap(jax.grad(one), in_axes=(None, 0, 0)))(LOGITS, actions, rewards)
    chance = np.array([np.prod(law[list(group)]) for group in groups])
    total -= chance @ np.asarray(slopes)
    return total


@pytest.mark.parametrize("name", METHODS)
def test_a_field_is_the_mean_over_groups_of_pairs(name):
    method, loss = METHODS[name]
    table, old = DRAWN.lift(LOGITS), DRAWN.lift(OLD)
    got = rd.field(method, table, DRAWN.tree, rd.Group(3), old=old)
    assert np.allclose(DRAWN.lower(got), written(loss, 3), rtol=0, atol=1e-12)
    assert np.allclose(got[1:], 0, atol=0), "chance does not move"


def test_rewards_that_are_certain_are_the_bandit():
    sure = rd.problems.drawn_rewards([0.0, 1.0], [1.0, 0.0, 1.0], [0.5, 0.3, 0.2])
    bandit = rd.bandit([1.0, 0.0, 1.0], [0.5, 0.3, 0.2])
    x = jnp.array([0.2, -0.4, 0.1])
    for method in (m.grpo(0.2), m.rloo(), m.dapo(), m.riskpo()):
        for over in (rd.Population(), rd.Group(3)):
            got = sure.lower(rd.field(method, sure.lift(x), sure.tree, over))
            assert np.allclose(got, rd.field(method, x, bandit, over), atol=1e-15)


def test_targets_are_those_of_the_mean():
    """Expected rewards; the sum over steps of the tree says so where a leaf target would tilt."""
    assert np.allclose(DRAWN.mean.reward, CHANCES @ LEVELS)
    for regularizer in (rd.ReverseKL(0.3), rd.Entropy(0.2)):
        wanted = rd.target(DRAWN.mean, regularizer)
        found = rd.stepwise(DRAWN.tree, regularizer)
        assert np.allclose(DRAWN.lower(found.log_steps), wanted.log_probs, atol=1e-12)
    with pytest.raises(TypeError, match="Outcomes"):
        rd.target(DRAWN.tree.bandit, rd.ReverseKL(0.3))
    moved = rd.run(m.natural_policy_gradient(rd.ReverseKL(0.3)), DRAWN.tree, 1000)
    last = jnp.log(jnp.zeros(4).at[DRAWN.action].add(jnp.exp(moved.log_probs[-1])))
    assert np.allclose(last, rd.target(DRAWN.mean, rd.ReverseKL(0.3)).log_probs, atol=1e-6)


def test_a_reward_without_information_moves_a_clipped_policy():
    """Coins: on the policy's own samples nothing; beyond a clip what is cut is one-sided."""
    coins = rd.problems.drawn_rewards([0.0, 1.0], [0.5, 0.5, 0.5], [0.6, 0.3, 0.1])
    now, old = jnp.log(jnp.array([0.7, 0.25, 0.05])), coins.mean.log_ref
    for over in (rd.Population(), rd.Group(4)):
        still = rd.field(m.grpo(0.0), coins.lift(old), coins.tree, over)
        assert np.allclose(still, 0, atol=1e-15)
        moved = coins.lower(
            rd.field(m.grpo(0.0), coins.lift(now), coins.tree, over, old=coins.lift(old))
        )
        assert moved[2] > 1e-3, "a probability that fell beyond the clip is pushed up alone"
        free = m.compose(m.grpo(0.0).advantage, m.surrogate.Clip(0.0, np.inf, np.inf))
        none = rd.field(free, coins.lift(now), coins.tree, over, old=coins.lift(old))
        assert np.allclose(none, 0, atol=1e-15)


def test_labels_and_sampled_groups():
    labeled = rd.problems.drawn_rewards([0.0, 1.0], [0.2, 0.9, 0.5], label=[0, 1, 1])
    assert labeled.tree.bandit.label.tolist() == [0, 0, 1, 1, 1, 1]
    key = jax.random.key(0)
    drawn = rd.field(
        m.rloo(), labeled.lift(jnp.zeros(3)), labeled.tree, rd.Sampled(64, 512), key=key
    )
    exact = rd.field(m.rloo(), labeled.lift(jnp.zeros(3)), labeled.tree, rd.Group(2))
    assert np.allclose(drawn, exact, atol=0.01)


WRONG = [
    (([0.0, 0.0], [0.5, 0.5]), "levels must be different rewards"),
    (([0.0, 1.0], [[0.5, 0.6]]), "row 0 of chances must be probabilities that sum to 1"),
    (([0.0, 1.0, 2.0], [0.5, 0.5]), "a column for each of 3 levels; got shape"),
]


@pytest.mark.parametrize(("given", "words"), WRONG)
def test_what_is_no_law_is_refused(given, words):
    with pytest.raises(ValueError, match=words):
        rd.problems.drawn_rewards(*given)
    with pytest.raises(ValueError, match="not traced"):
        jax.jit(lambda p: rd.problems.drawn_rewards([0.0, 1.0], p).mean.reward)(jnp.ones(2) / 2)
