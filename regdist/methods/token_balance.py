"""Balance along a path: squared residuals of flows, for each step or each part of a sequence.

Flows are where learned ones end up: F(s) is the sum over what may follow s of q e^{R/beta}, so that
the residual of a part of a sequence is the sum over its steps of log(p/p*), p* the law of steps of
the target. Where chance moves p* is that of `rd.stepwise`, and its steps are passed over.
"""

import jax
import jax.numpy as jnp
from jax import Array

from regdist.methods.batch import Batch, Tables
from regdist.methods.matching import SeesPolicy
from regdist.numerics.logspace import expect, log_mean_exp
from regdist.numerics.records import choice, record


@record
class PathBalance(SeesPolicy):
    """Minus the slope of squared residuals: of steps, or of all parts of a sequence.

    Attributes:
        beta: the target is q e^{R/beta}; above 0.
        lam: weight of a part by its length k, lam^(k-1).
        form: "steps": each step's own squared residual (torchgfn `DBGFlowNet`); its mean over all
            steps is averaging "token". "parts": all parts of a sequence, their weights over their
            sum (torchgfn `SubTBGFlowNet`, "geometric_within"): at lam = 0 the mean of the steps of
            each, and as lam grows the whole sequence alone, which is trajectory balance.

    Examples:
        It stands still at the target, and at a lam of 0 under "parts" it is "steps" over lengths.

        >>> t = rd.tree([[0], [1, 0], [1, 1]], [0.0, 0.3, 1.0])
        >>> best = t.conditionals(rd.target(t.bandit, rd.ReverseKL(0.5)).log_probs)
        >>> method = rd.methods.compose(PathBalance(0.5, 0.9, "parts"))
        >>> print(jnp.abs(rd.field(method, best, t)).max() < 1e-15)
        True
        >>> for part, averaging in ((PathBalance(0.5, 0.0, "parts"), "sum"),
        ...                         (PathBalance(0.5, 0.0, "steps"), "sequence")):
        ...     method = rd.methods.compose(part, averaging=averaging)
        ...     print(rd.field(method, t.log_ref, t)[:, 1].round(4))
        [0.6395 0.175 ]
        [0.6395 0.175 ]
    """

    beta: Array
    lam: Array
    form: str = choice("parts", "steps", default="parts")

    def coefficients(self) -> tuple[Array, ...]:
        """Beta."""
        return (self.beta,)

    def __call__(self, batch: Batch) -> Array:
        """Of samples of one step: twice minus log(p/p*)."""
        tables = batch.tables
        lost = jnp.isneginf(tables.log_p)
        values = jnp.where(lost, -jnp.inf, tables.reward)[None]
        best = jax.vmap(self._best)(tables.log_ref[None], values)
        return -2 * batch.log_ratio(tables.log_p, best.reshape(-1))

    def at_tokens(self, tokens: Batch, advantage: Array) -> Array:
        """Twice minus the weighted sum of the residuals of all parts that a step is in."""
        del advantage
        samples = tokens.samples
        assert samples is not None
        each = -2 * tokens.log_ratio(tokens.tables.log_p, self._law(samples.tables))
        return each if self.form == "steps" else self._parts(tokens, each)

    def _best(self, log_ref: Array, values: Array) -> Array:
        """Log of q e^{value/beta}, normalized: the law of one state."""
        total = log_mean_exp(log_ref, values / self.beta)
        total = jnp.where(jnp.isneginf(total), 0, total)
        return log_ref + values / self.beta - total

    def _law(self, whole: Tables) -> Array:
        """The target's law of steps, flat: over the sequences that the policy has."""
        steps = whole.steps
        assert steps is not None
        paths, chooses = steps.paths, steps.chooses
        log_ref = steps.tables.log_ref.reshape(paths.exists.shape)
        values = jnp.where(jnp.isneginf(whole.log_p), -jnp.inf, whole.reward)

        def soft(rows: Array, states: slice) -> Array:
            chosen = self.beta * jax.vmap(log_mean_exp)(log_ref[states], rows / self.beta)
            return jnp.where(chooses[states], chosen, jax.vmap(expect)(log_ref[states], rows))

        after = paths.upward(values, soft)
        return jax.vmap(self._best)(log_ref, after).reshape(-1)

    def _parts(self, tokens: Batch, each: Array) -> Array:
        """sum_u w_tu x_u, w_tu the weight of the parts of a sequence that hold steps t and u."""
        horizon = tokens.horizon
        own = tokens.present.reshape(-1, horizon)
        x = jnp.where(own, each.reshape(-1, horizon), 0)
        place = jnp.maximum(jnp.cumsum(jnp.where(own, 1, 0), axis=1) - 1, 0)
        length = jnp.sum(own, axis=1)[:, None, None]
        power = self.lam ** jnp.arange(horizon).astype(x.dtype)
        some = jnp.concatenate([jnp.zeros(1, x.dtype), jnp.cumsum(power)])  # of k = 0, 1, ... terms
        one, other = place[:, :, None], place[:, None, :]
        first, last = jnp.minimum(one, other), jnp.maximum(one, other)
        weight = some[first + 1] * power[last - first] * some[jnp.maximum(length - last, 0)]
        whole = jnp.cumsum(some)[length[:, 0]]  # sum over k of (n - k + 1) lam^(k-1)
        whole = jnp.where(whole > 0, whole, 1)
        return (jnp.einsum("ntu,nu->nt", weight, x) / whole).reshape(-1)
