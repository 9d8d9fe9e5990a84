"""Drawn actions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regdist.methods.groups import draw


@pytest.mark.parametrize("size", [1, 2, 3, 10, 100, 101, 257, 5000])
def test_draws_are_the_inverse_of_the_cumulative_sum(size):
    """The same uniforms through a plain search; an action may differ at a boundary alone."""
    random = np.random.default_rng(size)
    p = random.dirichlet(np.full(size, 0.5)) * (random.random(size) < 0.7)
    p[size // 2] += 0.1
    p /= p.sum()
    key = jax.random.key(size)
    drawn = np.asarray(draw(key, jnp.asarray(p), (50_000,)))
    upto = np.cumsum(p)
    uniform = np.asarray(jax.random.uniform(key, (50_000,), float)) * upto[-1]
    want = np.searchsorted(upto, uniform, side="right")
    near = np.min(np.abs(uniform[:, None] - upto), axis=1) < 1e-14
    assert np.all((drawn == want) | near)
    assert np.all(p[drawn] > 0)


def test_rounding_never_draws_a_weight_of_zero(monkeypatch):
    """At a uniform of 1, beyond any that is drawn, it is the last action with weight."""
    monkeypatch.setattr(jax.random, "uniform", lambda _, shape, dtype: jnp.ones(shape, dtype))
    for size in (2, 10, 300):
        weight = jnp.where(jnp.arange(size) < (size + 1) // 2, 0.1, 0.0)
        assert np.all(draw(jax.random.key(0), weight, (3,)) == (size + 1) // 2 - 1)
