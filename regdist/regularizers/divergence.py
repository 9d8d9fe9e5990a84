"""f-divergences as small records: D_f(p || q) = sum_i q_i f(p_i / q_i).

f is convex with f(1) = f'(1) = 0, so every term is non-negative. A record states f, its derivative
and the logarithm of the derivative's inverse, all as functions of the log-ratio r = log(p/q),
where nothing overflows and probability zero is r = -inf. K is the number of actions.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from regdist.numerics.logspace import (
    exp_difference,
    exp_divided_difference,
    expm1_over,
    largest_exponent,
    log_q_exponential,
    log_ratio,
    q_log_difference,
    q_shift,
)
from regdist.numerics.records import check_kind, record


class Divergence:
    r"""What every f-divergence shares.

    $$D_f(p \,\|\, q) = \sum_i q_i f(p_i/q_i), \qquad f(1) = f'(1) = 0$$

    A member is a record with three methods: `generator`, `slope` and `log_inverse`. The rest
    follows from them; a member may override what it knows in a form that does not cancel. Its
    numbers are fields, hence data:

    Examples:
        >>> @rd.record
        ... class LeCam(rd.Divergence):  # sum (p - q)^2 / (p + q), halved
        ...     def generator(self, r):
        ...         return jnp.tanh(r / 2) * jnp.expm1(r) / 2
        ...     def slope(self, r):
        ...         return 1 / 2 - 2 / (1 + jnp.exp(r)) ** 2
        ...     def log_inverse(self, x):
        ...         return jnp.log(jnp.sqrt(4 / (1 - 2 * x)) - 1)
        >>> bandit = rd.bandit([1.0, 0.0, 0.5], [0.1, 0.6, 0.3])
        >>> target = rd.target(bandit, rd.FDivergence(LeCam(), beta=0.7))
        >>> bool(target.converged)
        True
    """

    def generator(self, r: Array) -> Array:
        """f(e^r), convex in e^r with f(1) = f'(1) = 0; at r = -inf it is f(0)."""
        raise NotImplementedError

    def slope(self, r: Array) -> Array:
        """f'(e^r), the marginal cost of moving mass onto an action; at r = -inf, inf its limits."""
        raise NotImplementedError

    def log_inverse(self, x: Array) -> Array:
        """The r with f'(e^r) = x, for x inside the range of f'."""
        raise NotImplementedError

    def drop(self, a: Array, b: Array) -> Array:
        """f'(e^a) - f'(e^b), and 0 at a = b even where both are infinite."""
        same = (a == b) & jnp.isinf(a)
        return jnp.where(same, 0, self.slope(a) - jnp.where(same, 0, self.slope(b)))

    def shift(self, s: Array, gap: Array) -> Array:
        """The r with f'(e^r) = f'(e^s) - gap; -inf below the range of f', +inf above it."""
        infinity = jnp.full_like(s - gap, jnp.inf)
        low, high = (jax.lax.stop_gradient(self.slope(x)) for x in (-infinity, infinity))
        level = self.slope(s) - gap
        inside = (level > low) & (level < high)
        r = self.log_inverse(jnp.where(inside, level, 0))
        # s itself, where nothing is to be shifted, with the derivatives of the round trip
        here = (gap == 0) & jnp.isfinite(s)
        r = r + jax.lax.stop_gradient(jnp.where(here, jnp.where(here, s, 0) - r, 0))
        outside = jnp.where(gap == 0, s, jnp.where(level <= low, -jnp.inf, jnp.inf))
        return jnp.where(inside, r, outside)

    def ceiling(self, gap: Array) -> Array:
        """The s with f'(e^s) = lim f' - gap, for gap > 0: +inf where f' has no finite limit."""
        return self.shift(jnp.full_like(gap, jnp.inf), gap)

    def is_sparse(self) -> Array | bool:
        """Whether f' is bounded below, so that an optimum may put exactly 0 on an action.

        False, the Python constant, where this is known at trace time.
        """
        return jnp.isfinite(self.slope(jnp.asarray(-jnp.inf)))

    def steepening(self) -> Array | float:
        """The k of t f''(t) <= 1 + k |f'(t)|, by which steps along f' grow unstable with the gaps.

        0, unless overridden: then t f''(t) is at most 1, as it is for reverse KL.
        """
        return 0.0

    def newton_step(self, excess: Array, rate: Array) -> Array:
        """The step in s that removes a log-mass `excess` whose derivative in s is `rate`."""
        return -excess / rate

    def jensen(self, mean_gap: Array) -> Array:
        """A log-ratio of the best action at which the mass is 1 or more, from the mean gap alone.

        Where the inverse of f' is convex that is the s with `shift(s, mean_gap)` = 0; else +inf.
        """
        return jnp.full_like(mean_gap, jnp.inf)

    def surplus(self, s: Array, gap: Array) -> tuple[Array, Array]:
        """e^r - 1 and d e^r/ds for r = `shift(s, gap)`; NaN or inf where that is too extreme."""
        r, rate = jax.jvp(lambda s: self.shift(s, gap), (s,), (jnp.ones_like(s),))
        excess = jnp.expm1(r)
        return excess, (1 + excess) * rate

    def term(self, log_p: Array, log_q: Array) -> Array:
        """The terms q f(p/q) elementwise, with their limits at p = 0 and q = 0."""
        gone, new = jnp.isneginf(log_p), jnp.isneginf(log_q)
        both = ~(gone | new)
        base = jnp.where(both, log_q, 0)
        inside = jnp.exp(base) * self.generator(jnp.where(both, log_p, 0) - base)
        far = jnp.full_like(log_p, jnp.inf)
        at_zero, beyond = jax.lax.stop_gradient((self.generator(-far), self.slope(far)))
        lost, gained = gone & ~new, new & ~gone
        q = jnp.exp(jnp.where(lost, log_q, 0))
        p = jnp.exp(jnp.where(gained, log_p, 0))
        edge = jnp.where(lost, _times(q, at_zero), jnp.where(gained, _times(p, beyond), 0))
        return jnp.where(both, inside, edge)

    def weighted_slope(self, log_p: Array, log_q: Array) -> Array:
        """The terms p f'(p/q) elementwise, with their limit at p = 0."""
        r = log_ratio(log_p, log_q)
        finite = jnp.isfinite(r)
        inside = jnp.exp(log_p) * self.slope(jnp.where(finite, r, 0))
        # t f'(t) tends to 0 with t where f(0) is finite; elsewhere its limit is read off far out,
        # at a quarter of the range, where slopes up to t^-3 are finite; above 1e9 it is infinite.
        far = jnp.full_like(log_p, 0.25 * largest_exponent(r))
        limit = jax.lax.stop_gradient(jnp.exp(-far) * self.slope(-far))
        limit = jnp.where(jnp.abs(limit) < 1e9, limit, -jnp.inf)
        at_zero = jnp.where(jnp.isneginf(log_q), 0, _times(jnp.exp(log_q), limit))
        beyond = jax.lax.stop_gradient(self.slope(jnp.full_like(r, jnp.inf)))
        edge = jnp.where(jnp.isneginf(log_p), at_zero, _times(jnp.exp(log_p), beyond))
        return jnp.where(finite, inside, edge)

    def value(self, log_p: Float[Array, " K"], log_q: Float[Array, " K"]) -> Float[Array, ""]:
        """D_f(p || q) = sum_i q_i f(p_i/q_i) in nats; +inf is a legal value.

        The sum is of non-negative terms, so it does not cancel where p is near q. On arguments
        that are not normalized it is the generalized divergence (for KL: sum p log(p/q) - p + q).
        """
        return jnp.sum(self.term(log_p, log_q))


def check_divergence(divergence: Any) -> Divergence:
    """A `Divergence`.

    Raises:
        TypeError: it is something else, such as a regularizer.
    """
    advice = "One of rd.divergences, such as rd.divergences.ForwardKL(), or a record of your own"
    check_kind("divergence", divergence, Divergence, advice)
    return divergence


def _times(weight: Array, limit: Array) -> Array:
    """weight * limit without a product with infinity, which would spoil gradients."""
    finite = jnp.isfinite(limit)
    return jnp.where(finite, weight * jnp.where(finite, limit, 0), limit)


class AlphaFamily(Divergence):
    r"""The alpha family: f(t) = (t^alpha - alpha t + alpha - 1)/(alpha (alpha - 1)).

    $$f(t) = \frac{t^\alpha - \alpha t + \alpha - 1}{\alpha (\alpha - 1)}$$

    f'(t) = (t^(alpha-1) - 1)/(alpha - 1), whose inverse is the q-exponential. alpha = 1 is reverse
    KL, KL(p || q); alpha = 0 is forward KL, KL(q || p); alpha = 2 is Pearson's chi-squared
    (sum (p-q)^2/q) halved; alpha = 1/2 is four times 1 - sum sqrt(p q). `alpha` is data: a sweep
    through 0 and 1 has no seam, because f(e^r) = r^2 exp[0, r, alpha r], a divided difference of
    the exponential (Cichocki and Amari 2010 for the family).
    """

    alpha: Any

    def slope(self, r):
        """f'(e^r) = (e^{(alpha-1) r} - 1)/(alpha - 1)."""
        return expm1_over(self.alpha - 1, r)

    def log_inverse(self, x):
        return log_q_exponential(x, self.alpha)

    def drop(self, a, b):
        return q_log_difference(self.alpha, a, b)

    def shift(self, s, gap):
        return q_shift(self.alpha, s, gap)

    def ceiling(self, gap):
        """-log((1 - alpha) gap)/(1 - alpha) for alpha < 1, else +inf."""
        k = 1 - self.alpha
        bounded = (k > 0) & (gap > 0)
        log_gap = jnp.log(jnp.where(bounded, k * gap, 1))
        return jnp.where(bounded, -log_gap / jnp.where(bounded, k, 1), jnp.inf)

    def is_sparse(self):
        return self.alpha > 1

    def steepening(self):
        """|1 - alpha|, as t f''(t) = 1 + (alpha - 1) f'(t)."""
        return jnp.abs(1 - self.alpha)

    def newton_step(self, excess, rate):
        """Newton on the power mean (sum p)^{-k}, which is concave or convex in e^{-k s}.

        Exact at alpha = 1; monotone from the right for alpha <= 2.
        """
        k = 1 - self.alpha
        return -log_q_exponential(expm1_over(k, excess) / rate, 1 + k)

    def jensen(self, mean_gap):
        """-log1p((alpha - 1) gap)/(1 - alpha), for alpha <= 2."""
        ratio = q_shift(self.alpha, jnp.zeros_like(mean_gap), -mean_gap)
        return jnp.where(self.alpha <= 2, ratio, jnp.inf)

    def surplus(self, s, gap):
        """With z = (1 - alpha) gap e^{(1 - alpha) s}: r = s - log1p(z)/(1 - alpha)."""
        k = 1 - self.alpha
        extreme = k * s > 0.5 * largest_exponent(s)  # the other half is left to the gap, a factor
        y = gap * jnp.exp(jnp.where(extreme, jnp.nan, k * s))
        z = k * y
        closed, none = z <= -1, z == 0
        safe = jnp.where(closed | none, 1, z)
        drop = jnp.where(none, y, jnp.log1p(safe) / jnp.where(k == 0, 1, k))
        excess = jnp.expm1(s - drop)
        rate = (1 + excess) / (1 + jnp.where(closed, 0, z))
        edge = jnp.where(k < 0, -1, jnp.inf), jnp.where(k < 0, 0, jnp.inf)
        return jnp.where(closed, edge[0], excess), jnp.where(closed, edge[1], rate)

    def term(self, log_p, log_q):
        gone, new = jnp.isneginf(log_p), jnp.isneginf(log_q)
        both = ~(gone | new)
        base = jnp.where(both, log_q, 0)
        r = jnp.where(both, log_p, 0) - base
        top, g = exp_divided_difference(self.alpha * r, r)
        # The infinite branches are constants: a product with them would spoil gradients.
        a, k = self.alpha, 1 - self.alpha
        q = jnp.exp(jnp.where(gone & ~new, log_q, 0))
        p = jnp.exp(jnp.where(new & ~gone, log_p, 0))
        at_zero = jnp.where(a > 0, q / jnp.where(a > 0, a, 1), jnp.inf)
        beyond = jnp.where(k > 0, p / jnp.where(k > 0, k, 1), jnp.inf)
        exponent = base + top  # r^2 g e^exponent, with g <= 1/2, must not overflow
        overflows = exponent + 2 * jnp.log(jnp.maximum(jnp.abs(r), 1)) > largest_exponent(exponent)
        inside = r**2 * g * jnp.exp(jnp.where(overflows, 0, exponent))
        inside = jnp.where(overflows, jnp.inf, inside)
        return jnp.where(both, inside, jnp.where(gone & new, 0, jnp.where(gone, at_zero, beyond)))

    def weighted_slope(self, log_p, log_q):
        """The terms p f'(p/q) = (q^(1-alpha) p^alpha - p)/(alpha - 1)."""
        a = self.alpha - 1
        r = log_ratio(log_p, log_q)
        finite = jnp.isfinite(r)
        steep = finite & (a * jnp.where(finite, r, 0) > 1)  # e^{a r} may overflow where p is small
        mild = jnp.where(finite & ~steep, r, 0)
        p = jnp.exp(log_p)
        exponent = jnp.where(steep, log_p + a * jnp.where(steep, r, 0), 0)
        steep_value = (jnp.exp(exponent) - p) / jnp.where(steep, a, 1)
        at_zero = jnp.where(self.alpha > 0, 0, jnp.where(self.alpha < 0, -jnp.inf, -jnp.exp(log_q)))
        at_zero = jnp.where(jnp.isneginf(log_q), 0, at_zero)
        beyond = jnp.where(a < 0, -p / jnp.where(a < 0, a, 1), jnp.inf)
        edge = jnp.where(jnp.isneginf(log_p), at_zero, beyond)
        inside = jnp.where(steep, steep_value, p * expm1_over(a, mild))
        return jnp.where(finite, inside, edge)


@record
class Alpha(AlphaFamily):
    """A member of the alpha family whose number is data."""

    alpha: Array


@record
class ForwardKL(AlphaFamily):
    """Forward KL, KL(q || p) = sum q log(q/p): the member alpha = 0, known as such at trace time.

    Knowing it saves the logarithm and the exponential of every action in a root search.
    """

    @property
    def alpha(self) -> Array:
        return jnp.asarray(0.0)

    def is_sparse(self):
        return False  # 1 - 1/t is not bounded below

    def surplus(self, s, gap):
        """With v = e^{-s}: e^r = 1/(v + gap)."""
        v = jnp.exp(-s)
        return (-jnp.expm1(-s) - gap) / (v + gap), v / (v + gap) ** 2


@record
class KL(Divergence):
    """Reverse KL, KL(p || q) = sum p log(p/q): the member alpha = 1, known as such at trace time.

    Knowing it lets sums of such terms merge into one, and the multiplier be a log-sum-exp.
    """

    def slope(self, r):
        return r

    def log_inverse(self, x):
        return x

    def drop(self, a, b):
        same = (a == b) & jnp.isinf(a)
        return jnp.where(same, 0, a - jnp.where(same, 0, b))

    def shift(self, s, gap):
        return s - gap

    def ceiling(self, gap):
        # f' = log has no finite limit.
        return jnp.full_like(gap, jnp.inf)

    def term(self, log_p, log_q):
        """The terms p log(p/q) - p + q."""
        return Alpha(jnp.ones((), log_p.dtype)).term(log_p, log_q)

    def weighted_slope(self, log_p, log_q):
        """The terms p log(p/q)."""
        r = log_ratio(log_p, log_q)
        finite = jnp.isfinite(r)
        inside = jnp.exp(log_p) * jnp.where(finite, r, 0)
        return jnp.where(finite, inside, jnp.where(jnp.isneginf(r), 0, jnp.inf))


@record
class JensenShannon(Divergence):
    """JS(p, q) = KL(p || m)/2 + KL(q || m)/2 with m = (p + q)/2: between 0 and log 2.

    f'(t) = log(2t/(1 + t))/2, bounded above by log(2)/2: a target may leave the support of q.
    """

    def slope(self, r):
        """(log 2 - softplus(-r))/2."""
        return (jnp.log(2.0).astype(r.dtype) - _softplus(-r)) / 2

    def log_inverse(self, x):
        """2x - log(2 - e^{2x})."""
        return 2 * x - jnp.log(2 - jnp.exp(2 * x))

    def drop(self, a, b):
        """(softplus(-b) - softplus(-a))/2."""
        same = (a == b) & jnp.isinf(a)
        return jnp.where(same, 0, _softplus(-b) - jnp.where(same, 0, _softplus(-a))) / 2

    def shift(self, s, gap):
        """s - 2 gap - log(1 + (1 - e^{-2 gap}) e^s)."""
        grown = -jnp.expm1(-2 * gap)
        rises, closed = grown > 0, 1 + grown * jnp.exp(jnp.minimum(s, largest_exponent(s))) <= 0
        log_grown = s + jnp.log(jnp.where(rises, grown, 1))
        falling = ~rises & ~closed
        back = jnp.log1p(jnp.where(falling, grown * jnp.exp(jnp.where(falling, s, 0)), 0))
        r = s - 2 * gap - jnp.where(rises, _softplus(log_grown), back)
        at_pole = jnp.isposinf(s)
        ahead = jnp.where(at_pole & rises, gap, 1)
        r = jnp.where(
            at_pole, jnp.where(rises, -2 * ahead - jnp.log(-jnp.expm1(-2 * ahead)), jnp.inf), r
        )
        return jnp.where(closed & ~at_pole, jnp.inf, r)

    def is_sparse(self):
        return False  # the logarithm is not bounded below

    def term(self, log_p, log_q):
        """(p + q)/2 times a function of p/q alone: nothing is lost where p is near q."""
        mass = jnp.exp(log_p) + jnp.exp(log_q)
        return mass * _js_generator(log_ratio(log_p, log_q)) / 2

    def weighted_slope(self, log_p, log_q):
        """The terms p log(2p/(p + q))/2."""
        r = log_ratio(log_p, log_q)
        gone = jnp.isneginf(r)
        return jnp.exp(log_p) * jnp.where(gone, 0, self.slope(jnp.where(gone, 0, r)))


@record
class TotalVariation(Divergence):
    """TV(p, q) = sum |p - q| / 2, f(t) = |t - 1|/2: convex but not strictly.

    f' is -1/2 below 1, +1/2 above, and anything between at t = 1, where 0 is returned. Its targets
    are not found from an inverse of f': see `solvers.polyhedral` and `solvers.mixed`.
    """

    def slope(self, r):
        return jnp.sign(r) / 2

    def term(self, log_p, log_q):
        return jnp.abs(exp_difference(log_p, log_q)) / 2

    def weighted_slope(self, log_p, log_q):
        return jnp.exp(log_p) * jnp.sign(log_ratio(log_p, log_q)) / 2


def _softplus(x: Array) -> Array:
    """log(1 + e^x), with gradients that are finite at x = -inf and inf."""
    infinite = jnp.isinf(x)
    return jnp.where(infinite, jnp.maximum(x, 0), jax.nn.softplus(jnp.where(infinite, 0, x)))


def _js_generator(r: Array) -> Array:
    """(p log(p/m) + q log(q/m))/(p + q), m = (p + q)/2, as a function of r = log(p/q).

    Near 0 it is t atanh(t) + log(1 - t^2)/2 with t = (p - q)/(p + q) = tanh(r/2), of which half
    remains: nothing is lost.
    """
    size = jnp.abs(r)
    near = size < 1  # the form in e^{-|r|} keeps a sixth of its largest term there, more beyond
    x = jnp.where(near, r, 0) / 2
    t = jnp.tanh(x)
    close = t * x + jnp.log1p(-(t**2)) / 2
    apart = jnp.where(near | jnp.isinf(r), 1, size)
    ratio = jnp.exp(-apart)
    far = math.log(2) - jnp.log1p(ratio) - apart * ratio / (1 + ratio)
    return jnp.where(near, close, jnp.where(jnp.isinf(r), math.log(2), far))
