"""Methods on trees against losses written over padded tokens, differentiated over all groups."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regdist as rd
from regdist.methods.batch import Batch
from regdist.methods.groups import every_list, listed
from regdist.methods.step import tables_of
from tests import written_trees as w
from tests.test_method_groups import PRESETS

m = rd.methods
TREES = {
    "three": ([[0], [1, 0], [1, 1]], [0.0, 0.3, 1.0], None),
    "forced": ([[0], [1, 0, 0], [1, 0, 1], [1, 1]], [1.0, 0.0, 1.0, 0.5], None),
    "chance": (
        [[0], [1, 0], [1, 1, 0], [1, 1, 1], [2, 0]],  # and a step that is forced
        [0.4, 0.0, 1.0, 0.2, 0.7],
        {(1,): {0: 0.3, 1: 0.7}},
    ),
}


@functools.cache
def problem(name):
    """A tree with a policy, an old one near it, and what the judge reads."""
    sequences, reward, chance = TREES[name]
    random = np.random.default_rng(len(sequences))
    tree = rd.tree(sequences, reward, chance=chance)
    shape = tree.paths.exists.shape
    logits, drift, ref = (jnp.asarray(random.normal(size=shape)) * s for s in (0.7, 0.35, 0.5))
    table = rd.problems.StateTable(tree)
    log_ref, old = table.log_probs(ref), table.log_probs(logits + drift)
    tree = rd.tree(sequences, reward, chance=chance, step_log_reference=log_ref)
    chooses = np.asarray(tree.chooses)
    steps, there = np.asarray(tree.paths.steps), np.asarray(tree.paths.there)
    mask = there & chooses[steps // shape[1]]
    facts = steps, there, mask, chooses, np.asarray(tree.paths.exists)
    return tree, logits, old, log_ref, jnp.asarray(reward), facts


def clipped(g, a, low=0.2, high=0.2, dual=jnp.inf):
    """PPO's objective of each token, with a dual clip."""
    rho = jnp.exp(g.lp - g.old)
    gain = jnp.minimum(rho * a, jnp.clip(rho, 1 - low, 1 + high) * a)
    return jnp.where(
        a < 0, jnp.maximum(gain, jnp.where(jnp.isfinite(dual), dual * a, -jnp.inf)), gain
    )


def k3(g):
    return jnp.exp(g.ref - g.lp) - (g.ref - g.lp) - 1


def sequence_ratio(g, mean):
    total = g.total(g.lp - g.old)
    return jnp.exp(total / g.n if mean else total)


def of_sequence(g, a, mean):
    s = sequence_ratio(g, mean)
    return -(g.w * jnp.minimum(s * a, jnp.clip(s, 0.8, 1.2) * a)).sum()


def geometric(g, low=0.4, high=0.4):
    a, d = g.z()[:, None], g.lp - g.old
    side = jnp.where(a > 0, jnp.minimum(d, high), jnp.maximum(d, -low))
    return -(g.w * g.z() * jnp.exp(g.total(side) / g.n)).sum()


def paid(g, beta=0.3):
    """k1 summed over a sequence, before the group's mean."""
    reward = jax.lax.stop_gradient(g.r - beta * g.total(g.old - g.ref))
    a = reward - g.mean(reward) if g.size > 1 or g.endless else reward
    return -g.by_sum(clipped(g, a[:, None]))


def paid_after(g, beta=0.3):
    """k1 of the tokens to come is taken off each token's normalized advantage."""
    k1 = jax.lax.stop_gradient((g.old - g.ref) * g.mask)
    to_go = jnp.stack([k1[:, t:].sum(1) for t in range(k1.shape[1])], axis=1)
    return -g.by_sum(clipped(g, g.z()[:, None] - beta * to_go))


def balance(g, beta=0.4):
    residual = g.total(g.lp - g.ref) - g.r / beta
    return (g.w * (residual - g.mean(residual)) ** 2).sum()


def entropy_of_state(g):
    """Of the law of the step's own state, at each step of each sample."""
    table = jnp.where(jnp.isfinite(g.table), g.table, 0)
    each = -jnp.sum(jnp.where(jnp.isfinite(g.table), jnp.exp(table) * table, 0), axis=1)
    return each[g.at // g.table.shape[1]]


def steer(g, least=0.8, floor=0.02):
    """Steps that move the entropy of their state most weigh less."""
    a = g.z()[:, None]
    p = jnp.exp(g.lp)
    moved = jnp.abs(a / jnp.exp(g.old) * p * (1 - p) * (g.lp + entropy_of_state(g))) * g.mask
    weight = jnp.exp(jnp.log(least) * moved / jnp.maximum(moved.max(), floor))
    return -g.by_token(jax.lax.stop_gradient(weight) * clipped(g, a, dual=3.0))


def bapo(g, share=1.0):
    """Bounds that move, the lower one first, until positive steps weigh enough."""
    a = g.z()[:, None] * g.mask * g.w[:, None]
    rho = jax.lax.stop_gradient(jnp.exp(g.lp - g.old))
    found, low, high = False, 0.8, 2.0
    lows = [*np.arange(0.6, 0.8 + 1e-9, 0.05), *[0.8] * 17]
    highs = [*[1.2] * 5, *np.arange(1.2, 2.0 + 1e-9, 0.05)]
    for lo, hi in zip(lows, highs, strict=True):
        up = jnp.sum(jnp.maximum(a, 0) * jnp.minimum(rho, hi))
        down = jnp.sum(jnp.maximum(-a, 0) * jnp.maximum(rho, lo))
        enough = up >= share * down
        low = jnp.where(enough & ~jnp.asarray(found), lo, low)
        high = jnp.where(enough & ~jnp.asarray(found), hi, high)
        found = jnp.asarray(found) | enough
    return -g.by_token(clipped(g, g.z()[:, None], 1 - low, high - 1, 3.0))


def trust_region(g, beta=2.0, delta=0.01):
    """PPO less (beta/2) [KL - delta]+^2, the KL estimated over all tokens at once."""
    kl = g.by_token(g.old - g.lp)
    bound = beta / 2 * jnp.maximum(kl - delta, 0) ** 2
    return -g.by_token(clipped(g, g.z()[:, None])) + bound


PRODUCT = {"ratio": "product", "clip_dual": np.inf}
METHODS = {
    "grpo, 1/|o|, k3": (
        m.grpo(0.04),
        lambda g: g.by_sequence(-clipped(g, g.z()[:, None]) + 0.04 * k3(g)),
    ),
    "dr_grpo, constant": (
        m.dr_grpo(averaging="constant", max_length=3.0),
        lambda g: -g.by_sum(clipped(g, alone(g)[:, None]), 3.0),
    ),
    "dapo, tokens": (
        m.dapo(),
        lambda g: -g.by_token(clipped(g, g.z()[:, None], 0.2, 0.28, 3.0)),
    ),
    "dapo, tokens, k3": (
        m.dapo(beta=0.1),
        lambda g: g.by_token(-clipped(g, g.z()[:, None], 0.2, 0.28, 3.0) + 0.1 * k3(g)),
    ),
    "gspo": (
        m.gspo(),
        lambda g: of_sequence(g, g.z(), True),
    ),
    "rloo, product": (
        m.rloo(**m.aggregation("verl", loss_agg_mode="seq-mean-token-sum") | PRODUCT),
        lambda g: of_sequence(g, others(g), False),
    ),
    "gmpo": (m.gmpo(), geometric),
    "reinforce, 1/|o|": (
        m.reinforce(averaging="sequence"),
        lambda g: -g.by_sequence(g.lp * g.r[:, None]),
    ),
    "k1 in the reward": (
        m.dr_grpo(beta=0.3, estimator="k1", placement="reward", averaging="sum"),
        paid,
    ),
    "k1 in the reward, tokens": (
        m.dr_grpo(beta=0.3, estimator="k1", placement="reward", averaging="token"),
        lambda g: paid(g) * (1 / (g.w * g.n).sum()),
    ),
    "k1 after": (
        m.grpo(0.3, "k1", "reward", after_normalization=True, averaging="sum"),
        paid_after,
    ),
    "vargrad": (m.vargrad(0.4), balance),
    "steer": (m.steer(), steer),
    "bapo": (m.bapo(), bapo),
    "trust region": (
        m.compose(
            m.advantage.GroupRelative(1e-6, "mean", "std", "raw"),
            clip_low=0.2,
            clip_high=0.2,
            penalties=m.penalty.TrustRegion(2.0, 0.01),
            averaging="token",
        ),
        trust_region,
    ),
}


def alone(g):
    """Centred, but for a group of one."""
    return g.r - g.mean(g.r) if g.size > 1 or g.endless else g.r


def others(g):
    """RLOO: less the mean of the others."""
    if g.endless:
        return g.r - g.mean(g.r)
    return (g.r - g.mean(g.r)) * g.size / (g.size - 1) if g.size > 1 else g.r


@pytest.mark.parametrize("tree", ["three", "chance"])
@pytest.mark.parametrize("name", METHODS)
def test_every_field_is_the_gradient_of_the_written_loss(name, tree):
    """Under the law itself and over all groups of two and three, and of one, on and off policy."""
    method, loss = METHODS[name]
    t, logits, old, log_ref, reward, facts = problem(tree)
    own = rd.problems.StateTable(t).log_probs(logits)
    for size in (None, 1, 2) if tree == "three" else (None, 3):
        over = rd.Population() if size is None else rd.Group(size)
        for law in (own, old):
            want = w.expected(loss, size, logits, law, log_ref, reward, *facts)
            given = None if law is own else law
            got = rd.field(method, logits, t, over, old=given)
            scale = 1 + np.abs(want).max()
            assert np.allclose(got, want, rtol=0, atol=1e-13 * scale), (size, law is own)


BANDIT = rd.bandit([1.0, 0.0, 0.5], [0.2, 0.5, 0.3])
ONE_STATE = rd.tree([[0], [1], [2]], [1.0, 0.0, 0.5], reference=[0.2, 0.5, 0.3])


@pytest.mark.parametrize("turn", range(3))
def test_one_state_is_the_bandit_bit_for_bit(turn):
    """Every preset, in turn under each expectation and average, which are all 1 there."""
    over = (rd.Population(), rd.Group(3), rd.Sampled(3, 2))[turn]
    logits, old = jnp.array([0.3, -0.2, 0.1]), rd.log_softmax(jnp.array([0.5, 0.0, -0.3]))
    key = jax.random.key(4) if over.draws else None
    for i, (name, (method, _)) in enumerate(PRESETS.items()):
        if i % 3 != turn or (turn == 0 and method.advantage.needs == "group"):
            continue
        averaging = ("sum", "sequence", "token")[i // 3 % 3]
        asked = dataclasses.replace(method, averaging=m.averaging.Averaging(None, averaging))
        law = (None, old)[i // 9 % 2]
        one = rd.field(method, logits, BANDIT, over, key=key, old=law)
        rows = None if law is None else law[None]
        got = rd.field(asked, logits[None], ONE_STATE, over, key=key, old=rows)
        assert np.array_equal(got[0], one), (name, averaging, law is None)


def test_the_smallest_tree_where_averages_part():
    """{0, 10, 11}, only the last is right, from even steps: its first step against its second.

    A sum pushes both alike, 1/length the first half as hard again at every size; a token mean has
    no bias in a large batch and one in small ones: 8/7 for pairs.
    """
    tree = rd.tree([[0], [1, 0], [1, 1]], [0.0, 0.0, 1.0])

    def tilt(averaging, over):
        field = rd.field(m.dr_grpo(averaging=averaging), tree.log_ref, tree, over)
        return field[0, 1] / field[1, 1]

    for over in (rd.Population(), rd.Group(2), rd.Group(5)):
        assert np.isclose(tilt("sum", over), 1, rtol=1e-14)
        assert np.isclose(tilt("sequence", over), 3 / 2, rtol=1e-14)
    assert np.isclose(tilt("token", rd.Population()), 1, rtol=1e-14)
    assert np.isclose(tilt("token", rd.Group(2)), 8 / 7, rtol=1e-14)
    assert np.isclose(tilt("token", rd.Group(16)), by_counts(16), rtol=1e-13)
    assert 1 < tilt("token", rd.Group(64)) < tilt("token", rd.Group(16)) < 8 / 7


def by_counts(size):
    """The same ratio under a token mean, summed over how many of a group are 0, 10 and 11."""
    first = second = 0.0
    for none, wrong in itertools.product(range(size + 1), repeat=2):
        right = size - none - wrong
        if right < 0:
            continue
        ways = math.comb(size, none) * math.comb(size - none, wrong)
        chance = ways * 0.5**none * 0.25 ** (wrong + right)
        mean = right / size
        up, down, tokens = right * (1 - mean), -mean, none + 2 * (wrong + right)
        # a score is +-1/2 at even steps
        first += chance * (up + wrong * down - none * down) / 2 / tokens
        second += chance * (up - wrong * down) / 2 / tokens
    return first / second


def test_a_constant_is_not_free_under_one_over_length():
    """Reward 1 for all: REINFORCE stands still in a sum, and shortens answers under 1/length."""
    tree = rd.tree([[0], [1, 0], [1, 1]], [1.0, 1.0, 1.0])
    for averaging in ("sum", "token"):
        field = rd.field(m.reinforce(averaging=averaging), tree.log_ref, tree)
        assert np.abs(field).max() <= 1e-16
    field = rd.field(m.reinforce(averaging="sequence"), tree.log_ref, tree)
    assert field[0, 0] > 0.1


@pytest.mark.parametrize(("first", "greedy"), [(0.4, 0.7), (0.6, 0.1)])
def test_greedy_is_step_by_step(first, greedy):
    """Decoding goes to 1 first where 0 has less than half, though [0] may be the likeliest whole.

    What ReMax takes off is not free under 1/length, so that the field tells.
    """
    law = np.log([[first, 1 - first], [0.6, 0.4]])
    reward = np.array([0.7, 1.0, 0.1])
    tree, less = (
        rd.tree([[1, 0], [1, 1], [0]], paid, step_log_reference=law)
        for paid in (reward, reward - greedy)
    )
    plain = m.reinforce(averaging="sequence")
    got, want = rd.field(m.remax(averaging="sequence"), law, tree), rd.field(plain, law, less)
    assert np.allclose(got, want, rtol=0, atol=1e-15)
    assert np.abs(want - rd.field(plain, law, tree)).max() > 1e-3


def test_chance_is_moved_by_no_method():
    tree, logits, old, *_ = problem("chance")
    table = rd.problems.StateTable(tree)
    for i, (method, _) in enumerate(METHODS.values()):
        asked = dataclasses.replace(method, geometry=("softmax", "natural", "sign")[i % 3])
        field = rd.field(asked, logits, tree, rd.Group(2), old=old)
        assert np.all(field[~tree.chooses] == 0)
    moved = table.log_probs(
        logits + 5.0 * jnp.arange(logits.size, dtype=float).reshape(logits.shape)
    )
    assert np.allclose(moved[~tree.chooses], tree.log_chance[~tree.chooses], rtol=0, atol=0)


def test_the_natural_field_is_flat_in_the_value_alone():
    """Plain rewards: Q less its mean in each state, wherever the policy comes."""
    for name in TREES:
        tree, logits, *_ = problem(name)
        law = rd.problems.StateTable(tree).log_probs(logits)
        q = tree.values(law)
        want = q - jnp.sum(jnp.where(jnp.isneginf(law), 0, jnp.exp(law)) * q, axis=1, keepdims=True)
        want = jnp.where(tree.paths.exists & tree.chooses[:, None], want, 0)
        got = rd.field(m.natural_policy_gradient(), logits, tree)
        assert np.allclose(got, want, rtol=0, atol=1e-14)


def test_where_penalties_of_steps_stand_still():
    """k1 in the reward and the exact KL of sequences at the leaf target; k2 and k3 in the loss at
    the recursion on plain futures; nothing at 1/length."""
    tree, *_ = problem("forced")
    beta = 0.4
    leaf = tree.conditionals(rd.target(tree.bandit, rd.ReverseKL(beta)).log_probs)
    plain = {
        "k2": rd.stepwise(tree, rd.ReverseKL(beta), future="reward").log_steps,
        "k3": rd.stepwise(tree, rd.ForwardKL(beta), future="reward").log_steps,
    }

    def norm(method, law):
        return float(jnp.abs(rd.field(method, law, tree)).max())

    assert norm(m.policy_gradient(rd.ReverseKL(beta)), leaf) <= 1e-15
    assert norm(m.dr_grpo(beta=beta, estimator="k1", placement="reward"), leaf) <= 1e-15
    for estimator, law in plain.items():
        for averaging in ("sum", "token"):
            method = m.dr_grpo(beta=beta, estimator=estimator, averaging=averaging)
            assert norm(method, law) <= 1e-15
            assert norm(method, leaf) >= 1e-3
        method = m.dr_grpo(beta=beta, estimator=estimator, averaging="sequence")
        assert min(norm(method, law), norm(method, leaf)) >= 1e-5


def test_a_table_on_a_tree_is_one_in_every_state():
    for name in TREES:
        tree, logits, old, *_ = problem(name)
        for geometry in ("softmax", "natural"):
            method = dataclasses.replace(m.grpo(0.1), geometry=geometry)
            want = rd.field(method, logits, tree, rd.Group(2), old=old)
            got = rd.field(method, logits, tree, rd.Group(2), old=old, policy=rd.policies.Table())
            assert np.array_equal(got, want)


@rd.record
class Shared(rd.policies.Policy):
    """One logit a token, the same in every state."""

    tree: rd.Tree

    def log_probs(self, params):
        logits = jnp.where(self.tree.paths.exists, params, -jnp.inf)
        return jax.vmap(jax.nn.log_softmax)(logits)


def test_a_policy_with_shared_parameters_pulls_back():
    """The gradient through the tokens' logits, against that of the written expected reward."""
    tree, _, _, _, reward, _ = problem("three")
    policy, params = Shared(tree), jnp.array([0.2, -0.3])

    def value(x):
        return jnp.exp(tree.leaves(policy.log_probs(x))) @ reward

    got = rd.field(m.reinforce(), params, tree, policy=policy)
    assert np.allclose(got, jax.grad(value)(params), rtol=0, atol=1e-15)


def test_drawn_groups_have_the_enumerated_mean():
    """Averaged over every pair that can be drawn: the exact field of pairs."""
    tree, logits, *_ = problem("forced")
    law = rd.problems.StateTable(tree).log_probs(logits)
    method = m.dapo(averaging="token", beta=0.1)
    horizon = tree.paths.steps.shape[1]
    tables = tables_of(method, law, tree)
    index, log_weight = every_list(tables, 2)
    lists = listed(method, tables, index, log_weight)
    exact = rd.field(method, logits, tree, rd.Group(2))
    total = jnp.sum(lists, axis=0).reshape(logits.shape)
    pulled = rd.problems.StateTable(tree).pull_back(logits, total)
    assert horizon == 3
    assert np.allclose(pulled, exact, rtol=0, atol=1e-14)


def pasted_grpo(view):
    """GRPO's mean over a sequence, with k3, as a trainer writes it."""
    ratio = jnp.exp(view.log_probs - view.old_log_probs)
    a, gap = view.advantages, view.ref_log_probs - view.log_probs
    penalty = jnp.exp(gap) - gap - 1
    each = -jnp.minimum(ratio * a, jnp.clip(ratio, 0.8, 1.2) * a) + 0.1 * penalty
    return (each * view.mask).sum(1) / jnp.maximum(view.lengths, 1)


def pasted_dapo(view):
    """DAPO's mean over the tokens of the group."""
    ratio, a = jnp.exp(view.log_probs - view.old_log_probs), view.advantages
    gain = jnp.minimum(ratio * a, jnp.clip(ratio, 0.8, 1.28) * a)
    gain = jnp.where(a < 0, jnp.maximum(gain, 3 * a), gain)
    return -(gain * view.mask).sum(1) / view.mean(view.lengths)


def pasted_gspo(view):
    """GSPO's ratio of whole sequences, labels and actions at hand."""
    assert view.labels.shape == view.actions.shape == view.rewards.shape
    log_ratio = ((view.log_probs - view.old_log_probs) * view.mask).sum(1)
    s, a = jnp.exp(log_ratio / jnp.maximum(view.lengths, 1)), view.advantages[:, 0]
    return -jnp.minimum(s * a, jnp.clip(s, 0.8, 1.2) * a)


@pytest.mark.parametrize("tree", ["forced", "chance"])
def test_pasted_losses_of_tokens_are_the_presets(tree):
    t, logits, old, *_ = problem(tree)
    contexts = rd.contexts([t, t], [0.5, 0.5])
    for loss, method in (
        (pasted_grpo, m.grpo(0.1)),
        (pasted_dapo, m.dapo()),
        (pasted_gspo, m.gspo()),
    ):
        pasted = m.from_loss(loss)
        for over in (rd.Population(), rd.Group(2)):
            got = rd.field(pasted, logits, t, over, old=old)
            want = rd.field(method, logits, t, over, old=old)
            assert np.allclose(got, want, rtol=0, atol=1e-15)
    both = rd.field(pasted, jnp.stack([logits, logits]), contexts, rd.Group(2))
    alone = rd.field(pasted, logits, t, rd.Group(2))
    assert np.allclose(both, 0.5 * jnp.stack([alone, alone]), rtol=0, atol=1e-15)


def test_moments_of_drawn_groups():
    """Every ordered pair of sequences, its update by their scores, in the plain and natural way."""
    tree, logits, *_, reward, _ = problem("forced")
    table = rd.problems.StateTable(tree)
    law = np.exp(np.asarray(tree.leaves(table.log_probs(logits))))
    scores = np.asarray(jax.jacobian(lambda z: tree.leaves(table.log_probs(z)))(logits))
    length, r = np.asarray(tree.length, float), np.asarray(reward)
    pairs = itertools.product(range(4), repeat=2)
    each, chance = [], []
    for i, j in pairs:
        std = np.std([r[i], r[j]], ddof=1) + 1e-6
        mean = (r[i] + r[j]) / 2
        parts = [(r[k] - mean) / std * scores[k] / length[k] / 2 for k in (i, j)]
        each.append(sum(parts).ravel())
        chance.append(law[i] * law[j])
    each, chance = np.array(each), np.array(chance)
    mean = chance @ each
    spread = (each * chance[:, None]).T @ each - np.outer(mean, mean)
    got = m.update_moments(m.grpo(0.0), logits, tree, rd.Sampled(2, 3))
    shape = logits.shape
    assert np.allclose(got.mean, mean.reshape(shape), rtol=0, atol=1e-15)
    assert np.allclose(got.covariance, spread.reshape(shape + shape) / 3, rtol=0, atol=1e-15)
    natural = dataclasses.replace(m.grpo(0.0), geometry="natural")
    got = m.update_moments(natural, logits, tree, rd.Sampled(2))
    assert np.allclose(got.mean, rd.field(natural, logits, tree, rd.Group(2)), rtol=0, atol=1e-14)
    with pytest.raises(ValueError, match="groups times actions are enumerated"):
        m.update_moments(m.grpo(), tree.log_ref, tree, rd.Sampled(300))


# What each option makes of the terms of two sequences of one and three tokens: a factor each.
AGGREGATIONS = {
    "verl": [
        ({}, [2 / 4, 2 / 4]),
        ({"loss_agg_mode": "token-mean"}, [2 / 4, 2 / 4]),
        ({"loss_agg_mode": "seq-mean-token-sum"}, [1, 1]),
        ({"loss_agg_mode": "seq-mean-token-mean"}, [1, 1 / 3]),
        ({"loss_agg_mode": "seq-mean-token-sum-norm", "loss_scale_factor": 8}, [1 / 8, 1 / 8]),
        ({"loss_agg_mode": "seq-mean-token-sum-norm"}, [1 / 3, 1 / 3]),
        ({"loss_mode": "gspo"}, [1, 1 / 3]),
    ],
    "trl": [
        ({}, [2 / 4, 2 / 4]),
        ({"loss_type": "grpo"}, [1, 1 / 3]),
        ({"loss_type": "bnpo"}, [2 / 4, 2 / 4]),
        ({"loss_type": "dr_grpo", "max_completion_length": 5}, [1 / 5, 1 / 5]),
        ({"loss_type": "luspo", "importance_sampling_level": "sequence"}, [1, 1]),
        ({"loss_type": "dapo", "importance_sampling_level": "sequence"}, [2 / 4, 2 / 4]),
    ],
    "openrlhf": [
        ({}, [2 / 4, 2 / 4]),
        ({"token_level_loss": False}, [1, 1 / 3]),
        ({"policy_loss_type": "gspo"}, [1, 1 / 3]),
    ],
    "skyrl": [
        ({}, [2 / 4, 2 / 4]),
        ({"loss_reduction": "sequence_mean"}, [1, 1 / 3]),
        ({"loss_reduction": "seq_mean_token_sum_norm", "max_seq_len": 4}, [1 / 4, 1 / 4]),
    ],
    "nemo_rl": [
        ({}, [2 / 4, 2 / 4]),
        (
            {"token_level_loss": False, "sequence_level_importance_ratios": True},
            [1, 1 / 3],
        ),
    ],
}


@pytest.mark.parametrize("trainer", AGGREGATIONS)
def test_trainers_own_names_for_averages(trainer):
    tree = rd.tree([[0], [1, 0, 0], [1, 1]], [1.0, 0.0, 0.5])
    for options, factors in AGGREGATIONS[trainer]:
        levels = m.aggregation(trainer, **options)
        method = m.reinforce(**levels)
        tables = tables_of(method, tree.log_ref, tree)
        share = jnp.array([0.5, 0.5])
        batch = Batch(
            reward=jnp.zeros(2),
            weight=share,
            present=share > 0,
            inv_size=share[0],
            greedy=share[0],
            value=share[0],
            step=tables,
            index=jnp.array([0, 1]),
        )
        assert np.allclose(method.averaging(batch), factors, rtol=1e-15), (trainer, options)
        level = options.get("importance_sampling_level", "token")
        whole = options.get("sequence_level_importance_ratios", False)
        gspo = "gspo" in options.values()
        assert levels["ratio"] == ("sequence" if whole or gspo else level)


def test_every_preset_says_its_averaging_and_ratio():
    """The published ones of GRPO's kin by hand; where no length is known, the longest sequence."""
    said = {
        entry.name: (entry.defaults["averaging"], entry.defaults["ratio"])
        for entry in m.catalog()
        if "averaging" in entry.defaults
    }
    assert {entry.name for entry in m.catalog()} - set(said) == {
        "policy_gradient",
        "natural_policy_gradient",
    }
    expected = {
        "grpo": ("sequence", "token"),
        "dr_grpo": ("constant", "token"),
        "dapo": ("token", "token"),
        "gspo": ("sequence", "sequence"),
        "sapo": ("sequence", "token"),
        "vcpo": ("sequence", "product"),
        "ppo": ("token", "token"),
        "online_dpo": ("sum", "token"),
    }
    assert {name: said[name] for name in expected} == expected
    trl = m.named("rloo/trl", beta=0.05)
    assert isinstance(trl.surrogate, m.surrogate.OfSequence)
    assert not trl.surrogate.mean
    assert m.named("grpo/trl").averaging.over == m.named("grpo/verl").averaging.over == "token"
    tree, *_ = problem("forced")
    plain, scaled = m.dr_grpo(), m.dr_grpo(max_length=3.0)
    law = tree.log_ref
    # a constant 3 may be compiled as a product with 1/3: an ulp of each entry
    expected = rd.field(plain, law, tree)
    np.testing.assert_allclose(rd.field(scaled, law, tree), expected, rtol=1e-14)


def test_dapo_at_a_real_batch_size():
    """Twenty lengths and groups of 64 have an exact answer, by counts and laws of total lengths."""
    right = [[1] * n + [0] for n in range(20)]
    wrong = [[1] * n + [2] for n in range(20)]
    tree = rd.tree([*right, *wrong, [1] * 20], [1.0] * 20 + [0.0] * 21)
    field = rd.field(m.dapo(averaging="token"), tree.log_ref, tree, rd.Group(64))
    assert np.all(np.isfinite(field))
    paid = m.dapo(averaging="token", beta=0.1, estimator="k1", placement="reward")
    with pytest.raises(ValueError, match="groups times actions are enumerated"):
        rd.field(paid, tree.log_ref, tree, rd.Group(64))
