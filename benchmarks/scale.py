"""Scale: devices, the memory of a large sweep, and how long the first calls take."""

import resource
import subprocess
import sys
import tempfile

import numpy as np

from benchmarks.runs import TWO_DEVICES
from benchmarks.work import Call, Contender, Work

FIRST_CALLS = """
import time
began = time.perf_counter()
import jax
jax.config.update("jax_enable_x64", True)
import regdist as rd
bandit = rd.bandit([1.0, 0.5, 0.0], [0.1, 0.3, 0.6])
rd.target(bandit, rd.ReverseKL(0.1)).log_probs.block_until_ready()
rd.target(bandit, rd.ForwardKL(0.1)).log_probs.block_until_ready()
law = rd.target(bandit, rd.Entropy(0.1)).log_probs
rd.metrics.entropy(law).block_until_ready()
rd.metrics.kl(law, bandit.log_ref).block_until_ready()
rd.run(rd.methods.grpo(), bandit, 100).log_probs.block_until_ready()
print(time.perf_counter() - began)
"""


def _swept(points: int, actions: int, env: dict[str, str] | None = None) -> Contender:
    """The answer is the first entropies, and the planned memory and the peak in MiB."""

    def make(_: None) -> Call:
        import jax

        import regdist as rd

        problem = rd.testing.bandits(actions)

        def entropy(seed):
            law = rd.target(problem(jax.random.key(seed)), rd.ForwardKL(0.1)).log_probs
            return rd.metrics.entropy(law)

        def call() -> tuple[np.ndarray, float]:
            made = rd.sweep(entropy, {"seed": np.arange(points)}, progress=False)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            memory = np.array([made.planned_bytes, peak]) / 2**20
            return np.concatenate([made.values[:4], memory]), made.seconds

        return call

    return Contender(make, env=env or {})


def _started(cached: bool) -> Contender:
    def make(_: None) -> Call:
        env = None
        if cached:
            import os

            folder = tempfile.mkdtemp()
            settings = {
                "JAX_COMPILATION_CACHE_DIR": folder,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            }
            env = {**os.environ, **settings}

        def call() -> np.ndarray:
            done = subprocess.run(
                [sys.executable, "-c", FIRST_CALLS],
                env=env,
                capture_output=True,
                text=True,
                check=True,
            )
            return np.array([float(done.stdout)])

        return call

    return Contender(make)


def scale(toy: bool) -> dict[str, Work]:
    """Two devices against one, a million problems, and a fresh process."""
    points = 2000 if toy else 100_000
    made = {
        f"sweep, {points} roots of 32 actions": Work(
            "entropy of forward KL; compilation not counted",
            lambda: None,
            {"regdist": _swept(points, 32, TWO_DEVICES), "one device": _swept(points, 32)},
            {"one device": 1.8},
            exact=False,
        ),
        "start": Work(
            "import and the first five different calls in a fresh process; the answer is seconds",
            lambda: None,
            {"regdist": _started(cached=False), "persistent cache": _started(cached=True)},
            exact=False,
        ),
    }
    many = 5000 if toy else 1_000_000
    made[f"sweep, {many} x 128"] = Work(
        "entropy of forward KL; the last two answers are MiB planned and the peak of the process",
        lambda: None,
        {"regdist": _swept(many, 128)},
        exact=False,
        reads=lambda answer: (
            f"planned {answer[4]:.0f} MiB of a budget of 1024; the process had {answer[5]:.0f} MiB "
            "at its peak"
        ),
    )
    return made
