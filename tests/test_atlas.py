import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys

import matplotlib
import numpy as np
import pytest

import regdist as rd
from regdist.cli import main
from regdist.reports import atlas
from tests.test_sweep import finish, pair

matplotlib.use("Agg")


pytestmark = pytest.mark.xdist_group("atlas")  # what the fixture makes is made once


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("atlas") / "out"
    assert main(["atlas", "--methods", "rloo/k3", "--problems", "graded", "--out", str(out)]) == 0
    return out


def test_a_cell_is_what_identify_says(written):
    about = json.loads((written / "atlas.json").read_text())
    cells = {c["expectation"]: c for c in about["cells"]}
    assert set(cells) == set(atlas.EXPECTATIONS)
    for name in ("population", f"groups of {atlas.GROUP}"):
        assert cells[name]["verdict"] == "converges"
        assert cells[name]["nearest"].startswith(f"forward KL at beta {atlas.BETA:g}")
        assert cells[name]["distances"]["forward KL"] < 1e-9
        assert cells[name]["rate"] > 0
    assert cells["sampled"]["verdict"] == "drawn"
    assert cells["sampled"]["distances"]["forward KL"] < 0.1
    assert not [path for path in written.glob("*.pdf") if b"/Type3" in path.read_bytes()]
    assert "forward KL" in (written / "atlas.md").read_text()
    assert {p.name for p in written.iterdir()} == {
        "atlas.json",
        "atlas.md",
        "cells",
        "graded.pdf",
        "graded.png",
    }


def test_a_second_run_takes_what_is_there(written, monkeypatch):
    monkeypatch.setattr(atlas, "cell", lambda *_: pytest.fail("computed again"))
    before = (written / "atlas.json").read_text()
    assert (
        main(["atlas", "--methods", "rloo/k3", "--problems", "graded", "--out", str(written)]) == 0
    )
    assert (written / "atlas.json").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "GRPO"], "no preset is called 'GRPO'"),
        (["--methods", "rloo,online_dpo/sof"], "did you mean online_dpo/soft"),
        (["--methods", "aepo/k2"], "aepo/k2 needs target, and the atlas gives a coefficient alone"),
        (["--methods", "xpo"], "cannot show xpo (groups of 4): WithReference"),
        (["--methods", "pass_at_k_grpo"], "cannot show pass_at_k_grpo (population)"),
        (["--problems", "grade"], "unknown problem: 'grade'. Known: graded, binary, rare"),
    ],
)
def test_wrong_calls_are_refused_in_words_and_write_nothing(tmp_path, capsys, arguments, message):
    assert main(["atlas", *arguments, "--out", str(tmp_path / "new")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "new").exists()


def test_a_folder_of_other_settings_is_refused(written, monkeypatch, capsys):
    monkeypatch.setattr(atlas, "BETA", 0.5)
    assert main(["atlas", "--methods", "rloo/k3", "--out", str(written)]) == 2
    assert "made with other settings" in " ".join(capsys.readouterr().err.split())


def test_a_folder_whose_cells_have_display_names_is_refused(tmp_path, monkeypatch, capsys):
    """Its fingerprint was this one but for what names mean."""
    monkeypatch.setattr(atlas, "cell", lambda *_: pytest.fail("computed"))
    laws = {
        k: [np.asarray(x).tolist() for x in (p().reward, p().log_ref)]
        for k, (_, p) in atlas.PROBLEMS.items()
    }
    version = importlib.metadata.version("regdist")
    about = [version, atlas.BETA, atlas.LEVEL, atlas.GROUP, atlas.SEEDS, 20_000, laws]
    old = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "fingerprint").write_text(old)
    assert main(["atlas", "--methods", "rloo", "--out", str(tmp_path)]) == 2
    assert "give another folder, or remove it" in " ".join(capsys.readouterr().err.split())


def test_a_name_of_the_catalog_is_a_row_and_asked_for_twice_it_is_one(tmp_path, monkeypatch):
    asked = []

    def cell(names, method, problem):
        asked.append(names)
        return atlas.Cell(*names, "drawn", "", "", {}, None, None, 0.0, 0.0)

    monkeypatch.setattr(atlas, "cell", cell)
    assert "cispo/k2" not in atlas.METHODS
    atlas.build(tmp_path, ["cispo/k2", "rloo", "cispo/k2"], ["rare"])
    rows = [(m, "rare", e) for m in ("cispo/k2", "rloo") for e in atlas.EXPECTATIONS]
    assert sorted(asked) == sorted(rows)


OWN = """
import regdist as rd

def mine(beta):
    return rd.methods.rloo(beta=FACTOR * beta, estimator="k3")

value = 3
"""


def test_methods_and_problems_of_ones_own(tmp_path, monkeypatch, capsys):
    """Known by what they compute: a changed one is made anew, and the old cells are kept."""
    asked = []

    def cell(names, method, problem):
        asked.append((names, float(method.coefficients_of_parts()[0]), problem.num_actions))
        return atlas.Cell(*names, "drawn", "", "", {"a": 0.5}, None, None, 0.0, 0.0)

    monkeypatch.setattr(atlas, "cell", cell)
    (tmp_path / "mine.csv").write_text("outcome,reward,count\na,1,2\nb,0,5\nc,0.5,3\n")
    path, out = tmp_path / "mine.py", tmp_path / "out"
    arguments = ["atlas", "--methods", f"rloo/k3,{path}:mine", "--out", str(out)]
    arguments += ["--problems", f"rare,{tmp_path / 'mine.csv'}"]
    for factor in ("1", "1", "2"):
        path.write_text(OWN.replace("FACTOR", factor))
        assert main(arguments) == 0
    rows = [(m, p) for m in ("rloo/k3", "mine") for p in ("rare", "mine")]
    first = {(m, p, e) for m, p in rows for e in atlas.EXPECTATIONS}
    assert {names for names, _, _ in asked[:12]} == first
    assert {names for names, _, _ in asked[12:]} == {x for x in first if x[0] == "mine"}
    assert {actions for names, _, actions in asked if names[1] == "mine"} == {3}
    assert (out / "mine.png").exists()
    capsys.readouterr()
    for method, says in (
        (f"{path}:other", "has no function other"),
        (f"{path}:value", "has no function value"),
        (f"{tmp_path}/none.py:mine", "there is no file"),
        (f"{path}:mine,{tmp_path}/other.py:mine", "are both called mine: rename one"),
    ):
        assert main(["atlas", "--methods", method, "--out", str(tmp_path / "new")]) == 2
        assert says in " ".join(capsys.readouterr().err.split())
    for name, says in (("a b", "letters, digits"), ("grpo", "is a name of regdist")):
        with pytest.raises(ValueError, match=says):
            atlas.build(tmp_path / "new", own_methods={name: rd.methods.rloo})
    with pytest.raises(ValueError, match="makes no method"):
        atlas.build(tmp_path / "new", own_methods={"mine": float})


def test_one_action_alone_is_come_to_more_slowly_than_at_any_rate(monkeypatch):
    monkeypatch.setattr(atlas, "_STEPS", 100)
    bandit = rd.bandit([1.0, 0.0], [0.4, 0.6])
    for method, rate in (
        (rd.methods.reinforce(), 0.0),
        (rd.methods.natural_policy_gradient(), None),
    ):
        made = atlas.cell(("mine", "coin", "population"), method, bandit)
        assert made.verdict == "vertex"
        assert made.rate == rate


def test_every_method_of_the_atlas_has_a_finite_field():
    for _, problem in atlas.PROBLEMS.values():
        bandit = problem()
        for name in atlas.METHODS:
            method = rd.methods.named(name, atlas.BETA)
            assert np.all(np.isfinite(rd.field(method, bandit.log_ref, bandit)))


def test_each_device_of_a_mesh_has_a_thread(tmp_path):
    text = """
import sys, threading
from pathlib import Path
import jax, jax.numpy as jnp
from regdist.reports import atlas
together, used = threading.Barrier(3, timeout=60), []
def cell(names, method, problem):
    used.append(str(jnp.zeros(1).devices()))
    together.wait()
    return atlas.Cell(*names, "drawn", "", "", {}, None, None, 0.0, 0.0)
atlas.cell = cell
mesh = jax.make_mesh((1, 3), ("a", "b"))
cells = atlas.build(Path(sys.argv[1]), ["rloo"], ["rare"], mesh=mesh)
assert [c.expectation for c in cells] == list(atlas.EXPECTATIONS)
assert len(set(used)) == 3, used
"""
    flags = "--xla_force_host_platform_device_count=3"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", text, tmp_path], env=environment, check=True, timeout=300)


def test_two_processes_share_the_cells(tmp_path):
    """Each cell is made by one of them and both have all; they begin the folder at once."""
    text = """
import sys
from pathlib import Path
import jax
from regdist.reports import atlas
address, rank, out, to = sys.argv[1:]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(address, 2, int(rank), heartbeat_timeout_seconds=10)
def cell(names, method, problem):
    return atlas.Cell(*names, "drawn", rank, "", {}, None, None, 0.0, 0.0)
atlas.cell = cell
cells = atlas.build(Path(out), ["rloo", "grpo"], ["rare"])
assert [(c.method, c.expectation) for c in cells] == [
    (m, e) for m in ("rloo", "grpo") for e in atlas.EXPECTATIONS
]
assert {c.sentence for c in cells} == {"0", "1"}
"""
    finish(*pair(text, tmp_path / "out", tmp_path))
    assert not list(tmp_path.glob("**/*.part"))
