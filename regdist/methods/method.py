"""The method record: what multiplies the score of each sample."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from regdist.methods.advantage import NEEDS, Advantage
from regdist.methods.averaging import Averaging
from regdist.methods.batch import Batch, Tables, whole_table
from regdist.methods.controller import Controller
from regdist.methods.geometry import GEOMETRIES
from regdist.methods.penalty import PLACEMENTS, Penalty
from regdist.methods.signal import Signal
from regdist.methods.surrogate import LogProb, Surrogate
from regdist.methods.weight import Weight
from regdist.numerics.logspace import expect
from regdist.numerics.records import Look, check_choice, check_kind, choice, looked_at, record
from regdist.regularizers.regularizer import Regularizer, check_regularizer


def as_tuple(parts: Any) -> tuple[Any, ...]:
    """Several parts as a tuple, one part as a tuple of one."""
    return tuple(parts) if isinstance(parts, list | tuple) else (parts,)


def _one(kind: type, advice: str) -> Look:
    def look(name: str, part: Any) -> Any:
        check_kind(name, part, kind, advice)
        return part

    return look


def _one_or_none(kind: type, advice: str) -> Look:
    look = _one(kind, advice)
    return lambda name, part: None if part is None else look(name, part)


def _several(kind: type, advice: str) -> Look:
    look = _one(kind, advice)
    return lambda name, parts: tuple(look(f"each of {name}", part) for part in as_tuple(parts))


def _advantage(name: str, part: Any) -> Any:
    check_kind(name, part, Advantage, 'Such as rd.methods.advantage.GroupRelative(0.0, "mean")')
    check_choice("needs", part.needs, NEEDS, type(part).__name__)
    return part


def _penalties(name: str, parts: Any) -> Any:
    for penalty in (penalties := as_tuple(parts)):
        advice = "Such as rd.methods.penalty.TrustRegion(1.0, 0.1)"
        check_kind(f"each of {name}", penalty, Penalty, advice)
        check_choice("placement", penalty.placement, PLACEMENTS, type(penalty).__name__)
    return penalties


@record
class Method:
    """How a policy is moved: a composition of parts, made by the presets or by `compose`.

    The update is the mean over a group of coefficient times score, less the gradient of the
    regularizer, in a geometry. The coefficient of a sample is
    surrogate(ratio, advantage(rewards less penalties)) times the weights, less the penalties in
    the loss.

    Attributes:
        advantage: what a sample is worth beside its group.
        surrogate: what the ratio to the old policy does to it.
        penalties: what is subtracted at the samples, such as estimates of a divergence.
        weights: factors on the coefficient: masks, truncated importance weights.
        regularizer: subtracted exactly, summed over all actions; None for nothing.
        signal: what is paid in place of the reward, if it depends on the policy.
        controller: what moves a coefficient during a run.
        geometry: "softmax", "natural" or "sign".
        averaging: what a step counts, where samples are sequences; 1 where they have one.
    """

    advantage: Advantage = looked_at(_advantage)
    surrogate: Surrogate = looked_at(
        _one(Surrogate, "Such as rd.methods.surrogate.Clip(0.8, 1.2, math.inf)"),
        default=LogProb(),
    )
    penalties: tuple[Penalty, ...] = looked_at(_penalties, default=())
    weights: tuple[Weight, ...] = looked_at(
        _several(Weight, "Such as rd.methods.weight.SamplerRatio(0.0, 2.0)"), default=()
    )
    regularizer: Regularizer | None = looked_at(
        lambda _, given: None if given is None else check_regularizer(given), default=None
    )
    signal: Signal | None = looked_at(
        _one_or_none(Signal, "Such as rd.methods.signal.NashMD(0.5), or a record of your own"),
        default=None,
    )
    controller: Controller | None = looked_at(
        _one_or_none(Controller, "Such as rd.methods.controller.AdaptiveKL(0.2, 0.1, 0.01, 0.2)"),
        default=None,
    )
    geometry: str = choice(*GEOMETRIES, default="softmax")
    averaging: Averaging = looked_at(
        _one(Averaging, 'Such as averaging="token" of rd.methods.compose'),
        default=Averaging(),
    )

    @property
    def differentiable(self) -> bool:
        """Whether the field can be differentiated: not through a written loss, which detaches."""
        return self.surrogate.differentiable

    @property
    def spreads(self) -> bool:
        """Whether all steps of a sample have one advantage, that of the sample."""
        return self.advantage.spreads

    @property
    def compares_rewards_alone(self) -> bool:
        """Whether a group meets only through its rewards: then equal rewards are one class.

        Samples of many steps must be `spreads` too.
        """
        parts = (self.surrogate, *self.penalties, *self.weights)
        return (
            self.signal is None
            and not (self.rejects and self.averaging.couples())
            and not self.advantage.sees_policy
            and all(part.local for part in parts)
            and not any(penalty.regroups for penalty in self.penalties)
        )

    @property
    def rejects(self) -> bool:
        """Whether some steps may be as if they were not there."""
        return any(weight.rejects for weight in self.weights)

    def coefficients_of_parts(self) -> tuple[Array, ...]:
        """The coefficients of its penalties, its regularizer and its advantage."""
        terms = () if self.regularizer is None else self.regularizer.terms
        penalties = [c for penalty in self.penalties for c in penalty.coefficients()]
        return (*penalties, *(term.beta for term in terms), *self.advantage.coefficients())

    def advantages(self, batch: Batch) -> Float[Array, " n"]:
        """The advantage of each entry of a batch, before penalties that come after it."""
        return self.advantage(self.paid(batch))

    def paid(self, batch: Batch) -> Batch:
        """The batch less the penalties in the reward that come before groups are compared."""
        reward, value = batch.reward, batch.value
        for penalty in self.penalties:
            if penalty.regroups:
                tokens = batch.tokens
                reward = reward - tokens.whole(penalty.in_reward(tokens))
        if not self.spreads and batch.step is not None and batch.step.steps is None:
            paid = batch.step.reward + self._credits(batch.step)
            value = expect(batch.step.log_old, paid)
        return dataclasses.replace(batch, reward=reward, value=value)

    def _credits(self, tables: Tables) -> Array:
        """What each action of a table, or step, earns by the penalties of `paid`: minus them."""
        earned = jnp.zeros_like(tables.reward)
        for penalty in self.penalties:
            if penalty.regroups:
                every = whole_table(tables, jnp.exp(tables.log_sampler), 0.0)
                earned = earned - penalty.in_reward(every)
        return earned

    def step_advantages(self, batch: Batch, advantage: Float[Array, " n"]) -> Array:
        """The advantage of each step of the samples, given that of each sample."""
        tokens = batch.tokens
        if tokens.samples is None or self.spreads:
            return tokens.spread(advantage)
        samples, tables = self.paid(batch), tokens.tables
        tables = dataclasses.replace(tables, reward=self._credits(tables))
        paid = jnp.where(tokens.last, tokens.reward, 0) + tokens.pick(tables.reward)
        tokens = dataclasses.replace(tokens, reward=paid, step=tables, samples=samples)
        return self.advantage.at_tokens(tokens, advantage)

    def coefficients(self, batch: Batch, advantage: Float[Array, " n"]) -> Float[Array, " n"]:
        """What multiplies the score of each entry of a batch, given its advantage."""
        for penalty in self.penalties:
            if penalty.placement == "reward" and penalty.after:
                advantage = advantage - batch.to_go(penalty.in_reward(batch))
        return self._earned(batch, advantage) - self._penalized(batch, advantage)

    def step_coefficients(self, batch: Batch, advantage: Float[Array, " n"]) -> Array:
        """What multiplies the score of each step of the samples, beside their shares.

        Where samples have one step these are their `coefficients`.
        """
        tokens, each = batch.tokens, self.step_advantages(batch, advantage)
        return self._averaged(tokens, self.coefficients(tokens, each))

    def _averaged(self, tokens: Batch, coefficient: Array) -> Array:
        alone = tokens.samples is None
        if self.rejects:
            coefficient = coefficient * self.kept(tokens)
        if alone and not (self.rejects and self.averaging.over == "token"):
            return coefficient
        samples = tokens if tokens.samples is None else tokens.samples
        return coefficient * tokens.spread(self.averaging(samples, self.lengths(samples)))

    def lengths(self, batch: Batch) -> Float[Array, " n"]:
        """How many steps of each sample count."""
        tokens = batch.tokens
        return tokens.whole(self.kept(tokens)) if self.rejects else batch.length

    def kept(self, tokens: Batch) -> Array:
        """1 at steps that are not rejected, 0 at the others."""
        kept = jnp.where(tokens.present, 1.0, 0.0).astype(tokens.reward.dtype)
        for weight in self.weights:
            if weight.rejects:
                kept = kept * weight(tokens, kept)
        return kept

    def mean_coefficients(
        self,
        batch: Batch,
        up: Float[Array, " n"],
        down: Float[Array, " n"],
        share: Float[Array, " n"] | None = None,
    ) -> Array:
        """The mean of `step_coefficients` over advantages, from the means of their signs' sizes.

        For parts where samples do not meet, and no penalty in the reward: those are linear in the
        advantage on each side of 0. `share` is the mean factor of a sample's steps, where that has
        been taken with the advantages; default, that of the averaging.
        """
        tokens = batch.tokens
        up, down = tokens.spread(up), tokens.spread(down)
        one = jnp.ones_like(up)
        earned = up * self._earned(tokens, one) + down * self._earned(tokens, -one)
        lost = self._penalized(tokens, one)
        if share is not None:
            return earned - tokens.spread(share) * lost
        return self._averaged(tokens, earned - lost)

    def _earned(self, batch: Batch, advantage: Float[Array, " n"]) -> Float[Array, " n"]:
        coefficient = self.surrogate(batch, advantage)
        for weight in self.weights:
            coefficient = coefficient * weight(batch, advantage)
        return coefficient

    def _penalized(self, batch: Batch, advantage: Float[Array, " n"]) -> Array:
        lost = jnp.zeros_like(advantage)
        for penalty in self.penalties:
            if penalty.placement == "loss":
                lost = lost + penalty(batch, advantage)
        return lost
