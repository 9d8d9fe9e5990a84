import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from hypothesis import given
from scipy.optimize import brentq

import regdist as rd
from tests import judge
from tests.strategies import bandits, betas

BY_ALPHA = [1.0, 0.0, 0.5, 2.0, -1.0, 1 - 1e-9, 1 + 1e-9, 1e-9]


def maker(alpha):
    return lambda beta: rd.AlphaDivergence(alpha, beta)


@pytest.mark.parametrize("alpha", BY_ALPHA)
def test_the_two_actions_tie_at_the_critical_beta(alpha):
    """At 50 digits: the log-odds vanish there, and change sign across it."""
    bandit = rd.bandit([1.0, 0.4, 0.0, 0.8, 1.1], [0.05, 0.25, 0.45, 0.1, 0.15])
    found = 0
    for i, j in [(0, 2), (2, 0), (0, 1), (3, 1), (4, 2), (3, 2)]:
        beta = float(rd.critical_beta(bandit, i, j, maker(alpha)))
        if beta in (0, np.inf):
            continue
        found += 1
        laws = [
            judge.alpha_target(bandit.reward, bandit.log_ref, alpha, beta * (1 + d))
            for d in (-1e-3, 0, 1e-3)
        ]
        odds = [float(law[i] - law[j]) for law in laws]
        assert abs(odds[1]) <= 1e-12
        assert odds[0] * odds[2] < 0
    assert found >= 1


def test_closed_forms_of_the_paper():
    """(R2 - R1)/(log q1 - log q2), and 1/sum q/(Lambda - R) (2510.20817)."""
    q, r = np.array([0.1, 0.6, 0.3]), np.array([1.0, 0.0, 0.5])
    bandit = rd.bandit(r, q)
    assert np.isclose(rd.critical_beta(bandit, 0, 1, rd.ReverseKL), 1 / np.log(6), rtol=1e-14)
    lam = (q[0] * r[1] - q[1] * r[0]) / (q[0] - q[1])
    assert lam > r.max()
    want = 1 / np.sum(q / (lam - r))
    assert np.isclose(rd.critical_beta(bandit, 0, 1, rd.ForwardKL), want, rtol=1e-14)


def test_always_never_and_equal():
    bandit = rd.bandit([1.0, 0.0, 1.0], [0.5, 0.3, 0.2])
    assert rd.critical_beta(bandit, 0, 1, rd.ReverseKL) == np.inf  # ahead in both
    assert rd.critical_beta(bandit, 1, 0, rd.ForwardKL) == np.inf
    assert np.isnan(rd.critical_beta(bandit, 0, 2, rd.ForwardKL))  # equal rewards never tie
    # Lambda* between the two rewards and a third, larger one: the tie is out of reach
    far = rd.bandit([1.0, 0.0, 9.0], [0.3, 0.6, 0.1])
    assert rd.critical_beta(far, 0, 1, rd.ForwardKL) == 0
    rare = rd.bandit([1, 0, 0.6], [0.05, 0.8, 0.15])
    assert rd.critical_beta(rare, 2, 1, rd.ForwardKL) == 0
    assert 0 < rd.critical_beta(rare, 2, 1, rd.ReverseKL) < np.inf


def tables(seed, count, size=5):
    """Rewards and references on coarse grids, with ties, forbidden actions and empty ones."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        reward = random.integers(-2, 4, size) / 2
        weight = random.choice([0, 1, 2, 5, 40], size, p=[0.2, 0.2, 0.2, 0.2, 0.2]).astype(float)
        weight[0] = 3
        reward[1] = random.choice([reward[1], -np.inf])
        yield reward, weight / weight.sum()


SCAN = np.geomspace(1e-3, 1e3, 61)


@pytest.mark.parametrize("alpha", [1.0, 0.0, 0.5, 2.0])
def test_two_actions_by_brute_force(alpha):
    """Who is ahead at each of 61 betas, by an independent solver, is what the number says."""
    seen = set()
    for reward, q in tables(3, 20):
        bandit = rd.bandit(reward, q)
        scan = np.array([judge.float_target(reward, q, alpha, beta) for beta in SCAN])
        for high, low in [(0, 1), (0, 2), (2, 3), (3, 4), (4, 0)]:
            beta = float(rd.critical_beta(bandit, high, low, maker(alpha)))
            other = float(rd.critical_beta(bandit, low, high, maker(alpha)))
            assert np.array_equal(beta, other, equal_nan=True)
            found = rd.crossings(bandit, high, low, maker(alpha))
            assert found.proved
            if reward[high] < reward[low]:
                high, low = low, high
            if reward[high] == reward[low]:
                assert np.isnan(beta)
                seen.add("equal")
                continue
            lead, both = scan[:, high] - scan[:, low], scan[:, high] + scan[:, low]
            away = np.abs(np.log(SCAN / beta)) > 1e-9 if 0 < beta < np.inf else True
            ahead = (beta > SCAN) & (lead != 0)  # sparse targets may give neither any mass
            assert np.array_equal((lead > 1e-12 * both) & away, ahead & away), (reward, q, beta)
            assert list(found.betas) == ([beta] if 0 < beta < np.inf else [])
            seen.add("never" if beta == 0 else "always" if beta == np.inf else "crosses")
    assert seen == {"equal", "never", "always", "crosses"}


@pytest.mark.parametrize("alpha", [1.0, 0.0])
def test_two_groups_by_brute_force(alpha):
    """All crossings, their order and who leads between them, from a scan with brentq."""
    seen, random = {}, np.random.default_rng(1)
    grid = np.geomspace(5e-3, 1e4, 181)
    twice = np.array([1.0, 0.9, 0.0, 0.5, 0.2]), np.array([0.02, 0.08, 0.5, 0.38, 0.02])
    for reward, q in [twice, *tables(5, 20)]:
        sides = random.permutation(5) if seen else np.array([0, 2, 1, 3, 4])
        one, two = sides[:2], sides[2:4]

        def lead(x, reward=reward, q=q, one=one, two=two):
            law = judge.float_target(reward, q, alpha, np.exp(x))
            return (law[one].sum() - law[two].sum()) / max(law[one].sum() + law[two].sum(), 1e-300)

        at = np.log(grid)
        values = np.array([lead(x) for x in at])
        if np.any(np.abs(values) < 1e-9):  # a tie in the limit: rounding decides
            continue
        turns = np.flatnonzero(values[:-1] * values[1:] < 0)
        want = [np.exp(brentq(lead, at[k], at[k + 1], xtol=1e-15)) for k in turns]
        bandit = rd.bandit(reward, q)
        found = rd.crossings(bandit, one, two, maker(alpha))
        assert np.allclose(found.betas, want, rtol=1e-10)
        assert np.array_equal(found.i_leads, [values[0] > 0, *(values[turns + 1] > 0)])
        beta = float(rd.critical_beta(bandit, two, one, maker(alpha)))
        assert beta == float(rd.critical_beta(bandit, one, two, maker(alpha))) or np.isnan(beta)
        tops = [np.max(reward[side], where=q[side] > 0, initial=-np.inf) for side in (one, two)]
        reached = np.isfinite(tops).all() and not np.any(reward[q == 0] > max(tops))
        if reached and tops[0] != tops[1]:
            leads = found.i_leads == (tops[0] > tops[1])
            falls = found.betas[leads[:-1] & ~leads[1:]]
            assert np.isclose(beta, falls[-1] if len(falls) else np.inf if leads.all() else 0)
        seen.setdefault(len(want), []).append(found.proved)
    assert set(seen) >= {0, 1, 2}
    assert all(np.mean(proved) > 0.5 for proved in seen.values())


def test_groups_of_equal_best_reward_go_by_their_means():
    """Sums of q e^{R/beta} for two groups that both hold a best action."""
    reward, q = [1.0, 0.0, 1.0, 0.5], [0.1, 0.6, 0.2, 0.1]
    bandit = rd.bandit(reward, q)
    for first, second in [([0, 1], [2, 3]), ([2, 3], [0, 1])]:
        beta = float(rd.critical_beta(bandit, first, second, rd.ReverseKL))
        # 0.1 z^2 + 0.6 = 0.2 z^2 + 0.1 z with z = e^{1/(2 beta)}: z = 2
        assert np.isclose(beta, 1 / (2 * np.log(2)), rtol=1e-12)
    assert rd.critical_beta(bandit, [0], [1, 2], rd.ReverseKL) == 0  # behind 2 at every beta
    same = rd.bandit([1.0, 1.0, 1.0, 0.0], [0.1, 0.3, 0.2, 0.4])
    assert np.isnan(rd.critical_beta(same, [0, 1], [2], rd.ReverseKL))


def test_the_last_lead_that_is_lost():
    """Ahead, behind, ahead: the first of two crossings; behind, then ahead: none is small enough.

    Forward KL at beta to 0 weighs groups without the best action by q/(max R - R).
    """
    bandit = rd.bandit([1.0, 0.9, 0.0, 0.5], [0.02, 0.08, 0.5, 0.4])
    found = rd.crossings(bandit, [1, 3], [0, 2], rd.ReverseKL)
    assert found.proved
    assert found.i_leads.tolist() == [False, True, False]
    beta = rd.critical_beta(bandit, [1, 3], [0, 2], rd.ReverseKL)
    assert np.isclose(beta, found.betas[0], rtol=1e-14)
    late = rd.bandit([1.0, 0.6, 0.0, 0.5], [0.19, 0.01, 0.5, 0.3])
    assert rd.crossings(late, [1, 2], [3], rd.ForwardKL).i_leads.tolist() == [False, True]
    assert rd.critical_beta(late, [1, 2], [3], rd.ForwardKL) == 0


def test_total_variation_changes_places_by_a_jump():
    """Where beta is the gap of the worse action to the best one, its mass comes back at once."""
    bandit = rd.bandit([1.0, 0.9, 0.0, 0.5], [0.02, 0.08, 0.5, 0.4])
    found = rd.crossings(bandit, 0, 2, rd.TotalVariation)
    assert np.allclose(found.betas, [1.0], rtol=1e-12)
    assert found.i_leads.tolist() == [True, False]
    assert not found.proved


@pytest.mark.parametrize(
    ("family", "coefficient"),
    [
        (lambda b: rd.ReverseKL(2 * b), lambda b: 2 * b),
        (lambda b: rd.ReverseKL(b**2), lambda b: b**2),
        (lambda b: rd.ReverseKL(b, anchor=rd.laws.temper(LAW, 0.5)), lambda b: b),
        (lambda b: rd.ReverseKL(b) + rd.ReverseKL(b, anchor=LAW), lambda b: 2 * b),
    ],
)
def test_the_coefficient_is_the_familys(family, coefficient):
    """The tie is where the argument of the family says, not its coefficient."""
    bandit = rd.Bandit(jnp.array([1.0, 0.0, 0.5]), LAW, jnp.arange(3))
    beta = float(rd.critical_beta(bandit, 0, 1, family))
    anchor = family(1.0).reduce(LAW)[0].log_anchor
    assert np.isclose(coefficient(beta), 1 / (anchor[1] - anchor[0]), rtol=1e-12)


LAW = jnp.log(jnp.array([0.1, 0.6, 0.3]))


# any regulariser from its coefficient; groups as the critical_beta docstring allows
OTHERS = {
    "Jensen-Shannon": rd.JensenShannon,
    "reverse KL + fixed entropy": lambda b: rd.ReverseKL(b) + rd.Entropy(0.2),
    "reverse + forward KL": lambda b: rd.ReverseKL(b) + rd.ForwardKL(0.1),
}


@pytest.mark.parametrize("name", OTHERS)
def test_two_actions_tie_under_any_regulariser(name):
    bandit = rd.bandit([1.0, 0.4, 0.0, 0.8, 1.1], [0.05, 0.25, 0.45, 0.1, 0.15])
    beta = float(rd.critical_beta(bandit, 0, 2, OTHERS[name]))
    odds = [
        float(rd.log_odds(rd.target(bandit, OTHERS[name](beta * x)).log_probs, 0, 2))
        for x in (0.99, 1, 1.01)
    ]
    assert abs(odds[1]) <= 1e-12
    assert odds[0] > 0 > odds[2]


def test_the_search_agrees_with_the_closed_form():
    """Groups of one take the search, pairs the closed form; an entropy bonus moves neither."""
    bandit = rd.bandit([1.0, 0.4, 0.0, 0.8, 1.1], [0.05, 0.25, 0.45, 0.1, 0.15])
    for make in (rd.ReverseKL, rd.ForwardKL, rd.Pearson):
        closed = float(rd.critical_beta(bandit, 0, 2, make))
        assert np.isclose(rd.critical_beta(bandit, [0], [2], make), closed, rtol=1e-12)
    moved = rd.critical_beta(bandit, 0, 2, lambda b: rd.ReverseKL(b) + rd.Entropy(b))
    assert np.isclose(moved, np.log(9) ** -1, rtol=1e-12)


def test_groups():
    """Masses of two groups, at 50 digits for reverse KL; inf where they never cross."""
    bandit = rd.bandit([1.0, 0.4, 0.0, 0.8, 1.1], [0.05, 0.25, 0.45, 0.1, 0.15])
    good = np.array([True, False, False, True, True])
    beta = rd.critical_beta(bandit, good, ~good, rd.ReverseKL)
    with mp.workdps(40):
        log_w = judge.alpha_target(bandit.reward, bandit.log_ref, 1, float(beta))
        mass = mp.fsum(mp.exp(x) for x, g in zip(log_w, good, strict=True) if g)
    assert abs(float(mass) - 0.5) <= 1e-13
    assert np.isclose(rd.critical_beta(bandit, [0, 3, 4], [1, 2], rd.ReverseKL), beta, rtol=1e-13)
    # the good ones are ahead at every beta against one bad action
    assert rd.critical_beta(bandit, good, [1], rd.ReverseKL) == np.inf
    slope = jax.grad(
        lambda r: rd.critical_beta(
            rd.Bandit(r, bandit.log_ref, bandit.label), good, ~good, rd.ReverseKL
        )
    )(bandit.reward)
    h = 1e-6
    for i in (0, 2):
        two = [
            rd.critical_beta(
                rd.Bandit(bandit.reward.at[i].add(d), bandit.log_ref, bandit.label),
                good,
                ~good,
                rd.ReverseKL,
            )
            for d in (h, -h)
        ]
        assert np.isclose(slope[i], (two[0] - two[1]) / (2 * h), rtol=1e-7)
    with pytest.raises(ValueError, match="a mask of actions must have shape"):
        rd.critical_beta(bandit, np.array([True, False]), [1], rd.ReverseKL)


@given(bandit=bandits(sizes=(5,)), beta=betas(-1, 1))
def test_parts_of_a_log_odds(bandit, beta):
    """Reverse KL: (R_i - R_j)/beta; the rest is the anchor's part, b/(a+b) with entropy."""
    gap = float(bandit.reward[0] - bandit.reward[3])
    before = float(rd.log_odds(bandit.log_ref, 0, 3))
    parts = rd.odds_parts(bandit, rd.ReverseKL(beta), 0, 3)
    assert np.isclose(parts.reference, before, rtol=0, atol=1e-12)
    assert np.isclose(parts.reward, gap / beta, rtol=1e-10, atol=1e-12)
    mixed = rd.odds_parts(bandit, rd.ReverseKL(beta) + rd.Entropy(3 * beta), 0, 3)
    assert np.isclose(mixed.reference, before / 4, rtol=0, atol=1e-12)
    assert np.isclose(mixed.reward, gap / (4 * beta), rtol=1e-10, atol=1e-12)
    forward = rd.target(bandit, rd.ForwardKL(beta))
    lam = float(forward.multiplier) + beta
    parts = rd.odds_parts(bandit, rd.ForwardKL(beta), 0, 3)
    assert np.isclose(parts.reference, before, rtol=0, atol=1e-12)
    want = np.log((lam - float(bandit.reward[3])) / (lam - float(bandit.reward[0])))
    assert np.isclose(parts.reward, want, rtol=1e-6, atol=1e-9)
    assert np.isclose(parts.total, parts.reference + parts.reward, rtol=0, atol=1e-12)


@given(bandit=bandits(sizes=(5,)), beta=betas())
def test_odds_at_equal_rewards(bandit, beta):
    """Both KLs keep the reference's odds; an entropy bonus raises them to b/(a + b)."""
    equal = rd.Bandit(bandit.reward.at[3].set(bandit.reward[1]), bandit.log_ref, bandit.label)
    before = float(rd.log_odds(equal.log_ref, 1, 3))
    for make in (rd.ReverseKL, rd.ForwardKL, maker(0.3)):
        after = float(rd.log_odds(rd.target(equal, make(beta)).log_probs, 1, 3))
        assert abs(after - before) <= 1e-12
    mixed = rd.target(equal, rd.ReverseKL(beta) + rd.Entropy(3 * beta))
    assert abs(float(rd.log_odds(mixed.log_probs, 1, 3)) - before / 4) <= 1e-12


@given(bandit=bandits(sizes=(5,)), beta=betas(-1, 2))
def test_forward_odds_are_rational_in_the_gap(bandit, beta):
    t = rd.target(bandit, rd.ForwardKL(beta))
    lam = float(t.multiplier) + beta
    with mp.workdps(30):
        r, lq = bandit.reward.tolist(), bandit.log_ref.tolist()
        want = lq[0] - lq[1] + float(mp.log((lam - mp.mpf(r[1])) / (lam - mp.mpf(r[0]))))
    assert np.isclose(rd.log_odds(t.log_probs, 0, 1), want, rtol=0, atol=1e-9)


def test_log_odds_by_hand():
    log_p = jnp.log(jnp.array([0.2, 0.8]))
    assert np.isclose(rd.log_odds(log_p, 1, 0), np.log(4))


def test_an_action_off_the_support_ties_where_its_group_does():
    bandit = rd.bandit([0.92, 2.33, 0.18, -0.33], [0.8, 0.0, 0.13, 0.07])
    beta = rd.critical_beta(bandit, 2, 1, rd.ForwardKL)
    probs = rd.target(bandit, rd.ForwardKL(beta)).probs
    assert np.isclose(probs[1], probs[2], rtol=1e-10)
    traced = jax.jit(lambda b: rd.critical_beta(b, 2, 1, rd.ForwardKL))(bandit)
    assert np.isclose(traced, beta, rtol=1e-12)


def test_actions_that_do_not_exist_are_refused():
    bandit = rd.bandit([1.0, 0.0, 0.5])
    with pytest.raises(ValueError, match="j must name one of 3 actions"):
        rd.log_odds(bandit.log_ref, 0, 3)
    with pytest.raises(ValueError, match="i must name one of 3 actions"):
        rd.critical_beta(bandit, 7, 0, rd.ReverseKL)
    with pytest.raises(ValueError, match="no action in common"):
        rd.critical_beta(bandit, 0, [0, 1], rd.ReverseKL)
    with pytest.raises(ValueError, match="anchor must name one of 3 actions"):
        rd.mara(bandit, rd.ReverseKL(1.0), 0.5, anchor=5)


def test_derivatives_where_no_beta_is_critical_are_zero():
    """In the rewards and the reference; finite differences where there is one, off the support."""

    def critical(reward, log_q, i, j, make):
        return rd.critical_beta(rd.Bandit(reward, log_q, jnp.arange(4)), i, j, make)

    reward = jnp.array([1.0, 0.0, 0.6, 1.5])
    log_q = jnp.log(jnp.array([0.05, 0.8, 0.15, 0.0]))
    slope = jax.grad(critical, argnums=(0, 1))
    for i, j, make in ((2, 1, rd.ForwardKL), (0, 2, rd.ForwardKL), (3, 1, rd.ReverseKL)):
        assert critical(reward, log_q, i, j, make) == 0
        assert all(np.all(x == 0) for x in slope(reward, log_q, i, j, make))
    by_reward, by_reference = slope(reward, log_q, 3, 2, rd.ForwardKL)
    h = 1e-6
    for k in range(4):
        two = [critical(reward.at[k].add(d), log_q, 3, 2, rd.ForwardKL) for d in (h, -h)]
        assert np.isclose(by_reward[k], (two[0] - two[1]) / (2 * h), rtol=1e-6, atol=1e-8)
    for k in range(3):
        two = [critical(reward, log_q.at[k].add(d), 3, 2, rd.ForwardKL) for d in (h, -h)]
        assert np.isclose(by_reference[k], (two[0] - two[1]) / (2 * h), rtol=1e-6, atol=1e-8)
