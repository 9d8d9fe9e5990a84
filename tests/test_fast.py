"""Fast paths against the plain ones that they stand in for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regdist as rd
from regdist.methods.field import expected_pull, push, tables_of
from regdist.methods.groups import draw
from regdist.numerics.roots import where_unknown
from tests import judge
from tests.test_target import hard_problem, well_conditioned


def test_forward_kl_by_name_on_hard_problems_against_50_digits():
    """As `test_hard_problems_against_50_digits`, for the record that knows alpha at trace time."""
    random = np.random.default_rng(8)
    for trial in range(60):
        bandit, beta = hard_problem(random, (2, 3, 6)[trial % 3])
        target = rd.target(bandit, rd.ForwardKL(beta))
        exact = judge.alpha_target(bandit.reward, bandit.log_ref, 0.0, beta)
        assert judge.total_variation(target.log_probs, exact) <= 1e-11
        log_p, well = list(target.log_probs), well_conditioned(bandit, exact, 0.0)
        kept = [(a, b) for a, b, ok in zip(log_p, exact, well, strict=True) if ok]
        assert judge.log_error(*zip(*kept, strict=True)) <= 1e-12 if kept else True
        assert target.converged


def test_the_quick_search_agrees_with_the_safe_one(monkeypatch):
    """On hard problems, total variation 1e-12; most of them never need the safe one."""
    import sys

    single = sys.modules["regdist.targets.solvers.single"]
    random = np.random.default_rng(3)
    made = [hard_problem(random, 6) for _ in range(300)]
    bandits = jax.tree.map(lambda *x: jnp.stack(x), *(b for b, _ in made))
    betas = jnp.asarray([beta for _, beta in made])
    left = []

    def solve(unknown_of):
        def choose(unknown, search, found):
            jax.debug.callback(lambda x: left.append(bool(x)), unknown)
            return where_unknown(unknown_of(unknown), search, found)

        monkeypatch.setattr(single, "where_unknown", choose)
        fresh = jax.jit(
            jax.vmap(lambda b, beta: rd.target.__wrapped__(b, rd.AlphaDivergence(0.5, beta)))
        )
        return jax.block_until_ready(fresh(bandits, betas))

    quick, safe = solve(lambda x: x), solve(jnp.ones_like)
    jax.effects_barrier()
    assert len(left) == 2 * len(betas)
    assert 0 < np.mean(left) < 0.3
    assert np.all(quick.converged)
    assert np.all(safe.converged)
    apart = 0.5 * np.sum(np.abs(np.asarray(quick.probs) - np.asarray(safe.probs)), axis=1)
    assert apart.max() <= 1e-12


def test_the_tilt_is_differentiable_beside_forbidden_and_excluded_actions():
    bandit = rd.bandit([1.0, 0.0, -np.inf, 0.5], [0.2, 0.5, 0.3, 0.0])
    by_beta = jax.jacfwd(lambda b: rd.target(bandit, rd.ReverseKL(b)).log_probs)(jnp.asarray(0.5))
    back = jax.jacrev(lambda b: rd.target(bandit, rd.ReverseKL(b)).log_probs)(jnp.asarray(0.5))
    p = rd.target(bandit, rd.ReverseKL(0.5)).probs
    # d log p_i / d beta = (E_p R - R_i)/beta^2 on the support
    want = (p[0] - np.array([1.0, 0.0])) / 0.25
    assert np.allclose(by_beta[:2], want, rtol=1e-14)
    assert np.array_equal(by_beta[2:], [0, 0])
    assert np.allclose(back, by_beta, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "method",
    [
        rd.methods.policy_gradient(rd.ReverseKL(0.3)),
        rd.methods.policy_gradient(rd.ReverseKL(0.2) + rd.Entropy(0.1)),
        rd.methods.natural_policy_gradient(rd.Entropy(0.5)),
        rd.methods.policy_gradient(),
        rd.methods.rloo(),
    ],
    ids=["reverse KL", "sum", "natural, entropy", "none", "rloo"],
)
def test_the_gradient_in_one_exponential_is_the_field(method):
    """Within 16 ulps of the largest marginal gain, on hard tables with zeros among them."""
    random = np.random.default_rng(5)
    for _ in range(12):
        log_q = -random.random(6) * random.choice([1, 30])
        log_q[random.integers(6)] = -np.inf
        log_q -= np.logaddexp.reduce(log_q)
        bandit = rd.bandit(random.normal(size=6), log_reference=log_q)
        z = jnp.asarray(np.where(np.isneginf(log_q), -np.inf, random.normal(size=6) * 5))
        fast = rd.Population().short(method, bandit)
        assert fast is not None
        tables = tables_of(method, rd.log_softmax(z), bandit)
        pull = expected_pull(method, tables, rd.Population(), None, True)
        plain = push(method, rd.policies.Table(), z, bandit, pull)
        size = 60 + float(jnp.abs(plain).max())
        assert np.allclose(fast(z, None), plain, rtol=0, atol=16 * 2.3e-16 * size)


def test_what_the_short_gradient_does_not_cover():
    bandit = rd.bandit([1.0, 0.0], [0.5, 0.5])
    for method in (
        rd.methods.grpo(0.0),
        rd.methods.policy_gradient(rd.ForwardKL(0.1)),
        rd.methods.policy_gradient(rd.ReverseKL(0.1, anchor=np.log([0.3, 0.7]))),
        rd.methods.rloo(beta=0.1, estimator="k3"),
    ):
        assert rd.Population().short(method, bandit) is None
    assert rd.Group(4).short(rd.methods.rloo(), bandit) is None
    for method in (
        rd.methods.grpo(0.1),
        rd.methods.natural_policy_gradient(),
        rd.methods.policy_gradient(rd.ReverseKL(0.1)),
        rd.methods.rloo(beta=0.1),
    ):
        assert rd.Sampled(4).short(method, bandit) is None


SAMPLED = {
    "rloo": rd.methods.rloo(),
    "grpo": rd.methods.grpo(0.0),
    "remax": rd.methods.remax(),
    "cispo": rd.methods.cispo(),
}


@pytest.mark.parametrize("name", SAMPLED)
def test_drawn_groups_in_one_exponential_are_the_field_of_those_groups(name):
    """The same uniforms give the same actions, so that nothing but rounding differs."""
    method, over = SAMPLED[name], rd.Sampled(4, 3)
    random = np.random.default_rng(6)
    bandit = rd.bandit([1.0, 0.3, -np.inf, 0.0, 0.7], [0.2, 0.3, 0.1, 0.4, 0.0])
    fast = over.short(method, bandit)
    assert fast is not None
    hidden = np.isneginf(bandit.reward) | np.isneginf(bandit.log_ref)
    for seed in range(20):
        z = jnp.asarray(np.where(hidden, -np.inf, random.normal(size=5) * 3))
        key = jax.random.key(seed)
        plain = rd.field(method, z, bandit, over, key=key)
        assert np.allclose(fast(z, key), plain, rtol=0, atol=1e-14)


def test_a_start_beyond_the_reference_is_pulled_back_as_the_field_says():
    """Logits with mass where the reference has none: an infinite pull, hence a non-finite step."""
    bandit = rd.bandit([1.0, 0.0, 0.0], [0.5, 0.5, 0.0])
    method = rd.methods.policy_gradient(rd.ReverseKL(0.1))
    path = rd.run(method, bandit, 3, optax.sgd(0.1), init=[0.0, 0.0, 0.0], record_every=1)
    assert path.nonfinite == 1


@pytest.mark.parametrize("size", [1, 2, 3, 10, 100, 101, 257, 5000])
def test_draws_are_the_inverse_of_the_cumulative_sum(size):
    """The same uniforms through a plain search; an action may differ at a boundary alone."""
    random = np.random.default_rng(size)
    p = random.dirichlet(np.full(size, 0.5)) * (random.random(size) < 0.7)
    p[size // 2] += 0.1
    p /= p.sum()
    key = jax.random.key(size)
    drawn = np.asarray(draw(key, jnp.asarray(p), (50_000,)))
    upto = np.cumsum(p)
    uniform = np.asarray(jax.random.uniform(key, (50_000,), float)) * upto[-1]
    want = np.searchsorted(upto, uniform, side="right")
    near = np.min(np.abs(uniform[:, None] - upto), axis=1) < 1e-14
    assert np.all((drawn == want) | near)
    assert np.all(p[drawn] > 0)


def test_rounding_never_draws_a_weight_of_zero(monkeypatch):
    """At a uniform of 1, beyond any that is drawn, it is the last action with weight."""
    monkeypatch.setattr(jax.random, "uniform", lambda _, shape, dtype: jnp.ones(shape, dtype))
    for size in (2, 10, 300):
        weight = jnp.where(jnp.arange(size) < (size + 1) // 2, 0.1, 0.0)
        assert np.all(draw(jax.random.key(0), weight, (3,)) == (size + 1) // 2 - 1)
