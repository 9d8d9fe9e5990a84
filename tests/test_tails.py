import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from regdist import metrics
from tests.strategies import bandits


@given(bandit=bandits(sizes=(5,), zeros=True), level=st.floats(0.01, 1))
def test_quantiles_against_scipy(bandit, level):
    """scipy's inverse of a discrete distribution, away from its own rounding at the steps."""
    p, r = np.exp(bandit.log_ref), np.asarray(bandit.reward)
    values = np.unique(r)
    masses = np.array([p[r == v].sum() for v in values])
    if np.min(np.abs(np.cumsum(masses) - level)) < 1e-9:
        return
    law = scipy.stats.rv_discrete(values=(np.arange(len(values)), masses / masses.sum()))
    assert metrics.quantile(bandit.log_ref, bandit.reward, level) == values[int(law.ppf(level))]


@given(bandit=bandits(sizes=(5,), zeros=True), a=st.floats(0, 0.9), width=st.floats(0.05, 1))
def test_range_value_at_risk_is_the_integral_of_the_quantiles(bandit, a, width):
    b = min(a + width, 1.0)
    log_p, r = bandit.log_ref, bandit.reward
    got = float(metrics.range_value_at_risk(log_p, r, a, b))
    p = np.exp(np.asarray(log_p))
    steps = np.unique(np.clip(np.r_[a, np.cumsum(p[np.argsort(np.asarray(r))]), b], a, b))
    middles = (steps[1:] + steps[:-1]) / 2
    q = [float(metrics.quantile(log_p, r, m)) for m in middles]
    assert np.isclose(got, np.diff(steps) @ q / (b - a), rtol=0, atol=1e-9)


def test_by_hand():
    log_p, r = jnp.log(jnp.array([0.5, 0.3, 0.2, 0.0])), jnp.array([0.0, 1.0, 2.0, -jnp.inf])
    for level, want in ((0.5, 0.0), (0.50001, 1.0), (0.8, 1.0), (1.0, 2.0)):
        assert metrics.quantile(log_p, r, level) == want
    assert np.isclose(metrics.range_value_at_risk(log_p, r), 0.7)
    assert np.isclose(metrics.range_value_at_risk(log_p, r, 0.6, 1.0), (0.2 * 1 + 0.2 * 2) / 0.4)
    for mode in (jax.jacfwd, jax.jacrev):
        assert np.all(
            np.isfinite(mode(lambda x: metrics.range_value_at_risk(x, r, 0.1, 0.7))(log_p))
        )
    small = metrics.range_value_at_risk(log_p.astype(jnp.float32), r.astype(jnp.float32), 0.6, 1.0)
    assert small.dtype == jnp.float32
    assert np.isclose(small, 1.5, rtol=1e-6)
    with pytest.raises(ValueError, match=r"level must be in \(0, 1\]"):
        metrics.quantile(log_p, r, 0.0)
    with pytest.raises(ValueError, match="high must be above low"):
        metrics.range_value_at_risk(log_p, r, 0.5, 0.5)
