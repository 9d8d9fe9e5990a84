"""A wrong call is answered in words that name the argument, what was got and what was meant."""

import dataclasses
import importlib
import inspect
import json
import os
import pkgutil
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regdist as rd
from regdist.methods.advantage import Advantage, GroupRelative
from regdist.methods.surrogate import Clip
from regdist.methods.weight import SamplerRatio
from tests.wrong_calls import rows

NOISE = re.compile(
    "Tracer|NoneType|has no attribute|not supported between|ufunc|abstract array|not iterable|"
    "not callable|not subscriptable|unexpected keyword|could not convert"
)
"""What Python, numpy and jax say where nobody has looked at an argument."""


def process(program, **environment):
    """What a plain Python prints: without the session's looks at types."""
    set_here = {**os.environ, "JAX_NUMPY_DTYPE_PROMOTION": "strict", **environment}
    done = subprocess.run(
        [sys.executable, *program], env=set_here, check=True, capture_output=True, text=True
    )
    return done.stdout


@pytest.fixture(scope="module")
def answers():
    return json.loads(process(["-m", "tests.wrong_calls"], JAX_ENABLE_X64="1").splitlines()[-1])


@pytest.mark.xdist_group("refusals")
@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row.part}: {row.call}")
def test_a_wrong_call_is_answered_in_words(answers, row):
    kind, said, where = answers[row.call]
    assert kind in ("TypeError", "ValueError", "RefusedError"), said
    assert [word for word in row.words if word not in said] == [], said
    assert NOISE.search(said) is None, said
    assert re.search(r"/(regdist|tests)/", where), f"{where}: {said}"


def test_the_table_has_no_row_twice_and_every_door():
    calls = [row.call for row in rows()]
    assert len(set(calls)) == len(calls) >= 120
    doors = [
        "target",
        "objective",
        "run",
        "field",
        "identify",
        "certify",
        "kl_ball",
        "constrained",
        "critical_beta",
    ]
    assert [d for d in doors if not any(call.startswith(f"rd.{d}(") for call in calls)] == []


def records():
    """Every class of the package with a field that is one of some words."""
    for module in pkgutil.walk_packages(rd.__path__, "regdist."):
        if module.name == "regdist.__main__":
            continue
        for cls in vars(importlib.import_module(module.name)).values():
            own = inspect.isclass(cls) and cls.__module__ == module.name
            if own and dataclasses.is_dataclass(cls):
                words = {f.name: f.metadata.get("known") for f in dataclasses.fields(cls)}
                yield from ((cls, name, known) for name, known in words.items() if known)


CHOICES = list(records())


def test_choices_are_found():
    names = {f"{cls.__name__}.{name}" for cls, name, _ in CHOICES}
    assert {"GroupRelative.scale", "Estimated.anchor", "Pairwise.loss", "Method.geometry"} <= names


@pytest.mark.parametrize(
    ("cls", "name", "known"), CHOICES, ids=[f"{c.__name__}.{n}" for c, n, _ in CHOICES]
)
def test_a_record_refuses_a_word_that_it_does_not_know(cls, name, known):
    parts = dict.fromkeys(("advantage", "inner"), GroupRelative(0.0))
    needed = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
    given = {n: parts.get(n, 0.0) for n in needed}
    for word in known:
        wrong = word[:-1] + "x" + word[-1]
        text = f"{name} of {cls.__name__} must be one of {', '.join(map(repr, known))}; got "
        with pytest.raises(ValueError, match=re.escape(f"{text}{name}={wrong!r}")):
            cls(**{**given, name: wrong})
    with pytest.raises(ValueError, match=f"{name} of {cls.__name__}"):
        cls(**{**given, name: None})


NEEDED = {"length": [1.0, 2.0, 3.0], "label": [0, 1, 2], "rewards": [[1.0, 0.0], [0.0, 1.0]]}
WORDS = ("estimator", "placement", "anchor", "geometry", "whiten", "score", "statistic", "over")


@pytest.mark.parametrize("preset", rd.methods.catalog(), ids=lambda preset: preset.name)
def test_a_preset_refuses_unknown_words_and_what_is_no_number(preset):
    needed = {name: NEEDED.get(name, 0.5) for name in preset.required}
    for name in set(WORDS) & set(preset.defaults):
        with pytest.raises(ValueError, match=f"^{name} .*must be one of .*got {name}='neither'"):
            preset.function(**{**needed, name: "neither"})
    numbers = [n for n, x in preset.defaults.items() if isinstance(x, int | float)]
    for name in (*preset.required, *numbers):
        with pytest.raises(TypeError, match=f"^{name} of rd.methods.{preset.name} must be "):
            preset.function(**{**needed, name: "many"})


def test_numbers_typed_for_the_parts_of_a_method_are_arrays():
    bandit, logits = rd.bandit([1.0, 0.0, 0.5], [0.2, 0.5, 0.3]), jnp.array([0.3, -0.2, 0.1])

    def update(number):
        advantage = GroupRelative(number(0.1), "mean", "std")
        clip = Clip(number(0.8), number(1.2), number(3))
        weight = SamplerRatio(number(0.5), number(2))
        method = rd.methods.compose(advantage, clip, weights=weight)
        return rd.field(method, logits, bandit, rd.Group(3), old=bandit.log_ref)

    assert np.array_equal(update(lambda x: x), update(lambda x: jnp.asarray(x, float)))
    assert isinstance(Clip(0.8, np.float32(1.2), 3).upper, jax.Array)
    divergence = rd.divergences.Alpha(2)
    law = rd.target(bandit, rd.FDivergence(divergence, 0.5)).log_probs
    assert np.array_equal(law, rd.target(bandit, rd.Pearson(0.5)).log_probs)
    assert rd.FDivergence(divergence, 0.5).slope(law, bandit.log_ref).shape == (3,)


def test_another_number_is_no_other_program():
    traces = []

    @rd.record
    class Counted(Advantage):
        gain: float

        def __call__(self, batch):
            traces.append(self.gain)
            return self.gain * (batch.reward - batch.mean(batch.reward))

    bandit = rd.bandit([1.0, 0.0, 0.5])
    ends = []
    for gain in (0.5, 1, 2.0, jnp.asarray(0.5, float)):
        method = rd.methods.compose(Counted(gain), clip_low=0.2)
        ends.append(rd.run(method, bandit, 10).log_probs[-1])
        if len(ends) == 1:
            first = len(traces)
    assert len(traces) == first
    assert np.array_equal(ends[0], ends[3])
    assert not np.array_equal(ends[0], ends[1])


SINGLE = """
import json, warnings
import numpy as np
import regdist as rd

def said(call):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return [str(w.message) for w in found]

log_p = np.log([0.2, 0.5, 0.3])
b = rd.bandit([1.0, 0.0, 0.5], [0.2, 0.5, 0.3])
calls = [
    lambda: rd.bandit([1.0, 0.0, 0.5], [0.2, 0.5, 0.3]),
    lambda: rd.ReverseKL(0.1),
    lambda: rd.metrics.entropy(b.log_ref),
    lambda: rd.metrics.entropy(log_p.astype(np.float32)),
    lambda: CUT,
    lambda: rd.metrics.entropy(log_p),
    lambda: rd.bandit(np.ones(3)),
]
print(json.dumps([said(call) for call in calls]))
"""
CUT = {
    "reward": "rd.bandit(np.ones(3))",
    "log_p": "rd.metrics.entropy(log_p)",
    "anchor": "rd.ReverseKL(0.1, anchor=log_p)",
    "axis 'x'": "rd.sweep(lambda x: x, {'x': np.ones(2)}, progress=False)",
}


@pytest.mark.parametrize("name", CUT)
def test_double_precision_is_cut_with_one_word_and_lists_without(name):
    program = ["-c", SINGLE.replace("CUT", CUT[name])]
    *before, cut, again, other = json.loads(process(program, JAX_ENABLE_X64="0"))
    assert before == [[], [], [], []]
    (said,) = cut
    assert said.startswith(f"{name} is float64 and becomes float32")
    assert 'jax.config.update("jax_enable_x64", True)' in said
    assert again == other == []


def test_double_precision_that_is_kept_is_not_spoken_of():
    program = SINGLE.replace("CUT", CUT["reward"])
    assert json.loads(process(["-c", program], JAX_ENABLE_X64="1")) == [[]] * 7
