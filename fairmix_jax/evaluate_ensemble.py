"""AutoAttack and its members."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.tree_util import Partial

from fairmix_jax import suite
from fairmix_jax.attacks import autoattack
from fairmix_jax.attacks import report as attack_report
from fairmix_jax.attacks.ledger import OtherEvaluation
from fairmix_jax.attacks.masking import examine
from fairmix_jax.data import Split, batches
from fairmix_jax.errors import UsageError
from fairmix_jax.progress import AttackProgress
from fairmix_jax.types import ThreatModel


class Options(NamedTuple):
    """How to evaluate: fields of the config of these names, and where to keep the state.

    `workdir` may be `None`; `rows` are the positions of the images in the test set.
    """

    threat: ThreatModel
    rows: np.ndarray
    workdir: Path | None
    seed: int
    batch_size: int
    masking: bool


def judge(
    named: suite.Named, logits_fn: Partial, split: Split, options: Options, search: Partial | None
) -> tuple[attack_report.AttackReport, dict[str, Any]]:
    """Attacks the images of `split` and examines what it found.

    While it runs, `options.workdir` holds what is needed to go on after an interruption.

    Args:
      named: a version of AutoAttack, or one of its members.
      logits_fn: the model.
      split: images and labels.
      options: how.
      search: a cheaper model to search with, see `attacks.autoattack`.

    Returns: the report, and for `evaluation.json` its `detail` and, for a version of
    AutoAttack, `masking`.

    Raises:
      UsageError: the folder holds an interrupted evaluation of other settings or weights.
    """
    images = batches.as_float(split.images)
    with AttackProgress(named.name) as progress:
        try:
            report = autoattack(
                logits_fn, images, split.labels, threat=options.threat, version=named.version,
                seed=options.seed, batch_size=options.batch_size, index=options.rows,
                search=search, workdir=options.workdir, on_progress=progress.update,
            )  # fmt: skip
        except OtherEvaluation as error:
            raise UsageError(str(error)) from error
    facts: dict[str, Any] = {"detail": attack_report.summary(report)}
    if options.masking and isinstance(named.version, str) and named.version != "rand":
        verdict, findings = examine(
            logits_fn, images, split.labels, threat=options.threat, report=report,
            seed=options.seed, batch_size=options.batch_size,
        )  # fmt: skip
        facts["masking"] = {"verdict": verdict, "findings": [f._asdict() for f in findings]}
    return report, facts
