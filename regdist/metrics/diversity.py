"""What a law covers: its support, its kinds of outcomes, and the best it finds in each.

K is the number of actions, N of points, M of objectives.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from regdist.metrics.checks import checked
from regdist.metrics.entropies import hill_number
from regdist.metrics.sampling import pass_at_k
from regdist.numerics.records import Number, as_number

__all__ = [
    "SupportChange",
    "hypervolume",
    "quality_diversity",
    "support_change",
    "vendi_score",
]


class SupportChange(NamedTuple):
    """How the support of p differs from that of q; made by `support_change`.

    Attributes:
        kept: number of actions in both supports.
        lost: number of actions in the support of q alone.
        gained: number of actions in the support of p alone.
        lost_mass: the probability under q of the actions lost.
        gained_mass: the probability under p of the actions gained.
    """

    kept: Int[Array, ""]
    lost: Int[Array, ""]
    gained: Int[Array, ""]
    lost_mass: Float[Array, ""]
    gained_mass: Float[Array, ""]


@checked
def support_change(
    log_p: Float[Array, " K"], log_q: Float[Array, " K"], floor: Number = 0.0
) -> SupportChange:
    """Actions kept, lost and gained by p relative to q, where a support is {y: prob(y) > floor}.

    With q the reference it is the count of preserved, shrunk and expanded support of
    arXiv 2507.14843.

    Args:
        log_p: log-probabilities, shape [K].
        log_q: log-probabilities of the reference, shape [K].
        floor: a probability; 0 gives the supports themselves.

    Examples:
        >>> log_p = jnp.log(jnp.array([0.5, 0.5, 0.0]))
        >>> log_q = jnp.log(jnp.array([0.75, 0.0, 0.25]))
        >>> change = support_change(log_p, log_q)
        >>> print(change.kept, change.lost, change.gained, change.lost_mass, change.gained_mass)
        1 1 1 0.25 0.5
    """
    log_floor = jnp.log(as_number(floor).astype(log_p.dtype))
    now, before = log_p > log_floor, log_q > log_floor
    lost, gained = before & ~now, now & ~before
    return SupportChange(
        kept=jnp.sum(now & before),
        lost=jnp.sum(lost),
        gained=jnp.sum(gained),
        lost_mass=jnp.sum(jnp.where(lost, jnp.exp(log_q), 0)),
        gained_mass=jnp.sum(jnp.where(gained, jnp.exp(log_p), 0)),
    )


@checked
def vendi_score(
    log_p: Float[Array, " K"], similarity: Float[Array, "K K"], order: Number = 1.0
) -> Float[Array, ""]:
    r"""(sum_i lambda_i^n)^{1/(1-n)}, n = order, over the spectrum of diag(sqrt p) S diag(sqrt p).

    $$\Bigl(\sum_i \lambda_i^n\Bigr)^{1/(1-n)}, \quad \lambda \text{ of } \sqrt{p_j p_k}\, S_{jk}$$

    The effective number of *different* actions: `hill_number` of the spectrum. It is
    `hill_number(log_p, order)` when nothing is similar (S = 1) and 1 when everything is the same
    (arXiv 2210.02410; other orders arXiv 2310.12952). Eigenvalues below K ulps of the largest
    are the eigensolver's rounding and count as 0, as in the numerical rank of a matrix.

    Args:
        log_p: log-probabilities, shape [K].
        similarity: S, positive semidefinite with ones on its diagonal, shape [K, K].
        order: n >= 0, may be inf.

    Examples:
        >>> alike = jnp.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> print(f"{vendi_score(jnp.log(jnp.array([0.25, 0.25, 0.5])), alike):.6f}")
        2.000000
    """
    root = jnp.exp(log_p / 2)
    eigenvalues = jnp.linalg.eigvalsh(root[:, None] * similarity * root[None, :])
    rounding = log_p.size * jnp.finfo(log_p.dtype).eps * jnp.max(eigenvalues)
    present = eigenvalues > rounding
    spectrum = jnp.where(present, jnp.log(jnp.where(present, eigenvalues, 1)), -jnp.inf)
    return hill_number(spectrum, order)


@checked
def quality_diversity(
    log_p: Float[Array, " K"],
    reward: Float[Array, " K"],
    label: Int[Array, " K"],
    samples: Number,
) -> Float[Array, ""]:
    """The expected QD score of n independent draws: sum over labels of E[best reward drawn].

    The archive keeps, in the cell of each label, the best action drawn; an empty cell counts 0
    (Pugh, Soros and Stanley 2016; the archive is that of MAP-Elites, arXiv 1504.04909). Exact: a
    cell's expected best is the sum over its rewards, from the best down, of the step to the next
    lower one times the chance of a draw at or above it.

    Args:
        log_p: log-probabilities, shape [K].
        reward: qualities, >= 0 by convention, since an empty cell counts 0; what an action of
            probability 0 would get does not count. Shape [K].
        label: the cell of each action, shape [K].
        samples: n, any real > 0; inf gives the archive of the whole support.

    Examples:
        >>> log_p = jnp.log(jnp.array([0.25, 0.25, 0.5]))
        >>> score = quality_diversity(log_p, jnp.array([1.0, 3.0, 2.0]), jnp.array([0, 0, 1]), 1)
        >>> print(score)  # one draw: E_p R
        2.0
    """
    value = jnp.where(jnp.isneginf(log_p), 0, reward)
    order = jnp.lexsort((-value, label))
    value, label, mass = value[order], label[order], jnp.exp(log_p)[order]
    same = label[1:] == label[:-1]

    def join(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        (sum_left, new_left), (sum_right, new_right) = left, right
        return jnp.where(new_right, 0, sum_left) + sum_right, new_left | new_right

    first = jnp.concatenate([jnp.ones(1, bool), ~same])
    at_or_above, _ = jax.lax.associative_scan(join, (mass, first))
    below = jnp.concatenate([jnp.where(same, value[1:], 0), jnp.zeros_like(value[:1])])
    return jnp.sum((value - below) * pass_at_k(at_or_above, samples))


def hypervolume(points: Float[Array, "N M"], reference: Float[Array, " M"]) -> Float[Array, ""]:
    """The volume of {x: reference <= x <= some point, in every objective}; more is better.

    Exact, on the grid of the points' own coordinates in all objectives but the last: N^M steps
    and memory, for small fronts (Zitzler and Thiele 1998). Differentiable; a dominated point has
    gradient 0.

    Args:
        points: finite values of M objectives to maximize, shape [N, M].
        reference: the worst value of each, shape [M]; a point must exceed it in all to count.

    Examples:
        >>> print(hypervolume(jnp.array([[1.0, 3.0], [2.0, 2.0]]), jnp.array([0.0, 0.0])))
        5.0
    """
    if jnp.ndim(points) != 2 or jnp.shape(reference) != jnp.shape(points)[1:]:
        raise ValueError(
            "points must have shape [N, M] and reference shape [M]; got "
            f"{jnp.shape(points)} and {jnp.shape(reference)}"
        )
    above = jnp.maximum(points, reference) - reference
    height = above[:, -1]
    widths = []
    for m, size in enumerate(above.T[:-1]):
        edges = jnp.sort(size)
        widths.append(jnp.diff(edges, prepend=jnp.zeros_like(edges[:1])))
        reaches = jnp.expand_dims(size[:, None] >= edges, range(1, m + 1))
        height = jnp.where(reaches, height[..., None], 0)
    volume = jnp.max(height, axis=0, initial=0)
    for width in reversed(widths):
        volume = volume @ width
    return volume
