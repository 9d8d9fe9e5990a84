"""Where runs begin when nobody says: the reference, the uniform law, and random ones."""

import numpy as np

from regdist.problems.bandit import Bandit
from regdist.runs.dynamics import TOGETHER, alike


def starts(bandit: Bandit, random_ones: int) -> np.ndarray:
    """Logits to start from: the reference, the uniform law on its support and random ones.

    Beyond `TOGETHER` actions those of equal reward and reference start alike.
    """
    log_q = np.asarray(bandit.log_ref)
    inside = ~np.isneginf(log_q) & ~np.isneginf(np.asarray(bandit.reward))
    own = np.arange(len(log_q))
    kinds = own if len(own) <= TOGETHER else alike(np.asarray(bandit.reward), log_q)
    noise = np.random.default_rng(0).normal(scale=1.5, size=(random_ones, kinds.max() + 1))
    noise = noise[:, kinds]
    rows = [log_q, np.zeros_like(log_q), *noise.astype(log_q.dtype)]
    return np.stack([np.where(inside, row, -np.inf).astype(log_q.dtype) for row in rows])
