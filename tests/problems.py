"""Hypothesis strategies for problems, and the registry of regularisers that the laws run over."""

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import regdist as rd

SIZES = (1, 5)

# name: (constructor from beta, alpha of the divergence, anchor)
REGULARIZERS = {
    "reverse KL": (rd.ReverseKL, 1.0, "reference"),
    "forward KL": (rd.ForwardKL, 0.0, "reference"),
    "alpha 1": (lambda beta: rd.AlphaDivergence(1.0, beta), 1.0, "reference"),
    "alpha 0.5": (lambda beta: rd.AlphaDivergence(0.5, beta), 0.5, "reference"),
    "alpha 2": (lambda beta: rd.AlphaDivergence(2.0, beta), 2.0, "reference"),
    "alpha -1": (lambda beta: rd.AlphaDivergence(-1.0, beta), -1.0, "reference"),
    "entropy": (rd.Entropy, 1.0, "uniform"),
    "reverse KL + entropy": (lambda b: rd.ReverseKL(b) + rd.Entropy(b / 2), 1.0, "mixed"),
}


@st.composite
def bandits(draw, sizes=SIZES, spread=3.0, depth=8.0, zeros=False, dtype=np.float64):
    """Bandits with rewards in [-spread, spread] and log-odds of the reference up to `depth`.

    Rewards and weights are multiples of 1/64: gaps are either 0 or plainly visible.
    """
    size = draw(st.sampled_from(sizes))

    def table(limit):
        ticks = st.integers(-int(64 * limit), int(64 * limit))
        return np.array(draw(st.lists(ticks, min_size=size, max_size=size))) / 64

    reward, log_q = table(spread), table(depth / 2)
    if zeros and size > 1:
        gone = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
        gone[draw(st.integers(0, size - 1))] = False
        log_q = np.where(gone, -np.inf, log_q)
    log_q = log_q - np.logaddexp.reduce(log_q)
    return rd.bandit(reward.astype(dtype), log_reference=log_q.astype(dtype))


def betas(low=-1.5, high=1.5):
    """Coefficients on a log scale."""
    return st.floats(low, high).map(lambda x: float(10**x))


def laws(size, key):
    """A few random policies of a size, as log-probabilities, some of them nearly on a vertex."""
    random = np.random.default_rng(key)
    logits = random.normal(size=(4, size)) * np.array([0.3, 1, 3, 8])[:, None]
    return [jnp.asarray(z - np.logaddexp.reduce(z)) for z in logits]
