"""The task of a run: data, model and threat, which training and evaluation share."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fairmix_jax import data
from fairmix_jax.data import Dataset, Split
from fairmix_jax.models import exported
from fairmix_jax.models.described import build_model
from fairmix_jax.runtime import declared, processes, registry
from fairmix_jax.runtime.errors import UsageError
from fairmix_jax.training.settings import Settings
from fairmix_jax.types import Model, ThreatModel


class Task(NamedTuple):
    """The fixed surroundings of a run: what is to be learned, and against whom."""

    dataset: Dataset
    train: Split  # a part of the data set's training set
    validation: Split  # the rest of it
    model: Model
    model_card: dict[str, Any]  # what rebuilds it: name, arguments, image shape, mean, ...
    threat: ThreatModel


def build(settings: Settings, load: Callable[..., Dataset] = data.load) -> Task:
    """Returns the data, model and threat that the settings name; `load` is like `data.load`.

    The mean and standard deviation that the model normalises with are those of the training
    part in pixel units, one a channel, to four decimals; float data is not normalised. They are
    those of the exported file that the network starts from, if `hot_start.workdir` names one; and
    of one that `evaluate.weights` names the model is that file's altogether.

    A `UsageError` if a setting has a wrong value, or the data cannot be loaded or is too small.
    """
    declared.check(settings)
    chosen, attack = settings.data, settings.attack
    section = {"name": chosen.name, "dir": chosen.dir, "num_train": chosen.num_train}
    dataset = load(section | dict(chosen.arguments))
    if len(dataset.class_names) < 2:
        raise UsageError(
            f"data.name={chosen.name!r} has the class {dataset.class_names} alone; give data of "
            "two or more, e.g. another data.num_classes"
        )
    whole = dataset.train
    train_rows, validation_rows = data.stratified_split(whole.labels, chosen.val_fraction)
    train = whole.take(train_rows)
    if len(train.labels) < settings.batch_size:
        raise UsageError(
            f"batch_size={settings.batch_size} is larger than the {len(train.labels)} training "
            "examples; give a smaller batch_size"
        )
    if chosen.val_fraction and not len(validation_rows):
        raise UsageError(
            f"data.val_fraction={chosen.val_fraction} leaves no image to validate with; give more, "
            "or 0 with evaluate.weights=last"
        )
    shape, padding = train.images.shape[1:], chosen.crop_padding
    if padding >= min(shape[:2]) and padding:
        raise UsageError(
            f"data.crop_padding={padding} is not below the size of the images, {shape[0]} x "
            f"{shape[1]}; give less, or 0"
        )
    if len(train.labels) // settings.batch_size * settings.total_epochs >= 2**31:
        raise UsageError(
            f"total_epochs={settings.total_epochs} has 2^31 steps or more, which no counter of 32 "
            "bits holds; give fewer"
        )
    _require_small_perturbations(settings, dataset.bounds)
    mean, std = _moments(train.images)
    model_card = {
        "model": {"name": settings.model.name} | dict(settings.model.arguments),
        "image_shape": list(shape),
        "mean": mean,
        "std": std,
        "classes": list(dataset.class_names),
    }
    model_card = _of_file(settings, model_card)
    threat = ThreatModel(attack.norm, attack.epsilon, dataset.bounds)
    validation = whole.take(validation_rows)
    return Task(dataset, train, validation, build_model(model_card), model_card, threat)


def _moments(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, in pixel units; 0 and 1 of float images."""
    if images.dtype != np.uint8:
        return [0.0] * images.shape[-1], [1.0] * images.shape[-1]
    flat = images.reshape(-1, images.shape[-1])
    mean = [round(float(m), 4) for m in flat.mean(axis=0, dtype=np.float64) / 255]
    std = [round(float(s), 4) or 1.0 for s in flat.std(axis=0, dtype=np.float64) / 255]
    return mean, std


def _require_small_perturbations(settings: Settings, bounds: tuple[float, float]) -> None:
    """No L-inf radius and no step is as wide as the pixels' range, as 8 is for 8/255."""
    attack, given, (low, high) = settings.attack, settings.evaluate, bounds
    fields = {
        "attack.epsilon": (attack.epsilon, attack.epsilon),
        "attack.step_size": (attack.step_size, attack.step_size),
        "evaluate.step_size": (given.step_size, given.step_size or 0.0),
        "evaluate.radii": (given.radii, attack.epsilon * max(given.radii, default=0.0)),
    }
    for field, (value, size) in fields.items() if attack.norm == "linf" else ():
        if size >= high - low:
            times = f" times attack.epsilon={attack.epsilon}" if field == "evaluate.radii" else ""
            raise UsageError(
                f"{field}={value}{times} is as wide as the range of pixels, {low:g} to {high:g}; "
                "give less (8/255 is 0.0314)"
            )


def _of_file(settings: Settings, own: dict[str, Any]) -> dict[str, Any]:
    """A run's card, with what the exported file that its settings name says otherwise."""
    field, path = "evaluate.weights", settings.evaluate.weights
    if is_hot_start := not path.endswith(".safetensors"):
        field, path = "hot_start.workdir", settings.hot_start.workdir
    if not path.endswith(".safetensors"):
        return own
    try:
        card = processes.from_main(partial(exported.read_card, os.path.expanduser(path)))
    except OSError as error:
        if is_hot_start:  # its mean and std are the network's also after training
            raise UsageError(f"{field}={path!r}: {error}; put file and card there") from error
        return own  # whoever reads the weights says that they are not there
    card, ours = map(registry.completed, (card, own))
    for name in ("image_shape", "classes", *["model"] * is_hot_start):
        if card[name] != ours[name]:
            raise UsageError(
                f"{field}={path!r} does not fit this config: its {name} is "
                f"{declared.shown(card[name])}, here {declared.shown(ours[name])}; change the "
                "config, or give another file"
            )
    return {name: card[name] for name in own}
