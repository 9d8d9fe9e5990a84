"""Does a method go to a target? Stationarity, stability, distance, pace, and a verdict.

`certify` works on concrete values, outside jit, and judges in float64. K is the number of actions,
or of whole sequences, n of coordinates (see `dynamics`), N of records.
"""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Key

from regdist.methods import Expectation, Method
from regdist.methods.field import check_problem
from regdist.methods.step import fitted, leaves_of
from regdist.numerics.records import Law, check_count, check_key, check_kind, positive
from regdist.policies.policy import Policy
from regdist.problems.bandit import Bandit
from regdist.problems.placed import own_policy, shares
from regdist.problems.tree import Tree
from regdist.runs.certificate import Certificate
from regdist.runs.checks import check_shared, check_surroundings, check_target
from regdist.runs.driver import Loop, Trajectory, default_optimizer, run
from regdist.runs.judgment import Asked, certificate
from regdist.runs.starts import starts, starts_of
from regdist.runs.tree_dynamics import check_few_steps

if TYPE_CHECKING:
    import optax


def certify(
    method: Method,
    bandit: Bandit | Tree,
    target: Law,
    path: Trajectory | None = None,
    *,
    optimizer: "optax.GradientTransformation | None" = None,
    steps: int = 2000,
    tolerance: float = 1e-6,
    expectation: Expectation | None = None,
    policy: Policy | None = None,
    key: Key[Array, ""] | None = None,
    loop: Loop | None = None,
) -> Certificate:
    """Whether a method has this target as its limit, and how far a run has come.

    The target is judged by itself: is it a rest point, in units without p; does the flow, and the
    run's own step with its loop, draw in what is near. Then the run: is it there, and if not,
    where does the flow go from where it stands. A run that is merely slow is a plateau, with the
    steps that the flow still takes; one whose limit is another law, or a manifold, or nowhere, is
    named as such; and what is not proved is undecided. Only "converges" and "plateau" pass.

    On a tree the flow is that of the logits of steps, less one shift of each state, and states that
    neither target nor run comes to are left out. A target that leaves steps without mass, and a
    corner of a penalty, is undecided there.

    Under a `policy` that shares parameters the flow is theirs, less the directions that move no
    law, and the target one of its class, with its parameters.

    Args:
        method: what was run.
        bandit: K actions; or a tree, of at most 512 steps of the policy.
        target: the supposed limit; of a tree a law of its whole sequences, such as
            `rd.target(tree.bandit, regularizer)` or `rd.stepwise(tree, regularizer)`. Under a
            policy what `rd.restricted` or `rd.project` returns.
        path: the run; by default `steps` steps are run from the reference policy.
        optimizer: the one that the run used, default `optax.sgd(0.1)`. Rates and steps to go are
            for plain gradient steps, not for optimizers with a memory: a run of theirs that has not
            arrived is undecided.
        steps: steps of the run made here.
        tolerance: total variation at which a run has arrived.
        expectation: over what updates are averaged, as in `run`. Under `Sampled` the target is
            judged by the exact mean over all groups of that size, so that its bias shows in
            `field_norm`; a run is not expected to stand still, but to spread as predicted.
        policy: as in `run`; default a table.
        key: for `Sampled`, which is for the table of a bandit alone.
        loop: as in `run`. It is the loop's own map that is judged.

    Raises:
        TypeError: an argument of another kind, such as a regularizer for the target.
        ValueError: a target over other actions, the path is a batch of runs, or groups too many to
            enumerate; more than 2,000 actions that do not move alike.

    Examples:
        >>> b = rd.bandit([1.0, 0.0], [0.1, 0.9])
        >>> reg = rd.ReverseKL(0.5)
        >>> print(certify(rd.methods.natural_policy_gradient(reg), b, rd.target(b, reg)))
        converges: ... at total variation ...

        A penalty of tokens in the loss does not stand still at the target of whole sequences.

        >>> t = rd.tree([[0], [1, 0], [1, 1]], [0.0, 0.0, 1.0])
        >>> k2 = rd.methods.dr_grpo(beta=0.5, estimator="k2", averaging="sum")
        >>> print(certify(k2, t, rd.target(t.bandit, reg)).verdict)
        elsewhere
        >>> print(certify(k2, t, rd.stepwise(t, reg, "reward")).verdict)
        converges
    """
    placed = check_problem(method, bandit, policy, trees=True)
    check_shared(bandit, placed, "certify", many=False)
    check_target(target, bandit, shares(placed))
    optimizer = default_optimizer() if optimizer is None else optimizer
    check_surroundings(optimizer, loop)
    check_key(key)
    check_count("steps", steps)
    positive("tolerance", tolerance, "It is a total variation")
    expectation = fitted(expectation, method, bandit)
    if isinstance(bandit, Tree) and not shares(placed):
        check_few_steps(bandit, "certify")
    if expectation.draws and (isinstance(bandit, Tree) or shares(placed)):
        raise ValueError(
            f"beyond the table of a bandit rd.certify judges exact updates, and {expectation!r} "
            f"draws: give rd.{expectation.exact()!r} for their mean, and follow the draws by rd.run"
        )
    leaves = leaves_of(bandit)
    ends = np.zeros((0, leaves.num_actions))
    if path is not None:
        check_kind("path", path, Trajectory, "It is what rd.run returns, or None for a run here")
    else:
        # A spread is a statistic of records: it needs more of them than a rate does.
        every = max(1, steps // (1000 if expectation.draws else 100))

        def walk(start: Any, every: int) -> Trajectory:
            return run(
                method,
                bandit,
                steps,
                optimizer=optimizer,
                expectation=expectation,
                policy=policy,
                key=key,
                init=start,
                record_every=every,
                loop=loop,
            )

        path = walk(None, every)
        others: Any = jnp.asarray(starts(bandit, 3)[1:])
        if shares(placed):
            others = jax.tree.map(lambda *x: jnp.stack(x), *starts_of(placed, bandit, 4)[1:])
        ends = np.asarray(jax.vmap(lambda z: walk(z, steps).log_probs[-1])(others))
    _check_path(path, bandit)
    own = own_policy(placed) if shares(placed) else None
    asked = Asked(method, bandit, target, path, optimizer, tolerance, expectation, loop, ends, own)
    return certificate(asked)


def _check_path(path: Trajectory, problem: Bandit | Tree) -> None:
    """Refuses a batch of runs, and a run of another problem."""
    leaves = leaves_of(problem)
    if jnp.ndim(path.log_probs) != 2:
        raise ValueError(
            f"path must be one run with log_probs [N, K]; got shape {path.log_probs.shape}. "
            "Take one of a batch with jax.tree.map(lambda x: x[i], path)"
        )
    if path.log_probs.shape[1:] != leaves.reward.shape:
        of = "the actions of the bandit" if leaves is problem else "the sequences of the tree"
        raise ValueError(
            f"path must be over {of}, shape [N, {leaves.num_actions}]; got "
            f"log_probs of shape {path.log_probs.shape}"
        )
