"""What can be known to go wrong in a run, said before it starts and before anything is written."""

import contextlib
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from fairmix_jax import data, export
from fairmix_jax.classwise import attack_names, predictions
from fairmix_jax.data import Dataset, batches
from fairmix_jax.lab import config as config_lib
from fairmix_jax.lab import evaluate_run, workdir
from fairmix_jax.lab.schema import Config, as_plain
from fairmix_jax.report.comparable import comparable
from fairmix_jax.report.runs import Run
from fairmix_jax.report.tables import class_numbers
from fairmix_jax.runtime import field_texts, inputs, processes
from fairmix_jax.runtime.errors import UsageError
from fairmix_jax.runtime.json_files import flatten
from fairmix_jax.training import assembly, loop
from fairmix_jax.training.task import Task, build

Load = Callable[[Mapping[str, Any]], Dataset]


def task_of(config: ConfigDict, directory: Path, with_training: bool, load: Load) -> Task | None:
    """Returns the task of a run; `None` if it is trained and evaluated as its config has it.

    Raises a `UsageError` for whatever would end it later and follows from its config, its data, the
    devices here, and what lies in its folder and in that of its hot start. Writes nothing.
    """
    settings = config_lib.settings(config)
    workdir.require(directory, config)
    if with_training:
        if is_done(settings, directory):
            return None
        _require_fitting(settings)
    elif (file := settings.evaluate.weights) not in ("best", "last"):
        exists = processes.from_main(Path(file).expanduser().exists)
        if not exists and not workdir.holds_run(directory):
            raise UsageError(f"evaluate.weights={file!r} does not exist; give another file")
    task = build(settings, load)
    test, given = task.dataset.test, settings.evaluate
    try:
        inputs.check_batch(batches.as_float(test.images), test.labels, task.threat)
        inputs.check_labels(test.labels, len(test.labels), len(task.dataset.class_names))
        labels = test.labels[data.balanced_rows(test.labels, given.num_examples)]
        for choice in attack_names.parse(given.attacks):
            data.balanced_rows(labels, choice.num_examples)
    except (ValueError, UsageError) as error:
        raise UsageError(
            f"data.name={settings.data.name!r} cannot be evaluated with evaluate.attacks="
            f"{given.attacks!r}, evaluate.num_examples={given.num_examples}: {error}"
        ) from error
    assembly.calibration(settings, task)
    if not with_training:
        evaluate_run.load_weights(directory, given.weights, task)
    elif not is_trained(directory):
        loop.devices(settings)
        parts = functools.partial(assembly.assemble, settings, task, total_steps=1)
        with contextlib.suppress(TypeError):  # of a member that asks for values, which training has
            jax.eval_shape(lambda key: parts(key=key).initial_state, jax.random.key(0))
        states = directory / "checkpoints" / "state"
        if not processes.from_main(lambda: any(states.glob("[0-9]*"))):
            assembly.hot_start(settings, task)
    return task


def is_trained(directory: Path) -> bool:
    """Whether a run's training has ended."""
    return "state_sha256" in workdir.recorded(directory)


def is_done(settings: Config, directory: Path) -> bool:
    """Whether a run is trained, evaluated as these settings have it, and its exported model sound.

    What an unpacked study lacks, checkpoints and exported weights, is not missed.
    """
    has_own = processes.from_main((directory / "checkpoints").exists)
    is_whole = not has_own or processes.from_main(functools.partial(export.is_whole, directory))
    is_evaluated = evaluate_run.has_all(
        directory, *map(as_plain, (settings.evaluate, settings.calibration))
    )
    return is_trained(directory) and is_evaluated and is_whole


def _require_fitting(settings: Config) -> None:
    """The evaluation and the report at the end are such as a run that trains can have."""
    given = settings.evaluate
    if given.weights.endswith(".safetensors"):
        raise UsageError(
            f"evaluate.weights={given.weights!r} is for --mode=evaluate; give best or last to train"
        )
    attacks = [choice.name for choice in attack_names.parse(given.attacks)]
    if settings.report == "gaussian":
        from fairmix_jax.report import gaussian  # which takes seconds to import

        gaussian.require(dict(flatten(json.loads(json.dumps(as_plain(settings))))), attacks)


def remembering() -> Load:
    """Returns `data.load` that keeps the last data set, which runs of a sweep mostly share."""
    loaded = functools.lru_cache(maxsize=1)(lambda text: data.load(json.loads(text)))
    return lambda section: loaded(json.dumps(dict(section)))


def of_sweep(
    config: ConfigDict, runs: Sequence[tuple[str, dict[str, Any]]], directory: Path,
    with_training: bool, load: Load | None,
) -> dict[str, Exception]:  # fmt: skip
    """Returns what is wrong with members of a sweep, by name; without `load`, in their configs.

    Data and devices are looked at once for members that differ in the seed only. Raises a
    `UsageError` if it is the sweep, its study, its report, or all of its members.
    """
    _require_study(config, with_training)
    workdir.require(directory, config)
    wrong, sound, seen = dict[str, Exception](), list[Run](), set[str]()
    for name, changes in runs:
        try:
            own = config_lib.override(config, changes)
            workdir.require(directory / name, own)
            plain = json.loads(json.dumps(config_lib.resolved(own)))
            alike = json.dumps(plain | {"seed": 0})
            if load and alike not in seen:
                if task := task_of(own, directory / name, with_training, load):
                    for kind in ("easy", "hard"):
                        class_numbers(config.study, task.dataset.class_names, kind)
            seen.add(alike)
            threat, given = plain["attack"], plain["evaluate"]
            evaluation = {  # as the report will see it, but for the results
                "dataset": plain["data"]["name"], "classes": [], "attacks": {}, "threat": threat,
                "weights": given["weights"], "settings": given,
            }  # fmt: skip
            sound.append(Run(directory / name, dict(flatten(plain)), evaluation, {}))
        except Exception as error:  # whatever it is, the other runs are not to blame
            wrong[name] = error
    if all(isinstance(wrong.get(name), UsageError) for name, _ in runs):
        raise UsageError(f"every run of the sweep would fail, {runs[0][0]}: {wrong[runs[0][0]]}")
    if config.report == "classes":
        comparable(sound, config.study.arms)
    else:
        from fairmix_jax.report import gaussian

        gaussian.require_alike(sound)
    return wrong


def _require_study(config: ConfigDict, with_training: bool) -> None:
    for name, text in config.study.arms.items():
        try:
            config_lib.override(config, field_texts.single(text))
        except UsageError as error:
            raise UsageError(f"study.arms: {name!r}: {error}") from error
    attacks = [choice.name for choice in attack_names.parse(config.evaluate.attacks)]
    for prediction in predictions.parse(config.study) if with_training else ():
        if prediction.attack not in (*attacks, attack_names.UNION):
            raise UsageError(
                f"study.predictions: {prediction.attack!r} of {prediction.name} is not among "
                f"evaluate.attacks={config.evaluate.attacks!r}; add it there"
            )
