"""Several policies that are paid together: one tree whose states share what each player knows.

P players move in turn, player k among n_k moves; a leaf is one move of each.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from regdist.numerics.records import as_array, check_count, check_kind
from regdist.policies.shared import Tied
from regdist.problems.grow import tree as make_tree
from regdist.problems.tree import Tree


class Players(NamedTuple):
    """A tree of moves and the policies of its players.

    Attributes:
        tree: a leaf for every joint move, in the order of the flat payoff.
        policy: one logit for each role, what it sees and a move.
        params: the parameters of the reference, flat.
        members: of each role and what it sees, in the order of `params`: its logits are
            `params[members[role, seen]]`.
    """

    tree: Tree
    policy: Tied
    params: Array
    members: dict[tuple[int, tuple[int, ...]], np.ndarray]


def players(
    payoff: Any, sees: Sequence[Sequence[int]] | None = None, roles: Sequence[int] | None = None
) -> Players:
    """Policies with roles: each moves once, and all are paid the same.

    Two prompts whose answers should agree are two players who do not see each other, with a payoff
    of 1 where they do; a pioneer and an observer are two of whom the second sees the first. One
    policy in two roles, such as a model that answers both prompts alike, is one number in `roles`.
    A policy of its own for each player and no view of the others is a game of common payoff.

    Args:
        payoff: of joint moves, shape [n_1 .. n_P].
        sees: of each player, the earlier players whose moves it knows; default none.
        roles: of each player, the number of its policy; default one each.

    Raises:
        ValueError: no table of payoffs, a player that sees a later one, or one policy of players
            who have different numbers of moves or see different things.

    Examples:
        Two answers to two prompts, paid where they agree. Each prompt is drawn to what the other
        one answers, right or wrong.

        >>> game = players(jnp.eye(2))
        >>> z = game.params.at[game.members[1, ()]].set([1.0, 0.0])
        >>> step = rd.field(rd.methods.policy_gradient(), z, game.tree, policy=game.policy)
        >>> print(step[game.members[0, ()]].round(4), step[game.members[1, ()]].round(4))
        [ 0.1155 -0.1155] [ 0. -0.]
    """
    table = np.asarray(as_array("payoff", payoff))
    count = table.ndim
    if count == 0 or table.size == 0:
        raise ValueError(f"payoff must be of joint moves, shape [n_1 .. n_P]; got {table.shape}")
    for name, given in (("sees", sees), ("roles", roles)):
        check_kind(name, () if given is None else given, Sequence, "One entry for each player")
    for view in sees or ():
        check_kind("an entry of sees", view, Sequence, "The players that are seen: (), or (0,)")
    for role in roles or ():
        check_count("an entry of roles", role, 0)
    views = [tuple(sorted(set(view))) for view in (((),) * count if sees is None else sees)]
    each = tuple(range(count)) if roles is None else tuple(roles)
    if len(views) != count or len(each) != count:
        raise ValueError(
            f"sees and roles must have one entry for each of {count} players; got {len(views)} and "
            f"{len(each)}"
        )
    for k, view in enumerate(views):
        if any(not 0 <= j < k for j in view):
            raise ValueError(f"player {k} can see earlier players, 0 to {k - 1}; got {view}")
    kinds: dict[int, tuple[int, ...]] = {}
    for k, role in enumerate(each):
        kind = (table.shape[k], *(table.shape[j] for j in views[k]))
        if kinds.setdefault(role, kind) != kind:
            raise ValueError(
                f"players of one role must have as many moves and see as much; role {role} has "
                f"{kinds[role]} and {kind} (its moves, then those it sees)"
            )
    members: dict[tuple[int, tuple[int, ...]], np.ndarray] = {}
    total = 0
    for role, (moves, *seen) in sorted(kinds.items()):
        for known in itertools.product(*map(range, seen)):
            members[role, known] = np.arange(total, total + moves)
            total += moves
    tree = make_tree(list(np.ndindex(*table.shape)), table.reshape(-1))
    member = np.zeros(tree.paths.exists.shape, int)
    for state, prefix in enumerate(tree.prefixes):
        k = len(prefix)
        own = members[each[k], tuple(prefix[j] for j in views[k])]
        member[state, : own.size] = own
    return Players(tree, Tied(jnp.asarray(member)), jnp.zeros(total), members)
