"""regdist: exact target distributions of regularized RL, and where policy gradients really go."""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING

from regdist import methods, metrics, policies, problems, testing, trainers
from regdist.methods import Group, Method, Population, Sampled, diagnostics, show_group
from regdist.methods.field import field
from regdist.numerics import logspace
from regdist.numerics.records import choice, record, static
from regdist.policies import laws
from regdist.policies.table import log_softmax
from regdist.problems.bandit import Bandit, bandit
from regdist.problems.contexts import Contexts, contexts
from regdist.problems.grow import tree
from regdist.problems.mdp import MDP, mdp
from regdist.problems.rational import Rational, rational
from regdist.problems.tree import Tree
from regdist.regularizers import divergence as divergences
from regdist.regularizers.anchor import tempered_self
from regdist.regularizers.divergence import Divergence
from regdist.regularizers.regularizer import (
    AlphaDivergence,
    Entropy,
    FDivergence,
    ForwardKL,
    Hellinger,
    JensenShannon,
    Neyman,
    Pearson,
    Regularizer,
    ReverseKL,
    TotalVariation,
    Tsallis,
)
from regdist.runs.certificate import Certificate
from regdist.runs.certify import certify
from regdist.runs.driver import Trajectory, run
from regdist.runs.identify import Identification, identify
from regdist.runs.loop import Loop, loop
from regdist.runs.verdicts import VERDICTS
from regdist.scale.sweep import Sweep, sweep
from regdist.targets import feedback, planning, preferences, transform
from regdist.targets.ball import kl_ball, reward_kl_frontier
from regdist.targets.constraints import Constrained, constrained, moment_matched
from regdist.targets.enclose import Enclosure, enclose
from regdist.targets.fixed_points import FixedPoints, fixed_points
from regdist.targets.inverse import Betas, beta_for
from regdist.targets.odds import Crossings, critical_beta, crossings, log_odds, odds_parts
from regdist.targets.restricted import Restricted, project, restricted
from regdist.targets.selection import Selection, best_of_n, rejection
from regdist.targets.solve import Target, objective, target
from regdist.targets.stepwise import Stepwise, stepwise
from regdist.targets.transform import mara

if TYPE_CHECKING:
    from regdist import plots as plot

__version__ = importlib.metadata.version("regdist")

__all__ = [
    "MDP",
    "VERDICTS",
    "AlphaDivergence",
    "Bandit",
    "Betas",
    "Certificate",
    "Constrained",
    "Contexts",
    "Crossings",
    "Divergence",
    "Enclosure",
    "Entropy",
    "FDivergence",
    "FixedPoints",
    "ForwardKL",
    "Group",
    "Hellinger",
    "Identification",
    "JensenShannon",
    "Loop",
    "Method",
    "Neyman",
    "Pearson",
    "Population",
    "Rational",
    "Regularizer",
    "Restricted",
    "ReverseKL",
    "Sampled",
    "Selection",
    "Stepwise",
    "Sweep",
    "Target",
    "TotalVariation",
    "Trajectory",
    "Tree",
    "Tsallis",
    "bandit",
    "best_of_n",
    "beta_for",
    "certify",
    "choice",
    "constrained",
    "contexts",
    "critical_beta",
    "crossings",
    "diagnostics",
    "divergences",
    "enclose",
    "feedback",
    "field",
    "fixed_points",
    "identify",
    "kl_ball",
    "laws",
    "log_odds",
    "log_softmax",
    "logspace",
    "loop",
    "mara",
    "mdp",
    "methods",
    "metrics",
    "moment_matched",
    "objective",
    "odds_parts",
    "planning",
    "plot",
    "policies",
    "preferences",
    "problems",
    "project",
    "rational",
    "record",
    "rejection",
    "restricted",
    "reward_kl_frontier",
    "run",
    "show_group",
    "static",
    "stepwise",
    "sweep",
    "target",
    "tempered_self",
    "testing",
    "trainers",
    "transform",
    "tree",
]


def __getattr__(name: str) -> object:
    """Import `plot`, and matplotlib with it, when it is first asked for."""
    if name == "plot":
        return importlib.import_module("regdist.plots")
    if name == "softmax":
        raise AttributeError("rd.log_softmax returned logarithms: it is rd.log_softmax now")
    raise AttributeError(f"module 'regdist' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
