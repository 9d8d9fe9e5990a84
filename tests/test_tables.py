import io

import pytest
from rich.console import Console

from regdist.reports import folder, tables

SHEET = tables.Sheet(
    "Two [b] things", ["name", "size"], [["a | b", "1"], ["a | b", "-"], ["<c> [i]", "2e-3"]]
)


def test_a_terminal_shows_texts_as_they_are_and_no_name_twice():
    console = Console(file=io.StringIO(), width=60)
    tables.show([SHEET], console)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]
    assert lines[0] == "Two [b] things"
    assert [line.split() for line in lines[3:]] == [
        ["a", "|", "b", "1"],
        ["-"],
        ["<c>", "[i]", "2e-3"],
    ]
    assert len({len(line) for line in lines[3:]}) == 1  # numbers end in one column


def test_a_narrow_terminal_cuts_no_text():
    sheet = tables.Sheet("", ["name", "rate"], [["jensen-shannon-and-more", "0.07325"]])
    console = Console(file=io.StringIO(), width=16)
    tables.show([sheet], console)
    shown = console.file.getvalue()
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 16


def test_markdown_and_html_escape_what_they_must():
    assert SHEET.markdown().splitlines() == [
        "| name | size |",
        "| --- | --- |",
        "| a \\| b | 1 |",
        "| a \\| b | - |",
        "| <c> [i] | 2e-3 |",
    ]
    page = SHEET.html()
    assert page.count("<tr>") == 4
    assert "<th>name</th>" in page
    assert "<td>&lt;c&gt; [i]</td>" in page


def test_numbers_are_short():
    assert [tables.short(x) for x in (None, 0.12345, 1e-9)] == ["-", "0.123", "1e-09"]
    assert tables.short(0.12345, 1) == "0.1"


def test_a_folder_is_filled_whole_or_not_at_all(tmp_path):
    out = tmp_path / "deep" / "out"

    def fill(text, fails):
        with folder.filling(out) as fresh:
            for name in "ab":
                (fresh / name).write_text(text)
            if fails:
                raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        fill("first", True)
    assert not out.exists()
    fill("second", False)
    (out / "mine").write_text("kept")
    with pytest.raises(OSError, match="full"):
        fill("third", True)
    texts = {path.name: path.read_text() for path in out.iterdir()}
    assert texts == {"a": "second", "b": "second", "mine": "kept"}


def test_a_check_of_a_folder_leaves_nothing_behind(tmp_path):
    folder.check(tmp_path / "deep" / "out")
    folder.check(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["file", "file/out"])
def test_a_folder_that_cannot_be_is_refused(tmp_path, out):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"is a file|cannot be written \(Not a directory\)"):
        folder.check(tmp_path / out)
    assert (tmp_path / "file").read_text() == "mine"
