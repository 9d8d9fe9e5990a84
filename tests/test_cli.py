"""The command: its helps, its catalog, and what it says when it is stopped."""

import io
import json
import sys
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from rich.console import Console

import regdist as rd
from regdist.cli import main
from regdist.problems import names as problems
from regdist.regularizers.names import NAMED
from regdist.reports import atlas, catalog, page, report, tables

matplotlib.use("Agg")
ENTRIES = {entry.name: entry for entry in rd.methods.catalog()}


def words(text):
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("job", "names"),
    [
        ("report", [*NAMED, *problems.NAMED, "game24:"]),
        ("atlas", [*atlas.PROBLEMS, *atlas.METHODS]),
    ],
)
def test_the_help_lists_what_can_be_asked_for(capsys, monkeypatch, job, names):
    """Whole names, in lines that fit."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        main([job, "--help"])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert [name for name in names if name not in shown] == []


@pytest.mark.parametrize("width", [80, 120])
def test_the_catalog_fits_a_terminal(width):
    console = Console(file=io.StringIO(), width=width)
    tables.show([catalog.sheet()], console)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in console.file.getvalue()
    firsts = [line.split()[0] for line in lines[6:] if line[:2].strip()]
    assert firsts == list(ENTRIES)


def test_the_catalog_shows_sources_own_defaults_and_variants(capsys):
    assert main(["methods"]) == 0
    shown = words(capsys.readouterr().out)
    assert shown.startswith(f"{len(ENTRIES)} presets")
    for entry in ENTRIES.values():
        assert all(word in shown for word in (words(entry.summary), *entry.papers, *entry.code))
    assert "defaults normalize_std=True, eps=1e-06, clip_low=0.2, clip_high=0.28, cli" in shown
    assert "variants no-penalty, trl, verl, penalties" in shown


def test_an_entry_is_shown_in_full_with_the_defaults_of_its_variant(capsys):
    assert main(["methods", "grpo/trl", "drpo", "reinforce"]) == 0
    grpo, drpo, reinforce = (
        words(text) for text in capsys.readouterr().out.split("rd.methods.named")[1:]
    )
    assert grpo.startswith("('grpo/trl', beta) ")
    assert "2402.03300 verl core_algos.compute_grpo_outcome_advantage TRL grpo_trainer" in grpo
    assert "eps: 1e-6 in verl, 1e-4 in TRL" in grpo
    assert "coefficient beta defaults beta=0.04, estimator='k3', placement='loss'" in grpo
    assert "eps=0.0001, after_normalization=False" in grpo
    assert "k3-ratio-corrected: estimator='k3', ratio_corrected=True" in grpo
    assert drpo.startswith("('drpo', length=...) ")
    assert "needs length coefficient beta, once an estimator is given" in drpo
    assert f"from {ENTRIES['reinforce'].unsourced} coefficient" in reinforce


def test_paragraphs_and_arguments_are_whole_lines():
    (_, about), *_ = catalog.details("ppo").rows
    assert [line.split(":")[0][:12] for line in about.splitlines() if line] == [
        "PPO (1707.06",
        "The critic k",
        "Args",
        "    whiten",
        "    options",
    ]


def test_json_holds_every_entry(capsys):
    assert main(["methods", "--json"]) == 0
    saved = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert list(saved) == list(ENTRIES)
    for name, entry in ENTRIES.items():
        assert saved[name]["papers"] == list(entry.papers)
        assert list(saved[name]["variants"]) == list(entry.variants)
        assert list(saved[name]["defaults"]) == list(entry.defaults)
    assert saved["grpo"]["own_defaults"]["eps"] == 1e-6
    assert saved["grpo"]["defaults"]["clip_dual"] == "inf"
    assert main(["methods", "--json", "rloo/k2", "rloo"]) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == ["rloo"]


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_an_unknown_name_is_refused_with_the_nearest(capsys, form):
    assert main(["methods", *form, "grpo", "grpo/trli"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "no preset is called 'grpo/trli': did you mean grpo/trl" in words(shown.err)
    assert main(["methods", *form, "zzzzzz"]) == 2
    assert "`regdist methods` list them" in words(capsys.readouterr().err)


def stop(*_):
    raise KeyboardInterrupt


def test_a_report_that_is_stopped_says_that_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "build", stop)
    assert main(["report", "--out", str(tmp_path / "out")]) == 130
    shown = capsys.readouterr()
    assert shown.out == ""
    assert words(shown.err) == "regdist: stopped: nothing is written"
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_is_stopped_late_does_not_say_that_nothing_is_written(
    tmp_path, monkeypatch, capsys
):
    """While its files move into place, and when they are there."""
    task = SimpleNamespace(about="two")
    results = SimpleNamespace(task=task, cells=[], passes=True, counted="all")
    monkeypatch.setattr(report, "build", lambda *_: results)
    monkeypatch.setattr(page, "sheets", lambda _: [])
    monkeypatch.setattr(page, "headline", lambda _: "")
    monkeypatch.setattr(page, "write", stop)
    out = tmp_path / "out"
    assert main(["report", "--out", str(out)]) == 130
    assert words(capsys.readouterr().err) == f"regdist: stopped: {out} may hold some of the files"
    monkeypatch.setattr(page, "write", lambda *_: [])
    results.cells = Interrupted()
    assert main(["report", "--out", str(out)]) == 130
    assert words(capsys.readouterr().err) == f"regdist: stopped: the results are in {out}"


class Interrupted:
    """Cells that are never gone through."""

    def __iter__(self):
        raise KeyboardInterrupt


def test_an_atlas_that_is_stopped_says_what_is_kept_and_goes_on(tmp_path, monkeypatch, capsys):
    asked = []

    def cell(names, method, problem):
        asked.append(names)
        return stop() if len(asked) == 2 else fake(*names)

    def fake(*names):
        return atlas.Cell(*names, "drawn", "", "", {"reverse KL": 0.5}, None, None, 0.0, 0.0)

    monkeypatch.setattr(atlas, "cell", cell)
    out = tmp_path / "{0}"
    command = ["atlas", "--methods", "rloo", "--problems", "rare", "--out", str(out)]
    assert main(command) == 130
    kept = f"finished cells are kept in {out}/cells; the same command goes on with the others"
    shown = capsys.readouterr().err.replace("\n", "").replace(" ", "")
    assert shown.endswith(f"regdist:stopped:{kept}".replace(" ", ""))
    assert len(list((out / "cells").glob("*.json"))) == 1
    assert main(command) == 0
    assert [names[2] for names in asked[2:]] == list(atlas.EXPECTATIONS)[1:]


def test_a_hand_keeps_its_commas_in_a_list_of_problems(tmp_path, monkeypatch):
    asked = []

    def cell(names, method, problem):
        asked.append((names[1], problem.num_actions))
        return atlas.Cell(*names, "drawn", "", "", {"reverse KL": 0.5}, None, None, 0.0, 0.0)

    monkeypatch.setattr(atlas, "cell", cell)
    hands = "rare,game24:4,7,8,8,two-modes,game24:1,1,2,3=9"
    main(["atlas", "--methods", "rloo", "--problems", hands, "--out", str(tmp_path / "out")])
    sizes = dict(asked)
    assert list(sizes) == ["rare", "game24-4-7-8-8", "two-modes", "game24-1-1-2-3-9"]
    assert sizes["game24-4-7-8-8"] == 3840  # half of 7,680, for the two eights


def test_a_report_shows_any_name_on_any_terminal(tmp_path, monkeypatch):
    """Markup, mathematics, scripts that font and encoding lack, and what would move the cursor."""
    names = ["[/bold]", r"$\frac$ $", "<script>x</script>", "\u6f22 \U0001f600", "\x1b[31m\n"]
    shares = [0.3, 0.1, 0.1, 0.1, 0.3]
    rows = [
        {"outcome": name, "reward": name is not names[-1], "reference": share}
        for name, share in zip(names, shares, strict=True)
    ]
    path = tmp_path / r"[red]$\frac$.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    shown, out = io.TextIOWrapper(io.BytesIO(), encoding="ascii"), tmp_path / "[/out]"
    monkeypatch.setattr(sys, "stdout", shown)
    command = ["report", "--problem", str(path), "--out", str(out), "--rest", "0", "--beta", "0.2"]
    assert main([*command, "--regularizers", "reverse-kl"]) == 0
    shown.seek(0)
    text = shown.read()
    assert r"[red]$\frac$.jsonl: 6 outcomes" in text
    assert "probability 0.1 that is left" in words(text)
    lines = text.splitlines()
    for name in (*names[:3], r"\u6f22 \U0001f600"):
        assert [line for line in lines if name in line and r"\x1b[31m\n" in line], name
    assert "\x1b" not in text
    assert f"Open {out}" in words(text)
    page_text = (out / "index.html").read_text(encoding="utf-8")
    assert "<script>" not in page_text
    assert "&lt;script&gt;x&lt;/script&gt;" in page_text
    with np.load(out / "targets.npz") as saved:
        assert saved["outcome"].tolist() == [*names, "(rest)"]


def test_a_report_can_normalize(tmp_path, monkeypatch):
    """The flags go where they should; what they do is for `load` to show."""
    path = tmp_path / "a.csv"
    path.write_text("outcome,reward,reference\na,1,0.5\nb,0,0.3\n")
    spread = ["report", "--problem", str(path), "--out", str(tmp_path / "out")]
    assert main(spread) == 2
    seen = []
    monkeypatch.setattr(report, "_solutions", lambda _, task, __: seen.append(task) or stop())
    assert main([*spread, "--normalize"]) == 130
    assert main([*spread, "--rest", "-1"]) == 130
    assert np.allclose(np.exp(seen[0].bandit.log_ref), [0.625, 0.375])
    assert seen[1].bandit.reward.tolist() == [1, 0, -1]
