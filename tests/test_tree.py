"""Trees against sums over paths; steps and leaves are two ways to say the same."""

import dataclasses
import itertools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import regdist as rd
from tests import written_trees as w

SMALL = [[0], [1, 0], [1, 1]]
BETA = 0.4
GROWN = range(6)


def grown(seed, chance=0.0):
    """A random tree with its judge: the tree, its sequences, chance's laws, rewards, reference."""
    random = np.random.default_rng(seed)
    leaves, laws = w.random_tree(random, 4, 3, chance)
    reward = random.normal(size=len(leaves))
    label = random.integers(0, min(3, len(leaves)), size=len(leaves))
    steps = np.full((len(w.states_of(leaves)), max(map(max, leaves)) + 1), -np.inf)
    for i, s in enumerate(w.states_of(leaves)):
        tokens = w.tokens_of(leaves, s)
        law = [laws[s][v] for v in tokens] if s in laws else random.dirichlet(np.ones(len(tokens)))
        steps[i, tokens] = np.log(law)
    tree = rd.tree(leaves, reward, step_log_reference=steps, chance=laws or None, label=label)
    return tree, leaves, laws, reward, steps


def walk(random, steps, laws, leaves):
    """Another law of steps, chance's rows kept."""
    moved = np.where(np.isneginf(steps), -np.inf, steps + random.normal(size=steps.shape))
    moved -= np.logaddexp.reduce(moved, axis=1, keepdims=True)
    own = np.array([s in laws for s in w.states_of(leaves)])
    return jnp.asarray(np.where(own[:, None], steps, moved))


@pytest.mark.parametrize("seed", GROWN)
def test_every_pass_is_a_sum_over_paths(seed):
    tree, leaves, laws, reward, steps = grown(seed, chance=0.3)
    states, label = w.states_of(leaves), np.asarray(tree.bandit.label)
    assert tree.prefixes == states
    assert tree.num_states == len(states)
    assert np.array_equal(tree.length, [len(x) for x in leaves])
    table = walk(np.random.default_rng(seed), steps, laws, leaves)
    law = w.as_law(leaves, table)
    chances = w.of_leaves(leaves, law)
    assert np.allclose(jnp.exp(tree.leaves(table)), chances, rtol=1e-13, atol=0)
    assert np.allclose(jnp.exp(tree.log_ref), np.exp(steps), rtol=1e-13, atol=1e-16)
    visits = [chances[w.below(leaves, s)].sum() for s in states]
    assert np.allclose(jnp.exp(tree.log_visits(table)), visits, rtol=1e-13, atol=0)
    back, values = tree.conditionals(tree.leaves(table)), tree.values(table)
    for (i, s), v in w.every_pair(states, table.shape[1]):
        if v not in w.tokens_of(leaves, s):
            assert (back[i, v], values[i, v]) == (-np.inf, 0)
            continue
        beyond = np.where(w.below(leaves, (*s, v)), chances, 0)
        assert np.isclose(np.exp(back[i, v]), w.conditional(leaves, chances, s, v), rtol=1e-13)
        assert np.isclose(values[i, v], beyond @ reward / beyond.sum(), rtol=1e-12, atol=1e-14)
    entropies = [-sum(p * np.log(p) for p in law[s].values()) for s in states]
    assert np.allclose(rd.metrics.state_entropies(tree, table), entropies, atol=1e-14)
    want = [w.answers(leaves, label.tolist(), chances, s) for s in states]
    assert np.allclose(rd.metrics.answer_entropies(tree, table), want, atol=1e-13)
    mean = rd.metrics.expected_length(tree, table)
    assert np.isclose(mean, chances @ [len(x) for x in leaves], rtol=1e-13)
    along = np.asarray(rd.metrics.path_entropies(tree, table))
    surprise = rd.metrics.perplexities(tree, table)
    for leaf, row, perplexity in zip(leaves, along, surprise, strict=True):
        places = [leaf[:t] for t in range(len(leaf))]
        assert np.allclose(row[: len(leaf)], [entropies[states.index(s)] for s in places])
        assert np.all(np.isnan(row[len(leaf) :]))
        own = [-np.log(law[s][v]) for s, v in zip(places, leaf, strict=True) if s not in laws]
        assert np.isclose(perplexity, np.exp(np.mean(own)) if own else 1, rtol=1e-13)


@pytest.mark.parametrize("seed", GROWN)
def test_soft_values_and_process_rewards_without_chance(seed):
    """beta log E_q[e^{R/beta} | prefix]; along a path they add up to R less the root's."""
    tree, leaves, _, reward, steps = grown(seed)
    chances = w.of_leaves(leaves, w.as_law(leaves, steps))
    soft = tree.soft_values(BETA)
    for (i, s), v in w.every_pair(w.states_of(leaves), steps.shape[1]):
        if v in w.tokens_of(leaves, s):
            here = np.where(w.below(leaves, (*s, v)), chances, 0)
            want = BETA * np.log(here @ np.exp(reward / BETA) / here.sum())
            assert np.isclose(soft[i, v], want, rtol=1e-13, atol=1e-14)
    best = rd.target(tree.bandit, rd.ReverseKL(BETA))
    law = tree.conditionals(best.log_probs)
    assert np.allclose(jnp.exp(tree.leaves(law)), best.probs, rtol=1e-13, atol=0)
    each = tree.process_rewards(law, BETA)
    total = np.sum(tree.paths.along(each), axis=1)
    assert np.allclose(total, reward - best.value, rtol=0, atol=1e-13)
    roots = tree.log_visits(law)
    value = BETA * np.log(np.sum(np.exp(tree.log_ref + soft / BETA), axis=1))
    inside = np.asarray(tree.paths.exists)
    assert np.allclose(each[inside], (soft - value[:, None])[inside], rtol=0, atol=1e-13)
    # Away from the optimum, the root loses beta times the KL of whole sequences to it.
    other = walk(np.random.default_rng(9), steps, {}, leaves)
    p = w.of_leaves(leaves, w.as_law(leaves, other))
    reach = p @ (reward - np.sum(tree.paths.along(tree.process_rewards(other, BETA)), axis=1))
    gap = BETA * rd.metrics.kl(tree.leaves(other), best.log_probs)
    assert np.isclose(best.value - reach, gap, rtol=0, atol=1e-13)
    assert roots[0] == 0


FAMILIES = {
    "reverse KL": rd.ReverseKL(BETA),
    "forward KL": rd.ForwardKL(BETA),
    "Jensen-Shannon": rd.JensenShannon(BETA),
    "Hellinger": rd.Hellinger(BETA),
    "entropy": rd.Entropy(BETA),
    "reverse KL + entropy": rd.ReverseKL(BETA) + rd.Entropy(0.3),
}


def written(name, q, p):
    """The penalties of `FAMILIES`, of one state."""
    reverse, entropy = jnp.sum(p * jnp.log(p / q)), -jnp.sum(p * jnp.log(p))
    m = (p + q) / 2
    return {
        "reverse KL": BETA * reverse,
        "forward KL": BETA * jnp.sum(q * jnp.log(q / p)),
        "Jensen-Shannon": BETA * jnp.sum(p * jnp.log(p / m) + q * jnp.log(q / m)) / 2,
        "Hellinger": BETA * 4 * (1 - jnp.sum(jnp.sqrt(p * q))),
        "entropy": -BETA * entropy,
        "reverse KL + entropy": BETA * reverse - 0.3 * entropy,
    }[name]


def lawful(leaves, table, steps, laws):
    """{prefix: (tokens, probabilities)} of logits, chance's own where chance moves."""
    out = {}
    for i, s in enumerate(w.states_of(leaves)):
        tokens = w.tokens_of(leaves, s)
        out[s] = jnp.exp(jnp.asarray(steps[i, tokens]))
        if s not in laws:
            out[s] = jax.nn.softmax(table[i, jnp.asarray(tokens)])
    return out


def objective_by_steps(name, leaves, reward, steps, laws):
    """E R less the sum of divergences along paths, as a function of logits of steps, [S, V]."""
    states = w.states_of(leaves)
    tokens = {s: w.tokens_of(leaves, s) for s in states}
    reference = {s: np.exp(steps[i, tokens[s]]) for i, s in enumerate(states)}

    def total(table):
        law, earned = lawful(leaves, table, steps, laws), 0.0
        for leaf, r in zip(leaves, reward, strict=True):
            chance = 1.0
            for t in range(len(leaf)):
                chance = chance * law[leaf[:t]][tokens[leaf[:t]].index(leaf[t])]
            earned = earned + chance * r
        for s in states:
            if s not in laws:
                visit = 1.0
                for t in range(len(s)):
                    visit = visit * law[s[:t]][tokens[s[:t]].index(s[t])]
                earned = earned - visit * written(name, reference[s], law[s])
        return earned

    return total


@pytest.mark.parametrize("seed", [0, 4])
@pytest.mark.parametrize("name", FAMILIES)
def test_stepwise_is_the_best_sum_over_steps(name, seed):
    """The written objective is flat there, is its value, and a generic optimizer finds no more."""
    tree, leaves, laws, reward, steps = grown(seed, chance=0.3)
    best = rd.stepwise(tree, FAMILIES[name])
    assert best.converged
    assert best.unique
    total = objective_by_steps(name, leaves, reward, steps, laws)
    logits = jnp.where(jnp.isneginf(best.log_steps), 0, best.log_steps)
    value, slope = jax.jit(jax.value_and_grad(total))(logits)
    assert np.isclose(value, best.value, rtol=0, atol=1e-12)
    assert np.abs(slope).max() <= 1e-12
    both = jax.jit(jax.value_and_grad(lambda z: -total(z.reshape(logits.shape))))
    noise = np.random.default_rng(seed).normal(size=logits.size)
    for start in (np.zeros(logits.size), np.ravel(logits) + noise):
        found = scipy.optimize.minimize(
            both, start, jac=True, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-12}
        )
        assert best.value - 1e-5 <= -found.fun <= best.value + 1e-12
    chance = ~np.asarray(tree.chooses)
    assert np.allclose(best.log_steps[chance], steps[chance], rtol=0, atol=1e-15)
    assert np.allclose(best.log_probs, tree.leaves(best.log_steps), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", FAMILIES)
def test_leaves_and_steps_agree_for_kl_and_entropy_alone(name):
    """Their divergences add up along a path; for all others there are two problems."""
    for seed in (1, 4):
        tree, *_ = grown(seed)
        gap = rd.metrics.total_variation(
            rd.stepwise(tree, FAMILIES[name]).log_probs,
            rd.target(tree.bandit, FAMILIES[name]).log_probs,
        )
        additive = name in ("reverse KL", "entropy", "reverse KL + entropy")
        if additive:
            assert gap <= 1e-13
        elif tree.num_states > 3:
            assert gap >= 1e-4


@pytest.mark.parametrize("name", ["reverse KL", "forward KL"])
def test_unpenalised_futures_are_the_targets_of_plain_values(name):
    """In each state the target of the expected plain reward to go; by a loop over states."""
    tree, leaves, laws, reward, steps = grown(4, chance=0.3)
    states = w.states_of(leaves)
    got = rd.stepwise(tree, FAMILIES[name], future="reward")
    worth = dict(zip(leaves, reward, strict=True))
    for i, s in reversed(list(enumerate(states))):
        tokens = w.tokens_of(leaves, s)
        to_go = np.array([worth[(*s, v)] for v in tokens])
        law = np.exp(steps[i, tokens])
        if s not in laws:
            law = rd.target(rd.bandit(to_go, law), FAMILIES[name]).probs
        worth[s] = law @ to_go
        assert np.allclose(np.exp(got.log_steps[i, np.array(tokens)]), law, rtol=0, atol=1e-13)
        assert np.allclose(got.values[i, np.array(tokens)], to_go, rtol=0, atol=1e-13)
    assert np.isclose(got.value, worth[()], rtol=0, atol=1e-13)


def test_one_state_is_a_bandit_bit_for_bit():
    reward, reference = [1.0, 0.3, -0.5], [0.2, 0.5, 0.3]
    bandit = rd.bandit(reward, reference)
    tree = rd.tree([[0], [1], [2]], reward, reference=reference)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), tree.bandit, bandit))
    for regularizer in (rd.ReverseKL(BETA), rd.ForwardKL(BETA)):
        one, steps = rd.target(bandit, regularizer), rd.stepwise(tree, regularizer)
        assert np.allclose(steps.log_steps[0], one.log_probs, rtol=0, atol=1e-15)
        assert np.isclose(steps.value, one.value, rtol=0, atol=1e-15)


def test_references_say_the_same_thing_three_ways():
    random = np.random.default_rng(2)
    leaves = [(0,), (1, 0), (1, 1), (2,)]
    chances = random.dirichlet(np.ones(4))
    by_leaves = rd.tree(leaves, np.zeros(4), reference=chances)
    by_logs = rd.tree(leaves, np.zeros(4), log_reference=np.log(chances))
    by_steps = rd.tree(leaves, np.zeros(4), step_log_reference=by_leaves.log_ref)
    padded = np.array([[0, -1], [1, 0], [1, 1], [2, -1]])
    for tree in (by_logs, by_steps, rd.tree(padded, np.zeros(4), reference=chances)):
        assert np.allclose(tree.bandit.log_ref, np.log(chances), rtol=0, atol=1e-15)
    even = np.exp(rd.tree(leaves, np.zeros(4)).bandit.log_ref)
    assert np.allclose(even, [1 / 3, 1 / 6, 1 / 6, 1 / 3], rtol=1e-15)


def test_where_a_law_never_comes_steps_are_even_and_chance_is_chance():
    tree = rd.tree([[0], [1, 0], [1, 1]], [0.0, 0.0, 1.0])
    steps = tree.conditionals(jnp.array([0.0, -jnp.inf, -jnp.inf]))
    assert np.allclose(np.exp(steps), [[1, 0], [0.5, 0.5]], rtol=0, atol=1e-15)
    tree = rd.tree(SMALL, [0.0, 0.0, 1.0], chance={(1,): [0.1, 0.9]})
    steps = tree.conditionals(jnp.array([0.0, -jnp.inf, -jnp.inf]))
    assert np.allclose(np.exp(steps), [[1, 0], [0.1, 0.9]], rtol=0, atol=1e-15)


def test_forbidden_sequences_are_never_taken():
    """Also where all beyond a step are; the values say so."""
    tree = rd.tree([[0], [1, 0], [1, 1], [2, 0], [2, 1]], [0.1, -np.inf, -np.inf, -np.inf, 1.0])
    for regularizer in (rd.ReverseKL(0.5), rd.Entropy(0.5)):
        best, leaf = rd.stepwise(tree, regularizer), rd.target(tree.bandit, regularizer)
        assert np.allclose(best.probs, leaf.probs, rtol=0, atol=1e-15)
        assert best.values[0, 1] == -np.inf
        assert np.all(
            np.isfinite(jax.grad(lambda b: rd.stepwise(tree, rd.ReverseKL(b)).value)(0.5))
        )


def test_derivatives_and_sweeps_go_through():
    """jit, vmap and grad of the recursion, against the leaves'."""
    tree, *_ = grown(3)
    betas = jnp.array([0.1, 0.5, 2.0])
    swept = jax.jit(jax.vmap(lambda b: rd.stepwise(tree, rd.ReverseKL(b)).value))(betas)
    leaves = jax.vmap(lambda b: rd.target(tree.bandit, rd.ReverseKL(b)).value)(betas)
    assert np.allclose(swept, leaves, rtol=0, atol=1e-13)

    def value(reward, of):
        moved = dataclasses.replace(tree, bandit=dataclasses.replace(tree.bandit, reward=reward))
        return of(moved)

    by_steps = jax.grad(value)(
        tree.bandit.reward, lambda t: rd.stepwise(t, rd.ReverseKL(0.3)).value
    )
    law = rd.target(tree.bandit, rd.ReverseKL(0.3)).probs
    assert np.allclose(by_steps, law, rtol=0, atol=1e-13)  # of a value by rewards: the law


def test_chance_is_averaged_and_never_tilted():
    """A tool that fails one time in ten, by hand."""
    chancy = rd.tree(SMALL, [0.4, 0.0, 1.0], chance={(1,): {0: 0.1, 1: 0.9}})
    best = rd.stepwise(chancy, rd.ReverseKL(0.5))
    weights = 0.5 * np.exp(np.array([0.4, 0.9]) / 0.5)
    p = weights / weights.sum()
    assert np.allclose(best.probs, [p[0], p[1] * 0.1, p[1] * 0.9], rtol=0, atol=1e-15)
    assert np.isclose(best.value, 0.5 * np.log(weights.sum()), rtol=0, atol=1e-15)
    assert np.allclose(chancy.soft_values(0.5), best.values, rtol=0, atol=1e-15)
    assert np.array_equal(chancy.log_ref[1], chancy.log_chance[1])
    assert isinstance(rd.tree(SMALL, [0.4, 0.0, 1.0], chance={}).bandit, rd.Bandit)


def test_chance_may_be_decimals_in_single_precision():
    """0.1 and 0.9 do not sum to 1 there."""
    program = """
import regdist as rd
tree = rd.tree([[0], [1, 0], [1, 1]], [0.4, 0.0, 1.0], chance={(1,): {0: 0.1, 1: 0.9}})
print(tree.log_chance.dtype)
"""
    given = {**os.environ, "JAX_ENABLE_X64": "0"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=given, check=True, capture_output=True
    )
    assert done.stdout.decode().strip() == "float32"


def test_many_leaves_in_little_memory():
    """Temporaries of the passes over 1e5 leaves of six steps, by what the compiler plans."""
    tokens = np.array(list(itertools.product(range(10), repeat=5)))
    tree = rd.tree(tokens, np.arange(len(tokens)) % 7 / 7.0)

    def passes(tree, beta):
        best = rd.target(tree.bandit, rd.ReverseKL(beta))
        law = tree.conditionals(best.log_probs)
        return tree.log_visits(law), tree.soft_values(beta), tree.values(law)

    plan = jax.jit(passes).lower(tree, jnp.asarray(0.3)).compile().memory_analysis()
    assert plan.temp_size_in_bytes <= 300 * len(tokens)
