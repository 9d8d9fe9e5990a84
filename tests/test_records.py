"""What records promise: a tree per class, rebuilt without checks."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp

import regdist as rd
from regdist.regularizers.divergence import KL, JensenShannon, TotalVariation
from tests.strategies import LeCam


def test_each_class_is_a_tree_of_its_own():
    records = [KL(), JensenShannon(), TotalVariation(), LeCam()]
    structures = [jax.tree.structure(r) for r in records]
    assert all(a != b for i, a in enumerate(structures) for b in structures[:i])


def test_a_compiled_call_never_answers_for_another_class():
    """Many classes of one shape, as in a notebook: if only hashes told their trees apart, two of
    them would sooner or later share a slot of the cache and an answer."""

    @jax.jit
    def number(mine):
        return jnp.asarray(type(mine).number)

    for k in range(64):
        mine = rd.record(type("Mine", (rd.Divergence,), {"number": k}))
        assert int(number(mine())) == k


def test_flattening_keeps_choices_static_and_names_its_leaves():
    @rd.record
    class Pair:
        data: jax.Array
        choice: str = rd.static(default="a")

    pair = Pair(jnp.ones(2), "b")
    again = jax.tree.map(lambda x: x + 1, pair)
    assert again.choice == "b"
    assert again.data.tolist() == [2, 2]
    ((path, _),) = jax.tree_util.tree_leaves_with_path(pair)
    assert jax.tree_util.keystr(path) == ".data"
    assert jax.tree.structure(pair) != jax.tree.structure(Pair(jnp.ones(2), "a"))


SINGLE = """
import jax, numpy as np, regdist as rd
from tests.strategies import REGULARIZERS
assert not jax.config.jax_enable_x64
bandit = rd.bandit([1.0, 0.5, 0.0], [0.2, 0.3, 0.5])
for name, member in REGULARIZERS.items():
    found = rd.target(bandit, member.make(0.5))
    assert found.log_probs.dtype == np.float32, name
    assert bool(found.converged), name
    assert abs(float(found.probs.sum()) - 1) < 1e-5, name
target = rd.target(bandit, rd.ReverseKL(0.5))
method = rd.methods.natural_policy_gradient(rd.ReverseKL(0.5))
found = rd.certify(method, bandit, target, steps=1000)
assert found.verdict.startswith("converges"), found
"""


def test_a_session_in_single_precision_from_the_start():
    """float32 inputs under x64 do not show integers and constants that only float64 can hold."""
    environment = {**os.environ, "JAX_ENABLE_X64": "0"}
    subprocess.run([sys.executable, "-c", SINGLE], env=environment, check=True)
