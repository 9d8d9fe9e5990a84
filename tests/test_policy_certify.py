"""Certificates of runs in the parameters of a policy, against derivatives of the field and runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regdist as rd
from tests.test_policy_identify import BANDIT, FEATURES, TIED, TREE

m = rd.methods
TIGHT = rd.policies.Tied([0, 1, 1, 2])
EXACT = m.policy_gradient(rd.ReverseKL(0.3))


def best(problem, make, policy, size=2):
    """The best of a class, once a session: a program is compiled for it."""
    return functools.cache(lambda: rd.restricted(problem, make(0.3), policy, init=jnp.zeros(size)))


BEST, OTHER = (best(BANDIT, make, FEATURES) for make in (rd.ReverseKL, rd.ForwardKL))
ON_TREE, ON_TIGHT = best(TREE, rd.ReverseKL, TIED), best(BANDIT, rd.ReverseKL, TIGHT, 3)
PASS = {
    "features": (EXACT, BANDIT, FEATURES, BEST),
    "k2": (m.dr_grpo(beta=0.3, estimator="k2"), BANDIT, FEATURES, BEST),
    "k3": (m.dr_grpo(beta=0.3, estimator="k3"), BANDIT, FEATURES, OTHER),
    "natural": (m.natural_policy_gradient(rd.ReverseKL(0.3)), BANDIT, FEATURES, BEST),
    "tree": (EXACT, TREE, TIED, ON_TREE),
    "a direction too many": (EXACT, BANDIT, TIGHT, ON_TIGHT),
}


@pytest.mark.parametrize("name", PASS)
def test_a_run_comes_to_the_best_of_its_class_at_the_rate_of_the_spectrum(name):
    method, problem, policy, made = PASS[name]
    target = made()
    optimizer = optax.sgd(0.5)
    init = target.params + 0.3 * jnp.arange(float(len(target.params)))
    path = rd.run(method, problem, 2500, optimizer, policy=policy, init=init, record_every=20)
    found = rd.certify(method, problem, target, path, optimizer=optimizer, policy=policy)
    assert found.passes
    assert found.stationarity.at_rest
    assert found.stationarity.field_norm < 1e-10
    assert found.stability.kind == "attracts"

    def field(x):
        return rd.field(method, x, problem, policy=policy)

    x = target.params
    slopes = np.stack([(field(x + h) - field(x - h)) / 2e-5 for h in 1e-5 * np.eye(len(x))], axis=1)
    values = np.linalg.eigvals(slopes)
    values = values[np.abs(values) > 1e-7]
    listed = np.sort(np.real(found.stability.eigenvalues))
    assert np.allclose(listed, np.sort(values.real), rtol=1e-4, atol=1e-9)
    factor = np.abs(1 + 0.5 * values).max()
    assert found.stability.factor == pytest.approx(factor, rel=1e-6)
    if found.verdict == "converges":
        assert found.pace.measured == pytest.approx(-np.log(factor), rel=0.05)


def test_a_law_of_another_divergence_is_no_rest_point():
    found = rd.certify(EXACT, BANDIT, OTHER(), policy=FEATURES, steps=300)
    assert (found.verdict, found.stationarity.at_rest) == ("elsewhere", False)
    pull = rd.field(EXACT, OTHER().params, BANDIT, policy=FEATURES)
    assert found.stationarity.field_norm == pytest.approx(float(jnp.abs(pull).sum()), rel=1e-8)
    assert len(found.basins) == 4
    assert np.all(found.basins > 0.01)


def test_the_steps_to_go_are_those_that_a_run_takes():
    optimizer, init = optax.sgd(0.5), BEST().params + 1.0
    path = rd.run(EXACT, BANDIT, 50, optimizer, policy=FEATURES, init=init, record_every=10)
    found = rd.certify(
        EXACT, BANDIT, BEST(), path, optimizer=optimizer, policy=FEATURES, tolerance=1e-3
    )
    assert found.verdict == "plateau"
    more = round(found.remaining_steps)
    far = rd.run(
        EXACT, BANDIT, 50 + more, optimizer, policy=FEATURES, init=init, record_every=50 + more
    )
    left = float(rd.metrics.total_variation(far.log_probs[-1], BEST().log_probs))
    assert left == pytest.approx(1e-3, rel=0.05)


def test_long_steps_are_not_drawn_in():
    """The natural gradient of reverse KL in a class of exponential families contracts by beta."""
    natural = m.natural_policy_gradient(rd.ReverseKL(0.3))
    optimizer = optax.sgd(7.5)
    path = rd.run(natural, BANDIT, 5, optimizer, policy=FEATURES, init=BEST().params + 0.01)
    found = rd.certify(natural, BANDIT, BEST(), path, optimizer=optimizer, policy=FEATURES)
    assert found.stability.factor > 1
    assert found.verdict in ("cycles", "diverges", "undecided", "elsewhere")


def test_decay_in_a_direction_that_moves_no_law_moves_nothing():
    """Weight decay shifts tied logits alike where they are alike, and elsewhere moves the law."""
    even = rd.bandit([1.0, 1.0, 1.0, 1.0])
    flat = rd.restricted(even, rd.ReverseKL(0.3), TIGHT, init=jnp.ones(3))
    decay = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1))
    found = []
    for problem, target in ((even, flat), (BANDIT, ON_TIGHT())):
        path = rd.run(EXACT, problem, 50, decay, policy=TIGHT, init=target.params)
        found.append(rd.certify(EXACT, problem, target, path, optimizer=decay, policy=TIGHT))
    same, moved = found
    assert same.stationarity.moved < 1e-6
    assert same.passes
    assert moved.verdict == "elsewhere"
    assert "without any gradient" in moved.sentence


def test_drawn_groups_are_refused():
    with pytest.raises(ValueError, match="judges exact updates"):
        rd.certify(
            EXACT,
            BANDIT,
            BEST(),
            policy=FEATURES,
            expectation=rd.Sampled(4),
            key=jax.random.key(0),
        )
