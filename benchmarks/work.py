"""What a benchmark is: one piece of work, and several contenders that do it."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Call = Callable[[], np.ndarray | tuple[np.ndarray, float]]
"""Does the work and returns the answer, or (answer, seconds) where the clock is its own."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to do a piece of work.

    Attributes:
        make: from the data to a call that does the work and returns the answer, as numpy.
        share: the part of the work that the call does; its time is divided by it.
        env: environment of its process.
    """

    make: Callable[[Any], Call]
    share: float = 1.0
    env: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Work:
    """A piece of work at a size, and what is wanted of regdist.

    Attributes:
        about: what is computed.
        data: the problem, made from a fixed seed; the same for all contenders.
        contenders: by name; the first is regdist.
        goals: the least ratio of a contender's time to that of regdist.
        bytes: moved at least, for the share of the copy bandwidth; 0 if that is no limit.
        exponentials: computed at least, for the share of the exponentials a second.
        dtype: "float32" or "float64".
        exact: whether all contenders give the same answer, up to rounding.
        reads: from the answer of regdist to a sentence for the report.
    """

    about: str
    data: Callable[[], Any]
    contenders: dict[str, Contender]
    goals: dict[str, float] = dataclasses.field(default_factory=dict)
    bytes: float = 0.0
    exponentials: float = 0.0
    dtype: str = "float64"
    exact: bool = True
    reads: Callable[[list[float]], str] | None = None


def measure(contender: Contender, data: Any, seconds: float) -> dict:
    """The least and the median time of a call, its first call, and its answer."""
    call = contender.make(data)

    def once() -> tuple[np.ndarray, float]:
        began = time.perf_counter()
        made = call()
        return made if isinstance(made, tuple) else (made, time.perf_counter() - began)

    answer, first = once()
    times = [once()[1] if seconds else first]
    while sum(times) < seconds or (seconds and len(times) < 3 and sum(times) < 10):
        times.append(once()[1])
    return {
        "least": min(times) / contender.share,
        "median": float(np.median(times)) / contender.share,
        "first": first,
        "calls": len(times),
        "answer": np.ravel(answer)[:8].astype(float).tolist(),
    }
