import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest

import regdist as rd
from regdist.cli import main
from regdist.regularizers.regularizer import by_name
from regdist.reports import atlas, report

matplotlib.use("Agg")
SHORT = ["--beta", "0.2", "--regularizers", "reverse-kl"]
GRID = ["--beta", "0.1,0.5", "--regularizers", "reverse-kl,forward-kl,alpha:2,entropy"]


pytestmark = pytest.mark.xdist_group("report")  # what the fixture makes is made once


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "deep" / "out"
    assert main(["report", "--problem", "two-modes", "--out", str(out), *GRID]) == 0
    return out


@pytest.fixture(autouse=True)
def _without_a_cure(monkeypatch, written):
    """It is compiled for each size of problem, and `written` has it."""
    monkeypatch.setattr(report, "cure", lambda *_: [])


def test_report_writes_everything(written):
    names = {path.name for path in written.iterdir()}
    drawings = {"targets", "solutions", "effective_number", "convergence"}
    images = {f"{n}.{kind}" for n in drawings for kind in ("pdf", "png")}
    assert names == images | {"report.json", "targets.npz", "index.html"}
    assert not [path for path in written.glob("*.pdf") if b"/Type3" in path.read_bytes()]
    page = (written / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    links = re.findall(r"(?:src|href)='(?!data:)([^']*)'", page)
    assert set(links) <= {path.name for path in written.iterdir()}
    assert "regdist report --problem two-modes" in page


def test_report_numbers_are_the_librarys(written):
    saved = json.loads((written / "report.json").read_text())
    assert saved["passes"]
    assert saved["versions"]["regdist"]
    bandit = rd.problems.two_modes().bandit
    cells = {(c["regularizer"], c["beta"]): c for c in saved["cells"]}
    assert len(cells) == 8
    for (name, beta), cell in cells.items():
        make = {"reverse-kl": rd.ReverseKL, "forward-kl": rd.ForwardKL, "entropy": rd.Entropy}.get(
            name, lambda b: rd.AlphaDivergence(2.0, b)
        )
        target = rd.target(bandit, make(beta))
        assert np.isclose(cell["value"], target.value, rtol=1e-12)
        assert np.isclose(cell["entropy"], rd.metrics.entropy(target.log_probs), rtol=1e-12)
        solved = float(target.probs[4:8].sum())
        assert np.isclose(cell["success"], solved, rtol=1e-12)
        assert np.isclose(cell["pass_at_k"]["8"], 1 - (1 - solved) ** 8, rtol=1e-9)
        assert cell["certificates"]["natural"]["verdict"] in ("converges", "plateau")
    laws = np.load(written / "targets.npz")
    want = rd.target(bandit, rd.ForwardKL(0.5)).log_probs
    assert np.allclose(laws["forward-kl@0.5"], want, rtol=0, atol=1e-12)
    rival = saved["critical_betas"][0]
    beta = rd.critical_beta(bandit, 4, 0, rd.ReverseKL)
    assert np.isclose(rival["reverse_kl"], beta)
    assert rival["reverse_kl_words"] == f"below {beta:.3g}"
    assert sum(saved["verdicts"]["natural"].values()) == 8
    assert saved["command"].startswith("regdist report")


def test_report_on_a_file_and_a_hand(tmp_path, capsys):
    path = tmp_path / "mine.csv"
    path.write_text("outcome,reward,count,label\na,1,2,x\nb,0.5,7,y\nc,1,1,z\nd,0,4,w\n")
    out = tmp_path / "file"
    assert main(["report", "--problem", str(path), "--out", str(out), "--k", "1,4", *SHORT]) == 0
    shown = capsys.readouterr().out
    assert "mine.csv: 4 outcomes with 4 answers" in shown
    assert "pass@4" in shown
    hand = tmp_path / "hand"
    assert main(["report", "--problem", "game24:3,3,8,8", "--out", str(hand), *SHORT]) == 0
    saved = json.loads((hand / "report.json").read_text())
    assert saved["problem"]["solutions"] == 1
    assert saved["critical_betas"][0]["good"] == "8 / (3 - (8 / 3))"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--problem", "chess"], "unknown problem 'chess'"),
        (["--problem", "game24:1,2,3"], "four positive integers"),
        (["--problem", "game24:1,2,3,x"], "game24:4,7,8,8"),
        (["--problem", "game24:1,1,1,1"], "this hand has no solution"),
        (["--problem", "missing.csv"], "missing.csv"),
        (["--problem", "two-modes", "--beta", "0.1,-1"], "betas must be finite numbers above 0"),
        (["--problem", "two-modes", "--regularizers", "kl"], "unknown regularizer 'kl'"),
        (["--problem", "two-modes", "--regularizers", "alpha:x"], "alpha:A wants a finite number"),
        (["--problem", "two-modes", "--k", "0"], "positive integers"),
        (["--problem", "two-modes", "--success", "7"], "has reward >= 7"),
    ],
)
def test_bad_input_exits_with_2_and_writes_nothing(tmp_path, capsys, arguments, message):
    out = tmp_path / "out"
    assert main(["report", "--out", str(out), *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("job", ["report", "atlas"])
def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    tmp_path, monkeypatch, capsys, job
):
    monkeypatch.setattr({"report": report, "atlas": atlas}[job], "build", pytest.fail)
    (tmp_path / "file").write_text("mine")
    for out, message in ((tmp_path / "file", "is a file"), (tmp_path / "file" / "out", "written")):
        assert main([job, "--out", str(out)]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("option", ["--beta", "--k"])
def test_what_is_no_number_is_shown_with_an_example(capsys, option):
    with pytest.raises(SystemExit, match="2"):
        main(["report", option, "1,x"])
    assert "got '1,x'" in capsys.readouterr().err


def test_a_failing_certificate_exits_with_1(tmp_path, monkeypatch, capsys):
    """A step size above the stability limit makes the runs cycle: the command must say so."""
    rates = report.learning_rates
    monkeypatch.setattr(
        report, "learning_rates", lambda *a: {k: 5 * r for k, r in rates(*a).items()}
    )
    grid = ["--beta", "0.5", "--regularizers", "reverse-kl"]
    assert main(["report", "--problem", "two-modes", "--out", str(tmp_path / "o"), *grid]) == 1
    assert "FAILS reverse-kl" in capsys.readouterr().err
    assert not json.loads((tmp_path / "o" / "report.json").read_text())["passes"]


def test_the_verdict_on_a_sum_does_not_depend_on_the_order_of_its_terms():
    """A step that is stable for the first term alone is too large where a steeper one stands by."""
    sums = ["reverse-kl+forward-kl", "forward-kl+reverse-kl"]
    first, second = report.build("two-modes", [0.02], sums).cells
    for kind, certificate in first.certificates.items():
        assert certificate.verdict == second.certificates[kind].verdict != "diverges"
    assert first.passes
    assert second.passes


def test_learning_rates_do_not_depend_on_the_order_of_a_sum():
    """And a sum allows no more than a term of it does alone."""
    families = ["reverse-kl", "forward-kl", "entropy", "jensen-shannon", "alpha:-1", "alpha:2"]

    def rates(spec):
        return report.learning_rates(by_name(spec)(0.3), 2.0)

    for one, other in itertools.combinations(families, 2):
        both = rates(f"{one}+{other}")
        assert both == rates(f"{other}+{one}"), (one, other)
        assert both["natural"] < min(rates(one)["natural"], rates(other)["natural"])


def test_the_command_keeps_what_it_compiles_unless_told_where(tmp_path):
    told = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    ask = "import jax; from regdist import cli; cli._keep_compiled(); "
    ask += "print(jax.config.jax_compilation_cache_dir)"
    for env, want in (
        ({"XDG_CACHE_HOME": str(tmp_path)}, tmp_path / "regdist"),
        ({"JAX_COMPILATION_CACHE_DIR": "/mine"}, Path("/mine")),
    ):
        command = [sys.executable, "-c", ask]
        done = subprocess.run(command, env=told | env, capture_output=True, text=True, check=True)
        assert Path(done.stdout.strip()) == want


def test_the_words_of_a_graded_file(tmp_path, capsys):
    """Where one solution never leads, a corner is the optimum, and labels are the person's."""
    path = tmp_path / "graded.csv"
    rows = ["outcome,reward,count,label", "a,1,5,right", "b,0,80,wrong", "c,0.6,15,nearly"]
    path.write_text("\n".join(rows) + "\n")
    out = tmp_path / "out"
    grid = ["--beta", "1", "--regularizers", "total-variation,reverse-kl", "--success", "0.6"]
    assert main(["report", "--problem", str(path), "--out", str(out), *grid]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "2 of 3 outcomes count as solutions: reward >= 0.6, as asked" in shown
    assert "All 4 certificates pass. Of 2 targets, natural gradient: 2 converges" in shown
    saved = json.loads((out / "report.json").read_text())
    words = {pair["good"]: pair["forward_kl_words"] for pair in saved["critical_betas"]}
    assert words == {"nearly": "never", "right": "below 0.549"}
    assert saved["problem"]["solutions_are"].startswith("2 of 3")
    page = (out / "index.html").read_text()
    assert "An entropy bonus" not in page
    assert "Their rewards differ" in page


@pytest.mark.parametrize(
    ("beta", "words"),
    [(np.inf, "always"), (0.0, "never"), (np.nan, "equal rewards"), (0.25, "below 0.25")],
)
def test_a_critical_beta_in_words(beta, words):
    assert words in report.in_words(np.float64(beta))[1]


def test_few_solutions_among_graded_rewards_are_pointed_out(tmp_path):
    path = tmp_path / "graded.csv"
    rows = [f"o{i},{i / 100},1" for i in range(100)]
    path.write_text("\n".join(["outcome,reward,count", *rows]) + "\n")
    built = report.build(str(path), [1.0], ["reverse-kl"])
    assert built.counted == (
        "1 of 100 outcomes count as solutions: reward >= 0.99, the largest of 100 different ones; "
        "--success sets another level"
    )
