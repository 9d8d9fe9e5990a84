"""Surrogates for samples that the policy has left behind, as `rd.methods.surrogate` has others.

rho is policy/old policy, p' the old policy.
"""

from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array

from regdist.methods.batch import Batch
from regdist.methods.surrogate import Surrogate
from regdist.numerics.records import choice, is_concrete, record


@record
class TrustMask(Surrogate):
    """min(rho, cap) A where p moved less than a bound, and 0 beyond (DPPO 2602.04879).

    verl `compute_policy_loss_dppo_tv` and `..._dppo_kl`, SkyRL `dppo_policy_loss`, prime-rl
    `default_loss_fn` and `ipo_loss_fn`. Where A > 0 only a p that rose is dropped, elsewhere one
    that fell.

    Attributes:
        low: bound where p fell.
        high: bound where it rose.
        cap: the largest ratio.
        measure: "tv", |p - p'|; "kl", between the two laws of "this token or not", p' first, with
            1e-8 added to 1 - p as in the code.
        sides: "push", as above; "both", |p - p'| below `high` whatever A is.
    """

    low: Array
    high: Array
    cap: Array
    measure: str = choice("tv", "kl", default="tv")
    sides: str = choice("push", "both", default="push")

    differentiable: ClassVar[bool] = False

    def is_advantage_at_one(self) -> bool:
        """Where no bound is below 0, and the cap not below 1."""
        if not is_concrete(self.low, self.high, self.cap):
            return False
        low, high, cap = (np.asarray(x) for x in (self.low, self.high, self.cap))
        return bool(np.all((low >= 0) & (high >= 0) & (cap >= 1)))

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """The capped ratio times A, where it is kept."""
        tables = batch.tables
        log_p, log_old = batch.pick(tables.log_p), batch.pick(tables.log_old)
        p, old = jnp.exp(log_p), jnp.exp(log_old)
        gap = p - old
        if self.measure == "tv":
            size = jnp.abs(gap)
        else:
            rest = jnp.log((1 - old + 1e-8) / (1 - p + 1e-8))
            size = (1 - old) * rest - old * batch.log_rho
        if self.sides == "both":
            kept = size <= self.high
        else:
            up = advantage > 0
            moved = jnp.where(up, gap > 0, gap < 0)
            kept = ~moved | (size <= jnp.where(up, self.high, self.low))
        return jnp.where(kept, jnp.minimum(jnp.exp(batch.log_rho), self.cap) * advantage, 0)


@record
class GammaWeight(Surrogate):
    """phi(w) A with phi(w) = e^lam w^k e^{-lam w}, w the ratio of whole sequences (VESPO).

    TRL `get_gamma_weights`, where there is no correction for another sampler: k and lam by the sign
    of A; w is a product over the steps of a sequence, its logarithm cut at 20 above and at log 1e-8
    below, that of each step at 20 either way.

    Attributes:
        k_up: where A >= 0; 2 in TRL.
        lam_up: likewise; 3.
        k_down: where A < 0; 3.
        lam_down: likewise; 2.
    """

    k_up: Array
    lam_up: Array
    k_down: Array
    lam_down: Array

    differentiable: ClassVar[bool] = False

    def is_advantage_at_one(self) -> bool:
        """phi(1) is 1."""
        return True

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """The weight times A."""
        log_w = batch.spread(batch.whole(jnp.clip(batch.log_rho, -20, 20)))
        log_w = jnp.clip(log_w, np.log(1e-8), 20)
        up = advantage >= 0
        k, lam = jnp.where(up, self.k_up, self.k_down), jnp.where(up, self.lam_up, self.lam_down)
        lam = jnp.maximum(lam, 1e-4)  # as in the code
        return jnp.exp(lam + k * log_w - lam * jnp.exp(log_w)) * advantage


@record
class Tapered(Surrogate):
    """A where the reward is above 0, min(rho, 1) A elsewhere (TOPR 2503.14286).

    ROLL `_compute_topr_loss`: right samples as in supervised learning, without a ratio; it is the
    sign of the reward that tells them, not that of the advantage.

    Attributes:
        positive: factor on samples whose reward is above 0.
        negative: on the others.
    """

    positive: Array
    negative: Array

    def is_advantage_at_one(self) -> bool:
        """Where both factors are 1."""
        if not is_concrete(self.positive, self.negative):
            return False
        return bool(np.all(np.asarray(self.positive) == 1) & np.all(np.asarray(self.negative) == 1))

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """The advantage, tapered."""
        taper = self.negative * jnp.minimum(jnp.exp(batch.log_rho), 1)
        return jnp.where(batch.reward > 0, self.positive, taper) * advantage
