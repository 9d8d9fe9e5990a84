"""The cure for a collapse onto few answers, beside what does not cure it, at matched reward."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from regdist import metrics
from regdist.problems import Task
from regdist.problems.bandit import Bandit
from regdist.regularizers.regularizer import Entropy, ReverseKL
from regdist.targets.beta_for import betas_where
from regdist.targets.solve import Target, target
from regdist.targets.transform import mara

SHARE = 0.9
"""How much of the way from the reference's expected reward to the largest all of them go."""


def _augmented(over: str, tau: float) -> Callable[[Bandit, Array], Target]:
    def law(bandit: Bandit, beta: Array) -> Target:
        return target(mara(bandit, ReverseKL(beta), tau, over=over), ReverseKL(beta))

    return law


def cure(task: Task, correct: np.ndarray) -> list[dict[str, Any]]:
    """Reverse KL, an entropy bonus, and MARA over actions and over answers, a row each.

    Each at the beta at which its expected reward is the same: `SHARE` of the way from that of the
    reference to the largest. Empty where there is one correct answer, or none beside the correct.

    Args:
        task: the problem.
        correct: which actions count as solutions, shape [K].
    """
    bandit, reward = task.bandit, np.asarray(task.bandit.reward)
    possible = np.isfinite(np.asarray(bandit.log_ref)) & np.isfinite(reward)
    solutions = len(np.unique(np.asarray(bandit.label)[correct & possible]))
    start = float(metrics.expected_reward(bandit.log_ref, bandit.reward))
    want = start + SHARE * (float(reward[possible].max()) - start)
    if solutions < 2 or want <= start:
        return []
    tau = float(reward[correct].min())
    laws: dict[str, Callable[[Bandit, Array], Target]] = {
        "reverse KL": lambda b, beta: target(b, ReverseKL(beta)),
        "entropy": lambda b, beta: target(b, Entropy(beta)),
        "MARA over actions": _augmented("actions", tau),
        "MARA over answers": _augmented("answers", tau),
    }
    return [
        {"method": name, "solutions": solutions, **_row(task, correct, law, want)}
        for name, law in laws.items()
    ]


def _row(
    task: Task, correct: np.ndarray, law: Callable[[Bandit, Array], Target], want: float
) -> dict[str, Any]:
    bandit = task.bandit

    @jax.jit
    def values(log_betas: Array) -> Array:
        return jax.lax.map(
            lambda x: metrics.expected_reward(law(bandit, jnp.exp(x)).log_probs, bandit.reward),
            log_betas,
        )

    found = betas_where(bandit, values, want, "expected reward")
    if not len(found.betas):
        return {"beta": None, "reason": found.reason}
    beta = float(found.betas[0])
    log_p = law(bandit, jnp.asarray(beta, bandit.reward.dtype)).log_probs
    keep = jnp.asarray(correct)
    return {
        "beta": beta,
        "expected_reward": float(metrics.expected_reward(log_p, bandit.reward)),
        "success": float(metrics.success(log_p, keep)),
        "effective_actions": float(metrics.hill_number(log_p)),
        "effective_solutions": float(metrics.effective_labels(log_p, bandit.label, keep)),
        "kl_to_reference": float(metrics.kl(log_p, bandit.log_ref)),
    }
