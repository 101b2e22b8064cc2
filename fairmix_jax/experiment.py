"""What training and evaluation build from the same config: data, model, threat."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from fairmix_jax import data, models, plugins
from fairmix_jax.data import Dataset, Split
from fairmix_jax.errors import UsageError
from fairmix_jax.types import Model, ThreatModel


class Experiment(NamedTuple):
    """The fixed surroundings of a run.

    Attributes:
      dataset: as loaded.
      train, validation: disjoint parts of the training set (`train` possibly a subset).
      model: the network as pure functions.
      model_card: what rebuilds `model`: name, arguments, image shape, mean, std, classes.
      threat: norm, radius, pixel bounds.
    """

    dataset: Dataset
    train: Split
    validation: Split
    model: Model
    model_card: dict[str, Any]
    threat: ThreatModel


def build(config: ConfigDict) -> Experiment:
    """Returns the data, model and threat of a config.

    The mean and standard deviation that the model normalises with are those of the
    training part, one a channel; float data is not normalised.

    Raises:
      UsageError: the data cannot be loaded, or is smaller than a batch.
    """
    dataset = data.load(config.data)
    whole = dataset.train
    train_rows, validation_rows = data.stratified_split(whole.labels, config.data.val_fraction)
    train = whole.take(train_rows)
    if len(train.labels) < config.batch_size:
        raise UsageError(
            f"batch_size={config.batch_size} is larger than the {len(train.labels)} training "
            "examples; give a smaller batch_size"
        )
    mean, std = _channel_moments(train.images)
    model_card = {
        "model": dict(name=config.model.name) | plugins.arguments("models", config.model),
        "image_shape": list(train.images.shape[1:]),
        "mean": mean,
        "std": std,
        "classes": list(dataset.class_names),
    }
    return Experiment(
        dataset=dataset,
        train=train,
        validation=whole.take(validation_rows),
        model=build_model(model_card),
        model_card=model_card,
        threat=ThreatModel(config.attack.norm, config.attack.epsilon, dataset.bounds),
    )


def build_model(card: Mapping[str, Any]) -> Model:
    """Returns the model that a `model_card` describes.

    Raises:
      UsageError: the card names an unknown model or arguments it does not take.
    """
    chosen = card["model"]
    make = plugins.load("models", chosen["name"])
    try:
        module = make(len(card["classes"]), **plugins.arguments("models", chosen))
    except ValueError as error:
        raise UsageError(str(error)) from error
    return models.build(module, card["image_shape"], mean=card["mean"], std=card["std"])


def _channel_moments(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel in pixel units, to four decimals.

    Data that is not made of pixels stays in its own units.
    """
    if images.dtype != np.uint8:
        return [0.0] * images.shape[-1], [1.0] * images.shape[-1]
    flat = images.reshape(-1, images.shape[-1])
    mean = flat.mean(axis=0, dtype=np.float64) / 255
    std = flat.std(axis=0, dtype=np.float64) / 255
    return [round(float(m), 4) for m in mean], [round(float(s), 4) or 1.0 for s in std]
