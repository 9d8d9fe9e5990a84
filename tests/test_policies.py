"""Policies with shared parameters, on bandits and trees, and runs of trees."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import regdist as rd
from tests.test_tokens import TREES, problem

m, policies = rd.methods, rd.policies


def normal(shape, seed=14):
    return np.random.default_rng(seed).normal(size=shape)


def members(shape):
    """Every kind of policy for a table of a shape, with parameters near nothing special."""
    features = normal((*shape, 3))
    low = policies.LowRank(1, offset=normal(shape))
    left, _ = low.draw(jax.random.key(0), shape)
    return {
        "log-linear": (policies.LogLinear(features), jnp.array([0.3, -0.5, 0.2])),
        "tied": (policies.Tied(np.arange(np.prod(shape)).reshape(shape) % 3), jnp.arange(3.0) / 3),
        "low rank": (low, (left, jnp.ones((shape[1], 1)) / 3)),
        "function": (
            policies.FromFunction(lambda w: w["a"] * features[..., 0] + w["b"]),
            {"a": jnp.array(0.7), "b": jnp.arange(float(shape[1])) / 4},
        ),
    }


def written(policy, params, tree):
    """The law of steps as a loop over states, by numpy."""
    logits = np.asarray(policy.log_probs(params))
    out = np.full(logits.shape, -np.inf)
    exists, chooses = np.asarray(tree.paths.exists), np.asarray(tree.chooses)
    for s, v in itertools.product(*map(range, logits.shape)):
        if exists[s, v]:
            total = np.exp(logits[s, exists[s]]).sum()
            out[s, v] = logits[s, v] - np.log(total) if chooses[s] else tree.log_chance[s, v]
    return out


def fisher_solution(tree, policy, params, value):
    """F^+ grad by the scores of whole sequences: an outer product a leaf."""
    flat, back = ravel_pytree(params)
    bound = rd.problems.OnTree(tree, policy)

    def leaves(x):
        return tree.leaves(bound.log_probs(back(x)))

    scores, p = np.asarray(jax.jacobian(leaves)(flat)), np.exp(np.asarray(leaves(flat)))
    fisher = (scores * p[:, None]).T @ scores
    slope = np.asarray(jax.grad(lambda x: value(leaves(x)))(flat))
    return np.linalg.pinv(fisher, rcond=1e-12, hermitian=True) @ slope


@pytest.mark.parametrize("name", TREES)
def test_fields_and_natural_gradients_of_shared_parameters(name):
    tree, *_ = problem(name)
    target = rd.methods.policy_gradient(rd.Entropy(0.3))
    natural = rd.methods.natural_policy_gradient(rd.Entropy(0.3))
    for policy, params in members(tree.paths.exists.shape).values():
        bound = rd.problems.OnTree(tree, policy)
        law = bound.log_probs(params)
        assert np.allclose(law, written(policy, params, tree), rtol=0, atol=1e-14)

        def value(log_p):
            p = jnp.exp(log_p)
            return p @ tree.bandit.reward - 0.3 * p @ log_p

        got = rd.field(target, params, tree, policy=policy)
        want = jax.grad(lambda x, bound=bound: value(tree.leaves(bound.log_probs(x))))(params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-14), got, want)
        got, _ = ravel_pytree(rd.field(natural, params, tree, policy=policy))
        want = fisher_solution(tree, policy, params, value)
        assert np.allclose(got, want, rtol=1e-9, atol=1e-10)


def test_natural_gradients_where_some_directions_move_nothing():
    """Three parameters whose shift moves no law, at policies as sure as e^-16."""
    bandit = rd.bandit([1.0, 0.0, 0.5, 0.3], [0.1, 0.4, 0.3, 0.2])
    tied, rows = rd.policies.Tied([0, 1, 1, 2]), np.eye(3)[[0, 1, 1, 2]]
    free = np.array([[1.0, -1.0, 0.0], [1.0, 1.0, -2.0]]).T
    random = np.random.default_rng(0)
    for z in 4 * random.normal(size=(40, 3)):
        natural, plain = (
            np.asarray(rd.field(make(rd.ReverseKL(0.3)), jnp.asarray(z), bandit, policy=tied))
            for make in (rd.methods.natural_policy_gradient, rd.methods.policy_gradient)
        )
        p = np.exp(np.asarray(tied.log_probs(jnp.asarray(z))))
        scores = (rows - p @ rows) @ free
        fisher = scores.T @ (p[:, None] * scores)
        want = free @ np.linalg.solve(fisher, free.T @ plain)
        assert np.allclose(natural, want, rtol=1e-6, atol=1e-6 * np.abs(want).max())


def test_one_state_is_the_bandit():
    """The same policies on three actions and on the tree of one state, natural gradient too."""
    tree = rd.tree([[0], [1], [2]], [1.0, 0.2, 0.0], reference=[0.5, 0.3, 0.2])
    for policy, params in members((1, 3)).values():
        flat = policies.FromFunction(lambda x, policy=policy: policy.log_probs(x)[0])
        for method in (m.grpo(beta=0.1), m.natural_policy_gradient(rd.ReverseKL(0.5))):
            got = rd.field(method, params, tree, rd.Group(2), policy=policy)
            want = rd.field(method, params, tree.bandit, rd.Group(2), policy=flat)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-13), got, want)


def test_starts_are_the_reference_or_refused():
    tree, *_ = problem("forced")
    shape, log_ref = tree.paths.exists.shape, tree.log_ref
    finite = jnp.where(tree.paths.exists, log_ref, 0)
    for policy in (
        policies.LogLinear(normal((*shape, 2)), offset=finite),
        policies.LogLinear(np.concatenate([normal((*shape, 1)), finite[..., None]], 2)),
        policies.Tied(np.arange(finite.size).reshape(shape)),
    ):
        start = policy.start(log_ref)
        law = rd.problems.OnTree(tree, policy).log_probs(start)
        assert np.allclose(law, log_ref, rtol=0, atol=1e-13)
    low = policies.LowRank(2, offset=finite)
    start = low.draw(jax.random.key(3), shape)
    assert np.allclose(rd.problems.OnTree(tree, low).log_probs(start), log_ref, atol=1e-15)
    free = policies.LowRank(2).draw(jax.random.key(3), shape, scale=0.1)
    assert float(jnp.abs(free[1]).min()) > 0
    with pytest.raises(ValueError, match=r"no parameters of rd.policies.LogLinear"):
        rd.run(m.grpo(), tree, 1, policy=policies.LogLinear(np.ones((*shape, 1))))
    with pytest.raises(ValueError, match=r"init=policy.draw\(jax.random.key\(0\), \(3, 2\)\)"):
        rd.run(m.grpo(), tree, 1, policy=policies.LowRank(1))
    with pytest.raises(ValueError, match=r"FromFunction has log-probabilities of shape \(3, 2\)"):
        rd.field(m.grpo(), jnp.zeros(2), tree, policy=policies.FromFunction(lambda w: w))


def test_a_state_beyond_a_forbidden_step_stays_even():
    """Every sequence beyond 1 is forbidden: that state has no law of its own, and no NaN."""
    tree = rd.tree([[0], [1, 0], [1, 1], [2]], [1.0, -jnp.inf, -jnp.inf, 0.0])
    path = rd.run(m.grpo(beta=0.1), tree, 50)
    logits = jnp.where(tree.forbidden, -jnp.inf, tree.log_ref)
    assert np.all(np.isfinite(rd.field(m.grpo(), logits, tree)))
    assert np.all(np.asarray(path.log_probs)[:, 1:3] == -np.inf)
    assert float(path.probs[-1].sum()) == pytest.approx(1, abs=1e-14)
    shared = policies.LogLinear(normal((2, 3, 2)))
    ends = rd.run(m.reinforce(), tree, 20, policy=shared, init=jnp.zeros(2))
    assert np.all(np.asarray(ends.log_probs)[:, 1:3] == -np.inf)


def law_of(tree, logits):
    return rd.problems.StateTable(tree).log_probs(logits)


@pytest.mark.parametrize("name", ["forced", "chance"])
def test_a_run_is_its_steps_written_out(name):
    """Old samples, two epochs, a sampler of its own and a moving reference, by `rd.field` alone."""
    tree, logits, *_ = problem(name)
    rate, mix = 0.7, 0.6

    def sampler(log_p):
        return rd.laws.temper(log_p, 1.2)

    loop = rd.loop(epochs=2, staleness=1, sampler=sampler, sync_every=2, sync_mix=mix)
    method = m.grpo(beta=0.2, averaging="sequence", clip_low=0.05, clip_high=0.05)
    path = rd.run(
        method, tree, 4, optax.sgd(rate), rd.Group(2), init=logits, record_every=1, loop=loop
    )
    here, before, now = logits, [logits], tree
    for step in range(1, 5):
        old = law_of(tree, before[max(len(before) - 2, 0)])
        tempered = law_of(tree, jnp.where(jnp.isneginf(old), -jnp.inf, old / 1.2))
        for _ in range(2):
            toward = rd.field(method, here, now, rd.Group(2), old=old, sampler=tempered)
            here = here + rate * toward
        before.append(here)
        if step % 2 == 0:
            ref = law_of(tree, mix * law_of(tree, here) + (1 - mix) * now.log_ref)
            leaves = jnp.where(jnp.isneginf(tree.bandit.log_ref), -jnp.inf, tree.leaves(ref))
            now = rd.tree(*TREES[name][:2], chance=TREES[name][2], log_reference=leaves)
        want = tree.leaves(law_of(tree, here))
        assert np.allclose(path.log_probs[step], want, rtol=0, atol=1e-12)


def test_where_runs_of_trees_end():
    """The exact KL at the leaf target, k2 in the loss at the recursion on plain futures."""
    tree, *_ = problem("forced")
    natural = m.natural_policy_gradient(rd.ReverseKL(0.4))
    ends = rd.run(natural, tree, 300, optax.sgd(1.0), tolerance=1e-14)
    want = rd.target(tree.bandit, rd.ReverseKL(0.4)).log_probs
    assert bool(ends.settled)
    assert np.allclose(ends.log_probs[-1], want, rtol=0, atol=1e-12)
    plain = rd.stepwise(tree, rd.ReverseKL(0.4), future="reward").log_probs
    method = m.dr_grpo(beta=0.4, estimator="k2", placement="loss", geometry="natural")
    ends = rd.run(method, tree, 300, optax.sgd(1.0))
    assert np.allclose(ends.log_probs[-1], plain, rtol=0, atol=1e-12)
    assert np.abs(ends.log_probs[-1] - want).max() > 0.01


def test_drawn_runs_of_trees_do_not_hang_on_what_is_recorded():
    tree, *_ = problem("chance")
    drawn = rd.Sampled(3, 4)
    controlled = m.ppo_adaptive_kl(0.1)
    often, seldom = (
        rd.run(
            controlled,
            tree,
            8,
            expectation=drawn,
            key=jax.random.key(5),
            record_every=n,
            loop=rd.loop(minibatches=2),
        )
        for n in (1, 8)
    )
    assert np.array_equal(often.log_probs[-1], seldom.log_probs[-1])
    moved = ~np.asarray(tree.chooses)
    chance = np.exp(tree.conditionals(often.log_probs[-1]))[moved]
    assert moved.any()
    assert np.allclose(chance, [[0.3, 0.7, 0.0]], rtol=0, atol=1e-13)
