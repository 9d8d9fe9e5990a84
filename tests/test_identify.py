"""The placement table and the dynamics of theory, as questions to `identify`, `field` and `run`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

import regdist as rd
from tests.strategies import bandits

m = rd.methods
# Five actions everywhere: `identify` compiles its families once.
BANDIT = rd.bandit([1.0, 0.0, 0.4, 0.7, 0.2], [0.2, 0.35, 0.25, 0.1, 0.1])
STARTS = jnp.array(
    [[-1.6, -1.0, -1.4, -2.3, -2.3], [0.0, 0.0, 0.0, 0.0, 0.0], [0.2, -1.5, 2.0, 1.0, -0.5]]
)
Z = jnp.array([0.3, -0.2, 0.1, 0.5, -0.4])
BINARY = rd.bandit([1.0, 1.0, 0.0, 0.0, 0.0], [0.1, 0.05, 0.4, 0.25, 0.2])


@functools.cache
def found(name):
    return rd.identify(METHODS[name], BANDIT, starts=STARTS)


METHODS = {
    "k1 in reward": m.dr_grpo(beta=0.3, estimator="k1", placement="reward"),
    "k1 in loss": m.dr_grpo(beta=0.3, estimator="k1"),
    "k2 in loss": m.dr_grpo(beta=0.3, estimator="k2"),
    "k3 in loss": m.dr_grpo(beta=0.3, estimator="k3"),
    "k3 x ratio": m.dr_grpo(beta=0.3, estimator="k3", ratio_corrected=True),
    "abs, weak": m.dr_grpo(beta=0.45, estimator="abs"),
    "abs, strong": m.dr_grpo(beta=0.55, estimator="abs"),
    "k3 in reward": m.dr_grpo(beta=0.3, estimator="k3", placement="reward"),
    "k2 in reward": m.dr_grpo(beta=0.3, estimator="k2", placement="reward"),
    "entropy": m.entropy_bonus(0.3),
    "sampled entropy loss": m.entropy_bonus(0.3, sampled_loss=True),
    "vargrad": m.vargrad(0.3),
    "gvpo": m.gvpo(0.3),
    "gvpo, old": m.gvpo(0.3, "old"),
    "online dpo, soft": m.online_dpo(0.3, hard=False),
    "natural": m.natural_policy_gradient(rd.ForwardKL(0.3)),
}
REVERSE = ("k1 in reward", "k2 in loss", "k3 x ratio", "vargrad", "gvpo", "online dpo, soft")


@pytest.mark.parametrize("method", [*REVERSE, "k3 in loss", "entropy", "natural"])
def test_methods_with_a_target_are_named(method):
    made = {"entropy": rd.Entropy, "k3 in loss": rd.ForwardKL, "natural": rd.ForwardKL}
    want = made.get(method, rd.ReverseKL)(0.3)
    got = found(method)
    assert got.verdict == "converges"
    assert repr(got.regularizer) == repr(want)
    aim = rd.target(BANDIT, want).log_probs
    assert np.allclose(np.exp(got.log_probs), np.exp(aim), atol=1e-12)


@pytest.mark.parametrize("method", ["k1 in loss", "sampled entropy loss", "gvpo, old"])
def test_methods_whose_penalty_does_nothing_end_on_the_best_action(method):
    """Their expected field is the unregularised one."""
    got = found(method)
    assert got.verdict == "vertex"
    assert got.regularizer is None
    assert np.exp(got.log_probs[0]) > 1 - 1e-4
    if method != "gvpo, old":
        plain = rd.field(m.dr_grpo(), Z, BANDIT)
        assert np.allclose(rd.field(METHODS[method], Z, BANDIT), plain, atol=1e-16)


def test_the_absolute_estimator_is_an_exact_penalty():
    """Twice total variation: the reference stays while max R - min R <= 2 beta, and not above."""
    strong = found("abs, strong")
    assert np.allclose(np.exp(strong.log_probs), np.exp(BANDIT.log_ref), atol=1e-3)
    for name, beta in (("abs, weak", 0.45), ("abs, strong", 0.55)):
        exact = rd.field(m.policy_gradient(rd.TotalVariation(2 * beta)), Z, BANDIT)
        assert np.allclose(rd.field(METHODS[name], Z, BANDIT), exact, atol=1e-15)
    aim = rd.target(BANDIT, rd.TotalVariation(0.9))
    assert aim.probs[1] < np.exp(BANDIT.log_ref[1])


def test_k3_in_the_reward_pushes_forward_kl_up():
    """Its field is that of KL(p||q) - KL(q||p) as a penalty: an action is lost for good."""

    def j(z):
        log_p = rd.log_softmax(z)
        penalty = rd.metrics.kl(log_p, BANDIT.log_ref) - rd.metrics.kl(BANDIT.log_ref, log_p)
        return rd.metrics.expected_reward(log_p, BANDIT.reward) - 0.3 * penalty

    got = rd.field(METHODS["k3 in reward"], Z, BANDIT)
    assert np.allclose(got, jax.grad(j)(Z), atol=1e-15)
    answer = found("k3 in reward")
    assert answer.verdict in ("diverges", "vertex", "depends on start")
    assert answer.ends.min() < -100


def test_k2_in_the_reward_has_fixed_points_of_its_own():
    """R - beta l^2/2 is constant there, which no KL target has."""
    answer = found("k2 in reward")
    inside = [e for e, n in zip(answer.ends, answer.field_norm, strict=True) if e.min() > -20]
    for log_p in inside:
        paid = np.asarray(BANDIT.reward) - 0.3 * (log_p - np.asarray(BANDIT.log_ref)) ** 2 / 2
        assert np.ptp(paid) < 1e-6
    assert answer.verdict != "converges"


CLOCKS = {
    "rloo": m.rloo(),
    "dr_grpo": m.dr_grpo(),
    "psr": m.psr(),
    "nsr": m.nsr(),
    "w_reinforce": m.w_reinforce(0.1),
    "maxrl": m.maxrl(),
    "pass_at_k": m.pass_at_k_grpo(False),
    "grpo": m.grpo(0.0),
    "reinforce_rej": m.reinforce_rej(),
}


@functools.partial(jax.jit, static_argnames="size")
def binary_fields(p, size):
    """The field of each of `CLOCKS` at the reference, for two right answers of mass p."""
    bandit = rd.bandit([1.0, 1.0, 0.0], jnp.stack([p / 3, 2 * p / 3, 1 - p]))
    over = rd.Group(size)
    return {k: rd.field(method, bandit.log_ref, bandit, over) for k, method in CLOCKS.items()}


@pytest.mark.parametrize("size", [2, 7])
@given(p=st.floats(0.02, 0.98))
def test_binary_rewards_give_one_curve_with_many_clocks(p, size):
    """Field = w_G(p) grad p, w_G = E_j [f(1, j+1) - f(0, j)], j of G - 1 others correct."""
    law, right = np.array([p / 3, 2 * p / 3, 1 - p]), np.array([1.0, 1.0, 0.0])
    gradient = law * (right - law @ right)
    j = np.arange(size)
    chance = scipy.stats.binom.pmf(j, size - 1, p)
    sd = (
        np.sqrt((j + 1) * (size - j - 1) / size / (size - 1)),
        np.sqrt(j * (size - j) / size / (size - 1)),
    )
    clocks = {
        "rloo": 1.0,
        "dr_grpo": 1 - 1 / size,
        "psr": 1.0,
        "nsr": 1.0,
        "w_reinforce": 1.1,
        "maxrl": (1 - (1 - p) ** (size - 1)) / p,
        "pass_at_k": (1 - p) ** (size - 1),
        "grpo": chance @ ((1 - (j + 1) / size) / (sd[0] + 1e-6) + (j / size) / (sd[1] + 1e-6)),
        "reinforce_rej": 1 - p ** (size - 1),
    }
    got = binary_fields(jnp.asarray(p), size)
    assert got.keys() == clocks.keys()
    for name, clock in clocks.items():
        rough = 1e-6 * size if name == "maxrl" else 1e-12  # its eps against a mean of 1/G
        assert np.allclose(got[name], clock * gradient, rtol=rough, atol=1e-15), name


def test_grpo_weight_is_below_its_limit_for_rare_success_and_constant_at_two():
    """w_2 = 1/sqrt 2 at every p: a group of two is RLOO at another step; w <= (G-1)/sqrt G."""

    @functools.partial(jax.jit, static_argnames="size")
    def clock(ps, size):
        def at(p):
            bandit = rd.bandit([1.0, 0.0], jnp.stack([p, 1 - p]))
            got = rd.field(m.grpo(0.0, eps=0.0), bandit.log_ref, bandit, rd.Group(size))
            return got[0] / (p * (1 - p))

        return jax.vmap(at)(ps)

    ps = jnp.array([0.01, 0.1, 0.5, 0.9])
    assert np.allclose(clock(ps, size=2), np.sqrt(0.5), rtol=1e-12)
    eight = clock(ps, size=8)
    limit = 1 / np.sqrt(ps * (1 - ps))
    assert eight[0] < limit[0] / 3
    assert np.all(eight <= 7 / np.sqrt(8) + 1e-12)
    many = clock(ps, size=512)[1:]
    assert np.allclose(many, limit[1:], rtol=2e-2)


def test_positive_and_negative_samples_trace_the_same_curve():
    """2506.01347's difference is no fact of the expected update: same entropy at the same p."""
    right = BINARY.reward > 0

    def entropies(method, expectation, levels):
        path = rd.run(method, BINARY, 15000, optax.sgd(0.02), expectation, record_every=5)
        p = np.asarray(jax.vmap(lambda x: rd.metrics.success(x, right))(path.log_probs))
        h = np.asarray(jax.vmap(rd.metrics.entropy)(path.log_probs))
        return np.interp(levels, p, h)

    levels = np.array([0.3, 0.5, 0.7])
    want = entropies(m.reinforce(), rd.Population(), levels)
    for method in (m.psr(), m.nsr(), m.grpo(0.0), m.maxrl()):
        for expectation in (rd.Population(), rd.Group(4)):
            assert np.allclose(entropies(method, expectation, levels), want, atol=5e-4)


def test_std_normalisation_has_the_fixed_point_of_mroueh():
    """logit p_C = logit q_C + 1/(beta sqrt(p_C (1 - p_C))), each class at q's odds; 2503.06639."""
    method = m.grpo(1.2, "k2", eps=0.0)
    answer = rd.identify(method, BINARY, starts=BINARY.log_ref[None])
    law = np.exp(answer.log_probs)
    p, q = law[:2].sum(), np.exp(BINARY.log_ref)[:2].sum()
    left = np.log(p / (1 - p)) - np.log(q / (1 - q))
    assert np.isclose(left, 1 / (1.2 * np.sqrt(p * (1 - p))), rtol=1e-10)
    assert np.allclose(law[:2] / p, np.exp(BINARY.log_ref)[:2] / q, rtol=1e-9)
    assert answer.verdict == "coincides"  # with two levels forward KL at another beta moves alike
    assert {c.name for c in answer.candidates[:2]} >= {"reverse KL", "forward KL"}
    known = rd.fixed_points(
        BINARY, rd.ReverseKL(1.2), rd.feedback.std_normalized(BINARY, rd.ReverseKL(1.2))
    )
    assert np.isclose(p, known.probs[0, :2].sum(), rtol=1e-9)


def test_a_finite_group_always_has_an_interior_balance():
    """Where the limit of large groups has none, w_G <= (G-1)/sqrt G holds the law inside."""
    beta = 0.2
    none = rd.fixed_points(
        BINARY, rd.ReverseKL(beta), rd.feedback.std_normalized(BINARY, rd.ReverseKL(beta))
    )
    assert len(none.x) == 0
    one = BINARY.log_ref[None]
    ends = rd.identify(m.grpo(beta, "k2"), BINARY, expectation=rd.Group(4), starts=one)
    assert ends.verdict == "coincides"
    effective = next(c.beta for c in ends.candidates if c.name == "reverse KL")
    assert beta / (3 / np.sqrt(4)) <= effective < beta


def test_the_unregularised_end_depends_on_the_geometry():
    """Natural: the reference's odds among equals; softmax: the likelier gains on them for ever."""
    plain = rd.identify(m.rloo(), BINARY)
    assert plain.verdict == "depends on start"
    natural = rd.identify(m.natural_policy_gradient(), BINARY)
    assert natural.verdict == "depends on start"
    assert natural.candidates[0].name == "reference on the best actions"
    assert natural.candidates[0].distance < 1e-8


def test_two_reward_levels_hide_a_family_whose_beta_moves():
    """One gap: a beta that moves explains whatever the end does with it, in every family."""
    for estimator in ("k3", "k2"):
        for over in (rd.Population(), rd.Group(4)):
            start = BINARY.log_ref[None]
            got = rd.identify(m.grpo(1.5, estimator), BINARY, expectation=over, starts=start)
            assert got.verdict == "coincides"
            assert got.regularizer is None
            both = {c.name: c for c in got.candidates}
            assert both["reverse KL"].response == both["forward KL"].response == "shared"
            assert both["reverse KL"].distance < 1e-6 > both["forward KL"].distance
    for estimator, want in (("k3", "ForwardKL(0.3)"), ("k2", "ReverseKL(0.3)")):
        fixed = rd.identify(m.dr_grpo(beta=0.3, estimator=estimator), BINARY)
        assert repr(fixed.regularizer) == want


def test_one_gap_left_names_no_family_though_one_alone_has_the_zero():
    """l + l^2/2 is no slope of a known divergence; where an action is lost only Pearson's fits."""
    bandit = rd.bandit([1.0, 0.0, 0.4, 0.4], [0.2, 0.4, 0.3, 0.1])
    method = m.dr_grpo(beta=0.3, estimator="k2", ratio_corrected="live")
    got = rd.identify(method, bandit, starts=bandit.log_ref[None])
    left = [0, 2, 3]
    assert np.isneginf(got.log_probs[1])
    x = (got.log_probs - np.asarray(bandit.log_ref))[left]
    assert np.ptp(np.asarray(bandit.reward)[left] - 0.3 * (x + x**2 / 2)) < 1e-9
    assert got.verdict == "coincides"
    assert got.regularizer is None


def test_self_labels_end_on_the_initial_plurality():
    bandit = rd.bandit(
        [0.0, 0.0, 0.0, 1.0, 0.0], [0.25, 0.2, 0.25, 0.2, 0.1], label=[0, 0, 1, 2, 3]
    )
    answer = rd.identify(m.self_labelled(bandit.label), bandit, starts=bandit.log_ref[None])
    assert np.exp(answer.log_probs)[:2].sum() > 1 - 1e-4  # together 0.45, and wrong


def test_escape_takes_as_long_as_the_mode_is_rare():
    """Steps to half of its mass, in 1/p0; a zero stays."""

    def steps(p0):
        bandit = rd.bandit([1.0, 0.0], [p0, 1 - p0])
        path = rd.run(m.reinforce(), bandit, 20000, optax.sgd(0.5), record_every=20)
        return float(np.interp(0.5, np.exp(path.log_probs[:, 0]), path.step))

    assert np.isclose(steps(1e-3) / steps(1e-2), 10, rtol=0.25)
    none = rd.bandit([1.0, 0.0], [0.0, 1.0])
    for method in (m.grpo(), m.maxrl(), m.online_dpo(0.1), m.vargrad(0.3), m.disco()):
        for expectation in (rd.Population(), rd.Group(3), rd.Sampled(3)):
            key = jax.random.key(0)
            path = rd.run(method, none, 20, expectation=expectation, key=key)
            assert np.all(np.exp(path.log_probs[:, 0]) == 0)
            assert not np.any(np.isnan(path.log_probs[:, 1]))


def test_entropy_may_rise_under_the_policy_gradient():
    """2507.14843's "entropy never rises" is refuted by two actions: the rare one is right."""
    bandit = rd.bandit([1.0, 0.0], [0.1, 0.9])
    path = rd.run(m.reinforce(), bandit, 100, optax.sgd(0.1))
    h = jax.vmap(rd.metrics.entropy)(path.log_probs)
    assert h[-1] > h[0]


@given(bandit=bandits(sizes=(5,)), key=st.integers(0, 10**6))
def test_the_rate_of_entropy_is_a_covariance(bandit, key):
    """dH = -Cov_p(log p, dz); for one logit dH/dz_k = -p_k (H + log p_k) (2505.22617)."""
    z = jnp.asarray(np.random.default_rng(key).normal(size=5))
    log_p = rd.log_softmax(z)
    p, h = jnp.exp(log_p), rd.metrics.entropy(log_p)
    slope = jax.grad(lambda z: rd.metrics.entropy(rd.log_softmax(z)))(z)
    assert np.allclose(slope, -p * (h + log_p), atol=1e-14)
    step = rd.field(m.reinforce(), z, bandit)
    covariance = p @ ((log_p + h) * (step - p @ step))
    assert np.allclose(slope @ step, -covariance, atol=1e-13)


@pytest.mark.parametrize("kind", ["KL", "forward", "JS", "Pearson", "TV"])
def test_f_dpg_is_minus_the_gradient_of_its_divergence(kind):
    divergence = (
        {
            "KL": rd.ReverseKL,
            "forward": rd.ForwardKL,
            "JS": rd.JensenShannon,
            "Pearson": rd.Pearson,
            "TV": rd.TotalVariation,
        }[kind](1.0)
        .terms[0]
        .divergence
    )
    aim = rd.target(BANDIT, rd.ReverseKL(0.3)).log_probs
    want = -jax.grad(lambda z: divergence.value(rd.log_softmax(z), aim))(Z)
    got = rd.field(m.fdpg(0.3, divergence), Z, BANDIT)
    assert np.allclose(got, want, atol=1e-13)
    if kind != "TV":  # whose slope jumps there
        assert np.allclose(rd.field(m.fdpg(0.3, divergence), aim, BANDIT), 0, atol=1e-14)


def test_vargrad_is_twice_the_gradient_of_kl():
    aim = rd.target(BANDIT, rd.ReverseKL(0.3)).log_probs
    want = -2 * jax.grad(lambda z: rd.metrics.kl(rd.log_softmax(z), aim))(Z)
    assert np.allclose(rd.field(m.vargrad(0.3), Z, BANDIT), want, atol=1e-13)
    assert np.allclose(rd.field(m.vargrad(0.3), Z, BANDIT, rd.Group(4)), 0.75 * want, atol=1e-13)


def test_a_fair_coin_moves_nothing_on_policy_and_clipping_restores():
    """Spurious rewards: A = +-1 whatever the action. Field 0 at ratio 1; clipped, back to old."""
    clip = m.grpo(0.0).surrogate
    old = rd.log_softmax(jnp.array([0.3, -0.2, 0.1]))

    def gain(z):
        """E over the coin of the clipped objective, whose maximum over z is at z = old."""
        rho = jnp.exp(rd.log_softmax(z) - old)
        held = jnp.clip(rho, 0.8, 1.2)
        return jnp.exp(old) @ (jnp.minimum(rho, held) + jnp.minimum(-rho, -held)) / 2

    assert np.allclose(jax.grad(gain)(old), 0, atol=1e-17)
    away = old + jnp.array([0.5, -0.3, 0.0])
    assert gain(away) < gain(old) == 0
    rho = jnp.exp(rd.log_softmax(away) - old)
    assert np.isclose(gain(away), -jnp.exp(old) @ jnp.abs(rho - jnp.clip(rho, 0.8, 1.2)) / 2)
    assert isinstance(clip, m.surrogate.Clip)


def test_nash_md_is_the_regularised_nash_only_against_itself():
    """Fixed point q exp(P opponent/beta)."""
    for mix in (0.0, 0.5):
        law = rd.identify(m.nash_md(0.2, mix), BANDIT, starts=BANDIT.log_ref[None]).log_probs
        opponent = jax.nn.softmax(mix * BANDIT.log_ref + (1 - mix) * law)
        wins = rd.preferences.bradley_terry(BANDIT.reward) @ opponent
        assert np.allclose(law, jax.nn.log_softmax(BANDIT.log_ref + wins / 0.2), atol=1e-9)


def test_identify_says_when_it_is_asked_too_much():
    with pytest.raises(ValueError, match=r"use rd.Group\(4\)"):
        rd.identify(m.rloo(), BANDIT, expectation=rd.Sampled(4))
    with pytest.raises(ValueError, match=r"starts must have shape"):
        rd.identify(m.rloo(), BANDIT, starts=[[0.0, 1.0]])


def test_identify_in_float32():
    """Six digits less: the family and its beta to 1e-3."""
    single = jnp.float32
    bandit = rd.bandit(BANDIT.reward.astype(single), jnp.exp(BANDIT.log_ref).astype(single))
    got = rd.identify(m.dr_grpo(beta=0.3, estimator="k3"), bandit, starts=bandit.log_ref[None])
    assert got.verdict == "converges"
    assert got.candidates[0].name == "forward KL"
    assert np.isclose(got.candidates[0].beta, 0.3, rtol=1e-3)


def test_unregularised_suboptimality_falls_like_one_over_t_and_regularised_linearly():
    """2005.06392: O(1/t) for the plain gradient; an entropy bonus makes it a rate."""
    bandit = rd.bandit([1.0, 0.0], [0.4, 0.6])
    path = rd.run(m.reinforce(), bandit, 40_000, optax.sgd(1.0), record_every=10_000)
    gap = 1 - np.exp(np.asarray(path.log_probs[:, 0]))
    assert np.allclose(gap[2] / gap[4], 2, rtol=1e-2)
    aim = rd.target(bandit, rd.Entropy(0.3))
    proof = rd.certify(m.entropy_bonus(0.3), bandit, aim, optimizer=optax.sgd(1.0))
    assert proof.verdict == "converges"
    assert np.isclose(proof.pace.measured, proof.pace.predicted, rtol=0.05)


def test_reward_is_no_function_of_entropy():
    """R = -A e^H + B (2505.22617) is refuted as a law by two actions: at p and 1 - p H is one."""
    bandit = rd.bandit([1.0, 0.0], [0.1, 0.9])
    path = rd.run(m.reinforce(), bandit, 2000, optax.sgd(0.1), record_every=1)
    p = np.exp(np.asarray(path.log_probs[:, 0]))
    early, late = np.argmin(np.abs(p - 0.2)), np.argmin(np.abs(p - 0.8))
    h = [float(rd.metrics.entropy(path.log_probs[i])) for i in (early, late)]
    assert np.isclose(*h, atol=5e-3)
    assert p[late] - p[early] > 0.59


def test_the_ceiling_is_reached_with_entropy_left():
    """m tied best actions, evenly liked: the reward ends at its maximum with H = log m."""
    bandit = rd.bandit([1.0, 1.0, 1.0, 0.0], [0.2, 0.2, 0.2, 0.4])
    path = rd.run(m.grpo(0.0), bandit, 20_000, optax.sgd(1.0), rd.Group(4), record_every=20_000)
    last = path.log_probs[-1]
    assert rd.metrics.success(last, bandit.reward > 0) > 1 - 1e-3
    assert np.isclose(rd.metrics.entropy(last), np.log(3), atol=1e-2)


def test_std_normalisation_loses_its_interior_below_a_critical_beta():
    """Two fixed points above it, none below, where every start ends on the best action."""
    coin = rd.bandit([1.0, 0.0, 0.0, 0.0, 0.0], [0.1, 0.3, 0.3, 0.2, 0.1])
    for beta, count, verdict in ((1.0, 2, "coincides"), (0.3, 0, "vertex")):
        reg = rd.ReverseKL(beta)
        points = rd.fixed_points(coin, reg, rd.feedback.std_normalized(coin, reg))
        assert len(points.x) == count
        ends = rd.identify(m.grpo(beta, "k2", eps=0.0), coin, starts=coin.log_ref[None])
        assert ends.verdict == verdict
        if count:
            assert np.isclose(np.exp(ends.log_probs[0]), points.probs[0, 0], rtol=1e-8)
