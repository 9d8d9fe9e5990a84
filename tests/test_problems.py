import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regdist as rd
from regdist.problems import game24


def solvable(hand, target=24):
    """An independent solver: merge any two of the values left, in every way."""
    if len(hand) == 1:
        return hand[0] == target
    for i, j in itertools.permutations(range(len(hand)), 2):
        rest = [x for k, x in enumerate(hand) if k not in (i, j)]
        a, b = hand[i], hand[j]
        for value in (a + b, a - b, a * b, *([a / b] if b else [])):
            if solvable([*rest, value], target):
                return True
    return False


@pytest.mark.parametrize(
    "hand",
    [
        (3, 3, 8, 8),
        (1, 5, 5, 5),
        (4, 7, 8, 8),
        (1, 3, 4, 6),
        (5, 5, 5, 5),
        (2, 3, 5, 12),
        (1, 1, 1, 1),
        (1, 1, 1, 13),
        (6, 6, 6, 6),
        (1, 6, 11, 13),
        (7, 7, 7, 7),
        (13, 13, 13, 13),
        (24, 1, 1, 1),
        (100, 4, 25, 24),
        (2, 4, 10, 10),
        (3, 3, 7, 7),
    ],
)
def test_it_finds_a_solution_for_every_hand_that_has_one(hand):
    task = rd.problems.game_of_24(hand)
    found = [name for name, r in zip(task.outcomes, task.bandit.reward, strict=True) if r == 1]
    assert bool(found) == solvable([Fraction(x) for x in hand])
    used = sorted(map(str, hand))
    for name in found:
        terms = name.replace("(", " ").replace(")", " ").split()
        assert sorted(t for t in terms if t.isdigit()) == used
        exact = " ".join(
            f"Fraction({t})" if t.isdigit() else t
            for t in name.replace("(", "( ").replace(")", " )").split()
        )
        assert eval(exact, {"Fraction": Fraction}) == 24  # the printed text itself is worth 24


@pytest.mark.parametrize(
    ("hand", "count"),
    [
        ((2, 4, 6, 8), 7680),
        ((4, 7, 8, 8), 3840),
        ((3, 3, 8, 8), 1920),
        ((1, 5, 5, 5), 1280),
        ((1, 1, 1, 1), 320),
    ],
)
def test_every_distinct_expression_once(hand, count):
    """4! orders x 4^3 operators x 5 shapes, divided by the orders of equal cards."""
    task = rd.problems.game_of_24(hand)
    assert task.bandit.num_actions == count
    assert len(set(task.outcomes)) == count
    assert abs(float(jnp.exp(jax.nn.logsumexp(task.bandit.log_ref))) - 1) < 1e-14


def test_the_reference_is_the_generators_law():
    """Exact fractions that sum to 1, and by hand: the first and the deepest expression."""
    found = list(game24._postfix((1, 2, 3, 4), ()))
    assert sum(p for _, p in found) == 1
    law = {e.text: p for e, p in found}
    # 1 2 + 3 + 4 +: 1/4 1/3, then 2 cards or 4 operators: 1/6 (+), 1/2 (3), 1/5 (+), 1 (4), 1/4 (+)
    assert law["(((1 + 2) + 3) + 4)"] == Fraction(1, 4 * 3 * 6 * 2 * 5 * 1 * 4)
    # 1 2 3 4 + + +: 1/4 1/3 1/6 (push 3) 1/5 (push 4) then 1/4 each
    assert law["(1 + (2 + (3 + 4)))"] == Fraction(1, 4 * 3 * 6 * 5 * 4 * 4 * 4)
    twins = {e.text: p for e, p in game24._postfix((1, 1, 1, 1), ())}
    assert twins["(((1 + 1) + 1) + 1)"] == 24 * law["(((1 + 2) + 3) + 4)"]


def test_labels_join_what_commutes_and_reassociates():
    forms = {e.text: e.form for e, _ in game24._postfix((2, 3, 4, 6), ())}
    same = [
        ("(((2 + 3) + 4) + 6)", "(6 + ((4 + 3) + 2))"),
        ("(((2 - 3) + 4) - 6)", "((4 - (3 - 2)) - 6)"),
        ("(((2 * 3) * 4) / 6)", "((4 / 6) * (3 * 2))"),
        ("((2 / (3 / 4)) * 6)", "(((4 * 2) / 3) * 6)"),
    ]
    for a, b in same:
        assert forms[a] == forms[b]
    different = [
        ("((2 + 3) * (4 + 6))", "(((2 + 3) * 4) + 6)"),
        ("((2 - 3) * (4 - 6))", "((3 - 2) * (6 - 4))"),
        ("((2 * 3) * (4 / 6))", "((2 * 3) / (4 * 6))"),
    ]
    for a, b in different:
        assert forms[a] != forms[b]


def test_other_goals_and_division_by_zero():
    task = rd.problems.game_of_24([1, 1, 1, 1], target=4)
    assert (
        float(task.bandit.reward.sum()) == 6
    )  # five shapes of 1 + 1 + 1 + 1, and (1 + 1) * (1 + 1)
    zero = [n for n in task.outcomes if n == "1 / ((1 - 1) * 1)"]
    assert len(zero) == 1
    assert task.bandit.reward[task.outcomes.index(zero[0])] == 0


@pytest.mark.parametrize(
    "hand", [[1, 2, 3], [0, 1, 2, 3], [1.5, 2, 3, 4], [True, 2, 3, 4], [-1, 2, 3, 4], []]
)
def test_bad_hands_are_refused(hand):
    with pytest.raises(Exception, match=r"four positive integers|Type-check"):
        rd.problems.game_of_24(hand)


def test_two_modes_and_landscape():
    task = rd.problems.two_modes((0.6, 0.02), (0.8, 1.0), width=3, background=10)
    assert np.isclose(jnp.exp(task.bandit.log_ref[3:6]).sum(), 0.02)
    assert len(task.outcomes) == task.bandit.num_actions == 16
    cold = rd.target(task.bandit, rd.ReverseKL(0.01)).probs
    assert cold[3:6].sum() > 0.999
    for name, shape in {"uniform": 1.0, "exponential": np.exp(4 * 0.5), "power": 51.0**4}.items():
        task = rd.problems.landscape(101, reference=name)
        q = jnp.exp(task.bandit.log_ref)
        assert np.isclose(q[0] / q[50], shape, rtol=1e-12)
        assert task.bandit.reward.argmax() in (20, 70)
        assert task.bandit.label[10] == 0
        assert task.bandit.label[90] == 1
    with pytest.raises(ValueError, match="'uniform', 'exponential', 'power'"):
        rd.problems.landscape(reference="gauss")
    with pytest.raises(ValueError, match="sum below 1"):
        rd.problems.two_modes((0.9, 0.2))
    with pytest.raises(ValueError, match="widths above 0"):
        rd.problems.landscape(bumps=[(0.5, 0.0, 1.0)])


def test_bandit_checks_its_input():
    cases = [
        ({"reward": [1.0, np.nan]}, "got NaN at index 1"),
        ({"reward": [np.inf, 1.0]}, "got \\+inf at index 0"),
        ({"reward": []}, "K >= 1"),
        ({"reward": np.ones((2, 2))}, "jax.vmap"),
        ({"reward": [1.0, 0.0], "reference": [0.5, 0.6]}, "sums to 1.1"),
        ({"reward": [1.0, 0.0], "reference": [1.5, -0.5]}, "smallest entry of -0.5"),
        ({"reward": [1.0, 0.0], "reference": [1.0]}, "shape of reward"),
        ({"reward": [1.0, 0.0], "log_reference": [0.0, 0.0]}, "sums to 2"),
        ({"reward": [1.0, 0.0], "log_reference": [np.nan, 0.0]}, "NaN at index 0"),
        ({"reward": [1.0, 0.0], "reference": [1, 0], "log_reference": [0, 0]}, "not both"),
        ({"reward": [1.0, 0.0], "label": [0, 5]}, "numpy.unique"),
        ({"reward": [1.0, 0.0], "label": [0.0, 1.0]}, "numpy.unique"),
        ({"reward": [-np.inf, 1.0], "reference": [1.0, 0.0]}, "finite for at least one"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            rd.bandit(**arguments)
    assert rd.bandit([1, 0]).reward.dtype == jnp.float64
    assert rd.bandit(np.array([1, 0], np.float32)).log_ref.dtype == jnp.float32
    assert rd.bandit([True, False]).reward.tolist() == [1.0, 0.0]
    assert jax.vmap(rd.bandit)(jnp.ones((3, 4))).reward.shape == (3, 4)


def test_a_known_reference_beside_traced_rewards_is_checked_under_jit():
    log_q, off = jnp.log(jnp.array([0.2, 0.8])), jnp.log(jnp.array([1.0, 0.8]))
    made = jax.jit(lambda r: rd.bandit(r, log_reference=log_q).log_ref)(jnp.ones(2))
    assert np.allclose(made, log_q, rtol=0, atol=1e-15)
    with pytest.raises(ValueError, match=r"sums to 1\.8"):
        jax.jit(lambda r: rd.bandit(r, log_reference=off).log_ref)(jnp.ones(2))
