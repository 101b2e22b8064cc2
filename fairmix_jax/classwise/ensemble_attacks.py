"""AutoAttack and its members, and what a person sees while they run."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fairmix_jax.attacks import autoattack
from fairmix_jax.attacks import report as attack_report
from fairmix_jax.attacks.ensemble import Status
from fairmix_jax.attacks.masking import examine
from fairmix_jax.attacks.verdict_state import OtherEvaluation
from fairmix_jax.classwise.attack_names import AttackChoice
from fairmix_jax.classwise.image_verdicts import Verdicts
from fairmix_jax.classwise.subject import Judgement, Subject
from fairmix_jax.runtime.console import console, duration, working
from fairmix_jax.runtime.errors import UsageError


def judge(choice: AttackChoice, subject: Subject) -> Judgement:
    """Attacks the images with a version of AutoAttack or one of its members.

    While it runs, the attack's folder holds what is needed to go on after an interruption.
    The facts are `detail`, `non_finite` and, for a version of AutoAttack that is not for randomized
    models, `masking`. Confidences are not known. Raises a `UsageError` if the folder holds an
    interrupted evaluation of other settings or weights.
    """
    images, labels, settings = subject.float_images, subject.split.labels, subject.settings
    common: Any = dict(threat=subject.threat, seed=settings.seed, batch_size=settings.batch_size)
    common["search_precision"] = settings.search_precision
    with _progress(choice.name) as show:
        try:
            report = autoattack(
                subject.logits_fn, images, labels, **common, version=choice.version,
                index=subject.rows, search=subject.search, workdir=subject.folder(choice.name),
                on_progress=show,
            )  # fmt: skip
        except OtherEvaluation as error:
            raise UsageError(str(error)) from error
    detail = attack_report.summary(report)
    facts: dict[str, Any] = {"detail": detail, "non_finite": {"logits": detail["non_finite"]}}
    if settings.masking and isinstance(choice.version, str) and choice.version != "rand":
        with working(f"{choice.name}: examining whether gradients are masked"):
            verdict, findings = examine(subject.logits_fn, images, labels, **common, report=report)
        facts["masking"] = {"verdict": verdict, "findings": [f._asdict() for f in findings]}
    unknown = np.full(len(labels), np.nan, np.float32)
    kept = ("broken_by", "attacks", "non_finite", *["adversarial"] * settings.save_adversarial)
    arrays = {name: np.asarray(getattr(report, name)) for name in kept}
    return Judgement(
        Verdicts(report.predictions, unknown, report.robust), report.robust,
        report.adversarial[subject.examples], sum(report.seconds), facts, arrays,
    )  # fmt: skip


@contextmanager
def _progress(name: str) -> Generator[Callable[[Status], None]]:
    """Shows which attack runs, the survivors so far and the time left at most.

    On a terminal it is one live bar; elsewhere a line once an attack has run for three
    seconds, and one a minute.
    """
    attack, told = "", time.perf_counter()
    what, left_at_most = "{task.fields[text]}", "{task.fields[left]} left at most"
    columns = TextColumn(what, markup=False), BarColumn(24), TimeElapsedColumn(), left_at_most
    bar = Progress(*columns, console=console, disable=not console.is_terminal)
    task = bar.add_task("", total=1.0, text=name, left="")

    def show(status: Status) -> None:
        nonlocal attack, told
        text = f"{name}: {status.attack}, {status.survivors / status.total:.1%} survive"
        left, now = duration(status.seconds_left), time.perf_counter()
        if console.is_terminal:
            bar.update(task, completed=status.share, text=text, left=left)
        elif (status.attack != attack and status.seconds > 3) or now - told > 60:
            attack, told = status.attack, now
            console.print(f"{text}, {status.share:.0%} of it done, {left} left at most")

    with bar:
        yield show
