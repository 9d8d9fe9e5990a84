"""Lemmas as predicates: random problems by the million, and the worst of them."""

from regdist.numerics.face import shown
from regdist.testing.generators import REWARDS, bandits, betas, hard_bandits
from regdist.testing.hunt import Candidate, Hunt, falsify

__all__ = ["REWARDS", "Candidate", "Hunt", "bandits", "betas", "falsify", "hard_bandits"]


def __dir__() -> list[str]:
    return shown(globals())
