"""The method record and its update, under every expectation."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, Key

from regdist.methods.advantage import Advantage, GroupRelative
from regdist.methods.batch import Batch, Laws
from regdist.methods.expectation import (
    MOST_ENTRIES,
    Expectation,
    Group,
    Population,
    Sampled,
    all_groups,
    draw,
    num_groups,
)
from regdist.methods.geometry import GEOMETRIES
from regdist.methods.surrogate import LogProb, Surrogate
from regdist.numerics.logspace import expect, full_precision, log_ratio, times_exp
from regdist.numerics.records import is_concrete, record, static
from regdist.policies.table import softmax
from regdist.problems.bandit import Bandit
from regdist.regularizers.divergence import KL
from regdist.regularizers.regularizer import Regularizer


@record
class Method:
    """How a policy is moved: a composition of parts, made by the presets or by `compose`.

    The update is the mean over a group of coefficient times score, less the gradient of the
    regulariser, in a geometry. The coefficient of a sample is
    surrogate(ratio, advantage(rewards less penalties)) times the weights, less the penalties in
    the loss.

    Attributes:
        advantage: what a sample is worth beside its group.
        surrogate: what the ratio to the old policy does to it.
        penalties: divergences estimated at the samples.
        weights: factors on the coefficient: masks, truncated importance weights.
        regularizer: subtracted exactly, summed over all actions; None for nothing.
        signal: what is paid in place of the reward, if it depends on the policy.
        controller: what moves a coefficient during a run.
        geometry: "softmax", "natural" or "sign".
    """

    advantage: Advantage
    surrogate: Surrogate = LogProb()
    penalties: tuple[Any, ...] = ()
    weights: tuple[Any, ...] = ()
    regularizer: Regularizer | None = None
    signal: Any = None
    controller: Any = None
    geometry: str = static(default="softmax")

    @property
    def differentiable(self) -> bool:
        """Whether the field can be differentiated: not through a written loss, which detaches."""
        return self.surrogate.differentiable

    @property
    def compares_rewards_alone(self) -> bool:
        """Whether a group meets only through its rewards: then equal rewards are one class."""
        parts = (self.surrogate, *self.penalties, *self.weights)
        return (
            self.signal is None
            and not self.advantage.sees_policy
            and all(part.local for part in parts)
            and not any(penalty.regroups for penalty in self.penalties)
        )

    def advantages(self, batch: Batch) -> Float[Array, " n"]:
        """The advantage of each entry of a batch, before penalties that come after it."""
        reward = batch.reward
        for penalty in self.penalties:
            if penalty.regroups:
                reward = reward - penalty.in_reward(batch)
        return self.advantage(dataclasses.replace(batch, reward=reward))

    def coefficients(self, batch: Batch, advantage: Float[Array, " n"]) -> Float[Array, " n"]:
        """What multiplies the score of each entry of a batch, given its advantage."""
        for penalty in self.penalties:
            if penalty.placement == "reward" and penalty.after:
                advantage = advantage - penalty.in_reward(batch)
        return self._earned(batch, advantage) - self._penalized(batch, advantage)

    def mean_coefficients(
        self, batch: Batch, up: Float[Array, " n"], down: Float[Array, " n"]
    ) -> Float[Array, " n"]:
        """The mean of `coefficients` over advantages, from the means of their two signs' sizes.

        For parts where samples do not meet: those are linear in the advantage on each side of 0.
        """
        for penalty in self.penalties:
            assert penalty.placement == "loss"
        one = jnp.ones_like(up)
        earned = up * self._earned(batch, one) + down * self._earned(batch, -one)
        return earned - self._penalized(batch, one)

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


def field(
    method: Method,
    logits: Float[Array, " K"],
    bandit: Bandit,
    expectation: Expectation | None = None,
    *,
    key: Key[Array, ""] | None = None,
    old: Float[Array, " K"] | None = None,
    sampler: Float[Array, " K"] | None = None,
) -> Float[Array, " K"]:
    """The expected ascent direction of a method on the logits, shape [K].

    With coefficients c_i it is sum_i m_i c_i (e_i - p) for the softmax gradient, m the law that
    the samples come from. For `policy_gradient` that is p_i (w_i - E_p w) with
    w_i = R_i - d regulariser/d p_i, and w_i - E_p w in the natural geometry.

    Args:
        method: from `rd.methods`.
        logits: the parameters of a softmax table, shape [K]; -inf is probability 0, which a
            forbidden action (reward -inf) should have: its direction is 0.
        bandit: rewards and reference.
        expectation: `Population()`, the default: the exact average over actions; `Group(size)`:
            the exact average over groups; `Sampled(group_size, num_groups)`: one draw.
        key: for `Sampled`.
        old: log-probabilities of the policy at the time the samples were drawn; default the
            policy itself, so that every ratio is 1.
        sampler: log-probabilities that the samples were really drawn from; default `old`.

    Raises:
        ValueError: `Sampled` without a key, a group size below 1, or more groups than can be
            enumerated.

    >>> b = rd.bandit([1.0, 0.0], [0.5, 0.5])
    >>> print(field(rd.methods.policy_gradient(rd.ReverseKL(0.1)), b.log_ref, b))
    [ 0.25 -0.25]
    >>> print(field(rd.methods.rloo(), b.log_ref, b, rd.Group(4)))
    [ 0.25 -0.25]
    """
    chosen = prepared(expectation, method, bandit)
    method = in_dtype(method, logits.dtype)
    laws = laws_of(method, softmax(logits), bandit, old, sampler)
    lists = draw_groups(chosen, laws, key) if isinstance(chosen, Sampled) else None
    return direction(method, laws, bandit, chosen, lists, old is None and sampler is None)


def in_dtype(method: Method, dtype: Any) -> Method:
    """The method with its numbers in the dtype of a table."""
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), method)


@full_precision
def laws_of(
    method: Method,
    log_p: Float[Array, " K"],
    bandit: Bandit,
    old: Float[Array, " K"] | None = None,
    sampler: Float[Array, " K"] | None = None,
) -> Laws:
    """The tables of a step, with what the method pays in place of the reward."""
    log_old = log_p if old is None else old
    laws = Laws(
        _paid(bandit), log_p, log_old, log_old if sampler is None else sampler, bandit.log_ref
    )
    if method.signal is None:
        return laws
    return dataclasses.replace(laws, reward=method.signal(laws))


def _paid(bandit: Bandit) -> Array:
    """The rewards, with 0 for those that forbid: nothing is drawn there."""
    return jnp.where(jnp.isneginf(bandit.reward), 0, bandit.reward)


@full_precision
def direction(
    method: Method,
    laws: Laws,
    bandit: Bandit,
    expectation: Expectation,
    lists: Int[Array, "M G"] | None = None,
    on_policy: bool = False,
) -> Float[Array, " K"]:
    """What `field` returns, from the tables of the step and the groups drawn, if any."""
    log_p, log_ref = laws.log_p, laws.log_ref
    if isinstance(expectation, Population):
        gain, weighted = _population(method, laws, on_policy)
    elif isinstance(expectation, Group) and method.compares_rewards_alone:
        gain, weighted = _by_class(method, laws, expectation)
    else:
        lists, log_weight = group_lists(expectation, laws, lists)
        weighted = jnp.sum(listed(method, laws, lists, log_weight), axis=0)
        gain = times_exp(weighted, -jnp.where(jnp.isneginf(log_p), jnp.inf, log_p))
    if method.regularizer is not None:
        gain = gain - method.regularizer.slope(log_p, log_ref)
        weighted = weighted - method.regularizer.weighted_slope(log_p, log_ref)
    allowed = ~jnp.isneginf(bandit.reward)
    gain, weighted = (jnp.where(allowed, x, 0) for x in (gain, weighted))
    return jnp.where(allowed, GEOMETRIES[method.geometry](log_p, gain, weighted), 0)


Direction = Callable[[Float[Array, " K"], Key[Array, ""] | None], Float[Array, " K"]]
"""From logits, and a key if it draws, to `direction` there."""


def plain_direction(method: Method, bandit: Bandit, expectation: Expectation) -> Direction | None:
    """`direction` on its own policy in one exponential an action; None where there is no such.

    For the exact policy gradient of rewards less reverse KLs or entropies, and for drawn groups
    that compare rewards alone, without a regulariser. Logits must be -inf where the reward or the
    reference is.
    """
    if any((method.penalties, method.weights, method.signal, method.controller)):
        return None
    if isinstance(expectation, Population):
        return _plain_gradient(method, bandit)
    if isinstance(expectation, Sampled):
        return _plain_drawn(method, bandit, expectation)
    return None


def _plain_gradient(method: Method, bandit: Bandit) -> Direction | None:
    """With Q = R + sum_t beta_t log q_t the marginal gain is Q - beta z up to a constant.

    The constant cancels in the baseline, so that the log-probabilities are not needed.
    """
    advantage, regularizer = method.advantage, method.regularizer
    terms = () if regularizer is None else regularizer.terms
    known = (
        isinstance(advantage, GroupRelative)
        and advantage.scale == "none"
        and method.geometry in ("softmax", "natural")
        and all(isinstance(t.divergence, KL) and t.anchor is None for t in terms)
    )
    if not known:
        return None
    gain, beta = bandit.reward, jnp.zeros((), bandit.reward.dtype)
    for part in () if regularizer is None else regularizer.reduce(bandit.log_ref):
        excluded = jnp.isneginf(part.log_anchor)
        anchored = part.beta * jnp.where(excluded, 0, part.log_anchor)
        gain, beta = jnp.where(excluded, -jnp.inf, gain + anchored), beta + part.beta
    gain = jnp.where(jnp.isneginf(gain), 0, gain)

    def toward(logits: Array, key: Array | None) -> Array:
        del key
        e = jnp.exp(logits - jnp.max(logits))
        held = ~jnp.isneginf(logits)
        w = gain - beta * jnp.where(held, logits, 0)
        total = jnp.sum(e)
        lead = w - jnp.sum(e * w) / total
        return e * lead / total if method.geometry == "softmax" else jnp.where(held, lead, 0)

    return toward


def _plain_drawn(method: Method, bandit: Bandit, over: Sampled) -> Direction | None:
    """Coefficients added up by action: in a batch whose ratios are 1, whatever the policy is."""
    if (
        method.regularizer is not None
        or method.geometry != "softmax"
        or not method.compares_rewards_alone
    ):
        return None
    size, paid = over.group_size, _paid(bandit)
    share, even = jnp.full(size, 1 / size, paid.dtype), jnp.zeros(size, paid.dtype)

    def toward(logits: Array, key: Array | None) -> Array:
        assert key is not None
        e = jax.lax.optimization_barrier(jnp.exp(logits - jnp.max(logits)))
        total = jnp.sum(e)
        actions = draw(key, e, (over.num_groups, size))
        facts = paid[jnp.argmax(e)], jnp.sum(e * paid) / total

        def coefficients(reward: Array) -> Array:
            laws = Laws(reward, even, even, even, even)
            batch = Batch(reward, share, jnp.ones(size, bool), share[0], *facts, laws)
            return method.coefficients(batch, method.advantages(batch))

        weight = jax.vmap(coefficients)(paid[actions]) / actions.size
        moved = -e * (jnp.sum(weight) / total)
        return moved.at[actions].add(weight)

    return toward


def prepared(expectation: Expectation | None, method: Method, bandit: Bandit) -> Expectation:
    """The expectation with its classes of actions, if it needs any; refuses what is too large."""
    expectation = Population() if expectation is None else expectation
    if not isinstance(expectation, Expectation):
        raise ValueError(
            "expectation must be rd.Population(), rd.Group(size) or "
            f"rd.Sampled(group_size, num_groups); got {expectation!r}"
        )
    for name, value in vars(expectation).items():
        if name in ("size", "group_size", "num_groups") and not (
            isinstance(value, int | np.integer) and value >= 1
        ):
            raise ValueError(f"{name} must be an integer of at least 1; got {name}={value!r}")
    need = method.advantage.needs
    if need == "group" and isinstance(expectation, Population):
        raise ValueError(
            f"{type(method.advantage).__name__} moves nothing in groups of infinite size: use "
            "rd.Group(size) or rd.Sampled(group_size, num_groups)"
        )
    if need == "population" and not isinstance(expectation, Population):
        raise ValueError(
            f"{type(method.advantage).__name__} is about laws, not groups of the policy's samples: "
            "use rd.Population()"
        )
    if not isinstance(expectation, Group):
        return expectation
    looks = expectation.classes is None and method.compares_rewards_alone
    if looks and is_concrete(bandit.reward):
        expectation = expectation.on(bandit.reward)
    size, classes = expectation.size, expectation.classes or bandit.num_actions
    count = num_groups(size, classes)
    if count * max(classes, bandit.num_actions) > MOST_ENTRIES:
        why = "different rewards" if expectation.classes else "actions, each a class of its own,"
        raise ValueError(
            f"Group({size}) over {classes} {why} has {count:,} groups; at most {MOST_ENTRIES:,} "
            f"groups times actions are enumerated. Use rd.Sampled({size}, num_groups), "
            "rd.Population(), a smaller group, or rd.transform.verify for a binary reward"
        )
    return expectation


def table(laws: Laws, weight: Array, inv_size: float) -> Batch:
    """All actions in order, as a batch."""
    size = jnp.full((), inv_size, weight.dtype)
    return Batch(laws.reward, weight, ~jnp.isneginf(laws.log_sampler), size, *_facts(laws), laws)


def _facts(laws: Laws) -> tuple[Array, Array]:
    """The rewards of the likeliest action and, on average, of the old policy."""
    return laws.reward[jnp.argmax(laws.log_old)], expect(laws.log_old, laws.reward)


def _population(method: Method, laws: Laws, on_policy: bool) -> tuple[Array, Array]:
    batch = table(laws, jnp.exp(laws.log_sampler), 0.0)
    coefficient = method.coefficients(batch, method.advantages(batch))
    if on_policy:  # a constant moves nothing, and rounding is relative to what is left
        coefficient = coefficient - batch.largest(coefficient)
    weighted = times_exp(coefficient, laws.log_sampler)
    return times_exp(coefficient, log_ratio(laws.log_sampler, laws.log_p)), weighted


class Classes(NamedTuple):
    """All groups of a size, as counts of classes of actions.

    Attributes:
        member: the class of each action, shape [K].
        belongs: 1 where an action is of a class, else 0, shape [K, L].
        number: samples of each class in each group, shape [M, L].
        log_group: log-probability of each group, shape [M].
        log_chance: log-probability that a sample is of each class, shape [L].
        advantage: of each class in each group, shape [M, L].
    """

    member: Array
    belongs: Array
    number: Array
    log_group: Array
    log_chance: Array
    advantage: Array

    def given(self) -> Array:
        """P(group | it holds an action of a class), shape [M, L]."""
        size = jnp.sum(self.number[0])
        log_chance = jnp.where(jnp.isneginf(self.log_chance), jnp.inf, self.log_chance)
        return times_exp(self.number / size, self.log_group[:, None] - log_chance)


def by_class(method: Method, laws: Laws, group: Group) -> Classes:
    """Enumerates groups where rewards alone decide who is worth what."""
    num_actions, dtype = laws.reward.shape[0], laws.reward.dtype
    member = jnp.arange(num_actions) if group.member is None else group.member
    classes = group.classes or num_actions
    counts, log_multiplicity = all_groups(group.size, classes)
    shares = jnp.asarray(counts / group.size, dtype)
    inv_size = jnp.full((), 1 / group.size, dtype)
    reward = jnp.zeros(classes, dtype).at[member].set(laws.reward)
    belongs = (member[:, None] == jnp.arange(classes)).astype(dtype)
    chance = jnp.exp(laws.log_sampler) @ belongs
    some = chance > 0
    finite = jnp.where(some, jnp.log(jnp.where(some, chance, 1)), 0)
    number = jnp.asarray(counts, dtype)
    never = number @ (~some).astype(dtype) > 0
    log_group = jnp.asarray(log_multiplicity, dtype) + number @ finite
    log_group = jnp.where(never, -jnp.inf, log_group)
    log_chance = jnp.where(some, finite, -jnp.inf)

    def advantages(share: Array) -> Array:
        return method.advantages(Batch(reward, share, share > 0, inv_size, *_facts(laws)))

    advantage = jax.vmap(advantages)(shares)
    return Classes(member, belongs, number, log_group, log_chance, advantage)


def each_coefficient(method: Method, laws: Laws, groups: Classes, size: int) -> Array:
    """The coefficient of each action's score in each group, shape [M, K]."""
    every = table(laws, jnp.exp(laws.log_sampler), 1 / size)
    return jax.vmap(lambda a: method.coefficients(every, a[groups.member]))(groups.advantage)


def _by_class(method: Method, laws: Laws, group: Group) -> tuple[Array, Array]:
    groups = by_class(method, laws, group)
    given = groups.given()
    if any(penalty.placement == "reward" for penalty in method.penalties):
        given = given[:, groups.member]
        coefficient = each_coefficient(method, laws, groups, group.size)
        mean = jnp.sum(jnp.where(given > 0, given * coefficient, 0), axis=0)
    else:
        up, down = (
            groups.belongs @ jnp.sum(given * jnp.maximum(sign * groups.advantage, 0), axis=0)
            for sign in (1, -1)
        )
        every = table(laws, jnp.exp(laws.log_sampler), 1 / group.size)
        mean = method.mean_coefficients(every, up, down)
    weighted = times_exp(mean, laws.log_sampler)
    return times_exp(mean, log_ratio(laws.log_sampler, laws.log_p)), weighted


def draw_groups(expectation: Sampled, laws: Laws, key: Key[Array, ""] | None) -> Int[Array, "M G"]:
    """The actions of the groups of one step."""
    if key is None:
        raise ValueError(f"{expectation!r} draws: give key=jax.random.key(seed)")
    return draw(key, jnp.exp(laws.log_sampler), (expectation.num_groups, expectation.group_size))


def group_lists(expectation: Expectation, laws: Laws, drawn: Array | None) -> tuple[Array, Array]:
    """Groups as lists of actions, shape [M, G], and the log of their weights, shape [M]."""
    if drawn is not None:
        return drawn, jnp.full(drawn.shape[0], -np.log(drawn.shape[0]), laws.reward.dtype)
    assert isinstance(expectation, Group)
    counts, log_multiplicity = all_groups(expectation.size, laws.reward.shape[0])
    each = np.tile(np.arange(counts.shape[1]), counts.shape[0])
    index = np.repeat(each, counts.ravel()).reshape(-1, expectation.size)
    log_weight = jnp.asarray(log_multiplicity, laws.reward.dtype)
    return jnp.asarray(index), log_weight + jnp.sum(laws.log_sampler[index], axis=1)


def listed(method: Method, laws: Laws, index: Array, log_weight: Array) -> Float[Array, "M K"]:
    """For each group, weight times the mean over samples of coefficient, by action."""
    dtype, size = laws.reward.dtype, index.shape[1]
    share = jnp.full(size, 1 / size, dtype)
    inv_size = jnp.full((), 1 / size, dtype)

    def one(actions: Array, log_chance: Array) -> Array:
        present = ~jnp.isneginf(laws.log_sampler[actions])
        reward = laws.reward[actions]
        batch = Batch(reward, share, present, inv_size, *_facts(laws), laws, actions)
        coefficient = method.coefficients(batch, method.advantages(batch))
        value = times_exp(jnp.where(present, coefficient, 0) / size, log_chance)
        return jnp.zeros(laws.reward.shape[0], dtype).at[actions].add(value)

    return jax.vmap(one)(index, log_weight)
