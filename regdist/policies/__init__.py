"""From parameters to log-probabilities. A policy is what a method moves."""

from regdist.numerics.face import shown
from regdist.policies.policy import Params, Policy
from regdist.policies.shared import FromFunction, LogLinear, LowRank, Tied
from regdist.policies.table import Table, log_softmax

__all__ = [
    "FromFunction",
    "LogLinear",
    "LowRank",
    "Params",
    "Policy",
    "Table",
    "Tied",
    "log_softmax",
]


def __dir__() -> list[str]:
    return shown(globals())
