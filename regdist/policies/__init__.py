"""From parameters to log-probabilities. A policy is what a method moves."""

from regdist.numerics.face import shown
from regdist.policies.policy import Params, Policy
from regdist.policies.table import Table, log_softmax

__all__ = ["Params", "Policy", "Table", "log_softmax"]


def __dir__() -> list[str]:
    return shown(globals())
