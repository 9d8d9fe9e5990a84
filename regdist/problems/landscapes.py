"""Small synthetic problems with modes one can place by hand."""

from collections.abc import Sequence

import numpy as np

from regdist.numerics.records import as_array, check_choice, check_count, positive
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
    check_count("width", width)
    check_count("background", background)
    for name, pair in (("masses", masses), ("rewards", rewards)):
        if as_array(name, pair).shape != (2,):
            raise ValueError(
                f"{name} must be two numbers, of the old and the new mode; got {pair!r}"
            )
    if min(masses) <= 0 or sum(masses) >= 1:
        raise ValueError(f"masses must be positive with a sum below 1; got masses={masses}")
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
    check_count("num_points", num_points, least=2)
    positive("decay", decay, "reference='uniform' is its limit 0")
    shape = as_array("bumps", bumps).shape
    if len(shape) != 2 or shape[1] != 3 or min(b[1] for b in bumps) <= 0:
        raise ValueError(
            f"bumps must be at least one (center, width, height), widths above 0; got {bumps!r}"
        )
    x = np.linspace(0.0, 1.0, num_points)
    families = {
        "uniform": np.zeros(num_points),
        "exponential": -decay * x,
        "power": -decay * np.log(np.arange(num_points) + 1.0),
    }
    check_choice("reference", reference, families, "rd.problems.landscape")
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
