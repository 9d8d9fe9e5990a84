"""Ends in the parameters of a policy, against bests of its class found by another search."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regdist as rd
from regdist.methods import Population
from regdist.problems.placed import policy_on
from regdist.runs.dynamics import widened
from regdist.runs.policy_dynamics import PolicyDynamics, moving

m = rd.methods
BANDIT = rd.bandit([1.0, 0.0, 0.5, 0.3], [0.1, 0.4, 0.3, 0.2])
FEATURES = rd.policies.LogLinear(
    [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.2, -0.3]], offset=BANDIT.log_ref
)
TREE = rd.tree([[0], [1, 0], [1, 1, 0], [1, 1, 1]], [0.3, 0.0, 1.0, 0.2])
TIED = rd.policies.LogLinear(
    [[[0.0, 0.5], [1.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]], [[0.3, 0.0], [0.0, 1.0]]]
)
PROMPTS = rd.contexts(
    [rd.bandit([1.0, 0.0], [0.3, 0.7]), rd.bandit([0.0, 1.0], [0.3, 0.7])], [0.4, 0.6]
)
SHARED = rd.policies.LogLinear([[[1.0, 0.0], [0.0, 0.0]], [[0.8, 0.6], [0.0, 0.0]]])
CLASSES = {
    "features": (BANDIT, FEATURES),
    "tied": (BANDIT, rd.policies.Tied([0, 1, 1, 2])),
    "tree": (TREE, TIED),
    "prompts": (PROMPTS, SHARED),
}
CASES = {
    "features, reverse": ("features", m.policy_gradient(rd.ReverseKL(0.3)), "ReverseKL(0.3)"),
    "features, k3": ("features", m.dr_grpo(beta=0.3, estimator="k3"), "ForwardKL(0.3)"),
    "tied, natural": (
        "tied",
        m.natural_policy_gradient(rd.JensenShannon(0.3)),
        "JensenShannon(0.3)",
    ),
    "tree, forward": ("tree", m.policy_gradient(rd.ForwardKL(0.3)), "ForwardKL(0.3)"),
    "prompts, reverse": ("prompts", m.policy_gradient(rd.ReverseKL(0.3)), "ReverseKL(0.3)"),
}


def starts(problem, policy, number=3):
    """Parameters, stacked."""
    size = {"features": 2, "tied": 3}.get(policy, 2)
    return jnp.asarray(np.random.default_rng(1).normal(size=(number, size)))


@pytest.mark.parametrize("name", CASES)
def test_the_end_is_the_best_of_the_class(name):
    """As `rd.restricted` finds it by Newton's method on the objective, from any of its starts."""
    where, method, regularizer = CASES[name]
    problem, policy = CLASSES[where]
    begins = starts(problem, where)
    found = rd.identify(method, problem, policy=policy, starts=begins)
    assert (found.verdict, found.form) == ("converges", "restricted")
    assert repr(found.regularizer) == regularizer
    best = rd.restricted(problem, found.regularizer, policy, init=begins[0])
    assert np.allclose(found.ends, best.log_probs, rtol=0, atol=1e-10)
    for z, law in zip(begins, found.starts, strict=True):
        run = rd.run(method, problem, 1, policy=policy, init=z)
        assert np.allclose(law, run.log_probs[0], rtol=0, atol=1e-14)


def test_one_parameter_an_action_is_the_table():
    """With one too many of them: a shift of all moves no law."""
    method = m.grpo(0.3)
    table = rd.identify(method, BANDIT, starts=BANDIT.log_ref[None])
    full = rd.policies.Tied([0, 1, 2, 3])
    found = rd.identify(method, BANDIT, policy=full, starts=BANDIT.log_ref[None])
    assert np.allclose(found.log_probs, table.log_probs, rtol=0, atol=1e-9)
    assert found.verdict == table.verdict == "converges"
    assert "self-consistent" in found.sentence
    assert "self-consistent" in table.sentence
    betas = [float(x.regularizer.terms[0].beta) for x in (table, found)]
    assert betas[0] == pytest.approx(betas[1], rel=1e-8)


def test_a_name_far_down_is_not_lost_in_rounding():
    """Actions at 1e-12 beside one at 1: the class holds every law, so that the best is the target.

    There the plain gradient of a rare action is below the rounding of the likely one's score.
    """
    problem = rd.bandit([-2.43, 1.2, 0.07], [0.1374637, 0.59467049, 0.26786581])
    wide = rd.policies.LogLinear(
        [[-1.25, -0.89, 1.77], [0.35, 0.42, -0.28], [-0.69, 0.89, -0.1]], offset=problem.log_ref
    )
    regularizer = rd.JensenShannon(0.284)
    method = m.natural_policy_gradient(regularizer)
    found = rd.identify(method, problem, policy=wide, starts=jnp.array([[0.2, -0.9, 0.2]]))
    best = rd.target(problem, regularizer)
    assert best.log_probs[0] < -27
    assert found.verdict == "converges"
    assert repr(found.regularizer) == "JensenShannon(0.284)"
    assert np.allclose(found.log_probs, best.log_probs, rtol=0, atol=1e-8)


def test_penalties_of_tokens_do_not_stand_still_at_the_best_of_a_class():
    method = m.dr_grpo(beta=0.3, estimator="k2", averaging="sum")
    found = rd.identify(method, TREE, policy=TIED, starts=jnp.zeros((1, 2)))
    best = rd.restricted(TREE, rd.ReverseKL(0.3), TIED, init=jnp.zeros(2))
    assert np.abs(found.log_probs - best.log_probs).max() > 1e-3
    assert found.regularizer is None
    assert found.verdict in ("elsewhere", "coincides")
    path = rd.run(method, TREE, 20000, policy=TIED, init=jnp.zeros(2), record_every=20000)
    assert np.allclose(path.log_probs[-1], found.log_probs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("geometry", ["softmax", "natural"])
@pytest.mark.parametrize("name", CLASSES)
def test_slopes_are_those_of_the_field_itself(name, geometry):
    """The rates are the field in the directions that move the law, and their slopes its own."""
    problem, policy = CLASSES[name]
    base = m.natural_policy_gradient if geometry == "natural" else m.policy_gradient
    method, wide = widened(base(rd.ForwardKL(0.3)), problem)
    origin = starts(problem, name)[0]
    flow = PolicyDynamics(method, wide, Population(), policy_on(wide, policy), origin)
    z = flow.gather(np.asarray(starts(problem, name)[1]))

    def field(y):
        moved = rd.field(method, origin + flow.basis @ y, problem, policy=policy)
        return flow.basis.T @ moved

    assert np.allclose(flow.rate(z, 0)[1:], field(jnp.asarray(z[1:])), rtol=0, atol=1e-13)
    if geometry == "softmax":
        exact = jax.jacfwd(field)(jnp.asarray(z[1:]))
        assert np.allclose(flow.rate_slopes(z, 0)[1:, 1:], exact, rtol=0, atol=1e-9)
    plain = rd.field(m.policy_gradient(rd.ForwardKL(0.3)), flow.params(z), problem, policy=policy)
    by_fisher = flow.weigh(z, flow.gain(z)[:, None])[1:, 0]
    assert np.allclose(by_fisher, flow.basis.T @ plain, rtol=0, atol=1e-13)


def test_the_best_of_a_class_need_not_be_one():
    """Features under which two ends are better than all between: which, depends on the start."""
    line = rd.policies.LogLinear([[2.0, 0.0], [-2.0, 0.0], [0.0, 2.0], [0.0, -2.0], [0.0, 0.0]])
    problem = rd.bandit([1.0, 0.9, 0.0, 0.0, 0.0], [0.2] * 5)
    method = m.policy_gradient(rd.ReverseKL(0.05))
    begins = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
    found = rd.identify(method, problem, policy=line, starts=begins)
    assert found.verdict == "depends on start"
    assert set(found.basins.tolist()) == {0, 1}


def test_parameters_that_are_not_all_needed_are_refused_where_that_differs():
    flat = policy_on(BANDIT, rd.policies.Tied([0, 0, 1, 1]))
    assert moving(flat, BANDIT, jnp.zeros(2)).shape == (2, 1)
    rank = rd.policies.LowRank(1)
    draw = rank.draw(jax.random.key(0), (3, 2))
    stacked = jax.tree.map(lambda x: x[None], draw)
    with pytest.raises(ValueError, match="move the law in"):
        rd.identify(m.rloo(), TREE, policy=rank, starts=stacked)
    many = rd.policies.Tied(np.arange(200))
    with pytest.raises(ValueError, match="at most 128 parameters"):
        rd.identify(m.rloo(), rd.bandit(jnp.zeros(200)), policy=many)
