"""How an optimum is found: a tilt, one strictly convex term, a sum of families, total variation."""

from regdist.solvers.mixed import mixed as mixed
from regdist.solvers.optimum import Optimum as Optimum
from regdist.solvers.polyhedral import polyhedral as polyhedral
from regdist.solvers.single import single as single
from regdist.solvers.tilt import tilt as tilt
