"""What surrounds a method in a trainer: re-used samples, stale samples, a moving reference."""

from collections.abc import Callable

import jax
import numpy as np
from jax import Array

from regdist.numerics.records import (
    Number,
    as_number,
    check_count,
    described,
    is_concrete,
    record,
    static,
)
from regdist.problems.bandit import Bandit
from regdist.problems.contexts import Contexts
from regdist.problems.tree import Tree


@record
class Loop:
    """What surrounds a method in a trainer; made by `loop()`.

    Attributes:
        sync_mix: share of the policy's logits in the new reference's at a synchronization.
        epochs: passes over the samples of a step.
        minibatches: parts that the groups of a step are split into, one update each.
        staleness: how many steps older than the policy its samples are.
        sampler: from the log-probabilities of the old policy to the law really sampled.
        sync_every: steps between synchronizations of the reference, or None for a fixed one.
    """

    sync_mix: Array
    epochs: int = static(default=1)
    minibatches: int = static(default=1)
    staleness: int = static(default=0)
    sampler: Callable[[Array], Array] | None = static(default=None)
    sync_every: int | None = static(default=None)

    @property
    def on_policy(self) -> bool:
        """Whether every update is made with samples of the policy that it moves."""
        return self.epochs * self.minibatches == 1 and not self.staleness and not self.sampler

    def law_of_samples(self, log_old: Array, problem: Bandit | Tree | Contexts) -> Array:
        """What samples are drawn from: of a tree the sampler's law in every state."""
        if self.sampler is None:
            return log_old
        if isinstance(problem, Contexts):
            return problem.map(lambda one, row: self.law_of_samples(row, one), log_old)
        if not isinstance(problem, Tree):
            return self.sampler(log_old)
        return problem.with_chance(jax.vmap(self.sampler)(log_old))

    @property
    def is_bare(self) -> bool:
        """Whether it adds nothing to the method."""
        return self.on_policy and self.sync_every is None


def loop(
    *,
    epochs: int = 1,
    minibatches: int = 1,
    staleness: int = 0,
    sampler: Callable[[Array], Array] | None = None,
    sync_every: int | None = None,
    sync_mix: Number = 1.0,
) -> Loop:
    """How a trainer uses a method: re-used samples, stale samples, a moving reference.

    Args:
        epochs: passes over the samples of a step; ratios are 1 in the first update only. In
            expectation (`Population`, `Group`) each update is the expected one under the law that
            the samples came from; `Sampled` re-uses the groups that it drew.
        minibatches: parts that the groups of a step are split into, in order, one update each.
        staleness: the samples of a step come from the policy that many steps before.
        sampler: a law other than the trainer's own old policy: `lambda log_p:
            rd.laws.temper(log_p, 1.1)`; on a tree it is asked in every state. Reuse one function
            object, to reuse the compiled run.
        sync_every: every so many steps the reference moves: its logits become
            sync_mix * policy + (1 - sync_mix) * reference (TR-DPO 2404.09656).
        sync_mix: in (0, 1]; 1 replaces the reference.

    Raises:
        TypeError: the sampler is no function, or the mix no number.
        ValueError: a count is not a positive integer, or the mix not in (0, 1].
    """
    check_count("epochs", epochs)
    check_count("minibatches", minibatches)
    if sync_every is not None:
        check_count("sync_every", sync_every)
    check_count("staleness", staleness, least=0)
    mix = as_number(sync_mix, "sync_mix")
    if is_concrete(mix) and not np.all((np.asarray(mix) > 0) & (np.asarray(mix) <= 1)):
        raise ValueError(f"sync_mix must be in (0, 1]; got sync_mix={sync_mix!r}")
    if sampler is not None and not callable(sampler):
        raise TypeError(
            "sampler must be a function from log-probabilities to log-probabilities, such as "
            f"lambda log_p: rd.laws.temper(log_p, 1.1); got {described(sampler)}"
        )
    return Loop(mix, epochs, minibatches, staleness, sampler, sync_every)
