"""The cure for a collapse onto few answers, beside what does not cure it, at matched reward."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from regdist import metrics
from regdist.numerics.records import Law
from regdist.problems import Task
from regdist.problems.bandit import Bandit
from regdist.regularizers.regularizer import Entropy, Regularizer, ReverseKL
from regdist.targets.inverse import beta_for
from regdist.targets.solve import Target, target
from regdist.targets.transform import mara

SHARE = 0.9
"""How much of the way from the reference's expected reward to the largest all of them go."""


Family = Callable[[Any], Regularizer | Law]


def _flat(bandit: Bandit, over: str, threshold: float) -> Family:
    def law(beta: Any) -> Target:
        return target(mara(bandit, ReverseKL(beta), threshold, over=over), ReverseKL(beta))

    return law


def cure(
    task: Task, correct: np.ndarray, done: Callable[[], None] = lambda: None
) -> list[dict[str, Any]]:
    """Reverse KL, an entropy bonus, and MARA over actions and over answers, a row each.

    Each at the beta at which its expected reward is the same: `SHARE` of the way from that of the
    reference to the largest. Empty where there is one correct answer, or none beside the correct.

    Args:
        task: the problem.
        correct: which actions count as solutions, shape [K].
        done: called as each row is.
    """
    bandit, reward = task.bandit, np.asarray(task.bandit.reward)
    log_q = np.asarray(bandit.log_ref)
    possible = np.isfinite(log_q) & np.isfinite(reward)
    solutions = len(np.unique(np.asarray(bandit.label)[correct & possible]))
    weight = np.exp(log_q[possible])  # forbidden actions: no law with a reward has the reference's
    start = float(np.sum(weight * reward[possible]) / np.sum(weight))
    want = start + SHARE * (float(reward[possible].max()) - start)
    if solutions < 2 or want <= start:
        return []
    threshold = float(reward[correct & possible].min())
    families: dict[str, Family] = {
        "reverse KL": ReverseKL,
        "entropy": Entropy,
        "MARA over actions": _flat(bandit, "actions", threshold),
        "MARA over answers": _flat(bandit, "answers", threshold),
    }
    rows = []
    for name, family in families.items():
        rows.append({"method": name, "solutions": solutions, **_row(bandit, correct, family, want)})
        done()
    return rows


def _row(bandit: Bandit, correct: np.ndarray, family: Family, want: float) -> dict[str, Any]:
    """The target at the wanted expected reward; a reason where there is none."""
    found = beta_for(bandit, family, expected_reward=want)
    if not len(found.betas):
        return {"wanted": want, "beta": None, "reason": found.reason}
    made = family(float(found.betas[-1]))
    log_p = (target(bandit, made) if isinstance(made, Regularizer) else made).log_probs
    keep = jnp.asarray(correct)
    return {
        "wanted": want,
        "beta": float(found.betas[-1]),
        "expected_reward": float(metrics.expected_reward(log_p, bandit.reward)),
        "success": float(metrics.success(log_p, keep)),
        "effective_actions": float(metrics.hill_number(log_p)),
        "effective_solutions": float(metrics.effective_labels(log_p, bandit.label, keep)),
        "kl_to_reference": float(metrics.kl(log_p, bandit.log_ref)),
    }
