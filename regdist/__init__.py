"""regdist: exact target distributions of regularised RL, and where policy gradients really go."""

from typing import TYPE_CHECKING

from regdist import feedback as feedback
from regdist import laws as laws
from regdist import logspace as logspace
from regdist import methods as methods
from regdist import metrics as metrics
from regdist import preferences as preferences
from regdist import problems as problems
from regdist import testing as testing
from regdist import transform as transform
from regdist.certify import Certificate as Certificate
from regdist.certify import certify as certify
from regdist.constraints import constrained as constrained
from regdist.constraints import moment_matched as moment_matched
from regdist.divergence import Divergence as Divergence
from regdist.fixed_points import FixedPoints as FixedPoints
from regdist.fixed_points import fixed_points as fixed_points
from regdist.frontier import Constrained as Constrained
from regdist.frontier import Selection as Selection
from regdist.frontier import best_of_n as best_of_n
from regdist.frontier import kl_ball as kl_ball
from regdist.frontier import rejection as rejection
from regdist.frontier import reward_kl_frontier as reward_kl_frontier
from regdist.identify import Identification as Identification
from regdist.identify import identify as identify
from regdist.methods import Group as Group
from regdist.methods import Population as Population
from regdist.methods import Sampled as Sampled
from regdist.methods import field as field
from regdist.odds import critical_beta as critical_beta
from regdist.odds import log_odds as log_odds
from regdist.odds import odds_parts as odds_parts
from regdist.policy import softmax as softmax
from regdist.problem import Bandit as Bandit
from regdist.problem import bandit as bandit
from regdist.records import record as record
from regdist.regularizer import AlphaDivergence as AlphaDivergence
from regdist.regularizer import Entropy as Entropy
from regdist.regularizer import FDivergence as FDivergence
from regdist.regularizer import ForwardKL as ForwardKL
from regdist.regularizer import Hellinger as Hellinger
from regdist.regularizer import JensenShannon as JensenShannon
from regdist.regularizer import Neyman as Neyman
from regdist.regularizer import Pearson as Pearson
from regdist.regularizer import Regularizer as Regularizer
from regdist.regularizer import ReverseKL as ReverseKL
from regdist.regularizer import TotalVariation as TotalVariation
from regdist.regularizer import Tsallis as Tsallis
from regdist.regularizer import tempered_self as tempered_self
from regdist.run import Loop as Loop
from regdist.run import Trajectory as Trajectory
from regdist.run import loop as loop
from regdist.run import run as run
from regdist.sweep import Sweep as Sweep
from regdist.sweep import sweep as sweep
from regdist.target import Target as Target
from regdist.target import objective as objective
from regdist.target import target as target
from regdist.transform import mara as mara

if TYPE_CHECKING:
    from regdist import plot as plot


def __getattr__(name: str) -> object:
    """Import `plot`, and matplotlib with it, when it is first asked for."""
    if name == "plot":
        import importlib

        return importlib.import_module("regdist.plot")
    raise AttributeError(f"module 'regdist' has no attribute {name!r}")
