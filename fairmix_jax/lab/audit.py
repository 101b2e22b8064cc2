"""Models that were trained elsewhere, class by class on one test set, in one report."""

import dataclasses
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from fairmix_jax import classwise, data, export, report
from fairmix_jax.data import batches
from fairmix_jax.lab import config as config_lib
from fairmix_jax.lab import guests, kept_results, sweeps, workdir
from fairmix_jax.lab.evaluate_run import save_foreign
from fairmix_jax.lab.schema import Config, as_plain
from fairmix_jax.methods import class_bias
from fairmix_jax.runtime.console import console, working
from fairmix_jax.runtime.errors import RunsFailed, UsageError, refused
from fairmix_jax.runtime.json_files import read_json, write_json
from fairmix_jax.runtime.sealed import digest
from fairmix_jax.training.task import Task, build

CALIBRATED = "calibrated"  # the folder of a model's results with biases, in its own
_PUBLISHED = ("clean_acc", "autoattack_acc")


def run(config: ConfigDict, models: Sequence[str], directory: Path) -> None:
    """Evaluates models, each in a folder of its own in `directory`, and reports them together.

    With `calibration.name=class_bias` each is evaluated as it is and with biases. Those are fitted
    on a part of the test images, since models of others have mostly seen the training images; all
    models are tested on the rest. A model that fails does not stop the others. What was evaluated
    before is kept where model, images and settings are the same, so that the same command goes on;
    models of earlier commands stay in the report.

    Args:
      models: `FILE.safetensors`, an exported or imported model with its card beside it, or
        `FILE.py:NAME`, a function without arguments that returns a function from images
        `[B, H, W, C]` in the data's bounds to logits `[B, K]`. A model is named by its file, a
        `model.safetensors` by its folder.

    Raises:
      UsageError: there is no model, two have the same name, the config or data do not fit, or the
        folder is that of a sweep, or has a run where a model would go.
      RunsFailed: some models failed; raised once the rest is done.
    """
    settings, directory = config_lib.settings(config), directory.absolute()
    named = _named(models)
    _require_own(directory, named)
    if settings.calibration.name not in ("none", "class_bias"):
        raise UsageError(
            f"calibration.name={settings.calibration.name!r} changes a network's weights, which an "
            "audit does not; give none or class_bias"
        )
    task = build(settings)
    published = _published(settings.audit.published)
    states, others = sweeps.members(directory, list(named))

    def on_change(name: str, state: dict[str, Any]) -> None:
        states[name] = state
        write_json(directory / "sweep.json", {"members": others | states})

    with workdir.held(directory):
        workdir.claim(directory, config)
        for number, (name, source) in enumerate(named.items(), start=1):
            console.print(f"[{number}/{len(named)}] {name}")
            on_change(name, {"status": "running"})
            failed, start = partial(on_change, name), time.monotonic()
            with sweeps.surviving(directory / name, failed), guests.visiting(source):
                _evaluate(source, name, settings, task, directory, published)
                took = round(time.monotonic() - start, 1)
                (directory / name / "error.txt").unlink(missing_ok=True)
                on_change(name, {"status": "done", "seconds": took})
        workdir.record(directory)
        done = [name for name in named if states[name]["status"] == "done"]
        folders = [directory / name for name in (*others, *done)]
        if settings.calibration.name != "none":
            folders += [e.parent for f in folders for e in f.glob(f"{CALIBRATED}/evaluation.json")]
        if folders:
            report.write(directory, folders, alone=True)
    if left := [name for name in named if name not in done]:
        raise RunsFailed(
            f"{len(left)} of {len(named)} models failed: {left[0]}: {states[left[0]]['error']} "
            f"(all in {directory / 'sweep.json'})"
        )


def _named(models: Sequence[str]) -> dict[str, str]:
    """The models by their names."""
    if not models:
        raise UsageError(
            "--mode=audit names no model; let FILE.safetensors or FILE.py:NAME follow the flags"
        )
    found = dict[str, str]()
    for source in models:
        path, _, function = source.partition(".py:")
        own = Path(path)
        name = function or export.name_of(path)
        if not (function or own.suffix == ".safetensors"):
            raise UsageError(f"model {source!r} is no FILE.safetensors and no FILE.py:NAME")
        if not Path(f"{path}.py" if function else path).is_file():
            raise UsageError(f"model {source!r} does not exist; give another file")
        if name == "report":
            raise UsageError("no model may be named 'report'; rename its file or folder")
        if name in found:
            raise UsageError(f"two models are named {name!r}; rename {source!r} or its folder")
        found[name] = source
    return found


def _require_own(directory: Path, names: Iterable[str]) -> None:
    """Nothing of a sweep or a run, which trained what they hold, is to be replaced."""
    earlier = read_json(directory / "sweep.json", is_remade=True) or {"members": {}}
    for name in (*earlier["members"], *names):
        if workdir.holds_run(directory / name):
            raise UsageError(f"{str(directory / name)!r} holds a run; give another --workdir")


def _evaluate(
    source: str, name: str, settings: Config, task: Task, directory: Path,
    published: Mapping[str, Mapping[str, float]],
) -> None:  # fmt: skip
    """Evaluates a model as it is, and with biases where a calibration is chosen."""
    labels, chosen, folder = task.dataset.test.labels, settings.calibration, directory / name
    guest = guests.load(source, task)
    audit = {"model": name, "published": published.get(guest.zoo_name or name, {})}

    def some(rows: np.ndarray) -> np.ndarray:
        return rows[data.balanced_rows(labels[rows], settings.evaluate.num_examples)]

    if chosen.name == "none":
        every = some(np.arange(len(labels)))
        return _judge(guest, folder, every, settings, task, {"method": name, "audit": audit})
    tested, fitted_on = map(some, data.stratified_split(labels, settings.audit.fit_fraction))
    _judge(guest, folder, tested, settings, task, {"method": name, "audit": audit})
    images, own_labels = task.dataset.test.take(fitted_on)
    folder /= CALIBRATED
    with working(f"calibration {chosen.name}: {len(own_labels):,} test images, not tested on"):
        fit = class_bias.calibrate(
            guest.logits_fn, batches.as_float(images), own_labels, threat=task.threat,
            seed=settings.seed, index=fitted_on, workdir=folder / "calibration" / guest.sha256[:16],
            **chosen.arguments,
        )  # fmt: skip
    facts = as_plain(chosen) | {"offsets": fit.offsets.tolist(), "factor": fit.factor}
    sha256 = digest((guest.sha256, fit.offsets))
    moved = guests.Guest(class_bias.with_bias(guest.logits_fn, fit), sha256)
    facts = {"method": f"{name}, {chosen.name}", "audit": audit, "calibration": facts}
    _judge(moved, folder, tested, settings, task, facts)


def _judge(
    guest: guests.Guest, folder: Path, rows: np.ndarray, settings: Config, task: Task,
    facts: dict[str, Any],
) -> None:  # fmt: skip
    """Evaluates a model on rows of the test set, but for what is known, and writes the result."""
    images, labels = task.dataset.test.take(rows)
    identity = kept_results.identity(guest.sha256, {}, images, labels, task.threat)
    given = dataclasses.replace(settings.evaluate, seed=settings.seed)
    found = classwise.evaluate(
        guest.logits_fn, images, labels, class_names=task.dataset.class_names, threat=task.threat,
        settings=given, rows=rows, directory=folder,
        known=kept_results.kept(folder, identity, as_plain(settings.evaluate)),
    )  # fmt: skip
    names = found["settings"]["attacks"]
    found |= identity | {"settings": as_plain(settings.evaluate) | {"attacks": names}} | facts
    save_foreign(
        folder, found, method=facts["method"], dataset=settings.data.name, seed=settings.seed
    )


def _published(folder: str) -> dict[str, dict[str, float]]:
    """Accuracies that RobustBench publishes, by the names of models; it has them in %."""
    path, found = Path(folder).expanduser(), dict[str, dict[str, float]]()
    if folder and not path.is_dir():
        raise UsageError(f"audit.published={folder!r} is no folder; give one with NAME.json in it")
    for file in sorted(path.glob("*.json")) if folder else ():
        with refused(f"audit.published: {str(file)!r} is no model's JSON"):
            content = json.loads(file.read_text())
            texts = {name: str(content[name]) for name in _PUBLISHED if name in content}
            known = {name: float(text) / 100 for name, text in texts.items()}
            if not all(0 <= value <= 1 for value in known.values()):
                raise ValueError(f"accuracies in % are from 0 to 100, not {known}")
            found[file.stem] = known
    return found
