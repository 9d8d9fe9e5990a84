"""Many prompts under one policy, against sums over the prompts one by one and whole batches."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import regdist as rd

m, policies = rd.methods, rd.policies
BANDITS = [
    rd.bandit([1.0, 0.0, 0.3], [0.5, 0.3, 0.2]),
    rd.bandit([1.0, 0.0], [0.05, 0.95]),  # one action less
    rd.bandit([0.0, -jnp.inf, 2.0], [0.6, 0.3, 0.1]),
]
SEQUENCES, CHANCE = [[0], [1, 0], [1, 1, 0], [1, 1, 1]], {(1,): {0: 0.3, 1: 0.7}}
TREES = [
    rd.tree(SEQUENCES, [0.0, 1.0, 0.4, 0.2], chance=CHANCE),
    rd.tree(SEQUENCES, [1.0, 0.0, 0.0, 0.5], chance={(1,): {0: 0.8, 1: 0.2}}),
]
WEIGHTS = {"bandits": [0.5, 0.2, 0.3], "trees": [0.25, 0.75]}
KINDS = {"bandits": BANDITS, "trees": TREES}
METHODS = {
    "grpo": m.grpo(0.1, clip_low=0.1, clip_high=0.1),
    "k1 in the reward": m.rloo(beta=0.2, estimator="k1", placement="reward", averaging="sum"),
    "entropy": m.policy_gradient(rd.Entropy(0.2)),
    "k3 to even": m.compose(
        m.advantage.GroupRelative(0.0), beta=0.2, estimator="k3", anchor="uniform"
    ),
}


def of(kind):
    return rd.contexts(KINDS[kind], WEIGHTS[kind])


def normal(shape, seed=7):
    return np.random.default_rng(seed).normal(size=shape)


def logits_of(contexts, seed=7):
    noise = jnp.asarray(normal(contexts.log_ref.shape, seed)) * 0.4
    return jnp.where(contexts.forbidden, -jnp.inf, contexts.log_ref + noise)


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_is_the_mean_over_prompts(kind):
    """Tables of their own, on and off policy: each prompt's field, by its weight."""
    contexts = of(kind)
    logits = logits_of(contexts)
    old = rd.problems.EachTable(contexts).log_probs(logits_of(contexts, 8))
    for method, over, before in (
        (METHODS["grpo"], rd.Group(2), old),
        (METHODS["k1 in the reward"], rd.Group(2), None),
        (METHODS["entropy"], rd.Population(), old),
        (METHODS["k3 to even"], rd.Population(), None),
    ):
        got = rd.field(method, logits, contexts, over, old=before)
        for c, (one, weight) in enumerate(zip(KINDS[kind], WEIGHTS[kind], strict=True)):
            size = one.log_ref.shape[-1]
            given = None if before is None else before[c][..., :size]
            want = rd.field(method, logits[c][..., :size], one, over, old=given)
            assert np.allclose(got[c][..., :size], weight * want, rtol=0, atol=1e-14)
            assert not np.any(got[c][..., size:])


@pytest.mark.parametrize("kind", KINDS)
def test_shared_parameters_see_all_prompts(kind):
    """Gradients and natural gradients, against autodiff and sums of Fisher matrices."""
    contexts = of(kind)
    features = normal((*contexts.log_ref.shape, 3))
    policy, params = policies.LogLinear(features), jnp.array([0.4, -0.2, 0.3])
    bound = rd.problems.OnContexts(contexts, policy)

    def laws(x):
        table = bound.log_probs(x)
        if kind == "bandits":
            return list(table)
        return [one.leaves(row) for one, row in zip(TREES, table, strict=True)]

    rewards = jnp.where(jnp.isneginf(contexts.leaves.reward), 0, contexts.leaves.reward)

    def value(x):
        total = 0.0
        for weight, log_p, reward in zip(WEIGHTS[kind], laws(x), rewards, strict=True):
            safe = jnp.where(jnp.isneginf(log_p), 0, log_p)
            total = total + weight * jnp.exp(log_p) @ (reward - 0.2 * safe)
        return total

    slope = np.asarray(jax.grad(value)(params))
    got = rd.field(m.policy_gradient(rd.Entropy(0.2)), params, contexts, policy=policy)
    assert np.allclose(got, slope, rtol=0, atol=1e-15)
    fisher = np.zeros((3, 3))
    for c, weight in enumerate(WEIGHTS[kind]):
        log_p = laws(params)[c]
        scores = jax.jacobian(lambda x, c=c: jnp.exp(laws(x)[c]))(params)
        p = np.exp(log_p)
        scores = np.where(p[:, None] > 0, np.asarray(scores) / np.where(p > 0, p, 1)[:, None], 0)
        fisher += weight * (scores * p[:, None]).T @ scores
    natural = rd.field(m.natural_policy_gradient(rd.Entropy(0.2)), params, contexts, policy=policy)
    want = np.linalg.pinv(fisher, rcond=1e-12, hermitian=True) @ slope
    assert np.allclose(natural, want, rtol=1e-10, atol=1e-12)


def test_natural_gradients_of_tables_do_not_see_weights():
    contexts = of("bandits")
    logits, method = logits_of(contexts), m.natural_policy_gradient(rd.ReverseKL(0.3))
    got = rd.field(method, logits, contexts)
    for c, one in enumerate(BANDITS):
        size = one.num_actions
        assert np.allclose(got[c, :size], rd.field(method, logits[c, :size], one), atol=1e-15)
    alone = rd.field(method, logits, rd.contexts(BANDITS, [1.0, 0.0, 1.0]))
    assert not np.any(alone[1])


def batches(chances, size):
    """Every number of right samples of two prompts, `size` of each, with its probability."""
    laws = [
        [math.comb(size, k) * p**k * (1 - p) ** (size - k) for k in range(size + 1)]
        for p in chances
    ]
    return [(a, b, laws[0][a] * laws[1][b]) for a in range(size + 1) for b in range(size + 1)]


def written(chances, size, form):
    """The push on the right logit of each prompt, whitened over a batch of 2 size samples."""
    push = np.zeros(2)
    for *right, weight in batches(chances, size):
        rewards = np.array([[1.0] * k + [0.0] * (size - k) for k in right])
        if form == "centered":
            rewards = rewards - rewards.mean(axis=1, keepdims=True)
        elif form == "advantages":
            rewards = rewards - np.array(chances)[:, None]
        a = (rewards - rewards.mean()) / np.sqrt(rewards.var(ddof=1) + 1e-8)
        hit = np.arange(size) < np.array(right)[:, None]
        score = hit - np.array(chances)[:, None]
        push += weight * (a * score).sum(axis=1) / (2 * size)
    return push


@pytest.mark.parametrize("form", ["rewards", "centered", "advantages"])
def test_whitening_is_the_limit_of_large_batches(form):
    """Exact batches of 8, 16, 32 and 64 samples a prompt: errors halve toward the limit."""
    chances = [0.5, 0.1]
    contexts = rd.contexts([rd.bandit([1.0, 0.0], [p, 1 - p]) for p in chances])
    method = {
        "rewards": m.reinforce_plus_plus(),
        "centered": m.reinforce_plus_plus_baseline(),
        "advantages": m.ppo(whiten="unbiased"),
    }[form]
    limit = rd.field(method, contexts.log_ref, contexts)[:, 0]
    off = np.array([written(chances, size, form) - limit for size in (16, 32, 64)])
    assert np.allclose(off[:-1] / off[1:], 2, rtol=0.2)
    assert np.abs(off[-1]).max() < 0.01


def test_the_groups_own_mean_shrinks_the_pooled_deviation():
    """Groups of two, less their mean: advantages over sqrt(half the mean variance)."""
    chances = np.array([0.5, 0.1])
    contexts = rd.contexts([rd.bandit([1.0, 0.0], [p, 1 - p]) for p in chances])
    method = m.reinforce_plus_plus_baseline()
    got = rd.field(method, contexts.log_ref, contexts, rd.Group(2))[:, 0]
    half = chances * (1 - chances) / 2
    assert np.allclose(got, half / 2 / np.sqrt(half.mean() + 1e-8), rtol=1e-13)


def test_token_means_divide_by_the_mean_length_of_all_prompts():
    contexts = of("trees")
    logits = logits_of(contexts)
    law = rd.problems.EachTable(contexts).log_probs(logits)
    own = np.array([1.0, 1.0, 2.0, 2.0])  # the policy's own tokens: the second is chance's
    mean = sum(
        weight * float(jnp.exp(one.leaves(row)) @ own)
        for weight, one, row in zip(WEIGHTS["trees"], TREES, law, strict=True)
    )
    for over in (rd.Population(), rd.Group(3)):
        got = rd.field(m.dapo(averaging="token"), logits, contexts, over)
        fixed = m.dapo(averaging="constant", max_length=mean)
        assert np.allclose(got, rd.field(fixed, logits, contexts, over), rtol=0, atol=1e-15)


def test_whitening_over_steps_counts_each_prompt_by_its_steps():
    """GAE whitened over all tokens: mean and deviation as sums over prompts, leaves and steps."""
    contexts = of("trees")
    logits = logits_of(contexts)
    law = rd.problems.EachTable(contexts).log_probs(logits)
    terms = []  # weight of a step, and what its sample still gains there
    for weight, one, row in zip(WEIGHTS["trees"], TREES, law, strict=True):
        chances = np.exp(np.asarray(one.leaves(row)))
        reward = np.asarray(one.bandit.reward)
        for leaf, tokens in enumerate(SEQUENCES):
            for t in range(len(tokens)):
                if tuple(tokens[:t]) in CHANCE:
                    continue
                below = np.array([other[:t] == tokens[:t] for other in SEQUENCES])
                value = chances[below] @ reward[below] / chances[below].sum()
                terms.append((weight * chances[leaf], reward[leaf] - value))
    share, gain = np.array(terms).T
    share = share / share.sum()
    center = share @ gain
    scale = np.sqrt(share @ (gain - center) ** 2 + 1e-8)
    got = rd.field(m.ppo_gae(averaging="sum"), logits, contexts)
    plain = rd.field(m.ppo_gae(whiten="none", averaging="sum"), logits, contexts)
    # A constant moves nothing in a sum, so that the scale is all that is left.
    assert np.allclose(got, plain / scale, rtol=1e-12, atol=1e-15)
    got = rd.field(m.ppo_gae(averaging="sequence"), logits, contexts)
    tokens = rd.methods.token_advantage
    by_hand = m.ppo_gae(whiten="none", averaging="sequence")
    fixed = tokens.Standardized(by_hand.advantage, jnp.asarray(center), jnp.asarray(scale))
    by_hand = dataclasses.replace(by_hand, advantage=fixed)
    assert np.allclose(got, rd.field(by_hand, logits, contexts), rtol=1e-12, atol=1e-15)
    shaped = tokens.Whitened(m.advantage.GroupRelative(0.0, "mean"), jnp.asarray(1e-8))
    with pytest.raises(ValueError, match="GroupRelative whitened over steps"):
        rd.field(m.compose(shaped), logits, contexts)


def test_a_run_is_its_steps_written_out():
    contexts, rate, mix = of("trees"), 0.5, 0.7
    here, now = logits_of(contexts), contexts
    loop = rd.loop(epochs=2, sync_every=2, sync_mix=mix)
    method = m.grpo(0.2, clip_low=0.05, clip_high=0.05)
    path = rd.run(method, contexts, 4, optax.sgd(rate), init=here, record_every=1, loop=loop)
    for step in range(1, 5):
        old = rd.problems.EachTable(contexts).log_probs(here)
        for _ in range(2):
            here = here + rate * rd.field(method, here, now, old=old)
        if step % 2 == 0:
            law = rd.problems.EachTable(contexts).log_probs(here)
            rows = zip(TREES, law, now.log_ref, strict=True)
            mixed = [mix * new + (1 - mix) * ref for _, new, ref in rows]
            made = [
                rd.tree(
                    SEQUENCES,
                    one.bandit.reward,
                    chance=chance,
                    log_reference=one.leaves(rd.problems.StateTable(one).log_probs(z)),
                )
                for one, z, chance in zip(
                    TREES, mixed, [CHANCE, {(1,): {0: 0.8, 1: 0.2}}], strict=True
                )
            ]
            now = rd.contexts(made, WEIGHTS["trees"])
        law = rd.problems.EachTable(contexts).log_probs(here)
        want = [one.leaves(row) for one, row in zip(TREES, law, strict=True)]
        assert np.allclose(path.log_probs[step], np.stack(want), rtol=0, atol=1e-12)


def test_drawn_runs_and_samplers():
    contexts = of("bandits")
    loop = rd.loop(minibatches=2, sampler=lambda log_p: rd.laws.temper(log_p, 1.3))
    often, seldom = (
        rd.run(
            m.dapo(),
            contexts,
            6,
            expectation=rd.Sampled(3, 4),
            key=jax.random.key(2),
            record_every=n,
            loop=loop,
        )
        for n in (1, 6)
    )
    assert np.array_equal(often.log_probs[-1], seldom.log_probs[-1])
    assert np.all(np.asarray(often.log_probs)[:, 2, 1] == -np.inf)
    groups = rd.field(
        m.rloo(), contexts.log_ref, contexts, rd.Sampled(2, 20000), key=jax.random.key(1)
    )
    exact = rd.field(m.rloo(), contexts.log_ref, contexts, rd.Group(2))
    spread = 1 / math.sqrt(20000)
    assert np.abs(groups - exact).max() < 5 * spread


def test_one_prompt_moves_another_through_shared_features():
    """A step on the first prompt alone: what it does to the second is a product of gradients."""
    contexts = of("bandits")
    policy = policies.LogLinear(normal((3, 3, 2)))
    params = jnp.array([0.1, 0.2])
    alone = rd.contexts(BANDITS, [1.0, 0.0, 0.0])
    bound = rd.problems.OnContexts(contexts, policy)
    toward = rd.field(m.reinforce(), params, alone, policy=policy)
    gradients = jax.jacobian(lambda x: contexts.rewards(bound.log_probs(x)))(params)
    moved = jax.jvp(lambda x: contexts.rewards(bound.log_probs(x)), (params,), (toward,))[1]
    assert np.allclose(moved, gradients @ gradients[0], rtol=0, atol=1e-15)
    flat, _ = ravel_pytree(toward)
    assert float(jnp.abs(flat).max()) > 0.01


def test_graded_prompts_overlap_as_they_say():
    """A step on one prompt raises the log-odds of the others by the overlap, as a share."""
    for overlap in (0.0, 0.3, 1.0):
        task = rd.problems.graded_prompts([0.9, 0.2, 0.05], overlap, [0, 1, 0])
        bound = rd.problems.OnContexts(task.contexts, task.policy)
        zero = jnp.zeros(4)
        assert np.allclose(bound.log_probs(zero), task.contexts.log_ref, rtol=0, atol=1e-15)
        toward = rd.field(m.reinforce(), zero, task.contexts, policy=task.policy)
        odds = jax.jvp(
            lambda x, bound=bound: bound.log_probs(x)[:, 0] - bound.log_probs(x)[:, 1],
            (zero,),
            (toward,),
        )[1]
        assert np.allclose(odds, 0.16 * np.array([overlap, 1.0, overlap]), rtol=0, atol=1e-15)


def test_groups_of_many_prompts_are_counted_for_all():
    """One prompt is enumerated where four thousand of it are refused, before anything is made."""
    one = rd.bandit([1.0, 0.5, 0.0])
    method, group = m.grpo(), rd.Group(30)
    assert np.all(np.isfinite(rd.field(method, one.log_ref, one, group)))
    many = rd.contexts([one] * 40, np.ones(40))
    stacked = jax.tree.map(lambda x: jnp.concatenate([x] * 100), many.problems)
    huge = rd.Contexts(stacked, jnp.full(4000, 1 / 4000))
    with pytest.raises(ValueError, match="groups times actions are enumerated"):
        rd.field(method, huge.log_ref, huge, group)


def test_the_record():
    contexts = of("bandits")
    assert contexts.num_contexts == 3
    assert contexts.each[1].num_actions == 3
    assert np.array_equal(contexts.each[0].reward, BANDITS[0].reward)
    assert rd.contexts([TREES[0]]).each[0].num_leaves == 4
    swept = jax.jit(
        jax.vmap(lambda w: rd.field(m.rloo(), contexts.log_ref, rd.contexts(BANDITS, w)))
    )(jnp.eye(3))
    total = rd.field(m.rloo(), contexts.log_ref, rd.contexts(BANDITS))
    assert np.allclose(swept.mean(axis=0), total, rtol=0, atol=1e-16)


def test_answers_over_prompts_are_sums_over_prompts_and_labels():
    """By loops, on bandits of unlike sizes and on trees; the information is one of a joint law."""
    sizes = [
        rd.bandit([1.0, 0.0, 0.5], [0.2, 0.5, 0.3], label=[0, 1, 1]),
        rd.bandit([0.0, 1.0], [0.6, 0.4], label=[1, 0]),
    ]
    trees = [
        rd.tree([[0], [1, 0], [1, 1]], [0.0, 0.0, 1.0], reference=q, label=[0, 2, 0])
        for q in ([0.5, 0.2, 0.3], [0.1, 0.8, 0.1])
    ]
    for problems in (sizes, trees):
        prompts = rd.contexts(problems, [0.3, 0.7])
        joint = np.zeros((2, 3))
        for c, problem in enumerate(problems):
            leaves = problem if problems is sizes else problem.bandit
            for p, answer in zip(np.exp(leaves.log_ref), np.asarray(leaves.label), strict=True):
                joint[c, answer] += [0.3, 0.7][c] * p
        found = rd.metrics.answers_over_prompts(prompts, prompts.log_ref)
        assert np.allclose(np.exp(found), joint.sum(axis=0), rtol=0, atol=1e-15)
        parts = np.outer(joint.sum(axis=1), joint.sum(axis=0))
        mask = joint > 0
        information = np.sum(joint[mask] * np.log(joint[mask] / parts[mask]))
        got = float(rd.metrics.prompt_information(prompts, prompts.log_ref))
        assert got == pytest.approx(information, abs=1e-15)
