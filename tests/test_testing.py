import math
import subprocess
import sys
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

import regdist as rd
from regdist.testing import balls, strategies
from regdist.testing.generators import REWARDS
from regdist.testing.reach import reaches_outside

KEY = jax.random.key(7)


def draw(key):
    return jax.random.uniform(key)


@pytest.fixture
def margins():
    """Margin 0.9 - u of problems 0 to 999, worst first."""
    u = jax.vmap(lambda i: draw(jax.random.fold_in(KEY, i)))(np.arange(1000, dtype=np.uint32))
    order = np.argsort(-u, stable=True)
    return np.asarray(0.9 - u)[order], order


@pytest.mark.parametrize("batch", [64, 333, 4096])
def test_the_worst_are_found_whatever_the_batch(batch, margins):
    made = rd.testing.falsify(lambda u: 0.9 - u, draw, 1000, key=KEY, top=5, batch=batch)
    assert not made.holds
    assert made.violations == (margins[0] < 0).sum()
    assert [c.index for c in made.candidates] == list(margins[1][:5])
    assert [c.margin for c in made.candidates] == list(margins[0][:5])
    assert made.worst == margins[0][0]
    for c in made.candidates:
        assert c.problem == draw(jax.random.fold_in(KEY, c.index))
        assert np.isclose(0.9 - c.problem, c.margin, rtol=1e-14)
    assert f"fails on {made.violations} of 1,000" in str(made)


def test_what_holds_says_how_narrowly(margins):
    made = rd.testing.falsify(lambda u: 0.9 - u, draw, 1000, key=KEY, tolerance=0.2, batch=300)
    assert made.holds
    assert made.violations == 0
    assert len(made.candidates) == 10
    assert made.worst == margins[0][0]
    assert "holds on all 1,000" in str(made)
    assert made.rate > 0


def test_nan_is_a_failure_and_the_worst():
    margin = lambda u: jnp.where(u > 0.99, jnp.nan, jnp.where(u < 0.01, -jnp.inf, u))  # noqa: E731
    made = rd.testing.falsify(margin, draw, 1000, key=KEY, top=40, batch=128)
    found = [c.margin for c in made.candidates]
    broken = int(np.isnan(found).sum())
    assert broken > 0
    assert np.isnan(found[:broken]).all()
    assert np.isneginf(found[broken])
    assert np.isnan(made.worst)
    assert made.violations == broken + int(np.isneginf(found).sum())


def test_ties_go_to_the_lowest_index():
    made = rd.testing.falsify(lambda u: jnp.zeros(()), draw, 100, key=KEY, top=4, batch=16)
    assert [c.index for c in made.candidates] == [0, 1, 2, 3]
    made = rd.testing.falsify(lambda u: u < 0.5, draw, 100, key=KEY, top=100, batch=16)
    assert {c.margin for c in made.candidates} == {1.0, -1.0}
    indices = [c.index for c in made.candidates]
    assert sorted(indices) == list(range(100))
    assert indices[: made.violations] == sorted(indices[: made.violations])


def test_several_generators_are_several_arguments(tmp_path):
    problems = (draw, rd.testing.betas(1, 2))
    made = rd.testing.falsify(lambda u, b: b - u, problems, 50, key=KEY, out=tmp_path)
    assert made.holds
    u, b = made.candidates[0].problem
    own = jax.random.fold_in(KEY, made.candidates[0].index)
    assert np.isclose(b, rd.testing.betas(1, 2)(jax.random.fold_in(own, 1)), rtol=1e-14)
    assert np.isclose(b - u, made.worst)
    again = rd.testing.falsify(lambda u, b: b - u, problems, 50, key=KEY, out=tmp_path)
    assert again.worst == made.worst
    assert np.isnan(again.rate)


def test_hard_bandits_are_hard_and_legal():
    keys = jax.random.split(KEY, 4000)
    bandits = jax.jit(jax.vmap(rd.testing.hard_bandits(4)))(keys)
    log_q, reward = np.asarray(bandits.log_ref), np.asarray(bandits.reward)
    assert np.allclose(np.exp(log_q).sum(1), 1, atol=1e-12)
    assert np.isfinite(reward).all()
    assert log_q[np.isfinite(log_q)].min() < -600
    assert np.isneginf(log_q).any()
    sizes = np.abs(reward).max(1)
    assert sizes.max() > 1e9
    assert (np.sort(reward, 1)[:, 1:] == np.sort(reward, 1)[:, :-1]).any(1).mean() > 0.2


@pytest.mark.parametrize("rewards", REWARDS)
@pytest.mark.parametrize("concentration", [1, 0.05])
def test_bandits_are_what_the_constructor_accepts(rewards, concentration):
    made = rd.testing.bandits(
        5, rewards=rewards, spread=3, concentration=concentration, depth=20, zeros=0.3
    )(KEY)
    kept = rd.bandit(made.reward, log_reference=made.log_ref)
    assert np.allclose(kept.log_ref, made.log_ref, atol=1e-12)


def test_reverse_kl_keeps_odds_on_hard_bandits():
    def odds_kept(bandit, beta):
        tied = rd.Bandit(bandit.reward.at[1].set(bandit.reward[0]), bandit.log_ref, bandit.label)
        law = rd.target(tied, rd.ReverseKL(beta))
        change = rd.log_odds(law.log_probs, 0, 1) - rd.log_odds(tied.log_ref, 0, 1)
        finite = jnp.isfinite(tied.log_ref[0]) & jnp.isfinite(tied.log_ref[1])
        scale = 1 + jnp.max(jnp.abs(law.log_probs[:2]), where=finite, initial=0)
        return jnp.where(finite, -jnp.abs(jnp.where(finite, change, 0)) / scale, 0)

    problems = (rd.testing.hard_bandits(4), rd.testing.betas())
    made = rd.testing.falsify(odds_kept, problems, 4096, key=KEY, tolerance=1e-14)
    assert made.holds, made


GAUSSIAN = (rd.testing.bandits(5, rewards="gaussian", depth=3), rd.testing.betas(0.1, 10))


def poor(bandit, beta):
    """The claim that the reference earns at most the mean of the best and beta less than that."""
    return jnp.mean(bandit.reward) + beta / 2 - jnp.exp(bandit.log_ref) @ bandit.reward


def poor_proof(problem, beta):
    """The same margin over balls."""
    mean = sum(problem.reward, Fraction(0)) / problem.num_actions
    law = balls.log_reference(problem)
    return balls.number(mean + beta / 2) - balls.expected_reward(law, problem.reward)


@pytest.fixture(scope="module")
def hunted():
    return rd.testing.falsify(poor, GAUSSIAN, 2000, key=KEY, proof=poor_proof, batch=500)


def pasted(call):
    """What the text of a problem makes."""
    made = {"rd": rd, "jnp": jnp}
    exec(call, made)
    return made


def test_the_worst_problem_is_shrunk_to_one_that_can_be_pasted(hunted):
    found = hunted.smallest
    made = pasted(found.call)
    assert made["bandit"].num_actions == 2
    assert float(poor(made["bandit"], made["beta"])) == found.margin <= -1e-3
    assert np.array_equal(made["bandit"].log_ref, found.problem[0].log_ref)
    assert made["beta"] == found.problem[1] >= 0.1
    assert len(found.call) < 80
    assert hunted.candidates[0].problem[0].num_actions == 5


def test_a_proof_over_balls_holds_the_margin_in_fractions(hunted):
    found = hunted.smallest
    assert found.proved
    rows = found.call.split("rd.bandit(")[1].split(")")[0]
    row, reference = (part.strip("[] ").split(",") for part in rows.split("], ["))
    reward, q = ([Fraction(x.strip()) for x in part] for part in (row, reference))
    beta = Fraction(found.call.split("beta = ")[1])
    margin = sum(reward) / len(q) + beta / 2 - sum(x * y for x, y in zip(reward, q, strict=True))
    low, high = map(Fraction, found.bounds)
    assert low <= margin <= high < 0
    assert f"proved: margin in [{found.bounds[0]}, {found.bounds[1]}]" in str(hunted)


def test_what_is_not_proved_says_why():
    one = balls.number
    proofs = {
        lambda u: one(1): "is no violation: it is in [1.0",
        lambda u: 1.0: "proof must return a ball; it returned 1.0",
        lambda u: 1 / 0: "proof raised ZeroDivisionError",
        lambda u: one(u).sin() ** 2 + one(u).cos() ** 2 - 1: "4096 bits do not tell the sign",
    }
    for proof, words in proofs.items():
        made = rd.testing.falsify(lambda u: 0.4 - u, draw, 50, key=KEY, proof=proof)
        assert not made.smallest.proved
        assert words in made.smallest.note
        assert f", not proved: {made.smallest.note}" in str(made)
    assert rd.testing.falsify(lambda u: 0.4 - u, draw, 50, key=KEY, shrink=False).smallest is None


def test_a_margin_in_floats_says_how_far_rounding_moves_it():
    """The last digit of u moves sin(1e8 u) by 1e8 of it, and u - 2 by one."""
    plain = rd.testing.falsify(lambda u: u - 2, draw, 50, key=KEY).smallest
    rough = rd.testing.falsify(lambda u: jnp.sin(1e8 * u) - 2, draw, 50, key=KEY).smallest
    assert 1e-16 < plain.error < 1e-14
    assert 1e-9 < rough.error < 1e-5
    assert f"refuted in float64, margin {plain.margin:.3g}, error about" in str(plain)


def test_an_action_that_the_predicate_names_is_not_left_out():
    """At 3 actions jax would read the last one for the fourth."""
    made = rd.testing.falsify(
        lambda bandit: 1 - bandit.reward[3], rd.testing.bandits(5, spread=2), 300, key=KEY
    )
    assert made.smallest.problem.num_actions == 4
    assert pasted(made.smallest.call)["bandit"].reward[3] > 1
    inside = jax.jit(lambda x: x.at[2].set(0.0)[jnp.array([0, 2])])
    assert not reaches_outside(inside, jnp.ones(3))
    assert reaches_outside(inside, jnp.ones(2))
    assert reaches_outside(lambda x: x[jnp.array([0, 2])], jnp.ones(2))
    assert reaches_outside(lambda x: x[-3], jnp.ones(2))


def test_numbers_arrays_and_tuples_are_shrunk_within_their_ranges():
    def problems(key):
        u = jax.random.uniform(key, (3,), minval=2.0, maxval=5.0)
        count = jax.random.randint(key, (), 3, 9)
        return (u, (count, rd.log_softmax(u)))

    def small(problem):
        u, (count, law) = problem
        return 7.5 - jnp.sum(u) - count.astype(float) + 0 * law[0]

    made = rd.testing.falsify(small, problems, 200, key=KEY)
    found = made.smallest
    u, (count, law) = found.problem
    assert count.dtype == int
    assert 3 <= count <= 8
    assert np.all(np.asarray(u) == np.round(u))
    assert np.all((u >= 2) & (u <= 5))
    assert float(small(found.problem)) == found.margin <= -1e-3
    assert np.array_equal(law, made.candidates[0].problem[1][1])
    index = made.candidates[0].index
    text = f"problems(jax.random.fold_in(key, {index}))[1][1]"
    assert found.note == f"{text} is left as it is"
    assert found.call.endswith(f", ({int(count)}, {text}))")


def test_other_problems_stay_and_nan_stays_nan():
    made = rd.testing.falsify(lambda x: x["u"] - 1, lambda k: {"u": draw(k)}, 50, key=KEY)
    assert (
        made.smallest.call == f"x = problems(jax.random.fold_in(key, {made.candidates[0].index}))"
    )
    assert made.smallest.problem == made.candidates[0].problem
    broken = rd.testing.falsify(lambda u: jnp.where(u > 0.4, jnp.nan, -u), draw, 50, key=KEY)
    assert math.isnan(broken.smallest.margin)
    assert broken.smallest.call == "u = 1/2"
    no = rd.testing.falsify(lambda u: u < 0.2, draw, 50, key=KEY)
    assert no.smallest.margin == -1
    assert Fraction(no.smallest.call.removeprefix("u = ")).denominator <= 4


def test_metrics_over_balls_are_those_of_floats():
    problem = rd.rational([1, 0, "1/2"], ["1/4", "3/4", 0])
    with balls.precision(200):
        law, q = balls.target(problem, rd.ReverseKL(0.5)), balls.log_reference(problem)
        got = [
            balls.entropy(law),
            balls.effective_number(law),
            balls.kl(law, q),
            balls.total_variation(law, q),
            balls.log_odds(law, 0, 1),
            balls.expected_reward(law, problem.reward),
        ]
        values = [float(x) for x in got]
        with pytest.raises(ValueError, match="kl is infinite"):
            balls.kl(balls.target(problem, rd.Entropy(1.0)), q)
        with pytest.raises(ValueError, match="has probability 0"):
            balls.log_odds(q, 0, 2)
    w = np.array([np.exp(2) / 4, 3 / 4])
    p = w / w.sum()
    entropy = -p @ np.log(p)
    want = [
        entropy,
        np.exp(entropy),
        p @ np.log(p / [0.25, 0.75]),
        abs(p[0] - 0.25),
        np.log(p[0] / p[1]),
        p[0],
    ]
    assert np.allclose(values, want, rtol=1e-13)


@given(
    bandit=strategies.bandits((1, 5), zeros=True),
    log_p=strategies.policies(5),
    regularizer=strategies.regularizers(),
    method=strategies.methods(),
)
def test_strategies_draw_what_the_library_takes(bandit, log_p, regularizer, method):
    assert bandit.num_actions in (1, 5)
    assert abs(np.exp(np.asarray(bandit.log_ref)).sum() - 1) < 1e-12
    assert np.isfinite(np.asarray(log_p)).all()
    assert abs(np.exp(np.asarray(log_p)).sum() - 1) < 1e-12
    assert isinstance(regularizer, rd.Regularizer)
    assert isinstance(method, rd.Method)


def test_without_a_package_the_extra_is_named():
    program = """if True:
        import sys
        sys.modules.update(flint=None, hypothesis=None)
        import jax, regdist as rd
        calls = [
            lambda: rd.testing.strategies,
            lambda: rd.enclose(rd.bandit([1.0, 0.0]), rd.ReverseKL(1.0)),
            lambda: rd.testing.falsify(abs, abs, 9, key=jax.random.key(0), proof=abs),
        ]
        for call in calls:
            try:
                call()
            except ImportError as error:
                print(str(error).split("pip install ")[1])
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    words = [f'"regdist[{x}]"' for x in ("testing", "enclosures", "enclosures")]
    assert done.stdout.split() == words, done.stderr


def test_wrong_calls_say_what_to_do():
    for bad, says in ((lambda u: jnp.ones(3), "jnp.min"), (lambda u: jnp.ones((), int), "dtype")):
        with pytest.raises(TypeError, match=says):
            rd.testing.falsify(bad, draw, 10, key=KEY)
    with pytest.raises(ValueError, match="a boolean has no margin"):
        rd.testing.falsify(lambda u: u > 0, draw, 10, key=KEY, tolerance=0.1)
    with pytest.raises(ValueError, match="num must be a positive"):
        rd.testing.falsify(lambda u: u, draw, 0, key=KEY)
    with pytest.raises(ValueError, match="tolerance must be"):
        rd.testing.falsify(lambda u: u, draw, 1, key=KEY, tolerance=-1)
    with pytest.raises(ValueError, match="must be one of 'uniform'"):
        rd.testing.bandits(3, rewards="normal")
    with pytest.raises(ValueError, match="zeros in"):
        rd.testing.bandits(3, zeros=1)
    with pytest.raises(ValueError, match="num_actions"):
        rd.testing.hard_bandits(0)
    with pytest.raises(ValueError, match="0 < low < high"):
        rd.testing.betas(2, 1)
