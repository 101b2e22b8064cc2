"""What a person sees while a run goes on: a live bar on a terminal, lines in a log."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fairmix_jax.attacks.ensemble import Status

console = Console(highlight=False)
if not console.is_terminal:
    console = Console(highlight=False, width=160)


class TrainProgress:
    """Shows epoch, loss, accuracies, images/s and time left.

    A context manager. On a terminal it is one live bar; elsewhere one line an epoch.
    """

    def __init__(self, *, first_step: int, total_steps: int, steps_per_epoch: int, batch_size: int):
        """Takes the shape of the run; `first_step` is where it resumes."""
        self._total_steps, self._steps_per_epoch = total_steps, steps_per_epoch
        self._batch_size = batch_size
        self._step, self._first_step, self._start = first_step, first_step, time.perf_counter()
        self._shown = 0.0
        self._figures = self._validated = ""
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[figures]} {task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(
            "", total=total_steps, completed=first_step, epoch="", figures="", speed=""
        )

    def __enter__(self) -> "TrainProgress":
        self._start = time.perf_counter()
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
        """Says that `step` steps are done; redraws at most five times a second."""
        self._step = step
        if console.is_terminal and time.perf_counter() - self._shown > 0.2:
            self._redraw()

    def end_epoch(self, epoch: int, *, loss: float, clean: float | None, robust: float | None):
        """Shows the figures of a finished epoch (`epoch` counts from 1)."""
        measured = "" if clean is None else f"  val clean {clean:6.1%} robust {robust:6.1%}"
        self._validated = measured or self._validated
        self._figures = f"loss {loss:.3f}{self._validated}"
        if console.is_terminal:
            self._redraw()
            return
        seconds = time.perf_counter() - self._start
        left = seconds / max(self._step - self._first_step, 1) * (self._total_steps - self._step)
        console.print(
            f"epoch {epoch}/{self._total_steps // self._steps_per_epoch}  loss {loss:.3f}"
            f"{measured}  {self.images_per_second:,.0f} images/s  {duration(left)} left"
        )

    def _redraw(self) -> None:
        self._shown = time.perf_counter()
        total_epochs = self._total_steps // self._steps_per_epoch
        epoch = min(self._step // self._steps_per_epoch + 1, total_epochs)
        self._bar.update(
            self._task,
            completed=self._step,
            epoch=f"{epoch}/{total_epochs}",
            figures=self._figures,
            speed=f"{self.images_per_second:,.0f} images/s",
        )


class AttackProgress:
    """Shows which attack runs, the survivors so far and the time left at most.

    A context manager. On a terminal it is one live bar; elsewhere a line once an attack has
    run for three seconds, and one a minute.
    """

    def __init__(self, name: str):
        """Takes the name of the evaluation."""
        self._name, self._attack = name, ""
        self._told = time.perf_counter()
        self._bar = Progress(
            TextColumn("{task.fields[text]}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]} left at most"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=1.0, text=name, left="")

    def __enter__(self) -> "AttackProgress":
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def update(self, status: Status) -> None:
        """Shows a `Status` of `attacks.ensemble`."""
        share = status.survivors / status.total
        text = f"{self._name}: {status.attack}, {share:.1%} survive"
        if console.is_terminal:
            self._bar.update(
                self._task, completed=status.share, text=text, left=duration(status.seconds_left)
            )
            return
        now = time.perf_counter()
        is_new = status.attack != self._attack and status.seconds > 3
        if is_new or now - self._told > 60:
            self._attack, self._told = status.attack, now
            left = duration(status.seconds_left)
            console.print(f"{text}, {status.share:.0%} of it done, {left} left at most")


def duration(seconds: float) -> str:
    """Returns a time span as `h:mm:ss`, or `m:ss` below an hour."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
