"""What the machine can do: bytes copied and exponentials computed a second."""

import numpy as np

from benchmarks.work import Call, Contender, Work


def _copy(data: np.ndarray) -> Call:
    into = np.empty_like(data)

    def call() -> np.ndarray:
        np.copyto(into, data)
        return into[0, :4]

    return call


def _exponentials(data: np.ndarray) -> Call:
    import jax
    import jax.numpy as jnp

    x = jnp.asarray(data)
    many = jax.jit(lambda x: jax.lax.fori_loop(0, 100, lambda _, y: jnp.exp(-y), x))
    return lambda: np.asarray(many(x)[0, :4])


def limits(toy: bool) -> dict[str, Work]:
    """A work for each limit and dtype; its size is in `bytes` or `exponentials`."""
    made = {}
    for dtype in ("float32",) if toy else ("float32", "float64"):
        rows = 1000 if toy else 100_000

        def large(rows: int = rows, dtype: str = dtype) -> np.ndarray:
            return np.random.default_rng(0).random((rows, 128)).astype(dtype)

        def small(dtype: str = dtype) -> np.ndarray:
            return np.random.default_rng(0).random((512, 128)).astype(dtype)

        made[f"copy, {dtype}"] = Work(
            "numpy copies an array onto another that is already there",
            large,
            {"numpy": Contender(_copy)},
            bytes=2.0 * rows * 128 * np.dtype(dtype).itemsize,
            dtype=dtype,
        )
        made[f"exp, {dtype}"] = Work(
            "XLA takes 100 exponentials of each number of an array that stays in cache",
            small,
            {"jax": Contender(_exponentials)},
            exponentials=100.0 * 512 * 128,
            dtype=dtype,
        )
    return made
