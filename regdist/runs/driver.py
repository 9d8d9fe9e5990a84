"""The one driver: any method, expectation and optax optimiser, one scan. N records, K actions."""

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Key

from regdist.methods import Expectation, Method, Sampled
from regdist.methods.field import direction, in_dtype, laws_of, prepared
from regdist.methods.groups import draw_groups
from regdist.methods.short import plain_direction
from regdist.numerics.records import Table, as_number, is_concrete, record, static
from regdist.policies.table import softmax
from regdist.problems.bandit import Bandit

if TYPE_CHECKING:
    import optax

_UNROLL = 4
"""Steps of the short gradient in a turn of the loop: on one problem the turns cost as much."""


@record
class Loop:
    """What surrounds a method in a trainer; made by `loop()`.

    Attributes:
        sync_mix: share of the policy's logits in the new reference's at a synchronisation.
        epochs: passes over the samples of a step.
        minibatches: parts that the groups of a step are split into, one update each.
        staleness: how many steps older than the policy its samples are.
        sampler: from the log-probabilities of the old policy to the law really sampled.
        sync_every: steps between synchronisations of the reference, or None for a fixed one.
    """

    sync_mix: Array
    epochs: int = static(default=1)
    minibatches: int = static(default=1)
    staleness: int = static(default=0)
    sampler: Callable[[Array], Array] | None = static(default=None)
    sync_every: int | None = static(default=None)

    @property
    def on_policy(self) -> bool:
        """Whether every update is made with samples of the policy that it moves."""
        return self.epochs * self.minibatches == 1 and not self.staleness and not self.sampler


def loop(
    *,
    epochs: int = 1,
    minibatches: int = 1,
    staleness: int = 0,
    sampler: Callable[[Array], Array] | None = None,
    sync_every: int | None = None,
    sync_mix: ArrayLike = 1.0,
) -> Loop:
    """How a trainer uses a method: re-used samples, stale samples, a moving reference.

    Args:
        epochs: passes over the samples of a step; ratios are 1 in the first update only. In
            expectation (`Population`, `Group`) each update is the expected one under the law that
            the samples came from; `Sampled` re-uses the groups that it drew.
        minibatches: parts that the groups of a step are split into, in order, one update each.
        staleness: the samples of a step come from the policy that many steps before.
        sampler: a law other than the trainer's own old policy: `lambda log_p:
            rd.laws.temper(log_p, 1.1)`. Reuse one function object, to reuse the compiled run.
        sync_every: every so many steps the reference moves: its logits become
            sync_mix * policy + (1 - sync_mix) * reference (TR-DPO 2404.09656).
        sync_mix: in (0, 1]; 1 replaces the reference.

    Raises:
        ValueError: a count is not a positive integer.
    """
    counts = {"epochs": epochs, "minibatches": minibatches, "sync_every": sync_every or 1}
    for name, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be a positive integer; got {name}={count!r}")
    if not isinstance(staleness, int) or staleness < 0:
        raise ValueError(f"staleness must be an integer >= 0; got staleness={staleness!r}")
    return Loop(as_number(sync_mix), epochs, minibatches, staleness, sampler, sync_every)


@record
class Trajectory:
    """What a run passed through; made by `run()`.

    Attributes:
        step: steps taken at each record, shape [N]. After an early stop the last policy repeats.
        log_probs: the policies, in nats, shape [N, K].
        field_norm: largest |update direction| over actions at each record, shape [N]: expected,
            or of the groups drawn next under `Sampled`.
        steps: steps taken in all.
        settled: whether the run stopped because the field norm was at most the tolerance at a
            record.
        nonfinite: the step of the first record that would not have been finite, or -1. The steps
            since the record before it were not taken: the last policy is the last finite one
            recorded. Such a run has no derivative: in reverse mode it is NaN.
        control: the number that a controller moves, shape [N]; 0 without one.
    """

    step: Int[Array, "*batch N"]
    log_probs: Float[Array, "*batch N K"]
    field_norm: Float[Array, "*batch N"]
    steps: Int[Array, "*batch"]
    settled: Bool[Array, "*batch"]
    nonfinite: Int[Array, "*batch"]
    control: Float[Array, "*batch N"]


def run(
    method: Method,
    bandit: Bandit,
    steps: int = 2000,
    optimizer: "optax.GradientTransformation | None" = None,
    expectation: Expectation | None = None,
    key: Key[Array, ""] | None = None,
    init: Table | None = None,
    record_every: int = 10,
    tolerance: ArrayLike = 0.0,
    loop: Loop | None = None,
) -> Trajectory:
    """Move a softmax table by a method's update and record where it goes.

    Each step hands the optimiser the gradient -field, so that `optax.sgd(eta)` is
    z <- z + eta field(z).

    Args:
        method: from `rd.methods`.
        bandit: K actions.
        steps: at most this many.
        optimizer: any optax gradient transformation; default `optax.sgd(0.1)`. Pass the same
            object again to reuse the compiled run; a learning rate under vmap is fine.
        expectation: `Population()`, the default, and `Group(size)` are exact and draw nothing;
            `Sampled(group_size, num_groups)` draws groups at each step.
        key: for `Sampled`. Step t draws with `jax.random.fold_in(key, t)`: how often is recorded
            changes no number.
        init: starting logits, shape [K]; default the reference policy. Forbidden actions (reward
            -inf) start, and stay, at probability 0.
        record_every: steps between records; the last record is the end, whatever is left.
        tolerance: stop at the first record where no component of the field is larger; 0 stops
            where it is exactly 0. Sampled runs never stop early.
        loop: from `rd.loop`: epochs, minibatches, staleness, another sampler, a moving reference.
            Default: one update a step, on its own samples.

    Returns:
        A `Trajectory` with N = ceil(steps / record_every) + 1 records, the start included.

    Raises:
        ValueError: steps or record_every is not positive, init has another shape, `Sampled`
            without a key, or groups that cannot be split into so many minibatches.

    >>> import optax
    >>> b = rd.bandit([1.0, 0.0], [0.1, 0.9])
    >>> npg = rd.methods.natural_policy_gradient(rd.ReverseKL(0.5))
    >>> path = run(npg, b, steps=1, record_every=1, optimizer=optax.sgd(2.0))
    >>> bool(jnp.allclose(path.log_probs[-1], rd.target(b, rd.ReverseKL(0.5)).log_probs))
    True
    """
    if record_every < 1 or steps < 1:
        raise ValueError(
            f"steps and record_every must be positive integers; got steps={steps}, "
            f"record_every={record_every}"
        )
    start = bandit.log_ref if init is None else jnp.asarray(init, dtype=bandit.reward.dtype)
    if start.shape != bandit.reward.shape:
        raise ValueError(f"init must have shape {bandit.reward.shape}; got {start.shape}")
    start = jnp.where(jnp.isneginf(bandit.reward), -jnp.inf, start)
    limit = jnp.asarray(tolerance, dtype=start.dtype)
    chosen = default_optimizer() if optimizer is None else optimizer
    around = Loop(as_number(1.0)) if loop is None else loop
    over = prepared(expectation, method, bandit)
    if isinstance(over, Sampled):
        if key is None:
            raise ValueError(f"{over!r} draws: give key=jax.random.key(seed)")
        if over.num_groups % around.minibatches:
            raise ValueError(
                f"{over.num_groups} groups cannot be split into {around.minibatches} minibatches"
            )
    drive = _compiled_drive if is_concrete(method, bandit, start, limit, key, around) else _drive
    within = init is None
    if init is not None and is_concrete(start, bandit.log_ref):
        within = bool(np.all(np.isneginf(start) | np.isfinite(bandit.log_ref)))
    return drive(
        method,
        bandit,
        start,
        limit,
        over,
        key,
        around,
        chosen,
        steps,
        record_every,
        within,
        may_stop=not (isinstance(tolerance, int | float) and tolerance == 0),
    )


@functools.cache
def default_optimizer() -> "optax.GradientTransformation":
    """`optax.sgd(0.1)`, one object, so that runs with it share their compilation."""
    import optax

    return optax.sgd(0.1)


def _drive(
    method: Method,
    bandit: Bandit,
    start: Array,
    tolerance: Array,
    expectation: Expectation,
    key: Array | None,
    loop: Loop,
    optimizer: "optax.GradientTransformation",
    steps: int,
    record_every: int,
    within: bool,
    may_stop: bool,
) -> Trajectory:
    zero = jnp.zeros((), dtype=int)
    off_support = jnp.isneginf(start)
    mix = loop.sync_mix.astype(start.dtype)
    method = in_dtype(method, start.dtype)

    plain = None
    if within and loop.on_policy and not loop.sync_every:
        plain = plain_direction(method, bandit, expectation)

    def key_of(state: dict) -> Array | None:
        return None if key is None else jax.random.fold_in(key, state["count"])

    def beginning(state: dict) -> tuple[Method, Any, Array | None]:
        """The method, the tables and the groups that a step starts with."""
        log_p = softmax(state["logits"])
        old = softmax(state["past"][0]) if loop.staleness else log_p
        held = bandit
        if loop.sync_every:
            held = dataclasses.replace(bandit, log_ref=softmax(state["reference"]))
        law = loop.sampler(old) if loop.sampler else old
        laws = laws_of(method, log_p, held, old, law)
        groups = None
        if isinstance(expectation, Sampled):
            groups = draw_groups(expectation, laws, key_of(state))
        now = method
        if method.controller is not None:
            now = method.controller.apply(method, state["control"], laws)
        return now, laws, groups

    def first_direction(state: dict) -> Array:
        if plain is not None:
            return plain(state["logits"], key_of(state))
        now, laws, groups = beginning(state)
        return direction(now, laws, bandit, expectation, part(groups, zero), loop.on_policy)

    def part(groups: Array | None, i: Array) -> Array | None:
        if groups is None or loop.minibatches == 1:
            return groups
        split = groups.reshape(loop.minibatches, -1, groups.shape[1])
        return split[i % loop.minibatches]

    def ascend(toward: Array, logits: Array, memory: Any) -> tuple[Array, Any]:
        held = jnp.where(off_support, 0, logits)  # weight decay of -inf would be NaN
        updates, memory = optimizer.update(-toward, memory, held)
        new = held + jnp.asarray(updates, dtype=logits.dtype)
        return jnp.where(off_support, -jnp.inf, new), memory

    def short_step(state: dict, _: None) -> tuple[dict, None]:
        new, memory = ascend(first_direction(state), state["logits"], state["memory"])
        return dict(state, logits=new, memory=memory, count=state["count"] + 1), None

    def one_step(state: dict, _: None) -> tuple[dict, None]:
        now, laws, groups = beginning(state)

        def update(moving: tuple[Array, Any], i: Array) -> tuple[tuple[Array, Any], None]:
            logits, memory = moving
            here = dataclasses.replace(laws, log_p=softmax(logits))
            on = loop.on_policy
            toward = direction(now, here, bandit, expectation, part(groups, i), on)
            return ascend(toward, logits, memory), None

        (new, memory), _ = update((state["logits"], state["memory"]), zero)
        if loop.epochs * loop.minibatches > 1:
            more = jnp.arange(1, loop.epochs * loop.minibatches)
            (new, memory), _ = jax.lax.scan(update, (new, memory), more)
        count = state["count"] + 1
        fresh = dict(state, logits=new, memory=memory, count=count)
        if loop.staleness:
            fresh["past"] = jnp.concatenate([state["past"][1:], new[None]])
        if loop.sync_every:
            moved = mix * softmax(new) + (1 - mix) * softmax(state["reference"])
            moved = jnp.where(jnp.isneginf(state["reference"]), -jnp.inf, moved)
            due = count % loop.sync_every == 0
            fresh["reference"] = jnp.where(due, moved, state["reference"])
        if method.controller is not None:
            after = dataclasses.replace(laws, log_p=softmax(new))
            fresh["control"] = method.controller.move(state["control"], after)
        return fresh, None

    def advance(state: dict, length: int) -> dict:
        step = one_step if plain is None else short_step
        unroll = 1 if plain is None or isinstance(expectation, Sampled) else _UNROLL
        end = jax.lax.scan(step, state, None, length=length, unroll=unroll)[0]
        broken = ~jnp.all(off_support | jnp.isfinite(end["logits"]))
        kept = jax.tree.map(lambda old, x: jnp.where(broken, old, x), state, end)
        return dict(kept, nonfinite=jnp.where(broken, end["count"], state["nonfinite"]))

    def block(ended: tuple[dict, Array], length: int) -> tuple[tuple[dict, Array], tuple]:
        state, settled = ended
        halted = settled | (state["nonfinite"] >= 0)
        if may_stop:
            state = jax.lax.cond(halted, lambda s: s, lambda s: advance(s, length), state)
        else:  # under vmap the branches of a cond hold a copy of every constant for each problem
            end = advance(state, length)
            state = jax.tree.map(lambda old, x: jnp.where(halted, old, x), state, end)
        shown = snapshot(state)
        return (state, settled | stands(shown[2])), shown

    def stands(norm: Array) -> Array:
        if isinstance(expectation, Sampled):  # where a group of equal rewards says nothing
            return jnp.zeros((), bool)
        return norm <= tolerance

    def snapshot(state: dict) -> tuple[Array, ...]:
        norm = jnp.max(jnp.abs(first_direction(state)))
        return state["count"], softmax(state["logits"]), norm, state["control"]

    memory: Any = optimizer.init(jnp.where(off_support, 0, start))
    control = jnp.zeros((), start.dtype)
    if method.controller is not None:
        control = method.controller.start()
    state = {
        "logits": start,
        "memory": memory,
        "count": zero,
        "nonfinite": zero - 1,
        "control": control,
        "past": jnp.tile(start, (loop.staleness + 1, 1)) if loop.staleness else None,
        "reference": bandit.log_ref if loop.sync_every else None,
    }
    first = snapshot(state)
    now = state, stands(first[2])
    records = [jax.tree.map(lambda x: x[None], first)]
    blocks, rest = divmod(steps, record_every)
    now, recorded = jax.lax.scan(lambda s, _: block(s, record_every), now, None, length=blocks)
    records.append(recorded)
    if rest:
        now, end = block(now, rest)
        records.append(jax.tree.map(lambda x: x[None], end))
    state, settled = now
    step, log_probs, norm, control = jax.tree.map(lambda *x: jnp.concatenate(x), *records)
    return Trajectory(step, log_probs, norm, state["count"], settled, state["nonfinite"], control)


_compiled_drive = jax.jit(
    _drive, static_argnames=("optimizer", "steps", "record_every", "within", "may_stop")
)
