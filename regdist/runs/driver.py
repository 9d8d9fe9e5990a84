"""The one driver: any method, expectation and optax optimizer, one scan. N records, K actions."""

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from regdist.methods.batch import Tables
from regdist.methods.expectation import Expectation
from regdist.methods.field import check_params, check_problem
from regdist.methods.method import Method
from regdist.methods.short import Direction
from regdist.methods.step import (
    Problem,
    drawn,
    expected_pull,
    fitted,
    in_dtype,
    leaves_of,
    push,
    tables_of,
    with_policy,
)
from regdist.numerics.records import Law, Number, as_number, check_count, is_concrete, record
from regdist.policies.policy import Params, Policy
from regdist.policies.table import Table
from regdist.problems.bandit import Bandit
from regdist.problems.contexts import Contexts, forbidden_of, whole_law, with_reference
from regdist.problems.placed import table_on
from regdist.runs.checks import as_limit, check_sampler, check_surroundings
from regdist.runs.loop import Loop

if TYPE_CHECKING:
    import optax

_UNROLL = 4
"""Steps of the short gradient in a turn of the loop: on one problem the turns cost as much."""


@record
class Trajectory(Law):
    """What a run passed through; made by `run()`.

    Attributes:
        step: steps taken at each record, shape [N]. After an early stop the last policy repeats.
        log_probs: the policies, in nats, shape [N, K]; of contexts [N, C, K].
        field_norm: largest |update direction| over actions at each record, shape [N]: expected,
            or of the groups drawn next under `Sampled`.
        steps: steps taken in all.
        settled: whether the run stopped because the field norm was at most the tolerance at a
            record.
        nonfinite: the step of the first record that would not have been finite, or -1. The steps
            since the record before it were not taken: the last policy is the last finite one
            recorded. Such a run has no derivative: in reverse mode it is NaN.
        control: what a controller moves, shape [N] for a number, [N, ...] for an array; 0 without
            one.
        params: the parameters of the policy at the end, to go on from with `init`.
    """

    step: Int[Array, "*batch N"]
    log_probs: Float[Array, "..."]
    field_norm: Float[Array, "*batch N"]
    steps: Int[Array, "*batch"]
    settled: Bool[Array, "*batch"]
    nonfinite: Int[Array, "*batch"]
    control: Float[Array, "*batch_and_control"]
    params: Params


def run(
    method: Method,
    bandit: Problem,
    steps: int = 2000,
    optimizer: "optax.GradientTransformation | None" = None,
    expectation: Expectation | None = None,
    key: Key[Array, ""] | None = None,
    init: Params | None = None,
    record_every: int = 10,
    tolerance: Number = 0.0,
    loop: Loop | None = None,
    *,
    policy: Policy | None = None,
) -> Trajectory:
    """Move a policy by a method's update and record where it goes.

    Each step hands the optimizer the gradient -field, so that `optax.sgd(eta)` is
    z <- z + eta field(z).

    Args:
        method: from `rd.methods`.
        bandit: K actions; or a tree, whose whole sequences are the K that are recorded; or
            contexts, of which [C, K] are.
        steps: at most this many.
        optimizer: any optax gradient transformation; default `optax.sgd(0.1)`. Pass the same
            object again to reuse the compiled run; a learning rate under vmap is fine.
        expectation: `Population()`, the default, and `Group(size)` are exact and draw nothing;
            `Sampled(group_size, num_groups)` draws groups at each step.
        key: for `Sampled`. Step t draws with `jax.random.fold_in(key, t)`: how often is recorded
            changes no number.
        init: starting parameters: of a table, logits, shape [K], of a tree [S, V]; default the
            reference policy.
            Forbidden actions (reward -inf) start, and stay, at probability 0.
        record_every: steps between records; the last record is the end, whatever is left.
        tolerance: stop at the first record where no component of the field is larger; 0 stops
            where it is exactly 0. Sampled runs never stop early.
        loop: from `rd.loop`: epochs, minibatches, staleness, another sampler, a moving reference.
            Default: one update a step, on its own samples.
        policy: what the parameters mean; default `rd.policies.Table()`.

    Returns:
        A `Trajectory` with N = ceil(steps / record_every) + 1 records, the start included.

    Raises:
        TypeError: an argument of another kind, such as a regularizer for the method.
        ValueError: steps or record_every is not positive, init has another shape, `Sampled`
            without a key, groups that cannot be split into so many minibatches, or a controller
            over contexts.

    Examples:
        >>> import optax
        >>> b = rd.bandit([1.0, 0.0], [0.1, 0.9])
        >>> npg = rd.methods.natural_policy_gradient(rd.ReverseKL(0.5))
        >>> path = run(npg, b, steps=1, record_every=1, optimizer=optax.sgd(2.0))
        >>> bool(jnp.allclose(path.log_probs[-1], rd.target(b, rd.ReverseKL(0.5)).log_probs))
        True
    """
    policy = check_problem(method, bandit, policy, trees=True)
    leaves = leaves_of(bandit)
    if isinstance(bandit, Contexts) and method.controller is not None:
        raise ValueError(
            f"{type(method.controller).__name__} follows one policy's law, and contexts have "
            "many: run each of contexts.each, or leave the controller out"
        )
    loop = Loop(as_number(1.0)) if loop is None else loop
    optimizer = default_optimizer() if optimizer is None else optimizer
    check_count("steps", steps)
    check_count("record_every", record_every)
    check_surroundings(optimizer, loop)
    expectation = fitted(expectation, method, bandit)
    expectation.check_key(key)
    expectation.check_split(loop.minibatches)
    start = policy.start(bandit.log_ref) if init is None else init
    start = check_params(policy, start, bandit, "init")
    start = policy.exclude(start, forbidden_of(bandit))
    limit = as_limit(tolerance, leaves.reward.dtype)
    check_sampler(loop, policy, start, bandit)
    within = isinstance(bandit, Bandit) and isinstance(policy, Table)
    within = within and (init is None or _inside(start, bandit.log_ref))
    known = is_concrete(method, bandit, policy, start, limit, key, loop)
    drive = _compiled_drive if known else _drive
    return drive(
        _Given(method, bandit, policy, expectation, loop, key),
        start,
        limit,
        optimizer=optimizer,
        steps=steps,
        record_every=record_every,
        short=within and loop.is_bare and expectation.may_shorten(method),
        may_stop=not (isinstance(tolerance, int | float) and tolerance == 0),
    )


def _inside(start: Array, log_ref: Array) -> bool:
    """Whether it is known that a table starts on the support of the reference."""
    if not is_concrete(start, log_ref):
        return False
    return bool(np.all(np.isneginf(start) | np.isfinite(log_ref)))


@functools.cache
def default_optimizer() -> "optax.GradientTransformation":
    """`optax.sgd(0.1)`, one object, so that runs with it share their compilation."""
    import optax

    return optax.sgd(0.1)


@record
class _Given:
    """What a run is asked to do, fixed from its first step to its last."""

    method: Method
    problem: Problem
    policy: Policy
    expectation: Expectation
    loop: Loop
    key: Array | None


class _State(NamedTuple):
    """What a run carries from step to step.

    Attributes:
        params: of the policy.
        memory: of the optimizer.
        taken: steps so far.
        nonfinite: as in `Trajectory`.
        control: what the controller moves.
        past: the parameters of the last steps, the oldest first, where samples are stale.
        reference: the log-probabilities of a reference that moves.
    """

    params: Params
    memory: Any
    taken: Array
    nonfinite: Array
    control: Array
    past: Params | None
    reference: Array | None


class _Look(NamedTuple):
    """A record of a run."""

    step: Array
    log_probs: Array
    field_norm: Array
    control: Array


class _Trainer:
    """A step of the run, whatever surrounds the method."""

    unroll = 1

    def __init__(self, given: _Given, start: Params, optimizer: "optax.GradientTransformation"):
        self.given = given
        self.method = in_dtype(given.method, leaves_of(given.problem).reward.dtype)
        self.optimizer = optimizer
        # Parameters at -inf are probability 0 for ever: no optimizer sees them.
        self.gone = jax.tree.map(jnp.isneginf, start)

    def begin(self, start: Params) -> _State:
        """The state before the first step."""
        loop, controller = self.given.loop, self.method.controller
        zero = jnp.zeros((), int)
        control = jnp.zeros((), leaves_of(self.given.problem).reward.dtype)
        return _State(
            params=start,
            memory=self.optimizer.init(self.held(start)),
            taken=zero,
            nonfinite=zero - 1,
            control=control if controller is None else controller.start(),
            past=jax.tree.map(lambda x: jnp.stack([x] * (loop.staleness + 1)), start)
            if loop.staleness
            else None,
            reference=self.given.problem.log_ref if loop.sync_every else None,
        )

    def held(self, params: Params) -> Params:
        """Parameters as the optimizer sees them: weight decay of -inf would be NaN."""
        return jax.tree.map(lambda gone, x: jnp.where(gone, 0, x), self.gone, params)

    def law(self, logits: Array) -> Array:
        """The law of logits of a table."""
        return table_on(self.given.problem).log_probs(logits)

    def ascend(self, toward: Params, params: Params, memory: Any) -> tuple[Params, Any]:
        """One step of the optimizer."""
        held = self.held(params)
        updates, memory = self.optimizer.update(jax.tree.map(jnp.negative, toward), memory, held)

        def add(gone: Array, x: Array, update: Array) -> Array:
            return jnp.where(gone, -jnp.inf, x + jnp.asarray(update, dtype=x.dtype))

        return jax.tree.map(add, self.gone, held, updates), memory

    def key_at(self, state: _State) -> Array | None:
        """The key of a step: of its number alone."""
        key = self.given.key
        return None if key is None else jax.random.fold_in(key, state.taken)

    def gather(self, state: _State) -> tuple[Method, Tables, Array | None]:
        """The method, the tables and the groups that a step starts with."""
        given = self.given
        loop, policy, problem = given.loop, given.policy, given.problem
        log_p = log_old = policy.log_probs(state.params)
        if loop.staleness:
            log_old = policy.log_probs(jax.tree.map(lambda x: x[0], state.past))
        if state.reference is not None:
            problem = with_reference(problem, self.law(state.reference))
        log_sampler = loop.law_of_samples(log_old, problem)
        tables = tables_of(self.method, log_p, problem, log_old, log_sampler)
        lists = drawn(given.expectation, tables, self.key_at(state), problem)
        method = self.method
        if method.controller is not None:
            method = method.controller.apply(method, state.control, tables)
        return method, tables, lists

    def direction(
        self, method: Method, params: Params, tables: Tables, lists: Array | None, i: Array | int
    ) -> Params:
        """The update direction of the i-th update of a step."""
        given = self.given
        if lists is not None and given.loop.minibatches > 1:
            parts = given.loop.minibatches
            *prompts, groups, size = lists.shape
            split = lists.reshape(*prompts, parts, groups // parts, size)
            lists = jnp.take(split, i % parts, axis=len(prompts))
        own = given.loop.on_policy
        pull = expected_pull(method, tables, given.expectation, lists, own, given.problem)
        return push(method, given.policy, params, given.problem, pull)

    def first_direction(self, state: _State) -> Params:
        """The direction of the first update of the next step."""
        method, tables, lists = self.gather(state)
        return self.direction(method, state.params, tables, lists, 0)

    def step(self, state: _State) -> _State:
        """One step: all the updates that one batch of samples is used for."""
        loop, policy = self.given.loop, self.given.policy
        method, tables, lists = self.gather(state)

        def update(moving: tuple[Params, Any], i: Array) -> tuple[tuple[Params, Any], None]:
            params, memory = moving
            here = with_policy(tables, self.given.problem, policy.log_probs(params))
            toward = self.direction(method, params, here, lists, i)
            return self.ascend(toward, params, memory), None

        moving, _ = update((state.params, state.memory), jnp.zeros((), int))
        if loop.epochs * loop.minibatches > 1:
            more = jnp.arange(1, loop.epochs * loop.minibatches)
            moving, _ = jax.lax.scan(update, moving, more)
        params, memory = moving
        taken = state.taken + 1
        past, control, reference = state.past, state.control, state.reference
        if loop.staleness:
            past = jax.tree.map(lambda x, new: jnp.concatenate([x[1:], new[None]]), past, params)
        if reference is not None and loop.sync_every:
            mix = loop.sync_mix.astype(reference.dtype)
            moved = mix * policy.log_probs(params) + (1 - mix) * self.law(reference)
            moved = jnp.where(jnp.isneginf(reference), -jnp.inf, moved)
            reference = jnp.where(taken % loop.sync_every == 0, moved, reference)
        if method.controller is not None:
            after = with_policy(tables, self.given.problem, policy.log_probs(params))
            control = method.controller.move(control, after)
        return _State(params, memory, taken, state.nonfinite, control, past, reference)

    def advance(self, state: _State, length: int) -> _State:
        """So many steps, or none of them if the last does not end finite."""

        def once(state: _State, _: None) -> tuple[_State, None]:
            return self.step(state), None

        end = jax.lax.scan(once, state, None, length=length, unroll=self.unroll)[0]
        fine = jax.tree.map(lambda gone, x: jnp.all(gone | jnp.isfinite(x)), self.gone, end.params)
        broken = ~functools.reduce(jnp.logical_and, jax.tree.leaves(fine))
        kept = jax.tree.map(lambda old, x: jnp.where(broken, old, x), state, end)
        return kept._replace(nonfinite=jnp.where(broken, end.taken, state.nonfinite))

    def look(self, state: _State) -> _Look:
        """What is recorded of a state."""
        sizes = [jnp.max(jnp.abs(x)) for x in jax.tree.leaves(self.first_direction(state))]
        norm = functools.reduce(jnp.maximum, sizes)
        log_p = whole_law(self.given.problem, self.given.policy.log_probs(state.params))
        return _Look(state.taken, log_p, norm, state.control)


class _ShortTrainer(_Trainer):
    """A step that is the short update alone, on the policy's own samples."""

    def __init__(
        self,
        given: _Given,
        start: Params,
        optimizer: "optax.GradientTransformation",
        toward: Direction,
    ):
        super().__init__(given, start, optimizer)
        self.toward = toward
        self.unroll = 1 if given.expectation.draws else _UNROLL

    def first_direction(self, state: _State) -> Params:
        """By the short update."""
        return self.toward(state.params, self.key_at(state))

    def step(self, state: _State) -> _State:
        """One update."""
        params, memory = self.ascend(self.first_direction(state), state.params, state.memory)
        return state._replace(params=params, memory=memory, taken=state.taken + 1)


def _drive(
    given: _Given,
    start: Params,
    tolerance: Array,
    *,
    optimizer: "optax.GradientTransformation",
    steps: int,
    record_every: int,
    short: bool,
    may_stop: bool,
) -> Trajectory:
    """Blocks of steps between records, none of them once the run has settled or broken."""
    trainer = _Trainer(given, start, optimizer)
    toward = None
    if short and isinstance(given.problem, Bandit):
        toward = given.expectation.short(trainer.method, given.problem)
    if toward is not None:
        trainer = _ShortTrainer(given, start, optimizer, toward)

    def settles(look: _Look) -> Array:
        if given.expectation.draws:  # where a group of equal rewards says nothing
            return jnp.zeros((), bool)
        return look.field_norm <= tolerance

    def block(state: _State, settled: Array, length: int) -> tuple[tuple[_State, Array], _Look]:
        halted = settled | (state.nonfinite >= 0)
        if may_stop:
            state = jax.lax.cond(halted, lambda s: s, lambda s: trainer.advance(s, length), state)
        else:  # under vmap the branches of a cond hold a copy of every constant for each problem
            end = trainer.advance(state, length)
            state = jax.tree.map(lambda old, x: jnp.where(halted, old, x), state, end)
        look = trainer.look(state)
        return (state, settled | settles(look)), look

    state = trainer.begin(start)
    first = trainer.look(state)
    blocks, rest = divmod(steps, record_every)
    now, recorded = jax.lax.scan(
        lambda now, _: block(*now, record_every), (state, settles(first)), None, length=blocks
    )
    looks = [jax.tree.map(lambda x: x[None], first), recorded]
    if rest:
        now, last = block(*now, rest)
        looks.append(jax.tree.map(lambda x: x[None], last))
    state, settled = now
    path = jax.tree.map(lambda *x: jnp.concatenate(x), *looks)
    return Trajectory(
        step=path.step,
        log_probs=path.log_probs,
        field_norm=path.field_norm,
        steps=state.taken,
        settled=settled,
        nonfinite=state.nonfinite,
        control=path.control,
        params=state.params,
    )


_compiled_drive = jax.jit(
    _drive, static_argnames=("optimizer", "steps", "record_every", "short", "may_stop")
)
