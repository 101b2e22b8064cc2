"""The console: one for all of a process, as wide as its terminal, or a log's 160 columns."""

import io
import sys
from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

if isinstance(sys.stdout, io.TextIOWrapper):  # a path may hold what no encoding has
    sys.stdout.reconfigure(errors="backslashreplace")
console = Console(highlight=False, markup=False)
if not console.is_terminal:
    console = Console(highlight=False, markup=False, width=160)


def printable(text: str) -> str:
    """Returns text on one line, with what no terminal and no file can show spelled out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def duration(seconds: float) -> str:
    """Returns a time span as `h:mm:ss`, or `m:ss` below an hour."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


@contextmanager
def working(on: str) -> Generator[None]:
    """Says what takes a while: beside a spinner as long as it lasts, in a log by a line."""
    if console.is_terminal:
        with console.status(Text(f"{on} ...")):
            yield
    else:
        console.print(f"{on} ...")
        yield
