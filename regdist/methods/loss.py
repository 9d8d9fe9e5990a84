"""A loss as a trainer's code has it, differentiated rather than derived."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from regdist.methods.advantage import Advantage, GroupRelative
from regdist.methods.batch import Batch
from regdist.methods.method import Method, as_tuple
from regdist.methods.surrogate import Surrogate
from regdist.methods.weight import Weight
from regdist.numerics.records import as_number, described, record, static
from regdist.regularizers.regularizer import Regularizer


class View:
    """What a trainer's loss sees of one group of n samples, of up to T steps on a tree.

    Log-probabilities, advantages and mask are [n], on a tree [n, T]; all else is [n].

    Attributes:
        log_probs: of the policy: differentiated; 0 where there is no step of its own.
        old_log_probs: of the policy that the samples were drawn with, as the trainer computes it.
        sampler_log_probs: of the law that they were really drawn from.
        ref_log_probs: of the reference.
        advantages: by the advantage given to `from_loss`, on a tree the same at all steps of one.
        mask: which steps are the policy's own: 1, and 0 for chance's and beyond the end.
        lengths: how many are.
        actions: which action, or whole sequence, each sample is.
        labels: the answer that each stands for.
        rewards: of the samples.
        weights: share of each sample, 1/n in a group; the law itself under `Population`.
    """

    def __init__(self, batch: Batch, advantages: Array, log_probs: Array):
        tables, samples = batch.tables, samples_of(batch)
        shape = batch.present.shape
        if batch.samples is not None:
            shape = (-1, batch.horizon)
        self._batch = samples
        self.log_probs = log_probs.reshape(shape)
        self.old_log_probs = batch.pick(tables.log_old).reshape(shape)
        self.sampler_log_probs = batch.pick(tables.log_sampler).reshape(shape)
        self.ref_log_probs = batch.pick(tables.log_ref).reshape(shape)
        self.advantages = advantages.reshape(shape)
        self.mask = jnp.where(batch.present, 1.0, 0.0).astype(log_probs.dtype).reshape(shape)
        self.lengths = samples.length
        self.actions = samples.actions
        self.labels = samples.labels
        self.rewards = samples.reward
        self.weights = samples.weight

    @property
    def group(self) -> Int[Array, " n"]:
        """The group of each sample: all 0, groups come one at a time.

        Raises:
            ValueError: under `Population()`, whose samples have weights: use `mean`.
        """
        if self._batch.index is None:
            raise ValueError(
                "there are no group ids under rd.Population(): samples have weights there. Use "
                "view.mean(x) for means over the group, or expectation=rd.Group(size)"
            )
        return jnp.zeros(self.rewards.shape[0], dtype=int)

    def mean(self, x: Float[Array, " n"]) -> Float[Array, ""]:
        """The mean of x over the group, right under every expectation."""
        return jnp.sum(self.weights * jnp.where(self._batch.here, x, 0))


def samples_of(batch: Batch) -> Batch:
    """The samples of a batch of steps; a batch of samples itself."""
    return batch if batch.samples is None else batch.samples


@record
class Written(Surrogate):
    """Minus the derivative of a written loss in the log-probability of each sample or step."""

    fn: Callable[[View], Array] = static()

    local: ClassVar[bool] = False
    differentiable: ClassVar[bool] = False

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """By autodiff of the mean over the group."""
        samples = samples_of(batch)

        def total(log_probs: Array) -> Array:
            terms: Any = self.fn(View(batch, advantage, log_probs))
            shape = terms.shape if isinstance(terms, Array) else "of no array"
            if shape != samples.weight.shape:
                raise ValueError(
                    f"the loss must return one term per sample, shape {samples.weight.shape}; got "
                    f"shape {shape}. Return the terms, not their mean"
                )
            return jnp.sum(samples.weight * jnp.where(samples.here, terms, 0))

        return as_coefficients(batch, jax.grad(total)(batch.pick(batch.tables.log_p)))


def as_coefficients(batch: Batch, slope: Array) -> Array:
    """Minus the derivative of a group's loss by sample or step, for each share of it."""
    samples = samples_of(batch)
    here, weight = batch.spread(samples.here) & batch.present, batch.spread(samples.weight)
    return jnp.where(here, -slope / jnp.where(here, weight, 1), 0)


def grpo_advantage() -> Advantage:
    """What fills `view.advantages` where nothing else is given: GRPO's, as verl."""
    return GroupRelative(as_number(1e-6), "mean", "std", "raw")


def from_loss(
    fn: Callable[[View], Array],
    *,
    advantage: Advantage | None = None,
    weights: Weight | tuple[Weight, ...] = (),
    regularizer: Regularizer | None = None,
    geometry: str = "softmax",
) -> Method:
    """A method from a loss as a trainer's code has it: per-sample terms to be minimized.

    The terms are averaged over each group and differentiated through `view.log_probs`, so that
    `jax.lax.stop_gradient` means what `detach` does in the code it is copied from. All three
    expectations run it; under `Population()` the samples are all K actions with weights, so that
    means over the group must be written `view.mean(x)`: a loss that is seen to count its samples
    (a plain mean, a deviation, a rank, a number of rows) is refused there. A maximum over the group
    is not seen: it is its own limit in large groups. Reuse one `fn` to reuse compilations. One
    trap: the derivative of `jnp.abs` at 0 is 1, of torch's `abs` 0. On a tree log-probabilities
    are [n, T] beside a `mask`, and the loss of a sample says itself how its steps are averaged.

    Args:
        fn: from a `View` (log_probs, old_log_probs, ref_log_probs, sampler_log_probs, rewards,
            advantages, mask, lengths, actions, labels, weights, group) to the loss of each sample,
            shape [n].
        advantage: what fills `view.advantages`: one of `rd.methods.advantage`, default GRPO's.
        weights: factors on the gradient of each sample, from `rd.methods.weight`.
        regularizer: subtracted exactly beside it, such as `rd.Entropy(0.01)`.
        geometry: "softmax", "natural" or "sign".

    Examples:
        GRPO with k3 in the loss, pasted:

        >>> def loss(view):
        ...     ratio = jnp.exp(view.log_probs - view.old_log_probs)
        ...     clipped = jnp.clip(ratio, 0.8, 1.2)
        ...     a = view.advantages
        ...     l = view.ref_log_probs - view.log_probs
        ...     return -jnp.minimum(ratio * a, clipped * a) + 0.1 * (jnp.exp(l) - l - 1)
        >>> mine = rd.methods.from_loss(loss)
        >>> b = rd.bandit([1.0, 0.0, 0.5], [0.2, 0.5, 0.3])
        >>> z = jnp.array([0.3, -0.2, 0.1])
        >>> same = rd.field(rd.methods.grpo(0.1), z, b, rd.Group(4))
        >>> print(jnp.abs(rd.field(mine, z, b, rd.Group(4)) - same).max() < 1e-15)
        True

        DAPO's token mean on sequences, in a group: the sum over the mean length of its samples.

        >>> def tokens(view):
        ...     ratio = jnp.exp(view.log_probs - view.old_log_probs)
        ...     a = view.advantages
        ...     each = -jnp.minimum(ratio * a, jnp.clip(ratio, 0.8, 1.28) * a)
        ...     return (each * view.mask).sum(1) / view.mean(view.lengths)
        >>> t = rd.tree([[0], [1, 0], [1, 1]], [0.0, 0.0, 1.0])
        >>> pasted, dapo = rd.methods.from_loss(tokens), rd.methods.dapo()
        >>> off = [rd.field(x, t.log_ref, t, rd.Group(2)) for x in (pasted, dapo)]
        >>> print(jnp.abs(off[0] - off[1]).max() < 1e-15)
        True
    """
    if isinstance(fn, type) or not callable(fn):
        raise TypeError(f"fn must be a function of a View: the loss; got {described(fn)}")
    return Method(
        grpo_advantage() if advantage is None else advantage,
        Written(fn),
        weights=as_tuple(weights),
        regularizer=regularizer,
        geometry=geometry,
    )
