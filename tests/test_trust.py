"""Methods for samples that the policy has left, against losses written over padded tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regdist as rd
from tests import written_trees as w
from tests.test_tokens import BANDIT, ONE_STATE, problem
from tests.written_tokens import whitened

m = rd.methods
sg = jax.lax.stop_gradient


def verl_dppo(g, low=0.05, high=0.02, measure="tv", cap=1.1):
    """verl's: the truncated ratio is detached, and so is the mask."""
    a, rho = g.z()[:, None], sg(jnp.minimum(jnp.exp(g.lp - g.old), cap))
    p, old = sg(jnp.exp(g.lp)), jnp.exp(g.old)
    if measure == "tv":
        up, down = p - old <= high, p - old >= -low
    else:
        kl = old * (g.old - sg(g.lp)) + (1 - old) * jnp.log((1 - old + 1e-8) / (1 - p + 1e-8))
        up, down = (kl <= high) | (p <= old), (kl <= low) | (p >= old)
    return -g.by_token(a * rho * g.lp * jnp.where(jnp.where(a > 0, up, down), 1.0, 0.0))


def prime(g, kept, kl):
    """prime-rl's: the ratio is live, the square of its logarithm is not masked."""
    a, gap = (g.r - g.mean(g.r))[:, None], sg(jnp.exp(g.lp)) - jnp.exp(g.old)
    gain = jnp.where(kept(a, gap), 1.0, 0.0) * a * jnp.exp(g.lp - g.old)
    return g.by_token(kl * (g.lp - g.old) ** 2 - gain)


def trl_vespo(g):
    log_w = jnp.clip(g.total(g.mask * jnp.clip(g.lp - g.old, -20, 20)), np.log(1e-8), 20)[:, None]
    a = g.z(1e-4)[:, None]
    k, lam = jnp.where(a >= 0, 2.0, 3.0), jnp.where(a >= 0, 3.0, 2.0)
    return -g.by_token(sg(jnp.exp(lam + k * log_w - lam * jnp.exp(log_w))) * a * g.lp)


def trl_sequence_mask(g, most):
    a = g.z(1e-4)[:, None]
    away = (sg(g.total(g.mask * (g.old - g.lp))) / g.n)[:, None]
    rho = jnp.exp(g.lp - g.old)
    gain = jnp.minimum(rho * a, jnp.clip(rho, 0.8, 1.2) * a)
    return -g.by_token(gain * jnp.where((a >= 0) | (away <= most), 1.0, 0.0))


def one_sided(a, gap):
    return jnp.where(a > 0, gap <= 0.02, gap >= -0.05)


def roll_topr(g, positive=0.7, negative=0.4):
    """The reward itself in the place of ROLL's advantages."""
    r, rho = g.r[:, None], sg(jnp.exp(g.lp - g.old))
    taper = jnp.where(r > 0, positive, negative * jnp.clip(rho, 0, 1))
    return -g.by_sequence(taper * r * g.lp)


def roll_kimi(g, tau=0.3):
    a = (g.r - g.mean(g.r))[:, None]
    return g.by_sequence(tau / 2 * (g.lp - g.old) ** 2 - a * g.lp)


def roll_cispo(g, low=0.1, high=0.1):
    a, rho = g.z()[:, None], sg(jnp.exp(g.lp - g.old))
    beyond = ((a > 0) & (rho > 1 + high)) | ((a < 0) & (rho < 1 - low))
    return -g.by_token(jnp.clip(rho, 1 - low, 1 + high) * a * g.lp * jnp.where(beyond, 0.0, 1.0))


def cut_advantage(g, low=-0.4, high=0.9):
    a, rho = jnp.clip(g.z(), low, high)[:, None], jnp.exp(g.lp - g.old)
    return -g.by_token(jnp.minimum(rho * a, jnp.clip(rho, 0.8, 1.2) * a))


def positive_nll(g, weight=0.3):
    """NeMo-RL's: the mean over the tokens of samples with a reward above 0."""
    right = jnp.where(g.r > 0, 1.0, 0.0)
    count = (g.w * right * g.n).sum()
    nll = -(g.w * right * g.total(g.lp)).sum() / jnp.where(count > 0, count, 1)
    a, rho = g.z()[:, None], jnp.exp(g.lp - g.old)
    gain = jnp.minimum(rho * a, jnp.clip(rho, 0.8, 1.2) * a)
    return weight * nll - g.by_token(gain)


KINDS = jnp.asarray(np.random.default_rng(3).normal(size=(3, 40))).round(1)


def several(g, weights, whole, others=False, dual=jnp.inf, eps=1e-6):
    """GDPO's advantage by kind, one after the other, as GRPO of a list of samples has it."""
    a = 0.0
    for weight, row in zip(weights, KINDS, strict=True):
        x = row[g.rows]
        square = (g.w * (x - g.mean(x)) ** 2).sum()
        square = square if g.endless else square * g.size / (g.size - 1)
        z = (x - g.mean(x)) / (jnp.sqrt(square + 1e-60) + eps)
        if others:
            each = []
            for i in range(g.size):
                rest = jnp.delete(x, i, assume_unique_indices=True)
                gap, mean = x[i] - rest.mean(), rest.mean()
                std = jnp.sqrt(((rest - mean) ** 2).sum() / max(g.size - 2, 1) + 1e-60)
                some = (std > 1e-20) & (g.size > 2)
                each.append(jnp.where(some, gap / (jnp.where(some, std, 1) + eps), gap))
            z = jnp.stack(each)
        a = a + weight * z
    a = sg(whole(g, a))
    rho = jnp.exp(g.lp - g.old)
    a = a if a.ndim == 2 else a[:, None]
    gain = jnp.minimum(rho * a, jnp.clip(rho, 0.8, 1.2) * a)
    return -g.by_token(jnp.where(a < 0, jnp.maximum(gain, dual * a), gain))


def over_samples(g, a, eps):
    square = (g.w * (a - g.mean(a)) ** 2).sum()
    square = square if g.endless else square * g.size / (g.size - 1)
    std = jnp.sqrt(square + 1e-60) + eps
    return jnp.where(std > 1e-20, (a - g.mean(a)) / std, 0)


def over_steps(g, a):
    return whitened(g, a[:, None] + 0 * g.mask)


def decoupled(tree, **how):
    return m.gdpo(KINDS[:, : tree.num_leaves], jnp.array([1.0, 0.5, 2.0]), **how)


WEIGHTS = (1.0, 0.5, 2.0)
DECOUPLED = {
    "gdpo, verl": ({}, functools.partial(several, whole=over_steps, dual=3.0)),
    "gdpo, trl": (
        {"whiten": "std", "eps": 1e-4, "clip_dual": np.inf},
        functools.partial(several, whole=functools.partial(over_samples, eps=1e-4), eps=1e-4),
    ),
    "gdpo, nemo": (
        {"whiten": "plain", "others": True, "clip_dual": np.inf},
        functools.partial(several, whole=functools.partial(over_samples, eps=0.0), others=True),
    ),
}

METHODS = {
    "topr": (m.topr(0.7, 0.4), roll_topr),
    "kimi15": (m.kimi15(0.3), roll_kimi),
    "cispo, masked": (m.cispo(0.1, 0.1, masked=True), roll_cispo),
    "advantage clip": (
        m.compose(
            m.token_advantage.Bounded(m.grpo(eps=1e-6).advantage, -0.4, 0.9),
            clip_low=0.2,
            clip_high=0.2,
            averaging="token",
        ),
        cut_advantage,
    ),
    "positive nll": (
        m.compose(
            m.grpo(eps=1e-6).advantage,
            clip_low=0.2,
            clip_high=0.2,
            averaging="token",
            penalties=m.penalty.PositiveNLL(0.3),
        ),
        positive_nll,
    ),
    "dppo, tv": (m.dppo(0.05, 0.02, cap=1.1), verl_dppo),
    "dppo, kl": (
        m.dppo(2e-3, 1e-3, "kl", cap=1.1),
        functools.partial(verl_dppo, low=2e-3, high=1e-3, measure="kl"),
    ),
    "prime-rl": (m.prime_rl(0.05, 0.02, 0.1), functools.partial(prime, kept=one_sided, kl=0.1)),
    "prime-rl, ipo": (
        m.prime_rl_ipo(0.04, 0.1),
        functools.partial(prime, kept=lambda a, gap: jnp.abs(gap) <= 0.04, kl=0.1),
    ),
    "dro": (
        m.dro(0.3),
        lambda g: g.by_token(0.15 * (g.lp - g.old) ** 2 - g.z()[:, None] * g.lp),
    ),
    "vespo": (m.vespo(), trl_vespo),
    "sequence mask": (
        m.grpo_sequence_mask(0.02),
        functools.partial(trl_sequence_mask, most=0.02),
    ),
}


def of(method, tree, over, x, law):
    return rd.field(method, x, tree, over, old=law)


@pytest.mark.parametrize("name", DECOUPLED)
def test_several_rewards_are_compared_apart(name):
    """Groups of three, where the deviation of the others is of two."""
    how, loss = DECOUPLED[name]
    loss = functools.partial(loss, weights=WEIGHTS)
    tree, logits, old, log_ref, reward, facts = problem("forced")
    method = decoupled(tree, **how)
    for size in (3,) if "others" in how else (None, 3):
        over = rd.Population() if size is None else rd.Group(size)
        got = rd.field(method, logits, tree, over, old=old)
        want = w.expected(loss, size, logits, old, log_ref, reward, *facts)
        assert np.allclose(got, want, rtol=0, atol=1e-12 * (1 + np.abs(want).max()))


def test_decoupled_rewards_are_of_all_actions():
    with pytest.raises(ValueError, match="a column for each of 3 actions; got shape"):
        rd.field(m.gdpo([[1.0, 0.0], [0.0, 1.0]]), BANDIT.log_ref, BANDIT)
    with pytest.raises(ValueError, match="a row for each reward, a column for each action"):
        m.gdpo([1.0, 0.0, 0.0])


@pytest.mark.parametrize("name", METHODS)
def test_every_field_is_the_gradient_of_the_written_loss(name):
    """Under the law itself and over all groups of two or three, off policy and on it."""
    method, loss = METHODS[name]
    for where, size in (("chance", None), ("forced", 2 + list(METHODS).index(name) % 2)):
        tree, logits, old, log_ref, reward, facts = problem(where)
        over = rd.Population() if size is None else rd.Group(size)
        field = jax.jit(
            lambda x, law, over=over, tree=tree: rd.field(method, x, tree, over, old=law)
        )
        got = [field(logits, law) for law in (rd.problems.StateTable(tree).log_probs(logits), old)]
        for law, x in zip((rd.problems.StateTable(tree).log_probs(logits), old), got, strict=True):
            want = w.expected(loss, size, logits, law, log_ref, reward, *facts)
            assert np.allclose(x, want, rtol=0, atol=1e-12 * (1 + np.abs(want).max()))


def test_masks_cut_on_both_sides_of_the_problems_above():
    """Each of them drops some steps and keeps others, so that the judge above sees both."""
    tree, logits, old, *_ = problem("forced")
    for method, _ in METHODS.values():
        if not isinstance(method.surrogate, m.off_policy.TrustMask) and not method.weights:
            continue
        free = rd.methods.compose(
            method.advantage, m.surrogate.Clip(0.0, np.inf, np.inf), averaging="token"
        )
        none = rd.field(free, logits, tree, old=old)
        got = rd.field(method, logits, tree, old=old)
        assert not np.allclose(got, none, atol=1e-3)
        assert np.abs(got).max() > 1e-3


def test_one_state_is_the_bandit_bit_for_bit():
    logits, old = jnp.array([0.3, -0.2, 0.1]), rd.log_softmax(jnp.array([0.5, 0.0, -0.3]))
    for over in (rd.Population(), rd.Group(2)):
        for name, (method, _) in METHODS.items():
            one = rd.field(method, logits, BANDIT, over, old=old)
            got = rd.field(method, logits[None], ONE_STATE, over, old=old[None])
            assert np.array_equal(got[0], one), name
