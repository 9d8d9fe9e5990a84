"""Ends on trees and their names, against differences, recursions and runs."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regdist as rd
from regdist.methods import Population
from regdist.runs.dynamics import widened
from regdist.runs.naming import FAMILIES
from regdist.runs.tree_dynamics import MOST_STEPS, TreeDynamics, steps_alive
from regdist.runs.tree_naming import FORMS, LEAF, STEPWISE, UNPENALISED, Recursions

m = rd.methods
SEQUENCES = [[0], [1, 0], [1, 1, 0], [1, 1, 1], [1, 2], [2, 0], [2, 1]]
REWARD = [0.3, 0.0, 1.0, 0.2, 0.5, 0.9, -0.2]
LAW = [0.2, 0.1, 0.1, 0.2, 0.1, 0.1, 0.2]
TREE = rd.tree(SEQUENCES, REWARD, reference=LAW)
UNEVEN = np.log(
    [[0.2, 0.5, 0.3], [1.0, 1.0, 1.0], [0.6, 0.4, 0.0], [0.3, 0.7, 0.0]],
    where=[[1] * 3, [0] * 3, [1, 1, 0], [1, 1, 0]],
    out=np.full((4, 3), -np.inf),
)
CHANCE = rd.tree(SEQUENCES, REWARD, step_log_reference=UNEVEN, chance={(1,): [0.2, 0.5, 0.3]})
# The first step is forced, one sequence is forbidden, and the reference never takes another.
EDGES = rd.tree(
    [[0, 0], [0, 1, 0], [0, 1, 1], [0, 2, 0], [0, 2, 1], [0, 2, 2]],
    [0.3, 0.0, 1.0, -np.inf, 0.4, 0.8],
    reference=[0.3, 0.2, 0.1, 0.1, 0.3, 0.0],
)
TREES = {"three": TREE, "chance": CHANCE, "edges": EDGES}


def flow_of(tree, method=None, key=0):
    """A flow, and logits of it that are nothing special."""
    method = m.natural_policy_gradient() if method is None else method
    method, tree = widened(method, tree)
    flow = TreeDynamics(method, tree, Population(), steps_alive(tree, np.asarray(tree.log_ref)))
    return flow, np.random.default_rng(key).normal(size=len(flow.index))


def difference(fn, x, h=1e-5):
    """The derivative of fn in each entry of x, as the last axis."""
    columns = [(fn(x + h * e) - fn(x - h * e)) / (2 * h) for e in np.eye(len(x))]
    return np.stack(columns, axis=-1)


@pytest.mark.parametrize("name", TREES)
def test_slopes_of_the_flow_are_limits_of_differences(name):
    """Gains and rates, under both geometries, with the logit of one step of each state held."""
    tree = TREES[name]
    for method in (m.dr_grpo(beta=0.3, averaging="sum"), m.natural_policy_gradient()):
        flow, z = flow_of(tree, method)
        anchor = flow.anchor(z)
        assert np.allclose(np.bincount(flow.block, np.exp(flow.law(z))), 1, rtol=0, atol=1e-15)
        steps = flow.tree.conditionals(jnp.asarray(flow.whole(z)))
        assert np.allclose(np.asarray(steps).reshape(-1)[flow.index], flow.law(z), atol=1e-14)
        visits = np.repeat(np.exp(flow.tree.log_visits(steps)), steps.shape[1])
        assert np.allclose(flow.mass(z), (visits * np.exp(steps).ravel())[flow.index], atol=1e-15)
        gains = difference(flow.gain, z)
        assert np.allclose(flow.slopes(z), gains, rtol=0, atol=1e-8)
        rates = difference(lambda x, flow=flow, held=anchor: flow.rate(x, held), z)
        assert np.allclose(flow.rate_slopes(z, anchor), rates, rtol=0, atol=1e-8)
        field = np.asarray(rd.field(method, flow.place(z).reshape(steps.shape), tree)).ravel()
        field = field[flow.index]
        assert np.allclose(flow.rate(z, anchor), field - field[anchor], rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("form", FORMS)
def test_what_is_lost_moves_as_differences_say(name, form):
    flow, z = flow_of(TREES[name])
    held = ~np.isneginf(flow.log_ref)
    one = rd.JensenShannon(0.3) if name == "edges" else rd.ForwardKL(0.3)  # where it is finite
    for regularizer in (one, rd.Hellinger(0.3) + rd.Tsallis(2.0, 0.2)):
        if form == LEAF and name == "chance":
            continue

        def lost(z, log_ref, regularizer=regularizer):
            moved = flow.with_problem(flow.reward, log_ref)
            return Recursions(moved, z).lost(form, regularizer, np.zeros((0, len(z)))).at

        ways = flow.directions(np.random.default_rng(3), 2)[1]
        side = Recursions(flow, z).lost(form, regularizer, ways)
        assert np.allclose(lost(z, flow.log_ref), side.at, rtol=0, atol=1e-13)
        by_z = difference(lambda x, lost=lost: lost(x, flow.log_ref), z)
        assert np.allclose(side.by_z, by_z, rtol=0, atol=1e-7)
        for way, moved in zip(ways, side.by_ref.T, strict=True):
            h = 1e-5 * np.where(held, way, 0)
            want = (lost(z, flow.log_ref + h) - lost(z, flow.log_ref - h)) / 2e-5
            assert np.allclose(
                moved - flow.mean(np.exp(z), moved),
                want - flow.mean(np.exp(z), want),
                rtol=0,
                atol=1e-7,
            )


def target_of(tree, regularizer, form):
    if form == LEAF:
        return rd.target(tree.bandit, regularizer)
    return rd.stepwise(tree, regularizer, "regularized" if form == STEPWISE else "reward")


@pytest.mark.parametrize("name", TREES)
def test_every_target_is_the_best_fit_of_itself(name):
    """In its own recursion to rounding, at its own beta; in another, if at all, at a distance."""
    tree = TREES[name]
    asked = FAMILIES if name == "three" else {n: FAMILIES[n] for n in ("reverse KL", "Hellinger")}
    for form in FORMS:
        if form == LEAF and name == "chance":
            continue
        few = ("forward KL", "Jensen-Shannon", "reverse KL")  # each is a solver to compile
        for family, make in asked.items():
            if form != LEAF and family not in (*few, "Hellinger"):
                continue
            if family == "total variation":
                continue  # of a corner: no slope
            best = target_of(tree, make(2.0), form)
            law = tree.conditionals(best.log_probs)
            flow, _ = flow_of(tree)
            z = np.asarray(law).reshape(-1)[flow.index]
            if np.any(np.isneginf(z)) or not np.allclose(flow.whole(z), best.log_probs):
                continue  # it has mass where the reference has none, or the other way round
            if form == STEPWISE and not np.isfinite(best.value):
                continue  # the reference takes the forbidden sequence
            fits = Recursions(flow, z).families([])
            same = form if form != STEPWISE or not make(1.0).merges() or name == "chance" else LEAF
            mine = [f for f in fits if (f.name, f.form) == (family, same)]
            assert len(mine) == 1
            assert mine[0].error < 1e-11
            assert mine[0].beta == pytest.approx(2.0, rel=1e-9)
            near = [f for f in fits if f.error < 1e-6]
            assert near == mine


CASES = {
    "k2 in the loss": (m.dr_grpo(beta=0.3, estimator="k2", averaging="sum"), "three"),
    "k3 in the loss": (m.dr_grpo(beta=0.3, estimator="k3", averaging="sum"), "three"),
    "k1 in the reward": (
        m.dr_grpo(beta=0.3, estimator="k1", placement="reward", averaging="sum"),
        "three",
    ),
    "of sequences": (m.natural_policy_gradient(rd.JensenShannon(0.3)), "three"),
    "k1, chance": (
        m.dr_grpo(beta=0.3, estimator="k1", placement="reward", averaging="sum"),
        "chance",
    ),
    "k3, chance": (m.dr_grpo(beta=0.3, estimator="k3", averaging="sum"), "chance"),
    "k2, edges": (m.dr_grpo(beta=0.3, estimator="k2", averaging="sum"), "edges"),
    "token mean": (m.dapo(beta=0.3, estimator="k2", normalize_std=False), "three"),
}
"""Methods, and on which tree."""
NAMES = {
    "k2 in the loss": ("ReverseKL(0.3)", UNPENALISED),
    "k3 in the loss": ("ForwardKL(0.3)", UNPENALISED),
    "k1 in the reward": ("ReverseKL(0.3)", LEAF),
    "of sequences": ("JensenShannon(0.3)", LEAF),
    "k1, chance": ("ReverseKL(0.3)", STEPWISE),
    "k3, chance": ("ForwardKL(0.3)", UNPENALISED),
    "k2, edges": ("ReverseKL(0.3)", UNPENALISED),
    "token mean": ("ReverseKL(0.3)", UNPENALISED),
}


def two_starts(tree):
    """The reference, and what is nothing special, over what it takes."""
    noise = np.random.default_rng(5).normal(size=tree.log_ref.shape)
    return jnp.stack([tree.log_ref, jnp.where(jnp.isneginf(tree.log_ref), -jnp.inf, noise)])


@pytest.mark.parametrize("name", CASES)
def test_methods_go_to_the_recursion_that_is_named(name):
    method, where = CASES[name]
    tree = TREES[where]
    starts = None if name == "k2 in the loss" else two_starts(tree)
    found = rd.identify(method, tree, starts=starts, progress=False)
    regularizer, form = NAMES[name]
    assert found.verdict == "converges"
    assert (repr(found.regularizer), found.form) == (regularizer, form)
    assert form in found.sentence
    best = target_of(tree, found.regularizer, form)
    assert np.allclose(found.ends, best.log_probs, rtol=0, atol=1e-12, equal_nan=False)
    count = 8 if starts is None else 2
    assert found.starts.shape == found.ends.shape == (count, tree.num_leaves)
    begins = rd.run(method, tree, 1).log_probs[0]
    assert np.allclose(found.starts[0], begins, rtol=0, atol=1e-14)


def test_a_run_ends_where_it_is_said_to():
    """By steps of the method itself, which share no code with the flow's solver."""
    method = m.dr_grpo(beta=0.3, estimator="k3", averaging="sum")
    found = rd.identify(method, TREE, progress=False)
    path = rd.run(method, TREE, 6000, optimizer=optax.sgd(0.5))
    assert np.allclose(path.log_probs[-1], found.log_probs, rtol=0, atol=1e-8)


def test_one_state_is_the_bandit():
    """All three recursions are one there."""
    b = rd.bandit([1.0, 0.0, 0.5], [0.2, 0.5, 0.3])
    t = rd.tree([[0], [1], [2]], b.reward, reference=[0.2, 0.5, 0.3])
    method = m.dr_grpo(beta=0.3, estimator="k3")
    here, there = (rd.identify(method, x, progress=False) for x in (t, b))
    assert (here.verdict, here.form) == (there.verdict, LEAF) == ("converges", LEAF)
    assert repr(here.regularizer) == repr(there.regularizer)
    assert np.allclose(here.log_probs, there.log_probs, rtol=0, atol=1e-12)


def test_what_is_not_a_target_and_what_is_not_proved():
    """GRPO's 1/length stands still at no recursion; without a penalty steps die out."""
    uneven = m.dr_grpo(beta=0.3, estimator="k2", averaging="sequence")
    biased = rd.identify(uneven, TREE, starts=two_starts(TREE))
    assert (biased.verdict, biased.regularizer, biased.form) == ("elsewhere", None, "")
    bare = rd.identify(m.dr_grpo(averaging="sum"), TREE, starts=TREE.log_ref[None])
    assert bare.verdict == "undecided"
    assert "edge" in bare.sentence
    assert bare.regularizer is None


def test_a_target_with_mass_where_the_reference_has_none_is_not_named():
    """Forward KL lets mass leave the support, and the method never finds it there."""
    method = m.dr_grpo(beta=0.3, estimator="k3", averaging="sum")
    found = rd.identify(method, EDGES, starts=EDGES.log_ref[None])
    best = rd.stepwise(EDGES, rd.ForwardKL(0.3), "reward")
    assert np.isneginf(found.log_probs[-1])
    assert best.probs[-1] > 0.1
    assert found.verdict == "elsewhere"


def test_own_targets_are_compared_in_every_recursion():
    own = {"mine": rd.ForwardKL(0.3), "law": rd.target(TREE.bandit, rd.ForwardKL(0.3))}
    method = m.policy_gradient(rd.ForwardKL(0.3))
    found = rd.identify(method, TREE, starts=TREE.log_ref[None], targets=own)
    near = {(c.name, c.form) for c in found.candidates if c.distance < 1e-10}
    assert near == {
        ("forward KL", LEAF),
        ("ForwardKL(0.3)", LEAF),
        ("mine", LEAF),
        ("law", ""),
    }


def test_a_sampler_and_a_reference_of_their_own():
    """They end where runs do, and where samples are not the policy's own at no target."""
    method = m.dr_grpo(beta=0.3, estimator="k3", averaging="sum")
    loop = rd.loop(sampler=lambda log_p: rd.laws.temper(log_p, 1.2))
    found = rd.identify(method, TREE, loop=loop, starts=TREE.log_ref[None])
    path = rd.run(method, TREE, 6000, optimizer=optax.sgd(0.5), loop=loop)
    assert found.verdict == "elsewhere"
    assert np.allclose(path.log_probs[-1], found.log_probs, rtol=0, atol=1e-8)
    follows = rd.loop(sync_every=1)
    assert rd.identify(method, TREE, loop=follows, starts=TREE.log_ref[None]).regularizer is None


def test_samples_of_a_policy_that_stays():
    """With ratios of sequences the field is that of the policy's own samples."""
    method = m.policy_gradient(rd.ForwardKL(0.3))
    found = rd.identify(method, TREE, old=TREE.even(), starts=TREE.log_ref[None])
    best = rd.target(TREE.bandit, rd.ForwardKL(0.3)).log_probs
    off = np.abs(found.log_probs - best).max()
    assert (found.verdict == "converges") == bool(off < 1e-9)
    for name, law in (("old", TREE.bandit.log_ref), ("starts", TREE.log_ref)):
        with pytest.raises(ValueError, match=name):
            rd.identify(method, TREE, **{name: law})


def test_too_many_steps_are_refused_with_their_number():
    n = MOST_STEPS // 2 + 1
    many = rd.tree([[i, j] for i in range(n) for j in range(2)], np.zeros(2 * n))
    with pytest.raises(ValueError, match=rf"{3 * n:,}"):
        rd.identify(m.rloo(), many)
