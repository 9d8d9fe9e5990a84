"""What surrounds a method: epochs, minibatches, staleness, samplers, references, controllers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regdist as rd
from regdist.methods.groups import draw
from tests import losses as w

m = rd.methods
BANDIT = rd.bandit([1.0, 0.0, 0.5], [0.2, 0.5, 0.3])
LR = optax.sgd(0.7)


def step(z, loss_or_field):
    return z + 0.7 * loss_or_field(z)


@pytest.mark.parametrize("over", [rd.Population(), rd.Group(3)])
def test_epochs_use_the_law_the_samples_came_from(over):
    """Three updates a step, the first on-policy; PPO's ratio is against the start of the step."""
    method = m.grpo(0.3)
    path = rd.run(method, BANDIT, 4, LR, over, record_every=1, loop=rd.loop(epochs=3))
    z = BANDIT.log_ref
    for i in range(5):
        assert np.allclose(path.log_probs[i], rd.log_softmax(z), atol=1e-13)
        old = rd.log_softmax(z)
        for _ in range(3):
            z = step(z, lambda z, old=old: rd.field(method, z, BANDIT, over, old=old))


def test_sampled_epochs_and_minibatches_reuse_the_groups():
    """Against the written loss on the very actions drawn, group by group."""
    method, key = m.grpo(0.04), jax.random.key(5)
    around = rd.loop(epochs=2, minibatches=2)
    path = rd.run(method, BANDIT, 3, LR, rd.Sampled(4, 6), key, record_every=1, loop=around)
    z = BANDIT.log_ref
    for i in range(4):
        assert np.allclose(path.log_probs[i], rd.log_softmax(z), atol=1e-12)
        old = rd.log_softmax(z)
        groups = draw(jax.random.fold_in(key, i), jnp.exp(old), (6, 4)).reshape(2, 3, 4)
        for part in (0, 1, 0, 1):

            def loss(z, old=old, groups=groups, part=part):
                seen = [
                    w.grpo(w.group_of(a, z, old, BANDIT.log_ref, BANDIT.reward))
                    for a in groups[part]
                ]
                return sum(seen) / 3

            z = z - 0.7 * jax.grad(loss)(z)


def test_staleness_and_another_sampler():
    """Samples of the policy two steps before, tempered; both in the ratio's denominators."""
    method = m.rloo()

    def hot(log_p):
        return rd.laws.temper(log_p, 1.5)

    around = rd.loop(staleness=2, sampler=hot)
    path = rd.run(method, BANDIT, 6, LR, record_every=1, loop=around)
    past = [BANDIT.log_ref] * 3
    for i in range(7):
        assert np.allclose(path.log_probs[i], rd.log_softmax(past[-1]), atol=1e-13)
        old = rd.log_softmax(past[-3])
        move = rd.field(method, past[-1], BANDIT, old=old, sampler=hot(old))
        past.append(past[-1] + 0.7 * move)


def test_a_moving_reference():
    """Every third step the reference's logits become the mean of both; beta then anchors less."""
    method = m.policy_gradient(rd.ReverseKL(0.3))
    around = rd.loop(sync_every=3, sync_mix=0.5)
    path = rd.run(method, BANDIT, 7, LR, record_every=1, loop=around)
    z, reference = BANDIT.log_ref, BANDIT.log_ref
    for i in range(8):
        assert np.allclose(path.log_probs[i], rd.log_softmax(z), atol=1e-13)
        held = rd.transform.with_reference(BANDIT, log_reference=rd.log_softmax(reference))
        z = step(z, lambda z, held=held: rd.field(method, z, held))
        if (i + 1) % 3 == 0:
            reference = (rd.log_softmax(z) + rd.log_softmax(reference)) / 2
    drift = rd.run(method, BANDIT, 6000, LR, loop=rd.loop(sync_every=1))
    assert np.exp(drift.log_probs[-1, 0]) > 0.99  # a reference that follows is no anchor


def test_recording_changes_no_number_and_seeds_do():
    method, over = m.grpo(), rd.Sampled(4, 2)
    runs = [
        rd.run(method, BANDIT, 20, LR, over, jax.random.key(seed), record_every=every)
        for seed, every in ((0, 1), (0, 7), (1, 7))
    ]
    assert np.array_equal(runs[0].log_probs[-1], runs[1].log_probs[-1])
    assert not np.allclose(runs[1].log_probs[-1], runs[2].log_probs[-1])
    keys = jax.random.split(jax.random.key(0), 3)
    many = jax.vmap(lambda k: rd.run(method, BANDIT, 20, LR, over, k).log_probs[-1])(keys)
    alone = rd.run(method, BANDIT, 20, LR, over, keys[1]).log_probs[-1]
    assert np.allclose(many[1], alone, atol=1e-14)


def test_a_group_of_equal_rewards_ends_no_sampled_run():
    coin = rd.bandit([1.0, 0.0], [0.5, 0.5])
    path = rd.run(m.grpo(0.0), coin, 200, LR, rd.Sampled(2), jax.random.key(0))
    assert path.steps == 200
    assert path.log_probs[-1, 0] > np.log(0.9)


def test_adaptive_kl_holds_its_set_point():
    """KL(policy || reference) = target to 1e-6; beta is then that of the KL ball."""
    method = m.ppo_adaptive_kl(0.15, rate=0.02)
    path = rd.run(method, BANDIT, 20_000, LR, record_every=1000)
    kl = rd.metrics.kl(path.log_probs[-1], BANDIT.log_ref)
    assert np.isclose(kl, 0.15, atol=1e-6)
    assert np.isclose(path.control[-1], rd.kl_ball(BANDIT, 0.15).multipliers, rtol=1e-4)


def test_adaptive_kl_cannot_reach_every_set_point():
    """No policy on the support is further than log 1/q(best): beta falls for ever."""
    far = float(-BANDIT.log_ref[0]) + 0.5
    path = rd.run(m.ppo_adaptive_kl(far, rate=0.02), BANDIT, 20_000, LR, record_every=1000)
    assert path.control[-1] < 1e-6
    assert rd.metrics.kl(path.log_probs[-1], BANDIT.log_ref) < far


def test_adaptive_entropy_slides_along_its_set_point():
    """Within what one step of alpha moves H; the bonus is switched off above it."""
    method = m.adaptive_entropy(0.5, normalize_std=False)
    path = rd.run(method, BANDIT, 40_000, optax.sgd(0.01), record_every=100)
    h = np.asarray(jax.vmap(rd.metrics.entropy)(path.log_probs))[-50:]
    assert np.abs(h - 0.5).max() < 5e-3


def test_adaptive_entropy_cannot_hold_beside_a_standard_deviation():
    """alpha ends at its cap, and the entropy falls below any set-point all the same."""
    path = rd.run(m.adaptive_entropy(0.5), BANDIT, 20_000, optax.sgd(0.01), record_every=1000)
    assert np.isclose(path.control[-1], 1.0)
    assert rd.metrics.entropy(path.log_probs[-1]) < 0.01


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: m.sapo(estimator="k2"), "an estimator without a coefficient"),
        (
            lambda: m.compose(m.advantage.MixedOnly(), m.surrogate.LogProb(), clip_low=0.2),
            "have no meaning beside a surrogate that is given",
        ),
        (lambda: m.grpo(estimator="k4"), "estimator must be one of 'k1', 'k2'"),
        (lambda: m.grpo(placement="rewards"), "placement must be one of 'loss', 'reward'"),
        (lambda: m.grpo(geometry="euclid"), "geometry of Method must be one of"),
        (lambda: m.grpo(-0.1), "beta must be at least 0"),
        (lambda: m.grpo(after_normalization=True), "about the reward"),
        (lambda: m.grpo(placement="reward", ratio_corrected=True), "about the loss"),
        (lambda: m.grpo(estimator="full", placement="reward"), "neither in the reward"),
        (lambda: rd.loop(epochs=0), "epochs must be a positive integer"),
        (lambda: rd.loop(staleness=-1), "staleness must be an integer of at least 0"),
        (lambda: rd.run(m.rloo(), BANDIT, 5, expectation=rd.Sampled(4)), "give key="),
        (
            lambda: rd.run(
                m.rloo(),
                BANDIT,
                5,
                expectation=rd.Sampled(4, 3),
                key=jax.random.key(0),
                loop=rd.loop(minibatches=2),
            ),
            "cannot be split into 2",
        ),
        (lambda: rd.field(m.rloo(), BANDIT.log_ref, BANDIT, rd.Group(0)), "size must be"),
        (lambda: rd.field(m.pass_at_k_grpo(), BANDIT.log_ref, BANDIT), "use rd.Group"),
        (
            lambda: rd.field(m.from_loss(lambda v: v.log_probs * v.group), BANDIT.log_ref, BANDIT),
            "no group ids under rd.Population",
        ),
        (
            lambda: rd.field(m.from_loss(lambda v: jnp.mean(v.log_probs)), BANDIT.log_ref, BANDIT),
            "one term per sample",
        ),
    ],
)
def test_wrong_calls_get_advice(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_sweeps_over_numbers_are_one_trace():
    from regdist.runs.driver import _compiled_drive

    over = rd.Group(4)
    rd.run(m.grpo(0.1), BANDIT, 10, expectation=over)
    before = _compiled_drive._cache_size()
    for beta, low, high, eps in ((0.2, 0.1, 0.3, 1e-4), (1, 0.2, 0.28, 1e-6)):
        rd.run(m.grpo(beta, clip_low=low, clip_high=high, eps=eps), BANDIT, 10, expectation=over)
    assert _compiled_drive._cache_size() == before
    widths = jnp.array([0.1, 0.2, 0.4])
    ends = jax.vmap(
        lambda c: rd.run(
            m.grpo(0.1, clip_high=c), BANDIT, 10, loop=rd.loop(epochs=4), optimizer=LR
        ).log_probs[-1]
    )(widths)
    assert not np.allclose(ends[0], ends[2])


def test_losses_of_ones_own_are_the_presets():
    """GRPO, and the variance of a residual that meets in the group, pasted."""
    z = jnp.array([0.3, -0.2, 0.1])

    def vargrad(view):
        residual = view.log_probs - view.ref_log_probs - view.rewards / 0.4
        return (residual - view.mean(residual)) ** 2

    mine = m.from_loss(vargrad)
    for over in (rd.Population(), rd.Group(3)):
        want = rd.field(m.vargrad(0.4), z, BANDIT, over)
        assert np.allclose(rd.field(mine, z, BANDIT, over), want, atol=1e-14)
    key = jax.random.key(0)
    drawn = [rd.field(x, z, BANDIT, rd.Sampled(3, 5), key=key) for x in (mine, m.vargrad(0.4))]
    assert np.allclose(*drawn, atol=1e-14)
    aim = rd.target(BANDIT, rd.ReverseKL(0.4))
    proof = rd.certify(mine, BANDIT, aim, optimizer=LR)
    assert proof.verdict == "converges"
    exact = rd.certify(m.vargrad(0.4), BANDIT, aim, optimizer=LR)
    assert np.allclose(proof.stability.eigenvalues, exact.stability.eigenvalues, rtol=1e-9)


def test_certify_predicts_the_spread_of_sampled_runs():
    """Against 64 runs: the stationary standard deviation of log p."""
    method, aim = m.rloo(beta=0.3, estimator="k2"), rd.target(BANDIT, rd.ReverseKL(0.3))
    proof = rd.certify(
        method,
        BANDIT,
        aim,
        optimizer=optax.sgd(0.2),
        steps=3000,
        expectation=rd.Sampled(8),
        key=jax.random.key(1),
    )
    assert proof.verdict == "converges"
    assert proof.spread.noise > 0
    keys = jax.random.split(jax.random.key(2), 64)
    ends = jax.vmap(
        lambda k: rd.run(
            method, BANDIT, 3000, optax.sgd(0.2), rd.Sampled(8), k, record_every=3000
        ).log_probs[-1]
    )(keys)
    spread = np.sqrt(aim.probs @ np.var(np.asarray(ends), axis=0))
    # 64 runs measure a standard deviation to about 1/sqrt(128) = 9%; four of those
    assert abs(spread / proof.spread.predicted - 1) < 0.36


def test_certify_sees_the_bias_of_finite_groups():
    """Groups of 4 under std have another effective beta: their target is not that of the limit."""
    aim = rd.identify(m.grpo(1.5, "k2"), BANDIT, starts=BANDIT.log_ref[None]).regularizer
    limit = rd.target(BANDIT, aim)
    assert rd.certify(m.grpo(1.5, "k2"), BANDIT, limit, steps=50).stationarity.field_norm < 1e-6
    finite = rd.certify(m.grpo(1.5, "k2"), BANDIT, limit, steps=50, expectation=rd.Group(4))
    assert finite.verdict == "elsewhere"
    assert finite.stationarity.field_norm > 1e-2


@pytest.mark.parametrize("name", ["tis", "icepop"])
def test_weights_for_another_sampler(name):
    """Samples from a tempered law: the weight is old/sampler, cut or masked, and not rho's."""
    method = {"tis": m.tis(1.3), "icepop": m.icepop(0.8, 1.3)}[name]
    old = rd.log_softmax(jnp.array([0.3, -0.4, 0.1]))
    sampler = rd.laws.temper(old, 0.5)
    ratio = jnp.exp(old - sampler)
    if name == "tis":
        factor = jnp.minimum(ratio, 1.3)
    else:
        factor = jnp.where((ratio >= 0.8) & (ratio <= 1.3), ratio, 0)
    assert 0 < jnp.sum(factor == ratio) < 3

    def loss(g):
        a = w.z_score(g)
        rho = jnp.exp(g.lp - g.trainer)
        gain = jnp.minimum(rho * a, jnp.clip(rho, 0.8, 1.2) * a)
        gain = jnp.where(a < 0, jnp.maximum(gain, 3 * a), gain)
        return -jnp.mean(factor[g.actions] * gain)

    def seen(g):
        g.trainer = old[g.actions]
        return loss(g)

    z = old + jnp.array([0.1, 0.05, -0.2])
    want, _ = w.expected_update(seen, 3, z, sampler, BANDIT.log_ref, BANDIT.reward)
    got = rd.field(method, z, BANDIT, rd.Group(3), old=old, sampler=sampler)
    assert np.allclose(got, want, atol=1e-13)


def test_xpo_pairs_the_policy_with_the_reference():
    """The expectation over both laws of the pair's loss, and alpha log p of the reference's."""
    beta, alpha = 0.7, 0.01
    z = jnp.array([0.3, -0.2, 0.1])
    p, q = jnp.exp(rd.log_softmax(z)), jnp.exp(BANDIT.log_ref)

    def loss(z):
        log_p = rd.log_softmax(z)
        ratio = log_p - BANDIT.log_ref
        total = 0.0
        for i in range(3):
            for j in range(3):
                gap = BANDIT.reward[i] - BANDIT.reward[j]
                wins = jnp.where(gap == 0, 0.5, jnp.where(gap > 0, 1.0, 0.0))
                d = beta * (ratio[i] - ratio[j])
                pair = -wins * jax.nn.log_sigmoid(d) - (1 - wins) * jax.nn.log_sigmoid(-d)
                total = total + p[i] * q[j] * (pair + alpha * log_p[j])
        return total

    got = rd.field(m.xpo(beta, alpha), z, BANDIT)
    assert np.allclose(got, -jax.grad(loss)(z), atol=1e-14)
    with pytest.raises(ValueError, match=r"use rd\.Population"):
        rd.field(m.xpo(), z, BANDIT, rd.Group(2))


def test_tempered_samples_hold_an_entropy_below_that_of_the_correct_actions_only():
    """AEPO switches at its set-point; above log(number correct) it saturates below it."""
    bandit = rd.bandit([1.0, 1.0, 1.0, 0.0], [0.3, 0.2, 0.1, 0.4])
    for target, reached in ((0.7, 0.7), (1.3, np.log(3))):
        path = rd.run(m.aepo(target, 0.5), bandit, 20_000, optax.sgd(0.02), record_every=100)
        h = np.asarray(jax.vmap(rd.metrics.entropy)(path.log_probs))[-20:]
        assert np.abs(h - reached).max() < 0.01


SG = jax.lax.stop_gradient


def ranked(v):
    """The unlikeliness of a sample by its rank among the others (2506.02355): a count."""
    rank = jnp.sum(v.log_probs[None, :] > v.log_probs[:, None], axis=1)
    return -SG(v.rewards * (1 - rank / v.rewards.shape[0])) * v.log_probs


COUNTING = {
    "mean": lambda v: -SG(v.rewards / v.rewards.mean()) * v.log_probs,
    "std": lambda v: -SG(v.rewards / v.rewards.std()) * v.log_probs,
    "median": lambda v: -SG(jnp.abs(v.rewards - jnp.median(v.rewards))) * v.log_probs,
    "shape": lambda v: -SG(v.rewards * v.rewards.shape[0]) * v.log_probs,
    "rank": ranked,
    "last": lambda v: -SG(v.rewards / (2 + v.rewards[-1])) * v.log_probs,
}
WEIGHING = {
    "mean": lambda v: -SG(v.rewards - v.mean(v.rewards)) * v.log_probs,
    "std": lambda v: (
        -SG(v.rewards / jnp.sqrt(v.mean((v.rewards - v.mean(v.rewards)) ** 2))) * v.log_probs
    ),
    "largest": lambda v: -SG(v.rewards - jnp.max(v.rewards)) * v.log_probs,
    "rank": lambda v: (
        -SG(
            jnp.where(v.log_probs[None, :] > v.log_probs[:, None], v.weights[None, :], 0).sum(
                axis=1
            )
        )
        * v.log_probs
    ),
    "labels": lambda v: (
        -SG(jnp.where((v.labels == 1) | (v.actions == 2), v.rewards, 0)) * v.log_probs
    ),
    "sampler": lambda v: (
        -SG(v.rewards * jnp.exp(v.old_log_probs - v.sampler_log_probs)) * v.log_probs
    ),
}


@pytest.mark.parametrize("name", COUNTING)
def test_a_loss_that_counts_entries_is_refused_where_they_have_weights(name):
    method = m.from_loss(COUNTING[name])
    for ask in (
        lambda: rd.field(method, BANDIT.log_ref, BANDIT),
        lambda: rd.run(method, BANDIT, 2),
    ):
        with pytest.raises(ValueError, match=r"counts entries .* view\.mean\(x\)"):
            ask()
    if name in ("median", "shape"):  # others divide by 0 in groups of one reward
        assert np.all(np.isfinite(rd.field(method, BANDIT.log_ref, BANDIT, rd.Group(3))))


@pytest.mark.parametrize("name", WEIGHING)
def test_a_loss_that_weighs_them_is_not(name):
    assert np.all(np.isfinite(rd.field(m.from_loss(WEIGHING[name]), BANDIT.log_ref, BANDIT)))


def test_weights_multiply_the_gradient_of_a_written_loss():
    """As they do in a composition."""
    cut = m.weight.SamplerRatio(0.0, 2.0)
    sampler = rd.laws.temper(BANDIT.log_ref, 1.7)
    plain = m.advantage.GroupRelative(0.0, "mean")
    written = m.from_loss(lambda v: -v.advantages * v.log_probs, advantage=plain, weights=cut)
    composed = m.compose(plain, weights=cut)
    got, want = (
        rd.field(x, BANDIT.log_ref, BANDIT, old=BANDIT.log_ref, sampler=sampler)
        for x in (written, composed)
    )
    assert np.allclose(got, want, rtol=0, atol=1e-14)
