"""Does a method go to a target? Stationarity, stability, distance, rates, and a verdict in words.

`certify` works on concrete values, outside jit. K is the number of actions, N of records. Rates
are per step, the natural logarithm of the factor by which sqrt(KL to the target) shrinks.
"""

import dataclasses
import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Key

from regdist.methods import Expectation, Method, Sampled, update_moments
from regdist.methods.expectation import prepared
from regdist.methods.field import check_problem, field
from regdist.metrics import kl, log_odds_error, total_variation
from regdist.numerics.logspace import expect
from regdist.numerics.records import check_count, check_key, check_kind, positive
from regdist.numerics.spectrum import spectrum
from regdist.problems.bandit import Bandit
from regdist.runs.checks import check_surroundings, check_target
from regdist.runs.driver import Loop, Trajectory, default_optimizer, run
from regdist.runs.jacobian import jacobian_product
from regdist.runs.linear import decay_rate, plain_step, stationary_spread
from regdist.runs.starts import starts
from regdist.targets.solve import Target, objective

if TYPE_CHECKING:
    import optax

# Columns of the Jacobian scale with the probabilities and are inverted: to 1e-200 both, and their
# products with rewards, stay well inside the range of float64.
_NEGLIGIBLE = 1e-200
# KL to the target, in nats, beyond which no rate is predicted. There predicted rates were within a
# factor of 2.2 of the run's on three small problems at beta 0.25 and 1, but up to 24 off at 0.1.
_NEAR = 0.1
# Units of rounding in a field that vanishes: the most of 80,000 hard problems was 87.
_ROUNDING = 1e4


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What `certify` found. Distances are between the last policy of the run and the target.

    Attributes:
        verdict: "converges", "plateau", "elsewhere", "vertex", "cycles" or "diverges".
        sentence: the verdict in words, with its numbers.
        field_norm: sum of |p_i (w_i - E_p w)| at the target, in units of reward: 0 if the target
            is a fixed point of the method.
        eigenvalues: of the field's Jacobian in the logits at the target, the slowest first (at
            most 6), without the constant shift of all logits, which moves no policy.
        fastest: the eigenvalue of largest modulus.
        frozen: actions left out of the spectrum as less likely than 1e-200 under the target.
        kl_to_target: KL(p || target) in nats.
        kl_from_target: KL(target || p) in nats.
        total_variation: half the sum of |p - target|.
        log_odds_error: largest error of a log-odds over the support of the target, in nats.
        objective_gap: J(target) - J(p), in units of reward; None without a regularizer.
        identity_error: |J gap - beta KL(p || target)| relative to the size of its parts; None
            unless the regularizer is reverse KL or merges into it, where the two are equal.
        steps: steps taken.
        nonfinite: the step of the first record that would not have been finite, or -1.
        asymptotic_rate: -log max |1 + lr lambda|, what the slowest eigenvalue gives in the end.
        measured_rate: what the run shows over its last two records above rounding.
        predicted_rate: what the linearized step gives for the displacement the run really has
            there; None further than 0.1 nats away, where it is no prediction.
        remaining_steps: steps to the tolerance at the slower of the last two, or at the
            asymptotic rate if the run does not approach yet; 0 if there.
        basins: total variation to the target at the end of runs of as many steps from other
            starts, shape [S]; empty if the path was given.
        noise: square root of the trace of the covariance of one update at the target under
            `Sampled`; 0 for exact expectations.
        predicted_spread: standard deviation of log p around its mean in the stationary state,
            averaged over the target, that step size and covariance predict; None without noise.
        measured_spread: the same over the second half of the run's records.
    """

    verdict: str
    sentence: str
    field_norm: float
    eigenvalues: np.ndarray
    fastest: complex | float
    frozen: int
    kl_to_target: float
    kl_from_target: float
    total_variation: float
    log_odds_error: float
    objective_gap: float | None
    identity_error: float | None
    steps: int
    nonfinite: int
    asymptotic_rate: float | None
    measured_rate: float | None
    predicted_rate: float | None
    remaining_steps: float
    basins: np.ndarray
    noise: float
    predicted_spread: float | None
    measured_spread: float | None

    @property
    def passes(self) -> bool:
        """Whether the target is a fixed point that the run reached or still approaches."""
        return self.verdict in ("converges", "plateau")

    def __str__(self) -> str:
        return f"{self.verdict}: {self.sentence}"


def certify(
    method: Method,
    bandit: Bandit,
    target: Target,
    path: Trajectory | None = None,
    *,
    optimizer: "optax.GradientTransformation | None" = None,
    steps: int = 2000,
    tolerance: float = 1e-6,
    expectation: Expectation | None = None,
    key: Key[Array, ""] | None = None,
    loop: Loop | None = None,
) -> Certificate:
    """Whether a method has this target as its limit, and how far a run has come.

    The target is judged by itself (is the expected field zero there, is every eigenvalue of its
    Jacobian negative), apart from the run (is it near, does it shrink at the rate that the
    spectrum predicts). A run that is merely slow is reported as a plateau, with the steps that
    its rate still asks for.

    Args:
        method: what was run.
        bandit: K actions.
        target: the supposed limit.
        path: the run; by default `steps` steps are run from the reference policy.
        optimizer: the one that the run used, default `optax.sgd(0.1)`. Rates per step are
            predicted for plain gradient steps, not for optimizers with a memory.
        steps: steps of the run made here.
        tolerance: total variation at which a run has arrived.
        expectation: over what updates are averaged, as in `run`. Under `Sampled` the target is
            judged by the exact mean over all groups of that size, so that its bias shows in
            `field_norm`; a run is not expected to stand still, but to spread as predicted.
        key: for `Sampled`.
        loop: as in `run`. The target is judged on-policy.

    Raises:
        TypeError: an argument of another kind, such as a regularizer for the target.
        ValueError: a target over other actions, the path is a batch of runs, or groups too many to
            enumerate.

    Examples:
        >>> b = rd.bandit([1.0, 0.0], [0.1, 0.9])
        >>> reg = rd.ReverseKL(0.5)
        >>> print(certify(rd.methods.natural_policy_gradient(reg), b, rd.target(b, reg)))
        converges: ... at total variation ...
    """
    check_problem(method, bandit, None)
    check_target(target, bandit)
    optimizer = default_optimizer() if optimizer is None else optimizer
    check_surroundings(optimizer, loop)
    check_key(key)
    check_count("steps", steps)
    positive("tolerance", tolerance, "It is a total variation")
    expectation = prepared(expectation, method, bandit)
    ends = np.zeros((0, bandit.num_actions))
    if path is not None:
        check_kind("path", path, Trajectory, "It is what rd.run returns, or None for a run here")
    else:
        # A spread is a statistic of records: it needs more of them than a rate does.
        every = max(1, steps // (1000 if expectation.draws else 100))

        def walk(start: Array | None, every: int) -> Trajectory:
            return run(
                method,
                bandit,
                steps,
                optimizer=optimizer,
                expectation=expectation,
                key=key,
                init=start,
                record_every=every,
                loop=loop,
            )

        path = walk(None, every)
        ends = np.asarray(
            jax.vmap(lambda z: walk(z, steps).log_probs[-1])(jnp.asarray(starts(bandit, 3)[1:]))
        )
    if jnp.ndim(path.log_probs) != 2:
        raise ValueError(
            f"path must be one run with log_probs [N, K]; got shape {path.log_probs.shape}. "
            "Take one of a batch with jax.tree.map(lambda x: x[i], path)"
        )
    if path.log_probs.shape[1:] != bandit.reward.shape:
        raise ValueError(
            f"path must be over the actions of the bandit, shape [N, {bandit.num_actions}]; got "
            f"log_probs of shape {path.log_probs.shape}"
        )
    return _Judgment(
        method, bandit, target, path, optimizer, tolerance, expectation, ends
    ).certificate()


class _Judgment:
    """The parts of a certificate, computed from each other."""

    def __init__(
        self,
        method: Method,
        bandit: Bandit,
        target: Target,
        path: Trajectory,
        optimizer: "optax.GradientTransformation",
        tolerance: float,
        expectation: Expectation,
        ends: np.ndarray,
    ):
        self.method, self.bandit, self.target, self.path = method, bandit, target, path
        self.tolerance, self.drawn = tolerance, expectation
        self.expectation = expectation.exact().prepared(method, bandit)
        self.basins = np.array([total_variation(jnp.asarray(e), target.log_probs) for e in ends])
        self.last = path.log_probs[-1]
        self.kept = np.flatnonzero(np.exp(np.asarray(target.log_probs)) > _NEGLIGIBLE)
        self.likeliest = int(np.argmax(np.asarray(target.log_probs)[self.kept]))
        self.learning_rate = plain_step(optimizer, bandit.num_actions)
        self.distance = np.asarray(_distances(path.log_probs, target.log_probs))

    def product(self, v: np.ndarray) -> np.ndarray:
        """The Jacobian of the field at the target times v, over the kept actions."""
        full = np.zeros(self.bandit.num_actions, dtype=np.asarray(self.last).dtype)
        full[self.kept] = np.asarray(v).ravel()
        at = self.target.log_probs
        out = jacobian_product(self.method, self.bandit, self.expectation, at, jnp.asarray(full))
        return np.asarray(out)[self.kept]

    def certificate(self) -> Certificate:
        """Everything together."""
        last, goal = self.last, self.target.log_probs
        eigenvalues, fastest = spectrum(self.product, len(self.kept), self.likeliest)
        to_target, from_target = float(kl(last, goal)), float(kl(goal, last))
        variation = float(total_variation(last, goal))
        gap, identity = self.objective_gap()
        asymptotic = None
        if self.learning_rate is not None and len(eigenvalues):
            factors = np.abs(1 + self.learning_rate * np.append(eigenvalues, fastest))
            asymptotic = decay_rate(float(factors.max()))
        measured, predicted = self.rates()
        numbers = {
            "field_norm": self.field_norm(),
            "eigenvalues": eigenvalues,
            "fastest": fastest,
            "frozen": int(np.isfinite(np.asarray(goal)).sum()) - len(self.kept),
            "kl_to_target": to_target,
            "kl_from_target": from_target,
            "total_variation": variation,
            "log_odds_error": float(log_odds_error(last, goal)),
            "objective_gap": gap,
            "identity_error": identity,
            "steps": int(self.path.steps),
            "nonfinite": int(self.path.nonfinite),
            "asymptotic_rate": asymptotic,
            "measured_rate": measured,
            "predicted_rate": predicted,
            "remaining_steps": self.remaining(variation, measured, predicted, asymptotic),
            "basins": self.basins,
            **self.spreads(),
        }
        verdict, sentence = self.verdict(numbers)
        return Certificate(verdict=verdict, sentence=sentence, **numbers)

    def field_norm(self) -> float:
        """Sum of |p (w - E w)| at the target: the softmax field, whatever the geometry."""
        plain = dataclasses.replace(self.method, geometry="softmax")
        return float(
            jnp.sum(jnp.abs(field(plain, self.target.log_probs, self.bandit, self.expectation)))
        )

    def rounding(self) -> float:
        """What `field_norm` may be at a true fixed point: rounding of rewards and penalties."""
        log_p = self.target.log_probs
        reward = np.asarray(self.bandit.reward)
        reward = reward[np.isfinite(reward)]
        eps = float(jnp.finfo(log_p.dtype).eps)
        size = float(np.ptp(reward)) + eps * float(np.abs(reward).max())
        if self.method.regularizer is not None:
            costs = self.method.regularizer.weighted_slope(log_p, self.bandit.log_ref)
            coefficients = sum(float(t.beta) for t in self.method.regularizer.terms)
            size += float(jnp.sum(jnp.abs(costs))) + coefficients
        return _ROUNDING * eps * size

    def objective_gap(self) -> tuple[float | None, float | None]:
        """J(target) - J(p), and how far it is from beta KL(p || target) where they are equal."""
        regularizer = self.method.regularizer
        if regularizer is None:
            return None, None
        value = float(objective(self.target.log_probs, self.bandit, regularizer))
        gap = value - float(objective(self.last, self.bandit, regularizer))
        if not regularizer.merges():
            return gap, None
        beta = float(regularizer.reduce(self.bandit.log_ref)[0].beta)
        exact = beta * float(kl(self.last, self.target.log_probs))
        parts = abs(value) + exact + float(expect(self.last, jnp.abs(self.bandit.reward)))
        return gap, abs(gap - exact) / parts if math.isfinite(exact) and parts else 0.0

    def rates(self) -> tuple[float | None, float | None]:
        """Measured and predicted decay per step over the last two records above rounding."""
        step = np.asarray(self.path.step)
        goal = self.target.log_probs
        eps = float(jnp.finfo(goal.dtype).eps)
        largest = float(np.abs(np.asarray(goal)[self.kept]).max())
        # 50 ulps of log p: KL is about half the square of their errors.
        clear = np.flatnonzero(
            np.isfinite(self.distance) & (self.distance > (50 * eps * largest) ** 2)
        )
        pairs = [i for i in clear[:-1] if i + 1 in clear and step[i + 1] > step[i]]
        if not pairs:
            return None, None
        i = pairs[-1]
        measured = math.log(self.distance[i] / self.distance[i + 1]) / 2
        measured /= float(step[i + 1] - step[i])
        if self.learning_rate is None or self.distance[i] > _NEAR:
            return measured, None
        weight = np.exp(np.asarray(goal)[self.kept])
        both = []
        for k in (i, i + 1):
            v = np.asarray(self.path.log_probs[k] - goal)[self.kept]
            if not np.all(np.isfinite(v)):
                return measured, None
            v = v - weight @ v
            if not np.any(v):
                return measured, None
            moved = v + self.learning_rate * self.product(v)
            moved = moved - weight @ moved
            both.append(decay_rate(math.sqrt(weight @ moved**2 / (weight @ v**2))))
        return measured, sum(both) / 2

    def spreads(self) -> dict[str, float | None]:
        """What the noise of an update is, and the spread it leads to and led to."""
        quiet = {"noise": 0.0, "predicted_spread": None, "measured_spread": None}
        if not isinstance(self.drawn, Sampled):
            return quiet
        at = self.target.log_probs
        moments = update_moments(self.method, at, self.bandit, self.drawn)
        covariance = np.asarray(moments.covariance)[np.ix_(self.kept, self.kept)]
        weight = np.exp(np.asarray(at)[self.kept])
        late = np.asarray(self.path.log_probs)[len(self.path.step) // 2 :, self.kept]
        measured = math.sqrt(weight @ np.var(late, axis=0))
        predicted = None
        if self.learning_rate is not None:
            size = len(self.kept)
            jacobian = np.column_stack([self.product(v) for v in np.eye(size)])
            center = np.eye(size) - np.outer(np.ones(size), weight)  # logits to log p
            predicted = stationary_spread(self.learning_rate, jacobian, covariance, center, weight)
        noise = math.sqrt(max(np.trace(covariance), 0.0))
        return {"noise": noise, "predicted_spread": predicted, "measured_spread": measured}

    def remaining(self, variation: float, *rates: float | None) -> float:
        """Steps until total variation falls below the tolerance.

        At the slower of the first rates, or at the last where none of them shrinks it.
        """
        if variation <= self.tolerance:
            return 0.0
        *local, asymptotic = (r if r is not None and r > 0 else math.inf for r in rates)
        slowest = min(local) if min(local) < math.inf else asymptotic
        shrink = math.log(variation / self.tolerance)
        return shrink / slowest if slowest < math.inf else math.inf

    def verdict(self, n: dict) -> tuple[str, str]:
        """The verdict and its sentence, from the numbers of the certificate."""
        where = f"at total variation {n['total_variation']:.2g} from the target"
        after = f"after {n['steps']:,} steps"
        largest = float(np.exp(np.asarray(self.last).max()))
        if n["nonfinite"] >= 0:
            return "diverges", f"not finite by step {n['nonfinite']:,}; {after} it stood {where}"
        if n["field_norm"] > self.rounding():
            moved = f"the method's field does not vanish at this target ({n['field_norm']:.2g})"
            if largest > 1 - self.tolerance:
                return "vertex", f"{moved}; {after} one action has all the mass, {where}"
            return "elsewhere", f"{moved}; {after} the run is {where}"
        growth = float(np.max(n["eigenvalues"].real, initial=-np.inf))
        # 1e-9: ten times what `spectrum` resolves beside the largest eigenvalue
        if growth > 1e-9 * abs(n["fastest"]):
            return "elsewhere", f"the target is a fixed point that repels (eigenvalue {growth:.2g})"
        if self.drawn.draws:
            return self.noisy_verdict(n, where)
        if n["total_variation"] <= self.tolerance:
            pace = "" if n["measured_rate"] is None else f", rate {n['measured_rate']:.3g} a step"
            if n["predicted_rate"] is not None:
                pace += f" (predicted {n['predicted_rate']:.3g})"
            # 100: other starts begin further away, and come at the same rate
            away = int(np.sum(self.basins > 100 * self.tolerance))
            if away:
                pace += f"; {away} of {len(self.basins)} other starts are not there yet"
            return "converges", f"{after} it is {where}{pace}"
        if math.isinf(n["kl_from_target"]):
            return "elsewhere", f"the run has lost an action that the target needs; it is {where}"
        move = (self.learning_rate or 0.0) * n["fastest"]
        if abs(move) > 1 and abs(1 + move) >= 1 - 1e-12:  # a factor of -1, but for rounding
            limit = 2 / abs(n["fastest"])
            return (
                "cycles",
                f"the step size is not below {limit:.2g}, where the target turns unstable",
            )
        togo = n["remaining_steps"]
        wait = "an unknown number of" if math.isinf(togo) else f"about {togo:,.3g} more"
        return "plateau", f"{after} it is {where} and still approaching: {wait} steps to go"

    def noisy_verdict(self, n: dict, where: str) -> tuple[str, str]:
        """For runs that never stand still: is their mean where it should be?"""
        late = jnp.exp(self.path.log_probs[len(self.path.step) // 2 :])
        mean = float(jnp.sum(jnp.abs(jnp.mean(late, axis=0) - jnp.exp(self.target.log_probs))) / 2)
        spread = n["predicted_spread"]
        predicted = "" if spread is None else f" (predicted {spread:.2g})"
        about = (
            f"the second half of the run has its mean at total variation {mean:.2g} from the "
            f"target and spreads by {n['measured_spread']:.2g} nats{predicted}"
        )
        if mean <= max(self.tolerance, 3 * (spread or 0.0)):
            return "converges", about
        return "plateau", f"{about}; at the end it is {where}"


@jax.jit
def _distances(log_probs: Array, log_target: Array) -> Array:
    return jax.vmap(lambda p: kl(p, log_target))(log_probs)
