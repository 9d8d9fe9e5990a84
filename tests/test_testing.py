import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regdist as rd
from regdist.testing.generators import REWARDS

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
