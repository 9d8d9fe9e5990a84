"""How records are made: frozen dataclasses that jax sees as trees of arrays."""

import dataclasses
import difflib
import functools
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

if sys.version_info >= (3, 12):
    from typing import TypeAliasType
else:
    from typing_extensions import TypeAliasType

T = TypeVar("T")

# Aliases with a name, which `help` prints; of a bare union it prints all members.
Number = TypeAliasType("Number", ArrayLike)
"""What people type for a number: one of Python's, or an array."""

Table = TypeAliasType("Table", ArrayLike | Sequence[Any])
"""What people type for a table of numbers: an array, a number or a list."""


Look = Callable[[str, Any], Any]
"""From the name of a field and what was given to what the record holds; or a refusal."""


def static(*, look: Look | None = None, **kwargs: Any) -> Any:
    """A record field that is a choice rather than a number: part of the trace, not of the data.

    Args:
        look: what its value goes through when the record is made, see `looked_at`.
        kwargs: of `dataclasses.field`, such as `default`.
    """
    seen = {} if look is None else {"look": look}
    return dataclasses.field(metadata={"static": True, **seen}, **kwargs)


def looked_at(look: Look, **kwargs: Any) -> Any:
    """A field of data that holds `look(name, value)` of what was given when the record is made."""
    return dataclasses.field(metadata={"look": look}, **kwargs)


def choice(*known: str, default: str) -> Any:
    """A static field that must be one of these words; checked when the record is made."""
    return dataclasses.field(default=default, metadata={"static": True, "known": known})


@dataclass_transform(
    frozen_default=True, eq_default=False, field_specifiers=(static, choice, looked_at)
)
def record(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass and a jax pytree.

    Fields are data unless declared with `static()` or `choice()`. A field that is annotated as an
    `Array` or a `float` takes numbers and lists of them, and makes arrays of them: a sweep is one
    trace. jax rebuilds a record, with tracers or placeholders inside, without calling `__init__`,
    so that values are looked at once, when the record is made.

    `jax.tree_util.register_dataclass` would do this too, but to it two classes with as many fields
    are one and the same tree (jaxlib 0.10): a call compiled for one divergence may then answer for
    another.
    """
    frozen = dataclasses.dataclass(frozen=True, eq=False)(cls)
    fields: tuple[Any, ...] = dataclasses.fields(frozen)  # pyright: ignore[reportArgumentType]
    data = [f.name for f in fields if not f.metadata.get("static")]
    choices = [f.name for f in fields if f.metadata.get("static")]
    keys = [jax.tree_util.GetAttrKey(name) for name in data]

    def flatten(x: T) -> tuple[list, tuple]:
        return [getattr(x, name) for name in data], tuple(getattr(x, name) for name in choices)

    def flatten_with_keys(x: T) -> tuple[list, tuple]:
        values, chosen = flatten(x)
        return list(zip(keys, values, strict=True)), chosen

    def unflatten(chosen: tuple, values: Iterable[Any]) -> T:
        x = object.__new__(frozen)
        for name, value in (*zip(choices, chosen, strict=True), *zip(data, values, strict=True)):
            object.__setattr__(x, name, value)
        return x

    jax.tree_util.register_pytree_with_keys(frozen, flatten_with_keys, unflatten, flatten)
    looks = {f.name: look for f in fields if (look := _look_of(f, frozen.__name__))}
    if looks:
        _look_at_values(frozen, looks)
    return frozen


_NUMBERS = (Array, float, "Array", "jax.Array", "float")
"""Annotations of fields that are real numbers, as classes and as text."""


def _look_of(field: Any, cls: str) -> Look | None:
    """How a field's value is looked at: as it says, or as a number if it is annotated as one."""
    if "look" in field.metadata:
        return field.metadata["look"]
    if "known" in field.metadata:
        return lambda name, word: check_choice(name, word, field.metadata["known"], cls)
    if field.type in _NUMBERS and not field.metadata.get("static"):
        return lambda name, value: (
            value if isinstance(value, Array | np.ndarray) else as_array(f"{name} of {cls}", value)
        )
    return None


def _look_at_values(cls: Any, looks: dict[str, Look]) -> None:
    """Lets the constructor of `cls` look at what it is given: jax's rebuilding never does."""
    make = cls.__init__

    @functools.wraps(make)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        for name, look in looks.items():
            object.__setattr__(self, name, look(name, getattr(self, name)))

    cls.__init__ = checked


class Law:
    """What a record of a law over actions shares, beside its field `log_probs`, shape [K]."""

    log_probs: Array

    @property
    def probs(self) -> Array:
        """p, shape [K]."""
        return jnp.exp(self.log_probs)


def check_choice(name: str, word: Any, known: Iterable[str], where: str = "") -> str:
    """A word that is known; says of another which one may have been meant.

    Raises:
        ValueError: the word is not one of them.
    """
    words = tuple(known)
    if isinstance(word, str) and word in words:
        return word
    near = difflib.get_close_matches(str(word), words, n=1)
    hint = f". Did you mean {near[0]!r}?" if near else ""
    place = f" of {where}" if where else ""
    raise ValueError(
        f"{name}{place} must be one of {', '.join(map(repr, words))}; got {name}={word!r}{hint}"
    )


def check_kind(name: str, value: Any, kind: type | tuple[type, ...], advice: str) -> None:
    """Refuses an argument of the wrong kind; safe under jit, as records stay records there.

    Args:
        name: of the argument.
        value: what was given.
        kind: the class that is wanted, or several.
        advice: what to call instead.

    Raises:
        TypeError: the value is of another kind.
    """
    if isinstance(value, kind):
        return
    kinds = kind if isinstance(kind, tuple) else (kind,)
    wanted = " or ".join(k.__name__ for k in kinds)
    raise TypeError(f"{name} must be a {wanted}; got {described(value)}. {advice}")


def described(value: Any) -> str:
    """What was given, in few words, and what it may be mistaken for."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__} itself"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}: call it"
    if isinstance(value, Array | np.ndarray):
        return f"an array of shape {value.shape}, dtype {value.dtype}"
    text = repr(value)
    shown = text if len(text) <= 60 else text[:57] + "..."
    kind = type(value).__name__
    return shown if shown.startswith(f"{kind}(") else f"{kind} {shown}"


def _table_hint(value: Any) -> str:
    """What a record has that a table may have been meant by."""
    held = isinstance(getattr(value, "log_probs", None), Array | np.ndarray)
    return ": give its log_probs" if held else ""


def check_count(name: str, value: Any, least: int = 1) -> Any:
    """An integer that is not too small.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        wanted = "a positive integer" if least == 1 else f"an integer of at least {least}"
        got = f"{name}={value!r}" if is_numeric(value) else described(value)
        raise ValueError(f"{name} must be {wanted}; got {got}")
    return value


def check_log_probs(name: str, values: Any, where: str, size: int | None = None) -> Any:
    """Refuses, when known, what is not one row of normalized log-probabilities in nats.

    Their exponentials must sum to 1 within the square root of the dtype's epsilon: 1.5e-8 in
    float64, 3.5e-4 in float32. NaN passes: it is the answer of what did not converge.

    Args:
        name: of the argument.
        values: what was given; a list becomes an array.
        where: the call, such as "rd.metrics.kl(log_p, log_q)".
        size: K, where it is known.

    Raises:
        TypeError: not numbers.
        ValueError: probabilities, unnormalized weights, or another shape than [K].
    """
    if isinstance(values, list | tuple):
        values = as_array(f"{name} of {where}", values)
    if not (isinstance(values, Array | np.ndarray) and jnp.issubdtype(values.dtype, jnp.floating)):
        raise TypeError(
            f"{name} of {where} must be log-probabilities, a table of real numbers; got "
            f"{described(values)}{_table_hint(values)}"
        )
    if np.ndim(values) != 1:
        raise ValueError(
            f"{name} of {where} must be one row of log-probabilities, shape [K]; got shape "
            f"{np.shape(values)}. For a batch use jax.vmap"
        )
    if size is not None and values.shape != (size,):
        raise ValueError(
            f"{name} of {where} must have shape ({size},), one entry for each action; got "
            f"{values.shape}"
        )
    if not is_concrete(values):
        return values
    warn_if_cut(name, values)
    known = np.asarray(values)
    with np.errstate(over="ignore"):
        total = float(np.sum(np.exp(known.astype(float))))
    if abs(total - 1) > float(np.sqrt(jnp.finfo(known.dtype).eps)):
        raise ValueError(
            f"{name} of {where} must be normalized log-probabilities in nats; the exponentials of "
            f"what was given sum to {total:.6g}. {unnormalized_advice(known)}"
        )
    return values


def unnormalized_advice(known: np.ndarray) -> str:
    """What to do about a table that is not the logarithms of a law, by its looks."""
    if looks_like_probabilities(known):
        return "These look like probabilities: give their logarithms, or a record's log_probs"
    return "Weights go through rd.logspace.normalize(log_weights)"


def looks_like_probabilities(known: np.ndarray) -> bool:
    """Whether entries in [0, 1] add up to 1."""
    return bool(np.all((known >= 0) & (known <= 1)) and abs(float(np.sum(known)) - 1) < 1e-3)


_warned: list[str] = []  # what was cut to float32 first, once in a process


def warn_if_cut(name: str, values: Any) -> None:
    """Says once that float64 input becomes float32 where jax's x64 mode is off."""
    is_double = isinstance(values, np.ndarray | np.floating) and values.dtype == np.float64
    if is_double and jnp.asarray(0.0).dtype != np.float64 and not _warned:
        _warned.append(name)
        warnings.warn(
            f"{name} is float64 and becomes float32, with some 7 digits, because jax's x64 mode is "
            'off: jax.config.update("jax_enable_x64", True) keeps 16. Said once.',
            UserWarning,
            stacklevel=3,
        )


def check_key(key: Any, *, needed: bool = False) -> None:
    """Refuses what is not a key of jax's random numbers, such as a seed; None unless `needed`.

    Raises:
        TypeError: it is not.
    """
    if key is None and not needed:
        return
    is_array = isinstance(key, Array)
    typed = is_array and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not (typed or (is_array and key.dtype == jnp.uint32 and key.shape == (2,))):
        got = f"key={key!r}" if isinstance(key, int) else described(key)
        raise TypeError(f"key must be a key of jax's: jax.random.key(seed); got {got}")


def is_concrete(*values: Any) -> bool:
    """Whether all values are known now, so that a check on them can be made."""
    return not any(isinstance(v, Tracer) for v in jax.tree.leaves(values))


def is_numeric(value: Any) -> bool:
    """Whether a value is a real number, or an array or nested lists of them, known or not."""
    if isinstance(value, list | tuple):
        return all(map(is_numeric, value))
    if isinstance(value, Array | np.ndarray | np.generic):
        return any(jnp.issubdtype(value.dtype, k) for k in (np.floating, np.integer, np.bool_))
    if hasattr(value, "__array__"):  # somebody else's table
        return is_numeric(np.asarray(value))
    return isinstance(value, int | float)


def as_array(name: str, value: Any, dtype: Any = float) -> Array:
    """What people type, as an array of real numbers.

    Raises:
        TypeError: it is something else: text, None, a record, rows of different lengths.
    """
    try:
        if is_numeric(value):
            return jnp.asarray(value, dtype=dtype)
    except (TypeError, ValueError):  # rows of different lengths
        pass
    raise TypeError(
        f"{name} must be a number, or a table of them; got {described(value)}{_table_hint(value)}"
    )


def as_number(value: Table, name: str = "a coefficient") -> Array:
    """A number that people sweep, as one dtype whatever was typed: `1` and `1.0` are one trace.

    Raises:
        TypeError: it is no number.
    """
    return as_array(name, value)


def check_actions(name: str, actions: Any, size: int) -> None:
    """Refuses what is no index of an action, or a list of them, or a mask.

    Raises:
        TypeError: not integers.
        ValueError: known indices that name no action: jax would clamp them.
    """
    listed = jnp.asarray(actions) if is_numeric(actions) else jnp.zeros(0)
    if not any(jnp.issubdtype(listed.dtype, kind) for kind in (np.integer, np.bool_)):
        raise TypeError(
            f"{name} must be the index of an action, an integer from 0 to {size - 1}; got "
            f"{described(actions)}"
        )
    if is_concrete(actions) and listed.dtype != bool:
        known = np.asarray(actions)  # `listed` is traced under jit, whatever was given
        if np.any((known < -size) | (known >= size)):
            raise ValueError(
                f"{name} must name one of {size} actions, 0 to {size - 1}; got {known}"
            )


def positive(name: str, value: Number, advice: str) -> Array:
    """`as_number(value)`, refused when it is known and not a finite number above zero."""
    if is_concrete(value):
        known = np.asarray(value) if is_numeric(value) else np.zeros(0, bool)
        if known.dtype == bool or not np.all(np.isfinite(known) & (known > 0)):
            got = f"{name}={value!r}" if is_numeric(value) else described(value)
            raise ValueError(f"{name} must be a finite number above 0; got {got}. {advice}")
    return as_number(value, name)
