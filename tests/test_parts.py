"""What people put in: losses, advantages, signals, controllers and policies of their own."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regdist as rd
from tests.test_method_groups import LOG_REF, LOGITS, PRESETS, REWARD

m = rd.methods
BANDIT = rd.bandit(REWARD, jnp.exp(LOG_REF))
NONE = m.advantage.GroupRelative(jnp.array(0.0), "mean")
WRITTEN = {
    "nothing": m.from_loss(lambda view: 0 * view.log_probs, advantage=NONE),
    "a pasted loss": m.from_loss(lambda view: -view.advantages * view.log_probs, advantage=NONE),
    "a cap below 1": m.compose(NONE, m.surrogate.CappedRatio(jnp.array(0.0), jnp.array(0.2))),
    "bounds without 1": m.compose(NONE, m.surrogate.Clip(*map(jnp.array, (1.5, 2.0, 3.0)))),
    "policy gradient": m.policy_gradient(rd.ReverseKL(0.3)),
    "natural": m.natural_policy_gradient(rd.ForwardKL(0.3)),
}
METHODS = {**{name: method for name, (method, _) in PRESETS.items()}, **WRITTEN}
EXPECTATIONS = {"population": rd.Population(), "groups": rd.Group(3), "drawn": rd.Sampled(3, 2)}


@pytest.mark.parametrize("expectation", EXPECTATIONS)
@pytest.mark.parametrize("name", METHODS)
def test_one_step_of_a_run_is_the_field(name, expectation):
    """For every preset and for written losses: what `field` says is what `run` does."""
    method, over, key = METHODS[name], EXPECTATIONS[expectation], jax.random.key(7)
    if method.advantage.needs == "group" and expectation == "population":
        pytest.skip("it moves nothing in groups of infinite size")
    with jax.disable_jit():  # the same code, without a program for each
        path = rd.run(method, BANDIT, 1, optax.sgd(1.0), over, key, LOGITS, record_every=1)
    drawn = jax.random.fold_in(key, 0) if over.draws else None
    want = rd.field(method, LOGITS, BANDIT, over, key=drawn)
    moved = rd.log_softmax(LOGITS + want)
    size = 1 + float(jnp.abs(want).max())
    assert np.allclose(path.log_probs[1], moved, rtol=0, atol=4e-15 * size)
    assert np.isclose(path.field_norm[0], jnp.abs(want).max(), rtol=0, atol=4e-15 * size)


def test_a_surrogate_is_not_dropped_where_only_actions_are_averaged():
    """A loss that is 0 moves nothing; a ratio capped at 0.2 moves a fifth."""
    bandit = rd.bandit([1.0, 0.0])
    path = rd.run(WRITTEN["nothing"], bandit, 20, record_every=20)
    assert np.allclose(path.log_probs[-1], bandit.log_ref, atol=0)
    path = rd.run(WRITTEN["a cap below 1"], bandit, 1, record_every=1)
    assert np.isclose(path.field_norm[0], 0.05, atol=1e-15)


def test_known_values_are_asked_under_jit_too():
    """A run and a field inside a compiled function of something else."""

    @jax.jit
    def end(z):
        policy = LogLinear(jnp.eye(3))
        path = rd.run(m.dr_grpo(), BANDIT, 3, init=z, record_every=3)
        own = rd.field(m.dr_grpo(), z, BANDIT, rd.Group(2), policy=policy)
        return path.log_probs[-1], own

    path = rd.run(m.dr_grpo(), BANDIT, 3, init=LOGITS, record_every=3)
    assert np.allclose(end(LOGITS)[0], path.log_probs[-1], rtol=0, atol=1e-15)
    own = rd.field(m.dr_grpo(), LOGITS, BANDIT, rd.Group(2))
    assert np.allclose(end(LOGITS)[1], own, rtol=0, atol=1e-15)


@rd.record
class AnswerShare(m.signal.Signal):
    """One over the mass of an action's own answer, by a table of whole numbers."""

    label: jax.Array

    def __call__(self, tables):
        mass = jnp.exp(rd.metrics.label_log_probs(tables.log_old, self.label))
        return 1 / mass[self.label]


def test_whole_numbers_in_a_part_stay_whole():
    label = jnp.array([0, 0, 1])
    method = m.compose(NONE, signal=AnswerShare(label))
    p = np.exp(np.asarray(rd.log_softmax(LOGITS)))
    paid = 1 / np.array([p[0] + p[1], p[0] + p[1], p[2]])
    got = rd.field(method, LOGITS, BANDIT)
    assert np.allclose(got, p * (paid - p @ paid), rtol=0, atol=1e-15)


@rd.record
class First(m.advantage.Advantage):
    """The reward of the first sample alone: it looks at a place."""

    def __call__(self, batch):
        return batch.reward * jnp.where(jnp.arange(batch.reward.shape[0]) == 0, 1.0, 0.0)


def test_an_advantage_that_looks_at_places_is_refused_in_exact_groups():
    """They are enumerated without order, so that its mean would be wrong; drawn ones have one."""
    method = m.compose(First())
    for bandit in (BANDIT, rd.bandit([0.0, 1.0, 1.0], [0.5, 0.3, 0.2])):
        with pytest.raises(ValueError, match="place in the group"):
            rd.field(method, bandit.log_ref, bandit, rd.Group(3))
    written = m.from_loss(lambda v: -v.log_probs * v.rewards[0], advantage=NONE)
    with pytest.raises(ValueError, match="place in the group"):
        rd.field(written, BANDIT.log_ref, BANDIT, rd.Group(3))
    drawn = rd.field(method, LOGITS, BANDIT, rd.Sampled(3), key=jax.random.key(0))
    assert np.isfinite(drawn).all()
    fair = m.from_loss(lambda v: -v.log_probs * (v.rewards - v.mean(v.rewards)), advantage=NONE)
    want = rd.field(m.dr_grpo(), LOGITS, BANDIT, rd.Group(3))
    assert np.allclose(rd.field(fair, LOGITS, BANDIT, rd.Group(3)), want, rtol=0, atol=1e-15)


def test_what_a_class_says_of_itself_is_spelled_right():
    """Else a penalty would be nowhere, and a need would not be asked."""

    @rd.record
    class Nowhere(m.penalty.Penalty):
        placement: ClassVar[str] = "rewards"

    @rd.record
    class Needy(m.advantage.Advantage):
        needs: ClassVar[str] = "groups"

    with pytest.raises(ValueError, match=r"placement of Nowhere .* Did you mean 'reward'"):
        m.compose(NONE, penalties=Nowhere())
    with pytest.raises(ValueError, match=r"needs of Needy .* Did you mean 'group'"):
        m.compose(Needy())


@pytest.mark.parametrize("place", [0, 2, 3])
def test_places_are_looked_for_in_groups_of_the_size_asked_for(place):
    """The last of four is seen, which no group of three has; and neighbours are."""
    last = m.from_loss(lambda v: -v.log_probs * v.rewards[place], advantage=NONE)
    with pytest.raises(ValueError, match="place in the group"):
        rd.field(last, BANDIT.log_ref, BANDIT, rd.Group(4))
    beside = m.from_loss(lambda v: -v.log_probs * jnp.roll(v.rewards, 1), advantage=NONE)
    with pytest.raises(ValueError, match="place in the group"):
        rd.field(beside, BANDIT.log_ref, BANDIT, rd.Group(4))


def test_a_loss_for_groups_of_one_size_is_asked_at_that_size():
    """Pairs of a group of four, written by its shape: the sum over all pairs has no order."""

    def loss(view):
        apart = view.rewards[:, None] - view.rewards[None, :]
        assert apart.shape == (4, 4)
        return -view.log_probs * jnp.sum(apart, axis=1) / 4

    method = m.from_loss(loss, advantage=NONE)
    want = rd.field(m.dr_grpo(), LOGITS, BANDIT, rd.Group(4))
    assert np.allclose(rd.field(method, LOGITS, BANDIT, rd.Group(4)), want, rtol=0, atol=1e-15)


@rd.record
class LogShare(m.advantage.Advantage):
    """Minus the log of the share of equal rewards, which is infinite for those that are absent."""

    def __call__(self, batch):
        same = batch.reward[:, None] == batch.reward[None, :]
        share = jnp.sum(jnp.where(same, batch.weight[None, :], 0), axis=1)
        return -jnp.log(share)


def test_what_an_advantage_says_of_absent_samples_is_not_used():
    """Groups of two over two rewards: alike they get 0, apart log 2 each."""
    bandit = rd.bandit([1.0, 0.0], [0.3, 0.7])
    got = rd.field(m.compose(LogShare()), bandit.log_ref, bandit, rd.Group(2))
    p = 0.3
    weighted = np.array([p * (1 - p), p * (1 - p)]) * np.log(2)
    want = weighted - np.array([p, 1 - p]) * weighted.sum()
    assert np.allclose(got, want, rtol=0, atol=1e-15)


@rd.record
class AnswerBonus(m.advantage.Advantage):
    """The reward, and a bonus for the share of other answers in the group."""

    sees_policy: ClassVar[bool] = True

    def __call__(self, batch):
        other = batch.labels[:, None] != batch.labels[None, :]
        return batch.reward + jnp.sum(jnp.where(other, batch.weight[None, :], 0), axis=1)


def test_a_batch_knows_labels_and_actions():
    """In expectation the bonus is the mass of the other answers."""
    bandit = rd.bandit([1.0, 0.0, 0.5], [0.2, 0.5, 0.3], label=[0, 1, 1])
    p = np.exp(np.asarray(bandit.log_ref))
    paid = np.asarray(bandit.reward) + np.array([p[1] + p[2], p[0], p[0]])
    got = rd.field(m.compose(AnswerBonus()), bandit.log_ref, bandit)
    assert np.allclose(got, p * (paid - p @ paid), rtol=0, atol=1e-15)

    @rd.record
    class Undeclared(m.advantage.Advantage):
        def __call__(self, batch):
            return jnp.where(batch.actions == 0, batch.reward, 0)

    with pytest.raises(ValueError, match="sees_policy = True"):
        rd.field(m.compose(Undeclared()), bandit.log_ref, bandit, rd.Group(2))


@rd.record
class Averages(m.controller.Controller):
    """Remembers a running mean of the policy, and lets the penalty follow its distance."""

    log_ref: jax.Array

    def start(self):
        return jnp.exp(self.log_ref)

    def apply(self, method, value, tables):
        return method

    def move(self, value, tables):
        return 0.9 * value + 0.1 * jnp.exp(tables.log_p)


def test_a_controller_may_keep_a_vector():
    method = m.compose(NONE, controller=Averages(BANDIT.log_ref))
    path = rd.run(method, BANDIT, 6, record_every=3)
    assert path.control.shape == (3, 3)
    assert np.allclose(path.control.sum(axis=1), 1, atol=1e-15)
    assert path.control[-1, 0] > path.control[0, 0]


@rd.record
class LogLinear(rd.policies.Policy):
    """Log-probabilities that are linear in the parameters, up to their sum: log p = F w - log Z."""

    features: jax.Array

    def log_probs(self, params):
        return rd.log_softmax(self.features @ params)


FEATURES = jnp.array([[1.0, 0.0], [0.5, -1.0], [0.0, 2.0]])


def test_a_policy_of_ones_own_is_two_methods():
    """Its field is the table's, pulled back; its natural gradient that of the Fisher matrix."""
    policy, w = LogLinear(FEATURES), jnp.array([0.3, -0.4])
    method = m.policy_gradient(rd.ReverseKL(0.2))
    log_p = policy.log_probs(w)
    for over in EXPECTATIONS.values():
        if over.draws:
            continue
        table = rd.field(method, log_p, BANDIT, over)
        got = rd.field(method, w, BANDIT, over, policy=policy)
        assert np.allclose(got, FEATURES.T @ table, rtol=0, atol=1e-15)
    p = np.exp(np.asarray(log_p))
    scores = np.asarray(FEATURES) - p @ np.asarray(FEATURES)
    fisher = scores.T @ (p[:, None] * scores)
    natural = m.natural_policy_gradient(rd.ReverseKL(0.2))
    want = np.linalg.solve(fisher, np.asarray(FEATURES.T @ rd.field(method, log_p, BANDIT)))
    got = rd.field(natural, w, BANDIT, policy=policy)
    assert np.allclose(got, want, rtol=0, atol=1e-13)


def test_a_full_policy_runs_as_the_table_does():
    """With a parameter for each action and the same start nothing but rounding differs."""
    full = LogLinear(jnp.eye(3))
    for method, steps in ((m.grpo(0.1), 20), (m.natural_policy_gradient(), 20)):
        table = rd.run(method, BANDIT, steps, loop=rd.loop(staleness=1, sync_every=5))
        own = rd.run(
            method,
            BANDIT,
            steps,
            init=BANDIT.log_ref,
            policy=full,
            loop=rd.loop(staleness=1, sync_every=5),
        )
        assert np.allclose(own.log_probs, table.log_probs, rtol=0, atol=1e-13)
    again = rd.run(m.grpo(0.1), BANDIT, 5, init=own.params, policy=full)
    assert np.allclose(again.log_probs[0], own.log_probs[-1], atol=1e-15)


def test_a_policy_that_cannot_exclude_refuses_forbidden_actions():
    bandit = rd.bandit([1.0, 0.0, -jnp.inf])
    with pytest.raises(ValueError, match="cannot give a forbidden action"):
        rd.field(m.reinforce(), jnp.zeros(2), bandit, policy=LogLinear(FEATURES))
    with pytest.raises(ValueError, match="give init"):
        rd.run(m.reinforce(), BANDIT, 1, policy=LogLinear(FEATURES))
