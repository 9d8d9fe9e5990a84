"""Certificates on trees, against dense spectra and against runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regdist as rd
from tests.test_tree_identify import CHANCE, EDGES, TREE

m = rd.methods
K2 = m.dr_grpo(beta=0.3, estimator="k2", averaging="sum")
K3 = m.dr_grpo(beta=0.3, estimator="k3", averaging="sum")
NATURAL = m.natural_policy_gradient(rd.ReverseKL(0.3))


def whole(regularizer):
    """The best law of whole sequences, once a session."""
    return functools.cache(lambda: rd.target(TREE.bandit, regularizer))


def ends(tree, make):
    """Where penalties of tokens in the loss stand still."""
    return functools.cache(lambda: rd.stepwise(tree, make(0.3), "reward"))


LEAF = whole(rd.ReverseKL(0.3))
K2_ENDS, K3_ENDS = (ends(TREE, make) for make in (rd.ReverseKL, rd.ForwardKL))
PASS = {
    "k3": (K3, TREE, K3_ENDS, 4000),
    "natural": (NATURAL, TREE, LEAF, 2000),
    "exact": (m.policy_gradient(rd.ForwardKL(0.3)), TREE, whole(rd.ForwardKL(0.3)), 8000),
    "chance": (K3, CHANCE, ends(CHANCE, rd.ForwardKL), 3500),
    "edges": (K2, EDGES, ends(EDGES, rd.ReverseKL), 6500),
}


def spectrum_of(method, tree, log_steps):
    """Eigenvalues of the field in all logits of steps that are taken, from its own derivative."""
    taken = np.asarray(tree.chooses[:, None] & ~jnp.isneginf(tree.paths.log_reach(log_steps)))

    def field(z):
        return rd.field(method, jnp.where(taken, z, log_steps), tree)

    derivative = np.asarray(jax.jacfwd(field)(log_steps))[taken][:, taken]
    states = len(np.unique(np.nonzero(taken)[0]))
    return np.linalg.eigvals(derivative), states


@pytest.mark.parametrize("name", PASS)
def test_a_run_comes_to_its_target_at_the_rate_of_the_spectrum(name):
    """One shift a state moves no policy: those eigenvalues are 0, and are left out."""
    method, tree, made, steps = PASS[name]
    target = made()
    found = rd.certify(method, tree, target, steps=steps)
    assert found.verdict == "converges"
    assert found.stationarity.at_rest
    assert found.stationarity.field_norm < 1e-14
    assert found.stationarity.shift < 1e-10
    assert found.stability.kind == "attracts"
    assert np.all(found.basins < 1e-3)
    values, states = spectrum_of(method, tree, tree.conditionals(target.log_probs))
    order = np.argsort(np.abs(values))
    assert np.all(np.abs(values[order[:states]]) < 1e-12 * np.abs(values).max())
    slowest = values[order[states:]].real
    listed = found.stability.eigenvalues
    assert np.allclose(listed.real, slowest[: len(listed)], rtol=1e-8, atol=0)
    rate = -np.log(np.abs(1 + 0.1 * slowest).max())
    assert found.pace.asymptotic == pytest.approx(rate, rel=1e-8)
    assert found.pace.measured == pytest.approx(found.pace.predicted, rel=0.02)


def test_the_target_of_another_recursion_is_no_rest_point():
    """With the size of the pull there, which the field itself has."""
    for method, target in ((K2, LEAF()), (K3, K2_ENDS()), (NATURAL, K2_ENDS())):
        found = rd.certify(method, TREE, target, steps=200)
        assert found.verdict == "elsewhere"
        assert found.stationarity.at_rest is False
        steps = TREE.conditionals(target.log_probs)
        field = rd.field(method, steps, TREE)
        if method is NATURAL:
            reach = jnp.exp(TREE.log_visits(steps))[:, None] * jnp.exp(steps)
            field = jnp.where(jnp.isneginf(steps), 0, field * reach)
        assert found.stationarity.field_norm == pytest.approx(float(jnp.abs(field).sum()), rel=1e-9)


def test_the_steps_to_go_are_those_that_a_run_takes():
    path = rd.run(K2, TREE, 400, optimizer=optax.sgd(0.5), record_every=20)
    found = rd.certify(K2, TREE, K2_ENDS(), path, optimizer=optax.sgd(0.5), tolerance=1e-3)
    assert found.verdict == "plateau"
    more = round(found.remaining_steps)
    far = rd.run(K2, TREE, 400 + more, optimizer=optax.sgd(0.5), record_every=400 + more)
    left = float(rd.metrics.total_variation(far.log_probs[-1], K2_ENDS().log_probs))
    assert left == pytest.approx(1e-3, rel=0.02)


def test_long_steps_are_not_drawn_in():
    """By -1 + step beta, as with actions; and what shorter ones would bear is said."""
    found = rd.certify(NATURAL, TREE, LEAF(), optimizer=optax.sgd(7.0), steps=50)
    assert found.stability.factor == pytest.approx(7.0 * 0.3 - 1, rel=1e-9)
    assert not found.passes
    path = rd.run(NATURAL, TREE, 3, optimizer=optax.sgd(7.0))
    held = rd.certify(NATURAL, TREE, LEAF(), path, optimizer=optax.sgd(7.0))
    assert held.verdict in ("cycles", "diverges", "undecided")
    assert "those below 6.7 are drawn in" in held.sentence


def test_a_loop_contracts_by_its_own_factor():
    loop, optimizer = rd.loop(epochs=2, staleness=1), optax.sgd(0.5)
    found = rd.certify(K3, TREE, K3_ENDS(), steps=1500, optimizer=optimizer, loop=loop)
    assert found.verdict == "converges"
    path = rd.run(K3, TREE, 600, optimizer=optimizer, loop=loop, record_every=1)
    away = [
        float(rd.metrics.total_variation(x, K3_ENDS().log_probs)) for x in path.log_probs[-200:]
    ]
    measured = (away[-1] / away[0]) ** (1 / 199)
    assert found.stability.factor == pytest.approx(measured, rel=1e-3)


def test_what_no_proof_is_known_of_is_undecided():
    """A target that leaves steps without mass, and one at a corner of total variation."""
    sparse = rd.target(TREE.bandit, rd.Pearson(0.3))
    assert np.any(sparse.probs == 0)
    found = rd.certify(m.policy_gradient(rd.Pearson(0.3)), TREE, sparse, steps=200)
    assert (found.verdict, found.stationarity.at_rest) == ("undecided", None)
    assert "die out" in found.sentence
    wide = rd.TotalVariation(3.0)
    stays = rd.target(TREE.bandit, wide)
    assert np.allclose(stays.log_probs, TREE.bandit.log_ref)
    corner = rd.certify(m.policy_gradient(wide), TREE, stays, steps=200)
    assert corner.verdict == "undecided"
    assert "jumps" in corner.sentence


def test_other_laws_and_drawn_groups_are_refused():
    with pytest.raises(ValueError, match=r"sequences of the tree, shape \(7,\)"):
        rd.certify(K2, TREE, rd.target(EDGES.bandit, rd.ReverseKL(0.3)))
    with pytest.raises(ValueError, match=r"give rd.Group\(4"):
        rd.certify(K2, TREE, LEAF(), expectation=rd.Sampled(4), key=jax.random.key(0))
