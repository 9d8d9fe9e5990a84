"""Figures of records: public as `rd.plot`."""

from regdist.plots.figures import (
    convergence,
    effective_number,
    kl_to,
    mass_bars,
    rank_curves,
    style,
)

__all__ = ["convergence", "effective_number", "kl_to", "mass_bars", "rank_curves", "style"]
