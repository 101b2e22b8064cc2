"""Evaluation of the weights of a run, or of any other model beside runs."""

import dataclasses
import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError

from fairmix_jax import classwise, data, export
from fairmix_jax.classwise import image_verdicts
from fairmix_jax.classwise.attack_names import parse
from fairmix_jax.data import batches
from fairmix_jax.export import model_card
from fairmix_jax.lab import kept_results
from fairmix_jax.lab.schema import as_plain
from fairmix_jax.lab.workdir import holds_run, record, recorded
from fairmix_jax.models.described import logits_partial, weights_template
from fairmix_jax.runtime import VERSION, processes, registry
from fairmix_jax.runtime.console import console, working
from fairmix_jax.runtime.errors import UsageError
from fairmix_jax.runtime.json_files import write_json
from fairmix_jax.runtime.provenance import provenance
from fairmix_jax.training import assembly
from fairmix_jax.training.checkpoints import NORMALISATION, digest, stored_weights
from fairmix_jax.training.settings import Settings
from fairmix_jax.training.task import Task
from fairmix_jax.types import CalibrationData, Weights


def run(settings: Settings, task: Task, directory: Path) -> dict[str, Any]:
    """Evaluates the weights in a workdir on the test set and adds the results to those there.

    An attack that is there is kept, and not done again, if weights, images, radius and the settings
    that it reads are the same; what is kept and what is not, and why, is said.
    Writes `evaluation.json`, `model.safetensors`, `model.json`, `model_card.md`, and what
    `classwise.evaluate` writes. AutoAttack goes on where it was interrupted. Of several
    processes all call this, and the main one writes. Returns the content of `evaluation.json`.

    Raises:
      UsageError: there is no trained model in `directory`, an attack is unknown, or a file is
        evaluated in the folder of a run.
    """
    given = settings.evaluate
    weights, facts = load_weights(directory, given.weights, task)
    if not given.weights.endswith(".safetensors"):  # a file's card has that of its own training
        own = {name: getattr(settings.data, name) for name in ("name", "num_train", "val_fraction")}
        facts = facts | {"data": own}
    weights, facts = after_calibration(settings, task, directory, weights, facts)
    before = kept_results.earlier(directory).get("calibration")
    if before and "calibration" not in facts:
        console.print(
            f"{directory}: calibration.name=none replaces the exported model and the evaluation, "
            f"which were calibrated by {before['name']}, by those of the weights as trained; add "
            f"--config.calibration.name={before['name']} to have the calibration back"
        )
    if given.weights.endswith(".safetensors") or not recorded(directory):
        record(directory)
    rows = data.balanced_rows(task.dataset.test.labels, given.num_examples)
    images, labels = task.dataset.test.take(rows)
    identity = kept_results.identity(digest(weights), task.model_card, images, labels, task.threat)
    apply_fn, search = task.model.apply, None
    if given.search_dtype != "float32":
        search = logits_partial(apply_fn, weights, jnp.dtype(given.search_dtype))
    found = classwise.evaluate(
        logits_partial(apply_fn, weights), images, labels,
        class_names=task.dataset.class_names, threat=task.threat,
        settings=dataclasses.replace(given, seed=settings.seed), rows=rows, search=search,
        directory=directory, known=kept_results.kept(directory, identity, as_plain(given)),
    )  # fmt: skip
    evaluation = {
        "schema": 1, "dataset": settings.data.name, "weights": given.weights, **found, **identity,
        "settings": as_plain(given) | {"attacks": found["settings"]["attacks"]},
        "provenance": provenance(), **{k: facts[k] for k in ("calibration",) if k in facts},
    }  # fmt: skip
    if given.weights.endswith(".safetensors"):  # no method of this config trained it
        after = [facts[k]["name"] for k in ("calibration",) if k in facts]
        source = facts.get("source", {})
        name = source.get("zoo") or source.get("file") or export.name_of(given.weights)
        evaluation["method"] = ", ".join([name, *after])
    if processes.is_main():
        export.save_model(directory, weights, task.model_card | facts, evaluation)
        model_card.write(directory, evaluation, bounds=task.threat.bounds)
        write_json(directory / "evaluation.json", evaluation)
    return evaluation


def has_all(directory: Path, settings: Mapping[str, Any], calibration: Mapping[str, Any]) -> bool:
    """Whether the evaluation there was done with these settings and has all of their attacks."""
    found, asked = kept_results.earlier(directory), json.loads(json.dumps(settings))
    is_same = found["settings"] | {"attacks": asked["attacks"]} == asked
    calibrated = {"name": "none"} | found.get("calibration", {})
    is_same &= calibrated | calibration == calibrated
    return is_same and {choice.name for choice in parse(asked["attacks"])} <= set(found["attacks"])


def save_foreign(
    directory: Path | str, found: Mapping[str, Any], *, method: str, dataset: str, seed: int = 0
) -> None:
    """Writes what `classwise.evaluate` found of a model not trained here, for reports.

    `directory` gets `evaluation.json`, `config.json` and `run.json`; `report.write` then compares
    it with runs of the same data (`config.data.name`), classes and threat.

    `method` is the model's name in reports, `seed` that of its training; models that share a
    method are its seeds. Raises a `UsageError` if `directory` holds a run.
    """
    directory = Path(directory)
    if holds_run(directory):
        raise UsageError(f"{str(directory)!r} holds a run; give a folder of its own")
    content = {
        "schema": 1, "dataset": dataset, "weights": "foreign", "method": method, **found,
        "provenance": provenance(),
    }  # fmt: skip
    processes.from_main(lambda: write_json(directory / "config.json", {"seed": seed}))
    processes.from_main(lambda: write_json(directory / "evaluation.json", content))
    record(directory)


def load_weights(workdir: Path, which: str, task: Task) -> tuple[Weights, dict[str, Any]]:
    """Returns weights that fit the task's model, and facts about them.

    `which` are the `"best"` or `"last"` of a run, or an exported model as a file, wherever it lies.
    Raises a `UsageError` if `workdir` has no sound checkpoint of them, or the file does not fit, or
    `workdir` has a run of its own.
    """
    if which.endswith(".safetensors"):
        if holds_run(workdir):
            raise UsageError(  # for its files are those of its own model
                f"workdir={str(workdir)!r} holds a run, whose files evaluate.weights={which!r} "
                "would replace; give another --workdir"
            )
        return processes.from_main(partial(_exported, os.path.expanduser(which), task))
    restored = stored_weights(workdir, which, task.model)
    if restored is None:
        raise UsageError(
            f"evaluate.weights={which!r} are not in workdir={str(workdir)!r}; "
            "train there first with --mode=train, and for 'best' with data.val_fraction > 0"
        )
    for name in NORMALISATION:  # a checkpoint of an earlier version has none
        own, now = restored[1].get(name, task.model_card[name]), task.model_card[name]
        if own != now:
            raise UsageError(
                f"evaluate.weights={which!r} in workdir={str(workdir)!r} were trained on images of "
                f"{name}={own}, those in data.dir have {now}; give the data.dir it was trained with"
            )
    return restored


def after_calibration(
    settings: Settings, task: Task, directory: Path, weights: Weights, facts: dict[str, Any]
) -> tuple[Weights, dict[str, Any]]:
    """Returns the weights after the calibration that the settings choose, and facts with its own.

    The exported model in `directory` is taken if it is the result of the same calibration of the
    same weights. Raises a `UsageError` if the model or the images do not suit the calibration.
    """
    chosen, images = settings.calibration, task.validation.images
    if chosen.name == "none":
        return weights, facts
    calibration = assembly.calibration(settings, task)
    if calibration.reads_validation:
        source = f"evaluate.weights={settings.evaluate.weights!r}"
        assembly.require_unseen(source, facts.get("data", {}), settings.data)
    own = as_plain(chosen) | {
        "of_sha256": digest(weights), "seed": settings.seed, "version": VERSION,
        "threat": {"norm": task.threat.norm, "epsilon": task.threat.epsilon},
        "images_sha256": image_verdicts.fingerprint(
            task.validation.labels, batches.as_float(images)
        ),
    }  # fmt: skip
    if "calibration" in facts:
        own["after"] = facts["calibration"]
    own = json.loads(json.dumps(own))
    if found := processes.from_main(partial(_calibrated_before, directory, own, task)):
        return found[0], facts | {"calibration": found[1]}
    data = CalibrationData(
        task.model.apply, batches.as_float(images), task.validation.labels,
        np.arange(len(images)), task.threat, settings.seed, directory / "calibration",
    )  # fmt: skip
    try:
        on = f": {len(images):,} validation images" if calibration.reads_validation else ""
        with working(f"calibration {chosen.name}{on}"):
            weights, found = calibration.calibrate(weights, data)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if "expected" in found:
        stages = [found[name] for name in ("as_trained", "fitted", "expected")]
        for which in ("average", "worst_class"):
            before, after, expected = (f"{100 * stage[which]:.1f}" for stage in stages)
            console.print(
                f"calibration: {which.replace('_', ' ')} on validation images under attack "
                f"{before} -> {after} %, expected on new images {expected} %"
            )
    return weights, facts | {"calibration": own | found}


def _calibrated_before(
    directory: Path, own: Mapping[str, Any], task: Task
) -> tuple[Weights, dict[str, Any]] | None:
    """The exported model there and what its card says of it, if this calibration made it."""
    try:
        weights, facts = _exported(str(directory / "model.safetensors"), task)
    except UsageError:
        return None
    found = facts.get("calibration", {})
    return (weights, found) if found | own == found else None


def has_weights(workdir: Path, which: str, task: Task) -> bool:
    """Whether `load_weights` has weights of a run to return; those of a file are not looked at."""
    try:
        return which.endswith(".safetensors") or bool(load_weights(workdir, which, task))
    except UsageError:
        return False


def _exported(path: str, task: Task) -> tuple[Weights, dict[str, Any]]:
    try:
        card = registry.completed(export.read_card(path))
        own = json.loads(json.dumps(task.model_card))
        if differing := [name for name in own if card.get(name) != own[name]]:
            raise ValueError(f"its {differing[0]} is {card.get(differing[0])}")
        weights = export.read_weights(path, weights_template(task.model))
    except (OSError, ValueError, SafetensorError) as error:
        raise UsageError(
            f"evaluate.weights={path!r} is not a model of this config: {error}; give its config, "
            "or another file with its card beside it"
        ) from error
    return weights, {name: value for name, value in card.items() if name not in own}
