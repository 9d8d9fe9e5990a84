"""Advantages of steps: what a step of a sequence is worth, where steps of one sample differ.

Each is an `Advantage`: of whole samples by a call, and of their steps by `at_tokens`, which only
trees of more than one step ask for. A sample of one step has the same by both. What a step is paid
is the sample's reward at its last own step, less the penalties in the reward where they are; steps
where chance moves are not the policy's, and are passed over. n is the number of samples, T of steps
of the longest, S of states, V of tokens.
"""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from regdist.methods.advantage import Advantage
from regdist.methods.batch import Batch
from regdist.numerics.logspace import expect
from regdist.numerics.records import check_kind, looked_at, record, static


def check_inner(name: str, part: Advantage) -> Advantage:
    """An advantage within another.

    Raises:
        TypeError: it is none.
    """
    advice = 'Such as rd.methods.advantage.GroupRelative(0.0, "mean")'
    check_kind(name, part, Advantage, advice)
    return part


def check_spreading(name: str, part: Advantage) -> Advantage:
    """An advantage of whole samples within another.

    Raises:
        TypeError: it is none.
        ValueError: it tells steps apart.
    """
    check_inner(name, part)
    if type(part).at_tokens is not Advantage.at_tokens:
        raise ValueError(
            f"{name} must be an advantage of whole samples: means over their steps are known "
            f"at their end; got {type(part).__name__}"
        )
    return part


@record
class ToGo(Advantage):
    """What is paid from each step on, discounted: the return to go.

    In expectation, on the policy's own samples and in a sum over steps, it moves what the whole
    return moves. With `Whitened` over it that is REINFORCE++ (2501.03262, verl
    `compute_reinforce_plus_plus_outcome_advantage`).

    Attributes:
        gamma: discount of a step of the policy.
        forgets: whether nothing after a step of chance counts before it, as in that code, which
            starts anew wherever its mask is 0.

    Examples:
        >>> part = ToGo(0.5)
        >>> t = rd.tree([[0], [1, 0], [1, 1]], [0.0, 0.0, 1.0])
        >>> print(rd.field(rd.methods.compose(part), t.log_ref, t)[:, 1])
        [0.0625 0.125 ]
    """

    gamma: Array
    forgets: bool = static(default=False)

    def __call__(self, batch: Batch) -> Array:
        """The reward."""
        return batch.reward

    def at_tokens(self, tokens: Batch, advantage: Array) -> Array:
        """What is paid from each step on."""
        del advantage
        return _backward(tokens, tokens.reward, self.gamma, self.forgets)


@record
class Critic(Advantage):
    """Generalized advantage estimation with a critic that knows everything (1506.02438).

    sum_l (gamma lam)^l delta_{t+l}, delta_t = r_t + gamma V(s_{t+1}) - V(s_t): verl
    `compute_gae_advantage_return`, less its whitening, which is `Whitened` over this one. V is what
    the old policy is paid from a state on, in the mean, penalties in the reward and the discount
    included: where a trained critic would end up.

    Attributes:
        gamma: discount of a step of the policy.
        lam: 1 for the return to go less V(s_t), 0 for what one step is worth.

    Examples:
        In a sum over steps lam is noise alone. Under 1/length it is not: at lam = 0 a step is worth
        what it gains in value, whatever comes after it.

        >>> t = rd.tree([[0, 0], [0, 1, 0], [1, 0], [1, 1, 0]], [1.0, 0.0, 0.0, 0.0])
        >>> for lam in (0.0, 1.0):
        ...     method = rd.methods.compose(Critic(1.0, lam), averaging="sequence")
        ...     print(rd.field(method, t.log_ref, t)[:2, 1].round(4))
        [-0.0521 -0.0521]
        [-0.0625 -0.0521]
    """

    gamma: Array
    lam: Array

    def __call__(self, batch: Batch) -> Array:
        """The reward less the old policy's mean."""
        return batch.reward - batch.value

    def at_tokens(self, tokens: Batch, advantage: Array) -> Array:
        """The discounted sum of what is gained from each step on."""
        del advantage
        value = tokens.pick(_values(tokens, self.gamma))
        gained = tokens.reward + self.gamma * _following(tokens, value) - value
        return _backward(tokens, gained, self.gamma * self.lam)


class Around(Advantage):
    """An advantage around another, `inner`: it sees and needs what that one does.

    `reads` says that it reads log-probabilities itself.
    """

    inner: Advantage
    reads: ClassVar[bool] = False

    @property
    def sees_policy(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether it or the inner one reads log-probabilities."""
        return self.reads or self.inner.sees_policy

    @property
    def needs(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the inner one."""
        return self.inner.needs


@record
class Whitened(Around):
    """An advantage less its mean over all steps of the batch, over its deviation there.

    Attributes:
        inner: whose.
        eps: under the root.
        biased: "unbiased" variance plus eps in verl and SkyRL (`masked_whiten`), False; the biased
            one, at least eps, in OpenRLHF, True.
    """

    inner: Advantage = looked_at(check_inner)
    eps: Array
    biased: bool = static(default=False)

    def __call__(self, batch: Batch) -> Array:
        """Whitened over the samples."""
        return self._over(batch, self.inner(batch))

    def at_tokens(self, tokens: Batch, advantage: Array) -> Array:
        """Whitened over the steps."""
        del advantage
        return self._over(tokens, at_steps(self.inner, tokens))

    def _over(self, batch: Batch, x: Array) -> Array:
        return (x - batch.mean(x)) / self.of_deviation(batch.std(x, unbiased=not self.biased))

    def of_deviation(self, std: Array) -> Array:
        """The scale of a standard deviation."""
        variance = std**2
        return jnp.sqrt(jnp.maximum(variance, self.eps) if self.biased else variance + self.eps)


@record
class Standardized(Around):
    """An advantage less one number, over another: what whitening over a large batch comes to.

    Attributes:
        inner: whose.
        center: subtracted from all.
        scale: divides all; 0 leaves nothing.
    """

    inner: Advantage = looked_at(check_inner)
    center: Array
    scale: Array

    @property
    def spreads(self) -> bool:
        """As the inner one."""
        return self.inner.spreads

    def __call__(self, batch: Batch) -> Array:
        """Of samples."""
        return self._over(self.inner(batch))

    def at_tokens(self, tokens: Batch, advantage: Array) -> Array:
        """Of steps."""
        if self.spreads:
            return tokens.spread(advantage)
        return self._over(at_steps(self.inner, tokens))

    def _over(self, x: Array) -> Array:
        empty = self.scale == 0
        return jnp.where(empty, 0, (x - self.center) / jnp.where(empty, 1, self.scale))


@record
class Bounded(Around):
    """An advantage cut at two bounds, where samples and steps have it: NeMo-RL and ROLL offer it.

    NeMo-RL `_clip_grpo_advantages`; ROLL `advantage_clip`, one number for both.

    Attributes:
        inner: whose.
        low: least.
        high: largest.

    Examples:
        >>> relative = rd.methods.advantage.GroupRelative(0.0, "mean", "std")
        >>> b = rd.bandit([1.0, 0.0], [0.01, 0.99])
        >>> for part in (relative, Bounded(relative, -2.0, 2.0)):
        ...     print(rd.field(rd.methods.compose(part), b.log_ref, b)[0].round(3))
        0.099
        0.021
    """

    inner: Advantage = looked_at(check_inner)
    low: Array
    high: Array

    @property
    def spreads(self) -> bool:
        """As the inner one."""
        return self.inner.spreads

    def __call__(self, batch: Batch) -> Array:
        """Of samples."""
        return jnp.clip(self.inner(batch), self.low, self.high)

    def at_tokens(self, tokens: Batch, advantage: Array) -> Array:
        """Of steps."""
        if self.spreads:
            return tokens.spread(advantage)
        return jnp.clip(at_steps(self.inner, tokens), self.low, self.high)


@record
class TokenBaseline(Advantage):
    """The return to go less a baseline for each place in the sequence, of least variance.

    b_t = sum_i G_it W_it / (sum_i W_it + eps) over the samples that have a step t, W_it the sum to
    t of the score's 1 - 2 p + sum p^2 under the old policy: verl
    `compute_optimal_token_baseline_advantage`, without its weights of the rollout. A group of one
    has no baseline.

    Attributes:
        eps: added to the denominator.
        zero_tail: no baseline where only the longest sample of the group still goes on.
        own: count places by the policy's own steps, as verl's
            `compute_multi_turn_optimal_token_baseline_advantage` does; else by all steps.
    """

    eps: Array
    zero_tail: bool = static(default=False)
    own: bool = static(default=False)

    sees_policy: ClassVar[bool] = True

    def __call__(self, batch: Batch) -> Array:
        """R less the one baseline."""
        return self._less(batch, batch.reward, self._score(batch))

    def at_tokens(self, tokens: Batch, advantage: Array) -> Array:
        """The return to go less its place's baseline."""
        del advantage
        score = jnp.where(tokens.present, self._score(tokens), 0)
        upto = jnp.cumsum(score.reshape(-1, tokens.horizon), axis=1).reshape(-1)
        return self._less(tokens, tokens.to_go(tokens.reward), upto)

    def _score(self, batch: Batch) -> Array:
        """|S|^2 of each entry's own score."""
        p = jnp.exp(batch.tables.log_old)
        square = batch.tables.each_row(lambda row: jnp.sum(jnp.exp(row) ** 2), batch.tables.log_old)
        return batch.pick(1 - 2 * p + square)

    def _less(self, batch: Batch, returns: Array, weight: Array) -> Array:
        place, places = self._places(batch)
        share = jnp.where(batch.here, batch.weight, 0)

        def total(x: Array) -> Array:
            return jnp.zeros(places, x.dtype).at[place].add(share * x)

        over = total(weight) + self.eps * batch.inv_size
        some = over > 0
        baseline = jnp.where(some, total(weight * returns) / jnp.where(some, over, 1), 0)[place]
        samples = batch if batch.samples is None else batch.samples
        if self.zero_tail:
            alone = total(jnp.ones_like(share))[place] < 1.5 * batch.inv_size
            baseline = jnp.where(alone, 0, baseline)
        return returns - jnp.where(samples.inv_size == 1, 0, baseline)

    def _places(self, batch: Batch) -> tuple[Array, int]:
        """The place of each entry in its sequence, and how many there are."""
        if batch.samples is None:
            return jnp.zeros(batch.reward.shape, int), 1
        count = batch.horizon
        if not self.own:
            return jnp.tile(jnp.arange(count), batch.reward.shape[0] // count), count
        ones = jnp.where(batch.present, 1, 0)
        before = jnp.cumsum(ones.reshape(-1, count), axis=1).reshape(-1) - ones
        return before, count


def at_steps(inner: Advantage, tokens: Batch) -> Array:
    """The advantage of each step by another record."""
    samples = tokens.samples
    assert samples is not None
    return inner.at_tokens(tokens, inner(samples))


@functools.partial(jax.jit, static_argnames="forgets")
def _backward(tokens: Batch, x: Array, factor: Array, forgets: bool = False) -> Array:
    """sum_l factor^l x_{t+l} over the policy's own steps from each of them on."""
    own = tokens.present.reshape(-1, tokens.horizon).T
    reset = own if forgets else jnp.ones_like(own)

    def earlier(later: Array, column: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        here, added, goes_on = column
        total = jnp.where(here, added + factor * later, later)
        return jnp.where(goes_on, total, 0), total

    rows = x.reshape(-1, tokens.horizon).T
    _, total = jax.lax.scan(earlier, jnp.zeros_like(rows[0]), (own, rows, reset), reverse=True)
    return total.T.reshape(-1)


@jax.jit
def _following(tokens: Batch, x: Array) -> Array:
    """What the next own step of the same sample has; 0 after the last."""
    own = tokens.present.reshape(-1, tokens.horizon).T

    def earlier(later: Array, column: tuple[Array, Array]) -> tuple[Array, Array]:
        here, value = column
        return jnp.where(here, value, later), later

    rows = x.reshape(-1, tokens.horizon).T
    _, following = jax.lax.scan(earlier, jnp.zeros_like(rows[0]), (own, rows), reverse=True)
    return following.T.reshape(-1)


@jax.jit
def _values(tokens: Batch, gamma: Array) -> Float[Array, " P"]:
    """V of each step's state: what the old policy is paid from there on, discounted by own steps.

    Two recursions: what is paid at once after a step, where nothing but chance follows, and what
    is paid later, which every own step discounts.
    """
    samples = tokens.samples
    assert samples is not None
    leaves, steps = samples.tables.reward, samples.tables.steps
    assert steps is not None
    paths, chooses = steps.paths, steps.chooses
    shape = paths.exists.shape
    log_old, earned = (x.reshape(shape) for x in (tokens.tables.log_old, tokens.tables.reward))

    def mean(rows: Array, states: slice) -> Array:
        return jax.vmap(expect)(log_old[states], rows)

    def at_once(rows: Array, states: slice) -> Array:
        return jnp.where(chooses[states], 0, mean(rows, states))

    now = earned + paths.upward(leaves, at_once)

    def discounted(rows: Array, states: slice) -> Array:
        return jnp.where(chooses[states, None], now[states] + gamma * rows, rows)

    def onward(rows: Array, states: slice) -> Array:
        return mean(discounted(rows, states), states)

    later = paths.upward(jnp.zeros_like(leaves), onward)
    every = slice(0, shape[0])
    return jnp.repeat(mean(discounted(later, every), every), shape[1])
