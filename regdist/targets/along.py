"""The laws of a family of regularizers along its coefficient, many of them at once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from regdist.numerics.records import TypeAliasType, described, is_concrete
from regdist.problems.bandit import Bandit
from regdist.regularizers.regularizer import Regularizer, check_regularizer
from regdist.targets.solve import Target, target

Family = TypeAliasType("Family", Callable[[Any], Regularizer])
"""From a coefficient to a regularizer: `rd.ReverseKL`, or `lambda b: rd.Pearson(b) + ...`."""

POINTS = 193
"""How many coefficients are solved at once: one shape, so that few programs are compiled."""

ROUNDS = 8
"""How often a bracket is cut into POINTS - 1 until two floats next to each other are its ends."""


def check_family(name: str, family: Any) -> None:
    """Refuses what is no function from a coefficient to a regularizer.

    Raises:
        TypeError: it is something else, such as a regularizer.
    """
    if isinstance(family, Regularizer) or not callable(family):
        raise TypeError(
            f"{name} must be a constructor from beta, such as rd.ReverseKL or "
            f"lambda beta: rd.ReverseKL(beta) + rd.Entropy(0.1); got {described(family)}"
        )


def unit_of(name: str, family: Any) -> Regularizer:
    """The regularizer at coefficient 1, of what is a family.

    Raises:
        TypeError: it is none.
    """
    check_family(name, family)
    return check_regularizer(family(1.0))


def solutions(bandit: Bandit, family: Family, log_betas: Array) -> Target:
    """The targets at many coefficients; compiled once for all families of the same kinds."""
    return _solutions(bandit, jax.vmap(lambda x: family(jnp.exp(x)))(log_betas))


@jax.jit
def _solutions(bandit: Bandit, regularizers: Regularizer) -> Target:
    return jax.vmap(lambda regularizer: target(bandit, regularizer))(regularizers)


def is_proportional(family: Family) -> bool:
    """Whether the family is beta times one regularizer: looked at for beta = 1/2, 1 and 2.

    What is not known (under jit) is taken to be so: coefficients are known when the family makes
    them from the numbers that it gets here.
    """
    half, one, two = (family(beta) for beta in (0.5, 1.0, 2.0))
    if not jax.tree.structure(half) == jax.tree.structure(one) == jax.tree.structure(two):
        return False
    for other, factor in ((half, 0.5), (two, 2.0)):
        for term, unit in zip(other.terms, one.terms, strict=True):
            pairs = [(term.beta, factor * unit.beta)]
            rest = (jax.tree.leaves((t.divergence, t.anchor)) for t in (term, unit))
            pairs += list(zip(*rest, strict=True))
            known = ((np.asarray(a), np.asarray(b)) for a, b in pairs if is_concrete(a, b))
            if not all(np.allclose(a, b, rtol=1e-6, atol=0) for a, b in known):
                return False
    return True


def changes(sign: Array) -> tuple[Array, Array]:
    """Where a row of signs -1, 0, 1 turns: (before, change), both of its shape.

    `change` is the sign at a point less the last one that is not 0 before it, halved, and 0 where
    either is missing; `before` is the index of that last one. Points at 0 are passed over.
    """
    index = jnp.arange(sign.shape[0])
    last = jax.lax.cummax(jnp.where(sign != 0, index, -1))
    before = jnp.concatenate([jnp.full(1, -1), last[:-1]])
    both = (before >= 0) & (sign != 0)
    return before, jnp.where(both, (sign - sign[before]) // 2, 0)
