"""The one driver: any method, any optax optimiser, one scan. N records, K actions."""

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Key

from regdist.methods import Method, Population, field
from regdist.policy import softmax
from regdist.problem import Bandit
from regdist.records import Table, is_concrete, record

if TYPE_CHECKING:
    import optax


@record
class Trajectory:
    """What a run passed through; made by `run()`.

    Attributes:
        step: steps taken at each record, shape [N]. After an early stop the last policy repeats.
        log_probs: the policies, in nats, shape [N, K].
        field_norm: largest |expected update direction| over actions at each record, shape [N].
        steps: steps taken in all.
        settled: whether the run stopped because the field norm fell to the tolerance.
        nonfinite: the first step whose result was not finite, or -1. That step was not taken,
            and nothing after it: the last policy is the last finite one.
    """

    step: Int[Array, "*batch N"]
    log_probs: Float[Array, "*batch N K"]
    field_norm: Float[Array, "*batch N"]
    steps: Int[Array, "*batch"]
    settled: Bool[Array, "*batch"]
    nonfinite: Int[Array, "*batch"]


def run(
    method: Method,
    bandit: Bandit,
    steps: int = 2000,
    optimizer: "optax.GradientTransformation | None" = None,
    expectation: Population | None = None,
    key: Key[Array, ""] | None = None,
    init: Table | None = None,
    record_every: int = 10,
    tolerance: ArrayLike = 0.0,
) -> Trajectory:
    """Move a softmax table by a method's expected update and record where it goes.

    Each step hands the optimiser the gradient -field, so that `optax.sgd(eta)` is
    z <- z + eta field(z).

    Args:
        method: from `rd.methods`.
        bandit: K actions.
        steps: at most this many.
        optimizer: any optax gradient transformation; default `optax.sgd(0.1)`. Pass the same
            object again to reuse the compiled run; a learning rate under vmap is fine.
        expectation: `Population()`, the default, which is exact and draws nothing.
        key: not used by `Population()`.
        init: starting logits, shape [K]; default the reference policy. Forbidden actions (reward
            -inf) start, and stay, at probability 0.
        record_every: steps between records; the last record is the end, whatever is left.
        tolerance: stop when no component of the field is larger; 0 never stops early.

    Returns:
        A `Trajectory` with N = ceil(steps / record_every) + 1 records, the start included.

    Raises:
        ValueError: steps or record_every is not positive, or init has another shape.

    >>> import optax
    >>> b = rd.bandit([1.0, 0.0], [0.1, 0.9])
    >>> npg = rd.methods.natural_policy_gradient(rd.ReverseKL(0.5))
    >>> path = run(npg, b, steps=1, record_every=1, optimizer=optax.sgd(2.0))
    >>> bool(jnp.allclose(path.log_probs[-1], rd.target(b, rd.ReverseKL(0.5)).log_probs))
    True
    """
    del key
    if record_every < 1 or steps < 1:
        raise ValueError(
            f"steps and record_every must be positive integers; got steps={steps}, "
            f"record_every={record_every}"
        )
    start = bandit.log_ref if init is None else jnp.asarray(init, dtype=bandit.reward.dtype)
    if start.shape != bandit.reward.shape:
        raise ValueError(f"init must have shape {bandit.reward.shape}; got {start.shape}")
    start = jnp.where(jnp.isneginf(bandit.reward), -jnp.inf, start)
    chosen = default_optimizer() if optimizer is None else optimizer
    limit = jnp.asarray(tolerance, dtype=start.dtype)
    drive = _compiled_drive if is_concrete(method, bandit, start, limit) else _drive
    return drive(method, bandit, start, limit, expectation, chosen, steps, record_every)


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
    expectation: Population | None,
    optimizer: "optax.GradientTransformation",
    steps: int,
    record_every: int,
) -> Trajectory:
    def one_step(state: tuple, _: None) -> tuple[tuple, None]:
        logits, memory, count, settled, nonfinite = state
        direction = field(method, logits, bandit, expectation)
        settled = settled | (jnp.max(jnp.abs(direction)) <= tolerance)
        updates, new_memory = optimizer.update(-direction, memory, logits)
        new = logits + jnp.asarray(updates, dtype=logits.dtype)
        broken = jnp.any(~jnp.isfinite(new) & ~jnp.isneginf(logits))
        halted = settled | (nonfinite >= 0)
        nonfinite = jnp.where(broken & ~halted, count + 1, nonfinite)
        keep = halted | broken
        logits = jnp.where(keep, logits, new)
        memory = jax.tree.map(lambda old, fresh: jnp.where(keep, old, fresh), memory, new_memory)
        return (logits, memory, jnp.where(keep, count, count + 1), settled, nonfinite), None

    def block(state: tuple, length: int) -> tuple[tuple, tuple]:
        halted = state[3] | (state[4] >= 0)
        state = jax.lax.cond(
            halted,
            lambda s: s,
            lambda s: jax.lax.scan(one_step, s, None, length=length)[0],
            state,
        )
        return state, snapshot(state)

    def snapshot(state: tuple) -> tuple[Array, Array, Array]:
        logits = state[0]
        norm = jnp.max(jnp.abs(field(method, logits, bandit, expectation)))
        return state[2], softmax(logits), norm

    zero = jnp.zeros((), dtype=int)
    memory: Any = optimizer.init(start)
    state = (start, memory, zero, jnp.zeros((), bool), zero - 1)
    records = [jax.tree.map(lambda x: x[None], snapshot(state))]
    blocks, rest = divmod(steps, record_every)
    state, recorded = jax.lax.scan(lambda s, _: block(s, record_every), state, None, length=blocks)
    records.append(recorded)
    if rest:
        state, end = block(state, rest)
        records.append(jax.tree.map(lambda x: x[None], end))
    step, log_probs, norm = jax.tree.map(lambda *x: jnp.concatenate(x), *records)
    return Trajectory(step, log_probs, norm, state[2], state[3], state[4])


_compiled_drive = jax.jit(_drive, static_argnames=("optimizer", "steps", "record_every"))
