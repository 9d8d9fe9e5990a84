"""The one table of named families: what each is called by people, in code and in commands.

What prints, parses or lists families reads it: a new name is a row here, and the constructor in
`rd` that the row names.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from regdist.numerics.records import is_concrete
from regdist.regularizers.divergence import (
    KL,
    Alpha,
    Divergence,
    ForwardKL,
    JensenShannon,
    TotalVariation,
)

Kind = type[Divergence] | float | None
"""A divergence by its class or, in the alpha family, by its number; None for the entropy bonus."""


class Family(NamedTuple):
    """Regularizers of one kind, a coefficient beta apart.

    Attributes:
        label: its name in tables, figures and verdicts.
        constructor: its name in `rd`.
        kind: what is subtracted.
    """

    label: str
    constructor: str
    kind: Kind


NAMED: dict[str, Family] = {
    "reverse-kl": Family("reverse KL", "ReverseKL", KL),
    "forward-kl": Family("forward KL", "ForwardKL", ForwardKL),
    "entropy": Family("entropy", "Entropy", None),
    "total-variation": Family("total variation", "TotalVariation", TotalVariation),
    "jensen-shannon": Family("Jensen-Shannon", "JensenShannon", JensenShannon),
    "hellinger": Family("Hellinger", "Hellinger", 0.5),
    "pearson": Family("Pearson", "Pearson", 2.0),
    "neyman": Family("Neyman", "Neyman", -1.0),
}
"""Families by the name that commands use, in the order in which `identify` lists them."""

CHOICES = f"{', '.join(NAMED)}, alpha:A"
"""What a term may be called."""


def parse(spec: str) -> list[Kind]:
    """The kinds that a name means, one a term: of `NAMED`, `alpha:A`, or a sum of them with `+`.

    Raises:
        ValueError: unknown, or A is not a finite number.

    Examples:
        >>> parse("hellinger+alpha:3")
        [0.5, 3.0]
    """
    return [_parse_term(name) for name in spec.split("+")]


def _parse_term(name: str) -> Kind:
    if name in NAMED:
        return NAMED[name].kind
    if not name.startswith("alpha:"):
        raise ValueError(f"unknown regularizer {name!r}: give {CHOICES}, or a sum with +")
    try:
        alpha = float(name.removeprefix("alpha:"))
    except ValueError:
        alpha = math.nan
    if not math.isfinite(alpha):
        raise ValueError(f"alpha:A wants a finite number, like alpha:0.5; got {name!r}")
    return alpha


def label(spec: str) -> str:
    """A name as people write it.

    Examples:
        >>> label("jensen-shannon+alpha:0.5")
        'Jensen-Shannon + alpha = 0.5'
    """
    return " + ".join(
        NAMED[name].label if name in NAMED else name.replace("alpha:", "alpha = ")
        for name in spec.split("+")
    )


def constructor(divergence: Divergence) -> str | None:
    """The function of `rd` that makes regularizers of a divergence, None where none is named.

    Examples:
        >>> (
        ...     constructor(rd.divergences.ForwardKL()),
        ...     constructor(rd.divergences.Alpha(jnp.array(3.0))),
        ... )
        ('ForwardKL', None)
    """
    kind: Any = type(divergence)
    if isinstance(divergence, Alpha):
        alpha = divergence.alpha
        kind = float(alpha) if is_concrete(alpha) and np.ndim(alpha) == 0 else None
    named = {f.kind: f.constructor for f in NAMED.values() if f.kind is not None}
    return named.get(kind)
