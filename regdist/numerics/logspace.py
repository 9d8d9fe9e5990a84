"""Arithmetic on log-probabilities: the only place with exp / log / where tricks.

Every function here is finite, in value and in gradient, wherever the mathematics is: at
probability zero (log-probability -inf), at removable singularities, and where a naive `exp` would
overflow. The safe value goes in *before* the operation that would break. K is the number of
actions; all functions are elementwise unless they say otherwise.
"""

import functools
import math
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Float

P = ParamSpec("P")
T = TypeVar("T")

# Taylor coefficients of log1p(z)/z, expm1(z)/z and (expm1(z) - z)/z^2 at 0. Used for |z| < 0.05,
# 0.5 and 0.5, where the derivatives of the closed forms would cancel; what 15 terms leave out is
# there below 2e-21, 2e-18 and 1e-19, and below 5e-17 in the first derivatives.
_LOG1P = [(-1.0) ** n / (n + 1) for n in range(15)]
_EXPM1 = [1 / math.factorial(n + 1) for n in range(15)]
_EXPM2 = [1 / math.factorial(n + 2) for n in range(15)]


def full_precision(function: Callable[P, T]) -> Callable[P, T]:
    """The function, with all bits of float32 in its matrix products: GPUs would take 10."""

    @functools.wraps(function)
    def precise(*args: P.args, **kwargs: P.kwargs) -> T:
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return precise


def _polynomial(coefficients: list[float], z: Array) -> Array:
    total = jnp.full_like(z, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total * z + c
    return total


def largest_exponent(x: Array) -> float:
    """The largest number whose `exp` is finite in the dtype of `x`, less one.

    Less one, so that an `exp` may still be doubled, or have another as large added to it.
    """
    return math.log(float(jnp.finfo(x.dtype).max)) - 1.0


def normalize(log_weights: Float[Array, " K"]) -> Float[Array, " K"]:
    """Log-probabilities proportional to exp(log_weights): log w - log sum w.

    Args:
        log_weights: any reals or -inf, at least one finite, shape [K].

    Examples:
        >>> normalize(jnp.log(jnp.array([1.0, 3.0])))
        Array([-1.38629436, -0.28768207], dtype=float64)
    """
    return log_weights - jax.nn.logsumexp(log_weights)


def log1mexp(x: Array) -> Array:
    """log(1 - e^x) for x <= 0."""
    none, deep = x == 0, x < -0.7  # near -log 2, where neither form cancels
    safe = jnp.where(none, -1, x)
    far = jnp.log1p(-jnp.exp(jnp.where(deep, safe, -1)))
    return jnp.where(none, -jnp.inf, jnp.where(deep, far, jnp.log(-jnp.expm1(safe))))


def log_sum_exp(x: Array) -> Array:
    """log sum_i e^{x_i}; -inf, with gradient 0, where every x_i is."""
    none = jnp.all(jnp.isneginf(x))
    return jnp.where(none, -jnp.inf, jax.nn.logsumexp(jnp.where(none, 0, x)))


def log_ratio(log_p: Array, log_q: Array) -> Array:
    """log(p/q): -inf where p = 0 (also where both are 0), +inf where only q = 0.

    The gradient is 0 wherever the value is infinite.
    """
    gone = jnp.isneginf(log_p)
    new = jnp.isneginf(log_q) & ~gone
    finite = ~(gone | new)
    ratio = jnp.where(finite, log_p, 0) - jnp.where(finite, log_q, 0)
    return jnp.where(gone, -jnp.inf, jnp.where(new, jnp.inf, ratio))


def times_exp(x: Array, log_w: Array) -> Array:
    """x exp(log_w), and exactly 0 where the weight is 0, whatever x is there."""
    empty = jnp.isneginf(log_w)
    return jnp.where(empty, 0, jnp.where(empty, 0, x) * jnp.exp(log_w))


def expect(log_p: Float[Array, " K"], x: Float[Array, " K"]) -> Float[Array, ""]:
    """sum_i p_i x_i; an action of probability 0 does not count, even at x = -inf."""
    return jnp.sum(times_exp(x, log_p))


def exp_difference(log_a: Array, log_b: Array) -> Array:
    """exp(log_a) - exp(log_b), exact to relative rounding where a is near b."""
    r = log_ratio(log_a, log_b)
    larger = jnp.where(r > 0, log_a, log_b)
    excess = jnp.exp(larger) * jnp.expm1(jnp.where(r > 0, -r, r))
    return jnp.where(r > 0, -excess, excess)


def log1p_ratio(z: Array) -> Array:
    """log(1 + z)/z, equal to 1 at z = 0, with accurate derivatives there; z > -1."""
    small = jnp.abs(z) < 0.05
    away = jnp.where(small, 1, z)
    return jnp.where(small, _polynomial(_LOG1P, jnp.where(small, z, 0)), jnp.log1p(away) / away)


def _expm1_ratio(z: Array) -> Array:
    """(exp(z) - 1)/z, equal to 1 at z = 0; saturates where exp(z) would overflow."""
    small = jnp.abs(z) < 0.5
    away = jnp.where(small, 1, z)
    far = jnp.expm1(jnp.minimum(away, largest_exponent(z))) / away
    return jnp.where(small, _polynomial(_EXPM1, jnp.where(small, z, 0)), far)


def expm1_over(a: Array, r: Array) -> Array:
    """(exp(a r) - 1)/a, equal to r at a = 0; r may be infinite.

    It is the inverse of log(1 + a x)/a, the logarithm of the q-exponential. Finite results too
    large for the dtype saturate near its largest number.
    """
    infinite = jnp.isinf(r)
    finite = jnp.where(infinite, 0, r)
    far_end = jnp.where(a * jnp.sign(r) < 0, -1 / jnp.where(a == 0, 1, a), r)
    return jnp.where(infinite, far_end, finite * _expm1_ratio(a * finite))


def _expm2(z: Array) -> Array:
    """(exp(z) - 1 - z)/z^2, equal to 1/2 at z = 0; saturates like `expm1_over`."""
    small = jnp.abs(z) < 0.5
    away = jnp.where(small, 1, z)
    far = (jnp.expm1(jnp.minimum(away, largest_exponent(z))) - away) / away**2
    return jnp.where(small, _polynomial(_EXPM2, jnp.where(small, z, 0)), far)


def log_q_exponential(x: Array, alpha: Array) -> Array:
    """log e_alpha(x) = log(1 + (alpha - 1) x)_+ / (alpha - 1); the identity at alpha = 1.

    Tsallis' q-exponential with q = 2 - alpha, in logs: -inf where alpha > 1 and the bracket is
    not positive, +inf where alpha < 1 and it is not positive.

    Examples:
        >>> log_q_exponential(jnp.array([0.5]), jnp.array(0.0))   # -log(1 - x)
        Array([0.69314718], dtype=float64)
    """
    a = alpha - 1
    z = a * x
    closed = z <= -1
    value = x * log1p_ratio(jnp.where(closed, 0, z))
    return jnp.where(closed, -jnp.inf * jnp.sign(a), value)


@jax.custom_jvp
def q_shift(alpha: Array, s: Array, gap: Array) -> Array:
    r"""log e_alpha(x - gap) where x is the point with log e_alpha(x) = s.

    If the best action has log-ratio s = log(p/q) to its anchor, an action whose reward is lower by
    `gap` (in units of beta) has log-ratio q_shift(alpha, s, gap), under the alpha divergence. With
    k = 1 - alpha it is

    $$s - \log(1 + k\, \text{gap}\, e^{k s})/k,$$

    which is s - gap at alpha = 1 and has no seam there; nothing cancels, and where e^{k s} would
    overflow the logarithm is taken term by term. Below the support (alpha > 1) it is -inf; past
    the pole (alpha < 1, negative gap) it is +inf.
    """
    return s - _q_drop(alpha, s, gap)


def _q_drop(alpha: Array, s: Array, gap: Array) -> Array:
    """How far q_shift(alpha, s, gap) lies below s, without the subtraction."""
    k = 1 - alpha
    exponent = k * s
    far = exponent > 0.5 * largest_exponent(s)  # the other half is left to the gap, a factor
    y = gap * jnp.exp(jnp.where(far, 0, exponent))
    z = k * y
    closed = z <= -1
    beyond = -jnp.sign(k) * jnp.inf
    safe = jnp.where(closed | (z == 0), 1, z)
    near_drop = jnp.where(closed, beyond, jnp.where(z == 0, y, y * (jnp.log1p(safe) / safe)))
    grows = far & (k * gap > 0)
    log_z = exponent + jnp.log(jnp.where(grows, k * gap, 1))
    far_drop = jnp.where(grows, jnp.logaddexp(0.0, log_z) / jnp.where(grows, k, 1), beyond)
    return jnp.where(far, jnp.where(gap == 0, 0, far_drop), near_drop)


def _q_shift_jvp(primals, tangents):
    alpha, s, gap = primals
    d_alpha, d_s, d_gap = tangents
    k = 1 - alpha
    r = q_shift(alpha, s, gap)
    exact = jax.lax.stop_gradient(_q_drop(alpha, s, gap))
    inside = jnp.isfinite(exact)
    drop = jnp.where(inside, s - jnp.where(inside, r, 0), 0)
    # The value without the subtraction, the derivative (for higher orders) of q_shift itself.
    finite = drop + jax.lax.stop_gradient(jnp.where(inside, exact, 0) - drop)
    cap = largest_exponent(finite)
    slope = jnp.zeros_like(finite)
    if not isinstance(d_s, SymbolicZero):
        slope += jnp.exp(jnp.minimum(-k * finite, cap)) * d_s
    if not isinstance(d_gap, SymbolicZero):
        slope -= jnp.exp(jnp.minimum(k * (s - finite), cap)) * d_gap
    if not isinstance(d_alpha, SymbolicZero):
        by_alpha = s * expm1_over(-k, finite) - finite**2 * _expm2(-k * finite)
        slope += by_alpha * d_alpha
    return r, jnp.where(inside, slope, 0)


q_shift.defjvp(_q_shift_jvp, symbolic_zeros=True)


@jax.custom_jvp
def q_log_difference(alpha: Array, a: Array, b: Array) -> Array:
    """(e^{-k b} - e^{-k a})/k with k = 1 - alpha; a - b at k = 0, and 0 at a = b.

    It is the integral of e^{-k r} from b to a: the difference of two q-logarithms, without
    cancellation and with derivatives that have no seam at k = 0. a and b may be infinite.
    """
    k = 1 - alpha
    finite = jnp.isfinite(a) & jnp.isfinite(b)
    ends = jnp.where(finite, a, 0), jnp.where(finite, b, 0)
    length = ends[0] - ends[1]
    across = jnp.abs(k * length)
    flat = across == 0
    mean = jnp.where(flat, 1, -jnp.expm1(-across) / jnp.where(flat, 1, across))
    steepest = jnp.maximum(-k * ends[0], -k * ends[1])
    inside = length * mean * jnp.exp(jnp.minimum(steepest, largest_exponent(length)))
    ends = jnp.where(k == 0, b, jnp.exp(-k * b)), jnp.where(k == 0, -a, jnp.exp(-k * a))
    edge = jnp.where(k == 0, -ends[1] - ends[0], (ends[0] - ends[1]) / jnp.where(k == 0, 1, k))
    return jnp.where(finite, inside, jnp.where(a == b, 0, edge))


def _q_log_difference_jvp(primals, tangents):
    alpha, a, b = primals
    d_alpha, d_a, d_b = tangents
    k = 1 - alpha
    finite = jnp.isfinite(a) & jnp.isfinite(b)
    cap = largest_exponent(jnp.asarray(a))
    ends = [jnp.where(jnp.isfinite(x), x, 0) for x in (a, b)]
    slope = jnp.zeros(jnp.broadcast_shapes(jnp.shape(alpha), jnp.shape(a), jnp.shape(b)), a.dtype)
    for sign, x, end, d_x in ((1, a, ends[0], d_a), (-1, b, ends[1], d_b)):
        if not isinstance(d_x, SymbolicZero):
            rate = jnp.exp(jnp.minimum(-k * end, cap))
            slope += sign * jnp.where(jnp.isfinite(x), rate * d_x, 0)
    if not isinstance(d_alpha, SymbolicZero):
        # The integral of r e^{-k r}, from the end where e^{-k r} is larger.
        length = ends[0] - ends[1]
        turned = k * length < 0
        base, rate = jnp.where(turned, ends[0], ends[1]), jnp.where(turned, -k, k)
        inner = length**2 * jnp.exp(-rate * length) * _expm2(rate * length)
        moment = base * expm1_over(-rate, length) + jnp.where(turned, -inner, inner)
        moment = moment * jnp.exp(jnp.minimum(-k * base, cap))
        safe = jnp.where(k == 0, 1, k)
        for sign, end in ((1, ends[0]), (-1, ends[1])):
            rest = jnp.exp(jnp.minimum(-k * end, cap)) * (end / safe + 1 / safe**2)
            one_end = jnp.isinf(b if sign > 0 else a) & ~jnp.isinf(a if sign > 0 else b)
            moment = jnp.where(one_end, -sign * rest, moment)
        value = q_log_difference(alpha, a, b)
        slope += jnp.where(finite | jnp.isfinite(value), moment, 0) * d_alpha
    return q_log_difference(alpha, a, b), slope


q_log_difference.defjvp(_q_log_difference_jvp, symbolic_zeros=True)


def log_mean_exp(log_q: Float[Array, " K"], r: Float[Array, " K"]) -> Float[Array, ""]:
    """log sum_i q_i e^{r_i} for a normalized q, to full *relative* accuracy as r tends to 0.

    Where the plain log-sum-exp leaves an error of one ulp of 1, this one leaves an error
    relative to the largest |r|. r = -inf is allowed; r > 0 may be large as long as q e^r is not.
    """
    q = jnp.exp(log_q)
    big = r > 1  # there e^r - 1 does not cancel, and e^r, which may overflow, is not formed alone
    empty = jnp.isneginf(log_q)
    small_term = q * jnp.expm1(jnp.where(big | empty, 0, r))
    big_term = jnp.exp(jnp.where(big & ~empty, log_q + r, -jnp.inf)) - q
    excess = jnp.sum(jnp.where(empty, 0, jnp.where(big, big_term, small_term)))
    near = excess > -0.5  # below, it is 1 + excess that cancels
    plain = jax.nn.logsumexp(jnp.where(empty, -jnp.inf, log_q + jnp.where(empty, 0, r)))
    return jnp.where(near, jnp.log1p(jnp.where(near, excess, 0)), plain)


def exp_divided_difference(x: Array, y: Array) -> tuple[Array, Array]:
    """The divided difference exp[0, x, y] as (m, g), meaning e^m g with g in (0, 1/2].

    exp[0, x, y] = (E(x) - E(y))/(x - y) with E(z) = (e^z - 1)/z; it is symmetric, positive and
    smooth, 1/2 at x = y = 0. The two differences that build it are taken between sorted points
    (no cancellation); where all three points lie within 1 of each other a Taylor series in
    complete homogeneous polynomials replaces them.
    """
    # Sorted by `where`, not by min and max, whose derivatives at ties are averages.
    high, low = jnp.where(x < y, y, x), jnp.where(x < y, x, y)
    top = jnp.where(high < 0, 0, high)
    bottom = jnp.where(low > 0, 0, low)
    middle = jnp.where(high < 0, high, jnp.where(low > 0, low, 0))
    a, b = top - middle, top - bottom  # 0 <= a <= b
    close = b < 1
    a_near, b_near = jnp.where(close, a, 0), jnp.where(close, b, 0)
    h, power, series = jnp.ones_like(b), jnp.ones_like(b), jnp.full_like(b, 0.5)
    for n in range(1, 19):  # the next term is below 20/21! = 4e-19
        power = -a_near * power
        h = power - b_near * h
        series = series + h / float(math.factorial(n + 2))
    a_far, b_far = jnp.where(close, 0, a), jnp.where(close, 1, b)
    gap = b_far - a_far
    direct = (_expm1_ratio(-a_far) - jnp.exp(-a_far) * _expm1_ratio(-gap)) / b_far
    return top, jnp.where(close, series, direct)
