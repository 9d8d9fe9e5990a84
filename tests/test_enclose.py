"""Proved bounds: against 50 digits, by hand, and as the judge of `rd.target`."""

from decimal import Decimal
from fractions import Fraction

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

import regdist as rd
from regdist.numerics import balls
from tests import judge

F = Fraction
EPS = np.finfo(float).eps
BANDIT = rd.bandit([1.0, 0.25, 0.5, -2.0], [0.1, 0.3, 0.2, 0.4])
OFF = rd.bandit([0.3, 0.1, 2.5, 0.2], [0.5, 0.25, 0.0, 0.25])


def holds(enclosure, log_p):
    """Which logarithms of 50 digits lie within the bounds."""
    with mp.workdps(60):
        bounds = [
            [mp.mpf(str(x).replace("inity", "")) for x in row] for row in enclosure.log_bounds
        ]
        return [low <= x <= high for (low, high), x in zip(bounds, log_p, strict=True)]


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.3, 0.5, 1.0, 1.5, 2.0, 3.7])
@pytest.mark.parametrize("bandit", [BANDIT, OFF], ids=["inside", "off the support"])
def test_the_alpha_family_agrees_with_50_digits(alpha, bandit):
    exact = judge.alpha_target(bandit.reward, bandit.log_ref, alpha, 0.7)
    enclosure = rd.enclose(bandit, rd.AlphaDivergence(alpha, 0.7), 40)
    assert all(holds(enclosure, exact))
    assert 0 <= enclosure.width < 1e-40
    assert np.all(enclosure.lower <= enclosure.upper)
    assert enclosure.bits < 300


def test_jensen_shannon_agrees_with_50_digits():
    """Even references: they are stored as one number, whose rounding cancels."""
    even = rd.bandit(BANDIT.reward)
    with mp.workdps(60):
        log_q = [-mp.log(4)] * 4
    exact = judge.family_target(even.reward, log_q, 0.7, judge.js_slope, judge.js_log_inverse)
    assert all(holds(rd.enclose(even, rd.JensenShannon(0.7), 40), exact))


@pytest.mark.parametrize("order", [0.5, 1.0, 1.5, 2.0, 3.5])
def test_the_tsallis_bonus_agrees_with_50_digits(order):
    """It is beta n K^(1-n) D_n to the uniform policy."""
    with mp.workdps(60):
        beta = mp.mpf(0.6) * order * mp.mpf(4) ** (1 - mp.mpf(order))
        exact = judge.alpha_target(BANDIT.reward, [mp.mpf(-1)] * 4, order, beta)
    assert all(holds(rd.enclose(BANDIT, rd.Tsallis(order, 0.6), 40), exact))


def test_closed_forms_in_fractions():
    """By hand: sparsemax, forward KL of two actions, total variation, and a tie at the edge."""
    third = rd.rational(["9/10", "1/2", "-3/10"])
    sparse = rd.enclose(third, rd.Tsallis(2, 0.5))
    assert_is(sparse, [F(7, 10), F(3, 10), 0])
    # p_i = beta q_i/(L - R_i): L = 2 solves 1/(2L) + 1/(2 (L - 3/2)) = 5/4 for beta = 4/5
    two = rd.rational(["3/2", 0], ["1/2", "1/2"])
    assert_is(rd.enclose(two, rd.ForwardKL(1.0), beta=F(4, 5)), [F(4, 5), F(1, 5)])
    moved = rd.enclose(
        rd.rational([1, 0, "1/2"], ["1/5", "1/2", "3/10"]), rd.TotalVariation(1), beta=F(3, 4)
    )
    assert_is(moved, [F(7, 10), 0, F(3, 10)])
    # at the edge: the support places mass 1 when the best action off it is about to enter
    edge = rd.rational([0, 0, 1], ["1/2", "1/2", 0])
    assert_is(rd.enclose(edge, rd.ForwardKL(1.0)), [F(1, 2), F(1, 2), 0])
    assert_is(rd.enclose(edge.bandit, rd.ForwardKL(1.0)), [F(1, 2), F(1, 2), 0])
    # and where a sparse optimum ends: 1/4 + (3/4 - 1/2) ... the third is exactly at it
    corner = rd.enclose(rd.rational([1, "1/2", 0]), rd.Tsallis(2, 0.5), beta=F(3, 4))
    assert_is(corner, [F(2, 3), F(1, 3), 0])
    assert_is(rd.enclose(rd.rational([5]), rd.JensenShannon(1.0)), [1])


def assert_is(enclosure, exact):
    """The bounds hold these fractions, and nothing that is 10^-29 of them away."""
    for (low, high), p in zip(enclosure.bounds, exact, strict=True):
        assert Fraction(low) <= p <= Fraction(high)
        assert Fraction(high) - Fraction(low) <= p / 10**29


def test_terms_that_merge_anchors_and_forbidden_actions():
    """p is proportional to q^w e^{R/b} with w the share of the reverse KL in b."""
    follows = rd.ReverseKL(0.5, anchor=rd.tempered_self(2.0))  # an entropy bonus of 1/4
    cases = [(rd.ReverseKL(0.5) + rd.Entropy(0.25), 0.75, 2), (follows, 0.25, 0)]
    with mp.workdps(60):
        for regularizer, beta, thirds in cases:
            pairs = zip(BANDIT.log_ref, BANDIT.reward, strict=True)
            logs = [mp.mpf(float(x)) * thirds / 3 + mp.mpf(float(r)) / beta for x, r in pairs]
            log_z = mp.log(mp.fsum(mp.exp(x) for x in logs))
            assert all(holds(rd.enclose(BANDIT, regularizer, 40), [x - log_z for x in logs]))
    other = [0.7, 0.1, 0.1, 0.1]
    moved = rd.ForwardKL(0.5, anchor=rd.bandit(BANDIT.reward, other).log_ref)
    same = rd.enclose(rd.bandit(BANDIT.reward, other), rd.ForwardKL(0.5))
    assert rd.enclose(BANDIT, moved).bounds == same.bounds
    forbidden = rd.enclose(rd.bandit([1.0, -np.inf, 0.0]), rd.ForwardKL(0.5))
    assert forbidden.bounds[1] == (0, 0)
    assert np.isneginf(forbidden.log_upper[1])


def test_numbers_are_read_as_target_reads_them():
    """float32 rewards and a coefficient that is cast to float32."""
    single = rd.bandit(np.array([1.0, 0.0], np.float32))
    got = rd.enclose(single, rd.ReverseKL(0.1)).bounds[1][0]
    with mp.workdps(40):
        want = 1 / (1 + mp.exp(1 / mp.mpf(float(np.float32(0.1)))))
    assert abs(mp.mpf(str(got)) / want - 1) < 1e-30
    exact = rd.enclose(rd.bandit([1.0, 0.0]), rd.ReverseKL(1.0), beta="1/10").bounds[1][0]
    with mp.workdps(40):
        assert abs(mp.mpf(str(exact)) * (1 + mp.exp(10)) - 1) < 1e-30


def test_far_out_probabilities_have_digits_too():
    deep = rd.enclose(rd.bandit([0.0, -1e12]), rd.ReverseKL(1e-3))
    low, high = deep.bounds[1]
    with mp.workdps(60):
        assert mp.mpf(str(low)) < mp.exp(mp.mpf(-1e12) / mp.mpf(1e-3)) < mp.mpf(str(high))
    assert low < high
    assert deep.lower[1] == 0 < deep.upper[1] == 5e-324
    beyond = rd.enclose(rd.bandit([0.0, -1e300]), rd.ReverseKL(1e-3), 5)
    assert beyond.bounds[1][0] == 0 < beyond.bounds[1][1] < Decimal("1E-99999999999999999")
    assert beyond.log_bounds[1][1] < Decimal("-1e302")
    assert beyond.width == 1


MEMBERS = {
    "reverse KL": lambda order, beta, log_q: rd.ReverseKL(beta),
    "forward KL": lambda order, beta, log_q: rd.ForwardKL(beta),
    "entropy": lambda order, beta, log_q: rd.Entropy(beta),
    "alpha": lambda order, beta, log_q: rd.AlphaDivergence(order, beta, anchor=log_q),
    "Jensen-Shannon": lambda order, beta, log_q: rd.JensenShannon(beta),
    "total variation": lambda order, beta, log_q: rd.TotalVariation(beta),
}
"""From order, beta and the reference to a regularizer; Tsallis' entropy is of the alpha family."""
COUNT = 150


@pytest.fixture(scope="module")
def hard():
    """Problems, and references that sum to 1 but for their last digits."""
    keys = jax.random.split(jax.random.key(11), COUNT)

    def make(key):
        bandit = rd.testing.hard_bandits(4)(key)
        log_q = rd.logspace.normalize(rd.logspace.normalize(bandit.log_ref))
        return rd.Bandit(bandit.reward, log_q, bandit.label), rd.testing.betas()(key)

    orders = np.resize([-1, 0, 0.5, 1, 1.5, 2, 3], COUNT)
    bandits, betas = jax.jit(jax.vmap(make))(keys)
    return bandits, betas, jnp.asarray(orders)


def enclosed(bandit, regularizer):
    """The enclosure, None where it is refused because the optimum is not unique."""
    try:
        return rd.enclose(bandit, regularizer, 20)
    except ValueError as error:
        if "not unique" in str(error):
            return None
        raise


@pytest.mark.parametrize("name", MEMBERS)
def test_targets_of_hard_problems_lie_in_their_enclosures(name, hard):
    """To 4 ulps of the largest logarithm involved: log q of a likely action may be -700.

    Total variation adds probabilities: its error is absolute.
    """
    make, absolute = MEMBERS[name], name == "total variation"
    target = jax.jit(jax.vmap(lambda b, c, order: rd.target(b, make(order, c, b.log_ref))))(*hard)
    got, log_q = np.asarray(target.log_probs), np.asarray(hard[0].log_ref)
    refused, worst = 0, 0.0
    for i in range(COUNT):
        bandit, beta, order = jax.tree.map(lambda x, i=i: x[i], jax.tree.map(np.asarray, hard))
        enclosure = enclosed(bandit, make(order, beta, bandit.log_ref))
        if enclosure is None:
            refused += 1
            continue
        if absolute:
            p = np.exp(got[i])
            worst = max(worst, np.max(np.maximum(enclosure.lower - p, p - enclosure.upper)) / EPS)
            continue
        low, high = enclosure.log_lower, enclosure.log_upper
        gone = np.isneginf(high)
        assert np.array_equal(gone, np.isneginf(got[i]))
        with np.errstate(invalid="ignore"):
            error = np.where(gone, 0, np.maximum(low - got[i], got[i] - high))
        sizes = [np.abs(x[np.isfinite(x)]).max() for x in (got[i], log_q[i])]
        worst = max(worst, error.max() / EPS / (1 + max(sizes)))
    assert refused <= COUNT // 4
    assert worst <= 4


def test_an_optimum_that_is_not_unique_is_refused_by_name():
    rows = [
        (rd.rational([1, 1, 0]), rd.TotalVariation(0.5), "the best actions [0, 1] tie"),
        (rd.rational([1, 0]), rd.TotalVariation(1.0), "action 1 is exactly beta below the best"),
        (rd.rational([0, 9, 9], [1, 0, 0]), rd.ForwardKL(1.0), "actions [1, 2] off the support"),
        (rd.rational([0, 9, 9], [1, 0, 0]), rd.JensenShannon(1.0), "off the support"),
    ]
    for problem, regularizer, words in rows:
        with pytest.raises(ValueError, match="not unique") as refusal:
            rd.enclose(problem, regularizer)
        assert words in str(refusal.value)
    with pytest.raises(ValueError, match="no optimum is known"):
        rd.enclose(BANDIT, rd.ReverseKL(1.0, anchor=rd.tempered_self(0.5)))


def test_a_root_is_proved_or_nothing_is_returned():
    """cos on a bracket, and a constant that has no root."""
    with balls.precision(200):
        root = balls.falling_root(lambda x: (x.cos(), -x.sin()), balls.ball(1), balls.ball(2))
        assert root.contains(balls.flint().arb.pi() / 2)
        assert root.rad() < balls.ball(F(1, 2**150))
        with pytest.raises(balls.UnresolvedError):
            balls.falling_root(lambda x: (x * 0 + 1, x * 0 - 1), balls.ball(0), balls.ball(1))
        for x in (F(1, 3), F(-7, 11), F(2, 3) * F(1, 2**80)):
            low, high = balls.decimals(balls.ball(x), 12)
            assert Fraction(low) < x < Fraction(high)
            assert Fraction(high) - Fraction(low) < abs(x) / 10**10
        assert balls.is_nothing(balls.log_sum([balls.nothing()]))
