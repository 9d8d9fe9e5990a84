import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import regdist as rd
from regdist import transform
from tests.strategies import bandits, betas

# name: a transform with one number x, as a function of a bandit of five actions
TRANSFORMS = {
    "with_reward": lambda b, x: transform.with_reward(
        b, x * jnp.arange(5.0).astype(b.reward.dtype)
    ),
    "with_reference": lambda b, x: transform.with_reference(b, rd.laws.temper(b.log_ref, x)),
    "temper": transform.temper,
    "nucleus": lambda b, x: transform.nucleus(b, jnp.minimum(jnp.asarray(x), 1)),
    "min_p": lambda b, x: transform.min_p(b, jnp.minimum(jnp.asarray(x), 1)),
    "verify": transform.verify,
    "typicality_bias": transform.typicality_bias,
    "condition": lambda b, x: transform.condition(
        b, jnp.log(jnp.array([0.1, 0.9, 0.0, 0.5, 1.0])).astype(b.reward.dtype), x
    ),
    "scalarize": lambda b, x: transform.scalarize(b, jnp.eye(2, 5), jnp.array([x, 1.0])),
    "lagrangian": lambda b, x: transform.lagrangian(
        b, jnp.eye(2, 5), jnp.array([x, 1.0]), [0.1, 0.2]
    ),
    "length_penalty": lambda b, x: transform.length_penalty(
        b, jnp.arange(5.0).astype(b.reward.dtype), x
    ),
    "entropy_penalty": transform.entropy_penalty,
    "cluster_mass": transform.cluster_mass,
    "mara reward": lambda b, x: rd.mara(b, rd.ReverseKL(x), -3.0),
    "mara substitute": lambda b, x: rd.mara(b, rd.ReverseKL(x), -3.0, "substitute"),
    "mara answers": lambda b, x: rd.mara(b, rd.ReverseKL(x), -3.0, over="answers"),
}
every_transform = pytest.mark.parametrize("name", TRANSFORMS)


def a_bandit(dtype, zero=True):
    reward = np.array([1.0, 0.5, 2.0, -1.0, 0.0], dtype)
    q = np.array([0.3, 0.2, 0.1, 0.4 - 0.4 * zero, 0.0 + 0.4 * zero], dtype)
    return rd.bandit(reward, q, label=[0, 0, 1, 2, 2])


# `rd.target` stays outside what is compiled for a transform: its program is then one for all.
KL = rd.ReverseKL(0.5)


@every_transform
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_transform_gives_a_problem_that_can_be_solved(name, dtype):
    """A legal bandit of the same dtype; its target has finite derivatives in the number."""
    bandit = a_bandit(dtype)

    def value(x):
        target = rd.target(TRANSFORMS[name](bandit, x), KL)
        return jnp.append(target.probs, target.value)

    x = jnp.asarray(0.7, dtype)
    new = jax.jit(lambda x: TRANSFORMS[name](bandit, x))(x)
    target = rd.target(new, KL)
    assert target.converged
    assert (
        target.probs.dtype == target.value.dtype == new.reward.dtype == new.log_ref.dtype == dtype
    )
    assert np.isclose(np.exp(new.log_ref).sum(), 1, rtol=1e-6)
    assert np.all(np.asarray(new.reward) < np.inf)
    assert np.array_equal(new.label, bandit.label)
    for mode in (jax.jacfwd, jax.jacrev) if dtype == np.float64 else ():
        assert np.all(np.isfinite(mode(value)(x)))


@every_transform
def test_a_sweep_is_one_trace_and_a_vmap_a_loop(name):
    bandit = a_bandit(np.float64)
    traces = []

    def moved(x):
        traces.append(x)
        return TRANSFORMS[name](bandit, x)

    grid = jnp.array([0.3, 0.7, 0.95])
    many = jax.jit(jax.vmap(moved))(grid)
    assert len(traces) == 1
    batch = jax.vmap(lambda new: rd.target(new, KL).probs)(many)
    loop = [rd.target(moved(x), KL).probs for x in grid]
    assert np.allclose(batch, loop, rtol=0, atol=1e-15)


# The others take a table in the order of the actions.
ORDERED = ("with_reward", "condition", "scalarize", "lagrangian", "length_penalty")


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if name not in ORDERED])
def test_relabelling_commutes(name):
    bandit, order = a_bandit(np.float64, zero=False), np.array([3, 0, 4, 2, 1])
    bandit = rd.Bandit(bandit.reward, rd.laws.temper(bandit.log_ref, 1.3), bandit.label)
    moved = rd.Bandit(bandit.reward[order], bandit.log_ref[order], bandit.label[order])
    new, other = TRANSFORMS[name](bandit, 0.7), TRANSFORMS[name](moved, 0.7)
    for a, b in ((new.reward, other.reward), (new.log_ref, other.log_ref)):
        assert np.allclose(a[order], b, rtol=1e-14, atol=1e-15)


@given(bandit=bandits(sizes=(5,), zeros=True), beta=betas(-1, 1), weight=st.floats(0, 2))
def test_typicality_sharpens_the_reference(bandit, beta, weight):
    """q^{1 + alpha/beta} e^{r/beta} (2510.01171)."""
    got = rd.target(transform.typicality_bias(bandit, weight), rd.ReverseKL(beta)).log_probs
    inside = ~jnp.isneginf(bandit.log_ref)
    log_q = jnp.where(inside, bandit.log_ref, 0)
    want = jnp.where(inside, (1 + weight / beta) * log_q + bandit.reward / beta, -jnp.inf)
    assert np.allclose(np.exp(got), np.exp(rd.logspace.normalize(want)), rtol=0, atol=1e-12)


def test_conditioning_is_bayes():
    bandit = rd.bandit(np.zeros(3), [0.2, 0.3, 0.5])
    likelihood = np.array([0.9, 0.1, 0.0])
    with np.errstate(divide="ignore"):
        log_l = np.log(likelihood)
    posterior = likelihood * [0.2, 0.3, 0.5]
    got = rd.target(transform.condition(bandit, log_l), rd.ReverseKL(1.0)).probs
    assert np.allclose(got, posterior / posterior.sum(), rtol=1e-14)
    guided = rd.target(transform.condition(bandit, log_l, 2.0), rd.ReverseKL(1.0)).probs
    posterior = likelihood**2 * [0.2, 0.3, 0.5]
    assert np.allclose(guided, posterior / posterior.sum(), rtol=1e-14)
    none = transform.condition(bandit, log_l, 0.0)
    assert np.array_equal(none.reward, bandit.reward)


def test_a_pareto_action_inside_the_hull():
    """Never the argmax of a weighted sum, yet with positive mass in every regularised one."""
    rewards = np.array([[1.0, 0.0, 0.4], [0.0, 1.0, 0.4]])
    bandit = rd.bandit(np.zeros(3), [0.3, 0.3, 0.4])
    for w in np.linspace(0, 1, 21):
        mixed = transform.scalarize(bandit, rewards, [w, 1 - w])
        assert int(jnp.argmax(mixed.reward)) != 2
        assert rd.target(mixed, rd.ReverseKL(0.1)).probs[2] > 0
        # (2210.12765): target proportional to q e^{w.R/beta}
        want = jax.nn.softmax(bandit.log_ref + (np.array([w, 1 - w]) @ rewards) / 0.1)
        assert np.allclose(rd.target(mixed, rd.ReverseKL(0.1)).probs, want, rtol=1e-13)


def test_values_by_hand():
    bandit = rd.bandit([1.0, 0.0, 0.5], [0.5, 0.25, 0.25], label=[0, 1, 1])
    assert np.allclose(transform.cluster_mass(bandit, 2.0).reward, [2.0, 1.0, 1.5])
    assert np.allclose(transform.entropy_penalty(bandit, 0.5).reward[0], 1 + 0.5 * np.log(0.5))
    assert np.allclose(
        transform.lagrangian(bandit, [[1.0, 2.0, 3.0]], [0.1], [2.0]).reward, [1.1, 0, 0.4]
    )
    assert np.allclose(transform.length_penalty(bandit, [1, 2, 3], 0.1).reward, [0.9, -0.2, 0.2])
    late = transform.length_penalty(bandit, [5, 9, 12], 0.5, beyond=6)
    assert np.allclose(late.reward, [1.0, -1.5, -2.5])
    assert np.allclose(
        transform.verify(rd.bandit([-np.inf, 0.2, 0.7]), 0.5).reward, [-np.inf, 0, 1]
    )
    assert np.allclose(np.exp(transform.temper(bandit, 0.5).log_ref), np.array([4, 1, 1]) / 6)
    assert np.allclose(np.exp(transform.nucleus(bandit, 0.5).log_ref), [1, 0, 0])
    assert np.allclose(np.exp(transform.min_p(bandit, 0.5).log_ref), [0.5, 0.25, 0.25])


# MARA (2510.20817)


@given(
    bandit=bandits(sizes=(5,), zeros=True),
    beta=betas(-1.5, 1),
    anchor=st.sampled_from(["reference", "target"]),
)
def test_mara_is_flat_over_the_good_set(bandit, beta, anchor):
    """Reward form under reverse KL, alone or with an entropy bonus; substitute form under all."""
    inside = jnp.isfinite(bandit.log_ref)
    tau = float(jnp.sort(jnp.where(inside, bandit.reward, -jnp.inf))[-2])
    tau = tau if np.isfinite(tau) else float(jnp.max(jnp.where(inside, bandit.reward, -jnp.inf)))
    good = np.asarray(inside & (bandit.reward >= tau))
    kl = rd.ReverseKL(beta)
    for reg in (kl, kl + rd.Entropy(0.3)):
        law = rd.target(rd.mara(bandit, reg, tau, anchor=anchor), reg).log_probs
        assert np.ptp(np.asarray(law)[good]) <= 1e-12 * (1 + 1 / beta)
    for reg in (kl, rd.ForwardKL(beta), rd.JensenShannon(beta), rd.Pearson(beta)):
        law = rd.target(rd.mara(bandit, reg, tau, "substitute", anchor=anchor), reg).probs
        assert np.ptp(np.asarray(law)[good]) <= 1e-12


@given(bandit=bandits(sizes=(5,)), beta=betas(-1.5, 1))
def test_maras_level_is_the_anchors(bandit, beta):
    """Flat at q(z) e^{R(z)/beta}: relative to a bad action the odds are those of z as it was."""
    tau = float(jnp.sort(bandit.reward)[-2])
    good = np.asarray(bandit.reward >= tau)
    reg = rd.ReverseKL(beta)
    plain = rd.target(bandit, reg).log_probs
    for anchor in ("reference", "target"):
        score = bandit.log_ref if anchor == "reference" else bandit.log_ref + bandit.reward / beta
        z = int(jnp.argmax(jnp.where(good, score, -jnp.inf)))
        law = rd.target(rd.mara(bandit, reg, tau, anchor=anchor), reg).log_probs
        named = rd.target(rd.mara(bandit, reg, tau, anchor=z), reg).log_probs
        assert np.allclose(law, named, rtol=1e-14)
        for bad in np.flatnonzero(~good):
            want = float(plain[z] - plain[bad])
            assert np.isclose(float(law[z] - law[bad]), want, rtol=1e-12, atol=1e-12)


def masses(law, label, good):
    """The mass of the good forms of each answer that has some, by enumeration."""
    p = np.exp(np.asarray(law))
    return np.array([p[good & (label == a)].sum() for a in np.unique(label[good])])


FIVE = {"label": [0, 0, 1, 1, 2], "reward": [1.0, 0.8, 0.9, 0.0, 1.0]}


@pytest.mark.parametrize("anchor", ["reference", "target", 2])
@pytest.mark.parametrize("form", ["reward", "substitute"])
def test_mara_over_answers_is_flat_over_answers(form, anchor):
    """Rewards differ among the good forms, and one form of a good answer is below the threshold.

    Forward KL and its relatives are flat in the second form alone.
    """
    q, label = np.array([0.3, 0.05, 0.1, 0.25, 0.3]), np.array(FIVE["label"])
    bandit = rd.bandit(FIVE["reward"], q, label=label)
    good = np.asarray(bandit.reward) >= 0.7
    kl = rd.ReverseKL(0.3)
    flat = [kl, kl + rd.Entropy(0.2), kl + rd.ReverseKL(0.1, anchor=bandit.log_ref[::-1])]
    flat += [rd.ForwardKL(0.2), rd.JensenShannon(0.3), rd.Pearson(0.5)] * (form == "substitute")
    for reg in flat:
        new = rd.mara(bandit, reg, 0.7, form, over="answers", anchor=anchor)
        target = rd.target(new, reg)
        got = masses(target.log_probs, label, good)
        assert np.ptp(got) <= 1e-13 * got.max(), reg
        kept = reg.reduce(bandit.log_ref)[0].log_anchor if reg.merges() else bandit.log_ref
        odds = target.log_probs[0] - target.log_probs[1]
        assert np.isclose(odds, kept[0] - kept[1], rtol=1e-12)
        assert np.array_equal(new.reward[3], bandit.reward[3])
    rest = rd.ForwardKL(0.2)
    bonus = rd.target(rd.mara(bandit, rest, 0.7, over="answers", anchor=anchor), rest).log_probs
    assert np.ptp(masses(bonus, label, good)) > 1e-3


@pytest.mark.parametrize(("anchor", "answer"), [("reference", 0), ("target", 2), (1, 0), (2, 1)])
@pytest.mark.parametrize("entropy", [False, True])
def test_the_answer_of_the_anchor_keeps_its_odds_to_what_is_not_good(anchor, answer, entropy):
    """Under reverse KL, with an entropy bonus or without; the anchor's answer is picked by hand.

    Masses of the good forms are 0.35, 0.1 and 0.3; tilted by e^{R/0.05} the last is the largest.
    """
    label = np.array(FIVE["label"])
    reward = [0.8, 0.7, 0.9, 0.0, 1.0]
    bandit = rd.bandit(reward, [0.3, 0.05, 0.1, 0.25, 0.3], label=label)
    good = np.asarray(bandit.reward) >= 0.7
    reg = rd.ReverseKL(0.05) + rd.Entropy(0.01) if entropy else rd.ReverseKL(0.05)
    plain = np.exp(rd.target(bandit, reg).log_probs)
    new = np.exp(rd.target(rd.mara(bandit, reg, 0.7, over="answers", anchor=anchor), reg).log_probs)
    inside = good & (label == answer)
    assert np.isclose(new[inside].sum() / new[3], plain[inside].sum() / plain[3], rtol=1e-11)


def test_over_answers_that_have_one_form_is_over_actions():
    bandit = rd.bandit(FIVE["reward"], [0.3, 0.05, 0.1, 0.25, 0.3])
    for form in ("reward", "substitute"):
        for reg in (rd.ReverseKL(0.3), rd.ForwardKL(0.3), rd.ReverseKL(0.3) + rd.Entropy(0.2)):
            for anchor in ("reference", "target", 1):
                one, other = (
                    rd.target(rd.mara(bandit, reg, 0.7, form, over=over, anchor=anchor), reg)
                    for over in ("actions", "answers")
                )
                assert np.allclose(one.log_probs, other.log_probs, rtol=1e-12)


def test_mara_over_answers_finds_all_solutions_of_a_hand():
    """2, 4, 6, 8: nine solutions with 148 forms; flat over forms 3.9 of them count."""
    bandit = rd.problems.game_of_24([2, 4, 6, 8]).bandit
    good, reg = bandit.reward >= 1, rd.ReverseKL(0.1)

    def count(new):
        return float(rd.metrics.effective_labels(rd.target(new, reg).log_probs, new.label, good))

    assert len(np.unique(np.asarray(bandit.label)[np.asarray(good)])) == 9
    for form in ("reward", "substitute"):
        assert np.isclose(count(rd.mara(bandit, reg, 1.0, form, over="answers")), 9, rtol=1e-12)
    assert 3.8 < count(rd.mara(bandit, reg, 1.0)) < count(bandit) < 4.2


def test_the_reward_form_does_not_flatten_forward_kl():
    """The smallest example: two good actions. The reward form leaves odds, the other does not."""
    bandit = rd.bandit([1.0, 1.0, 0.0], [0.4, 0.05, 0.55])
    reg = rd.ForwardKL(0.25)
    bonus = rd.target(rd.mara(bandit, reg, 1.0), reg).log_probs
    assert abs(float(rd.log_odds(bonus, 0, 1))) > 0.1
    flat = rd.target(rd.mara(bandit, reg, 1.0, "substitute"), reg).log_probs
    assert abs(float(rd.log_odds(flat, 0, 1))) <= 1e-14


def test_both_forms_have_the_same_gradient_under_reverse_kl():
    bandit = rd.bandit([1.0, 0.9, 0.0, 0.2], [0.4, 0.05, 0.35, 0.2])
    reg = rd.ReverseKL(0.3)
    z = jnp.array([0.3, -1.0, 0.2, 0.9])
    method = rd.methods.policy_gradient(reg)
    forms = [
        rd.field(method, z, rd.mara(bandit, reg, 0.5, form)) for form in ("reward", "substitute")
    ]
    assert np.allclose(*forms, rtol=0, atol=1e-14)


def test_a_bonus_with_another_beta_leaves_odds():
    """(q1/q2)^{1 - b'/b} when the bonus uses b' and training b."""
    bandit = rd.bandit([1.0, 1.0, 0.0], [0.4, 0.05, 0.55])
    law = rd.target(rd.mara(bandit, rd.ReverseKL(0.1), 1.0), rd.ReverseKL(0.25)).log_probs
    want = (1 - 0.1 / 0.25) * np.log(8)
    assert np.isclose(float(rd.log_odds(law, 0, 1)), want, rtol=1e-13)


def test_mara_by_a_quantile_of_the_reward_law():
    bandit = rd.bandit([3.0, 2.0, 1.0, 0.0], [0.1, 0.2, 0.3, 0.4])
    tau = rd.metrics.quantile(bandit.log_ref, bandit.reward, 0.8)
    assert tau == 2.0
    new = rd.mara(bandit, rd.ReverseKL(1.0), tau)
    assert np.allclose(new.reward, [2 + np.log(2), 2.0, 1.0, 0.0])  # the anchor is action 1


def test_wrong_calls():
    bandit = rd.bandit([1.0, 0.0, 5.0], [0.5, 0.5, 0.0])
    reg = rd.ReverseKL(1.0)
    with pytest.raises(ValueError, match="no anchor; got 2 with a largest reward of 1"):
        rd.mara(bandit, reg, 2.0)
    with pytest.raises(ValueError, match="must be one of 'reward', 'substitute'; got form='both'"):
        rd.mara(bandit, reg, 0.5, "both")
    with pytest.raises(
        ValueError, match=r"anchor .*\(or an index\) must be one of 'reference', 'target'; got"
    ):
        rd.mara(bandit, reg, 0.5, anchor="best")
    with pytest.raises(ValueError, match="action 1 is below the threshold"):
        rd.mara(bandit, reg, 0.5, anchor=1)
    with pytest.raises(ValueError, match="held to the reference"):
        rd.mara(bandit, rd.Entropy(1.0), 0.5)
    with pytest.raises(ValueError, match="reward must have shape"):
        transform.with_reward(bandit, [1.0])
    with pytest.raises(ValueError, match="rewards must have shape"):
        transform.scalarize(bandit, [[1.0, 2.0]], [1.0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rewards_that_are_no_numbers_are_refused(bad):
    bandit = rd.bandit([1.0, 0.0])
    with pytest.raises(ValueError, match="reward must be real numbers"):
        rd.transform.with_reward(bandit, [0.0, bad])
    with pytest.raises(ValueError, match="every action is forbidden"):
        rd.transform.with_reward(bandit, [-np.inf, -np.inf])
    with pytest.raises(ValueError, match="threshold must be a number"):
        rd.transform.verify(bandit, np.nan)
