"""f-divergences as small records: D_f(p || q) = sum_i q_i f(p_i / q_i).

f is convex with f(1) = f'(1) = 0, so every term is non-negative. A record states f, its derivative
and the logarithm of the derivative's inverse, all as functions of the log-ratio r = log(p/q),
where nothing overflows and probability zero is r = -inf. K is the number of actions.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from regdist.logspace import (
    exp_divided_difference,
    expm1_over,
    log_q_exponential,
    log_ratio,
    q_shift,
)
from regdist.records import record


class Divergence:
    """What every f-divergence shares. A member gives `slope`, `shift`, `term` and the rest."""

    def slope(self, r: Array) -> Array:
        """f'(e^r): the marginal cost of moving mass onto an action."""
        raise NotImplementedError

    def log_inverse(self, x: Array) -> Array:
        """The r with f'(e^r) = x; -inf below the range of f', +inf above it."""
        raise NotImplementedError

    def shift(self, s: Array, gap: Array) -> Array:
        """The r with f'(e^r) = f'(e^s) - gap, without cancellation."""
        raise NotImplementedError

    def ceiling(self, gap: Array) -> Array:
        """The s with f'(e^s) = lim f' - gap, for gap > 0: +inf where f' has no finite limit."""
        raise NotImplementedError

    def is_sparse(self) -> Array | bool:
        """Whether f' is bounded below, so that an optimum may put exactly 0 on an action.

        False, the Python constant, where this is known at trace time.
        """
        raise NotImplementedError

    def newton_step(self, excess: Array, rate: Array) -> Array:
        """The step in s that removes a log-mass `excess` whose derivative in s is `rate`."""
        raise NotImplementedError

    def term(self, log_p: Array, log_q: Array) -> Array:
        """The terms q f(p/q) elementwise, with their limits at p = 0 and q = 0."""
        raise NotImplementedError

    def weighted_slope(self, log_p: Array, log_q: Array) -> Array:
        """The terms p f'(p/q) elementwise, with their limit at p = 0."""
        raise NotImplementedError

    def value(self, log_p: Float[Array, " K"], log_q: Float[Array, " K"]) -> Float[Array, ""]:
        """D_f(p || q) = sum_i q_i f(p_i/q_i) in nats; +inf is a legal value.

        The sum is of non-negative terms, so it does not cancel where p is near q. On arguments
        that are not normalised it is the generalised divergence (for KL: sum p log(p/q) - p + q).
        """
        return jnp.sum(self.term(log_p, log_q))


@record
class Alpha(Divergence):
    """The alpha family: f(t) = (t^alpha - alpha t + alpha - 1)/(alpha (alpha - 1)).

    f'(t) = (t^(alpha-1) - 1)/(alpha - 1), whose inverse is the q-exponential. alpha = 1 is reverse
    KL, KL(p || q); alpha = 0 is forward KL, KL(q || p); alpha = 2 is Pearson's chi-squared
    (sum (p-q)^2/q) halved; alpha = 1/2 is four times 1 - sum sqrt(p q). `alpha` is data: a sweep
    through 0 and 1 has no seam, because f(e^r) = r^2 exp[0, r, alpha r], a divided difference of
    the exponential (Cichocki and Amari 2010 for the family).
    """

    alpha: Array

    def slope(self, r):
        """f'(e^r) = (e^{(alpha-1) r} - 1)/(alpha - 1)."""
        return expm1_over(self.alpha - 1, r)

    def log_inverse(self, x):
        """Log of the q-exponential."""
        return log_q_exponential(x, self.alpha)

    def shift(self, s, gap):
        """`logspace.q_shift`."""
        return q_shift(self.alpha, s, gap)

    def ceiling(self, gap):
        """-log((1 - alpha) gap)/(1 - alpha) for alpha < 1, else +inf."""
        k = 1 - self.alpha
        bounded = (k > 0) & (gap > 0)
        log_gap = jnp.log(jnp.where(bounded, k * gap, 1))
        return jnp.where(bounded, -log_gap / jnp.where(bounded, k, 1), jnp.inf)

    def is_sparse(self):
        """Whether alpha > 1."""
        return self.alpha > 1

    def newton_step(self, excess, rate):
        """Newton on the power mean (sum p)^{-k}, which is concave or convex in e^{-k s}.

        Exact at alpha = 1; monotone from the right for alpha <= 2.
        """
        k = 1 - self.alpha
        return -log_q_exponential(expm1_over(k, excess) / rate, 1 + k)

    def term(self, log_p, log_q):
        """See the class."""
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
        inside = r**2 * g * jnp.exp(base + top)
        return jnp.where(both, inside, jnp.where(gone & new, 0, jnp.where(gone, at_zero, beyond)))

    def weighted_slope(self, log_p, log_q):
        """The terms p f'(p/q) = (q^(1-alpha) p^alpha - p)/(alpha - 1)."""
        a = self.alpha - 1
        r = log_ratio(log_p, log_q)
        finite = jnp.isfinite(r)
        steep = finite & (a * jnp.where(finite, r, 0) > 1)
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
class KL(Divergence):
    """Reverse KL, KL(p || q) = sum p log(p/q): the member alpha = 1, known as such at trace time.

    Knowing it lets sums of such terms merge into one, and the multiplier be a log-sum-exp.
    """

    def slope(self, r):
        """f'(e^r) = r."""
        return r

    def log_inverse(self, x):
        """The identity."""
        return x

    def shift(self, s, gap):
        """The difference s - gap."""
        return s - gap

    def ceiling(self, gap):
        """No bound: f' = log has no finite limit."""
        return jnp.full_like(gap, jnp.inf)

    def is_sparse(self):
        """Log is not bounded below."""
        return False

    def newton_step(self, excess, rate):
        """Exact: the log-mass is linear in s."""
        del rate
        return -excess

    def term(self, log_p, log_q):
        """The terms p log(p/q) - p + q."""
        return Alpha(jnp.ones((), log_p.dtype)).term(log_p, log_q)

    def weighted_slope(self, log_p, log_q):
        """The terms p log(p/q)."""
        r = log_ratio(log_p, log_q)
        finite = jnp.isfinite(r)
        inside = jnp.exp(log_p) * jnp.where(finite, r, 0)
        return jnp.where(finite, inside, jnp.where(jnp.isneginf(r), 0, jnp.inf))
