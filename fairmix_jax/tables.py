"""Tables of texts, as Markdown and for the console."""

from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table as RichTable

MISSING = "–"
"""What stands where there is no number."""

TEXT_COLUMNS = (
    "attack", "class", "method", "verdict", "passed", "finding", "reason", "pushed into",
    "most in class", "prediction", "statistic", "claim",
)  # fmt: skip
"""Headings of columns that hold words, not numbers."""


class Table(NamedTuple):
    """A table of texts.

    Attributes:
      caption: says what its numbers are.
      header, rows: the headings, and a text for each.
      footer: rows of sums, which no sorting moves.
      attack, method: what all of it is about, empty if rows or columns differ in it.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    footer: Sequence[Sequence[str]] = ()
    attack: str = ""
    method: str = ""


def markdown(table: Table) -> str:
    """Returns the table as Markdown, its caption first."""
    lines = [table.header, ["---"] * len(table.header), *table.rows, *table.footer]
    cells = [" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines]
    return f"{table.caption}\n\n" + "\n".join(f"| {line} |" for line in cells)


def rich_table(table: Table) -> RichTable:
    """Returns the table for the console."""
    shown = RichTable(title=table.caption, title_justify="left")
    for number, name in enumerate(table.header):
        justify = "left" if name in TEXT_COLUMNS else "right"
        shown.add_column(name, justify=justify, overflow="fold", no_wrap=number < 2)
    for row in (*table.rows, *table.footer):
        shown.add_row(*row)
    return shown
