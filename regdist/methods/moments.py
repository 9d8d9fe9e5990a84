"""The exact mean and covariance of the update of drawn groups. K actions."""

from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from regdist.methods.expectation import Group, Sampled, contract
from regdist.methods.field import check_params, check_problem, field
from regdist.methods.method import Method
from regdist.methods.step import fitted, in_dtype, push, tables_of
from regdist.numerics.logspace import full_precision
from regdist.numerics.records import check_kind
from regdist.policies.table import Table
from regdist.problems.bandit import Bandit, check_bandit
from regdist.problems.contexts import Contexts
from regdist.problems.tree import Tree


class Moments(NamedTuple):
    """Mean and covariance of an update direction: [K] and [K, K], on a tree [S, V] and twice so."""

    mean: Float[Array, "..."]
    covariance: Float[Array, "..."]


def update_moments(
    method: Method, logits: Float[Array, "..."], bandit: Bandit | Tree, expectation: Sampled
) -> Moments:
    """The mean and covariance of what `field` draws under `Sampled`, on its own policy, a table.

    Enumerates the groups, as counts of reward classes where the method compares rewards alone; of
    sequences of a tree as lists. num_groups divides the covariance.

    Raises:
        TypeError: an argument of another kind.
        ValueError: a geometry that is not linear, or too many groups: see `Group`.

    Examples:
        >>> b = rd.bandit([1.0, 0.0], [0.5, 0.5])
        >>> moments = rd.methods.update_moments(rd.methods.reinforce(), b.log_ref, b, rd.Sampled(4))
        >>> print(moments.mean, moments.covariance)  # r S is (1/2, -1/2) or 0, of four the mean
        [ 0.25 -0.25] [[ 0.015625 -0.015625]
         [-0.015625  0.015625]]
    """
    if isinstance(bandit, Contexts):
        check_bandit(bandit)
    table = check_problem(method, bandit, Table(), trees=True)
    check_kind("expectation", expectation, Sampled, "It draws: rd.Sampled(group_size, num_groups)")
    if method.geometry == "sign":
        raise ValueError("the sign of a mean has no moments to enumerate: use geometry='softmax'")
    logits = check_params(table, logits, bandit)
    group = cast(Group, fitted(expectation.exact(), method, bandit))
    mean = field(method, logits, bandit, group)
    method = in_dtype(method, logits.dtype)
    tables = tables_of(method, table.log_probs(logits), bandit)
    first, second = full_precision(group.moments)(method, tables)

    def spread(total: Array) -> Array:
        pull = contract(tables, total=total)
        return push(method, table, logits, bandit, pull).reshape(-1)

    half = jax.vmap(spread)(second - jnp.outer(first, first))
    covariance = jax.vmap(spread)(half.T) / expectation.num_groups
    return Moments(mean, covariance.reshape(mean.shape + mean.shape))
