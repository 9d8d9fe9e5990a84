import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given

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
        if not 0 < beta < np.inf:
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


def test_no_critical_beta():
    bandit = rd.bandit([1.0, 0.0, 1.0], [0.5, 0.3, 0.2])
    assert rd.critical_beta(bandit, 0, 1, rd.ReverseKL) == np.inf  # ahead in both
    assert np.isnan(rd.critical_beta(bandit, 0, 2, rd.ForwardKL))  # no beta decides equal rewards
    # Lambda* between the two rewards and a third, larger one: the tie is out of reach
    far = rd.bandit([1.0, 0.0, 9.0], [0.3, 0.6, 0.1])
    assert rd.critical_beta(far, 0, 1, rd.ForwardKL) == 0
    assert len(rd.critical_betas(far, 0, 1, rd.ForwardKL)) == 0
    lost = rd.bandit([1.0, 0.0, -np.inf, 0.5], [0.0, 0.5, 0.3, 0.2])
    assert rd.critical_beta(lost, 0, 1, rd.ReverseKL) == 0  # the reference has none of it
    assert rd.critical_beta(lost, 1, 2, rd.ReverseKL) == np.inf  # forbidden
    assert np.isnan(rd.critical_beta(lost, 0, 2, rd.ReverseKL))


def reverse_law(reward, q, beta):
    w = np.log(q) + reward / beta
    return np.exp(w - np.logaddexp.reduce(w))


def forward_law(reward, q, beta):
    top = reward.max()
    level = scipy.optimize.brentq(
        lambda u: (q * beta / (np.exp(u) + (top - reward))).sum() - 1, -60, np.log(beta + 1)
    )
    return q * beta / (np.exp(level) + (top - reward))


@pytest.mark.parametrize(
    ("make", "law"), [(rd.ReverseKL, reverse_law), (rd.ForwardKL, forward_law)]
)
def test_who_leads_below_and_above_it(make, law):
    """By laws of another solver at 241 betas, in either order of the arguments."""
    random = np.random.default_rng(3)
    grid = np.geomspace(1e-3, 1e4, 241)
    seen = set()
    for _ in range(40):
        reward, q = random.integers(0, 4, size=4) / 3.0, random.dirichlet(np.ones(4))
        bandit = rd.bandit(reward, q)
        beta = float(rd.critical_beta(bandit, 0, 1, make))
        other = float(rd.critical_beta(bandit, 1, 0, make))
        assert beta == other or (np.isnan(beta) and np.isnan(other))
        if reward[0] == reward[1]:
            assert np.isnan(beta)
            continue
        high, low = (0, 1) if reward[0] > reward[1] else (1, 0)
        leads = np.array([law(reward, q, b)[high] > law(reward, q, b)[low] for b in grid])
        clear = np.ones(241, bool)
        clear = np.ones(241, bool)
        if 0 < beta < np.inf:
            clear = np.abs(np.log(grid / beta)) > 0.05
        assert np.array_equal(leads[clear], (grid < beta)[clear])
        seen.add(0 if beta == 0 else 1 if beta < np.inf else 2)
    assert seen >= {1, 2}


def test_groups_may_cross_more_than_once():
    """A group of a good rare action and a bad common one against one in between."""
    reward, q = np.array([1.0, 0.0, 0.9]), np.array([0.01, 0.64, 0.35])
    bandit = rd.bandit(reward, q)
    found = rd.critical_betas(bandit, [0, 1], 2, rd.ReverseKL)
    assert len(found) == 2
    assert rd.critical_beta(bandit, [0, 1], 2, rd.ReverseKL) == found[-1]
    for beta in found:
        law = reverse_law(reward, q, beta)
        assert np.isclose(law[0] + law[1], law[2], rtol=1e-10)
    # groups of equal rewards, and one whose best leads everywhere
    level = rd.bandit([1.0, 1.0, 1.0, 0.0], [0.2, 0.1, 0.4, 0.3])
    assert np.isnan(rd.critical_beta(level, [0, 1], [2], rd.ReverseKL))
    assert rd.critical_beta(level, [0, 1, 2], [3], rd.ReverseKL) == np.inf


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
    """Masses of two groups, at 50 digits for reverse KL; NaN where they never cross."""
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
