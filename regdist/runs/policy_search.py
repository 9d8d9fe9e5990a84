"""The flows of a method in the parameters of a policy, and the bests of its class beside an end.

The best of a class under a regularizer is where the exact gradient of E R less it comes to rest.
Beside an end that says which beta makes it the best, how far log-probabilities are from it, and how
the best would answer to the problem. L is of actions or sequences, flat over prompts.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from regdist.methods import Expectation, Method
from regdist.methods.step import leaves_of
from regdist.policies.policy import Policy
from regdist.problems.bandit import Bandit
from regdist.regularizers.regularizer import Regularizer
from regdist.runs.loop import Loop
from regdist.runs.naming import DEEP, FAMILIES, Fit, Response, preferred, slope_parts, told
from regdist.runs.policy_dynamics import PolicyDynamics
from regdist.runs.search import Search
from regdist.targets.selection import limit_laws

RESTRICTED = "restricted"
"""The form of a target that is a best law of a class of policies: nothing near is better."""
MOST_PARAMETERS = 128
"""Parameters of a flow: each column of its Jacobian takes four updates."""
_BLURS = 16 * float(np.finfo(np.float64).eps)  # of a sum of products
_REFINED = 4  # times that beta is fitted to the errors of log p that the last one left


class PolicySearch(Search):
    """The flows in the parameters of a policy, from starts, each a tree of parameters.

    Args:
        method: in float64.
        problem: a bandit, a tree without chance, or contexts, in float64.
        expectation: exact.
        old: log-probabilities of the policy that samples come from, if it stays.
        loop: what surrounds the method.
        tolerance: of a name, in nats.
        starts: parameters, the first those that all others are counted from.
        policy: as it was placed on the problem.
    """

    def __init__(
        self,
        method: Method,
        problem: Any,
        expectation: Expectation,
        old: np.ndarray | None,
        loop: Loop | None,
        tolerance: float,
        starts: Sequence[Any],
        policy: Policy,
    ):
        self.policy = policy
        self.flow = PolicyDynamics(method, problem, expectation, policy, starts[0], old, loop)
        flat = np.stack([np.asarray(ravel_pytree(x)[0]) for x in starts])
        super().__init__(method, problem, expectation, old, loop, tolerance, flat)

    def check_size(self) -> None:
        """Refuses more parameters than a Jacobian is made for.

        Raises:
            ValueError: there are more than `MOST_PARAMETERS`.
        """
        count = self.logits.shape[1]
        if count > MOST_PARAMETERS:
            raise ValueError(
                f"rd.identify follows at most {MOST_PARAMETERS} parameters of a policy; here are "
                f"{count:,}. Follow a run: rd.run(..., policy=...)"
            )

    def dynamics(self, z: np.ndarray) -> Any:
        """The flow, one for all starts."""
        del z
        return self.flow

    def law_of_start(self, z: np.ndarray) -> np.ndarray:
        """The law of flat parameters."""
        return self.flow.whole(self.flow.gather(z))

    def limit_laws(self) -> Mapping[str, Any]:
        """Laws without a coefficient, by name; of contexts the references alone."""
        leaves = leaves_of(self.bandit)
        if isinstance(leaves, Bandit) and leaves.reward.ndim == 1:
            return limit_laws(leaves)
        return {"reference": leaves.log_ref}

    def fits(
        self, flow: Any, at: np.ndarray, given: Mapping[str, Regularizer], own: Sequence[float]
    ) -> list[Fit]:
        """The bests of the class beside an end: under those given, by name, and all families."""
        beside, fits = _Bests(flow, at), []
        for name, regularizer in given.items():
            error = beside.error(beside.lost(regularizer), 1.0)
            fits.append(Fit(name, None, regularizer, error, form=RESTRICTED))
        for name, make in FAMILIES.items():
            lost = beside.lost(make(1.0))
            beta, error = beside.best_beta(lost)
            if beta is None:
                continue
            beta, error = preferred(own, beta, error, lambda x, lost=lost: beside.error(lost, x))
            fits.append(Fit(name, beta, make(beta), error, form=RESTRICTED))
        return fits

    def compared(
        self, flow: Any, at: np.ndarray, fits: Sequence[Fit], response: Response
    ) -> list[Fit]:
        """The fits with their responses beside the end's."""
        beside = _Bests(flow, at)
        return [beside.compare(fit, response) for fit in fits]

    def keeps(self, flow: Any, at: np.ndarray, response: Response) -> bool:
        """Not asked: a class need not be able to follow the reference."""
        del flow, at, response
        return False


class _Lost(NamedTuple):
    """What a regularizer takes.

    Attributes:
        pull: b of its slope, shape [n - 1].
        slopes: the derivative of that in the coordinates.
        by_ref: the derivative of its slope by the log-reference, shape [L].
        slope: its slope at each action, shape [L].
    """

    pull: np.ndarray
    slopes: np.ndarray
    by_ref: np.ndarray
    slope: np.ndarray


class _Bests:
    """The bests of a class beside an end of a flow, each a rest point of its objective.

    The gradient of E R less a regularizer in the coordinates is b = S' diag(P) w, with the scores S
    [L, n], how often each action is taken P, and w = R - slope [L]. Its derivatives follow from
    those of the scores, which are asked once for all regularizers. As P S = 0 for each prompt, w
    counts less its mean there: where one action has all but the whole mass its score is all
    rounding, and must not be multiplied by more than what is left of w.

    Args:
        flow: of the method.
        z: coordinates of the end.
    """

    def __init__(self, flow: PolicyDynamics, z: np.ndarray):
        self.flow = flow
        self.scores, self.share = flow.scores(z)
        self.scores = self.scores[:, 1:]
        self.bends = flow.bends(z)
        self.law = flow.whole(z)
        taken = np.isfinite(self.law.ravel())
        self.share = np.where(taken, self.share, 0)
        self.reward = np.where(taken, flow.reward.ravel(), 0)
        self.gained = self._pull(self.reward), self._slopes(self.reward, np.zeros(taken.shape))

    def _less_mean(self, w: np.ndarray) -> np.ndarray:
        """w, shape [L, ...], less its mean for each prompt."""
        by_prompt = (-1, self.law.shape[-1])
        rows, share = w.reshape(*by_prompt, *w.shape[1:]), self.share.reshape(by_prompt)
        total = share.sum(axis=1)
        mean = np.einsum("ck,ck...->c...", share, rows)
        mean = mean / np.where(total > 0, total, 1).reshape(-1, *[1] * (mean.ndim - 1))
        return (rows - mean[:, None]).reshape(w.shape)

    def _pull(self, w: np.ndarray) -> np.ndarray:
        """b, shape [n - 1], or a column of it for each column of w."""
        return self.scores.T @ (self.share.reshape(-1, *[1] * (w.ndim - 1)) * self._less_mean(w))

    def _slopes(self, w: np.ndarray, by_p: np.ndarray) -> np.ndarray:
        """The derivative of b in the coordinates, where that of w by log p is by_p, shape [L]."""
        w = self._less_mean(w)
        by_law = (self.share * (w + by_p))[:, None] * self.scores
        bent = np.tensordot(self.share * w, self.bends, axes=1)
        return self.scores.T @ by_law + bent

    def lost(self, regularizer: Regularizer) -> "_Lost":
        """What a regularizer takes from the gradient."""
        leaves = leaves_of(self.flow.bandit)
        law = jnp.asarray(np.where(np.isneginf(self.law), DEEP, self.law))
        parts = slope_parts if law.ndim == 1 else _slope_rows
        found = parts(regularizer, law, leaves.log_ref)
        slope, by_p, by_ref = (np.where(self.share > 0, np.ravel(x), 0) for x in found)
        return _Lost(self._pull(slope), self._slopes(slope, by_p), by_ref, slope)

    def off(self, lost: "_Lost", beta: float) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """From the end to the best at beta, to first order, and that by beta, of log p [L].

        The third is what rounding may do to the first.
        """
        slopes = self.gained[1] - beta * lost.slopes
        left = self.reward - beta * lost.slope
        b = self._pull(left)
        if not (np.all(np.isfinite(slopes)) and np.all(np.isfinite(b))):
            return None
        try:
            inverse = np.linalg.inv(slopes)
        except np.linalg.LinAlgError:
            return None
        size = np.abs(self.reward) + beta * np.abs(lost.slope)
        blur = np.abs(self.scores).T @ (self.share * size)
        blur = blur + np.abs(self.scores).max() * (self.share @ np.abs(self._less_mean(left)))
        rounded = np.abs(self.scores) @ (np.abs(inverse) @ (_BLURS * blur))
        return self.scores @ (-inverse @ b), self.scores @ (inverse @ lost.pull), rounded

    def solved(self, slopes: np.ndarray, b: np.ndarray) -> np.ndarray | None:
        """The moves of the coordinates that move the gradient by columns of b."""
        if not (np.all(np.isfinite(slopes)) and np.all(np.isfinite(b))):
            return None
        try:
            return np.linalg.solve(slopes, b)
        except np.linalg.LinAlgError:
            return None

    def error(self, lost: "_Lost", beta: float) -> float:
        """The largest error of a log-probability, less what rounding may do."""
        found = self.off(lost, beta)
        if found is None:
            return np.inf
        return float(np.maximum(np.abs(found[0]) - found[2], 0).max())

    def best_beta(self, lost: "_Lost") -> tuple[float | None, float]:
        """The beta at which the best of the class is nearest, and the error that is left."""
        size = float(lost.pull @ lost.pull)
        beta = float(self.gained[0] @ lost.pull) / size if size > 0 else 0.0
        for _ in range(_REFINED):
            found = self.off(lost, beta) if beta > 0 else None
            if found is None:
                return None, np.inf
            size = float(found[1] @ found[1])
            beta -= float(found[0] @ found[1]) / size if size > 0 else 0.0
        return (beta, self.error(lost, beta)) if beta > 0 else (None, np.inf)

    def compare(self, fit: Fit, response: Response) -> Fit:
        """The fit with its response beside the end's, where the class has its best there."""
        if response.log_p is None or fit.regularizer.follows_policy():
            return fit
        lost = self.lost(fit.regularizer)
        slopes = self.gained[1] - lost.slopes
        if not np.all(np.isfinite(slopes)):
            return fit
        if np.linalg.eigvalsh((slopes + slopes.T) / 2).max() >= 0:
            return fit._replace(response="differs")  # a saddle of the objective
        rows = zip(response.reward, response.log_ref, strict=True)
        moves = [
            np.ravel(dr) - np.where(dq != 0, lost.by_ref * dq, 0)
            for dr, dq in ((dr, self.flow.of_leaves(dq).ravel()) for dr, dq in rows)
        ]
        pulls = self._pull(np.where(self.share[:, None] > 0, np.stack(moves, axis=1), 0))
        moved = self.solved(slopes, np.concatenate([-pulls, lost.pull[:, None]], axis=1))
        if moved is None:
            return fit
        moved = np.concatenate([np.zeros((1, moved.shape[1])), moved])
        weight, odds = np.ones(len(moved)), len(moved) - 1
        wants = list(moved[:, :-1].T)
        return told(fit, response.log_p, response.error, wants, moved[:, -1], weight, odds)


@jax.jit
def _slope_rows(regularizer: Regularizer, log_p: Any, log_ref: Any) -> Any:
    """As `slope_parts`, of the law of each prompt."""
    return jax.vmap(lambda p, q: slope_parts(regularizer, p, q))(log_p, log_ref)
