"""Cost curves: the time of a call against the actions K, the problems B, the steps T, the group G.

Each axis is swept alone, the others held. A slope is that of log time over log size between the
middle and the end of the sizes: 0 where calls and loops cost more than what is in them, 1 where
the work does.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.runs import RATE
from benchmarks.targets import BETA, batch
from benchmarks.work import Call, Contender, measure

HELD = {"K": 100, "B": 100, "T": 100, "G": 8}
SIZES = {
    "K": (4, 16, 64, 256, 1024, 4096, 16384),
    "B": (1, 4, 16, 64, 256, 1024, 4096, 16384),
    "T": (10, 30, 100, 300, 1000, 3000, 10000),
    "G": (1, 2, 4, 8, 16, 32, 64, 128, 256),
}
NAMES = {"K": "actions K", "B": "problems B", "T": "steps T", "G": "group size G"}


class Curve(NamedTuple):
    """Seconds of a piece of work at some sizes of one axis."""

    axis: str
    work: str
    sizes: list[int]
    seconds: list[float]

    @property
    def slope(self) -> float:
        """Of log seconds over log size, between the middle and the end of the sizes."""
        half = (len(self.sizes) - 1) // 2
        across = np.log(self.sizes[-1] / self.sizes[half])
        return float(np.log(self.seconds[-1] / self.seconds[half]) / across)


def _works() -> dict[str, tuple[str, Callable[..., Any]]]:
    """By name, the axes that it has and, from sizes, one problem's function of (r, log q, key)."""
    import jax.numpy as jnp
    import optax

    import regdist as rd

    def of_target(regularizer):
        return lambda **_: lambda r, q, _: rd.target(rd.Bandit(r, q, one_each(r)), regularizer)

    def one_each(r):
        return jnp.arange(r.shape[0])

    optimizer = optax.sgd(RATE)

    def of_run(method, over):
        def at(steps, group, **_):
            def one(r, q, key):
                bandit, expectation = rd.Bandit(r, q, one_each(r)), over(group, r.shape[0])
                given = key if isinstance(expectation, rd.Sampled) else None
                path = rd.run(
                    method, bandit, steps, optimizer, expectation, given, record_every=steps
                )
                return path.log_probs[-1]

            return one

        return at

    def classes(group, size):
        return rd.Group(group, 2, jnp.arange(size) % 2)

    gradient = rd.methods.policy_gradient(rd.ReverseKL(BETA))
    return {
        "reverse KL target": ("KB", of_target(rd.ReverseKL(BETA))),
        "forward KL target": ("KB", of_target(rd.ForwardKL(BETA))),
        "population gradient": ("KBT", of_run(gradient, lambda *_: rd.Population())),
        "drawn groups": ("KBTG", of_run(rd.methods.rloo(), lambda g, _: rd.Sampled(g))),
        "exact groups, two rewards": ("KBTG", of_run(rd.methods.rloo(), classes)),
    }


def _to_the_end(call: Callable[..., Any]) -> Callable[[Any], Call]:
    """The call as a contender's: it returns when all is computed, with the first table of it."""
    import jax

    def make(given: Any) -> Call:
        return lambda: np.asarray(jax.tree.leaves(jax.block_until_ready(call(*given)))[0])

    return make


def curves(seconds: float, sizes: dict[str, Sequence[int]] = SIZES) -> list[Curve]:
    """All of them, in this process; each time is the least of calls that take so many seconds."""
    import jax
    import jax.numpy as jnp

    found = []
    for name, (axes, at) in _works().items():
        for axis in axes:
            taken = []
            for size in sizes.get(axis, ()):
                held = {**HELD, axis: size}
                data = batch(held["B"], held["K"])
                reward = np.arange(held["K"]) % 2 * 1.0 if "exact" in name else None
                rewards = data.reward if reward is None else np.tile(reward, (held["B"], 1))
                keys = jax.random.split(jax.random.key(0), held["B"])
                call = jax.jit(jax.vmap(at(steps=held["T"], group=held["G"])))
                given = jnp.asarray(rewards), jnp.asarray(data.log_ref), keys
                taken.append(measure(Contender(_to_the_end(call)), given, seconds)["least"])
            if taken:
                found.append(Curve(axis, name, list(sizes[axis]), taken))
    return found


def drawn(found: list[Curve], path: Path) -> None:
    """The curves, an axis a panel."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6.4), layout="constrained")
    panels = figure.subplots(2, 2).ravel()
    works = list(dict.fromkeys(curve.work for curve in found))
    marks = dict(zip(works, "osD^v", strict=False))
    shades = dict(zip(works, ("0.0", "0.55", "#b2182b", "#2166ac", "#1b7837"), strict=False))
    for axis, panel in zip(SIZES, panels, strict=True):
        here = [curve for curve in found if curve.axis == axis]
        if not here:
            panel.set_visible(False)
            continue
        for curve in here:
            label = f"{curve.work}: slope {curve.slope:.2f}"
            style = {"marker": marks[curve.work], "color": shades[curve.work], "markersize": 4}
            panel.loglog(curve.sizes, curve.seconds, label=label, linewidth=1, **style)
        others = ", ".join(f"{k} = {v}" for k, v in HELD.items() if k != axis)
        panel.set(xlabel=NAMES[axis], ylabel="seconds", title=others)
        panel.title.set_fontsize(9)
        low, high = panel.get_ylim()
        panel.set_ylim(low, high * (high / low) ** 0.5)  # room for the legend above the curves
        panel.legend(fontsize=7, frameon=False, loc="upper left")
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def told(found: list[Curve]) -> list[str]:
    """Markdown: the times at both ends, the slope, and the steepest step between two sizes."""
    lines = [
        "| work | axis | from | to | slope | steepest |",
        "|---|---|---|---|---|---|",
    ]
    for curve in found:
        x, y = np.log(curve.sizes), np.log(curve.seconds)
        local = np.diff(y) / np.diff(x)
        worst = int(np.argmax(local))
        ends = [
            f"{1e3 * curve.seconds[i]:.3g} ms at {curve.axis} = {curve.sizes[i]}" for i in (0, -1)
        ]
        steep = f"{local[worst]:.2f} from {curve.sizes[worst]} to {curve.sizes[worst + 1]}"
        cells = [curve.work, NAMES[curve.axis], *ends, f"{curve.slope:.2f}", steep]
        lines.append("| " + " | ".join(cells) + " |")
    return lines
