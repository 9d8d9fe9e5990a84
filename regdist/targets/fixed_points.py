"""Self-consistent targets: every x at which the target of the reward at x gives x back."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from regdist.numerics.records import check_kind, positive
from regdist.problems.bandit import Bandit, takes_bandit
from regdist.regularizers.regularizer import Regularizer, check_regularizer
from regdist.targets.feedback import Feedback
from regdist.targets.solve import target
from regdist.targets.transform import with_reward

# The first cut, and the least batch: larger ones are powers of two, so that a search compiles a
# handful of shapes.
_CELLS = 256
# A mismatch that stays near 0 leaves all cells open, and each halving doubles them. A batch of this
# many holds 200,000 laws, 1.6 GB at 1,000 actions; beyond, the search is cut short, uncertified.
_MOST_CELLS = 200_000


@dataclasses.dataclass(frozen=True)
class FixedPoints:
    """What `fixed_points` found, N of them, in increasing x.

    Attributes:
        x: the numbers, shape [N].
        log_probs: the targets, shape [N, K].
        slope: d mismatch/dx there, shape [N]; +inf at a jump.
        stable: whether a policy a little off returns if x follows it gradually: slope > 0.
        certified: whether the intervals of `undecided` and the points listed are all there is.
        undecided: intervals, shape [M, 2], in which a fixed point can be neither shown nor
            excluded at the resolution: the mismatch comes near 0 there without a change of sign.
        resolution: two fixed points nearer to each other than this count as one.
    """

    x: np.ndarray
    log_probs: np.ndarray
    slope: np.ndarray
    stable: np.ndarray
    certified: bool
    undecided: np.ndarray
    resolution: float

    @property
    def probs(self) -> np.ndarray:
        """The targets, shape [N, K]."""
        return np.exp(self.log_probs)


@takes_bandit
def fixed_points(
    bandit: Bandit,
    regularizer: Regularizer,
    feedback: Feedback,
    *,
    resolution: float = 1e-9,
) -> FixedPoints:
    r"""Every x in [low, high] where the target of the feedback's reward gives x back.

    $$m(x, p_x) = 0, \qquad p_x = \arg\max_p \; \mathbb{E}_p R_x - \Omega(p)$$

    R_x is the feedback's reward, m its mismatch and Omega the regularizer.

    The interval is cut into cells. A cell whose mismatch in the middle is larger than its
    steepness lets it vary is empty; the others are halved, down to the resolution. A point is
    listed only where the mismatch changes sign, so none is invented; none is missed if the
    steepness is a true bound. Two points within 1e-12 of the length of an end are not told from
    none. In float32, whose rounding the bound leaves out, nothing is certified and points may be
    missed. Works on concrete values.

    Args:
        bandit: rewards and reference; the reward is the feedback's.
        regularizer: any that `target` takes.
        feedback: from `rd.feedback`, or your own.
        resolution: relative to the length of the interval.

    Raises:
        ValueError: the interval of the feedback is empty or not finite.

    Examples:
        >>> b = rd.bandit([1.0, 0.0], [0.1, 0.9])
        >>> reg = rd.ReverseKL(0.2)
        >>> points = rd.fixed_points(b, reg, rd.feedback.pass_at_k(b, reg, b.reward > 0, 4))
        >>> print(points.x.round(4), points.stable, points.certified)
        [0.5164] [ True] True
    """
    check_regularizer(regularizer)
    made = "From rd.feedback, such as rd.feedback.std_normalized(bandit, regularizer), or your own"
    check_kind("feedback", feedback, Feedback, made)
    positive("resolution", resolution, "It is relative to the length of the interval")
    return _Search(bandit, regularizer, feedback, resolution).result()


class _Search:
    def __init__(
        self, bandit: Bandit, regularizer: Regularizer, feedback: Feedback, resolution: float
    ):
        if not (np.isfinite([feedback.low, feedback.high]).all() and feedback.low < feedback.high):
            raise ValueError(
                "a feedback needs a finite interval with low < high; got "
                f"low={feedback.low!r}, high={feedback.high!r}"
            )
        self.feedback = feedback
        self.length = feedback.high - feedback.low
        self.width = resolution * self.length
        inner = [b for b in feedback.breaks if feedback.low < b < feedback.high]
        self.corners = [feedback.low, *inner, feedback.high]
        self.dtype, self.size = bandit.reward.dtype, bandit.num_actions

        def law(x: Array) -> Array:
            return target(with_reward(bandit, feedback.reward(x)), regularizer).log_probs

        def mismatch(x: Array) -> Array:
            return feedback.mismatch(x, law(x))

        self.law = jax.jit(law)
        self.batch = jax.jit(jax.vmap(mismatch))
        self.point = jax.jit(jax.value_and_grad(mismatch))

    def values(self, x: np.ndarray) -> np.ndarray:
        """The mismatch at many points, padded to a power of two so that few shapes compile."""
        size = max(_CELLS, 1 << int(np.ceil(np.log2(max(len(x), 1)))))
        padded = np.concatenate([x, np.full(size - len(x), x[-1] if len(x) else 0.0)])
        return np.asarray(self.batch(jnp.asarray(padded, self.dtype)))[: len(x)]

    def at(self, x: float) -> tuple[float, float]:
        """The mismatch at a point, and its slope."""
        value, slope = self.point(jnp.asarray(x, self.dtype))
        return float(value), float(slope)

    def refine(self, low: float, high: float) -> float | None:
        """The root between two points, to the last digits; None without a change of sign."""
        import scipy.optimize

        ends = {x: self.at(x)[0] for x in (low, high)}
        for x, value in ends.items():
            if value == 0:
                return x
        if ends[low] * ends[high] > 0:
            return None
        tight: Any = {"xtol": 1e-15 * self.length, "rtol": 1e-14}  # brentq's least rtol is 9e-16
        found: Any = scipy.optimize.brentq(lambda x: self.at(x)[0], low, high, **tight)
        return float(found)

    def result(self) -> FixedPoints:
        """The search over every piece between breaks, and the breaks themselves."""
        found: list[tuple[float, float]] = []
        undecided: list[tuple[float, float]] = []
        certified = self.feedback.steepness is not None and self.dtype == jnp.float64
        margin = 1e-12 * self.length  # keeps off the ends, where the mismatch may jump
        for low, high in zip(self.corners[:-1], self.corners[1:], strict=True):
            inner = low + margin, high - margin
            clusters, complete = self.clusters(*inner)
            for end, near in zip((low, high), inner, strict=True):
                if end not in self.feedback.breaks:
                    x = self.refine(end, near)
                    found += [] if x is None else [(x, self.at(x)[1])]
            certified &= complete
            for a, b in clusters:
                x = self.refine(a, b)
                if x is None:
                    undecided.append((a, b))
                else:
                    found.append((x, self.at(x)[1]))
        for at in self.feedback.breaks:
            sides = np.clip([at - 2 * margin, at + 2 * margin], self.corners[0], self.corners[-1])
            before, after = self.values(sides)
            before = -np.inf if at <= self.corners[0] else before
            after = np.inf if at >= self.corners[-1] else after
            if before < 0 < after:
                far = self.width
                undecided = [(a, b) for a, b in undecided if not a - far <= at <= b + far]
                found.append((at, np.inf))
        found.sort()
        x = np.array([f[0] for f in found])
        slope = np.array([f[1] for f in found])
        laws = [np.asarray(self.law(jnp.asarray(v, self.dtype))) for v in x]
        return FixedPoints(
            x,
            np.stack(laws) if laws else np.zeros((0, self.size)),
            slope,
            slope > 0,
            bool(certified and not undecided),
            np.array(undecided).reshape(-1, 2),
            self.width,
        )

    def clusters(self, low: float, high: float) -> tuple[list[tuple[float, float]], bool]:
        """Intervals no wider than a few resolutions that may hold a root, and if they are all."""
        bound: Callable = self.feedback.steepness or self.guess(low, high)
        edges = np.linspace(low, high, _CELLS + 1)
        left, right = edges[:-1], edges[1:]
        complete = True
        while True:
            middle = self.values((left + right) / 2)
            half = (right - left) / 2
            # 1e-9 is for the rounding of the mismatch and of the bound.
            open_cells = ~(np.abs(middle) > bound(left, right) * half * (1 + 1e-9))
            left, right = left[open_cells], right[open_cells]
            if not len(left) or right[0] - left[0] <= self.width:
                break
            if len(left) > _MOST_CELLS:
                complete = False
                break
            center = (left + right) / 2
            left, right = np.ravel([left, center], "F"), np.ravel([center, right], "F")
        joined: list[tuple[float, float]] = []
        for a, b in zip(left, right, strict=True):
            if joined and a <= joined[-1][1] + 1e-3 * (b - a):  # neighbors, whose ends may round
                joined[-1] = (joined[-1][0], float(b))
            else:
                joined.append((float(a), float(b)))
        return joined, complete

    def guess(self, low: float, high: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        """Four times the steepest difference on a grid: enough to search, not to certify."""
        x = np.linspace(low, high, _CELLS + 1)
        steepest = 4 * np.max(np.abs(np.diff(self.values(x)))) / (x[1] - x[0])
        return lambda a, b: 0 * (a + b) + steepest
