"""One term of a regularizer: divergence x anchor x coefficient. K is of actions, q the anchor."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from regdist.numerics.logspace import expm1_over
from regdist.numerics.records import (
    is_concrete,
    record,
    static,
)
from regdist.policies.laws import temper, uniform
from regdist.regularizers import names
from regdist.regularizers.anchor import TemperedSelf
from regdist.regularizers.divergence import KL, Alpha, Divergence


class Reduced(NamedTuple):
    """-beta D(p || anchor) + offset: what a regularizer amounts to on one table."""

    divergence: Divergence
    beta: Array
    log_anchor: Array
    offset: Array


@record
class Term:
    """beta * D(p || anchor), or less a bonus: beta times an entropy, Shannon's or Tsallis'."""

    divergence: Divergence
    beta: Array
    anchor: Array | TemperedSelf | None
    is_bonus: bool = static(default=False)

    def reduce(self, log_ref: Array, log_p: Array | None = None) -> Reduced:
        """This term on a table with this reference, in the dtype of the table.

        Args:
            log_ref: the reference.
            log_p: the policy, for anchors that follow it; without it their fixed point is meant.
        """
        divergence, beta, anchor = jax.tree.map(
            lambda x: x.astype(log_ref.dtype), (self.divergence, self.beta, self.anchor)
        )
        log_u = uniform(log_ref)
        if self.is_bonus:
            # S_n(p) = S_n(u) - n K^(1-n) D_n(p || u): for n = 1, H = log K - KL.
            n = divergence.alpha if isinstance(divergence, Alpha) else jnp.ones_like(beta)
            scale = n * jnp.exp((n - 1) * log_u[0])
            return Reduced(divergence, beta * scale, log_u, beta * expm1_over(1 - n, -log_u[0]))
        if isinstance(anchor, TemperedSelf):
            if log_p is not None:
                return Reduced(divergence, beta, temper(log_p, anchor.temperature), 0 * beta)
            if not isinstance(divergence, KL):
                raise ValueError(
                    f"no target is known for {self!r}: its anchor moves with the policy. "
                    "rd.fixed_points finds them where one scalar tells how; rd.run where a "
                    "method goes"
                )
            return Reduced(divergence, beta * (1 - 1 / anchor.temperature), log_u, 0 * beta)
        log_anchor = log_ref if anchor is None else anchor
        if log_anchor.shape != log_ref.shape:
            raise ValueError(
                f"anchor must have the shape of the reference, {log_ref.shape}; "
                f"got {log_anchor.shape}"
            )
        return Reduced(divergence, beta, log_anchor, jnp.zeros_like(beta))

    def __repr__(self) -> str:
        about = "" if self.anchor is None else ", anchor=..."
        d, beta = self.divergence, _show(self.beta)
        if self.is_bonus:
            order = f"{_show(d.alpha)}, " if isinstance(d, Alpha) else ""
            return f"{'Tsallis' if order else 'Entropy'}({order}{beta})"
        name = names.constructor(d)
        if name is not None:
            return f"{name}({beta}{about})"
        if isinstance(d, Alpha):
            return f"AlphaDivergence({_show(d.alpha)}, {beta}{about})"
        return f"FDivergence({type(d).__name__}, {beta}{about})"


def _show(x: Array) -> str:
    return f"{np.asarray(x).item():.6g}" if is_concrete(x) and np.ndim(x) == 0 else "..."
