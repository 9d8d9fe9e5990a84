"""The flows of a method on a tree from several starts. S states, V tokens, L leaves, n coordinates.

Limits are told apart by the laws of whole sequences; ends where steps die out are not judged, for
what lies beyond such a step has no limit of its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from regdist.regularizers.regularizer import Regularizer
from regdist.runs.naming import Fit, Response, log_error
from regdist.runs.search import Search
from regdist.runs.tree_dynamics import TreeDynamics, check_few_steps, steps_alive
from regdist.runs.tree_naming import Recursions
from regdist.targets.selection import limit_laws


class TreeSearch(Search):
    """The flows of a method on a tree, from starts [N, S, V] to a verdict."""

    def check_size(self) -> None:
        """Refuses more steps than a Jacobian is made for.

        Raises:
            ValueError: there are more than `MOST_STEPS`.
        """
        check_few_steps(self.bandit, "identify")

    def alive(self, z: np.ndarray) -> np.ndarray:
        """Which steps a start takes, where the policy moves; flat, [S V]."""
        return steps_alive(self.bandit, z)

    def make(self, z: np.ndarray, classes: np.ndarray | None) -> TreeDynamics:
        """The flow over the steps that a start has."""
        del classes
        alive = self.alive(z)
        return TreeDynamics(self.method, self.bandit, self.expectation, alive, self.old, self.loop)

    def law_of_start(self, z: np.ndarray) -> np.ndarray:
        """The law of whole sequences, shape [L], that a start has."""
        flow = self.dynamics(z)
        return flow.whole(flow.gather(z))

    def limit_laws(self) -> Mapping[str, Any]:
        """Laws without a coefficient, by name, shape [L] each; with chance the reference alone."""
        if self.bandit.log_chance is None:
            return limit_laws(self.bandit.bandit)
        return {"reference": self.bandit.bandit.log_ref}

    def fits(
        self, flow: Any, at: np.ndarray, given: Mapping[str, Regularizer], own: Sequence[float]
    ) -> list[Fit]:
        """Targets beside an end, in every recursion: those given, by name, and all families."""
        beside = Recursions(flow, at)
        fits = [fit for name, x in given.items() for fit in beside.fixed(name, x)]
        fits += beside.families(own)
        if not beside.has_edges:
            return fits
        return [
            fit._replace(error=log_error(beside.log_leaves, beside.law(fit), self.tolerance))
            if fit.error <= self.tolerance
            else fit
            for fit in fits
        ]

    def compared(
        self, flow: Any, at: np.ndarray, fits: Sequence[Fit], response: Response
    ) -> list[Fit]:
        """The fits with their responses beside the end's."""
        beside = Recursions(flow, at)
        return [beside.compare(fit, response) for fit in fits]
