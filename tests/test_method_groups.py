"""Every preset against its loss, written out and averaged over all groups of samples."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import regdist as rd
from regdist.methods.batch import Batch
from regdist.methods.groups import draw
from tests import losses as w
from tests.strategies import bandits

m = rd.methods
part = functools.partial

# name: preset, its loss, smallest group
PRESETS = {
    "reinforce": (m.reinforce(), lambda g: -jnp.mean(g.r * g.lp)),
    "ppo": (m.ppo(), lambda g: w.ppo(g, g.r - g.value, dual=3.0)),
    "remax": (m.remax(), lambda g: w.ppo(g, g.r - g.greedy, dual=3.0)),
    "rloo": (m.rloo(), lambda g: w.ppo(g, w.loo(g), dual=3.0)),
    "grpo": (m.grpo(), w.grpo),
    "grpo_of_others": (
        m.grpo_of_others(),
        lambda g: w.ppo(g, w.of_others(g) if g.size > 1 else jnp.zeros(1)),
    ),
    "dr_grpo": (m.dr_grpo(), lambda g: w.ppo(g, w.centred(g))),
    "dapo": (m.dapo(), lambda g: w.ppo(g, w.z_score(g), 0.2, 0.28, 3.0)),
    "gspo": (m.gspo(), lambda g: w.ppo(g, w.z_score(g))),
    "opo": (m.opo(), lambda g: -jnp.mean(w.centred(g) * g.lp)),
    "gpg": (m.gpg(), w.nonzero),
    "maxrl": (
        m.maxrl(),
        lambda g: w.ppo(g, w.centred(g) / (w.mean(g) + 1e-6), dual=3.0),
    ),
    "one_sided_grpo": (
        m.one_sided_grpo(),
        lambda g: w.ppo(g, (g.r - jnp.mean(g.r)) / (jnp.sqrt(jnp.mean(g.r)) + 1e-6), dual=3.0),
    ),
    "ppo, whitened": (
        m.ppo("unbiased"),
        lambda g: w.ppo(g, w.whitened(g.r - g.value), dual=3.0),
    ),
    "ppo, whitened, biased": (
        m.ppo("biased"),
        lambda g: w.ppo(g, w.whitened(g.r - g.value, biased=True), dual=3.0),
    ),
    "reinforce_plus_plus": (
        m.reinforce_plus_plus(),
        lambda g: w.ppo(g, w.whitened(g.r), dual=3.0),
    ),
    "reinforce_plus_plus, biased": (
        m.reinforce_plus_plus("biased"),
        lambda g: w.ppo(g, w.whitened(g.r, biased=True), dual=3.0),
    ),
    "reinforce_plus_plus_baseline": (
        m.reinforce_plus_plus_baseline(),
        lambda g: w.ppo(g, w.whitened(w.centred(g)), dual=3.0),
    ),
    "pass_at_k_grpo": (m.pass_at_k_grpo(), w.passk_best),
    "pass_at_k_grpo, plain": (m.pass_at_k_grpo(False), part(w.passk_best, normalize=False)),
    "psr": (m.psr(), part(w.signed, positive=1, negative=0)),
    "nsr": (m.nsr(), part(w.signed, positive=0, negative=1)),
    "psr, subset": (m.psr(True), part(w.signed, positive=1, negative=0, subset=True)),
    "nsr, subset": (m.nsr(True), part(w.signed, positive=0, negative=1, subset=True)),
    "w_reinforce": (m.w_reinforce(), part(w.signed, positive=0.1, negative=1)),
    "raft": (m.raft(), lambda g: -jnp.mean(jnp.maximum(g.r, 0) * g.lp)),
    "reinforce_rej": (
        m.reinforce_rej(),
        lambda g: (
            -jnp.mean(jnp.where((jnp.max(g.r) > jnp.min(g.r)) | (g.size == 1), g.r, 0) * g.lp)
        ),
    ),
    "vcpo": (m.vcpo(), w.optimal),
    "vcpo, paper": (m.vcpo(paper=True), part(w.optimal, again=False)),
    "riskpo": (m.riskpo(), w.riskpo),
    "cispo": (
        m.cispo(),
        lambda g: -jnp.mean(w.sg(jnp.clip(jnp.exp(g.lp - g.old), 0.8, 1.2)) * w.z_score(g) * g.lp),
    ),
    "cispo, TRL": (
        m.named("cispo/trl"),
        lambda g: (
            -jnp.mean(w.sg(jnp.minimum(jnp.exp(g.lp - g.old), 0.2)) * w.z_score(g, 1e-4) * g.lp)
        ),
    ),
    "sapo": (m.sapo(), w.sapo),
    "gmpo": (m.gmpo(), w.gmpo),
    "entropy, sampled": (
        m.entropy_bonus(0.3, sampled_loss=True),
        lambda g: -jnp.mean(w.loo(g) * g.lp) + 0.3 * jnp.mean(g.lp),
    ),
    "k1 in loss": (m.opo(beta=0.3, estimator="k1"), part(w.penalised, kind="k1")),
    "k2 in loss": (m.opo(beta=0.3, estimator="k2"), part(w.penalised, kind="k2")),
    "k3 in loss": (m.opo(beta=0.3, estimator="k3"), part(w.penalised, kind="k3")),
    "abs in loss": (m.opo(beta=0.3, estimator="abs"), part(w.penalised, kind="abs")),
    "k3+ in loss": (m.opo(beta=0.3, estimator="k3+"), part(w.penalised, kind="k3+")),
    "k3 x ratio": (
        m.opo(beta=0.3, estimator="k3", ratio_corrected=True),
        part(w.penalised, kind="corrected"),
    ),
    "k3 x ratio, cut": (
        m.opo(beta=0.3, estimator="k3", ratio_corrected=True, clamp_value=0.2),
        part(w.penalised, kind="corrected, cut"),
    ),
    "k3 x live ratio": (
        m.opo(beta=0.3, estimator="k3", ratio_corrected="live"),
        part(w.penalised, kind="live"),
    ),
    "k2 x live ratio, cut": (
        m.opo(beta=0.3, estimator="k2", ratio_corrected="live", clamp_value=0.1),
        part(w.penalised, kind="live, cut"),
    ),
    **{
        f"{kind} in reward": (
            m.opo(beta=0.3, estimator=kind, placement="reward"),
            part(w.penalised, kind=kind, placement="reward"),
        )
        for kind in ("k1", "k2", "k3", "abs")
    },
    "k1 after": (
        m.grpo(0.3, "k1", "reward", after_normalization=True, clip_low=1.0, clip_high=1e9),
        w.after,
    ),
    "trajectory_balance": (m.trajectory_balance(0.4), part(w.balance, beta=0.4)),
    "asymre": (m.asymre(), w.asymre),
    "a_star_po": (m.a_star_po(0.3), w.a_star_po),
    "vargrad": (m.vargrad(0.4), part(w.squared, beta=0.4)),
    "gvpo": (m.gvpo(0.4), part(w.gvpo, beta=0.4)),
    "gvpo, old": (m.gvpo(0.4, "old"), part(w.gvpo, beta=0.4, old=True)),
    "flowrl": (m.flowrl(), w.flowrl),
    "disco": (m.disco(), w.disco),
    "disco, ratio": (m.disco(score="ratio"), part(w.disco, tau=1.0, ratio=True)),
    "disco-b": (m.disco(plain=True), part(w.disco, plain=True)),
    "online_dpo": (m.online_dpo(0.7), part(w.pairs, beta=0.7)),
    "online_dpo, soft": (m.online_dpo(0.7, False), part(w.pairs, beta=0.7, hard=False)),
    "online_ipo": (m.online_ipo(0.7), part(w.pairs, beta=0.7, ipo=True)),
    "mpo": (m.mpo(0.1), w.mpo),
    "nash_md": (m.nash_md(), w.nash_md),
    "clip_cov": (m.clip_cov(0.5, -0.1, 5.0), w.clip_cov),
    "kl_cov": (m.kl_cov(0.5), w.kl_cov),
    "steer": (m.steer(), w.steer),
    "lp_reg": (m.lp_reg(1.0, 0.5), w.lp_reg),
    "bapo": (m.bapo(), w.bapo),
    "drpo": (m.drpo([3.0, 1.0, 2.0]), w.drpo),
    "aepo, low": (m.aepo(2.0, 0.3), part(w.aepo, share=0.3, temperature=1.2)),
    "aepo, high": (m.aepo(0.0, 0.3), part(w.aepo, share=0.15, temperature=0.8)),
    "dcpo": (m.dcpo(), w.dcpo),
    "pass_at_k_training": (m.pass_at_k_training(2), part(w.passk_analytic, k=2)),
    "pkpo, 2": (m.pkpo(2), part(w.pkpo, k=2)),
    "pkpo, 3": (m.pkpo(3), part(w.pkpo, k=3)),
}
ON_POLICY = ("k1 after", "corrected")
REWARD = jnp.array([1.0, 0.0, 0.5])
LOG_REF = jnp.log(jnp.array([0.2, 0.5, 0.3]))
LOGITS = jnp.array([0.3, -0.2, 0.1])


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("name", PRESETS)
def test_group_is_the_mean_over_all_groups(name, size):
    method, loss = PRESETS[name]
    if size == 1 and name.startswith(("pass_at_k_training", "pkpo")):
        pytest.skip("k = 2 of one sample does not exist")
    bandit = rd.bandit(REWARD, jnp.exp(LOG_REF))
    old = rd.log_softmax(LOGITS)
    want, _ = w.expected_update(loss, size, LOGITS, old, LOG_REF, REWARD)
    got = rd.field(method, LOGITS, bandit, rd.Group(size))
    assert np.allclose(got, want, rtol=0, atol=2e-14 * (1 + np.abs(want).max()))
    moved = LOGITS + jnp.array([0.35, -0.2, 0.1])
    want, _ = w.expected_update(loss, size, moved, old, LOG_REF, REWARD)
    if name == "k1 after" or "reward" in name:
        return  # written on-policy above
    got = rd.field(method, moved, bandit, rd.Group(size), old=old)
    assert np.allclose(got, want, rtol=0, atol=2e-14 * (1 + np.abs(want).max()))


@pytest.mark.parametrize("name", PRESETS)
def test_sampled_has_the_enumerated_mean_and_covariance(name):
    """Of one draw, for every group that can be drawn; two groups halve the covariance."""
    method, loss = PRESETS[name]
    bandit = rd.bandit(REWARD, jnp.exp(LOG_REF))
    mean, covariance = w.expected_update(loss, 3, LOGITS, rd.log_softmax(LOGITS), LOG_REF, REWARD)
    got = m.update_moments(method, LOGITS, bandit, rd.Sampled(3, 2))
    scale = 1 + np.abs(covariance).max()
    assert np.allclose(got.mean, mean, rtol=0, atol=2e-14 * scale)
    assert np.allclose(2 * got.covariance, covariance, rtol=0, atol=1e-13 * scale)


def test_a_draw_is_the_update_of_the_groups_drawn():
    """The mean over the drawn groups of the written loss's gradient, for the drawn actions."""
    bandit = rd.bandit(REWARD, jnp.exp(LOG_REF))
    key = jax.random.key(3)
    drawn = draw(key, jnp.exp(rd.log_softmax(LOGITS)), (5, 4))
    old = rd.log_softmax(LOGITS)

    def loss(z):
        groups = [w.grpo(w.group_of(a, z, old, LOG_REF, REWARD)) for a in drawn]
        return sum(groups) / len(groups)

    got = rd.field(m.grpo(), LOGITS, bandit, rd.Sampled(4, 5), key=key)
    assert np.allclose(got, -jax.grad(loss)(LOGITS), rtol=0, atol=1e-13)


@given(data=st.data())
def test_draws_follow_the_law(data):
    """A uniform u gives the action whose share of the cumulative sum holds u; never a zero."""
    log_p = data.draw(bandits(sizes=(6,), zeros=True)).log_ref
    seed = data.draw(st.integers(0, 10**6))
    actions = np.asarray(draw(jax.random.key(seed), jnp.exp(log_p), (50,)))
    u = np.asarray(jax.random.uniform(jax.random.key(seed), (50,), log_p.dtype))
    edges = np.cumsum(np.exp(log_p))
    below = np.where(actions > 0, edges[actions - 1], 0)
    assert np.all((below <= u * edges[-1]) & (u * edges[-1] <= edges[actions]))
    assert np.all(np.exp(log_p)[actions] > 0)


def test_pkpo_is_the_gradient_of_the_expected_best_of_k():
    """In groups of every size from k on, and under the law itself; by autodiff of the sum."""
    bandit = rd.bandit(REWARD, jnp.exp(LOG_REF))

    def best(z):
        p = jax.nn.softmax(z)
        pairs = itertools.product(range(3), repeat=3)
        return sum(p[a] * p[b] * p[c] * max(REWARD[a], REWARD[b], REWARD[c]) for a, b, c in pairs)

    want = jax.grad(best)(LOGITS)
    for over in (rd.Population(), rd.Group(3), rd.Group(4), rd.Group(7)):
        assert np.allclose(rd.field(m.pkpo(3), LOGITS, bandit, over), want, atol=1e-14)


def test_ties_go_to_the_policys_sample_in_xpo_alone():
    """Right and wrong: with TRL's >= the policy is pushed above equally good reference samples."""
    bandit = rd.bandit([1.0, 0.0, 1.0])
    z = jnp.log(jnp.array([0.6, 0.3, 0.1]))
    got = rd.field(m.xpo(0.5, 0.0), z, bandit)
    assert np.allclose(got, [0.0793, -0.1044, 0.0251], atol=5e-5)
    rows = ((0.0, "dpo"), (0.1, "dpo"), (0.1, "ipo"))
    for method, alpha, kind in ((m.xpo(0.5, a, loss=loss), a, loss) for a, loss in rows):
        got = rd.field(method, z, bandit)
        want = -jax.grad(w.xpo)(z, bandit.log_ref, bandit.reward, 0.5, alpha, kind == "ipo")
        assert np.allclose(got, want, atol=1e-15)


def test_trls_rloo_has_no_dual_clip():
    """A negative advantage at a ratio above 3: the number is TRL's."""
    old = jax.nn.log_softmax(jnp.array([-1.2, 0.6, 0.4]))
    bandit, z = rd.bandit([-1.0, 0.5, 0.3], [0.05, 0.9, 0.05]), jnp.array([1.5, -1.0, 0.2])
    got = rd.field(m.named("rloo/trl", beta=0.05), z, bandit, rd.Group(4), old=old)
    assert np.allclose(got, [-0.2718, 0.0719, 0.1999], atol=5e-5)
    options = {"beta": 0.05, "estimator": "k1", "placement": "reward"}
    verl = rd.field(m.rloo(**options), z, bandit, rd.Group(4), old=old)
    assert np.allclose(verl, [-0.0231, 0.0143, 0.0087], atol=5e-5)


def test_whitening_by_hand():
    """Two right of four: verl's and SkyRL's numbers, then OpenRLHF's and NeMo-RL's."""
    batch = Batch(
        jnp.array([1.0, 0.0, 1.0, 0.0]),
        jnp.full(4, 0.25),
        jnp.ones(4, bool),
        jnp.array(0.25),
        jnp.array(0.0),
        jnp.array(0.5),
    )
    unbiased, biased = m.reinforce_plus_plus(), m.reinforce_plus_plus("biased")
    assert np.allclose(unbiased.advantage(batch), 0.8660254 * np.array([1, -1, 1, -1]), atol=1e-7)
    assert np.allclose(biased.advantage(batch), [1, -1, 1, -1], atol=1e-15)
    with pytest.raises(ValueError, match=r"'unbiased', 'biased'; got whiten='verl'"):
        m.ppo("verl")


def test_many_actions_few_rewards():
    """Classes of equal rewards against the enumeration of every group of actions."""
    random = np.random.default_rng(0)
    reward = np.array([1.0, 0.0, 0.0, 1.0, 0.0])
    bandit = rd.bandit(reward, random.dirichlet(np.ones(5)))
    z = jnp.asarray(random.normal(size=5))
    for method in (m.grpo(), m.maxrl(beta=0.1, estimator="k2"), m.pass_at_k_grpo()):
        every = rd.Group(3, 5, jnp.arange(5))
        got, want = (rd.field(method, z, bandit, e) for e in (rd.Group(3), every))
        assert np.allclose(got, want, rtol=0, atol=1e-15)
    big = rd.bandit((np.arange(200) < 3).astype(float))
    assert np.isfinite(rd.field(m.grpo(), big.log_ref, big, rd.Group(64))).all()
    covariance = m.update_moments(m.grpo(), big.log_ref, big, rd.Sampled(64)).covariance
    assert np.all(np.diag(covariance) >= 0)
    with pytest.raises(ValueError, match="groups; at most"):
        rd.field(m.vargrad(0.1), big.log_ref, big, rd.Group(8))


@pytest.mark.parametrize("name", list(PRESETS)[::3])
def test_float32_stays_float32(name):
    """And agrees to 1e-4, relative to the largest component."""
    method, _ = PRESETS[name]
    single = jnp.float32
    small = rd.bandit(REWARD.astype(single), jnp.exp(LOG_REF).astype(single))
    large = rd.bandit(REWARD, jnp.exp(LOG_REF))
    got = rd.field(method, LOGITS.astype(single), small, rd.Group(3))
    assert got.dtype == single
    want = rd.field(method, LOGITS, large, rd.Group(3))
    assert np.allclose(got, want, rtol=0, atol=1e-4 * (1 + np.abs(want).max()))
