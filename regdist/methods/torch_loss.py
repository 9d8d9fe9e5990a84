"""A loss in PyTorch as a trainer has it, differentiated by its own autograd."""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import numpy as np
from jax import Array

from regdist.methods.advantage import Advantage
from regdist.methods.batch import Batch
from regdist.methods.loss import View, as_coefficients, grpo_advantage, samples_of
from regdist.methods.method import Method
from regdist.methods.surrogate import Surrogate
from regdist.numerics.records import described, record, static
from regdist.regularizers.regularizer import Regularizer

Tensor = Any
"""A `torch.Tensor`. PyTorch is imported where a loss needs it."""

_TABLES = (
    "log_probs",
    "old_log_probs",
    "ref_log_probs",
    "sampler_log_probs",
    "advantages",
    "mask",
)


@dataclasses.dataclass(frozen=True)
class TorchBatch:
    """What a PyTorch loss sees: one group of n samples, of up to T steps, in float64.

    Attributes:
        log_probs: of the policy at the steps taken, [n, T]: what is differentiated.
        old_log_probs: of the policy that the samples were drawn with, as the trainer computes it.
        ref_log_probs: of the reference.
        sampler_log_probs: of the law that they were really drawn from.
        advantages: by the advantage given, [n, T].
        mask: 1 at the policy's own steps, 0 at chance's and beyond the end, [n, T].
        rewards: of the samples, [n].
    """

    log_probs: Tensor
    old_log_probs: Tensor
    ref_log_probs: Tensor
    sampler_log_probs: Tensor
    advantages: Tensor
    mask: Tensor
    rewards: Tensor


@record
class TorchWritten(Surrogate):
    """Minus the derivative of a PyTorch loss of a whole group, by step, times the group's size."""

    fn: Callable[[TorchBatch], Tensor] = static()

    local: ClassVar[bool] = False
    differentiable: ClassVar[bool] = False

    def __call__(self, batch: Batch, advantage: Array) -> Array:
        """By autograd on the host, group by group."""
        samples = samples_of(batch)
        if samples.index is None:
            raise ValueError(
                "a PyTorch loss is of a list of samples, and rd.Population() is a law with "
                "weights: ask in groups, expectation=rd.Group(size) or rd.Sampled(size, num_groups)"
            )
        log_p = batch.pick(batch.tables.log_p)
        view = View(batch, advantage, log_p)
        shape = (samples.reward.shape[0], -1)
        tables = tuple(getattr(view, name).reshape(shape) for name in _TABLES)
        kind = jax.ShapeDtypeStruct(tables[0].shape, log_p.dtype)
        found = jax.pure_callback(
            self._slopes, kind, *tables, view.rewards, vmap_method="broadcast_all"
        )
        return as_coefficients(batch, found.reshape(log_p.shape))

    def _slopes(self, *given: Any) -> np.ndarray:
        """The derivative of the loss of each of many groups."""
        arrays = [np.asarray(x) for x in given]
        size, shape = arrays[-1].shape[-1], arrays[0].shape
        flat = [x.reshape(-1, size, shape[-1]) for x in arrays[:-1]]
        rewards = arrays[-1].reshape(-1, size)
        each = [self._slope(*group) for group in zip(*flat, rewards, strict=True)]
        return np.stack(each).reshape(shape).astype(arrays[0].dtype)

    def _slope(self, *group: np.ndarray) -> np.ndarray:
        torch = _torch()
        log_probs, *rest = (torch.tensor(x, dtype=torch.float64) for x in group)
        log_probs.requires_grad_(True)
        loss = self.fn(TorchBatch(log_probs, *rest))
        if not isinstance(loss, torch.Tensor) or loss.shape != ():
            got = tuple(loss.shape) if isinstance(loss, torch.Tensor) else described(loss)
            raise ValueError(f"the loss must be one number of the group, a scalar; got {got}")
        if not loss.requires_grad:
            return np.zeros_like(group[0])
        (slope,) = torch.autograd.grad(loss, log_probs, allow_unused=True)
        return np.zeros_like(group[0]) if slope is None else slope.numpy()


def from_torch(
    fn: Callable[[TorchBatch], Tensor],
    *,
    advantage: Advantage | None = None,
    regularizer: Regularizer | None = None,
    geometry: str = "softmax",
) -> Method:
    """A method from a PyTorch loss as a trainer has it: of one group of samples, to be minimized.

    `fn` gets tensors [n, T] of a group, and returns its loss; autograd differentiates it through
    `batch.log_probs`, in float64, over every group of `rd.Group(G)` or those that `rd.Sampled`
    draws. It has no population form: a plain mean over a batch counts samples, and the population
    is a law. The order of a group must not matter: a loss that is seen to pay a sample for its
    place is refused. On the host, a call for each group: `field` and `identify` are for small G
    and few actions, and a loss in `jax.numpy`, by `from_loss`, is faster by far.

    Args:
        fn: from a `TorchBatch` (log_probs, old_log_probs, ref_log_probs, sampler_log_probs,
            advantages, mask, rewards) to a scalar.
        advantage: what fills `batch.advantages`: one of `rd.methods.advantage`, default GRPO's.
        regularizer: subtracted exactly beside it, such as `rd.Entropy(0.01)`.
        geometry: "softmax", "natural" or "sign".

    Raises:
        ModuleNotFoundError: PyTorch is not installed (`regdist[torch]`).
        TypeError: fn is no function.
    """
    if isinstance(fn, type) or not callable(fn):
        raise TypeError(f"fn must be a function of a TorchBatch: the loss; got {described(fn)}")
    _torch()
    return Method(
        grpo_advantage() if advantage is None else advantage,
        TorchWritten(fn),
        regularizer=regularizer,
        geometry=geometry,
    )


def _torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "rd.methods.from_torch needs PyTorch: install regdist[torch]"
        ) from error
