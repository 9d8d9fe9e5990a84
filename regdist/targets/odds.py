"""Log-odds between actions or groups of actions, their parts, and where they change sign."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from regdist.numerics.logspace import expm1_over, log_q_exponential
from regdist.numerics.records import (
    Number,
    Table,
    TypeAliasType,
    check_actions,
    check_log_probs,
    described,
    is_concrete,
)
from regdist.numerics.roots import implicit_root, increasing_root
from regdist.problems.bandit import Bandit, takes_bandit
from regdist.regularizers.divergence import KL, AlphaFamily
from regdist.regularizers.regularizer import Regularizer, check_regularizer
from regdist.regularizers.term import Reduced
from regdist.targets.solve import target
from regdist.targets.transform import with_reward

Actions = TypeAliasType("Actions", Table)
"""One action's index, a list of indices, or a boolean mask of shape [K]: a group."""

# Beyond a factor of 10^6 from the spread of the rewards a target is close to a limit: the best
# actions below, the anchors above. Sixteen points a decade, the ends included.
_DECADES = 6.0
_GRID = 193


def log_odds(log_probs: Float[Array, " K"], i: Number, j: Number) -> Array:
    """log(p_i / p_j) in nats; NaN where both are 0, as then no odds exist.

    Raises:
        ValueError: i or j is not the index of an action.

    Examples:
        >>> print(log_odds(jnp.log(jnp.array([0.2, 0.8])), 1, 0))
        1.38629...
    """
    log_probs = check_log_probs("log_probs", log_probs, "rd.log_odds(log_probs, i, j)")
    for name, action in (("i", i), ("j", j)):
        check_actions(name, action, log_probs.shape[-1])
    return log_probs[jnp.asarray(i)] - log_probs[jnp.asarray(j)]


class OddsParts(NamedTuple):
    """A log-odds of a target, in nats: total = reference + reward."""

    total: Array
    reference: Array
    reward: Array


@takes_bandit
def odds_parts(bandit: Bandit, regularizer: Regularizer, i: Number, j: Number) -> OddsParts:
    """Which part of log(p_i/p_j) under the target is the anchor's, and which the rewards'.

    The reference part is the log-odds of the target with all rewards equal: those of the anchor,
    log(q_i/q_j) for one divergence to the reference and b/(a + b) times that with an
    entropy bonus a beside reverse KL. The reward part is the rest: (R_i - R_j)/beta under reverse
    KL (arXiv 2510.20817), log((Lambda - R_j)/(Lambda - R_i)) under forward KL.

    Examples:
        >>> b = rd.bandit([1.0, 0.0], [0.2, 0.8])
        >>> parts = odds_parts(b, rd.ReverseKL(0.5), 0, 1)
        >>> print(parts.total.round(4), parts.reference.round(4), parts.reward.round(4))
        0.6137 -1.3863 2.0
    """
    check_regularizer(regularizer)
    total = log_odds(target(bandit, regularizer).log_probs, i, j)
    flat = jnp.where(jnp.isneginf(bandit.reward), -jnp.inf, 0)
    reference = log_odds(target(with_reward(bandit, flat), regularizer).log_probs, i, j)
    return OddsParts(total, reference, total - reference)


@takes_bandit
def critical_beta(
    bandit: Bandit,
    i: Actions,
    j: Actions,
    regularizer: Callable[[Any], Regularizer],
) -> Float[Array, ""]:
    r"""The beta at which i and j, two actions or two groups, are equally likely under the target.

    Two actions, one alpha divergence: in closed form. Reverse KL: (R_j - R_i)/(log q_i - log q_j).
    Forward KL: with Lambda = (q_i R_j - q_j R_i)/(q_i - q_j), beta = 1/sum q/(Lambda - R), which
    exists when Lambda > max R (arXiv 2510.20817). The family in between: with k = 1 - alpha and
    Y = k (R_j - R_i)/expm1(k (log q_i - log q_j)),

    $$\log\beta = \log Y - k \log \sum_m q_m \bigl(1 + k (R_j - R_m)/Y\bigr)^{-1/k}$$

    Below it the one with the larger reward leads, above it the one with the larger reference.

    Anything else: the largest beta at which the two masses cross, by a root search that starts
    from a scan of twelve decades of beta around the spread of the rewards; what is said of every
    beta is said of those. Groups may cross more than once, see `critical_betas`; two crossings
    within a sixteenth of a decade of each other can be missed. The group of the larger reward is
    that of the larger best reward; where those are equal, the one that leads at the least beta.

    Args:
        bandit: rewards and reference.
        i: an action's index, or a group: indices or a boolean mask, shape [K].
        j: the other; the order does not matter.
        regularizer: from a coefficient to a regularizer: `rd.ReverseKL`, `rd.ForwardKL`,
            or e.g. `lambda beta: rd.JensenShannon(beta) + rd.Entropy(0.1)`.

    Returns:
        beta. Where they never cross: inf if the one of the larger reward leads at every beta; 0 if
        it leads at none, as under forward KL where a third reward is larger still; NaN if all
        rewards of both are equal, as then no beta decides, or if neither can have any mass.

    Raises:
        ValueError: an index names no action, a mask has another shape, or the groups overlap.

    Examples:
        >>> b = rd.bandit([1.0, 0.0, 0.5], [0.1, 0.6, 0.3])
        >>> print(critical_beta(b, 0, 1, rd.ReverseKL))  # 1 / log 6
        0.558110...
        >>> print(critical_beta(b, 0, [1, 2], rd.ReverseKL).round(4))  # ahead of all the rest
        0.3389...
        >>> print(critical_beta(b, 2, 1, rd.ForwardKL))  # action 0 takes what beta frees
        0.0
    """
    return _crossing(bandit, i, j, regularizer, _search)


def critical_betas(
    bandit: Bandit,
    i: Actions,
    j: Actions,
    regularizer: Callable[[Any], Regularizer],
) -> Float[np.ndarray, " n"]:
    """All betas at which i and j are equally likely that `critical_beta` can find, ascending.

    On known values, outside jit. Shape [n]; n is 0 where they never cross.

    Examples:
        Two bad forms of a good answer: its best form leads at small beta, its mass at large.

        >>> b = rd.bandit([1.0, 0.0, 0.9], [0.01, 0.64, 0.35])
        >>> print(rd.critical_betas(b, [0, 1], 2, rd.ReverseKL).round(3))
        [0.028 1.418]
    """
    found = _crossing(bandit, i, j, regularizer, _search_all)
    found = np.atleast_1d(np.asarray(found))
    return found[np.isfinite(found) & (found > 0)]


def _crossing(
    bandit: Bandit,
    i: Actions,
    j: Actions,
    regularizer: Callable[[Any], Regularizer],
    searched: Callable[..., Any],
) -> Any:
    """In closed form where there is one, else by a search."""
    if isinstance(regularizer, Regularizer) or not callable(regularizer):
        raise TypeError(
            "regularizer must be a constructor from beta, such as rd.ReverseKL or "
            f"lambda beta: rd.ReverseKL(beta) + rd.Entropy(0.1); got {described(regularizer)}"
        )
    unit = regularizer(1.0)
    check_regularizer(unit)
    parts = unit.reduce(bandit.log_ref)
    first, second = _group("i", i, bandit), _group("j", j, bandit)
    if is_concrete(first, second) and np.any(np.asarray(first & second)):
        raise ValueError(f"i and j must have no action in common; got i={i!r}, j={j!r}")
    single = all(jnp.ndim(jnp.asarray(x)) == 0 for x in (i, j))

    def search(bandit: Bandit) -> Any:
        return searched(bandit, first, second, regularizer)

    if not (single and len(unit.terms) == 1 and isinstance(parts[0].divergence, KL | AlphaFamily)):
        return search(bandit)

    def closed_form(bandit: Bandit) -> Array:
        (part,) = regularizer(1.0).reduce(bandit.log_ref)
        return _closed_form(bandit, jnp.asarray(i), jnp.asarray(j), part)

    if isinstance(parts[0].divergence, KL):
        return closed_form(bandit)
    # Mass may enter an action off the support: then the formula, which divides by q, has no say.
    held = jnp.isfinite(parts[0].log_anchor[jnp.asarray(i)] + parts[0].log_anchor[jnp.asarray(j)])
    if is_concrete(held):
        return closed_form(bandit) if held else search(bandit)
    return jax.lax.cond(held, closed_form, search, bandit)


def _closed_form(bandit: Bandit, i: Array, j: Array, part: Reduced) -> Array:
    divergence, _, log_q, _ = part
    reward = bandit.reward
    alpha = divergence.alpha if isinstance(divergence, AlphaFamily) else 1.0
    alpha = jnp.asarray(alpha, reward.dtype)
    k = 1 - alpha
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
    decided = (reward[i] != reward[j]) & (support[i] | support[j])
    behind = ~support[high] | (support[low] & (edge > 0))
    never = jnp.where(behind, 0.0, jnp.inf)
    return jnp.where(
        exists,
        jnp.exp(jnp.log(y) - k * log_mass),
        jnp.where(decided, never, jnp.nan).astype(reward.dtype),
    )


def _lead(
    log_beta: Array,
    bandit: Bandit,
    first: Array,
    second: Array,
    regularizer: Callable[[Any], Regularizer],
) -> Array:
    """Log-odds of the first group against the second; 0 if neither has any mass."""
    log_p = target(bandit, regularizer(jnp.exp(log_beta))).log_probs
    one, two = (jax.nn.logsumexp(jnp.where(g, log_p, -jnp.inf)) for g in (first, second))
    none = jnp.isneginf(one) & jnp.isneginf(two)
    return jnp.where(none, 0, jnp.where(none, 0, one) - jnp.where(none, 0, two))


def _scan(
    still: Bandit, first: Array, second: Array, regularizer: Callable[[Any], Regularizer]
) -> tuple[Array, Array]:
    """Logarithms of betas, and the sign of the lead of the first group at each."""
    known = jnp.where(jnp.isneginf(still.reward), jnp.max(still.reward), still.reward)
    spread = jnp.max(known) - jnp.min(known)
    middle = jnp.log(jnp.where(spread > 0, spread, 1))
    decade = jnp.log(jnp.asarray(10.0, middle.dtype))
    steps = jnp.linspace(-_DECADES, _DECADES, _GRID, dtype=middle.dtype)
    grid = middle + decade * steps
    return grid, jnp.sign(jax.vmap(lambda x: _lead(x, still, first, second, regularizer))(grid))


def _search(
    bandit: Bandit, first: Array, second: Array, regularizer: Callable[[Any], Regularizer]
) -> Array:
    def lead(log_beta: Array, bandit: Bandit) -> Array:
        return _lead(log_beta, bandit, first, second, regularizer)

    still = jax.lax.stop_gradient(bandit)
    grid, sign = _scan(still, first, second, regularizer)
    crosses = sign[:-1] * sign[1:] < 0
    at = _GRID - 2 - jnp.argmax(crosses[::-1])
    upward = sign[at + 1]
    root, _ = increasing_root(
        lambda x: upward * lead(x, still), grid[at], grid[at + 1], ended=~jnp.any(crosses)
    )
    log_beta = implicit_root(lambda x: lead(x, bandit), root)
    bests = [jnp.max(jnp.where(g, still.reward, -jnp.inf)) for g in (first, second)]
    least = jnp.min(jnp.where(first | second, still.reward, jnp.inf))
    larger = (bests[0] > bests[1]).astype(sign.dtype) - (bests[0] < bests[1]).astype(sign.dtype)
    led = sign[jnp.argmax(sign != 0)]  # all signs but 0 are this one, where nothing crosses
    larger = jnp.where(larger == 0, led, larger)
    decided = (led != 0) & (least < jnp.maximum(bests[0], bests[1]))
    never = jnp.where(decided, jnp.where(led == larger, jnp.inf, 0), jnp.nan)
    return jnp.where(jnp.any(crosses), jnp.exp(log_beta), never.astype(log_beta.dtype))


def _search_all(
    bandit: Bandit, first: Array, second: Array, regularizer: Callable[[Any], Regularizer]
) -> np.ndarray:
    grid, sign = (np.asarray(x) for x in _scan(bandit, first, second, regularizer))
    found = []
    for at in np.flatnonzero(sign[:-1] * sign[1:] < 0):
        upward = sign[at + 1]
        root, _ = increasing_root(
            lambda x, upward=upward: upward * _lead(x, bandit, first, second, regularizer),
            jnp.asarray(grid[at]),
            jnp.asarray(grid[at + 1]),
        )
        found.append(math.exp(float(root)))
    return np.array(found)


def _group(name: str, actions: Actions, bandit: Bandit) -> Array:
    check_actions(name, actions, bandit.num_actions)
    index = jnp.asarray(actions)
    if index.dtype == bool:
        if index.shape != bandit.reward.shape:
            raise ValueError(
                f"a mask of actions must have shape {bandit.reward.shape}; got {index.shape}"
            )
        return index
    return jnp.zeros(bandit.num_actions, bool).at[index].set(True)
