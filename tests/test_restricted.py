"""Best and nearest laws of classes that are not all laws, against a generic optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.optimize import minimize

import regdist as rd

d, policies = rd.divergences, rd.policies
RANDOM = np.random.default_rng(3)
BANDIT = rd.bandit([1.0, 0.0, 0.6, 0.3, 0.8], [0.1, 0.4, 0.2, 0.2, 0.1])
TREE = rd.tree([[0], [1, 0], [1, 1, 0], [1, 1, 1]], [0.0, 1.0, 0.5, 0.2])
BOTH = rd.contexts([BANDIT, rd.bandit([0.0, 1.0], [0.8, 0.2])], [0.3, 0.7])
CASES = {
    "features": (BANDIT, policies.LogLinear(RANDOM.normal(size=(5, 2)), BANDIT.log_ref)),
    "tied": (BANDIT, policies.Tied([0, 1, 1, 2, 0], BANDIT.log_ref)),
    "tree": (TREE, policies.LogLinear(RANDOM.normal(size=(3, 2, 2)), TREE.log_ref)),
    "contexts": (BOTH, policies.LogLinear(RANDOM.normal(size=(2, 5, 2)))),
}
FAMILIES = {
    "reverse KL": (rd.ReverseKL(0.3), d.KL()),
    "forward KL": (rd.ForwardKL(0.3), d.ForwardKL()),
}
ROWS = [[0], [1, 0], [1, 1, 0], [1, 1, 1]]


def laws(problem, policy, x):
    """The laws of outcomes as one would write them: a softmax of what exists, and products."""
    if isinstance(policy, policies.Tied):
        table = np.asarray(x)[np.asarray(policy.member)]
    else:
        table = np.asarray(policy.features) @ np.asarray(x)
    if policy.offset is not None:
        table = table + np.asarray(policy.offset)
    if problem is TREE:
        table = table - np.log(np.exp(table).sum(axis=1, keepdims=True))
        return [np.array([sum(table[t, v] for t, v in enumerate(row)) for row in ROWS])]
    rows = np.where(np.isneginf(np.asarray(problem.log_ref)), -np.inf, table)
    return list(np.atleast_2d(rows - np.log(np.exp(rows).sum(axis=-1, keepdims=True))))


def parts(problem):
    """The problems of one step, with their weights."""
    if problem is TREE:
        return [(1.0, TREE.bandit)]
    if problem is BOTH:
        return list(zip([0.3, 0.7], BOTH.each, strict=True))
    return [(1.0, problem)]


def written(divergence, log_p, log_q):
    """A divergence, as a sum over what is there."""
    on = np.isfinite(log_q)
    log_p, log_q = log_p[on], log_q[on]
    p, q = np.exp(log_p), np.exp(log_q)
    if isinstance(divergence, d.KL):
        return p @ (log_p - log_q)
    if isinstance(divergence, d.ForwardKL):
        return q @ (log_q - log_p)
    return ((p - q) ** 2 / q).sum() / 2


def objective(problem, policy, x, divergence):
    total = 0.0
    for (weight, one), log_p in zip(parts(problem), laws(problem, policy, x), strict=True):
        reward, log_ref = np.asarray(one.reward), np.asarray(one.log_ref)
        paid = np.exp(log_p) @ np.where(np.isfinite(reward), reward, 0)
        total += weight * (paid - 0.3 * written(divergence, log_p, log_ref))
    return total


def least(fn, x):
    """What a derivative-free search finds."""
    options = {"xatol": 1e-9, "fatol": 1e-14, "maxiter": 600}
    return minimize(fn, np.asarray(x), method="Nelder-Mead", options=options).fun


def test_there_may_be_more_than_one_best():
    """Features under which two ends are better than all between: each start has its own."""
    problem, policy = CASES["features"]
    found = [
        rd.restricted(problem, rd.ReverseKL(0.02), policy, init=jnp.array(init))
        for init in ([0.0, 0.0], [2.0, 0.0], [-2.0, 0.0], [0.0, 2.0], [0.0, -2.0])
    ]
    values = np.array([float(one.value) for one in found if bool(one.converged)])
    assert np.ptp(values) > 0.01


@pytest.mark.parametrize("name", CASES)
def test_the_best_of_a_class(name):
    """A derivative-free search around it finds nothing better, and no method moves there."""
    problem, policy = CASES[name]
    for regularizer, divergence in FAMILIES.values():
        init = jnp.zeros(3 if name == "tied" else 2)
        best = rd.restricted(problem, regularizer, policy, init=init)
        assert bool(best.converged)
        assert float(best.slope) < 1e-12

        def cost(x, divergence=divergence):
            return -objective(problem, policy, x, divergence)

        assert float(best.value) == pytest.approx(-cost(best.params), abs=1e-14)
        around = min(least(cost, np.asarray(best.params) + shift) for shift in (0, 0.05))
        assert float(best.value) == pytest.approx(-around, abs=1e-11)
        whole = sum(w * float(rd.target(one, regularizer).value) for w, one in parts(problem))
        assert float(best.residual) == pytest.approx(whole - float(best.value), abs=1e-14)
        method = rd.methods.policy_gradient(regularizer)
        moved = rd.field(method, best.params, problem, policy=policy)
        assert float(jnp.abs(moved).max()) < 1e-13


def test_reverse_kl_is_the_projection_and_its_cost_is_beta_times_what_is_left():
    for name in ("features", "tree"):
        problem, policy = CASES[name]
        leaves = TREE.bandit if problem is TREE else problem
        target = rd.target(leaves, rd.ReverseKL(0.3))
        best = rd.restricted(problem, rd.ReverseKL(0.3), policy, init=jnp.zeros(2))
        near = rd.project(problem, target, policy, init=jnp.zeros(2))
        assert np.allclose(best.log_probs, near.log_probs, rtol=0, atol=1e-12)
        assert float(best.residual) == pytest.approx(0.3 * float(near.residual), abs=1e-14)
        kl = rd.metrics.kl(near.log_probs, target.log_probs)
        assert float(near.residual) == pytest.approx(float(kl), abs=1e-14)


def test_divergences_agree_in_a_full_table_and_not_in_a_class():
    target = rd.target(BANDIT, rd.ReverseKL(0.3))
    full = policies.Tied(np.arange(5))
    tied = CASES["features"][1]
    found = []
    for divergence in (d.KL(), d.ForwardKL(), d.Alpha(2.0)):
        whole = rd.project(BANDIT, target, full, divergence)
        assert np.allclose(whole.log_probs, target.log_probs, rtol=0, atol=1e-7)
        assert float(whole.residual) < 1e-14
        near = rd.project(BANDIT, target, tied, divergence, init=jnp.zeros(2))

        def cost(x, divergence=divergence):
            (log_p,) = laws(BANDIT, tied, x)
            return written(divergence, log_p, np.asarray(target.log_probs))

        assert float(near.residual) == pytest.approx(least(cost, np.zeros(2)), abs=1e-11)
        found.append(near.probs)
    apart = [np.abs(found[i] - found[j]).max() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert min(apart) > 0.01


def test_maximum_likelihood_keeps_the_expected_features():
    """Forward KL in an exponential family: the moments of the target (Csiszar)."""
    features = RANDOM.normal(size=(5, 2))
    policy = policies.LogLinear(features, BANDIT.log_ref)
    target = rd.target(BANDIT, rd.ForwardKL(0.4))
    near = rd.project(BANDIT, target, policy, d.ForwardKL())
    assert np.allclose(near.probs @ features, target.probs @ features, rtol=0, atol=1e-13)


def test_a_saddle_is_not_called_converged():
    """Low-rank logits at 0: the gradient is 0, and either sign of both factors is better."""
    problem = rd.contexts([rd.bandit([1.0, 0.0]), rd.bandit([0.0, 1.0])])
    low = policies.LowRank(1)
    zero = (jnp.zeros((2, 1)), jnp.zeros((2, 1)))
    stuck = rd.restricted(problem, rd.ReverseKL(0.5), low, init=zero)
    assert not bool(stuck.converged)
    assert float(stuck.curvature) < -0.5
    away = rd.restricted(problem, rd.ReverseKL(0.5), low, init=low.draw(jax.random.key(0), (2, 2)))
    assert bool(away.converged)
    assert float(away.residual) == pytest.approx(0, abs=1e-12)
    flat, _ = ravel_pytree(away.params)
    assert np.all(np.isfinite(flat))


def test_a_sweep_is_one_trace():
    problem, policy = CASES["features"]
    betas = jnp.array([0.1, 0.3, 1.0])
    costs = jax.vmap(lambda b: rd.restricted(problem, rd.ReverseKL(b), policy).residual)(betas)
    single = [rd.restricted(problem, rd.ReverseKL(float(b)), policy).residual for b in betas]
    assert np.allclose(costs, np.stack(single), rtol=0, atol=1e-14)


def test_what_rounding_hides_in_a_tail_is_not_called_found():
    """In a full table the target is known: errors stay below what is said, or nothing is found."""
    seen = set()
    for depth in (5.0, 15.0, 25.0, 32.0, 36.0, 45.0, 80.0):
        bandit = rd.bandit([1.0, 0.9, 0.5, 0.0])
        want = rd.target(bandit, rd.ReverseKL(1 / depth)).log_probs
        for init in (None, jnp.zeros(4), jnp.array([0.3, -0.5, 0.2, 1.0])):
            found = rd.restricted(
                bandit, rd.ReverseKL(1 / depth), policies.Tied(np.arange(4)), init=init
            )
            error = float(jnp.max(jnp.abs(found.log_probs - want)))
            assert error <= max(4 * float(found.log_error), 1e-12)
            assert bool(found.converged) == (float(found.log_error) <= 1e-3)
            seen.add(bool(found.converged))
    assert seen == {True, False}


def test_a_corner_where_all_is_flat_is_not_called_found():
    """Near a vertex slopes and curvatures vanish alike: a small slope is no proof there."""
    random, tied = np.random.default_rng(1), policies.Tied(np.arange(4))

    @jax.jit
    def both(reward, log_q, beta, init):
        bandit = rd.bandit(reward, log_reference=log_q)
        found = rd.restricted(bandit, rd.ReverseKL(beta), tied, init=init)
        return found, rd.target(bandit, rd.ReverseKL(beta)).log_probs

    number = 0
    for _ in range(300):
        log_q = jax.nn.log_softmax(jnp.asarray(random.normal(size=4) * random.choice([1, 5, 12])))
        init = jnp.asarray(random.normal(size=4))
        found, want = both(random.normal(size=4), log_q, 10 ** random.uniform(-2, 0.5), init)
        number += bool(found.converged)
        assert not bool(found.converged) or float(jnp.abs(found.log_probs - want).max()) < 1e-2
    assert number > 150
