"""Figures of records: public as `rd.plot`."""

from regdist.numerics.face import shown
from regdist.plots.figures import *  # noqa: F403


def __dir__() -> list[str]:
    return shown(globals())
