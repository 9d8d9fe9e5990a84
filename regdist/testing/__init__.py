"""Lemmas as predicates: random problems by the million, the worst of them, and its proof."""

import importlib
from typing import TYPE_CHECKING

from regdist.numerics.face import shown
from regdist.testing import balls
from regdist.testing.generators import REWARDS, bandits, betas, hard_bandits
from regdist.testing.hunt import Candidate, Hunt, falsify
from regdist.testing.shrink import Smallest

if TYPE_CHECKING:
    from regdist.testing import strategies

__all__ = [
    "REWARDS",
    "Candidate",
    "Hunt",
    "Smallest",
    "balls",
    "bandits",
    "betas",
    "falsify",
    "hard_bandits",
    "strategies",
]


def __getattr__(name: str) -> object:
    """Import `strategies`, and hypothesis with it, when it is first asked for."""
    if name == "strategies":
        return importlib.import_module("regdist.testing.strategies")
    raise AttributeError(f"module 'regdist.testing' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*shown(globals(), ("balls",)), "strategies"})
