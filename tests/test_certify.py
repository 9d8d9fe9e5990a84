import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regdist as rd
from regdist.numerics.spectrum import spectrum
from tests.strategies import REGULARIZERS

BANDIT = rd.bandit([1.0, 0.8, 0.0, 0.3, 0.5], [0.02, 0.1, 0.6, 0.18, 0.1])
SGD = optax.sgd(0.5)


# Total variation has a field that jumps at its corners: no Jacobian, hence no rate.
SMOOTH = [name for name in REGULARIZERS if name not in ("total variation", "reverse KL + TV")]


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("make", [rd.methods.policy_gradient, rd.methods.natural_policy_gradient])
def test_predicted_and_measured_rates_agree(name, make):
    """The spectrum predicts, without the run, how fast the run approaches in the end."""
    regularizer = REGULARIZERS[name].make(0.8)
    aim = rd.target(BANDIT, regularizer)
    path = rd.run(make(regularizer), BANDIT, 4000, SGD, record_every=5, tolerance=1e-12)
    c = rd.certify(make(regularizer), BANDIT, aim, path, optimizer=SGD)
    assert c.verdict == "converges"
    assert c.passes
    assert c.stationarity.field_norm < 1e-14
    assert np.all(c.stability.eigenvalues < 0)
    assert np.isclose(c.pace.measured, c.pace.predicted, rtol=0.03)
    assert c.pace.asymptotic <= c.pace.measured * 1.05
    assert c.distance.total_variation < 1e-6
    assert c.remaining_steps == 0
    if name in ("reverse KL", "entropy", "reverse KL + entropy"):
        assert c.distance.identity_error < 1e-14
    else:
        assert c.distance.identity_error is None


def test_spectrum_by_hand():
    """Natural gradient with reverse KL: every mode at -beta. Softmax: -beta (diag p - p p^T)."""
    aim = rd.target(BANDIT, rd.ReverseKL(0.4))
    natural = rd.certify(rd.methods.natural_policy_gradient(rd.ReverseKL(0.4)), BANDIT, aim)
    assert np.allclose(natural.stability.eigenvalues, [-0.4] * 4, rtol=1e-12)
    plain = rd.certify(rd.methods.policy_gradient(rd.ReverseKL(0.4)), BANDIT, aim)
    p = np.asarray(aim.probs)
    want = np.sort(-0.4 * np.linalg.eigvalsh(np.diag(p) - np.outer(p, p))[1:])[::-1]
    assert np.allclose(plain.stability.eigenvalues, want, rtol=1e-10)
    assert np.isclose(plain.stability.fastest, want[-1], rtol=1e-10)


@pytest.mark.parametrize(
    "regularizer", [rd.ReverseKL(0.3), rd.ForwardKL(0.3), rd.AlphaDivergence(0.5, 0.3)]
)
@pytest.mark.parametrize("make", [rd.methods.policy_gradient, rd.methods.natural_policy_gradient])
def test_large_tables_agree_with_the_dense_spectrum(regularizer, make):
    """400 actions, probabilities over twelve decades, matrix-free against the dense Jacobian."""
    random = np.random.default_rng(0)
    log_q = random.normal(size=400) * 4
    log_q -= np.logaddexp.reduce(log_q)
    bandit = rd.bandit(random.normal(size=400), log_reference=log_q)
    method, aim = make(regularizer), rd.target(bandit, regularizer)
    c = rd.certify(method, bandit, aim, steps=10)
    dense = np.asarray(jax.jacfwd(lambda z: rd.field(method, z, bandit))(aim.log_probs))
    m = int(np.argmax(aim.log_probs))
    rest = np.arange(400) != m
    reduced = dense[rest][:, rest] - dense[m][rest]
    scale = np.abs(reduced).max(0)
    slow = 1 / np.linalg.eigvals(np.linalg.inv(reduced / scale) / scale[:, None])
    slow = slow[np.argsort(np.abs(slow))]
    fast = np.linalg.eigvals(reduced)
    assert np.isclose(c.stability.eigenvalues[0], slow[0].real, rtol=1e-4)
    assert np.isclose(c.stability.fastest, fast[np.argmax(np.abs(fast))].real, rtol=1e-4)


def test_tiny_eigenvalues_keep_their_digits():
    """A mode of size 1e-150 beside one of size 1: dense and matrix-free."""
    for size in (6, 300):
        p = np.exp(np.linspace(0, -340, size))
        p /= p.sum()

        def product(v, p=p):
            return -(p * v - p * (p @ v))

        slow, fast = spectrum(product, size, 0)
        assert np.isclose(slow[0], -p[-1], rtol=1e-6)
        assert np.isclose(fast, -np.linalg.eigvalsh(np.diag(p) - np.outer(p, p)).max(), rtol=1e-6)


def test_a_plateau_is_called_a_plateau():
    """A rare good action: the plain gradient waits, the natural one does not; the target stands."""
    bandit = rd.bandit([1.0, 0.0], [1e-6, 1 - 1e-6])
    regularizer = rd.ReverseKL(0.02)
    aim = rd.target(bandit, regularizer)
    assert aim.probs[0] > 0.99
    c = rd.certify(rd.methods.policy_gradient(regularizer), bandit, aim, steps=1000)
    assert c.verdict == "plateau"
    assert c.passes
    assert c.stationarity.field_norm < 1e-14
    assert c.distance.total_variation > 0.9
    assert c.remaining_steps > 1e4
    assert "still approaching" in c.sentence
    assert "more steps to go" in c.sentence
    quick = rd.certify(
        rd.methods.natural_policy_gradient(regularizer),
        bandit,
        aim,
        steps=4000,
        optimizer=optax.sgd(1.0),
    )
    assert quick.verdict == "converges"


def test_the_time_a_plateau_predicts_is_right_near_the_target():
    regularizer = rd.ReverseKL(0.3)
    aim = rd.target(BANDIT, regularizer)
    method = rd.methods.policy_gradient(regularizer)
    path = rd.run(method, BANDIT, 300, SGD, record_every=20)
    c = rd.certify(method, BANDIT, aim, path, optimizer=SGD)
    assert c.verdict == "plateau"
    more = round(c.remaining_steps)
    end = rd.run(method, BANDIT, 300 + more, SGD, record_every=300 + more)
    left = rd.metrics.total_variation(end.log_probs[-1], aim.log_probs)
    assert 0.7e-6 < left < 1.4e-6


def test_elsewhere_vertex_cycles_and_diverges():
    regularizer = rd.ReverseKL(0.3)
    wrong = rd.target(BANDIT, rd.ForwardKL(0.3))
    aim = rd.target(BANDIT, regularizer)
    natural = rd.methods.natural_policy_gradient(regularizer)
    c = rd.certify(natural, BANDIT, wrong)
    assert c.verdict == "elsewhere"
    assert not c.passes
    greedy = rd.certify(rd.methods.natural_policy_gradient(), BANDIT, aim, optimizer=optax.sgd(1.0))
    assert greedy.verdict == "vertex"
    assert greedy.distance.objective_gap is None
    wild = rd.certify(natural, BANDIT, aim, optimizer=optax.sgd(2.1 / 0.3))
    assert wild.verdict == "cycles"
    edge = rd.certify(natural, BANDIT, aim, optimizer=optax.sgd(2.0 / 0.3))  # a cycle of two
    assert edge.verdict == "cycles"
    broken = optax.scale_by_schedule(lambda count: jnp.where(count < 6, -0.1, jnp.inf))
    assert rd.certify(natural, BANDIT, aim, optimizer=broken).verdict == "diverges"
    lost = rd.run(natural, BANDIT, 100, init=[0.0, 0.0, -np.inf, 0.0, 0.0])
    c = rd.certify(natural, BANDIT, aim, lost)
    assert c.verdict == "elsewhere"
    assert c.distance.kl_from_target == np.inf


def test_an_optimiser_with_memory_gets_no_predicted_rate():
    regularizer = rd.ReverseKL(0.5)
    adam = optax.adam(0.05)
    method, aim = rd.methods.policy_gradient(regularizer), rd.target(BANDIT, regularizer)
    with jax.numpy_dtype_promotion("standard"):  # optax's adam promotes its step count
        c = rd.certify(method, BANDIT, aim, optimizer=adam)
    assert c.pace.predicted is None
    assert c.pace.asymptotic is None
    assert c.pace.measured is not None


def test_sparse_targets_are_judged_on_their_support():
    regularizer = rd.AlphaDivergence(2.0, 0.15)
    aim = rd.target(BANDIT, regularizer)
    assert aim.probs[2] == 0
    c = rd.certify(rd.methods.natural_policy_gradient(regularizer), BANDIT, aim, steps=4000)
    assert c.verdict == "converges"
    assert len(c.stability.eigenvalues) == 3


def test_one_action_and_records_are_plain_numbers():
    one = rd.bandit([1.0])
    c = rd.certify(
        rd.methods.policy_gradient(rd.ReverseKL(1.0)), one, rd.target(one, rd.ReverseKL(1.0))
    )
    assert c.verdict == "converges"
    assert isinstance(dataclasses.asdict(c)["distance"]["kl_to_target"], float)
    method = rd.methods.policy_gradient(rd.ReverseKL(1.0))
    batch = jax.vmap(lambda _: rd.run(method, one, 10))(jnp.ones(2))
    with pytest.raises(ValueError, match="one run"):
        rd.certify(method, one, rd.target(one, rd.ReverseKL(1.0)), batch)
