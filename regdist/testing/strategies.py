"""Hypothesis strategies for problems, laws, regularizers and methods: property tests of your own.

`rd.testing.strategies` is imported when it is asked for, as it needs hypothesis, the extra
`testing`. Numbers are drawn, sizes are few: each size is compiled once. K is the number of actions.
"""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError(
        "rd.testing.strategies needs hypothesis, the extra `testing`: "
        'pip install "regdist[testing]"'
    ) from error

from regdist.methods.presets import catalog
from regdist.numerics.records import check_count, described, is_numeric
from regdist.problems.bandit import Bandit, bandit
from regdist.regularizers import names
from regdist.regularizers.regularizer import Regularizer, by_name

__all__ = ["bandits", "betas", "methods", "policies", "references", "regularizers", "rewards"]

Strategy = st.SearchStrategy[Any]
Sizes = int | Sequence[int]

_TICKS = 64  # numbers are multiples of 1/64: gaps are either 0 or plainly visible


def _steady(make: Callable[..., Any]) -> Callable[..., Any]:
    """Puts the state of `random` back, as hypothesis refuses strategies that use it.

    A checker of types such as beartype looks at random entries of what a record is made of.
    """

    def made(*args: Any) -> Any:
        state = random.getstate()
        try:
            return make(*args)
        finally:
            random.setstate(state)

    return made


def _check_size(name: str, value: Any) -> None:
    if not (is_numeric(value) and 0 <= value < math.inf):
        raise ValueError(f"{name} must be a number >= 0; got {described(value)}")


def rewards(num_actions: int, *, spread: float | int = 3) -> Strategy:
    """Rewards in [-spread, spread], numpy arrays of shape [K]; ties are frequent.

    Raises:
        ValueError: num_actions is no positive integer, or spread no number >= 0.

    Examples:
        >>> from hypothesis import given
        >>> from regdist.testing import strategies
        >>> @given(reward=strategies.rewards(4, spread=1))
        ... def test(reward):
        ...     assert reward.shape == (4,) and abs(reward).max() <= 1
        >>> test()
    """
    check_count("num_actions", num_actions)
    _check_size("spread", spread)
    ticks = st.integers(-int(_TICKS * spread), int(_TICKS * spread))
    row = st.lists(ticks, min_size=num_actions, max_size=num_actions)
    return row.map(lambda x: np.array(x) / _TICKS)


@st.composite
def _log_references(draw: Any, num_actions: int, depth: float, zeros: bool) -> np.ndarray:
    log_q = draw(rewards(num_actions, spread=depth / 2))
    if zeros and num_actions > 1:
        row = st.lists(st.booleans(), min_size=num_actions, max_size=num_actions)
        gone = np.array(draw(row))
        gone[draw(st.integers(0, num_actions - 1))] = False
        log_q = np.where(gone, -np.inf, log_q)
    return log_q - np.logaddexp.reduce(log_q)


def references(num_actions: int, *, depth: float | int = 8, zeros: bool = False) -> Strategy:
    """Reference policies as log-probabilities in nats, numpy arrays of shape [K].

    Args:
        num_actions: K.
        depth: no two log-probabilities are further apart.
        zeros: whether actions may be off the support; one at least stays on it.

    Raises:
        ValueError: num_actions is no positive integer, or depth no number >= 0.

    Examples:
        >>> from hypothesis import given
        >>> from regdist.testing import strategies
        >>> @given(log_q=strategies.references(3, zeros=True))
        ... def test(log_q):
        ...     assert abs(jnp.exp(log_q).sum() - 1) < 1e-12
        >>> test()
    """
    check_count("num_actions", num_actions)
    _check_size("depth", depth)
    return _log_references(num_actions, float(depth), zeros)


def policies(num_actions: int, *, sharpness: float | int = 8) -> Strategy:
    """Policies as log-probabilities in nats, jax arrays [K]: from even to nearly on a vertex.

    Raises:
        ValueError: num_actions is no positive integer, or sharpness no number >= 0.

    Examples:
        >>> from hypothesis import given
        >>> from regdist.testing import strategies
        >>> @given(log_p=strategies.policies(3))
        ... def test(log_p):
        ...     assert rd.metrics.entropy(log_p) <= jnp.log(3) + 1e-12
        >>> test()
    """
    _check_size("sharpness", sharpness)
    return references(num_actions, depth=2 * sharpness).map(jnp.asarray)


@st.composite
def _bandits(draw: Any, sizes: Any, spread: float, depth: float, zeros: bool, dtype: Any) -> Bandit:
    size = draw(st.sampled_from(sizes))
    reward = draw(rewards(size, spread=spread))
    log_q = draw(references(size, depth=depth, zeros=zeros))
    make = _steady(lambda r, x: bandit(r.astype(dtype), log_reference=x.astype(dtype)))
    return make(reward, log_q)


def bandits(
    num_actions: Sizes = (1, 5),
    *,
    spread: float | int = 3,
    depth: float | int = 8,
    zeros: bool = False,
    dtype: Any = np.float64,
) -> Strategy:
    """Bandits: see `rewards` and `references`.

    Args:
        num_actions: K, or the sizes to choose from.
        spread: rewards are in [-spread, spread].
        depth: log-odds of the reference are within it, in nats.
        zeros: whether actions may be off the support of the reference.
        dtype: float64 or float32.

    Raises:
        ValueError: a size is no positive integer, or spread or depth no number >= 0.

    Examples:
        The larger reward gains against the reference under reverse KL:

        >>> from hypothesis import given
        >>> from regdist.testing import strategies
        >>> @given(bandit=strategies.bandits(3), beta=strategies.betas())
        ... def test(bandit, beta):
        ...     law = rd.target(bandit, rd.ReverseKL(beta)).log_probs
        ...     gain = rd.log_odds(law, 0, 1) - rd.log_odds(bandit.log_ref, 0, 1)
        ...     assert gain * (bandit.reward[0] - bandit.reward[1]) >= -1e-9
        >>> test()
    """
    sizes = tuple(num_actions) if isinstance(num_actions, Sequence) else (num_actions,)
    for size in sizes:
        check_count("num_actions", size)
    _check_size("spread", spread)
    _check_size("depth", depth)
    return _bandits(sizes, float(spread), float(depth), zeros, dtype)


def betas(low: float | int = -1.5, high: float | int = 1.5) -> Strategy:
    """Coefficients 10^x, floats, with x between two bounds.

    Raises:
        ValueError: not -300 <= low <= high <= 300.

    Examples:
        >>> from hypothesis import given
        >>> from regdist.testing import strategies
        >>> @given(beta=strategies.betas(0, 1))
        ... def test(beta):
        ...     assert 1 <= beta <= 10
        >>> test()
    """
    if not (is_numeric(low) and is_numeric(high) and -300 <= low <= high <= 300):
        raise ValueError(
            "betas needs exponents of ten with -300 <= low <= high <= 300; got "
            f"low={low!r}, high={high!r}"
        )
    return st.floats(low, high).map(lambda x: float(10**x))


def regularizers(
    families: Sequence[str] = tuple(names.NAMED), *, coefficients: Strategy | None = None
) -> Strategy:
    """Regularizers of one term.

    Args:
        families: their names, as commands have them: "reverse-kl", "alpha:3", or a sum with "+".
        coefficients: a strategy for beta; default `betas()`.

    Raises:
        ValueError: an unknown name.

    Examples:
        >>> from hypothesis import given
        >>> from regdist.testing import strategies
        >>> @given(regularizer=strategies.regularizers(["reverse-kl", "forward-kl"]))
        ... def test(regularizer):
        ...     assert len(regularizer.terms) == 1
        >>> test()
    """
    makers: list[Callable[[Any], Regularizer]] = [by_name(name) for name in families]
    beta = betas() if coefficients is None else coefficients
    return st.builds(_steady(lambda make, beta: make(beta)), st.sampled_from(makers), beta)


def methods(
    chosen: Sequence[str] | None = None, *, coefficients: Strategy | None = None
) -> Strategy:
    """Methods of `rd.methods.catalog()` by their names, each at a drawn coefficient if it has one.

    Args:
        chosen: names of presets or their variants; default all that need nothing else.
        coefficients: a strategy for that coefficient; default `betas(-1.5, 0)`.

    Raises:
        ValueError: an unknown name, or one that needs more, such as the lengths of the answers.

    Examples:
        >>> from hypothesis import given
        >>> from regdist.testing import strategies
        >>> @given(method=strategies.methods(["grpo", "grpo/k2"]))
        ... def test(method):
        ...     assert isinstance(method, rd.Method)
        >>> test()
    """
    complete = [n for entry in catalog.catalog() for n in entry.names if not entry.missing(n)]
    for name in complete if chosen is None else chosen:
        missing = catalog.entry_of(name).missing(name)
        if missing:
            raise ValueError(f"{name} needs {', '.join(missing)}: draw it with rd.methods.named")
    beta = betas(-1.5, 0) if coefficients is None else coefficients
    return st.builds(_steady(catalog.named), st.sampled_from(list(chosen or complete)), beta)
