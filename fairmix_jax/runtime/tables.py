"""Tables of texts, as Markdown and for the console."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.table import Table as RichTable

from fairmix_jax.runtime.console import console, printable
from fairmix_jax.runtime.json_files import write_text

MISSING = "–"
"""What stands where there is no number."""

TEXT_COLUMNS = (
    "attack", "class", "method", "verdict", "passed", "finding", "reason", "pushed into",
    "most in class", "prediction", "statistic", "claim", "field", "default", "values", "meaning",
    "model", "worst class of how many",
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
    cells = [" | ".join(as_data(cell).replace("|", "\\|") for cell in line) for line in lines]
    return f"{as_data(table.caption)}\n\n" + "\n".join(f"| {line} |" for line in cells)


def as_data(text: str) -> str:
    """Returns text for a Markdown file, whoever has chosen it: on one line, and no tag of HTML."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", printable(text))


def rich_table(table: Table) -> RichTable:
    """Returns the table for the console."""
    shown = RichTable(title=table.caption, title_justify="left")
    for number, name in enumerate(table.header):
        justify = "left" if name in TEXT_COLUMNS else "right"
        shown.add_column(name, justify=justify, overflow="fold", no_wrap=number < 2)
    for row in (*table.rows, *table.footer):
        shown.add_row(*map(printable, row))
    return shown


def publish(path: Path, tables: Sequence[Table]) -> None:
    """Writes tables as Markdown into a file, and prints them."""
    write_text(path, "\n\n".join(map(markdown, tables)) + "\n")
    for table in tables:
        console.print(rich_table(table))
