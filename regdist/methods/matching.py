"""Advantages that read log-probabilities: what distribution-matching and preference losses pay.

Their gradients are coefficients on scores too, so they compose with everything else. l is the
log-ratio of the policy to the reference at a sample, R its reward.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from regdist.methods.advantage import Advantage
from regdist.methods.batch import Batch, Tables
from regdist.metrics import entropy
from regdist.numerics.logspace import log_ratio, normalize
from regdist.numerics.records import choice, looked_at, record, static
from regdist.numerics.roots import implicit_root, increasing_root
from regdist.regularizers.divergence import Divergence, check_divergence


class SeesPolicy(Advantage):
    """An advantage that reads log-probabilities."""

    sees_policy: ClassVar[bool] = True


@record
class Balance(SeesPolicy):
    """scale (inner(rewards) - beta l - b): the residual of q e^{R/beta} in trajectory balance.

    With b the mean over the group this is VarGrad, GVPO, FlowRL; with b = beta log Z of the target,
    where a learned constant ends up, it is trajectory balance.

    Attributes:
        inner: what plays the role of the reward.
        beta: coefficient of the log-ratio.
        scale: factor on the whole.
        gain: factor on the inner reward.
        constant: "mean" or "log_z".
        unbiased: multiply by G/(G-1).
        anchor: l against the "reference" or the "old" policy.
    """

    inner: Advantage
    beta: Array
    scale: Array
    gain: Array
    constant: str = choice("mean", "log_z", default="mean")
    unbiased: bool = static(default=False)
    anchor: str = choice("reference", "old", default="reference")

    def coefficients(self) -> tuple[Array, ...]:
        """Beta."""
        return (self.beta,)

    def __call__(self, batch: Batch) -> Array:
        """The residual."""
        tables = batch.tables
        anchor = tables.log_ref if self.anchor == "reference" else tables.log_old
        residual = self.gain * self.inner(batch) - self.beta * batch.log_ratio(tables.log_p, anchor)
        if self.constant == "mean":
            residual = residual - batch.mean(residual)
        else:
            tilted = tables.log_ref + self.gain * tables.reward / self.beta
            residual = residual - self.beta * jax.nn.logsumexp(tilted)
        if self.unbiased:
            residual = residual / jnp.where(batch.inv_size == 1, 1, 1 - batch.inv_size)
        return self.scale * residual


@record
class OptimalAdvantage(SeesPolicy):
    """2 beta (R - V - beta l), V = value_beta log E_q e^{R/value_beta}, l the log-ratio to q.

    The slope of the squared error between beta l and R - V (A*-PO 2505.20686; TRL `a2po_trainer`,
    whose V is of `num_value_samples` draws of the reference: here of all). On the policy's own
    samples V moves nothing, whatever its own coefficient is: it is there for the noise.

    Attributes:
        beta: of the regression, TRL's `beta2`: the target is q e^{R/beta}.
        value_beta: of V, TRL's `beta1`.
    """

    beta: Array
    value_beta: Array

    def coefficients(self) -> tuple[Array, ...]:
        """Beta."""
        return (self.beta,)

    def __call__(self, batch: Batch) -> Array:
        """Minus half the slope of the squared error, twice."""
        tables = batch.tables
        tilted = tables.log_ref + tables.reward / self.value_beta
        value = self.value_beta * jax.nn.logsumexp(tilted)
        gap = batch.reward - value - self.beta * batch.log_ratio(tables.log_p, tables.log_ref)
        return 2 * self.beta * gap


@record
class MatchTarget(SeesPolicy):
    """-f'(p/p*) with p* = q e^{R/beta}/Z: the pseudo-reward of f-DPG (2302.08215).

    The expected update is minus the gradient of D_f(p || p*), for the divergence given.
    """

    divergence: Divergence = looked_at(lambda _, given: check_divergence(given))
    beta: Array

    def coefficients(self) -> tuple[Array, ...]:
        """Beta."""
        return (self.beta,)

    def __call__(self, batch: Batch) -> Array:
        """The pseudo-reward."""
        tables = batch.tables
        log_target = tilt(tables, self.beta)
        return -self.divergence.slope(batch.log_ratio(tables.log_p, log_target))


def tilt(tables: Tables, beta: Array) -> Float[Array, " K"]:
    """Log of q e^{R/beta}, normalized."""
    best = jnp.max(jnp.where(jnp.isneginf(tables.log_ref), -jnp.inf, tables.reward))
    return normalize(tables.log_ref + (tables.reward - best) / beta)


@record
class Exponential(SeesPolicy):
    """e^{R/eta} over its mean, as weights of a maximum-likelihood fit: the E-step of MPO.

    1806.06920; rlax `mpo_ops`. eta is the minimizer of the dual eta eps + eta log mean e^{R/eta},
    the temperature at which the weights are eps nats from even ones.
    """

    epsilon: Array

    def __call__(self, batch: Batch) -> Array:
        """The weights, whose mean is 1; the best samples alone when eps cannot be reached."""
        r = batch.reward - batch.largest(batch.reward)

        def weights(s: Array) -> Array:
            e = jnp.where(batch.here, jnp.exp(jnp.exp(s) * r), 0)
            return e / jnp.maximum(batch.sum(e), jnp.finfo(e.dtype).tiny)

        def excess(s: Array) -> Array:
            w = weights(s)
            some = w > 0
            return batch.sum(jnp.where(some, w * jnp.log(jnp.where(some, w, 1)), 0)) - self.epsilon

        spread = -batch.smallest(r)
        spread = jax.lax.stop_gradient(jnp.where(spread > 0, spread, 1))
        # 12: eta is looked for from e^-12 to e^12 times the spread of the rewards.
        low, high = jnp.full_like(spread, -12.0), jnp.full_like(spread, 12.0)
        shift = -jnp.log(spread)
        root, _ = increasing_root(
            lambda s: jax.lax.stop_gradient(excess(s)), low + shift, high + shift
        )
        return weights(implicit_root(excess, root))


@record
class Contrast(SeesPolicy):
    """Up on correct samples, down on wrong ones weighted e^{s/tau} (DisCO 2505.12366).

    Objective mean over correct of s - tau log mean over wrong of e^{s/tau}; s = log p, or p/p_old.

    Attributes:
        tau: temperature of the wrong samples.
        score: "log" or "ratio".
        plain: average the wrong samples evenly (the "b" variants).
        log_weight: of each action among the correct ones, shape [K]; None for even (DRPO).
    """

    tau: Array
    log_weight: Array | None = None
    score: str = choice("log", "ratio", default="log")
    plain: bool = static(default=False)

    def __call__(self, batch: Batch) -> Array:
        """1/share over correct, minus the softmax over wrong; 0 unless both occur."""
        right = batch.here & (batch.reward > 0)
        wrong = batch.here & ~right
        log_p = batch.pick(batch.tables.log_p)
        rho = jnp.exp(batch.log_rho)
        score = log_p if self.score == "log" else rho
        share = jnp.sum(jnp.where(right, batch.weight, 0))
        tilt = jnp.zeros_like(score) if self.plain else score / self.tau
        top = jnp.max(jnp.where(wrong, tilt, -jnp.inf), initial=-jnp.inf)
        e = jnp.where(wrong, jnp.exp(tilt - jnp.where(jnp.isfinite(top), top, 0)), 0)
        total = jnp.sum(batch.weight * e)
        both = (share > 0) & (total > 0)
        up = jnp.where(right, 1 / jnp.where(both, share, 1), 0)
        if self.log_weight is not None:
            if self.log_weight.shape != batch.tables.reward.shape:
                raise ValueError(
                    "lengths must be one for each action, shape "
                    f"{batch.tables.reward.shape}; got {self.log_weight.shape}"
                )
            tall = jnp.where(right, jnp.exp(batch.pick(self.log_weight)), 0)
            whole = jnp.sum(batch.weight * tall)
            up = tall / jnp.where(both, whole, 1)
        down = e / jnp.where(both, total, 1)
        slope = jnp.ones_like(rho) if self.score == "log" else rho
        return jnp.where(both, slope * (up - down), 0)


@record
class Pairwise(SeesPolicy):
    """Online DPO and IPO: every pair of a group is judged, and its loss differentiated.

    The mean over ordered pairs of -log sigmoid(beta d), or (d - 1/(2 beta))^2, d = l_win - l_lose.
    With groups of two it is the trainers' loss of one pair.

    Attributes:
        beta: as in DPO (2305.18290) or IPO (2310.12036).
        loss: "dpo" or "ipo".
        hard: the judge always takes the larger reward (ties at random: the two samples of a pair
            are of one law and come in random order), or prefers it with probability
            sigmoid(R_i - R_j).
    """

    beta: Array
    loss: str = choice("dpo", "ipo", default="dpo")
    hard: bool = static(default=False)

    def coefficients(self) -> tuple[Array, ...]:
        """Beta."""
        return (self.beta,)

    def __call__(self, batch: Batch) -> Array:
        """Twice the mean over the partners of the derivative of the pair's objective."""
        tables = batch.tables
        ratio = batch.log_ratio(tables.log_p, tables.log_ref)
        force = self.force(
            ratio[:, None] - ratio[None, :], batch.reward[:, None] - batch.reward[None, :]
        )
        partners = jnp.where(batch.here, batch.weight, 0)
        others = jnp.where(batch.inv_size == 1, 1, 1 - batch.inv_size)
        return 2 * jnp.sum(partners[None, :] * force, axis=1) / others

    def force(self, delta: Array, gap: Array, tie: float = 0.5) -> Array:
        """Minus the derivative of the expected loss in the first of a pair, given l and R gaps.

        `tie` is how often a hard judge prefers the first of two equal rewards.
        """
        wins = jnp.where(gap == 0, tie, jnp.where(gap > 0, 1.0, 0.0)).astype(gap.dtype)
        if not self.hard:
            wins = jax.nn.sigmoid(gap)
        if self.loss == "dpo":
            return self.beta * (wins - jax.nn.sigmoid(self.beta * delta))
        return (2 * wins - 1) / self.beta - 2 * delta


@record
class WithReference(SeesPolicy):
    """XPO: one of each pair from the policy, the other from the reference, and optimism.

    The loss of the pair plus alpha log p of the reference's sample (2405.21046; TRL). A hard judge
    gives ties to the policy's sample (TRL `xpo_trainer`, model_scores >= ref_scores). Its samples
    come from two laws, so that it is given in `Population` only.
    """

    pair: Pairwise
    alpha: Array

    needs: ClassVar[str] = "population"

    def __call__(self, batch: Batch) -> Array:
        """The derivative of the objective, per unit of the policy's mass."""
        tables = batch.tables
        gap = batch.reward[:, None] - batch.reward[None, :]
        ratio = batch.log_ratio(tables.log_p, tables.log_ref)
        delta = ratio[:, None] - ratio[None, :]
        as_own, as_reference = (self.pair.force(delta, gap, tie) for tie in (1.0, 0.0))
        reference = batch.pick(jnp.exp(tables.log_ref))
        other = as_reference @ jnp.where(batch.here, batch.weight, 0)
        return as_own @ reference + jnp.exp(-ratio) * (other - self.alpha)


@record
class TemperedBonus(SeesPolicy):
    """(1 - share) inner + share t/p: correct samples at another temperature, mixed in (2510.08141).

    t is p^{1/T} restricted to the correct actions. While the entropy is at or below `target` T is
    `hot`, above it `cold` with half the share.
    """

    inner: Advantage
    target: Array
    share: Array
    hot: Array
    cold: Array

    def __call__(self, batch: Batch) -> Array:
        """The advantage whose expectation is that of the mixture."""
        tables = batch.tables
        log_p = tables.log_p
        h = entropy(log_p)
        low = h <= self.target
        share = jnp.where(low, self.share, self.share / 2)
        right = (tables.reward > 0) & ~jnp.isneginf(log_p)
        some = jnp.any(right)
        tempered = jnp.where(right, log_p / jnp.where(low, self.hot, self.cold), -jnp.inf)
        log_t = normalize(jnp.where(some, tempered, log_p))
        extra = jnp.where(some, jnp.exp(batch.pick(log_ratio(log_t, log_p))), 0)
        extra = jnp.where(batch.reward > 0, extra, 0)
        return (1 - share) * self.inner(batch) + share * extra


@record
class DistributionCentric(SeesPolicy):
    """DCPO: (1 - a) inner + a t/p on correct samples, t proportional to p^{1/T} on all actions.

    a = x/(1 + x) with x = min(|target - H|, most)/share of correct samples in the batch; T is `hot`
    while H is at or below the target, else `cold` (597358816/DCPO). No correct sample: a = 0.
    """

    inner: Advantage
    target: Array
    most: Array
    hot: Array
    cold: Array

    def __call__(self, batch: Batch) -> Array:
        """The mixed advantage."""
        tables = batch.tables
        log_p = tables.log_old
        h = entropy(log_p)
        right = batch.here & (batch.reward > 0)
        share = jnp.sum(jnp.where(right, batch.weight, 0))
        some = share > 0
        x = jnp.minimum(jnp.abs(self.target - h), self.most) / jnp.where(some, share, 1)
        mixed = jnp.where(some, x / (1 + x), 0)
        tempered = normalize(log_p / jnp.where(h <= self.target, self.hot, self.cold))
        extra = jnp.where(right, jnp.exp(batch.log_ratio(tempered, log_p)), 0)
        return (1 - mixed) * self.inner(batch) + mixed * extra
