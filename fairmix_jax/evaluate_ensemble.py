"""AutoAttack and its members on the weights of a run."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from ml_collections import ConfigDict

from fairmix_jax import metrics, suite
from fairmix_jax.attacks import autoattack
from fairmix_jax.attacks import report as attack_report
from fairmix_jax.attacks.masking import examine
from fairmix_jax.data import Split
from fairmix_jax.errors import UsageError
from fairmix_jax.experiment import Experiment
from fairmix_jax.progress import AttackProgress
from fairmix_jax.types import ApplyFn, Array, Weights


def run(
    named: suite.Named,
    config: ConfigDict,
    experiment: Experiment,
    weights: Weights,
    split: Split,
    rows: np.ndarray,
    directory: Path,
) -> dict[str, Any]:
    """Attacks the images of `split`, which are `rows` of the test set.

    Writes `directory/verdicts.npz`: for each image its row, label, `robust`, `broken_by`
    (a position in `attacks`, -1 if robust), the class it was pushed into and, if
    `evaluate.save_adversarial`, the image. While it runs the folder holds what is needed to
    go on after an interruption.

    Returns: an entry of `evaluation.json`, with `detail` and, for a version of AutoAttack,
    `masking`.

    Raises:
      UsageError: the folder holds an interrupted evaluation of other settings or weights.
    """
    images = split.images
    if images.dtype == np.uint8:
        images = images.astype(np.float32) / 255
    logits_fn = _logits_fn(experiment.model.apply, weights, jnp.float32)
    search = None
    if config.evaluate.search_dtype == "bfloat16":
        search = _logits_fn(experiment.model.apply, weights, jnp.bfloat16)
    with AttackProgress(named.name) as progress:
        try:
            report = autoattack(
                logits_fn, images, split.labels, threat=experiment.threat, version=named.version,
                seed=config.seed, batch_size=config.evaluate.batch_size, index=rows,
                search=search, workdir=directory, on_progress=progress.update,
            )  # fmt: skip
        except ValueError as error:
            raise UsageError(str(error)) from error
    _save(directory / "verdicts.npz", report, rows, config.evaluate.save_adversarial)
    counts = attack_report.class_counts(report)
    seconds = sum(report.seconds)
    result = metrics.result(*counts, experiment.dataset.class_names, seconds=seconds)
    result["detail"] = attack_report.summary(report)
    if config.evaluate.masking and isinstance(named.version, str) and named.version != "rand":
        masking = examine(
            logits_fn, images, split.labels, threat=experiment.threat, report=report,
            seed=config.seed, batch_size=config.evaluate.batch_size,
        )  # fmt: skip
        result["masking"] = {
            "verdict": masking.verdict,
            "findings": [finding._asdict() for finding in masking.findings],
        }
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
