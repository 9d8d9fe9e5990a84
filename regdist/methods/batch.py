"""What a method sees: a weighted list of samples, and the tables they are looked up in.

Every expectation is made of batches. The policy itself is one, all K actions weighted by their
probability, as a group of infinite size; a group of G samples is another, each entry with the
weight 1/G, or each action with its count over G. Nothing below knows which it is given, and the
entries have no order: what an advantage gives to one must not depend on its place in the list.
n is the number of entries, K of actions.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Shaped

from regdist.numerics.logspace import expect, log_ratio
from regdist.numerics.records import record, static
from regdist.problems.bandit import Bandit, Outcomes
from regdist.problems.paths import Paths


@record
class Tables:
    """The tables of one step, over all K actions, in nats.

    Attributes:
        reward: what the policy is paid, shape [K]; 0 where the reward forbids an action.
        log_p: the policy that is moved.
        log_old: the policy when the batch was drawn, as the trainer computes it.
        log_sampler: the distribution that the batch was really drawn from.
        log_ref: the reference.
        label: the answer that each action stands for, ints, shape [K].
        steps: what an action is made of, if it is a sequence of steps.
        rows: the number of laws in a table: of single steps, one for each state.
        log_even: the law that is even in each state, where there are many, or where some actions
            of a table are not the problem's own.
    """

    reward: Float[Array, " K"]
    log_p: Float[Array, " K"]
    log_old: Float[Array, " K"]
    log_sampler: Float[Array, " K"]
    log_ref: Float[Array, " K"]
    label: Int[Array, " K"]
    steps: "Steps | None" = None
    rows: int = static(default=1)
    log_even: Float[Array, " K"] | None = None

    @property
    def horizon(self) -> int:
        """The most steps that an action is made of; 1 in a bandit."""
        return 1 if self.steps is None else self.steps.path.shape[1]

    def each_row(self, fn: Callable[[Array], Array], table: Float[Array, " K"]) -> Array:
        """A function of the law in each state, at all of its actions; a bandit has one state."""
        if self.rows == 1:
            return jnp.broadcast_to(fn(table), table.shape)
        split = table.reshape(self.rows, -1)
        return jax.vmap(lambda row: jnp.broadcast_to(fn(row), row.shape))(split).reshape(-1)

    @property
    def uniform(self) -> Float[Array, " K"]:
        """Log of the law that takes all actions of a state alike."""
        if self.log_even is not None:
            return self.log_even
        return jnp.full_like(self.log_ref, -jnp.log(float(self.log_ref.shape[0])))


@record
class Steps:
    """What samples are made of where they are sequences: K samples of up to T steps, P steps.

    Attributes:
        tables: of single steps, flat; what they earn is 0.
        paths: which states and steps there are.
        chooses: the states where the policy moves; in the others chance does.
        log_reach: log-probability that the policy comes to take each step.
    """

    tables: Tables
    paths: Paths
    chooses: Bool[Array, " S"]
    log_reach: Float[Array, " P"]

    @property
    def path(self) -> Int[Array, "K T"]:
        """The steps of each sample in order."""
        return self.paths.steps

    @property
    def there(self) -> Bool[Array, "K T"]:
        """Which of them are not beyond the end."""
        return self.paths.there

    @property
    def own(self) -> Bool[Array, "K T"]:
        """Which are the policy's: there, and not chance's."""
        return self.there & self.chooses[self.path // self.paths.exists.shape[1]]


@record
class Batch:
    """A weighted list of samples of one prompt, shape [n] each.

    What an advantage, a weight, a surrogate or a penalty may use: `reward`, `weight` and `here`;
    the reductions `sum`, `mean`, `std`, `largest`, `smallest`, right under every expectation;
    `size` and `endless`; `greedy` and `value`; and, for parts that declare that they see the
    policy, `actions`, `labels`, `log_rho`, `log_ratio(log_p, log_q)`, `pick(table)` and `tables`.
    Entries that did not occur (`~here`) have weight 0; what a part returns for them is not used.

    Attributes:
        reward: 0 for entries that are not there.
        weight: share of the batch, sums to 1.
        present: entries that may occur at all.
        inv_size: 1/G, 0 for the policy itself.
        greedy: the reward of the likeliest action under the old policy.
        value: the expected reward under the old policy: what a perfect critic knows.
        step: the tables, or None where only rewards are known.
        index: the action of each entry, or None for the whole table in order.
        samples: of a batch of steps, the batch of their samples.
        horizon: of a batch of steps, how many there are to a sample.
    """

    reward: Float[Array, " n"]
    weight: Float[Array, " n"]
    present: Bool[Array, " n"]
    inv_size: Float[Array, ""]
    greedy: Float[Array, ""]
    value: Float[Array, ""]
    step: Tables | None = None
    index: Int[Array, " n"] | None = None
    samples: "Batch | None" = None
    horizon: int = static(default=1)

    @property
    def length(self) -> Float[Array, " n"]:
        """The number of the policy's own steps in each sample; 1 in a bandit."""
        steps = None if self.step is None else self.step.steps
        if steps is None:
            return jnp.ones_like(self.reward)
        return self.pick(jnp.sum(steps.own, axis=1).astype(self.reward.dtype))

    @property
    def tokens(self) -> "Batch":
        """The steps of the samples as a batch, n T entries of equal share; in a bandit itself.

        Its `weight` is the share of all steps, its size the number of steps; `spread` and `whole`
        go between samples and their steps.
        """
        steps = None if self.step is None else self.step.steps
        if steps is None:
            return self
        path, own = (x if self.index is None else x[self.index] for x in (steps.path, steps.own))
        horizon, mean = self.tables.horizon, self.mean(self.length)
        mean = jnp.where(mean > 0, mean, 1)
        return Batch(
            reward=jnp.repeat(self.reward, horizon),
            weight=jnp.where(own.reshape(-1), jnp.repeat(self.weight, horizon), 0) / mean,
            present=jnp.repeat(self.present, horizon) & own.reshape(-1),
            inv_size=self.inv_size / mean,
            greedy=self.greedy,
            value=self.value,
            step=steps.tables,
            index=path.reshape(-1),
            samples=self,
            horizon=horizon,
        )

    def spread(self, x: Shaped[Array, " n"]) -> Array:
        """What each sample has, at its steps; of a batch of steps."""
        return x if self.samples is None else jnp.repeat(x, self.horizon)

    def whole(self, x: Array) -> Array:
        """The sum over the steps of each sample; of a batch of steps."""
        if self.samples is None:
            return x
        return jnp.sum(jnp.where(self.present, x, 0).reshape(-1, self.horizon), axis=1)

    def mean_of_steps(self, x: Array) -> Array:
        """The mean over the own steps of each sample, at all of them; of a batch of steps."""
        count = jnp.maximum(self.whole(jnp.ones_like(x)), 1)
        return self.spread(self.whole(x) / count)

    def to_go(self, x: Array) -> Array:
        """The sum from each step of a sample on; of a batch of steps."""
        if self.samples is None:
            return x
        rows = jnp.where(self.present, x, 0).reshape(-1, self.horizon)
        return jnp.cumsum(rows[:, ::-1], axis=1)[:, ::-1].reshape(-1)

    @property
    def last(self) -> Bool[Array, " n"]:
        """Which steps are the last own one of their sample; of a batch of steps."""
        return self.present & (self.to_go(jnp.ones_like(self.weight)) == 1)

    def of_sequences(self, mean: bool) -> "Batch":
        """The steps, each with the log-probabilities of its whole sequence: their sum, or mean."""
        if self.samples is None:
            return self
        count = jnp.maximum(self.samples.length, 1) if mean else jnp.ones_like(self.samples.reward)

        def over(table: Array) -> Array:
            return self.spread(self.whole(self.pick(table)) / count)

        whole = Tables(
            reward=self.reward,
            log_p=over(self.tables.log_p),
            log_old=over(self.tables.log_old),
            log_sampler=over(self.tables.log_sampler),
            log_ref=over(self.tables.log_ref),
            label=jnp.zeros(self.reward.shape, int),
        )
        return dataclasses.replace(self, step=whole, index=None)

    @property
    def tables(self) -> Tables:
        """The tables; only for parts that declare that they see the policy.

        Raises:
            ValueError: the part has not declared it, and is given counts of equal rewards.
        """
        if self.step is None:
            raise ValueError(
                "this advantage reads the policy, the labels or the actions, and has not said so: "
                "let its class have sees_policy = True"
            )
        return self.step

    @property
    def actions(self) -> Int[Array, " n"]:
        """The action of each entry."""
        return jnp.arange(self.tables.reward.shape[0]) if self.index is None else self.index

    @property
    def labels(self) -> Int[Array, " n"]:
        """The label of each entry: samples of one answer share it."""
        return self.tables.label[self.actions]

    def pick(self, table: Float[Array, " K"]) -> Float[Array, " n"]:
        """A table's values at the entries; 0 for entries that are not there."""
        values = table if self.index is None else table[self.index]
        return jnp.where(self.present, values, 0)

    def log_ratio(self, log_p: Float[Array, " K"], log_q: Float[Array, " K"]) -> Array:
        """log(p/q) at the entries; 0 for entries that are not there."""
        return self.pick(log_ratio(log_p, log_q))

    @property
    def log_rho(self) -> Float[Array, " n"]:
        """Log of the importance ratio policy/old policy."""
        return self.log_ratio(self.tables.log_p, self.tables.log_old)

    @property
    def endless(self) -> Bool[Array, ""]:
        """Whether this is the policy itself rather than a group of samples."""
        return self.inv_size == 0

    @property
    def size(self) -> Float[Array, ""]:
        """G, to the last digit; 1 for the policy itself, where it has no meaning."""
        return jnp.round(1 / jnp.where(self.endless, 1, self.inv_size))

    @property
    def here(self) -> Bool[Array, " n"]:
        """Entries that did occur."""
        return self.present & (self.weight > 0)

    def sum(self, x: Float[Array, " n"]) -> Float[Array, ""]:
        """The weighted sum of x."""
        return jnp.sum(self.weight * jnp.where(self.here, x, 0))

    def largest(self, x: Float[Array, " n"], among: Bool[Array, " n"] | None = None) -> Array:
        """The largest x of entries that occurred; -inf if there is none."""
        which = self.here if among is None else self.here & among
        return jnp.max(jnp.where(which, x, -jnp.inf), initial=-jnp.inf)

    def smallest(self, x: Float[Array, " n"]) -> Array:
        """The smallest x of entries that occurred."""
        return -self.largest(-x)

    def mean(self, x: Float[Array, " n"]) -> Float[Array, ""]:
        """The weighted mean of x, exact where all are equal."""
        pivot = jax.lax.stop_gradient(self.largest(x))
        return pivot + self.sum(x - pivot)

    def std(self, x: Float[Array, " n"], unbiased: bool) -> Float[Array, ""]:
        """The weighted standard deviation, with G - 1 in the denominator if unbiased."""
        variance = self.sum((x - self.mean(x)) ** 2)
        if unbiased:
            single = self.inv_size == 1
            variance = variance / jnp.where(single, 1, 1 - self.inv_size)
        flat = variance <= 0
        return jnp.where(flat, 0, jnp.sqrt(jnp.where(flat, 1, variance)))


def whole_table(tables: Tables, weight: Float[Array, " K"], inv_size: float) -> Batch:
    """All actions in order, as a batch."""
    size = jnp.full((), inv_size, weight.dtype)
    present = ~jnp.isneginf(tables.log_sampler)
    return Batch(tables.reward, weight, present, size, *facts(tables), tables)


def by_step(steps: Steps, x: Float[Array, "K _"]) -> Float[Array, " P"]:
    """The sum over samples of what each has at its own steps, by step."""
    each = jnp.where(steps.own, x, 0)
    return jnp.zeros_like(steps.log_reach).at[steps.path].add(each)


def paid_rewards(bandit: Bandit | Outcomes) -> Float[Array, " K"]:
    """The rewards, with 0 for those that forbid: nothing is drawn there."""
    return jnp.where(jnp.isneginf(bandit.reward), 0, bandit.reward)


def facts(tables: Tables) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The rewards of the likeliest action and, on average, of the old policy.

    Of sequences the likeliest is what is decoded greedily, step by step; chance does its likeliest.
    """
    steps, likeliest = tables.steps, jnp.argmax(tables.log_old)
    if steps is not None:
        rows = steps.tables.log_old.reshape(steps.tables.rows, -1)
        first = jnp.argmax(rows, axis=1)[:, None] == jnp.arange(rows.shape[1])
        taken = first.reshape(-1)[steps.path] | ~steps.there
        likeliest = jnp.argmax(jnp.all(taken, axis=1))
    return tables.reward[likeliest], expect(tables.log_old, tables.reward)


def covariance(batch: Batch, advantage: Array) -> Array:
    """(A - mean A)(log p - mean log p) at each entry."""
    log_p = batch.pick(batch.tables.log_p)
    return (advantage - batch.mean(advantage)) * (log_p - batch.mean(log_p))


def share_of_samples(batch: Batch, fraction: Array) -> Array:
    """The share of a batch that is `fraction` of its samples, rounded down, and at least one."""
    # 1e-9: a whole number of samples may come out a few ulps below itself
    count = jnp.maximum(jnp.floor(fraction * batch.size + 1e-9), 1)
    return jnp.where(batch.endless, fraction, count * batch.inv_size)


def top_share(batch: Batch, x: Array, share: Array) -> Array:
    """How much of each entry belongs to the `share` of the batch with the largest x.

    Ties at the edge share it evenly: the mean over the orders in which they may come.
    """
    weight = jnp.where(batch.here, batch.weight, 0)
    finite = batch.here & jnp.isfinite(x)
    # 64 ulps of the largest: two x that are equal in exact arithmetic tie.
    rounding = 64 * jnp.finfo(x.dtype).eps * jnp.max(jnp.where(finite, jnp.abs(x), 0), initial=0)
    gap = jnp.where(finite[None, :], x[None, :], -jnp.inf) - jnp.where(finite, x, 0)[:, None]
    larger = jnp.sum(jnp.where(gap > rounding, weight[None, :], 0), axis=1)
    equal = jnp.sum(jnp.where(jnp.abs(gap) <= rounding, weight[None, :], 0), axis=1)
    left = jnp.clip(share - larger, 0, equal)
    return jnp.where(finite, left / jnp.where(equal > 0, equal, 1), 0)


def quantile(batch: Batch, x: Array, level: Array) -> Array:
    """The quantile of x over a batch, linear between order statistics; of the law, its step."""
    order = jnp.argsort(jnp.where(batch.here, x, jnp.inf))
    value = x[order]
    share = jnp.cumsum(jnp.where(batch.here, batch.weight, 0)[order])
    endless, size = batch.endless, batch.size
    rank = level * (size - 1)

    def at(k: Array) -> Array:
        reached = jnp.where(endless, share >= level, size * share > k + 0.5)
        return value[jnp.argmax(reached)]

    low = jnp.floor(rank)
    return at(low) + jnp.where(endless, 0, rank - low) * (at(low + 1) - at(low))
