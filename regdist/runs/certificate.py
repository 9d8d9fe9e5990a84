"""What a certificate holds: small records, each an answer to one question. K is of actions."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Stationarity:
    """Is the target a rest point of the method?

    Attributes:
        at_rest: whether it is; None where that is lost in rounding, or on a tree not to be proved.
        field_norm: sum of |p_i (w_i - E_p w)| there, in units of reward: 0 at a rest point, and
            small wherever probabilities are.
        gain: the largest difference of two gains there, which has no factor p, in units of reward.
        error: what rounding, and that of the target itself, may make of it.
        shift: the largest error of a log-probability from the target to the nearest rest point, in
            nats; inf if none is found beside it.
        corner: whether the field jumps there: a rest point is where 0 is one of its values.
        moved: the largest step of a logit, less their mean, that the optimizer takes there without
            a gradient: weight decay.
    """

    at_rest: bool | None
    field_norm: float
    gain: float
    error: float
    shift: float
    corner: bool
    moved: float


@dataclasses.dataclass(frozen=True)
class Stability:
    """Does it draw in what is near?

    Attributes:
        kind: "attracts", "repels", "tie" (a manifold of rest points), "edge" (a corner where 0 is
            at the end of the field's set) or "undecided".
        reason: what decided, in words.
        eigenvalues: of the flow's Jacobian in the logits there, the slowest first (at most 6),
            without the shift of all logits, of a tree of each state's, which moves no policy.
        fastest: the eigenvalue of largest modulus.
        bound: the error of the largest real part.
        frozen: actions left out of the eigenvalues as less likely than 1e-200 under the target.
        factor: the largest modulus of an eigenvalue of the run's own step, its loop included, but
            for those that are 1 to a millionth; None for an optimizer with a memory.
    """

    kind: str
    reason: str
    eigenvalues: np.ndarray
    fastest: complex | float
    bound: float
    frozen: int
    factor: float | None


@dataclasses.dataclass(frozen=True)
class Distance:
    """How far is the last policy p of the run from the target?

    Attributes:
        kl_to_target: KL(p || target) in nats.
        kl_from_target: KL(target || p) in nats.
        total_variation: half the sum of |p - target|.
        log_odds_error: largest error of a log-odds over the support of the target, in nats.
        objective_gap: J(target) - J(p), in units of reward; None without a regularizer.
        identity_error: |J gap - beta KL(p || target)| relative to the size of its parts; None
            unless the regularizer is reverse KL or merges into it, where the two are equal.
    """

    kl_to_target: float
    kl_from_target: float
    total_variation: float
    log_odds_error: float
    objective_gap: float | None
    identity_error: float | None


@dataclasses.dataclass(frozen=True)
class Pace:
    """How fast does it come nearer? Rates are of log sqrt(KL to the target), per step.

    Attributes:
        learning_rate: of constant steps; None for an optimizer with a memory.
        asymptotic: what the slowest eigenvalue gives in the end; None without constant steps.
        measured: what the run shows over its last two records above rounding.
        predicted: what the linearized step gives for the displacement that the run really has
            there; None further than 0.1 nats away, where it is no prediction, and in a loop.
    """

    learning_rate: float | None
    asymptotic: float | None
    measured: float | None
    predicted: float | None


@dataclasses.dataclass(frozen=True)
class Spread:
    """How far does noise keep it from standing still?

    Attributes:
        noise: square root of the trace of the covariance of one update at the target.
        predicted: standard deviation of log p around its mean in the stationary state, averaged
            over the target, that step size and covariance predict; None without constant steps.
        measured: the same over the second half of the run's records.
        mean: total variation from the target to the mean policy of that half.
    """

    noise: float
    predicted: float | None
    measured: float
    mean: float


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What `certify` found.

    Attributes:
        verdict: "converges" and "plateau" pass; "elsewhere", "vertex", "depends on start",
            "cycles", "diverges" and "undecided" do not.
        sentence: the verdict in words, with its numbers.
        stationarity: is the target a rest point of the method.
        stability: does it attract.
        distance: how far the last policy of the run is from it.
        pace: how fast it comes nearer.
        spread: what noise does; None for exact expectations.
        steps: steps taken.
        nonfinite: the step of the first record that would not have been finite, or -1.
        remaining_steps: steps until total variation is below the tolerance, along the flow: for
            constant steps of the plain or natural gradient, on their own samples, that are on
            their way there. 0 if there; None for anything else.
        basins: total variation to the target at the end of runs of as many steps from other
            starts, shape [S]; empty if the path was given.
    """

    verdict: str
    sentence: str
    stationarity: Stationarity
    stability: Stability
    distance: Distance
    pace: Pace
    spread: Spread | None
    steps: int
    nonfinite: int
    remaining_steps: float | None
    basins: np.ndarray

    @property
    def passes(self) -> bool:
        """Whether it is proved that the run reached the target or is on its way to it."""
        return self.verdict in ("converges", "plateau")

    def __str__(self) -> str:
        return f"{self.verdict}: {self.sentence}"
