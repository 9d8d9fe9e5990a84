"""Laws over the catalog of presets: complete, sourced, every name a method."""

import importlib
import inspect
import pkgutil
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regdist as rd
from regdist.methods import presets
from regdist.methods.presets.catalog import entry_of

m = rd.methods
CATALOG = {entry.name: entry for entry in m.catalog()}
every_preset = pytest.mark.parametrize("name", CATALOG)

# what has no default, beside a coefficient
ARGUMENTS = {
    "adaptive_entropy": {"target": 0.5},
    "aepo": {"target": 0.5},
    "drpo": {"length": [3.0, 1.0, 2.0]},
    "gdpo": {"rewards": [[1.0, 0.0, 0.5], [0.0, 0.3, 0.0]]},
    "ppo_adaptive_kl": {"target": 0.4},
    "self_labelled": {"label": jnp.array([0, 1, 1])},
}


def same(one, other):
    """Whether two records are equal: parts, choices, numbers and their dtypes."""
    if jax.tree.structure(one) != jax.tree.structure(other):
        return False
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


def arguments(name):
    """What a preset cannot do without."""
    entry, given = CATALOG[name], dict(ARGUMENTS.get(name, {}))
    if entry.coefficient in entry.required:
        given[entry.coefficient] = 0.2
    return given


def test_every_public_function_of_the_presets_is_an_entry():
    """In the order of the files, and what `rd.methods` shows under its name."""
    found = []
    for module in pkgutil.iter_modules(presets.__path__):
        if module.name in ("aggregation", "catalog", "parts"):
            continue
        file = importlib.import_module(f"{presets.__name__}.{module.name}")
        own = [
            name
            for name, value in vars(file).items()
            if inspect.isfunction(value)
            and value.__module__ == file.__name__
            and not name.startswith("_")
        ]
        assert sorted(own) == sorted(file.__all__)
        found += own
    assert found == list(CATALOG)
    for name, entry in CATALOG.items():
        assert getattr(m, name) is entry.function


@every_preset
def test_entries_say_what_they_follow(name):
    entry = CATALOG[name]
    assert entry.summary == inspect.getdoc(entry.function).split("\n")[0]
    assert all(re.fullmatch(r"\d{4}\.\d{5}", paper) for paper in entry.papers)
    cited = re.findall(r"\b\d{4}\.\d{5}\b", entry.function.__doc__)
    assert sorted(cited) == sorted(entry.papers)
    assert bool(entry.papers or entry.code) != bool(entry.unsourced)


@every_preset
def test_defaults_are_what_the_preset_takes_by_itself(name):
    entry, given = CATALOG[name], arguments(name)
    assert set(entry.required) == set(given)
    assert same(entry.function(**given), entry.function(**given, **entry.defaults))
    assert list(inspect.signature(entry.function).parameters) == [*entry.required, *entry.defaults]


@every_preset
def test_every_name_is_a_method(name):
    """And its coefficient is where it says, if the variant leaves it free."""
    given = ARGUMENTS.get(name, {})
    for known in CATALOG[name].names:
        assert re.fullmatch(r"[a-z0-9_]+(/[a-z0-9-]+)?", known)
        suffix = known.partition("/")[2]
        options = CATALOG[name].variants.get(suffix, {})
        made = m.named(known, 0.37, **given)
        assert isinstance(made, m.Method)
        at = CATALOG[name].coefficient or ("beta" if "estimator" in options else None)
        chosen = {**options, **given} if at is None else {at: 0.37, **options, **given}
        assert same(made, CATALOG[name].function(**chosen))


@every_preset
def test_the_deviation_is_an_option_of_all_that_divide_by_it(name):
    """`eps` is one number of the record, `normalize_std` one of its choices."""
    entry, given = CATALOG[name], arguments(name)
    plain = entry.function(**given)
    divides = "'std'" in str(jax.tree.structure(plain))
    if divides:
        assert {"eps", "normalize_std"} <= set(entry.defaults)
        bare = entry.function(**given, normalize_std=False)
        assert "'std'" not in str(jax.tree.structure(bare))
    if "eps" in entry.defaults:
        moved = entry.function(**given, eps=0.123)
        old, new = ([float(x) for x in jax.tree.leaves(r) if x.ndim == 0] for r in (plain, moved))
        changed = [(a, b) for a, b in zip(old, new, strict=True) if a != b]
        assert changed == [(entry.defaults["eps"], 0.123)]


@every_preset
def test_what_is_missing_is_what_a_name_needs_beside_a_coefficient(name):
    entry = CATALOG[name]
    for known in entry.names:
        assert entry_of(known) is entry
        assert set(entry.missing(known)) == set(ARGUMENTS.get(name, {}))


@every_preset
def test_what_own_defaults_leave_out_compose_has(name):
    entry = CATALOG[name]
    common = inspect.signature(m.compose).parameters
    left = {k: v for k, v in entry.defaults.items() if k not in entry.own_defaults}
    assert left == {k: common[k].default for k in left}


def test_own_defaults_are_what_a_preset_is_told_apart_by():
    clip = {"clip_low": 0.2, "clip_high": 0.2}
    assert CATALOG["dr_grpo"].own_defaults == {**clip, "averaging": "constant"}
    assert CATALOG["mpo"].own_defaults == {"epsilon": 0.1}
    assert CATALOG["policy_gradient"].own_defaults == {}


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"'grpo/k4'.*did you mean grpo/k"):
        m.named("grpo/k4")
    with pytest.raises(ValueError, match=r"'roo'.*rloo"):
        m.named("roo")
    with pytest.raises(ValueError, match=r"'zzzzzz': rd\.methods\.catalog\(\) and `regdist"):
        m.named("zzzzzz")
    with pytest.raises(ValueError, match=r"aepo needs target: give target="):
        m.named("aepo")
    with pytest.raises(ValueError, match=r"give beta"):
        m.named("rloo/k2")


def test_a_coefficient_goes_where_the_method_has_one():
    assert same(m.named("rloo", 0.3), m.rloo())
    assert same(m.named("rloo", 0.3, estimator="k2"), m.rloo(beta=0.3, estimator="k2"))
    assert same(m.named("grpo/no-penalty", 0.3), m.grpo(0.0))
    assert same(m.named("grpo"), m.grpo())
    assert same(m.named("entropy_bonus", 0.3), m.entropy_bonus(0.3))


def test_help_shows_every_option_with_the_presets_own_default():
    shown = inspect.signature(m.dapo).parameters
    want = {"beta": None, "estimator": None, "placement": None, "clip_high": 0.28, "clip_dual": 3.0}
    assert {name: shown[name].default for name in want} == want


def test_what_a_preset_adds_is_kept_beside_what_is_given():
    weight = m.weight.SamplerRatio(jnp.array(0.1), jnp.array(7.0))
    assert [float(x.high) for x in m.tis(weights=(weight,)).weights] == [2.0, 7.0]
    both = m.entropy_bonus(0.3, regularizer=rd.ReverseKL(0.1)).regularizer
    assert [float(term.beta) for term in both.terms] == [pytest.approx(0.3), pytest.approx(0.1)]
