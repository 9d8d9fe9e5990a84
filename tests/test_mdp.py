"""Regularized MDPs against powers, written penalties, generic optimizers and trees."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import regdist as rd
from tests import written_trees as w
from tests.strategies import REGULARIZERS
from tests.test_tree import grown

BETA = 0.4
S, A = 4, 3


def problem(seed=0, discount=0.9, holes=False):
    """A random MDP; with holes its last state is terminal and state 1 lacks an action."""
    random = np.random.default_rng(seed)
    p = random.dirichlet(np.ones(S), size=(S, A))
    r, q = random.normal(size=(S, A)), random.dirichlet(np.ones(A), size=S)
    start = random.dirichlet(np.ones(S))
    terminal = np.zeros(S, bool)
    if holes:
        r[1, 2], q[1] = -np.inf, [0.3, 0.7, 0]
        terminal[-1] = True
    return rd.mdp(p, r, discount, reference=q, start=start, terminal=terminal)


PROBLEMS = {
    "plain": problem(),
    "holes": problem(1, 0.95, holes=True),
    "ends": problem(2, 1.0, holes=True),
}


def policies(m, count, seed=0):
    """Random laws of actions that exist, some nearly deterministic; shape [count, S, A]."""
    random = np.random.default_rng(seed)
    size = 10.0 ** random.uniform(-1, 1, size=(count, 1, 1))
    z = np.where(np.isneginf(m.reward), -np.inf, size * random.normal(size=(count, S, A)))
    return jnp.asarray(z - np.logaddexp.reduce(z, axis=2, keepdims=True))


def parts(m, law):
    """P_pi and R_pi, as sums; rows of 0 in terminal states."""
    p, lives = np.exp(law) * ~np.asarray(m.terminal)[:, None], np.isfinite(m.reward)
    moves = np.sum(p[:, :, None] * np.asarray(m.transition), axis=1)
    return float(m.discount) * moves, np.sum(p * np.where(lives, m.reward, 0), axis=1)


def series(moves, each):
    """The sum of all powers applied to a vector, until nothing is added."""
    total, term = 0 * each, each
    while np.abs(term).max() > 1e-18:
        total, term = total + term, moves @ term
    return total


@pytest.mark.parametrize("name", PROBLEMS)
def test_returns_and_occupancies_are_power_series(name):
    m = PROBLEMS[name]
    reg = rd.ReverseKL(BETA)
    for law in policies(m, 3):
        moves, paid = parts(m, law)
        values = series(moves, paid)
        assert np.allclose(rd.planning.evaluate(m, law), values, rtol=0, atol=1e-12)
        lives = ~np.asarray(m.terminal)
        visits = series(moves.T, np.asarray(m.start) * lives)
        counts = rd.planning.occupancy(m, law)
        assert np.allclose(counts, visits[:, None] * np.exp(law) * lives[:, None], atol=1e-13)
        if name == "plain":
            assert np.isclose(np.sum(counts), 1 / (1 - m.discount), rtol=1e-13)
        paid_by = jnp.sum(jnp.where(m.exists, counts * jnp.where(m.exists, m.reward, 0), 0))
        assert np.isclose(paid_by, values @ m.start, rtol=0, atol=1e-12)
        ratio = np.where(m.exists, law - np.where(m.exists, m.log_ref, 0), 0)
        cost = BETA * np.sum(np.exp(law) * ratio, axis=1)
        got = rd.planning.evaluate(m, law, reg)
        assert np.allclose(got, series(moves, paid - cost * lives), rtol=0, atol=1e-12)


FAMILIES = [name for name in REGULARIZERS if name != "reverse + forward KL"]  # one sum is enough


@pytest.mark.parametrize("name", FAMILIES)
def test_the_operator_is_a_monotone_contraction_to_the_best_value(name):
    """The propositions of arXiv 1901.11275, for each family: one program, three problems."""
    reg = REGULARIZERS[name].make(BETA)
    random = np.random.default_rng(3)
    apply = jax.jit(jax.vmap(rd.planning.bellman, in_axes=(None, None, 0)))
    value_of = jax.jit(jax.vmap(rd.planning.evaluate, in_axes=(None, 0, None)))
    for m in PROBLEMS.values():
        lives, gamma = ~np.asarray(m.terminal), float(m.discount)
        v = 3 * random.normal(size=S)
        low = v - random.exponential(size=S)
        values = jnp.asarray(np.stack([v, low, v + 0.7]))
        tv, tlow, shifted = apply(m, reg, values).value
        assert np.all(tlow <= tv + 1e-13)
        assert np.abs(tv - tlow).max() <= gamma * np.abs(v - low)[lives].max() + 1e-13
        if not m.terminal.any():
            assert np.allclose(shifted, tv + 0.7 * gamma, rtol=0, atol=1e-13)
        for _ in range(12):  # by hand: the value of the greedy law
            values = value_of(m, apply(m, reg, values).log_probs, reg)
        best = apply(m, reg, values)
        assert np.all(best.converged)
        assert np.allclose(best.value, values, rtol=0, atol=1e-13)
        assert np.allclose(values, values[0], rtol=0, atol=1e-12)  # wherever it began
        law, top = best.log_probs[0], np.asarray(values[0])
        # It is the value of its law, and no law is better: 200 far ones, as many near the optimum.
        far = policies(m, 200)
        near = jnp.logaddexp(law + jnp.log(0.999), far + jnp.log(0.001))
        assert np.all(value_of(m, jnp.concatenate([far, near]), reg) <= top + 1e-12)


@pytest.mark.parametrize("name", ["reverse KL", "Jensen-Shannon", "total variation"])
def test_both_iterations_come_to_it_and_know_how_far_they_are(name):
    reg = REGULARIZERS[name].make(BETA)
    for m in PROBLEMS.values():
        exact, each = rd.planning.policy_iteration(m, reg), rd.planning.value_iteration(m, reg)
        one, some = (rd.planning.policy_iteration(m, reg, sweeps=k, limit=9999) for k in (1, 20))
        assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), one, each))
        assert exact.iterations <= 10
        assert exact.iterations <= some.iterations <= each.iterations
        assert np.allclose(exact.q, m.action_values(exact.value), rtol=0, atol=1e-15)
        for plan in (exact, some, each):
            assert plan.converged
            assert plan.error <= 1e-11
            own = rd.planning.evaluate(m, plan.log_probs, reg)
            assert np.allclose(own, plan.value, rtol=0, atol=2 * plan.error + 1e-13)
            assert np.abs(plan.value - exact.value).max() <= plan.error + exact.error + 1e-13
        early = rd.planning.value_iteration(m, reg, limit=5)
        assert early.iterations == 5
        assert not early.converged
        assert np.abs(early.value - exact.value).max() <= early.error
        own = rd.planning.evaluate(m, early.log_probs, reg)
        assert np.all(own >= exact.value - 2 * early.error)
        loose = rd.planning.value_iteration(m, reg, tolerance=1e-3)
        assert loose.converged
        assert loose.error <= 1e-3
        assert loose.iterations < each.iterations


def written(name, q, p):
    """The penalties of a few families, of one state where all actions exist."""
    m = (p + q) / 2
    return {
        "reverse KL": BETA * jnp.sum(p * jnp.log(p / q)),
        "Jensen-Shannon": BETA * jnp.sum(p * jnp.log(p / m) + q * jnp.log(q / m)) / 2,
        "entropy": BETA * jnp.sum(p * jnp.log(p)),
    }[name]


@pytest.mark.parametrize("name", ["reverse KL", "Jensen-Shannon", "entropy"])
def test_a_generic_optimizer_finds_the_same_and_no_more(name):
    """The written return of softmax logits is flat at the optimum, and has its value."""
    m, reg = PROBLEMS["plain"], REGULARIZERS[name].make(BETA)
    plan, q = rd.planning.policy_iteration(m, reg), jnp.exp(m.log_ref)

    def loss(z):
        p = jax.nn.softmax(z.reshape(S, A), axis=1)
        moves = sum(p[:, a, None] * m.transition[:, a] for a in range(A))
        cost = jax.vmap(lambda q, p: written(name, q, p))(q, p)
        each = jnp.sum(p * m.reward, axis=1) - cost
        return -m.start @ jnp.linalg.solve(jnp.eye(S) - m.discount * moves, each)

    both = jax.jit(jax.value_and_grad(loss))
    value, slope = both(plan.log_probs.reshape(-1))
    assert np.isclose(-value, m.start @ plan.value, rtol=0, atol=1e-12)
    assert np.abs(slope).max() <= 1e-12
    found = [
        -scipy.optimize.minimize(
            both,
            np.random.default_rng(seed).normal(size=S * A),
            jac=True,
            method="L-BFGS-B",
            options={"ftol": 1e-15, "gtol": 1e-11},
        ).fun
        for seed in range(4)
    ]
    assert -value - 1e-8 <= max(found) <= -value + 1e-12


def plain_optimum(m):
    """V* without a penalty, by all deterministic laws: the best in every state."""
    found = np.full(S, -np.inf)
    for choice in itertools.product(range(A), repeat=S):
        if all(np.isfinite(m.reward[s, a]) for s, a in enumerate(choice)):
            law = np.where(np.arange(A) == np.array(choice)[:, None], 0.0, -np.inf)
            moves, paid = parts(m, law)
            found = np.maximum(found, np.linalg.solve(np.eye(S) - moves, paid))
    return found


def test_what_the_penalty_costs():
    """V* - U/(1 - g) <= V_reg* <= V* - L/(1 - g), L <= Omega <= U; and the law's plain return.

    The bounds of arXiv 1901.11275, for penalties that are bounded.
    """
    m = PROBLEMS["plain"]
    best, lost = plain_optimum(m), 1 - float(m.discount)
    far = -float(jnp.min(m.log_ref))
    ranges = {  # L and U
        rd.ReverseKL: (0.0, BETA * far),
        rd.Entropy: (-BETA * np.log(A), 0.0),
        rd.TotalVariation: (0.0, BETA),
        rd.JensenShannon: (0.0, BETA * np.log(2)),
    }
    for make, (low, high) in ranges.items():
        plan = rd.planning.policy_iteration(m, make(BETA))
        assert np.all(best - high / lost <= plan.value)
        assert np.all(plan.value <= best - low / lost)
        own = np.asarray(rd.planning.evaluate(m, plan.log_probs))
        assert np.all((best - (high - low) / lost <= own) & (own <= best + 1e-12))
        near = rd.planning.policy_iteration(m, make(1e-6)).value
        assert np.abs(near - best).max() <= 1e-6 * max(high, -low) / BETA / lost + 1e-12


def test_mirror_descent_comes_to_the_plain_optimum():
    """The last law as the reference of the next: plain returns rise, at the rate of 1/k."""
    m, beta = PROBLEMS["plain"], 2.0
    best, lost, log_p = plain_optimum(m), 1 - float(m.discount), m.log_ref
    span, far = float(np.ptp(m.reward)), -float(jnp.min(m.log_ref))
    values = []
    for k in range(1, 61):
        values.append(rd.planning.evaluate(m, log_p))
        onward = dataclasses.replace(m, log_ref=log_p)
        log_p = rd.planning.bellman(onward, rd.ReverseKL(beta), values[-1]).log_probs
        rate = beta * far / lost + span / lost**2  # of natural gradients, arXiv 1908.00261
        assert np.all(best - rd.planning.evaluate(m, log_p) <= rate / k)
    rise = np.asarray(jnp.diff(jnp.stack(values), axis=0))
    assert rise.min() >= -1e-12
    assert np.abs(values[-1] - best).max() <= np.abs(values[0] - best).max() / 100


def test_a_state_without_a_future_is_a_bandit_bit_for_bit():
    reward, reference = [1.0, 0.3, -0.5], [0.2, 0.5, 0.3]
    m = rd.mdp(np.ones((1, 3, 1)), [reward], 0, reference=[reference])
    b = rd.bandit(reward, reference)
    plan = rd.planning.policy_iteration(m, rd.ReverseKL(BETA))
    looked = rd.planning.bellman(m, rd.ForwardKL(BETA), plan.value)
    for got, reg in ((plan, rd.ReverseKL(BETA)), (looked, rd.ForwardKL(BETA))):
        one = rd.target(b, reg)
        assert np.array_equal(got.log_probs[0], one.log_probs)
        assert got.value[0] == one.value


def as_mdp(leaves, laws, reward, steps):
    """A tree as an MDP: states are the prefixes where the policy moves, and the end."""
    states = [s for s in w.states_of(leaves) if s not in laws]
    worth, count, tokens = dict(zip(leaves, reward, strict=True)), len(states), steps.shape[1]
    p, r = np.zeros((count + 1, tokens, count + 1)), np.full((count + 1, tokens), -np.inf)
    q = np.zeros((count + 1, tokens))

    def spread(i, v, prefix, chance):
        """What chance makes of a step, to the next states and to the ends."""
        if prefix in worth:
            p[i, v, count] += chance
            r[i, v] += chance * worth[prefix]
        elif prefix in laws:
            for u, x in laws[prefix].items():
                spread(i, v, (*prefix, u), chance * x)
        else:
            p[i, v, states.index(prefix)] += chance

    rows = w.states_of(leaves)
    for i, s in enumerate(states):
        for v in w.tokens_of(leaves, s):
            r[i, v], q[i, v] = 0, np.exp(steps[rows.index(s), v])
            spread(i, v, (*s, v), 1.0)
    ends = np.arange(count + 1) == count
    return rd.mdp(p, r, 1.0, reference=q, terminal=ends), [rows.index(s) for s in states]


def test_a_tree_is_a_special_case():
    """`stepwise` on a tree is policy iteration where states are prefixes, chance among them."""
    tree, leaves, laws, reward, steps = grown(4, chance=0.3)
    assert laws
    m, places = as_mdp(leaves, laws, reward, steps)
    reg = rd.TotalVariation(BETA)
    plan, best = rd.planning.policy_iteration(m, reg), rd.stepwise(tree, reg)
    assert plan.converged
    at, inside = np.array(places), np.asarray(m.exists)[:-1]
    assert np.allclose(plan.probs[:-1], np.exp(best.log_steps[at]), rtol=0, atol=1e-13)
    assert np.allclose(plan.q[:-1][inside], best.values[at][inside], rtol=0, atol=1e-13)
    assert places[0] == 0
    assert np.isclose(plan.value[0], best.value, rtol=0, atol=1e-13)


def test_unrolled_it_is_value_iteration_and_a_law_of_trajectories():
    """Of three steps: leaves by products along them, the optimum by three turns from 0."""
    m, reg = PROBLEMS["holes"], rd.TotalVariation(BETA)
    unrolled = rd.planning.unroll(m, 3)
    best = rd.stepwise(unrolled.tree, reg)
    values = [jnp.zeros(S)]
    for _ in range(3):
        values.append(rd.planning.bellman(m, reg, values[-1]).value)
    assert np.isclose(best.value, m.start @ values[3], rtol=0, atol=1e-13)
    assert np.allclose(unrolled.tree.bandit.log_ref, leaf_law(m, unrolled, m.log_ref), atol=1e-13)
    (law,) = policies(m, 1, seed=5)
    got = unrolled.tree.leaves(unrolled.lift(law))
    want = leaf_law(m, unrolled, law)
    assert np.allclose(got, want, rtol=0, atol=1e-13)
    moves, paid = parts(m, law)
    plain = paid + moves @ (paid + moves @ paid)
    mean = np.exp(want) @ np.asarray(unrolled.tree.bandit.reward)
    assert np.isclose(mean, np.asarray(m.start) @ plain, rtol=0, atol=1e-13)


def leaf_law(m, unrolled, law):
    """The logarithm of the law of trajectories, by products; reads tokens in pairs."""
    p, g = np.asarray(m.transition), float(m.discount)
    out = []
    for t in range(unrolled.tree.num_leaves):
        steps = np.asarray(unrolled.tree.paths.steps)[t, : int(unrolled.tree.length[t])]
        tokens = (steps % unrolled.tree.paths.exists.shape[1]).tolist()
        s = tokens.pop(0)
        chance = float(m.start[s])
        while tokens:
            a = tokens.pop(0)
            chance *= np.exp(law[s, a])
            if tokens:
                t = tokens.pop(0)
                chance *= (1 - g) * p[s, a].sum() if t == S else g * p[s, a, t]
                s = t
        out.append(np.log(chance))
    return np.array(out)


def test_derivatives_are_those_of_the_fixed_point():
    """Danskin: of the value by rewards, how often each action is taken; and its own derivative."""
    m = PROBLEMS["holes"]
    inside = jnp.asarray(m.exists)

    def all_of(shift, beta):
        """The value at the start, and with it how often actions are taken, and what laws cost."""
        moved = dataclasses.replace(m, reward=m.reward + jnp.where(inside, shift, 0))
        plan = rd.planning.policy_iteration(moved, rd.ReverseKL(beta))
        counts = rd.planning.occupancy(m, plan.log_probs)
        cost = jax.vmap(rd.ReverseKL(1.0).value)(plan.log_probs, m.log_ref)
        return m.start @ plan.value, (counts, jnp.sum(counts, axis=1) @ cost)

    def slopes(shift):
        (by_reward, by_beta), (counts, cost) = jax.grad(all_of, (0, 1), has_aux=True)(shift, BETA)
        return (by_reward, counts), (by_reward, counts, by_beta, cost)

    (second, of_counts), found = jax.jit(jax.jacfwd(slopes, has_aux=True))(jnp.zeros((S, A)))
    by_reward, counts, by_beta, cost = found
    assert np.allclose(by_reward, counts, rtol=0, atol=1e-11)
    assert np.isclose(by_beta, -cost, rtol=0, atol=1e-11)
    assert np.allclose(second, of_counts, rtol=0, atol=1e-10)
    assert np.allclose(second, np.transpose(second, (2, 3, 0, 1)), rtol=0, atol=1e-10)
    assert np.linalg.eigvalsh(np.reshape(second, (S * A, S * A))).min() >= -1e-10


def test_sweeps_are_one_trace_and_batches_are_rows():
    m, traces = PROBLEMS["plain"], []

    @jax.jit
    @jax.vmap
    def swept(beta, discount, tolerance):
        traces.append(beta)
        moved = dataclasses.replace(m, discount=discount)
        return rd.planning.value_iteration(moved, rd.Entropy(beta), tolerance=tolerance)

    betas, discounts = jnp.array([0.1, 0.5, 2.0]), jnp.array([0.0, 0.6, 0.9])
    plans = swept(betas, discounts, jnp.full(3, 1e-9))
    swept(betas + 1, discounts, jnp.full(3, 1e-6))
    assert len(traces) == 1
    assert np.all(plans.converged)
    for i in range(3):
        moved = dataclasses.replace(m, discount=discounts[i])
        one = rd.planning.value_iteration(moved, rd.Entropy(betas[i]), tolerance=1e-9)
        assert np.allclose(plans.value[i], one.value, rtol=0, atol=1e-13)
        assert plans.iterations[i] == one.iterations
    made = jax.jit(jax.vmap(lambda g: rd.mdp(m.transition, m.reward, g)))(discounts)
    values = jax.vmap(lambda one: rd.planning.evaluate(one, one.log_ref))(made)
    for i, g in enumerate(discounts):
        one = rd.mdp(m.transition, m.reward, float(g))
        assert np.allclose(values[i], rd.planning.evaluate(one, one.log_ref), atol=1e-13)


def test_a_law_that_costs_without_end_loses_where_it_may_come_to():
    """Off the support of the reference, from the states that lead there and from no others."""
    lead = np.zeros((3, 2, 3))
    lead[0, :, 1] = lead[1, :, 1] = lead[2, :, 2] = 1
    m = rd.mdp(lead, np.ones((3, 2)), 0.5, reference=[[0.5, 0.5], [1, 0], [0.5, 0.5]])
    even = jnp.log(jnp.full((3, 2), 0.5))
    got = rd.planning.evaluate(m, even, rd.ReverseKL(BETA))
    assert np.array_equal(got, [-np.inf, -np.inf, 2.0])
    assert np.allclose(rd.planning.evaluate(m, even), 2.0, rtol=0, atol=1e-15)


def test_single_precision_ends_at_rounding():
    m = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == float else x, PROBLEMS["plain"])
    exact = rd.planning.policy_iteration(PROBLEMS["plain"], rd.ReverseKL(BETA))
    for solve in (rd.planning.policy_iteration, rd.planning.value_iteration):
        plan = solve(m, rd.ReverseKL(BETA))
        assert plan.value.dtype == jnp.float32
        assert plan.converged
        away = np.abs(np.asarray(plan.value, float) - np.asarray(exact.value)).max()
        ulp = 2.0**-24 * np.abs(exact.value).max()
        assert float(plan.error) <= 8.1 * ulp * 2 * 10
        assert away <= float(plan.error) + 20 * ulp * 10


def test_what_nobody_looks_at_changes_nothing():
    """Rows of terminal states and of actions that do not exist; digits that were rounded."""
    m = PROBLEMS["holes"]
    p, r = np.array(m.transition), np.array(m.reward)
    p[-1], p[1, 2], r[-1] = 7.0, np.nan, 3.0
    q = np.exp(m.log_ref)
    q[-1] = 0
    p[0] *= 1 + 1e-9
    again = rd.mdp(p, r, 0.95, reference=q, start=m.start, terminal=m.terminal)
    same = jax.tree.map(lambda a, b: bool(jnp.allclose(a, b, rtol=0, atol=1e-15)), again, m)
    assert jax.tree.all(same)
    typed = rd.mdp([[[1, 0]], [[0, 1]]], [[1], [0]], 0)
    assert typed.reward.dtype == typed.discount.dtype == float
    assert np.array_equal(typed.start, [0.5, 0.5])
