"""What a divergence is taken to: a law, or what follows the policy. K is the number of actions."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from regdist.numerics.records import (
    Number,
    Table,
    TypeAliasType,
    as_array,
    is_concrete,
    positive,
    record,
    unnormalized_advice,
    warn_if_cut,
)


@record
class TemperedSelf:
    """The anchor p^{1/T}, normalized, of the policy p itself, held fixed when p is varied.

    It moves with the policy: what it defines is a fixed point, not an optimum. `target` knows the
    one of reverse KL, where it is an entropy bonus beta (1 - 1/T); at T <= 1 the policy sharpens
    without end and there is none: the target is NaN, not converged. (arXiv 2510.08141.)

    Attributes:
        temperature: T > 0; made by `tempered_self`.
    """

    temperature: Array


def tempered_self(temperature: Number) -> TemperedSelf:
    """The anchor that follows the policy at temperature T: above 1 it flattens, below it sharpens.

    Raises:
        ValueError: T is not a finite number above 0.

    Examples:
        >>> rd.ReverseKL(0.3, anchor=rd.tempered_self(1.5))
        ReverseKL(0.3, anchor=...)
    """
    return TemperedSelf(positive("temperature", temperature, "At 1 the anchor is the policy"))


Anchor = TypeAliasType("Anchor", Table | TemperedSelf)
"""What a divergence is taken to: log-probabilities, or what follows the policy."""


def as_anchor(anchor: Anchor | None) -> Array | TemperedSelf | None:
    """The anchor as a term holds it; None for the reference.

    Raises:
        TypeError: not numbers.
        ValueError: probabilities, or weights that are not normalized.
    """
    if anchor is None or isinstance(anchor, TemperedSelf):
        return anchor
    warn_if_cut("anchor", anchor)
    log_q = as_array("anchor", anchor)
    if is_concrete(log_q):
        total = np.asarray(jnp.exp(jax.nn.logsumexp(log_q, axis=-1)))
        if not np.all(np.abs(total - 1) <= 1e-6):  # float32 logarithms miss 1 by some 1e-7
            raise ValueError(
                "anchor must be normalized log-probabilities in nats; their exponentials sum to "
                f"{total}. {unnormalized_advice(np.asarray(log_q))}"
            )
    return log_q
