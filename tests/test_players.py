"""Players that are paid together, against the multilinear form of their mixed moves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regdist as rd


def payoff(shape):
    return np.random.default_rng(len(shape)).normal(size=shape)


GAMES = {
    "unseen": (payoff((2, 3)), None, None),
    "a pioneer and an observer": (payoff((3, 2)), [(), (0,)], None),
    "one policy in two roles": (payoff((3, 3)), None, [0, 0]),
    "three, the last sees the first": (payoff((3, 2, 2)), [(), (), (0,)], [4, 2, 9]),
}


def worth(game, table, sees, roles):
    """E payoff, written as a sum over all joint moves, of the flat parameters."""
    count = table.ndim
    sees = [()] * count if sees is None else sees
    roles = range(count) if roles is None else roles

    def value(params):
        total = 0.0
        for joint in np.ndindex(*table.shape):
            chance = 1.0
            for k, move in enumerate(joint):
                members = game.members[roles[k], tuple(joint[j] for j in sees[k])]
                chance = chance * jax.nn.softmax(params[members])[move]
            total = total + table[joint] * chance
        return total

    return value


@pytest.mark.parametrize("name", GAMES)
def test_a_field_is_the_gradient_of_what_all_are_paid(name):
    table, sees, roles = GAMES[name]
    game = rd.problems.players(table, sees, roles)
    z = jnp.asarray(np.random.default_rng(3).normal(size=game.params.shape))
    want = jax.grad(worth(game, table, sees, roles))(z)
    for method, over in (
        (rd.methods.reinforce(averaging="sum"), None),
        (rd.methods.rloo(averaging="sum"), rd.Group(2)),
    ):
        got = rd.field(method, z, game.tree, over, policy=game.policy)
        assert np.allclose(got, want, rtol=0, atol=1e-13)


def test_answers_that_should_agree_agree_on_what_leads_at_first():
    """Two prompts under two tables: the run ends where both give one answer, right or wrong."""
    game = rd.problems.players(np.eye(3))
    method = rd.methods.reinforce()
    z = jnp.array([0.0, 0.3, 0.0, 0.0, 0.2, 0.1])
    sgd = optax.sgd(1.0)
    path = rd.run(method, game.tree, 3000, sgd, init=z, policy=game.policy)
    ends = path.probs[-1].reshape(3, 3)
    assert ends[1, 1] > 0.999


def test_players_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="player 0 can see earlier players"):
        rd.problems.players(np.eye(2), [(1,), ()])
    with pytest.raises(ValueError, match="as many moves"):
        rd.problems.players(np.ones((2, 3)), roles=[0, 0])
    with pytest.raises(ValueError, match="one entry for each of 2 players"):
        rd.problems.players(np.eye(2), roles=[0])
    with pytest.raises(ValueError, match="payoff must be of joint moves"):
        rd.problems.players(3.0)
