"""Metric writers with CLU's method names: a JSON-lines file and TensorBoard events."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from tensorboardX import SummaryWriter


class MetricWriter(Protocol):
    """Where training curves go."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes numbers that belong to a step."""

    def close(self) -> None:
        """Flushes and closes."""


class JsonlWriter:
    """One JSON object a line, flushed at once: the record that survives a crash.

    Attributes:
      earlier: the lines that were there, of steps up to the last one.
    """

    def __init__(self, path: Path, *, last_step: int):
        """Opens the file for appending, dropping lines of steps after `last_step`.

        So a resumed run leaves one line a step, also where it repeats what was lost.
        """
        kept = []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    if json.loads(line)["step"] <= last_step:
                        kept.append(line)
                except (json.JSONDecodeError, KeyError):
                    continue  # a line cut short by a crash; its step is repeated
        path.write_text("".join(line + "\n" for line in kept))
        self.earlier = [json.loads(line) for line in kept]
        self._file = path.open("a")

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes `{"step": step, **scalars}`."""
        self._file.write(json.dumps({"step": step, **scalars}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoardWriter:
    """TensorBoard event files."""

    def __init__(self, directory: Path, *, last_step: int):
        """Opens a new event file in which steps after `last_step` replace older ones."""
        self._writer = SummaryWriter(str(directory), purge_step=last_step + 1)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes each number under its name."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()


class MultiWriter:
    """Passes everything on to several writers."""

    def __init__(self, *writers: MetricWriter):
        """Takes the writers to pass on to."""
        self._writers = writers

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes to each."""
        for writer in self._writers:
            writer.write_scalars(step, scalars)

    def close(self) -> None:
        """Closes each."""
        for writer in self._writers:
            writer.close()
