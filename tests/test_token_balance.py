"""Balance of parts of sequences against written losses, and where it stands still."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regdist as rd
from tests import written_tokens as wt
from tests.test_token_advantage import agrees
from tests.test_tokens import BANDIT, ONE_STATE, problem

m = rd.methods
METHODS = {
    "detailed balance": (
        m.detailed_balance(0.4),
        wt.detailed_balance,
    ),
    "parts": (m.sub_trajectory_balance(0.4, 0.7), wt.sub_trajectory),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_field_is_the_gradient_of_the_written_loss(name):
    method, loss = METHODS[name]
    for where, over in (("three", rd.Population()), ("forced", rd.Group(2))):
        agrees(method, loss, where, over)


def test_a_large_lam_is_trajectory_balance():
    tree, logits, old, *_ = problem("forced")
    methods = m.sub_trajectory_balance(0.4, 1e14), m.trajectory_balance(0.4)
    got, want = jax.jit(lambda law: [rd.field(x, logits, tree, old=law) for x in methods])(old)
    assert np.allclose(got, want, rtol=0, atol=1e-12)


def test_it_stands_still_at_the_target():
    """Of sequences where chance never moves, and by steps where it does."""
    reg = rd.ReverseKL(0.4)
    for name, (method, _) in zip(("forced", "chance"), METHODS.values(), strict=True):
        tree, *_ = problem(name)
        law = rd.stepwise(tree, reg).log_steps
        field = jax.jit(lambda x, method=method, tree=tree: rd.field(method, x, tree))
        assert jnp.abs(field(law)).max() <= 1e-15


def test_one_state_is_the_bandit_bit_for_bit():
    """And trajectory balance, whose parts are all one."""
    logits, old = jnp.array([0.3, -0.2, 0.1]), rd.log_softmax(jnp.array([0.5, 0.0, -0.3]))
    for method, _ in METHODS.values():
        one = rd.field(method, logits, BANDIT, old=old)
        assert np.array_equal(rd.field(method, logits[None], ONE_STATE, old=old[None])[0], one)
        want = rd.field(m.trajectory_balance(0.4), logits, BANDIT, old=old)
        assert np.allclose(one, want, rtol=0, atol=1e-14)
