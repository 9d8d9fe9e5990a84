"""What runs and certificates refuse, in words that name the argument. K is of actions."""

from typing import Any

import numpy as np
from jax import Array

from regdist.methods.step import Problem, leaves_of
from regdist.numerics.records import (
    Law,
    Number,
    as_array,
    check_kind,
    described,
    is_concrete,
)
from regdist.policies.policy import Params, Policy
from regdist.problems.contexts import Contexts, check_law
from regdist.problems.placed import shares, table_on
from regdist.problems.tree import Tree
from regdist.runs.loop import Loop
from regdist.targets.restricted import Restricted


def check_shared(problem: Any, policy: Policy, where: str, many: bool = True) -> None:
    """Refuses contexts of tables, and a class of policies where chance moves.

    Under tables every prompt has a flow of its own; of a class no best is known beside chance.

    Args:
        problem: what is asked about.
        policy: as it was placed.
        where: who asks.
        many: whether contexts that share a policy may be asked about.

    Raises:
        TypeError: contexts without a policy that they share.
        ValueError: a policy that shares parameters where chance moves.
    """
    if isinstance(problem, Contexts) and not (many and shares(policy)):
        shared = ", or the policy whose parameters they share" if many else ""
        raise TypeError(f"rd.{where} asks about one problem: give one of contexts.each{shared}")
    one = problem.problems if isinstance(problem, Contexts) else problem
    if shares(policy) and isinstance(one, Tree) and one.log_chance is not None:
        raise ValueError(
            f"rd.{where} knows no best of a class where chance moves: leave policy out for a "
            "table, or follow a run: rd.run(..., policy=...)"
        )


def check_surroundings(optimizer: Any, loop: Any) -> None:
    """Refuses what is no optimizer or no loop.

    Raises:
        TypeError: one of them is something else, such as a step size for the optimizer.
    """
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(
            f"optimizer must be an optax gradient transformation; got {described(optimizer)}. A "
            "step size is optax.sgd(0.1)"
        )
    if loop is not None:
        check_kind("loop", loop, Loop, "Make one: rd.loop(epochs=2)")


def as_limit(tolerance: Number, dtype: Any) -> Array:
    """The field norm at which a run stops, in the dtype of the problem.

    Raises:
        TypeError: not a number.
        ValueError: below 0.
    """
    limit = as_array("tolerance", tolerance, dtype)
    if is_concrete(limit) and not np.all(np.asarray(limit) >= 0):
        raise ValueError(f"tolerance must be a number >= 0; got tolerance={tolerance!r}")
    return limit


def check_sampler(loop: Loop, policy: Policy, start: Params, problem: Problem) -> None:
    """Asks the sampler of a loop once, so that what is no law is refused before the run.

    Raises:
        TypeError: it returns no table.
        ValueError: it returns probabilities, or laws over other actions.
    """
    if loop.sampler:
        name, where = "what sampler returns", "rd.loop(sampler=...)"
        if isinstance(problem, Contexts):
            for one, law in zip(problem.each, policy.log_probs(start), strict=True):
                check_sampler(loop, table_on(one), law, one)
            return
        law = loop.law_of_samples(policy.log_probs(start), problem)
        check_law(name, law, problem, where)


def check_target(target: Any, problem: Problem, shared: bool = False) -> None:
    """Refuses what is not a record of one distribution over actions, or over whole sequences.

    Where parameters are `shared` it must have some.

    Raises:
        TypeError: of another kind, such as a regularizer.
        ValueError: over other actions, or a batch.
    """
    of, advice = "the actions of the bandit", "Make one: rd.target(bandit, regularizer)"
    if isinstance(problem, Tree):
        of = "the whole sequences of the tree"
        advice = "Make one: rd.target(tree.bandit, regularizer) or rd.stepwise(tree, regularizer)"
    check_kind("target", target, Law, advice)
    if shared:
        advice = "Under a policy it is of its class: rd.restricted(problem, regularizer, policy)"
        check_kind("target", target, Restricted, advice)
    shape = leaves_of(problem).reward.shape
    if target.log_probs.shape != shape:
        raise ValueError(
            f"target must be over {of}, shape {shape}; got "
            f"log_probs of shape {target.log_probs.shape}"
        )
