"""The registry of regularisers that the laws run over, and what they are tried on."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import regdist as rd
from regdist.testing import strategies
from regdist.testing.strategies import betas

__all__ = ["REGULARIZERS", "LeCam", "bandits", "betas", "laws"]

SIZES = (1, 5)


@rd.record
class LeCam(rd.Divergence):
    """sum (p - q)^2/(p + q), halved: what a user would write."""

    def generator(self, r):
        return jnp.tanh(r / 2) * jnp.expm1(r) / 2

    def slope(self, r):
        return 1 / 2 - 2 / (1 + jnp.exp(r)) ** 2

    def log_inverse(self, x):
        return jnp.log(jnp.sqrt(4 / (1 - 2 * x)) - 1)


class Member(NamedTuple):
    """A regulariser in the registry: made from beta; `anchor` is its limit for large beta.

    `leaves` says whether mass may go off the support of the anchor, `alpha` the member of the
    alpha family if it is one.
    """

    make: Callable[[Any], rd.Regularizer]
    anchor: str
    leaves: bool
    alpha: float | None = None
    kinked: bool = False


REGULARIZERS = {
    "reverse KL": Member(rd.ReverseKL, "reference", False, 1.0),
    "forward KL": Member(rd.ForwardKL, "reference", True, 0.0),
    "Hellinger": Member(rd.Hellinger, "reference", True, 0.5),
    "Pearson": Member(rd.Pearson, "reference", False, 2.0, True),
    "Neyman": Member(rd.Neyman, "reference", True, -1.0),
    "Jensen-Shannon": Member(rd.JensenShannon, "reference", True),
    "total variation": Member(rd.TotalVariation, "reference", True, None, True),
    "Le Cam": Member(lambda b: rd.FDivergence(LeCam(), b), "reference", True, None, True),
    "entropy": Member(rd.Entropy, "uniform", False, 1.0),
    "Tsallis 1.5": Member(lambda b: rd.Tsallis(1.5, b), "uniform", False, 1.5, True),
    "reverse KL + entropy": Member(
        lambda b: rd.ReverseKL(b) + rd.Entropy(b / 2), "mixed", False, 1.0
    ),
    "reverse + forward KL": Member(
        lambda b: rd.ReverseKL(b) + rd.ForwardKL(b / 3), "reference", False
    ),
    "reverse KL + TV": Member(
        lambda b: rd.ReverseKL(b) + rd.TotalVariation(b), "reference", False, None, True
    ),
}


def bandits(sizes=SIZES, **options):
    """The public strategy, over the sizes that the tests compile for."""
    return strategies.bandits(sizes, **options)


def laws(size, key):
    """A few random policies of a size, as log-probabilities, some of them nearly on a vertex."""
    random = np.random.default_rng(key)
    logits = random.normal(size=(4, size)) * np.array([0.3, 1, 3, 8])[:, None]
    return [jnp.asarray(z - np.logaddexp.reduce(z)) for z in logits]
