"""How an optimum is found: a tilt, one strictly convex term, a sum of families, total variation."""

from regdist.targets.solvers.mixed import mixed as mixed
from regdist.targets.solvers.optimum import Optimum as Optimum
from regdist.targets.solvers.polyhedral import polyhedral as polyhedral
from regdist.targets.solvers.single import single as single
from regdist.targets.solvers.tilt import tilt as tilt
