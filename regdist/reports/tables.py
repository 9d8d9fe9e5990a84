"""Tables of texts, in three forms: for a terminal, for Markdown, for a page."""

import dataclasses
import html
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_MISSING = "-"


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A table: its title, the names of its columns, and rows of texts, as many in each."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]

    def rich(self) -> Table:
        """For a terminal: numbers to the right, and in the first column no name twice in a row."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for i, head in enumerate(self.heads):
            numbers = all(_is_number(row[i]) for row in self.rows)
            side = "right" if numbers else "left"
            table.add_column(Text(head), justify=side, overflow="fold")  # no text is cut
        before = None
        for row in self.rows:
            first = "" if row[0] == before else row[0]
            table.add_row(*map(Text, (first, *row[1:])))
            before = row[0]
        return table

    def markdown(self) -> str:
        """Lines of Markdown, without the title."""
        lines = (self.heads, ["---"] * len(self.heads), *self.rows)
        texts = ([text.replace("|", "\\|") for text in line] for line in lines)
        return "\n".join(f"| {' | '.join(line)} |" for line in texts)

    def html(self) -> str:
        """A `<table>`, without the title."""
        rows = "\n".join([_row("th", self.heads), *(_row("td", row) for row in self.rows)])
        return f"<table>\n{rows}\n</table>"


def show(sheets: Iterable[Sheet], console: Console) -> None:
    """Tables in a terminal, each under its title."""
    for sheet in sheets:
        console.print(Text(sheet.title, style="bold"))
        console.print(sheet.rich())


def short(x: float | None, digits: int = 3) -> str:
    """A number of a table; a dash where there is none."""
    return _MISSING if x is None else f"{x:.{digits}g}"


def one_line(name: str, most: int = 60) -> str:
    r"""What a person called something, for a table or a figure: a line that can be printed.

    Examples:
        >>> one_line("first\nsecond")
        'first\\nsecond'
        >>> one_line("a long story", 9)
        'a long...'
    """
    cut = name if len(name) <= most else name[: most - 3] + "..."
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)


def _row(tag: str, texts: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(t)}</{tag}>" for t in texts) + "</tr>"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text == _MISSING
    return True
