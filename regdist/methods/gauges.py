"""What a trainer's dashboard shows of a step, exactly: its means over all groups, by its names."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from regdist.methods.averaging import Averaging
from regdist.methods.batch import Batch, Tables
from regdist.methods.expectation import Expectation, Population
from regdist.methods.field import check_params, check_problem
from regdist.methods.method import Method
from regdist.methods.step import expected_pull, fitted, in_dtype, push, tables_of
from regdist.methods.surrogate import Clip, Surrogate
from regdist.metrics import effective_sample_size, entropy
from regdist.numerics.logspace import expect, log_ratio
from regdist.numerics.records import Table, as_array, check_kind, choice, record
from regdist.policies.policy import Params
from regdist.problems.bandit import Bandit
from regdist.problems.contexts import check_law

_NAMES = {
    "trl": {
        "reward": "reward",
        "reward_std": "reward_std",
        "zero_deviation": "frac_reward_zero_std",
        "entropy": "entropy",
        "k3": "kl",
        "clipped_low": "clip_ratio/low_mean",
        "clipped_high": "clip_ratio/high_mean",
        "gradient_norm": "grad_norm",
    },
    "verl": {
        "reward": "critic/score/mean",
        "entropy": "actor/entropy",
        "k3": "actor/kl_loss",
        "old_k1": "actor/ppo_kl",
        "clipped": "actor/pg_clipfrac",
        "clipped_dual": "actor/pg_clipfrac_lower",
        "gradient_norm": "actor/grad_norm",
    },
}


@dataclasses.dataclass(frozen=True)
class Diagnostics:
    """Means over the samples of a step, exact; in nats where they are divergences.

    Attributes:
        reward: E R under the sampler.
        reward_std: its standard deviation, of the law.
        zero_deviation: the share of groups whose rewards are all equal; 0 for the population,
            unless all rewards are.
        entropy: of the policy.
        k1: the mean of log(policy/reference) over samples.
        k2: of half its square.
        k3: of e^{-l} - 1 + l.
        old_k1: of log(old/policy): the estimate of KL(old || policy).
        ratio: of policy/old.
        ratio_min: the least that may be drawn.
        ratio_max: the largest.
        effective_samples: 1/E w^2 of w = policy/sampler, as `rd.metrics.effective_sample_size`.
        clipped: the share of samples that PPO's two bounds leave without a gradient; NaN where the
            surrogate is no clip.
        clipped_low: those below the lower bound, with a negative advantage.
        clipped_high: those above the upper bound, with a positive one.
        clipped_dual: those beyond the dual clip.
        gradient_norm: the Euclidean norm of `rd.field`.
    """

    reward: float
    reward_std: float
    zero_deviation: float
    entropy: float
    k1: float
    k2: float
    k3: float
    old_k1: float
    ratio: float
    ratio_min: float
    ratio_max: float
    effective_samples: float
    clipped: float
    clipped_low: float
    clipped_high: float
    clipped_dual: float
    gradient_norm: float

    def named(self, trainer: str) -> dict[str, float]:
        """What a trainer logs of these, under its own names: "trl" or "verl".

        TRL's kl is k3 times the ratio where it corrects the penalty for it: 1 in a first step.

        Raises:
            ValueError: another trainer.
        """
        if trainer not in _NAMES:
            raise ValueError(f"log names are known of {', '.join(_NAMES)}; got {trainer!r}")
        return {name: getattr(self, field) for field, name in _NAMES[trainer].items()}


@record
class _Cut(Surrogate):
    """1 where PPO's clip has no gradient on one side, as a coefficient to be averaged."""

    clip: Clip
    side: str = choice("low", "high", "dual", default="low")

    local: ClassVar[bool] = False

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        rho, clip = jnp.exp(batch.log_rho), self.clip
        cut = {
            "low": (advantage < 0) & (rho < clip.lower),
            "high": (advantage > 0) & (rho > clip.upper),
            "dual": (advantage < 0) & (rho > clip.dual),
        }[self.side]
        return jnp.where(cut, 1.0, 0.0).astype(advantage.dtype)


def diagnostics(
    method: Method,
    params: Params,
    bandit: Bandit,
    expectation: Expectation | None = None,
    *,
    old: Table | None = None,
    sampler: Table | None = None,
) -> Diagnostics:
    """What a trainer would log of one step, in the mean over everything that may be drawn.

    Args:
        method: whose step.
        params: logits or log-probabilities, shape [K].
        bandit: rewards and reference.
        expectation: `Population()`, the default, or `Group(size)`.
        old: log-probabilities of the policy that drew the samples; default the policy itself.
        sampler: and of the law that they were really drawn from; default `old`.

    Raises:
        ValueError: `Sampled`, whose mean this is already, or what `rd.field` refuses.

    Examples:
        A clip that is never reached is no sign of health: on its own samples no ratio moves.

        >>> b = rd.bandit([1.0, 0.0], [0.3, 0.7])
        >>> seen = diagnostics(rd.methods.grpo(), b.log_ref, b, rd.Group(8))
        >>> print(seen.clipped, round(seen.zero_deviation, 4))
        0.0 0.0577
        >>> moved = jnp.log(jnp.array([0.5, 0.5]))
        >>> seen = diagnostics(rd.methods.grpo(), moved, b, rd.Group(8), old=b.log_ref)
        >>> print({name: round(x, 4) for name, x in seen.named("trl").items() if "clip" in name})
        {'clip_ratio/low_mean': 0.6424, 'clip_ratio/high_mean': 0.2999}
    """
    policy = check_problem(method, bandit, None)
    logits = check_params(policy, params, bandit)
    if expectation is not None and expectation.draws:
        raise ValueError(
            "diagnostics are means over all that may be drawn: give rd.Group(size) or none"
        )
    method = in_dtype(method, bandit.reward.dtype)
    expectation = fitted(expectation, method, bandit)
    where = "rd.diagnostics(method, params, bandit)"
    laws = [
        None if law is None else check_law(name, law, bandit, where)
        for name, law in (("old", old), ("sampler", sampler))
    ]
    tables = tables_of(method, policy.log_probs(logits), bandit, *laws)
    own = old is None and sampler is None
    pull = expected_pull(method, tables, expectation, None, own, bandit)
    norm = jnp.linalg.norm(push(method, policy, logits, bandit, pull))
    low, high, dual = (_share(method, bandit, tables, expectation, s) for s in _SIDES)
    return Diagnostics(
        **{name: float(x) for name, x in _means(tables, expectation).items()},
        clipped=low + high,
        clipped_low=low,
        clipped_high=high,
        clipped_dual=dual,
        gradient_norm=float(norm),
    )


_SIDES = ("low", "high", "dual")


def _share(
    method: Method, bandit: Bandit, tables: Tables, expectation: Expectation, side: str
) -> float:
    """How many samples are cut on a side, in the mean over groups."""
    if not isinstance(method.surrogate, Clip):
        return float("nan")
    counted = dataclasses.replace(
        method,
        surrogate=_Cut(method.surrogate, side),
        penalties=tuple(p for p in method.penalties if p.placement == "reward"),
        weights=(),
        regularizer=None,
        averaging=Averaging(),
    )
    asked = Population() if expectation.inv_size == 0 else expectation
    over = fitted(asked, counted, bandit)
    return float(jnp.sum(over.pull(counted, tables, None, False).weighted))


def _means(tables: Tables, expectation: Expectation) -> dict[str, Array]:
    drawn, there = tables.log_sampler, ~jnp.isneginf(tables.log_sampler)
    mean = expect(drawn, tables.reward)
    to_ref = jnp.where(there, log_ratio(tables.log_p, tables.log_ref), 0)
    rho = jnp.exp(jnp.where(there, log_ratio(tables.log_p, tables.log_old), 0))
    return {
        "reward": mean,
        "reward_std": jnp.sqrt(expect(drawn, (tables.reward - mean) ** 2)),
        "zero_deviation": _equal(tables.reward, drawn, expectation.inv_size),
        "entropy": entropy(tables.log_p),
        "k1": expect(drawn, to_ref),
        "k2": expect(drawn, to_ref**2 / 2),
        "k3": expect(drawn, jnp.expm1(-to_ref) + to_ref),
        "old_k1": -expect(drawn, jnp.log(rho)),
        "ratio": expect(drawn, rho),
        "ratio_min": jnp.min(jnp.where(there, rho, jnp.inf)),
        "ratio_max": jnp.max(jnp.where(there, rho, 0)),
        "effective_samples": effective_sample_size(tables.log_p, drawn),
    }


def _equal(reward: Float[Array, " K"], drawn: Float[Array, " K"], inv_size: float) -> Array:
    """The chance that all rewards of a group are equal."""
    law, levels = np.exp(np.asarray(drawn)), np.asarray(reward)
    shares = np.array([law[levels == x].sum() for x in np.unique(levels[law > 0])])
    if inv_size == 0:
        return jnp.asarray(float(len(shares) == 1))
    return jnp.asarray(np.sum(shares ** round(1 / inv_size)))


@dataclasses.dataclass(frozen=True)
class ShownGroup:
    """The advantages of one group, with what they can be checked by.

    Attributes:
        rewards: of the samples, shape [G].
        advantages: shape [G].
        mean: of the rewards.
        deviation: their unbiased standard deviation; NaN of one sample.
    """

    rewards: np.ndarray
    advantages: np.ndarray
    mean: float
    deviation: float

    def __str__(self) -> str:
        head = f"{len(self.rewards)} samples, mean {self.mean:.6g}, deviation {self.deviation:.6g}"
        pairs = zip(self.rewards, self.advantages, strict=True)
        rows = [f"  reward {r:<10.6g} advantage {a:.6g}" for r, a in pairs]
        return "\n".join([head, *rows])


def show_group(rewards: Table, method: Method) -> ShownGroup:
    """What a method makes of the rewards of one group, before penalties.

    Args:
        rewards: of the G samples.
        method: whose advantage; it may see rewards alone.

    Raises:
        ValueError: no row of numbers, or an advantage that sees the policy.

    Examples:
        >>> print(show_group([1, 0, 0, 0], rd.methods.grpo(eps=0.0)))
        4 samples, mean 0.25, deviation 0.5
          reward 1          advantage 1.5
          reward 0          advantage -0.5
          reward 0          advantage -0.5
          reward 0          advantage -0.5
    """
    check_kind("method", method, Method, "Presets are called: rd.methods.grpo(beta=0.1)")
    r: Any = as_array("rewards", rewards)
    if r.ndim != 1 or not r.size:
        raise ValueError(f"rewards must be those of one group, shape [G]; got shape {r.shape}")
    if method.advantage.sees_policy or not method.spreads:
        raise ValueError(
            f"{type(method.advantage).__name__} sees more than rewards: ask rd.field, or "
            "rd.methods.update_moments"
        )
    unknown = jnp.full((), jnp.nan, r.dtype)
    share = jnp.full(r.shape, 1 / r.size, r.dtype)
    batch = Batch(r, share, jnp.ones(r.shape, bool), share[0], unknown, unknown)
    found = np.asarray(method.advantage(batch))
    if np.isnan(found).any():
        raise ValueError(
            f"{type(method.advantage).__name__} has a baseline that the policy decides: "
            "ask rd.field"
        )
    spread = float(np.std(np.asarray(r), ddof=1)) if r.size > 1 else float("nan")
    return ShownGroup(np.asarray(r), found, float(jnp.mean(r)), spread)
