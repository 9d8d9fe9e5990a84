"""Corrections for another sampler, against losses written as verl and SkyRL have them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regdist as rd
from regdist.methods.step import tables_of
from tests import written_trees as w
from tests.test_tokens import BANDIT, ONE_STATE, problem

m = rd.methods
sg = jax.lax.stop_gradient
OTHER = 0.8  # the temperature of the sampler


def objective(g):
    """PPO's, with verl's dual clip."""
    a, rho = g.z()[:, None], jnp.exp(g.lp - g.old)
    gain = jnp.minimum(rho * a, jnp.clip(rho, 0.8, 1.2) * a)
    return jnp.where(a < 0, jnp.maximum(gain, 3.0 * a), gain)


def verl_weight(g, over="token", low=None, high=1.1, normalized=False):
    x = g.old - g.sampler
    if over == "sequence":
        x = g.total(x)[:, None] + 0 * x
    raw = jnp.exp(jnp.clip(x, -20, 20)) * g.mask
    weight = jnp.minimum(raw, high)
    if low is not None:
        weight = jnp.where((raw >= low) & (raw <= high), raw, 0)
    if normalized:
        mean = (g.w * g.total(weight)).sum() / (g.w * g.n).sum()
        if over == "sequence":
            mean = (g.w * (g.total(weight) / g.n)).sum()
        weight = weight / jnp.where(mean > 1e-8, mean, 1)
    return -g.by_token(objective(g) * weight)


def kept_by(g, statistic, over, low, high):
    """verl's mask: k1 has bounds of both sides, as logarithms of the ratio sampler/old."""
    x = jnp.clip(g.old - g.sampler, -20, 20)
    x = {"k1": -x, "k2": x**2 / 2, "k3": jnp.exp(x) - 1 - x}[statistic]
    if over == "sum":
        x = g.total(x)[:, None] + 0 * x
    elif over == "mean":
        x = (g.total(x) / g.n)[:, None] + 0 * x
    elif over == "every":
        x = jnp.max(jnp.where(g.mask > 0, x, -jnp.inf), axis=1)[:, None] + 0 * x
    bottom, top = (np.log(low), np.log(high)) if statistic == "k1" else (-np.inf, high)
    return jnp.where((x >= bottom) & (x <= top), g.mask, 0.0)


def verl_rejection(g, statistic="k1", over="token", low=0.9, high=1.1, beta=0.3, averaging="token"):
    """The mask is the loss's own: steps beyond it have no penalty and are not counted."""
    kept = kept_by(g, statistic, over, low, high)
    x = (beta * (jnp.exp(g.ref - g.lp) - (g.ref - g.lp) - 1) - objective(g)) * kept
    if averaging == "token":
        count = (g.w * g.total(kept)).sum()
        return (g.w * g.total(x)).sum() / jnp.where(count > 0, count, 1)
    if averaging == "sequence":
        return (g.w * g.total(x) / jnp.maximum(g.total(kept), 1)).sum()
    return (g.w * g.total(x)).sum()


def skyrl_mask(g, over, low, high):
    """Bounds of the ratio old/sampler; what is outside still counts, and has its penalty."""
    x = g.old - g.sampler
    if over == "mean":
        x = (g.total(x) / g.n)[:, None] + 0 * x
    inside = (jnp.exp(x) >= low) & (jnp.exp(x) <= high)
    if over == "every":
        inside = jnp.all(inside | (g.mask == 0), axis=1)[:, None]
    gain = objective(g) * jnp.where(inside, 1.0, 0.0)
    return g.by_token(0.3 * (jnp.exp(g.ref - g.lp) - (g.ref - g.lp) - 1) - gain)


def areal_weight(g):
    """AReaL's clamp of the geometric mean of a sample."""
    a, rho = g.z()[:, None], jnp.exp(g.lp - g.old)
    gain = jnp.minimum(rho * a, jnp.clip(rho, 0.8, 1.2) * a)
    mean = jnp.exp(g.total(g.old - g.sampler) / g.n)[:, None]
    return -g.by_token(gain * jnp.clip(mean, 0.97, 1.03))


def openrlhf_gate(g, statistic, over, low, high):
    """Its clamp of probabilities included; survivors keep their token's ratio."""
    x = g.old - g.sampler
    if statistic == "ratio":
        stat = jnp.exp((g.total(x) / g.n)[:, None] + 0 * x if over == "mean" else x)
    else:
        p, q = (jnp.clip(jnp.exp(v), 1e-6, 1 - 1e-6) for v in (g.sampler, g.old))
        stat = jnp.abs(p - q)
        if statistic == "binary_kl":
            stat = p * jnp.log(p / q) + (1 - p) * jnp.log((1 - p) / (1 - q))
        if over == "mean":
            stat = (g.total(stat) / g.n)[:, None] + 0 * stat
    coef = jnp.where((stat >= low) & (stat <= high), jnp.exp(x), 0.0)
    a, rho = g.z(1e-9)[:, None], jnp.exp(g.lp - g.old)
    return -g.by_token(coef * jnp.minimum(rho * a, jnp.clip(rho, 0.8, 1.2) * a))


def gated(statistic, over, low, high):
    how = {"statistic": statistic, "over": over, "low": low, "high": high}
    return m.grpo_gated(**how), functools.partial(openrlhf_gate, **how)


def rejected(**how):
    spelled = {"high": 1.1, "low": 0.9, **how}
    averaging = spelled.pop("averaging", "token")
    part = functools.partial(verl_rejection, averaging=averaging, **spelled)
    return m.grpo_rejection(beta=0.3, averaging=averaging, **spelled), part


def masked(over, low, high):
    part = m.weight.SamplerMask(jnp.log(low), jnp.log(high), over=over, drop=False)
    method = m.grpo(0.3, eps=1e-6, clip_dual=3.0, averaging="token", weights=part)
    return method, functools.partial(skyrl_mask, over=over, low=low, high=high)


METHODS = {
    "token weights": (m.tis(1.1), verl_weight),
    "sequence weights": (m.tis(1.1, "sequence"), functools.partial(verl_weight, over="sequence")),
    "normalized weights": (
        m.tis(1.1, normalized=True),
        functools.partial(verl_weight, normalized=True),
    ),
    "normalized sequence weights": (
        m.tis(1.1, "sequence", normalized=True),
        functools.partial(verl_weight, over="sequence", normalized=True),
    ),
    "icepop": (m.icepop(0.9, 1.1), functools.partial(verl_weight, low=0.9)),
    "icepop, normalized sequences": (
        m.icepop(0.9, 1.1, "sequence", normalized=True),
        functools.partial(verl_weight, over="sequence", low=0.9, normalized=True),
    ),
    "token k1": rejected(),
    "token k2": rejected(statistic="k2", high=2e-3),
    "token k3, sequence means": rejected(statistic="k3", high=2e-3, averaging="sequence"),
    "sum k1": rejected(over="sum"),
    "sum k2, sums": rejected(over="sum", statistic="k2", high=6e-3, averaging="sum"),
    "mean k1": rejected(over="mean", low=0.95, high=1.03),
    "mean k3": rejected(over="mean", statistic="k3", high=3e-3),
    "every k2": rejected(over="every", statistic="k2", high=4e-3),
    "every k3, sequence means": rejected(
        over="every", statistic="k3", high=4e-3, averaging="sequence"
    ),
    "gate, ratios": gated("ratio", "token", 0.9, 1.1),
    "gate, mean ratios": gated("ratio", "mean", 0.97, 1.03),
    "gate, binary kl": gated("binary_kl", "token", 0.0, 2e-3),
    "gate, mean binary kl": gated("binary_kl", "mean", 0.0, 1.5e-3),
    "gate, tv": gated("tv", "token", 0.0, 0.03),
    "gate, mean tv": gated("tv", "mean", 0.0, 0.025),
    "mean weights": (
        m.grpo(weights=m.weight.SamplerRatio(0.97, 1.03, over="mean"), beta=0.0, averaging="token"),
        areal_weight,
    ),
    "skyrl tokens": masked("token", 0.9, 1.1),
    "skyrl outliers": masked("every", 0.85, 1.15),
    "skyrl geometric": masked("mean", 0.97, 1.05),
}


def with_old(loss, law):
    """The loss where the samples are from another law than the trainer's old policy."""

    @functools.wraps(loss)
    def of(g):
        g.sampler, g.old_table = g.old, law
        g.old = jnp.where(g.mask > 0, jnp.ravel(law)[g.at], 0.0)
        return loss(g)

    return of


def laws(tree, old):
    """The old policy, and a hotter sampler."""
    hot = jnp.where(jnp.isneginf(old), -jnp.inf, jax.nn.log_softmax(OTHER * old, axis=-1))
    return old, tree.with_chance(hot)


@pytest.mark.parametrize("name", METHODS)
def test_every_field_is_the_gradient_of_the_written_loss(name):
    """Under the law itself and over all groups of two or three."""
    method, loss = METHODS[name]
    for where, size in (("chance", None), ("forced", 2 + list(METHODS).index(name) % 2)):
        tree, logits, old, log_ref, reward, facts = problem(where)
        law, sampler = laws(tree, old)
        over = rd.Population() if size is None else rd.Group(size)
        got = rd.field(method, logits, tree, over, old=law, sampler=sampler)
        want = w.expected(with_old(loss, law), size, logits, sampler, log_ref, reward, *facts)
        assert np.allclose(got, want, rtol=0, atol=1e-12 * (1 + np.abs(want).max()))
        assert np.abs(want).max() > 1e-3


def test_every_mask_keeps_some_and_not_others():
    """So that the judge above sees both."""
    tree, logits, old, *_ = problem("forced")
    law, sampler = laws(tree, old)
    for name, (method, _) in METHODS.items():
        for weight in method.weights:
            if isinstance(weight, m.weight.SamplerMask) or weight.mask:
                tables = tables_of(method, logits, tree, law, sampler)
                batch = m.batch.whole_table(tables, jnp.exp(tables.log_sampler), 0.0).tokens
                kept = weight(batch, jnp.ones_like(batch.reward))[batch.here] > 0
                assert 0 < kept.mean() < 1, name


def test_one_state_is_the_bandit_bit_for_bit():
    logits, old = jnp.array([0.3, -0.2, 0.1]), rd.log_softmax(jnp.array([0.5, 0.0, -0.3]))
    sampler = rd.laws.temper(old, 1.5)
    for over in (rd.Population(), rd.Group(2)):
        for name, (method, _) in METHODS.items():
            one = rd.field(method, logits, BANDIT, over, old=old, sampler=sampler)
            got = rd.field(
                method, logits[None], ONE_STATE, over, old=old[None], sampler=sampler[None]
            )
            assert np.array_equal(got[0], one), name


def test_a_rejected_action_moves_others_more():
    """By hand: of three even actions one is rejected, and a token mean is over the other two."""
    b = rd.bandit([1.0, 0.0, 0.0])
    old, sampler = b.log_ref, jnp.log(jnp.array([0.25, 0.25, 0.5]))
    # r - mean is 3/4, -1/4, -1/4; the shares 1/4, 1/4, 1/2; the ratio 2/3 of the last is out.
    total = np.array([3 / 16, -1 / 16, 0.0])
    for drop, scale in ((True, 2.0), (False, 1.0)):
        part = m.weight.SamplerMask(jnp.log(0.9), jnp.log(2.0), drop=drop)
        method = m.dr_grpo(averaging="token", weights=part)
        got = rd.field(method, b.log_ref, b, old=old, sampler=sampler)
        assert np.allclose(got, scale * (total - total.sum() / 3), atol=1e-15)


def test_where_all_is_rejected_nothing_moves():
    b = rd.bandit([1.0, 0.0])
    method = m.grpo_rejection(2.0, 3.0, averaging="token")
    sampler = jnp.log(jnp.array([0.4, 0.6]))
    for over in (rd.Population(), rd.Group(3)):
        got = rd.field(method, b.log_ref, b, over, old=b.log_ref, sampler=sampler)
        assert np.array_equal(got, np.zeros(2))


def test_over_many_prompts_a_mean_is_over_the_steps_that_any_prompt_keeps():
    """The large-batch limit: sums of each prompt over the mean number kept."""
    trees = [problem(where) for where in ("forced", "forced")]
    contexts = rd.contexts([t[0] for t in trees], weights=[0.3, 0.7])
    logits = jnp.stack([trees[0][1], 0.5 * trees[1][1]])
    old = jnp.stack([trees[0][2], trees[1][0].log_ref])
    sampler = jnp.stack([laws(t[0], law)[1] for t, law in zip(trees, old, strict=True)])
    got = rd.field(
        m.grpo_rejection(0.9, 1.1), logits, contexts, rd.Group(2), old=old, sampler=sampler
    )
    kept, want = 0.0, []
    for i, share in enumerate((0.3, 0.7)):
        method = m.grpo_rejection(0.9, 1.1, averaging="sum")
        each = logits[i], trees[i][0], rd.Group(2)
        want.append(share * rd.field(method, *each, old=old[i], sampler=sampler[i]))
        tables = tables_of(method, logits[i], trees[i][0], old[i], sampler[i])
        steps, law = tables.steps, np.exp(np.asarray(tables.log_sampler))
        ratio = np.exp(np.asarray(sampler[i] - old[i])).ravel()[steps.path]
        kept += (
            share * law @ np.sum(np.asarray(steps.own) & (ratio >= 0.9) & (ratio <= 1.1), axis=1)
        )
    assert np.allclose(got, jnp.stack(want) / kept, atol=1e-14)
