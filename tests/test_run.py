import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regdist as rd

BANDIT = rd.bandit([1.0, 0.0, 0.5], [0.2, 0.5, 0.3])
METHOD = rd.methods.policy_gradient(rd.ReverseKL(0.3))


@pytest.mark.parametrize(
    "optimizer", [optax.sgd(0.3), optax.adam(0.05), optax.sgd(0.1, momentum=0.9)]
)
def test_the_scan_is_the_loop(optimizer):
    with jax.numpy_dtype_promotion("standard"):  # optax's adam promotes its step count
        check_scan_against_loop(optimizer)


def check_scan_against_loop(optimizer):
    path = rd.run(METHOD, BANDIT, 30, optimizer, record_every=10)
    z, state = BANDIT.log_ref, optimizer.init(BANDIT.log_ref)
    for step in range(31):
        if step % 10 == 0:
            assert path.step[step // 10] == step
            assert np.allclose(path.log_probs[step // 10], rd.log_softmax(z), atol=1e-14)
            norm = jnp.abs(rd.field(METHOD, z, BANDIT)).max()
            assert np.isclose(path.field_norm[step // 10], norm, rtol=1e-12)
        updates, state = optimizer.update(-rd.field(METHOD, z, BANDIT), state, z)
        z = z + updates
    assert path.steps == 30
    assert not path.settled


def test_every_optimiser_ends_at_the_target():
    aim = rd.target(BANDIT, rd.ReverseKL(0.3)).log_probs
    for optimizer in (optax.sgd(3.0), optax.sgd(1.0, momentum=0.5)):
        path = rd.run(METHOD, BANDIT, 2000, optimizer, record_every=500)
        assert np.allclose(path.log_probs[-1], aim, atol=1e-12)


def test_it_stops_at_the_first_record_within_the_tolerance():
    path = rd.run(METHOD, BANDIT, 5000, optax.sgd(1.0), record_every=100, tolerance=1e-6)
    assert path.settled
    last = int(path.steps)
    assert last < 5000
    assert last % 100 == 0
    assert path.field_norm[last // 100] <= 1e-6 < path.field_norm[last // 100 - 1]
    assert np.all(path.step[last // 100 :] == last)
    exact = rd.run(METHOD, BANDIT, last, optax.sgd(1.0), record_every=last)
    assert np.array_equal(path.log_probs[-1], exact.log_probs[-1])
    assert len(path.step) == 51


def test_it_stops_where_nothing_moves():
    still = rd.bandit([0.5, 0.5], [0.5, 0.5])
    for tolerance in (0, jnp.zeros(())):
        path = rd.run(METHOD, still, 20, record_every=5, tolerance=tolerance)
        assert path.settled
        assert path.steps == 0


@pytest.mark.parametrize("tolerance", [0, 1e-9])
def test_blocks_with_nonfinite_steps_are_reported_and_not_taken(tolerance):
    explode = optax.scale_by_schedule(lambda count: jnp.where(count < 6, 0.1, jnp.inf))
    optimizer = optax.chain(explode, optax.scale(-1.0))
    path = rd.run(METHOD, BANDIT, 20, optimizer, record_every=5, tolerance=tolerance)
    assert path.nonfinite == 10
    assert path.steps == 5
    assert path.step.tolist() == [0, 5, 5, 5, 5]
    assert np.all(np.isfinite(path.log_probs))
    assert not path.settled
    exact = rd.run(METHOD, BANDIT, 20, optimizer, record_every=1, tolerance=tolerance)
    assert exact.nonfinite == 7
    assert exact.steps == 6


def test_vmap_over_learning_rates_and_betas():
    rates = jnp.array([0.1, 0.5])
    batch = jax.vmap(lambda r: rd.run(METHOD, BANDIT, 20, optax.sgd(r)).log_probs)(rates)
    for i, rate in enumerate((0.1, 0.5)):
        assert np.allclose(
            batch[i], rd.run(METHOD, BANDIT, 20, optax.sgd(rate)).log_probs, atol=1e-14
        )
    betas = jnp.array([0.1, 1.0])
    make = rd.methods.natural_policy_gradient
    batch = jax.jit(jax.vmap(lambda b: rd.run(make(rd.ReverseKL(b)), BANDIT, 20).log_probs))(betas)
    one = rd.run(make(rd.ReverseKL(1.0)), BANDIT, 20).log_probs
    assert np.allclose(batch[1], one, atol=1e-14)


def test_one_compilation_for_many_coefficients():
    from regdist.runs.driver import _compiled_drive

    rd.run(METHOD, BANDIT, 10)
    before = _compiled_drive._cache_size()
    for beta in (1, 0.5, 2.0):
        rd.run(rd.methods.policy_gradient(rd.ReverseKL(beta)), BANDIT, 10)
    assert _compiled_drive._cache_size() == before


def test_float32_stays_float32():
    bandit = rd.bandit(np.array([1, 0, 0.5], np.float32), np.array([0.2, 0.5, 0.3], np.float32))
    path = rd.run(METHOD, bandit, 3000, optax.sgd(3.0), record_every=1000)
    assert path.log_probs.dtype == jnp.float32
    aim = rd.target(bandit, rd.ReverseKL(0.3))
    assert rd.metrics.total_variation(path.log_probs[-1], aim.log_probs) < 1e-6
    certificate = rd.certify(METHOD, bandit, aim, path, optimizer=optax.sgd(3.0))
    assert certificate.verdict == "converges"


@pytest.mark.parametrize(("steps", "shown"), [(25, [0, 10, 20, 25]), (3, [0, 3]), (10, [0, 10])])
def test_the_last_record_is_the_end(steps, shown):
    path = rd.run(METHOD, BANDIT, steps)
    assert path.step.tolist() == shown
    one = rd.run(METHOD, BANDIT, steps, record_every=1)
    assert np.allclose(path.log_probs[-1], one.log_probs[-1], atol=1e-15)
    assert path.steps == steps


@pytest.mark.parametrize("regularizer", [rd.ReverseKL(0.3), rd.ForwardKL(0.3)])
def test_forbidden_actions_stay_at_zero(regularizer):
    bandit = rd.bandit([1.0, -np.inf, 0.2], [0.4, 0.4, 0.2])
    method = rd.methods.natural_policy_gradient(regularizer)
    certificate = rd.certify(method, bandit, rd.target(bandit, regularizer))
    assert certificate.verdict == "converges"
    assert certificate.stationarity.field_norm < 1e-14


def test_wrong_calls():
    with pytest.raises(ValueError, match="must be a positive integer"):
        rd.run(METHOD, BANDIT, 0)
    with pytest.raises(ValueError, match="init must have shape"):
        rd.run(METHOD, BANDIT, 10, init=[0.0, 1.0])


@pytest.mark.parametrize(
    "optimizer",
    [optax.sgd(0.3), optax.adamw(0.05), optax.lamb(0.05), optax.sgd(0.1, momentum=0.9)],
)
def test_optimisers_leave_excluded_actions_alone(optimizer):
    """As if they were not there: the decay or the norm of a logit of -inf would be NaN."""
    with jax.numpy_dtype_promotion("standard"):
        bandit = rd.bandit([1.0, 0.0, 0.4, -np.inf, 0.2], [0.2, 0.5, 0.2, 0.1, 0.0])
        path = rd.run(METHOD, bandit, 20, optimizer)
        alone = rd.bandit([1.0, 0.0, 0.4], log_reference=rd.log_softmax(bandit.log_ref[:3]))
        shift = bandit.log_ref[:3] - alone.log_ref  # weight decay sees the logits themselves
        kept = rd.run(METHOD, alone, 20, optimizer, init=alone.log_ref + shift)
        assert path.nonfinite == -1
        assert np.allclose(path.log_probs[-1, :3], kept.log_probs[-1], rtol=0, atol=1e-12)
        assert np.all(np.isneginf(path.log_probs[:, 3:]))


@pytest.mark.parametrize("make", [rd.methods.policy_gradient, rd.methods.natural_policy_gradient])
def test_derivatives_of_a_run_beside_an_excluded_action(make):
    """In both modes against differences, with respect to beta and the rewards."""
    bandit = rd.bandit([1.0, 0.0, 0.5], [0.4, 0.6, 0.0])

    def end(beta, reward):
        task = rd.Bandit(reward, bandit.log_ref, bandit.label)
        return rd.run(make(rd.ReverseKL(beta)), task, 4, record_every=2).log_probs[-1, 0]

    at = jnp.array(0.3), bandit.reward
    back, ahead = (d(end, (0, 1))(*at) for d in (jax.jacrev, jax.jacfwd))
    assert jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b, rtol=1e-12), back, ahead))
    h = 1e-5
    assert np.isclose(back[0], (end(0.3 + h, at[1]) - end(0.3 - h, at[1])) / (2 * h), rtol=1e-7)
    moved = jnp.array([h, 0.0, 0.0])
    assert np.isclose(
        back[1][0], (end(at[0], at[1] + moved) - end(at[0], at[1] - moved)) / (2 * h), rtol=1e-7
    )


def test_a_start_beyond_the_reference_is_pulled_back_as_the_field_says():
    """Logits with mass where the reference has none: an infinite pull, hence a non-finite step."""
    bandit = rd.bandit([1.0, 0.0, 0.0], [0.5, 0.5, 0.0])
    method = rd.methods.policy_gradient(rd.ReverseKL(0.1))
    path = rd.run(method, bandit, 3, optax.sgd(0.1), init=[0.0, 0.0, 0.0], record_every=1)
    assert path.nonfinite == 1
