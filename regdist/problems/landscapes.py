"""Small synthetic problems with modes one can place by hand."""

from collections.abc import Sequence

import numpy as np

from regdist.problems.bandit import bandit
from regdist.problems.task import Task


def two_modes(
    masses: tuple[float, float] = (0.6, 0.02),
    rewards: tuple[float, float] = (0.8, 1.0),
    width: int = 4,
    background: int = 32,
) -> Task:
    """A likely old mode and a rare new one with a higher reward, in a background of reward 0.

    Args:
        masses: reference mass of the old and the new mode, positive, summing to less than 1.
        rewards: reward of every action in the old and the new mode.
        width: actions in each mode, which share its mass evenly and have one label.
        background: actions of reward 0, which share the rest evenly.

    Raises:
        ValueError: masses are not positive or leave nothing for the background.

    Examples:
        >>> task = rd.problems.two_modes()
        >>> task.bandit.num_actions
        40
    """
    if min(masses) <= 0 or sum(masses) >= 1 or width < 1 or background < 1:
        raise ValueError(
            f"two_modes needs positive masses with a sum below 1 and at least one action each; "
            f"got masses={masses}, width={width}, background={background}"
        )
    sizes = [width, width, background]
    shares = [*masses, 1 - sum(masses)]
    reference = np.repeat([m / n for m, n in zip(shares, sizes, strict=True)], sizes)
    reward = np.repeat([*rewards, 0.0], sizes)
    label = np.concatenate([np.repeat([0, 1], width), 2 + np.arange(background)])
    names = [
        f"{name} {i}"
        for name, n in zip(("old", "new", "other"), sizes, strict=True)
        for i in range(n)
    ]
    about = (
        f"Two modes of {width} actions each: the old one has reference mass {masses[0]:g} and "
        f"reward {rewards[0]:g}, the new one mass {masses[1]:g} and reward {rewards[1]:g}; "
        f"{background} other actions share the rest with reward 0."
    )
    return Task(bandit(reward, reference / reference.sum(), label=label), tuple(names), about)


def landscape(
    num_points: int = 200,
    bumps: Sequence[tuple[float, float, float]] = ((0.2, 0.03, 1.0), (0.7, 0.06, 1.0)),
    reference: str = "uniform",
    decay: float = 4.0,
) -> Task:
    """Points on [0, 1] whose reward is a sum of Gaussian bumps, under a named reference.

    Args:
        num_points: K, evenly spaced from 0 to 1.
        bumps: (center, width, height) of each: height exp(-(x - center)^2 / (2 width^2)).
        reference: "uniform"; "exponential", q(x) proportional to e^{-decay x}; or "power",
            q(i) proportional to (i + 1)^{-decay} in the index i.
        decay: > 0, for the last two.

    Each point is labeled with the bump whose center is nearest.

    Raises:
        ValueError: an unknown reference, a bad decay, no bump, or a width that is not positive.

    Examples:
        >>> rd.problems.landscape(100, reference="exponential").bandit.num_actions
        100
    """
    x = np.linspace(0.0, 1.0, num_points)
    families = {
        "uniform": np.zeros(num_points),
        "exponential": -decay * x,
        "power": -decay * np.log(np.arange(num_points) + 1.0),
    }
    if reference not in families:
        raise ValueError(f"reference must be one of {', '.join(families)}; got {reference!r}")
    if not decay > 0 or num_points < 2 or not bumps or min(b[1] for b in bumps) <= 0:
        raise ValueError(
            "landscape needs decay > 0, at least 2 points and a bump, and positive widths; got "
            f"decay={decay}, num_points={num_points}, bumps={bumps}"
        )
    center, width, height = np.asarray(bumps, dtype=float).T[:, :, None]
    reward = np.sum(height * np.exp(-((x - center) ** 2) / (2 * width**2)), axis=0)
    label = np.argmin(np.abs(x - center), axis=0)
    log_q = families[reference] - np.logaddexp.reduce(families[reference])
    about = (
        f"{num_points} points on [0, 1] with {len(bumps)} reward bumps, under the {reference} "
        f"reference{'' if reference == 'uniform' else f' of decay {decay:g}'}."
    )
    names = tuple(f"x = {point:.4g}" for point in x)
    return Task(bandit(reward, log_reference=log_q, label=label), names, about)
