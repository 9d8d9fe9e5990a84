"""What `identify` says, on problems whose answers are known without it: `tests/battery.py`."""

import jax.numpy as jnp
import numpy as np
import pytest

import regdist as rd
from regdist.runs.starts import starts
from regdist.runs.verdicts import VERDICTS
from tests.battery import CASES, planar

m = rd.methods
THREE = rd.bandit([1.0, 0.5, 0.0], [0.2, 0.3, 0.5])


def test_the_battery_is_large_and_its_names_differ():
    assert len(CASES) >= 150
    assert len({case.name for case in CASES}) == len(CASES)
    assert all(set(case.words) <= set(VERDICTS) and case.how for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_wrong_word_and_no_wrong_name(case, monkeypatch):
    """From two starts where eight are the default: each costs as much as the first."""
    monkeypatch.setattr("regdist.runs.identify.usual_starts", lambda bandit, _: starts(bandit, 0))
    method, bandit, options = case.ask()
    found = rd.identify(method, bandit, **options)
    assert str(found).startswith(found.verdict)
    assert found.verdict in case.words, str(found)
    if case.regularizer != "?":
        assert repr(found.regularizer) == (case.regularizer or "None"), str(found)
    if case.law is not None:
        seen = case.law > 1e-12
        assert np.allclose(np.log(case.law[seen]), found.log_probs[seen], atol=1e-6)
        assert np.all(found.probs[~seen] < 1e-9)


def judged_by_certify():
    """Every fourth case with a law of its own samples, and one whose target asks for the lost."""
    asked = [case for case in CASES if case.law is not None and "old" not in case.ask()[2]]
    lost = [case for case in asked if case.name == "a best action that the reference forbids"]
    return [*asked[::4], *lost]


@pytest.mark.parametrize("case", judged_by_certify(), ids=lambda case: case.name)
def test_certify_never_passes_a_run_whose_limit_is_another_law(case):
    method, bandit, options = case.ask()
    around, init = options.get("loop"), options.get("starts", [None])[0]
    path = rd.run(method, bandit, 300, init=init, record_every=50, loop=around)
    aim = rd.target(bandit, rd.ForwardKL(0.3))
    c = rd.certify(method, bandit, aim, path, loop=around)
    apart = 0.5 * np.abs(np.asarray(aim.probs) - case.law).sum()
    assert c.passes == (apart < 1e-6), str(c)


def test_a_small_field_is_no_evidence():
    """The reference holds the best action at e^-31: the field there is 7e-14, and not at rest."""
    log_q = -31.0
    bandit = rd.bandit([1.0, 0.0], log_reference=[log_q, np.log1p(-np.exp(log_q))])
    found = rd.identify(m.reinforce(), bandit)
    assert found.verdict == "vertex"
    assert found.log_probs[0] == 0


def test_two_families_with_one_end_are_told_apart_by_their_response():
    """On a coin every family has every law as a target at some beta."""
    coin = rd.bandit([1.0, 0.0], [0.5, 0.5])
    for estimator, name in (("k3", "forward KL"), ("k2", "reverse KL")):
        found = rd.identify(m.dr_grpo(beta=0.3, estimator=estimator), coin)
        rows = {row.name: row for row in found.candidates}
        assert rows["reverse KL"].distance < 1e-9 > rows["forward KL"].distance
        assert [n for n, row in rows.items() if row.response == "same"] == [name]


def test_a_beta_that_moves_is_told_from_a_fixed_one():
    moving = rd.identify(m.grpo(1.5, "k2", eps=0.0), THREE, starts=THREE.log_ref[None])
    assert moving.candidates[0].response == "moves"
    assert "self-consistent" in moving.sentence
    fixed = rd.identify(m.dr_grpo(beta=0.3, estimator="k2"), THREE)
    assert fixed.candidates[0].response == "same"


def test_targets_of_ones_own_join_the_candidates():
    mine = rd.target(THREE, rd.ReverseKL(0.3))
    own = {"mine": mine, "Tsallis": rd.Tsallis(2.0, 1.0)}
    found = rd.identify(m.policy_gradient(rd.Tsallis(2.0, 1.0)), THREE, targets=own)
    assert found.verdict == "converges"
    assert repr(found.regularizer) == "Tsallis(2, 1)"
    assert {"mine", "Tsallis"} <= {row.name for row in found.candidates}
    with pytest.raises(ValueError, match=r"targets\['x'\] must be over 3 actions"):
        rd.identify(
            m.reinforce(), THREE, targets={"x": rd.target(rd.bandit([1.0, 0.0]), rd.Entropy(1.0))}
        )


def test_samples_of_another_policy_that_stays():
    """It comes to rest where the field with those samples is 0, which is no target of theirs."""
    old = jnp.log(jnp.array([0.6, 0.3, 0.1]))
    method = m.policy_gradient(rd.ReverseKL(0.3))
    found = rd.identify(method, THREE, old=old)
    assert found.verdict == "elsewhere"
    assert np.abs(rd.field(method, found.log_probs, THREE, old=old)).max() < 1e-12
    assert np.abs(rd.field(method, found.log_probs, THREE)).max() > 1e-3


def test_a_law_of_ones_own_moves_with_nothing_whatever_it_is_called():
    flat = rd.bandit([0.0, 0.0, 0.0], [0.2, 0.3, 0.5])
    mine = {"my reference": rd.target(flat, rd.ReverseKL(1.0))}
    found = rd.identify(m.policy_gradient(rd.ReverseKL(0.3)), flat, targets=mine)
    rows = {row.name: row for row in found.candidates}
    assert rows["my reference"].distance < 1e-9 > rows["reference"].distance
    assert rows["my reference"].response == "undefined"


def test_undecided_says_what_was_tried():
    """A centre: closed orbits of every size, whose multiplier is 1."""
    found = rd.identify(planar(0.0, 1.0, 0.0), THREE, starts=[[0.5, 0.0, 0.0]])
    assert found.verdict == "undecided"
    assert found.regularizer is None
    assert found.sentence
    assert list(found.basins) == [-1]


def test_actions_that_move_alike_share_a_coordinate(monkeypatch):
    """Nine actions of three kinds, as three numbers and as nine: the same words and laws."""
    kinds = np.array([0, 1, 2, 1, 2, 2, 0, 1, 2])
    reward = np.array([1.0, 0.5, 0.0])[kinds]
    reference = np.array([0.05, 0.1, 0.15])[kinds]
    bandit = rd.bandit(reward, reference / reference.sum())
    for method in (
        m.dr_grpo(beta=0.3, estimator="k3"),
        m.policy_gradient(rd.ReverseKL(0.2) + rd.Entropy(0.1)),
        m.reinforce(geometry="natural"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr("regdist.runs.search.TOGETHER", 3)
            patch.setattr("regdist.runs.starts.TOGETHER", 3)
            few = rd.identify(method, bandit)
        whole = rd.identify(method, bandit, starts=np.stack([bandit.log_ref, np.zeros(9)]))
        assert few.verdict == whole.verdict
        assert repr(few.regularizer) == repr(whole.regularizer)
        if few.verdict == "converges":
            assert np.allclose(few.log_probs, whole.log_probs, atol=1e-8)


def test_a_method_that_tells_equal_actions_apart_is_not_merged(monkeypatch):
    """It pays one of two equal actions more: its flow has all its actions."""

    def loss(view):
        return -view.log_probs * jnp.where(view.actions == 1, 1.3, view.rewards)

    bandit = rd.bandit([1.0, 1.0, 0.0, 0.0], [0.25] * 4)
    monkeypatch.setattr("regdist.runs.search.TOGETHER", 2)
    monkeypatch.setattr("regdist.runs.starts.TOGETHER", 2)
    found = rd.identify(m.from_loss(loss, geometry="natural"), bandit)
    assert found.verdict == "vertex"
    assert int(np.argmax(found.log_probs)) == 1


def test_the_flagship_problem_is_answered():
    """7,680 actions, of ten kinds."""
    game = rd.problems.by_name("game24:2,4,6,8").bandit
    found = rd.identify(m.dr_grpo(beta=0.3, estimator="k3"), game)
    assert repr(found.regularizer) == "ForwardKL(0.3)"
    aim = rd.target(game, rd.ForwardKL(0.3))
    assert np.abs(found.log_probs - aim.log_probs).max() < 1e-8


def test_limits_in_a_loop():
    """A sampler weighs gains anew; a moving reference frees the policy; epochs change nothing."""
    method = m.natural_policy_gradient(rd.ReverseKL(0.3))
    assert repr(rd.identify(method, THREE, loop=rd.loop(epochs=4)).regularizer) == "ReverseKL(0.3)"
    k2 = m.dr_grpo(beta=0.3, estimator="k2", geometry="natural")
    freed = rd.identify(k2, THREE, loop=rd.loop(sync_every=5))
    assert freed.verdict == "vertex"
    assert freed.log_probs[0] == 0
    loop = rd.loop(sampler=lambda law: rd.laws.temper(law, 2.0))
    found = rd.identify(k2, THREE, loop=loop)
    assert found.verdict == "elsewhere"
    run = rd.run(k2, THREE, 4000, loop=loop, record_every=4000)
    assert np.allclose(run.log_probs[-1], found.log_probs, atol=1e-6)


def test_a_controller_leaves_it_undecided():
    found = rd.identify(m.ppo_adaptive_kl(target=0.1), THREE)
    assert found.verdict == "undecided"
    assert "controller" in found.sentence
