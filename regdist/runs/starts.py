"""Where runs begin when nobody says: the reference, the uniform law, and random ones."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from regdist.policies.policy import Params, Policy
from regdist.problems.tree import Tree
from regdist.runs.dynamics import TOGETHER, alike


def starts(bandit: Any, random_ones: int) -> np.ndarray:
    """Logits to start from: the reference, the uniform law on its support and random ones.

    Beyond `TOGETHER` actions those of equal reward and reference start alike. Of a tree they are
    those of its steps, shape [N, S, V].
    """
    log_q = np.asarray(bandit.log_ref)
    if isinstance(bandit, Tree):
        inside = ~np.isneginf(log_q) & np.asarray(bandit.possible)
        noise = np.random.default_rng(0).normal(scale=1.5, size=(random_ones, *log_q.shape))
        rows = np.stack([log_q, np.zeros_like(log_q), *noise.astype(log_q.dtype)])
        return np.where(inside, rows, -np.inf).astype(log_q.dtype)
    inside = ~np.isneginf(log_q) & ~np.isneginf(np.asarray(bandit.reward))
    own = np.arange(len(log_q))
    kinds = own if len(own) <= TOGETHER else alike(np.asarray(bandit.reward), log_q)
    noise = np.random.default_rng(0).normal(scale=1.5, size=(random_ones, kinds.max() + 1))
    noise = noise[:, kinds]
    rows = [log_q, np.zeros_like(log_q), *noise.astype(log_q.dtype)]
    return np.stack([np.where(inside, row, -np.inf).astype(log_q.dtype) for row in rows])


def starts_of(policy: Policy, problem: Any, random_ones: int) -> list[Params]:
    """Parameters to start from: those of the reference, and random ones about them."""
    origin = policy.start(problem.log_ref)
    flat, back = ravel_pytree(origin)
    noise = np.random.default_rng(0).normal(size=(random_ones, len(flat)))
    return [origin, *(back(flat + jnp.asarray(x, flat.dtype)) for x in noise)]


def unstacked(starts: Any) -> list[Params]:
    """Parameters that are stacked along their first axis, one by one."""
    count = len(jax.tree.leaves(starts)[0])
    return [jax.tree.map(lambda x, i=i: x[i], starts) for i in range(count)]
