"""Evaluation of the weights of a run, or of any other model beside runs."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from ml_collections import ConfigDict
from safetensors import SafetensorError

from fairmix_jax import classwise, cluster, data, export, model_card
from fairmix_jax.checkpoint import Checkpoints
from fairmix_jax.config import resolved
from fairmix_jax.errors import UsageError
from fairmix_jax.experiment import Experiment
from fairmix_jax.export import write_json
from fairmix_jax.types import ApplyFn, Array, Weights
from fairmix_jax.workdir import provenance, record


def run(config: ConfigDict, experiment: Experiment, directory: Path) -> dict[str, Any]:
    """Evaluates the weights in a workdir on the test set and writes the results there.

    Writes `evaluation.json`, `model.safetensors`, `model.json`, `model_card.md`, and what
    `classwise.evaluate` writes. AutoAttack goes on where it was interrupted. Of several
    processes all call this, and the main one writes.

    Returns: the content of `evaluation.json`.

    Raises:
      UsageError: there is no trained model in `directory`, an attack is unknown, or a file is
        evaluated in the folder of a run.
    """
    given = resolved(config)["evaluate"]
    is_file = given["weights"].endswith(".safetensors")
    if is_file:
        _require_no_run(directory, given["weights"])
    weights, facts = load_weights(directory, given["weights"], experiment)
    if is_file:
        cluster.from_main(lambda: directory.mkdir(parents=True, exist_ok=True))
        record(directory)
    rows = data.balanced_rows(experiment.dataset.test.labels, given["num_examples"])
    apply_fn, search = experiment.model.apply, None
    if given["search_dtype"] != "float32":
        search = logits_partial(apply_fn, weights, jnp.dtype(given["search_dtype"]))
    settings = classwise.Settings(
        seed=config.seed, **{k: given[k] for k in classwise.Settings._fields if k in given}
    )
    found = classwise.evaluate(
        logits_partial(apply_fn, weights), *experiment.dataset.test.take(rows),
        class_names=experiment.dataset.class_names, threat=experiment.threat,
        settings=settings._replace(radii=tuple(settings.radii)), rows=rows, search=search,
        directory=directory,
    )  # fmt: skip
    evaluation = {"schema": 1, "dataset": config.data.name, "weights": given["weights"]}
    evaluation |= found | {"settings": given, "provenance": provenance()}
    if not cluster.is_main():
        return evaluation
    export.save_model(directory, weights, experiment.model_card | facts, evaluation)
    model_card.write(directory, evaluation, bounds=experiment.threat.bounds)
    write_json(directory / "evaluation.json", evaluation)
    return evaluation


def save_foreign(
    directory: Path, found: Mapping[str, Any], *, method: str, dataset: str, seed: int = 0
) -> None:
    """Writes what `classwise.evaluate` found of a model not trained here, for reports.

    `report.write` then compares `directory` with runs of the same data, classes and threat.

    Args:
      directory: gets `evaluation.json`, `config.json` and `run.json`.
      found: what `classwise.evaluate` returned.
      method: the model's name in reports.
      dataset: the name of the data, as in `config.data.name`.
      seed: of the model's training; models that share a method are its seeds.

    Raises:
      UsageError: `directory` holds a run.
    """
    if (directory / "checkpoints").exists():
        raise UsageError(f"{str(directory)!r} holds a run; give a folder of its own")
    facts = {"schema": 1, "dataset": dataset, "weights": "foreign", "method": method}
    content = facts | dict(found) | {"provenance": provenance()}

    def write() -> None:
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / "config.json", {"seed": seed})
        write_json(directory / "evaluation.json", content)

    cluster.from_main(write)
    record(directory)


def logits_partial(apply_fn: ApplyFn, weights: Weights, dtype: Any = jnp.float32) -> Partial:
    """Returns the model in a data type as a function of images, with logits of their type."""

    def logits_fn(weights: Weights, images: Array) -> Array:
        logits, _ = apply_fn(weights.params, weights.batch_stats, images.astype(dtype), train=False)
        return logits.astype(images.dtype)

    return Partial(logits_fn, jax.tree.map(lambda leaf: leaf.astype(dtype), weights))


def load_weights(
    workdir: Path, which: str, experiment: Experiment
) -> tuple[Weights, dict[str, Any]]:
    """Returns the weights of a run, and facts about them.

    Args:
      workdir: of the run.
      which: `"best"`, `"last"`, or an exported model as a file, wherever it lies.
      experiment: whose model they fit.

    Raises:
      UsageError: `workdir` holds no sound checkpoint of them, or the file is not of this model.
    """
    if which.endswith(".safetensors"):
        return cluster.from_main(partial(_exported, which, experiment))
    directory = workdir / "checkpoints" / which
    restored = None
    if cluster.from_main(directory.is_dir):
        with Checkpoints(directory, max_to_keep=1) as checkpoints:
            restored = checkpoints.restore_latest(weights_template(experiment))
    if restored is None:
        raise UsageError(
            f"evaluate.weights={which!r} are not in workdir={str(workdir)!r}; "
            "train there first with --mode=train, and for 'best' with data.val_fraction > 0"
        )
    return restored


def _exported(path: str, experiment: Experiment) -> tuple[Weights, dict[str, Any]]:
    try:
        card, own = export.read_card(path), json.loads(json.dumps(experiment.model_card))
        if differing := [name for name in own if card.get(name) != own[name]]:
            raise ValueError(f"its {differing[0]} is {card.get(differing[0])}")
        weights = export.read_weights(path, weights_template(experiment))
    except (OSError, ValueError, SafetensorError) as error:
        raise UsageError(
            f"evaluate.weights={path!r} is not a model of this config: {error}; give its config, "
            "or another file with its card beside it"
        ) from error
    return weights, {name: value for name, value in card.items() if name not in own}


def _require_no_run(directory: Path, path: str) -> None:
    """The folder of a run has the files of its own model."""
    if cluster.from_main((directory / "checkpoints").exists):
        raise UsageError(
            f"workdir={str(directory)!r} holds a run, whose files evaluate.weights={path!r} would "
            "replace; give another --workdir"
        )


def weights_template(experiment: Experiment) -> Weights:
    """Returns zeros with the structure, shapes and types of the model's weights."""
    shapes = jax.eval_shape(lambda: Weights(*experiment.model.init(jax.random.key(0))))
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
