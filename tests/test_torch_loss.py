"""Losses in PyTorch, as trainers have them, beside the same methods in this package."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regdist as rd
from tests.test_tokens import problem

torch = pytest.importorskip("torch")
m = rd.methods
BANDIT = rd.bandit([1.0, 0.0, 0.5, 0.5], [0.2, 0.4, 0.3, 0.1])
LOGITS, OLD = jnp.array([0.3, -0.2, 0.1, 0.4]), rd.log_softmax(jnp.array([0.1, 0.25, -0.1, 0.3]))


def grpo(batch, beta=0.1, high=0.2):
    """TRL's dapo loss: clip, k3, and a mean over tokens."""
    ratio = torch.exp(batch.log_probs - batch.old_log_probs)
    first = ratio * batch.advantages
    second = torch.clamp(ratio, 0.8, 1 + high) * batch.advantages
    x = batch.ref_log_probs - batch.log_probs
    each = -torch.min(first, second) + beta * (torch.exp(x) - x - 1)
    return (each * batch.mask).sum() / batch.mask.sum()


def own_advantages(batch):
    """A trainer that computes its advantages itself, and detaches its weights."""
    r = batch.rewards
    a = (r - r.mean()) / (r.std() + 1e-6)
    weight = torch.clamp(torch.exp(batch.log_probs - batch.old_log_probs), max=1.1).detach()
    each = weight * a[:, None] * batch.log_probs * batch.mask
    return -(each.sum(1) / batch.mask.sum(1)).mean()


CASES = {
    "grpo": (grpo, m.grpo(0.1, clip_dual=np.inf, averaging="token")),
    "cispo": (own_advantages, m.cispo(1.0, 0.1, averaging="sequence")),
}


@pytest.mark.parametrize("name", CASES)
def test_a_pasted_loss_is_the_method_that_it_is(name):
    """Over all groups of three; on a tree with chance over its tokens too."""
    loss, method = CASES[name]
    pasted = m.from_torch(loss)
    for old in (None, OLD):
        got = rd.field(pasted, LOGITS, BANDIT, rd.Group(3), old=old)
        want = rd.field(method, LOGITS, BANDIT, rd.Group(3), old=old)
        assert np.allclose(got, want, atol=1e-14)
    tree, logits, old, *_ = problem("chance")
    got = rd.field(pasted, logits, tree, rd.Group(2), old=old)
    assert np.allclose(got, rd.field(method, logits, tree, rd.Group(2), old=old), atol=1e-14)


def test_sampled_groups_are_those_that_are_drawn():
    key = jax.random.key(1)
    over = rd.Sampled(4, 8)
    got = rd.field(m.from_torch(grpo), LOGITS, BANDIT, over, key=key)
    want = rd.field(CASES["grpo"][1], LOGITS, BANDIT, over, key=key)
    assert np.allclose(got, want, atol=1e-14)


def test_identify_names_the_target():
    """k3 in the loss, without a deviation: the forward KL, in groups of four."""
    relative = m.advantage.GroupRelative(0.0, "mean")
    pasted = m.from_torch(lambda batch: grpo(batch, 0.3), advantage=relative)
    found = rd.identify(pasted, BANDIT, expectation=rd.Group(4), starts=BANDIT.log_ref[None])
    target = rd.target(BANDIT, rd.ForwardKL(0.4))
    assert np.allclose(found.log_probs, target.log_probs, atol=1e-6)


def test_what_no_group_has_is_refused():
    pasted = m.from_torch(grpo)
    with pytest.raises(ValueError, match="ask in groups"):
        rd.field(pasted, LOGITS, BANDIT)
    with pytest.raises(Exception, match="a scalar; got"):
        rd.field(m.from_torch(lambda batch: batch.rewards), LOGITS, BANDIT, rd.Group(2))
    first = m.from_torch(lambda batch: -(batch.log_probs[0] * batch.rewards[0]).sum())
    with pytest.raises(ValueError, match="order"):
        rd.field(first, LOGITS, BANDIT, rd.Group(2))
    still = m.from_torch(lambda batch: batch.rewards.sum())
    assert np.array_equal(rd.field(still, LOGITS, BANDIT, rd.Group(2)), np.zeros(4))
