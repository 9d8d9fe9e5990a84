"""Advantages of steps against losses written over padded tokens, differentiated over all groups."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regdist as rd
from tests import written_tokens as wt
from tests import written_trees as w
from tests.test_tokens import BANDIT, ONE_STATE, problem

m, ta, ts = rd.methods, rd.methods.token_advantage, rd.methods.token_shaping
REWARDS = {
    name: jnp.asarray(np.random.default_rng(7).normal(size=shape))
    for name, shape in {"chance": (4, 3), "forced": (3, 2), "one": (1, 3)}.items()
}
PHASE = {"chance": [0, 0, 1, 1], "forced": [0, 1, 0], "one": [0]}
STANDARD = m.advantage.GroupRelative(1e-6, "mean", "std", "raw")
PPO = {"clip_low": 0.2, "clip_high": 0.2, "clip_dual": 3.0}
K1 = {"beta": 0.3, "estimator": "k1", "placement": "reward"}


def ppo(g, a):
    return wt.clipped(g, a, dual=3.0)


# of the name of a problem, whose rewards of steps are paid; and of those rewards
METHODS = {
    "gae, whitened, k1 and step rewards paid": (
        lambda name: m.compose(
            ta.Whitened(ta.Critic(0.9, 0.8), 1e-8), **PPO, **K1, penalties=paid(name)
        ),
        lambda g, r: -g.by_sum(ppo(g, wt.whitened(g, wt.gae(g, rewards=r, beta=0.3)))),
    ),
    "gae, entropy shaped": (
        lambda _: m.compose(
            ts.EntropyShaped(ta.Critic(1.0, 0.5), 0.1, 2.0), **PPO, averaging="token"
        ),
        lambda g, r: -g.by_token(ppo(g, wt.entropy_shaped(g, wt.gae(g, 1.0, 0.5), 0.1, 2.0))),
    ),
    "reinforce++": (
        lambda _: m.reinforce_to_go(0.9, "biased", **K1),
        lambda g, r: -g.by_token(ppo(g, wt.whitened(g, wt.to_go(g, 0.9, True, beta=0.3), True))),
    ),
    "returns to go, 1/|o|": (
        lambda name: m.compose(ta.ToGo(0.9), penalties=paid(name), averaging="sequence"),
        lambda g, r: -g.by_sequence(g.lp * wt.to_go(g, 0.9, rewards=r)),
    ),
    "optimal token baseline": (
        lambda _: m.optimal_token_baseline(**K1),
        lambda g, r: -g.by_token(ppo(g, wt.token_baseline(g, beta=0.3))),
    ),
    "optimal token baseline, turns": (
        lambda name: m.compose(
            ta.TokenBaseline(1e-8, zero_tail=True, own=True), penalties=paid(name)
        ),
        lambda g, r: -g.by_sum(g.lp * wt.token_baseline(g, True, True, rewards=r)),
    ),
    "entropy advantage": (
        lambda _: m.entropy_advantage(),
        lambda g, r: -g.by_token(ppo(g, wt.entropy_shaped(g, g.z()[:, None]))),
    ),
    "entropy of phases": (
        lambda name: m.compose(
            ts.PhaseEntropy(STANDARD, PHASE[name], [0.5, -0.3]), **PPO, averaging="sequence"
        ),
        lambda g, r: -g.by_sequence(ppo(g, wt.phases(g, PHASE, [0.5, -0.3])[:, None])),
    ),
    "hapo": (lambda _: m.hapo(), lambda g, r: wt.hapo(g)),
    "certainty": (
        lambda _: m.certainty_advantage(),
        lambda g, r: -g.by_token(ppo(g, wt.certain(g))),
    ),
    "hapo, signed": (lambda _: m.hapo(signed=True), lambda g, r: wt.hapo(g, signed=True)),
    "step rewards in a group": (
        lambda name: m.compose(STANDARD, **PPO, penalties=paid(name)),
        lambda g, r: -g.by_sum(ppo(g, wt.standardized(g, r)[:, None])),
    ),
}


def paid(name):
    return m.penalty.StepRewards(REWARDS[name])


@pytest.mark.parametrize("name", METHODS)
def test_every_field_is_the_gradient_of_the_written_loss(name):
    """Under the law itself and over all groups of two or three, on and off policy."""
    make, loss = METHODS[name]
    size = 2 + list(METHODS).index(name) % 2
    for where, over in (("chance", rd.Population()), ("forced", rd.Group(size))):
        agrees(make(where), functools.partial(loss, r=REWARDS[where]), where, over)


def agrees(method, loss, where, over):
    tree, logits, old, log_ref, reward, facts = problem(where)
    field = jax.jit(lambda x, law: rd.field(method, x, tree, over, old=law))
    for law in (rd.problems.StateTable(tree).log_probs(logits), old):
        size = getattr(over, "size", None)
        want = w.expected(loss, size, logits, law, log_ref, reward, *facts)
        got = field(logits, law)
        assert np.allclose(got, want, rtol=0, atol=1e-12 * (1 + np.abs(want).max()))


@pytest.mark.parametrize("turn", range(3))
def test_one_state_is_the_bandit_bit_for_bit(turn):
    """Each in turn under each expectation, on and off policy."""
    over = (rd.Population(), rd.Group(3), rd.Sampled(3, 2))[turn]
    logits, old = jnp.array([0.3, -0.2, 0.1]), rd.log_softmax(jnp.array([0.5, 0.0, -0.3]))
    key = jax.random.key(4) if over.draws else None
    for i, (name, (make, _)) in enumerate(METHODS.items()):
        if i % 3 != turn:
            continue
        law, method = (None, old)[i // 3 % 2], make("one")
        one = rd.field(method, logits, BANDIT, over, key=key, old=law)
        rows = None if law is None else law[None]
        got = rd.field(method, logits[None], ONE_STATE, over, key=key, old=rows)
        assert np.array_equal(got[0], one), name


def test_in_a_sum_over_the_policys_own_samples_they_are_one():
    """Returns, returns to go, and those less a critic at every lam: the gradient of E R."""
    tree, logits, *_ = problem("chance")
    want = jax.jit(lambda x: rd.field(m.reinforce(), x, tree))(logits)
    for part in (ta.ToGo(1.0), ta.Critic(1.0, 0.3)):
        got = jax.jit(lambda x, part=part: rd.field(m.compose(part), x, tree))(logits)
        assert np.allclose(got, want, rtol=0, atol=1e-15)


def test_one_step_of_the_critic_is_the_advantage_of_the_state():
    """Q(s, v) - V(s), at each step where nothing is discounted or traced."""
    tree, logits, *_ = problem("chance")
    law = rd.problems.StateTable(tree).log_probs(logits)
    q = tree.values(law)
    value = jnp.sum(jnp.exp(jnp.where(tree.paths.exists, law, -jnp.inf)) * q, axis=1, keepdims=True)
    visits = jnp.exp(tree.log_visits(law))[:, None]
    got = rd.field(m.compose(ta.Critic(1.0, 0.0)), logits, tree)
    want = jnp.where(tree.chooses[:, None] & tree.paths.exists, jnp.exp(law) * (q - value), 0)
    assert np.allclose(got, visits * want, rtol=0, atol=1e-15)


def test_equal_rewards_move_nothing_without_an_eps():
    tree = rd.tree([[0], [1, 1]], [0.0, 1.0])
    got = rd.field(m.hapo(eps=0.0), tree.log_ref, tree, rd.Group(2))
    assert np.all(np.isfinite(got))
    near = rd.field(m.hapo(eps=1e-12), tree.log_ref, tree, rd.Group(2))
    assert np.allclose(got, near, rtol=0, atol=1e-9)


def test_one_miss_among_many_is_grpos_and_so_is_its_padding():
    """Over tokens an advantage of 5, or what a reward of 0 at padding would get, is not taken."""
    relative = m.advantage.GroupRelative(1e-6, "mean", "std", "raw")
    part = ts.OverTokens(relative, 5.0)
    for reward, rare in (([0.0, 1.0], 0.5), ([0.0, 1.0], 0.01), ([1.0, 0.0], 0.01), ([4, 5], 0.5)):
        tree = rd.tree([[0], [1, 1]], reward, reference=[rare, 1 - rare])
        plain, over = (rd.field(m.compose(x), tree.log_ref, tree) for x in (relative, part))
        assert np.array_equal(plain, over) == (rare == 0.01 or reward[0] == 4), (reward, rare)
