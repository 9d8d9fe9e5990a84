"""The update in one exponential against the field that it stands in for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regdist as rd
from regdist.methods.step import expected_pull, push, tables_of


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
