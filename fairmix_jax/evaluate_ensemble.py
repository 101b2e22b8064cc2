"""AutoAttack and its members on the weights of a run."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from fairmix_jax import metrics, suite
from fairmix_jax.attacks import autoattack
from fairmix_jax.attacks import report as attack_report
from fairmix_jax.attacks.ledger import OtherEvaluation
from fairmix_jax.attacks.masking import examine
from fairmix_jax.data import Split
from fairmix_jax.errors import UsageError
from fairmix_jax.experiment import Experiment
from fairmix_jax.progress import AttackProgress
from fairmix_jax.types import ApplyFn, Array, Weights


class Options(NamedTuple):
    """How to evaluate: fields of the config of these names."""

    seed: int
    batch_size: int
    search_dtype: str
    save_adversarial: bool
    masking: bool


def run(
    named: suite.Named,
    experiment: Experiment,
    weights: Weights,
    split: Split,
    rows: np.ndarray,
    directory: Path,
    options: Options,
) -> dict[str, Any]:
    """Attacks the images of `split`, which are `rows` of the test set.

    Writes `directory/verdicts.npz`: for each image its row, label, `robust`, `broken_by`
    (a position in `attacks`, -1 if robust), the class it was pushed into and, if
    `save_adversarial`, the image. While it runs the folder holds what is needed to go on
    after an interruption.

    Returns: an entry of `evaluation.json`, with `detail` and, for a version of AutoAttack,
    `masking`.

    Raises:
      UsageError: the folder holds an interrupted evaluation of other settings or weights.
    """
    images = split.images
    if images.dtype == np.uint8:
        images = images.astype(np.float32) / 255
    apply_fn, search = experiment.model.apply, None
    logits_fn = _logits_fn(apply_fn, weights, jnp.float32)
    if options.search_dtype != "float32":
        search = _logits_fn(apply_fn, weights, jnp.dtype(options.search_dtype))
    with AttackProgress(named.name) as progress:
        try:
            report = autoattack(
                logits_fn, images, split.labels, threat=experiment.threat, version=named.version,
                seed=options.seed, batch_size=options.batch_size, index=rows,
                search=search, workdir=directory, on_progress=progress.update,
            )  # fmt: skip
        except OtherEvaluation as error:
            raise UsageError(str(error)) from error
    _save(directory / "verdicts.npz", report, rows, options.save_adversarial)
    counts, seconds = attack_report.class_counts(report), sum(report.seconds)
    result = metrics.result(*counts, experiment.dataset.class_names, seconds=seconds)
    result["detail"] = attack_report.summary(report)
    if options.masking and isinstance(named.version, str) and named.version != "rand":
        verdict, findings = examine(
            logits_fn, images, split.labels, threat=experiment.threat, report=report,
            seed=options.seed, batch_size=options.batch_size,
        )  # fmt: skip
        result["masking"] = {"verdict": verdict, "findings": [f._asdict() for f in findings]}
    return result


def _logits_fn(apply_fn: ApplyFn, weights: Weights, dtype: Any) -> Partial:
    """The model in a data type, with float32 logits; its weights stay out of the program."""

    def logits_fn(weights: Weights, images: Array) -> Array:
        logits, _ = apply_fn(weights.params, weights.batch_stats, images.astype(dtype), train=False)
        return logits.astype(images.dtype)

    return Partial(logits_fn, jax.tree.map(lambda leaf: leaf.astype(dtype), weights))


def _save(path: Path, report: attack_report.AttackReport, rows: np.ndarray, is_whole: bool):
    path.parent.mkdir(parents=True, exist_ok=True)
    extra: dict[str, Any] = {"adversarial": report.adversarial} if is_whole else {}
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez_compressed(
            file, row=rows, label=report.labels, robust=report.robust,
            broken_by=report.broken_by, attacks=np.asarray(report.attacks),
            prediction=report.predictions, non_finite=report.non_finite, **extra,
        )  # fmt: skip
    part.replace(path)
