"""Over what an update is averaged: the policy itself, all groups of a size, or drawn groups.

An expectation answers for itself: whether it draws and what, the mean that it takes, and which
expectation it draws from. Nothing elsewhere asks which one it is given.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, cast

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, Key

from regdist.methods.batch import Tables, by_step, whole_table
from regdist.methods.groups import (
    Classes,
    by_class,
    check_exchangeable,
    check_weighted,
    draw,
    each_coefficient,
    every_list,
    listed,
    mean_coefficient,
    num_groups,
)
from regdist.methods.lengths import mean_shares
from regdist.methods.method import Method
from regdist.methods.short import Direction, plain_drawn, plain_gradient
from regdist.numerics.logspace import log_ratio, times_exp
from regdist.numerics.records import (
    check_count,
    check_key,
    described,
    is_concrete,
    record,
    static,
)
from regdist.problems.bandit import Bandit, Outcomes

MOST_ENTRIES = 4_000_000
"""The most entries, groups times actions, that `Group` enumerates: 32 MB a table in float64."""


class Pull(NamedTuple):
    """The marginal gain of each action, dJ/dp_i, and p_i times it, shape [K] each.

    On a tree of sequences K is of steps, and p_i is how often the policy comes to take one.

    Both, because the limit of the second at p_i = 0 may be finite where the first has none.
    """

    gain: Float[Array, " K"]
    weighted: Float[Array, " K"]


def contract(
    tables: Tables,
    *,
    coefficient: Float[Array, " K"] | None = None,
    total: Float[Array, " K"] | None = None,
) -> Pull:
    """Weight times coefficient, summed by action: what multiplies grad log p_i in an update.

    Args:
        tables: of the step.
        coefficient: the mean of each action's samples, which weigh what the sampler gives them; of
            sequences that of each of their steps, [K T] in order.
        total: or the sum over samples, weights included; of sequences by steps.
    """
    if tables.steps is not None and coefficient is not None:
        each = coefficient.reshape(tables.steps.path.shape)
        total = by_step(tables.steps, times_exp(each, tables.log_sampler[:, None]))
    if total is not None:
        log_p = tables.log_p if tables.steps is None else tables.steps.log_reach
        return Pull(times_exp(total, -jnp.where(jnp.isneginf(log_p), jnp.inf, log_p)), total)
    assert coefficient is not None
    rho = log_ratio(tables.log_sampler, tables.log_p)
    return Pull(times_exp(coefficient, rho), times_exp(coefficient, tables.log_sampler))


class Expectation:
    """What every expectation answers.

    `draws` says that it needs a key, and that a run under it never stands still.
    """

    draws: ClassVar[bool] = False

    @property
    def inv_size(self) -> float:
        """1/G, 0 for the population."""
        return 0.0

    def check(
        self,
        method: Method,
        bandit: Bandit | Outcomes,
        sequences: Callable[[Array], Tables] | None = None,
    ) -> None:
        """Refuses methods that do not exist under it, or are seen to count where they should weigh.

        Args:
            method: whose update.
            bandit: the problem, or the whole sequences of a tree.
            sequences: of a tree, from a shift of the logits of its steps, flat, to its tables.

        Raises:
            ValueError: such a method.
        """
        raise NotImplementedError

    def fitted(self, method: Method, bandit: Bandit | Outcomes, horizon: int = 1) -> "Expectation":
        """This expectation with what it must know of the rewards of a problem.

        Args:
            method: whose update.
            bandit: the problem, or the whole sequences of a tree.
            horizon: the most steps of a sequence.

        Raises:
            ValueError: there are too many groups.
        """
        del method, bandit, horizon
        return self

    def exact(self) -> "Expectation":
        """The expectation whose mean it takes or draws."""
        return self

    def check_key(self, key: Any) -> None:
        """Refuses what is no key, and None where groups are drawn."""
        check_key(key)

    def draw(self, tables: Tables, key: Key[Array, ""] | None) -> Int[Array, "M G"] | None:
        """The actions of the groups of a step; None where nothing is drawn."""
        del tables, key
        return None

    def check_split(self, parts: int) -> None:
        """Refuses minibatches that the groups of a step cannot be split into."""
        del parts

    def pull(
        self, method: Method, tables: Tables, lists: Int[Array, "M G"] | None, on_policy: bool
    ) -> Pull:
        """The mean update, before the regularizer and the geometry.

        Args:
            method: whose.
            tables: of the step.
            lists: what `draw` gave, or part of it.
            on_policy: whether the samples are known to be the policy's own.
        """
        raise NotImplementedError

    def may_shorten(self, method: Method) -> bool:
        """Whether `short`, if there is one, is known to be the update; asked on known values."""
        del method
        return False

    def short(self, method: Method, bandit: Bandit) -> Direction | None:
        """The update on its own policy in one exponential an action; None where there is none."""
        del method, bandit
        return None


@record
class Population(Expectation):
    """The exact expectation over actions: one group of infinite size, the policy itself."""

    def check(
        self,
        method: Method,
        bandit: Bandit | Outcomes,
        sequences: Callable[[Array], Tables] | None = None,
    ) -> None:
        """Methods must exist without groups and weigh their entries."""
        if method.advantage.needs == "group":
            raise ValueError(
                f"{type(method.advantage).__name__} moves nothing in groups of infinite size: use "
                "rd.Group(size) or rd.Sampled(group_size, num_groups)"
            )
        check_weighted(method, bandit, sequences)

    def pull(
        self, method: Method, tables: Tables, lists: Int[Array, "M G"] | None, on_policy: bool
    ) -> Pull:
        """The sum over actions."""
        del lists
        batch = whole_table(tables, jnp.exp(tables.log_sampler), 0.0)
        coefficient = method.step_coefficients(batch, method.advantages(batch))
        if on_policy:  # a constant moves nothing, and rounding is relative to what is left
            coefficient = coefficient - batch.tokens.largest(coefficient)
        return contract(tables, coefficient=coefficient)

    def may_shorten(self, method: Method) -> bool:
        """Where the surrogate leaves the advantage alone at ratio 1."""
        return method.surrogate.is_advantage_at_one()

    def short(self, method: Method, bandit: Bandit) -> Direction | None:
        """For rewards less reverse KLs or entropies."""
        return plain_gradient(method, bandit)


@record
class Group(Expectation):
    """The exact expectation over groups of G independent samples.

    Groups are enumerated as counts. Where a method compares rewards alone, actions with equal
    rewards are one class: for a binary reward that leaves G + 1 groups, whatever K is. A group has
    no order: an advantage that is seen to break ties by place is refused.

    Attributes:
        size: G, a positive integer.
        classes: number of classes, or None before `on` has looked at the rewards.
        member: the class of each action, shape [K].
    """

    size: int = static(look=check_count)
    classes: int | None = static(default=None)
    member: Int[Array, " K"] | None = None

    def __repr__(self) -> str:
        known = "" if self.classes is None else f", classes={self.classes}"
        return f"Group({self.size}{known})"

    @property
    def inv_size(self) -> float:
        """1/G."""
        return 1 / self.size

    def on(self, reward: Array) -> "Group":
        """This expectation for tables with these rewards, known now; then usable under jit.

        Of many prompts, shape [C, K], each has its own classes, as many as the most of one.
        """
        known = np.asarray(reward)
        if known.ndim == 2:
            rows = [np.unique(row, return_inverse=True) for row in known]
            member = np.stack([of_action.ravel() for _, of_action in rows])
            return Group(self.size, max(len(levels) for levels, _ in rows), jnp.asarray(member))
        levels, member = np.unique(known, return_inverse=True)
        return Group(self.size, len(levels), jnp.asarray(member.ravel()))

    def check(
        self,
        method: Method,
        bandit: Bandit | Outcomes,
        sequences: Callable[[Array], Tables] | None = None,
    ) -> None:
        """Methods must exist in groups and pay no sample for its place."""
        _check_grouped(method)
        check_exchangeable(method, bandit, self.size, sequences)

    def fitted(self, method: Method, bandit: Bandit | Outcomes, horizon: int = 1) -> "Group":
        """With its classes, where equal rewards are one."""
        by_reward = self._by_reward(method, horizon)
        looks = by_reward and (self.classes is None or np.ndim(bandit.reward) == 2)
        group = self.on(bandit.reward) if looks and is_concrete(bandit.reward) else self
        known = group.classes if by_reward else None
        classes = known or bandit.num_actions
        size = bandit.num_actions
        row = max(classes, size) * horizon
        if method.averaging.couples() and by_reward and horizon > 1:
            row = max(classes * (self.size * horizon + 1), size)  # laws of total lengths
        row *= int(np.prod(np.shape(bandit.reward)[:-1]))  # prompts
        self._check_few(
            classes, "different rewards" if known else "actions, each a class of its own,", row
        )
        return group

    def _check_few(self, classes: int, why: str, row: int) -> None:
        """Refuses more groups than can be enumerated, with so many entries each."""
        count = num_groups(self.size, classes)
        if count * max(row, classes) > MOST_ENTRIES:
            raise ValueError(
                f"Group({self.size}) over {classes} {why} has {count:,} groups; at most "
                f"{MOST_ENTRIES:,} groups times actions are enumerated. Use "
                f"rd.Sampled({self.size}, num_groups), rd.Population(), a smaller group, or "
                "rd.transform.verify for a binary reward"
            )

    def _by_reward(self, method: Method, horizon: int) -> bool:
        """Whether counts of equal rewards suffice, with the lengths' laws where steps are many."""
        paid = any(penalty.placement == "reward" for penalty in method.penalties)
        lists = horizon > 1 and (not method.spreads or (method.averaging.couples() and paid))
        return method.compares_rewards_alone and not lists

    def by_class(self, method: Method, tables: Tables) -> Classes:
        """All groups as counts, of a method that compares rewards alone."""
        num_actions = tables.reward.shape[0]
        member = jnp.arange(num_actions) if self.member is None else self.member
        return by_class(method, tables, self.size, self.classes or num_actions, member)

    def pull(
        self, method: Method, tables: Tables, lists: Int[Array, "M G"] | None, on_policy: bool
    ) -> Pull:
        """The sum over groups."""
        del lists, on_policy
        if self._by_reward(method, tables.horizon):
            groups = self.by_class(method, tables)
            meet = method.averaging.couples() and tables.horizon > 1
            share = mean_shares(tables, groups) if meet else None
            return contract(tables, coefficient=mean_coefficient(method, tables, groups, share))
        each = listed(method, tables, *every_list(tables, self.size))
        return contract(tables, total=jnp.sum(each, axis=0))

    def moments(self, method: Method, tables: Tables) -> tuple[Array, Array]:
        """Mean [K] and second moment [K, K] of the sum of coefficients by action in a group.

        Of sequences by steps, [P] and [P, P].
        """
        if tables.steps is not None or not method.compares_rewards_alone:
            self._check_few(tables.reward.shape[0], "actions, each a class of its own,", 1)
            index, log_weight = every_list(tables, self.size)
            each = listed(method, tables, index, jnp.zeros_like(log_weight))
            weight = jnp.exp(log_weight)
            return weight @ each, (each * weight[:, None]).T @ each
        groups, size = self.by_class(method, tables), self.size
        p = jnp.exp(tables.log_sampler)
        given = jnp.where(p > 0, groups.given()[:, groups.member], 0)
        c = jnp.where(given > 0, each_coefficient(method, tables, groups), 0)
        mean = p * jnp.sum(given * c, axis=0)
        alone = jnp.diag(p * jnp.sum(given * c**2, axis=0)) / size
        if size == 1:
            return mean, alone
        # A pair of samples: n_l n_m of the G (G - 1) ordered ones, n_l (n_l - 1) within a class.
        held = groups.number[:, groups.member]
        log_chance = groups.log_chance[groups.member]
        scaled = times_exp(held * c, -jnp.where(jnp.isneginf(log_chance), jnp.inf, log_chance))
        weight = jnp.exp(groups.log_group)[:, None]
        pairs = (weight * scaled).T @ scaled
        same = groups.member[:, None] == groups.member[None, :]
        single = jnp.where(held > 0, scaled / jnp.where(held > 0, held, 1), 0)
        pairs = pairs - jnp.where(same, (weight * scaled).T @ single, 0)
        return mean, alone + jnp.outer(p, p) * pairs / size**2


@record
class Sampled(Expectation):
    """The mean update of groups drawn with a key: an unbiased draw of `Group`.

    Attributes:
        group_size: samples a group.
        num_groups: groups of the one prompt, independent, whose updates are averaged. Statistics
            that a trainer takes over its batch are taken over each group.
    """

    group_size: int = static(look=check_count)
    num_groups: int = static(default=1, look=check_count)

    draws: ClassVar[bool] = True

    @property
    def inv_size(self) -> float:
        """1/G."""
        return 1 / self.group_size

    def check(
        self,
        method: Method,
        bandit: Bandit | Outcomes,
        sequences: Callable[[Array], Tables] | None = None,
    ) -> None:
        """Methods must exist in groups."""
        del bandit, sequences
        _check_grouped(method)

    def check_split(self, parts: int) -> None:
        """They have as many groups each."""
        if self.num_groups % parts:
            raise ValueError(f"{self.num_groups} groups cannot be split into {parts} minibatches")

    def exact(self) -> Group:
        """All groups of its size."""
        return Group(self.group_size)

    def check_key(self, key: Any) -> None:
        """It draws."""
        super().check_key(key)
        if key is None:
            raise ValueError(f"{self!r} draws: give key=jax.random.key(seed)")

    def draw(self, tables: Tables, key: Key[Array, ""] | None) -> Int[Array, "M G"]:
        """Groups from the sampler."""
        assert key is not None
        return draw(key, jnp.exp(tables.log_sampler), (self.num_groups, self.group_size))

    def pull(
        self, method: Method, tables: Tables, lists: Int[Array, "M G"] | None, on_policy: bool
    ) -> Pull:
        """The mean over the groups drawn."""
        del on_policy
        assert lists is not None
        log_weight = jnp.full(lists.shape[0], -np.log(lists.shape[0]), tables.reward.dtype)
        return contract(tables, total=jnp.sum(listed(method, tables, lists, log_weight), axis=0))

    def may_shorten(self, method: Method) -> bool:
        """Always: it computes the coefficients."""
        del method
        return True

    def short(self, method: Method, bandit: Bandit) -> Direction | None:
        """For methods that compare rewards alone, without a regularizer."""
        return plain_drawn(method, bandit, self.group_size, self.num_groups)


def prepared(
    expectation: Expectation | None,
    method: Method,
    bandit: Bandit | Outcomes,
    horizon: int = 1,
    one: Bandit | Outcomes | None = None,
    sequences: Callable[[Array], Tables] | None = None,
) -> Expectation:
    """The expectation asked for, by default `Population()`, made ready for a problem.

    Args:
        expectation: or None.
        method: whose update.
        bandit: the problem, the whole sequences of a tree, or those of many prompts, stacked.
        horizon: the most steps of a sequence.
        one: of many prompts, one.
        sequences: as in `Expectation.check`.
    """
    expectation = Population() if expectation is None else expectation
    if not isinstance(cast(object, expectation), Expectation):
        raise TypeError(
            "expectation must be rd.Population(), rd.Group(size) or "
            f"rd.Sampled(group_size, num_groups); got {described(expectation)}"
        )
    expectation.check(method, bandit if one is None else one, sequences)
    return expectation.fitted(method, bandit, horizon)


def _check_grouped(method: Method) -> None:
    if method.advantage.needs == "population":
        raise ValueError(
            f"{type(method.advantage).__name__} is about policies, not groups of samples of one: "
            "use rd.Population()"
        )
