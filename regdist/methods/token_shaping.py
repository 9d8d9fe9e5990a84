"""Advantages shaped by the entropy of states, and by what samples of a group share.

Each is an `Advantage` around another, of whole samples by a call and of their steps by `at_tokens`,
as those in `token_advantage`.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from regdist.methods.advantage import Advantage, GroupRelative
from regdist.methods.batch import Batch
from regdist.methods.token_advantage import Around, at_steps, check_inner, check_spreading
from regdist.metrics import entropy
from regdist.numerics.records import as_array, check_kind, looked_at, record


@record
class EntropyShaped(Around):
    """An advantage plus min(alpha H, |A|/kappa), H the entropy of the step's state, detached.

    2506.14758, as in Linn3a/siren `dp_actor` ("baseline_entropy_adv"), where kappa is 1 and alpha
    0.4. Never changes the sign of an advantage where kappa is at least 1.

    Attributes:
        inner: the advantage A.
        alpha: reward per nat.
        kappa: the bonus is at most |A| over it.
    """

    inner: Advantage = looked_at(check_inner)
    alpha: Array
    kappa: Array

    reads: ClassVar[bool] = True

    def __call__(self, batch: Batch) -> Array:
        """Of samples of one step."""
        return self._shaped(batch, self.inner(batch))

    def at_tokens(self, tokens: Batch, advantage: Array) -> Array:
        """Each step by its own state."""
        del advantage
        return self._shaped(tokens, at_steps(self.inner, tokens))

    def _shaped(self, batch: Batch, advantage: Array) -> Array:
        each = batch.pick(batch.tables.each_row(entropy, batch.tables.log_p))
        return advantage + jnp.minimum(self.alpha * each, jnp.abs(advantage) / self.kappa)


@record
class ConflictAware(Around):
    """Tokens that good and bad samples share are not pushed down (GTPO 2508.03772, its code).

    A sample has A - scale H, H the mean entropy of the states of its steps, and 0 where H is above
    `most`. Its steps in conflict have that times `up` where A is above 0, and times 0 where it is
    below; all of them are over the number of its steps in conflict, if it has any. In conflict are
    the first steps of a sample, as long as the same token stands at the same place in a sample with
    A > 0 and in one with A < 0, and likewise the last ones, places counted from the end; a step in
    both runs has the factor twice. winstonsmith1897/GTPO `gtpo_training`, which has no ratio, takes
    1e-6 as the least probability in H, and sums over the samples of a group.

    Attributes:
        inner: the advantage A.
        up: factor on shared tokens of samples with A > 0; 2 in the code.
        scale: per nat of H; 0.1 in the code.
        most: H above it leaves a sample out; 0.7 in the code.
    """

    inner: Advantage = looked_at(check_inner)
    up: Array
    scale: Array
    most: Array

    reads: ClassVar[bool] = True

    def __call__(self, batch: Batch) -> Array:
        """A less what its mean entropy costs, or 0."""
        tokens = batch.tokens
        each = tokens.pick(tokens.tables.each_row(entropy, tokens.tables.log_p))
        mean = tokens.whole(each) / jnp.maximum(batch.length, 1)
        return jnp.where(mean <= self.most, self.inner(batch) - self.scale * mean, 0)

    def at_tokens(self, tokens: Batch, advantage: Array) -> Array:
        """Times the factors of steps in conflict."""
        samples = tokens.samples
        assert samples is not None
        steps = samples.tables.steps
        assert steps is not None
        sign = jnp.sign(self.inner(samples))
        there = steps.there if samples.index is None else steps.there[samples.index]
        token = tokens.actions.reshape(there.shape) % steps.paths.exists.shape[1]
        place = jnp.broadcast_to(jnp.arange(there.shape[1]), there.shape)
        backward = jnp.sum(there, axis=1)[:, None] - 1 - place
        own = tokens.present.reshape(there.shape)
        factor, either = jnp.ones_like(advantage)[:, None], jnp.zeros_like(own)
        for at, is_reversed in ((place, False), (jnp.where(there, backward, 0), True)):
            shared = self._shared(samples, sign, there, at, token, steps.paths.exists.shape[1])
            in_run = there & _unbroken(shared | ~there, is_reversed)
            pushed = jnp.where(sign[:, None] > 0, self.up, 0)
            factor, either = jnp.where(in_run, pushed, 1) * factor, either | in_run
        count = jnp.sum(own & either, axis=1).astype(advantage.dtype)
        each = factor * (advantage / jnp.maximum(count, 1))[:, None]
        return each.reshape(-1)

    def _shared(
        self, samples: Batch, sign: Array, there: Array, place: Array, token: Array, vocabulary: int
    ) -> Array:
        """Which steps have a token that samples of both signs have at the same place."""

        def seen(flag: Array) -> Array:
            known = there & (samples.here & flag)[:, None]
            table = jnp.zeros((there.shape[1], vocabulary), bool).at[place, token].max(known)
            return table[place, token]

        return seen(sign > 0) & seen(sign < 0) & (sign != 0)[:, None]


def _unbroken(x: Array, is_reversed: bool) -> Array:
    """Which entries of each row, and all before them, are true; or all after them."""
    rows = x[:, ::-1] if is_reversed else x
    rows = jnp.cumprod(jnp.where(rows, 1, 0), axis=1) > 0
    return rows[:, ::-1] if is_reversed else rows


def _relative(name: str, part: Any) -> GroupRelative:
    advice = 'GRPO\'s is rd.methods.advantage.GroupRelative(1e-6, "mean", "std", "raw")'
    check_kind(name, part, GroupRelative, advice)
    return part


@record
class OverTokens(Around):
    """(R - mean)/(std + eps) over the steps of a group, by which long samples count more.

    Biased; where any of them, or what padding would get, 0 in R's place, reaches `most` the group
    has the inner advantage instead (starriver030515/HAPO `compute_hapo_outcome_advantage`).

    Attributes:
        inner: of whole samples, GRPO's in the code; whose eps it is, and whose scale, if it is
            "none", is that of steps too.
        most: 5 in the code.

    Examples:
        The right sequence is the long one, so that of all steps more than half are paid.

        >>> relative = rd.methods.advantage.GroupRelative(0.0, "mean", "std")
        >>> t = rd.tree([[0], [1, 1, 1]], [0.0, 1.0])
        >>> for part in (relative, OverTokens(relative, 5.0)):
        ...     method = rd.methods.compose(part, averaging="token")
        ...     print(rd.field(method, t.log_ref, t)[:, 1].round(4))
        [0.25 0.   0.  ]
        [0.2887 0.     0.    ]
    """

    inner: GroupRelative = looked_at(_relative)  # pyright: ignore[reportIncompatibleVariableOverride]
    most: Array

    def __call__(self, batch: Batch) -> Array:
        """Of samples of one step."""
        return self._over(batch, batch.reward, self.inner(batch))

    def at_tokens(self, tokens: Batch, advantage: Array) -> Array:
        """The same at all steps of a sample."""
        del advantage
        samples = tokens.samples
        assert samples is not None
        reward, inner = (tokens.spread(x) for x in (samples.reward, self.inner(samples)))
        return self._over(tokens, reward, inner)

    def _over(self, batch: Batch, reward: Array, inner: Array) -> Array:
        mean, scale = batch.mean(reward), jnp.ones_like(batch.inv_size)
        if self.inner.scale != "none":
            scale = batch.std(reward, unbiased=False) + self.inner.eps
        empty = scale == 0
        scale = jnp.where(empty, 1, scale)
        each = jnp.where(empty, 0, reward - mean) / scale
        largest = jnp.maximum(batch.largest(jnp.abs(each)), jnp.abs(mean) / scale)
        return jnp.where(largest >= self.most, inner, each)


@record
class CertaintyShaped(Around):
    """More for surprising successes and confident failures, less for likely tokens.

    The shape of UCAS (2510.10649, xvolcano02/UCAS `compute_ucas_advantage`). c is what the inner
    advantage makes of the certainties of samples, sums over their own steps of the mean of -log p
    over the tokens that may occur (KL from the uniform law, plus a constant); A' is A e^{-up c}
    where A > 0 and A e^{down c} elsewhere. Less price times x at each step, x the step's log p from
    the smallest 0 to the largest 1 over the batch, but never below 0 where A' > 0. All under the
    old policy. The code has logits in the place of log p, which are log p and a number of each
    state that no law fixes: hence a name of its own.

    Attributes:
        inner: the advantage A, of whole samples.
        up: 0.25 in the code.
        down: 0.35 in the code.
        price: 0.05 in the code.

    Examples:
        Of two right answers the one where the policy is unsure gains on the likelier one.

        >>> t = rd.tree([[0, 0], [0, 1], [1, 0], [1, 1]], [1.0, 0.0, 1.0, 0.0])
        >>> log_steps = jnp.log(jnp.array([[0.5, 0.5], [0.5, 0.5], [0.9, 0.1]]))
        >>> relative = rd.methods.advantage.GroupRelative(0.0, "mean", "std")
        >>> for part in (relative, CertaintyShaped(relative, 0.25, 0.35, 0.0)):
        ...     print(rd.field(rd.methods.compose(part), log_steps, t)[0].round(4))
        [-0.2182  0.2182]
        [-0.09  0.09]
    """

    inner: Advantage = looked_at(check_spreading)
    up: Array
    down: Array
    price: Array

    reads: ClassVar[bool] = True

    def __call__(self, batch: Batch) -> Array:
        """Of samples of one step."""
        return self._priced(batch, self._shaped(batch))

    def at_tokens(self, tokens: Batch, advantage: Array) -> Array:
        """Less the price of each step."""
        del advantage
        assert tokens.samples is not None
        return self._priced(tokens, tokens.spread(self._shaped(tokens.samples)))

    def _shaped(self, samples: Batch) -> Array:
        tokens, a = samples.tokens, self.inner(samples)
        each = tokens.pick(tokens.tables.each_row(_surprise, tokens.tables.log_old))
        certainty = self.inner(dataclasses.replace(samples, reward=tokens.whole(each)))
        return a * jnp.exp(jnp.where(a > 0, -self.up, self.down) * certainty)

    def _priced(self, batch: Batch, shaped: Array) -> Array:
        each = batch.pick(batch.tables.log_old)
        least, spread = batch.smallest(each), batch.largest(each) - batch.smallest(each)
        # torch.isclose, as the code asks: then all are 1/2; and 1e-6 is its eps
        flat = spread <= 1e-8 + 1e-5 * jnp.abs(least)
        place = jnp.where(flat, 0.5, (each - least) / (spread + 1e-6))
        raw = shaped - self.price * place
        return jnp.where(shaped > 0, jnp.maximum(raw, 0), raw)


def _surprise(log_p: Float[Array, " V"]) -> Array:
    """The mean of -log p over the tokens that may occur."""
    there = ~jnp.isneginf(log_p)
    count = jnp.maximum(jnp.sum(there), 1).astype(log_p.dtype)
    return -jnp.sum(jnp.where(there, log_p, 0)) / count


@record
class PhaseEntropy(Around):
    """The advantage of rewards less what the mean entropy of each phase of a sample costs.

    R - sum_k weights_k (mean of H over the sample's own steps of phase k), H of the step's state
    under the old policy; a phase without steps costs nothing. The shape of rewards that hold
    thinking and answering apart, under a name of its own.

    Attributes:
        inner: the advantage, of whole samples.
        phase: of each state, integers from 0, shape [S], such as 0 for thinking and 1 for the
            answer; of a bandit [1].
        weights: reward per nat of each phase; below 0 pays for entropy.

    Examples:
        >>> t = rd.tree([[0, 0], [0, 1], [1, 0], [1, 1]], [0.0, 0.0, 0.0, 0.0])
        >>> log_steps = jnp.log(jnp.array([[0.5, 0.5], [0.9, 0.1], [0.5, 0.5]]))
        >>> plain = rd.methods.advantage.GroupRelative(0.0, "mean")
        >>> part = PhaseEntropy(plain, [0, 1, 1], [0.0, 1.0])
        >>> print(rd.field(rd.methods.compose(part), log_steps, t)[0].round(4))
        [ 0.092 -0.092]
    """

    inner: Advantage = looked_at(check_spreading)
    phase: Int[Array, " S"] = looked_at(lambda name, given: as_array(name, given, None))
    weights: Float[Array, " k"] = looked_at(lambda name, given: as_array(name, given))

    reads: ClassVar[bool] = True

    def __call__(self, batch: Batch) -> Array:
        """Of rewards less the costs."""
        tokens, cost = batch.tokens, jnp.zeros_like(batch.reward)
        table = tokens.tables.log_old
        each = tokens.pick(tokens.tables.each_row(entropy, table))
        if self.phase.shape != (tokens.tables.rows,):
            raise ValueError(
                f"phase of PhaseEntropy must be one for each of {tokens.tables.rows} states; got "
                f"shape {self.phase.shape}"
            )
        phase = self.phase[tokens.actions // (table.shape[0] // tokens.tables.rows)]
        for k in range(self.weights.shape[0]):
            inside = jnp.where(phase == k, 1.0, 0.0).astype(each.dtype)
            count = tokens.whole(inside)
            cost = cost + self.weights[k] * tokens.whole(inside * each) / jnp.maximum(count, 1)
        return self.inner(dataclasses.replace(batch, reward=batch.reward - cost))


@record
class Voted(Around):
    """The advantage of rewards 1 for the majority's answer and 0 for others (TTRL 2504.16084).

    Answers are the labels of the problem; its rewards are not looked at. Of answers with equally
    many votes the one that comes first in the group has it, as in PRIME-RL/TTRL
    `test_time_train_metrics`, which over the orders of samples is each as often. All samples vote
    and all are trained on; that code may have more that only vote. On `rd.problems.restarts` the
    votes are those of rollouts that fork.

    Attributes:
        inner: of those rewards, of whole samples.

    Examples:
        Three samples of a law that gives the right answer 2 times in 5: the vote goes the other
        way, and so does the policy.

        >>> b = rd.bandit([1.0, 0.0], [0.4, 0.6])
        >>> print(rd.field(rd.methods.ttrl(), b.log_ref, b, rd.Group(3)).round(4))
        [-0.0554  0.0554]
    """

    inner: Advantage = looked_at(check_spreading)

    reads: ClassVar[bool] = True

    def __call__(self, batch: Batch) -> Array:
        """The mean over which of the answers with most votes comes first."""
        label, weight = batch.labels, jnp.where(batch.here, batch.weight, 0)
        same = label[:, None] == label
        votes = jnp.where(same, 1.0, 0.0).astype(weight.dtype) @ weight
        # 64 ulps: counts that are equal tie
        rounding = 64 * jnp.finfo(weight.dtype).eps
        first = batch.here & (votes >= batch.largest(votes) - rounding)
        chance = jnp.where(first, weight / jnp.where(first, votes, 1), 0)
        chance = chance / jnp.maximum(jnp.sum(chance), rounding)

        def after(elected: Array) -> Array:
            reward = jnp.where(elected, 1.0, 0.0).astype(weight.dtype)
            return self.inner(dataclasses.replace(batch, reward=reward))

        return chance @ jax.vmap(after)(same)
