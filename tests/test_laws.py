import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given
from hypothesis import strategies as st

import regdist as rd
from tests.strategies import bandits, laws

LAW = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1, 0.0]))


def test_tempering_by_hand():
    p = np.array([0.4, 0.3, 0.2, 0.1, 0.0])
    for t in (0.25, 1.0, 3.0):
        want = np.where(p > 0, p ** (1 / t), 0)
        assert np.allclose(np.exp(rd.laws.temper(LAW, t)), want / want.sum(), rtol=1e-14)


@given(bandit=bandits(sizes=(5,), zeros=True), mass=st.floats(0.01, 1))
def test_nucleus_is_the_smallest_set_that_holds_the_mass(bandit, mass):
    """Against all subsets: none smaller holds the mass; ties with the last one are kept."""
    p = np.exp(bandit.log_ref)
    kept = np.asarray(rd.laws.nucleus(bandit.log_ref, mass)) > -np.inf
    subsets = [np.array(s, bool) for s in np.ndindex(*(2,) * 5)]
    needed = min(s.sum() for s in subsets if p[s].sum() >= mass - 1e-14)
    floor = np.sort(p)[::-1][needed - 1]
    assert np.array_equal(kept, (p >= floor) & (p > 0))
    assert np.allclose(
        np.exp(rd.laws.nucleus(bandit.log_ref, mass)), np.where(kept, p, 0) / p[kept].sum()
    )


def test_filters_by_hand():
    assert np.allclose(np.exp(rd.laws.nucleus(LAW, 0.7)), [4 / 7, 3 / 7, 0, 0, 0])
    assert np.allclose(np.exp(rd.laws.nucleus(LAW, 0.71)), [4 / 9, 3 / 9, 2 / 9, 0, 0])
    assert np.allclose(np.exp(rd.laws.min_p(LAW, 0.5)), [4 / 9, 3 / 9, 2 / 9, 0, 0])
    assert np.allclose(np.exp(rd.laws.min_p(LAW, 1.0)), [1, 0, 0, 0, 0])
    assert np.allclose(rd.laws.nucleus(LAW, 1.0), LAW)
    even = jnp.full(4, -np.log(4.0))
    assert np.allclose(rd.laws.nucleus(even, 0.3), even)  # all tie
    assert np.all(np.isneginf(rd.laws.restrict(LAW, -jnp.inf == LAW)))


@pytest.mark.parametrize("weights", [None, [0.2, 0.5, 0.3], [0.0, 1.0, 3.0]])
def test_means_of_teachers_are_the_projections(weights):
    """sum w KL(t || p) is least at the mixture, sum w KL(p || t) at the geometric mean."""
    teachers = jnp.stack(laws(4, 3)[:3])
    w = np.ones(3) / 3 if weights is None else np.array(weights) / np.sum(weights)

    def loss(z, forward):
        p = rd.log_softmax(z)
        kls = [rd.metrics.kl(t, p) if forward else rd.metrics.kl(p, t) for t in teachers]
        return sum(a * b for a, b in zip(w, kls, strict=True))

    for forward, mean in ((True, rd.laws.mixture), (False, rd.laws.geometric_mean)):
        both = jax.jit(jax.value_and_grad(lambda z, f=forward: loss(z, f)))
        found = scipy.optimize.minimize(
            lambda z, both=both: tuple(np.asarray(x) for x in both(jnp.asarray(z))),
            np.zeros(4),
            jac=True,
            options={"gtol": 1e-11},
        )
        got = mean(teachers, weights)
        assert np.allclose(np.exp(got), jax.nn.softmax(jnp.asarray(found.x)), atol=1e-7)
        assert float(loss(got, forward)) <= found.fun + 1e-13


def test_means_at_zero():
    teachers = jnp.log(jnp.array([[0.5, 0.5, 0.0], [0.5, 0.0, 0.5]]))
    assert np.allclose(np.exp(rd.laws.mixture(teachers)), [0.5, 0.25, 0.25])
    assert np.allclose(np.exp(rd.laws.geometric_mean(teachers)), [1, 0, 0])
    assert np.allclose(np.exp(rd.laws.geometric_mean(teachers, [1.0, 0.0])), [0.5, 0.5, 0])
    for f in (rd.laws.mixture, rd.laws.geometric_mean):
        slope = jax.jacrev(lambda x, f=f: jnp.exp(f(x)))(teachers)
        assert np.all(np.isfinite(slope))


def test_wrong_calls():
    for bad in (0.0, 1.5, np.nan):
        with pytest.raises(ValueError, match=r"mass must be in \(0, 1\]"):
            rd.laws.nucleus(LAW, bad)
        with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\]"):
            rd.laws.min_p(LAW, bad)
    with pytest.raises(ValueError, match="temperature must be a finite number above 0"):
        rd.laws.temper(LAW, 0)
    with pytest.raises(ValueError, match="weights must have shape"):
        rd.laws.mixture(jnp.stack([LAW, LAW]), [1.0])
    with pytest.raises(ValueError, match="not all 0"):
        rd.laws.mixture(jnp.stack([LAW, LAW]), [0.0, 0.0])
