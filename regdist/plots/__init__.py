"""Figures of records: public as `rd.plot`."""

from regdist.plots.figures import *  # noqa: F403
