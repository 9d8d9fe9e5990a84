"""Log-odds between two actions, and the coefficient at which two actions tie."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from regdist.divergence import KL, Alpha
from regdist.logspace import expm1_over, log_q_exponential
from regdist.problem import Bandit
from regdist.regularizer import Regularizer


def log_odds(log_probs: Float[Array, " K"], i: ArrayLike, j: ArrayLike) -> Array:
    """log(p_i / p_j) in nats; NaN where both are 0, as then no odds exist.

    >>> print(log_odds(jnp.log(jnp.array([0.2, 0.8])), 1, 0))
    1.38629...
    """
    return log_probs[jnp.asarray(i)] - log_probs[jnp.asarray(j)]


def critical_beta(
    bandit: Bandit,
    i: int | Int[Array, ""],
    j: int | Int[Array, ""],
    regularizer: Callable[[float], Regularizer],
) -> Float[Array, ""]:
    """The beta at which actions i and j are equally likely under the target.

    Below it the one with the larger reward is ahead, above it the one with the larger reference.
    It equates two actions, not the masses of two groups of actions.

    Reverse KL: (R_j - R_i)/(log q_i - log q_j). Forward KL: with
    Lambda = (q_i R_j - q_j R_i)/(q_i - q_j), beta = 1/sum q/(Lambda - R), which exists when
    Lambda > max R (arXiv 2510.20817). The alpha family in between: with k = 1 - alpha and
    Y = k (R_j - R_i)/expm1(k (log q_i - log q_j)),

        log beta = log Y - k log sum_m q_m (1 + k (R_j - R_m)/Y)^{-1/k}.

    Args:
        bandit: rewards and reference.
        i: one action, with positive reference.
        j: the other; the order does not matter.
        regularizer: a constructor of one term from its coefficient: `rd.ReverseKL`,
            `rd.ForwardKL`, or e.g. `lambda beta: rd.AlphaDivergence(0.5, beta)`.

    Returns:
        beta, or NaN when no positive beta makes them tie with positive probability: the action
        with the larger reward also has the larger reference, or the rewards are equal.

    Raises:
        ValueError: the constructor returns a sum of terms or an entropy bonus.

    >>> b = rd.bandit([1.0, 0.0, 0.5], [0.1, 0.6, 0.3])
    >>> print(critical_beta(b, 0, 1, rd.ReverseKL))  # 1 / log 6
    0.558110...
    """
    made = regularizer(1.0)
    if len(made.terms) != 1 or made.terms[0].is_entropy:
        raise ValueError(
            f"critical_beta takes the constructor of one divergence, like rd.ReverseKL; "
            f"it made {made!r}. An entropy bonus does not move the critical beta of reverse KL"
        )
    divergence, _, log_q, _ = made.reduce(bandit.log_ref)
    reward = bandit.reward
    if isinstance(divergence, KL):
        alpha = jnp.ones((), reward.dtype)
    elif isinstance(divergence, Alpha):
        alpha = divergence.alpha
    else:
        raise ValueError(f"no critical beta is known for {divergence!r}")
    k = 1 - alpha
    i, j = jnp.asarray(i), jnp.asarray(j)
    low = jnp.where(reward[i] <= reward[j], i, j)
    high = jnp.where(reward[i] <= reward[j], j, i)
    edge = log_q[low] - log_q[high]
    lead = reward[high] - reward[low]
    exists = (edge > 0) & (lead > 0) & jnp.isfinite(edge) & jnp.isfinite(lead)
    y = jnp.where(exists, lead, 1) / expm1_over(k, jnp.where(exists, edge, 1))
    support = ~jnp.isneginf(log_q) & ~jnp.isneginf(reward)
    ahead = jnp.where(support, reward - reward[high], 0) / y
    r = log_q_exponential(ahead, alpha)
    exists &= ~jnp.any(support & jnp.isposinf(r))
    log_mass = jax.nn.logsumexp(
        jnp.where(support & jnp.isfinite(r), log_q + jnp.where(jnp.isfinite(r), r, 0), -jnp.inf)
    )
    return jnp.where(exists, jnp.exp(jnp.log(y) - k * log_mass), jnp.nan)
