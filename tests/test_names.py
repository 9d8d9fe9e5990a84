import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regdist as rd
from regdist.regularizers import names
from regdist.regularizers.regularizer import by_name
from regdist.runs import identify
from regdist.targets.selection import limit_laws


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize("spec", names.NAMED)
def test_a_named_family_is_its_constructor_and_prints_as_it(spec):
    family = names.NAMED[spec]
    constructor = getattr(rd, family.constructor)
    assert same(by_name(spec)(0.3), constructor(0.3))
    assert repr(constructor(0.3)) == f"{family.constructor}(0.3)"
    if family.kind is not None:
        anchor = jnp.log(jnp.array([0.5, 0.5]))
        assert repr(constructor(0.3, anchor=anchor)) == f"{family.constructor}(0.3, anchor=...)"


def test_identify_knows_the_families_in_their_order():
    """The first of two that fit equally well is the verdict."""
    assert list(identify.FAMILIES) == [
        "reverse KL",
        "forward KL",
        "entropy",
        "total variation",
        "Jensen-Shannon",
        "Hellinger",
        "Pearson",
        "Neyman",
    ]


def test_a_sum_has_the_terms_and_the_label_of_its_parts():
    spec = "jensen-shannon+alpha:-0.5+entropy"
    want = rd.JensenShannon(0.2) + rd.AlphaDivergence(-0.5, 0.2) + rd.Entropy(0.2)
    assert same(by_name(spec)(0.2), want)
    assert names.label(spec) == "Jensen-Shannon + alpha = -0.5 + entropy"


@pytest.mark.parametrize("spec", ["", "kl", "reverse-kl+", "ReverseKL", "reverse-kl + entropy"])
def test_unknown_names_are_refused_with_those_that_are_known(spec):
    with pytest.raises(ValueError, match=r"unknown regularizer .*: give reverse-kl, .*neyman"):
        by_name(spec)


@pytest.mark.parametrize("alpha", ["", "x", "inf", "nan"])
def test_an_alpha_is_a_finite_number(alpha):
    with pytest.raises(ValueError, match="alpha:A wants a finite number"):
        by_name(f"alpha:{alpha}")


def test_numbers_without_a_name_are_shown():
    assert repr(rd.AlphaDivergence(3.0, 0.5)) == "AlphaDivergence(3, 0.5)"
    swept = jax.vmap(rd.Hellinger)(jnp.array([0.1, 0.2]))
    assert repr(swept) == "AlphaDivergence(..., ...)"


def test_the_limit_laws_leave_out_what_cannot_be_taken():
    """The best reward here lies where the reference has no mass; a forbidden action is last."""
    bandit = rd.bandit([9.0, 2.0, 2.0, 1.0, -np.inf], [0.0, 0.1, 0.3, 0.4, 0.2])
    laws = {name: np.exp(law) for name, law in limit_laws(bandit).items()}
    assert np.allclose(laws["reference"], [0, 0.1, 0.3, 0.4, 0.2], rtol=0, atol=1e-15)
    on_best = laws["reference on the best actions"]
    assert np.allclose(on_best, [0, 0.25, 0.75, 0, 0], rtol=0, atol=1e-15)
    assert np.array_equal(laws["likeliest of the best actions"], [0, 0, 1, 0, 0])
