"""Tables of texts, as Markdown and for the console."""

from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table as RichTable

_TEXT = ("attack", "class", "method", "verdict", "passed", "finding", "reason", "pushed into")


class Table(NamedTuple):
    """A table of texts with a caption that says what its numbers are."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def markdown(table: Table) -> str:
    """Returns the table as Markdown, its caption first."""
    lines = [table.header, ["---"] * len(table.header), *table.rows]
    return f"{table.caption}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rich_table(table: Table) -> RichTable:
    """Returns the table for the console."""
    shown = RichTable(title=table.caption, title_justify="left")
    for number, name in enumerate(table.header):
        justify = "left" if name in _TEXT else "right"
        shown.add_column(name, justify=justify, overflow="fold", no_wrap=number < 2)
    for row in table.rows:
        shown.add_row(*row)
    return shown
