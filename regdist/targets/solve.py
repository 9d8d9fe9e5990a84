"""The exact optimum of a regularized objective. K is the number of actions, q the anchor."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from regdist.numerics.logspace import expect, log_ratio
from regdist.numerics.records import Law, check_log_probs, record
from regdist.numerics.roots import accepted
from regdist.problems.bandit import Bandit, check_bandit
from regdist.regularizers.divergence import KL, TotalVariation
from regdist.regularizers.regularizer import Regularizer, check_regularizer
from regdist.regularizers.term import Reduced
from regdist.targets.solvers.mixed import mixed
from regdist.targets.solvers.polyhedral import polyhedral
from regdist.targets.solvers.single import single
from regdist.targets.solvers.tilt import tilt


@record
class Target(Law):
    """The exact optimum of J(p) = E_p R - regularizer(p); made by `target()`.

    Attributes:
        log_probs: log p, normalized, in nats, shape [K]; -inf where p is exactly 0.
        value: J at the optimum, in units of reward.
        multiplier: L with R_i - beta f'(p_i/q_i) = L wherever p_i > 0, under f'(1) = 0; between
            min R and max R for one term. Reverse KL: beta log sum q e^{R/beta}. The Lambda of the
            forward-KL literature is L + beta. For a sum, R_i less the sum of the terms' slopes,
            reverse-KL and entropy terms counting as the one term that they merge into.
        residual: the KKT residual of `log_probs` as returned, dimensionless: the larger of
            |sum p - 1| and the worst relative violation of stationarity.
        unique: whether it is the only optimum. False where tied actions may share mass in any
            way: total variation, and tied best actions off the support.
        converged: whether the root search ended with a residual below eps^0.55, which is 2e-9 in
            float64 and 2e-4 in float32.
    """

    log_probs: Float[Array, "*batch K"]
    value: Float[Array, "*batch"]
    multiplier: Float[Array, "*batch"]
    residual: Float[Array, "*batch"]
    unique: Bool[Array, "*batch"]
    converged: Bool[Array, "*batch"]


def target(bandit: Bandit, regularizer: Regularizer) -> Target:
    r"""The distribution p that maximizes E_p R - regularizer(p) over the simplex.

    $$\max_p \; \mathbb{E}_p R - \Omega(p) \quad \text{where } p_i \ge 0, \; \sum_i p_i = 1$$

    Reverse KL: p proportional to q e^{R/beta}. Forward KL: p = beta q/(Lambda - R). Alpha
    divergence: p = q e_alpha((R - L)/beta) with the q-exponential e_alpha. Entropy: p proportional
    to e^{R/alpha}. Sums of reverse-KL and entropy terms: reverse KL to the geometric mean of the
    anchors. Jensen-Shannon: p = q e^{2x}/(2 - e^{2x}), x = (R - L)/beta. Total variation: q, less
    what is more than beta below the best reward, which goes to the best. Any other sum: each p_i
    from a scalar inverse, the multiplier from an outer root. (arXiv 2205.11275, 2510.20817,
    2302.08215.)

    Where q_i = 0, reverse KL and alpha >= 1 give p_i = 0. For alpha < 1 (forward KL among them)
    and Jensen-Shannon the best action off the support takes the mass that the support cannot
    place, when its reward is high enough; several tied ones share it evenly (any split is
    optimal: `unique` is False).

    Args:
        bandit: rewards and reference, K actions.
        regularizer: Omega, any regularizer or sum.

    Returns:
        A `Target`. Works under jit, vmap and grad; derivatives are exact (implicit function
        theorem), in both modes, with respect to rewards, reference, anchors, alpha and beta. At a
        kink (an action that enters or leaves the support, or a corner of total variation) they
        are those of the side without the action, or on which p stays at the anchor.

    One sum may be missed: terms whose f' is bounded above (forward KL, Jensen-Shannon) beside total
    variation to an anchor that holds actions which all those terms' anchors exclude. Then
    `converged` is False. So it is, with NaN, where a `tempered_self` with T < 1 outweighs the rest:
    no optimum is known.

    Raises:
        TypeError: an argument of another kind, such as a coefficient or a constructor.
        ValueError: coefficients are not scalars, or the anchor of another size.

    Examples:
        >>> bandit = rd.bandit([1.0, 0.0], [0.1, 0.9])
        >>> print(target(bandit, rd.ReverseKL(0.5)).probs)
        [0.45085306 0.54914694]
        >>> betas = jnp.array([0.1, 1.0, 10.0])
        >>> jax.vmap(lambda beta: target(bandit, rd.ForwardKL(beta)))(betas).probs
        Array([[0.91097722, 0.08902278],
               [0.31622777, 0.68377223],
               [0.10977223, 0.89022777]], dtype=float64)
    """
    check_bandit(bandit)
    check_regularizer(regularizer)
    return _target(bandit, regularizer)


@jax.jit
def _target(bandit: Bandit, regularizer: Regularizer) -> Target:
    parts = regularizer.reduce(bandit.log_ref)
    reward = bandit.reward
    if all(isinstance(part.divergence, TotalVariation) for part in parts):
        best = polyhedral(reward, parts)
    elif len(parts) == 1 and isinstance(parts[0].divergence, KL):
        best = tilt(reward, parts[0])
    elif len(parts) == 1:
        best = single(reward, parts[0])
    else:
        best = mixed(reward, parts)
    value, bounded = reward[best.pivot] - expect(best.log_p, best.gap), True
    for part in parts:
        spread = part.divergence.value(best.log_p, part.log_anchor)
        bounded &= jnp.isfinite(spread)  # not so where an action of alpha <= 0 is forbidden
        value -= part.beta * jnp.where(jnp.isfinite(spread), spread, 0) - part.offset
    if regularizer.follows_policy():
        value = _objective(best.log_p, bandit, regularizer)
    residual = _kkt_residual(parts, reward, best.log_p, best.gap, best.level)
    return Target(
        log_probs=best.log_p,
        value=jnp.where(bounded, value, -jnp.inf),
        multiplier=reward[best.pivot] - best.level,
        residual=residual,
        unique=best.unique,
        converged=best.ended & accepted(residual),
    )


def objective(
    log_probs: Float[Array, " K"], bandit: Bandit, regularizer: Regularizer
) -> Float[Array, ""]:
    r"""J(p) = E_p R - regularizer(p), in units of reward; -inf is a legal value.

    $$J(p) = \sum_i p_i R_i - \Omega(p)$$

    Args:
        log_probs: log p, normalized, in nats, shape [K]; -inf allowed.
        bandit: rewards R and reference.
        regularizer: Omega, any regularizer or sum.

    For reverse KL, J(p) = value - beta KL(p || target) at every p (arXiv 2205.11275).

    Examples:
        >>> b = rd.bandit([1.0, 0.0], [0.1, 0.9])
        >>> print(objective(b.log_ref, b, rd.ReverseKL(0.5)))  # at the reference the penalty is 0
        0.1000...
    """
    check_bandit(bandit)
    check_regularizer(regularizer)
    where = "rd.objective(log_probs, bandit, regularizer)"
    log_probs = check_log_probs("log_probs", log_probs, where, bandit.num_actions)
    return _objective(log_probs, bandit, regularizer)


@jax.jit
def _objective(
    log_probs: Float[Array, " K"], bandit: Bandit, regularizer: Regularizer
) -> Float[Array, ""]:
    return expect(log_probs, bandit.reward) - regularizer.value(log_probs, bandit.log_ref)


def _kkt_residual(
    parts: list[Reduced], reward: Array, log_p: Array, gap: Array, level: Array
) -> Array:
    """max(|sum p - 1|, worst relative violation of sum_t beta_t f_t'(p_i/q_ti) = level - gap_i).

    Where p = 0, and at a corner of total variation, the marginal cost is an interval.
    """
    mass = jnp.abs(jnp.sum(jnp.exp(log_p)) - 1)
    allowed, empty = ~jnp.isneginf(reward), jnp.isneginf(log_p)
    low, high, size = jnp.zeros_like(gap), jnp.zeros_like(gap), jnp.abs(level) + jnp.abs(gap)
    barred = jnp.zeros_like(allowed)
    for divergence, beta, log_q, _ in parts:
        never = empty & jnp.isneginf(log_q)
        r = jnp.where(never, jnp.inf, log_ratio(log_p, log_q))
        if isinstance(divergence, TotalVariation):
            # r is a difference of logarithms, each rounded: 4 ulps of their size are no distance.
            rounding = 4 * jnp.finfo(r.dtype).eps * (1 + jnp.where(empty, 0, jnp.abs(log_p)))
            corner = jnp.abs(r) <= rounding
            half = jnp.full_like(r, beta / 2)
            low += jnp.where(corner, -half, half * jnp.sign(r))
            high += jnp.where(corner, half, half * jnp.sign(r))
            size += half
        else:
            slope = beta * divergence.slope(r)
            barred |= never & jnp.isposinf(slope)
            slope = jnp.where(barred, 0, slope)
            low, high = low + slope, high + slope
            size += beta + jnp.where(jnp.isfinite(slope), jnp.abs(slope), 0)
    wanted = level - gap
    above = jnp.where(empty, 0, jnp.maximum(low - wanted, 0))
    violation = jnp.maximum(above, jnp.maximum(wanted - high, 0)) / size
    return jnp.maximum(mass, jnp.max(jnp.where(allowed & ~barred, violation, 0)))
