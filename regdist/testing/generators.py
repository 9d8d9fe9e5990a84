"""Random problems: pure functions from a key to one problem. K is the number of actions."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Key

from regdist.numerics.logspace import normalize
from regdist.numerics.records import as_array, check_choice, check_count, check_key, is_numeric
from regdist.problems.bandit import Bandit

Generator = Callable[[Key[Array, ""]], Any]
"""From a key to one problem: any tree of arrays, of one shape whatever the key."""


REWARDS = ("uniform", "binary", "gaussian", "levels", "wide")
"""What rewards may be: see `bandits`."""


def bandits(
    num_actions: int,
    *,
    rewards: str = "uniform",
    spread: float | int = 1,
    concentration: float | int = 1,
    depth: float | int = 0,
    zeros: float | int = 0,
) -> Generator:
    """Random bandits with K actions.

    Args:
        num_actions: K.
        rewards: "uniform" on [0, spread]; "binary", 0 or spread; "gaussian" with that standard
            deviation; "levels", one of 0, spread/2 and spread, so that actions tie; "wide", of
            either sign and of sizes from 1e-6 to 1e6 times the spread, evenly in the logarithm.
        spread: scale of the rewards.
        concentration: of the Dirichlet law of the reference: 1 is even on the simplex, a small
            one puts nearly all mass on one action and leaves the rest deep in the tail.
        depth: each log q is lowered by up to this much, in nats, before it is normalized: 700
            gives references that a float can hardly hold.
        zeros: the chance of an action to be off the support; one at least stays on it.

    Raises:
        ValueError: a number out of range, or an unknown kind of rewards.

    Examples:
        >>> b = rd.testing.bandits(4, rewards="levels", zeros=0.5)(jax.random.key(0))
        >>> b.reward.shape, bool(jnp.isclose(jnp.exp(b.log_ref).sum(), 1))
        ((4,), True)
    """
    check_choice("rewards", rewards, REWARDS, "rd.testing.bandits")
    check_count("num_actions", num_actions)
    numbers = {"spread": spread, "concentration": concentration, "depth": depth, "zeros": zeros}
    for name, number in numbers.items():
        as_array(name, number)
    if not (spread > 0 and concentration > 0 and depth >= 0 and 0 <= zeros < 1):
        raise ValueError(
            "spread and concentration must be above 0, depth >= 0 and zeros in [0, 1); got "
            f"{numbers}"
        )

    def make(key: Array) -> Bandit:
        check_key(key, needed=True)
        first, second = jax.random.split(key)
        reward = float(spread) * _rewards(first, num_actions)[rewards]
        return Bandit(
            reward,
            _reference(second, num_actions, float(concentration), float(depth), float(zeros)),
            jnp.arange(num_actions),
        )

    return make


def hard_bandits(num_actions: int) -> Generator:
    """Random bandits of all kinds that `bandits` makes, each case as likely as the next.

    Rewards of any kind, at scales from 1e-6 to 1e6; references even, peaked, or down to e^-700;
    half of them with zeros.

    Raises:
        ValueError: num_actions is not positive.

    Examples:
        >>> rd.testing.hard_bandits(4)(jax.random.key(0)).num_actions
        4
    """
    check_count("num_actions", num_actions)

    def make(key: Array) -> Bandit:
        check_key(key, needed=True)
        keys = jax.random.split(key, 6)
        kinds = jnp.stack(list(_rewards(keys[0], num_actions).values()))
        scale = 10.0 ** jax.random.uniform(keys[2], minval=-6.0, maxval=6.0)
        reward = scale * kinds[jax.random.randint(keys[1], (), 0, len(kinds))]
        depth = jnp.asarray([0.0, 10.0, 700.0])[jax.random.randint(keys[3], (), 0, 3)]
        zeros = jnp.asarray([0.0, 0.3])[jax.random.randint(keys[4], (), 0, 2)]
        log_q = _reference(keys[5], num_actions, 1.0, depth, zeros)
        return Bandit(reward, log_q, jnp.arange(num_actions))

    return make


def betas(low: float | int = 1e-3, high: float | int = 1e3) -> Generator:
    """Random coefficients, even in the logarithm between two bounds.

    Raises:
        ValueError: not 0 < low < high.

    Examples:
        >>> bool(1 < rd.testing.betas(1, 2)(jax.random.key(0)) < 2)
        True
    """
    if not (is_numeric(low) and is_numeric(high) and 0 < low < high < math.inf):
        raise ValueError(f"betas needs 0 < low < high; got low={low!r}, high={high!r}")
    ends = math.log(low), math.log(high)
    return lambda key: jnp.exp(jax.random.uniform(key, minval=ends[0], maxval=ends[1]))


def _rewards(key: Array, size: int) -> dict[str, Array]:
    """Rewards of every kind at spread 1, each of shape [K]."""
    keys = jax.random.split(key, 6)
    sign = jax.random.rademacher(keys[4], (size,), dtype=float)
    return {
        "uniform": jax.random.uniform(keys[0], (size,)),
        "binary": jax.random.bernoulli(keys[1], shape=(size,)).astype(float),
        "gaussian": jax.random.normal(keys[2], (size,)),
        "levels": jax.random.randint(keys[3], (size,), 0, 3).astype(float) / 2,
        "wide": sign * 10.0 ** jax.random.uniform(keys[5], (size,), minval=-6.0, maxval=6.0),
    }


def _reference(
    key: Array, size: int, concentration: float, depth: float | Array, zeros: float | Array
) -> Array:
    keys = jax.random.split(key, 4)
    if concentration == 1:
        log_w = -jax.random.gumbel(keys[0], (size,))  # the logarithm of an exponential
    else:
        log_w = jax.random.loggamma(keys[0], concentration, (size,))
    log_w = log_w - depth * jax.random.uniform(keys[1], (size,))
    gone = jax.random.bernoulli(keys[2], zeros, (size,))
    gone = gone.at[jax.random.randint(keys[3], (), 0, size)].set(False)
    return normalize(jnp.where(gone, -jnp.inf, log_w))
