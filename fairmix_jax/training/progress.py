"""The visible course of training: a bar or lines, `metrics.jsonl`, TensorBoard events."""

import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fairmix_jax.runtime.console import console, duration, printable
from fairmix_jax.runtime.json_files import dumps, read_lines, sealed, whole, write_text


class TrainProgress:
    """Shows the course of a run: on a terminal one live bar, elsewhere one line an epoch."""

    def __init__(self, first_step: int, total_steps: int, *, total_epochs: int, batch_size: int):
        """Takes the shape of the run; `first_step` is where it resumes."""
        self._total_steps, self._total_epochs = total_steps, total_epochs
        self._step, self._first_step, self._batch_size = first_step, first_step, batch_size
        self._start, self._figures, self._validated = time.perf_counter(), "", ""
        what, left = TextColumn("epoch {task.fields[epoch]}"), (TimeRemainingColumn(), "left")
        figures, speed = TextColumn("{task.fields[figures]}"), TextColumn("{task.fields[speed]}")
        columns = (what, figures, *left)  # all that 80 columns have room for
        if console.width >= 120:
            columns = (what, BarColumn(bar_width=24), figures, speed, TimeElapsedColumn(), *left)
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task(
            "", total=total_steps, completed=first_step, epoch="", figures="", speed=""
        )

    def __enter__(self) -> "TrainProgress":
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    @property
    def images_per_second(self) -> float:
        """Training images per second since the start of this process's part of the run."""
        seconds = time.perf_counter() - self._start
        return (self._step - self._first_step) * self._batch_size / max(seconds, 1e-9)

    def advance(self, step: int) -> None:
        """Says that `step` steps are done."""
        self._step = step
        self._update()

    def end_epoch(self, epoch: int, *, loss: float, clean: float | None, robust: float | None):
        """Shows the figures of a finished epoch (`epoch` counts from 1)."""
        measured = "" if clean is None else f"  val clean {clean:6.1%}  robust {robust:6.1%}"
        self._validated = measured or self._validated
        self._figures = f"loss {loss:.3f}{self._validated}"
        self._update()
        if console.is_terminal:
            return
        seconds = time.perf_counter() - self._start
        left = seconds / max(self._step - self._first_step, 1) * (self._total_steps - self._step)
        console.print(
            f"epoch {epoch}/{self._total_epochs}  loss {loss:.3f}{measured}  "
            f"{self.images_per_second:,.0f} images/s  {duration(left)} left"
        )

    def _update(self) -> None:
        """Tells the bar, which redraws itself ten times a second."""
        done = self._step * self._total_epochs // self._total_steps
        epoch = f"{min(done + 1, self._total_epochs)}/{self._total_epochs}"
        speed = f"{self.images_per_second:,.0f} images/s"
        self._bar.update(
            self._task, completed=self._step, epoch=epoch, figures=self._figures, speed=speed
        )


class MetricLog:
    """One JSON object a step in `metrics.jsonl`, on disk at once, and the same as events.

    `earlier` are the lines that were there, of steps up to the last one.
    """

    def __init__(self, workdir: Path, *, last_step: int):
        """Goes on with both, without what they hold of steps after `last_step`.

        So a resumed run leaves one line a step, also where it repeats what was lost.
        """
        self._path, purged = workdir / "metrics.jsonl", last_step + 1
        lines = read_lines(self._path) if self._path.exists() else []
        self.earlier = [line for line in lines if line.get("step", purged) <= last_step]
        write_text(self._path, "".join(map(_line, self.earlier)))
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
        self._events = workdir / name
        self._add_events(
            {"file_version": "brain.Event:2"}, {"step": purged, "session_log": {"status": "START"}}
        )

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes numbers that belong to a step."""
        with whole(self._path, appends=True) as file:
            file.write(_line({"step": step, **scalars}).encode())
        values = [{"tag": printable(k), "simple_value": value} for k, value in scalars.items()]
        self._add_events({"step": step, "summary": {"value": values}})

    def _add_events(self, *events: Mapping[str, Any]) -> None:
        """Appends them as TensorBoard reads them: length, content, and checksums of both."""
        import tensorboardX.proto.event_pb2 as events_of  # imports torch where there is one
        from tensorboardX.record_writer import masked_crc32c

        records, make = bytearray(), vars(events_of)["Event"]
        for event in events:
            content = make(wall_time=time.time(), **event).SerializeToString()
            for part in (struct.pack("<Q", len(content)), content):
                records += part + struct.pack("<I", masked_crc32c(part))
        with whole(self._events, appends=True) as file:
            file.write(records)


def _line(entry: Mapping[str, Any]) -> str:
    return dumps(sealed(entry)) + "\n"
