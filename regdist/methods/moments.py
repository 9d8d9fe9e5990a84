"""The exact mean and covariance of the update of drawn groups. K actions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from regdist.methods.expectation import Group, Sampled
from regdist.methods.field import field, in_dtype, laws_of, prepared
from regdist.methods.geometry import GEOMETRIES
from regdist.methods.groups import by_class, each_coefficient, group_lists, listed
from regdist.methods.method import Method
from regdist.numerics.logspace import full_precision, times_exp
from regdist.policies.table import softmax
from regdist.problems.bandit import Bandit


class Moments(NamedTuple):
    """Mean, shape [K], and covariance, shape [K, K], of an update direction."""

    mean: Float[Array, " K"]
    covariance: Float[Array, "K K"]


def update_moments(
    method: Method, logits: Float[Array, " K"], bandit: Bandit, expectation: Sampled
) -> Moments:
    """The mean and covariance of what `field` draws under `Sampled`, on its own policy.

    Enumerates the groups, as counts of reward classes where the method compares rewards alone;
    num_groups divides the covariance.

    Raises:
        ValueError: a geometry that is not linear, or too many groups: see `Group`.

    >>> b = rd.bandit([1.0, 0.0], [0.5, 0.5])
    >>> moments = rd.methods.update_moments(rd.methods.reinforce(), b.log_ref, b, rd.Sampled(4))
    >>> print(moments.mean, moments.covariance)  # r S is (1/2, -1/2) or 0, of four the mean
    [ 0.25 -0.25] [[ 0.015625 -0.015625]
     [-0.015625  0.015625]]
    """
    if method.geometry == "sign":
        raise ValueError("the sign of a mean has no moments to enumerate: use geometry='softmax'")
    group = prepared(Group(expectation.group_size), method, bandit)
    mean = field(method, logits, bandit, group)
    method = in_dtype(method, logits.dtype)
    log_p = softmax(logits)
    laws = laws_of(method, log_p, bandit)
    assert isinstance(group, Group)
    second = _second_moment(method, laws, group)

    def spread(x: Array) -> Array:
        gain = times_exp(x, -jnp.where(jnp.isneginf(log_p), jnp.inf, log_p))
        return GEOMETRIES[method.geometry](log_p, gain, x)

    table = second.covariance - jnp.outer(second.mean, second.mean)
    half = jax.vmap(spread)(table)
    covariance = jax.vmap(spread)(half.T)
    return Moments(mean, covariance / expectation.num_groups)


@full_precision
def _second_moment(method: Method, laws, group: Group) -> Moments:
    """Mean and second moment of the table of coefficients that a group adds up to."""
    if not method.compares_rewards_alone:
        index, log_weight = group_lists(group, laws, None)
        each = listed(method, laws, index, jnp.zeros_like(log_weight))
        weight = jnp.exp(log_weight)
        return Moments(weight @ each, (each * weight[:, None]).T @ each)
    groups, size = by_class(method, laws, group), group.size
    p = jnp.exp(laws.log_sampler)
    given = jnp.where(p > 0, groups.given()[:, groups.member], 0)
    c = jnp.where(given > 0, each_coefficient(method, laws, groups, size), 0)
    mean = p * jnp.sum(given * c, axis=0)
    alone = jnp.diag(p * jnp.sum(given * c**2, axis=0)) / size
    if size == 1:
        return Moments(mean, alone)
    # A pair of samples: n_l n_m of the G (G - 1) ordered ones, n_l (n_l - 1) within a class.
    held = groups.number[:, groups.member]
    log_chance = groups.log_chance[groups.member]
    scaled = times_exp(held * c, -jnp.where(jnp.isneginf(log_chance), jnp.inf, log_chance))
    weight = jnp.exp(groups.log_group)[:, None]
    pairs = (weight * scaled).T @ scaled
    same = groups.member[:, None] == groups.member[None, :]
    single = jnp.where(held > 0, scaled / jnp.where(held > 0, held, 1), 0)
    pairs = pairs - jnp.where(same, (weight * scaled).T @ single, 0)
    return Moments(mean, alone + jnp.outer(p, p) * pairs / size**2)
