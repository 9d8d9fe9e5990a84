"""Where runs begin when nobody says: the reference, the uniform law, and random ones."""

import numpy as np

from regdist.problems.bandit import Bandit


def starts(bandit: Bandit, random_ones: int) -> np.ndarray:
    """Logits to start from: the reference, the uniform law on its support and random ones."""
    log_q = np.asarray(bandit.log_ref)
    inside = ~np.isneginf(log_q) & ~np.isneginf(np.asarray(bandit.reward))
    noise = np.random.default_rng(0).normal(scale=1.5, size=(random_ones, len(log_q)))
    rows = [log_q, np.zeros_like(log_q), *noise.astype(log_q.dtype)]
    return np.stack([np.where(inside, row, -np.inf).astype(log_q.dtype) for row in rows])
