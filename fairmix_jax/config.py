"""Checks a config before anything is built, one clear line for each mistake."""

import math
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from fairmix_jax import mixing, plugins, predictions, suite
from fairmix_jax.data import COMMON_FIELDS
from fairmix_jax.errors import UsageError

_CHOICES = {
    "attack.norm": ("linf", "l2"),
    "attack.batch_norm": ("eval", "train"),
    "hot_start.weights": ("best", "last"),
    "mixing.name": mixing.NAMES,
    "mixing.law": ("dirichlet", "uniform"),
    "mixing.stage": ("before_attack", "after_attack", "hidden"),
    "optim.name": ("sgd", "adam"),
    "optim.schedule": ("piecewise", "cosine", "linear", "constant"),
    "evaluate.search_dtype": ("float32", "bfloat16"),
    "report": ("classes", "gaussian"),
    "launch.submitit": ("", "slurm", "local"),
}

_RANGES = {
    "seed": (0, 2**32 - 1),
    "total_epochs": (1, math.inf),
    "batch_size": (1, math.inf),
    "data.val_fraction": (0, 0.9),
    "data.num_train": (0, math.inf),
    "data.crop_padding": (0, math.inf),
    "mixing.num_samples": (1, math.inf),
    "mixing.alpha": (0, math.inf),
    "mixing.probability": (0, 1),
    "mixing.num_groups": (1, math.inf),
    "num_devices": (0, math.inf),
    "num_parts": (1, math.inf),
    "mixing.off_epochs": (0, math.inf),
    "attack.epsilon": (0, math.inf),
    "attack.step_size": (0, math.inf),
    "attack.num_steps": (0, math.inf),
    "awp.gamma": (0, math.inf),
    "awp.warmup_epochs": (0, math.inf),
    "optim.learning_rate": (0, math.inf),
    "optim.momentum": (0, 1),
    "optim.weight_decay": (0, math.inf),
    "optim.decay": (0, 1),
    "optim.warmup": (0, 1),
    "validation.every_epochs": (1, math.inf),
    "validation.num_steps": (0, math.inf),
    "benchmark.rounds": (1, math.inf),
    "benchmark.steps": (1, math.inf),
    "checkpoint.every_epochs": (1, math.inf),
    "evaluate.num_examples": (0, math.inf),
    "evaluate.batch_size": (1, math.inf),
    "evaluate.step_size": (0, math.inf),
    "evaluate.num_restarts": (1, math.inf),
    "launch.num_processes": (1, math.inf),
    "launch.processes_per_node": (1, math.inf),
    "launch.cpus": (1, math.inf),
    "launch.gpus": (0, math.inf),
    "launch.max_running": (0, math.inf),
    "launch.max_failures": (0, math.inf),
    "launch.asha_grace_epochs": (0, math.inf),
    "launch.asha_reduction": (2, math.inf),
    "launch.minutes": (3, math.inf),
}

_AXES = {"model": "models", "base": "bases", "rule": "rules", "averaging": "averaging"}


def check(config: ConfigDict) -> None:
    """Raises a `UsageError` that names the first field with a wrong value and the remedy."""
    for field, choices in _CHOICES.items():
        if get(config, field) not in choices:
            raise UsageError(
                f"{field}={get(config, field)!r} is unknown; choose one of {', '.join(choices)}"
            )
    for field, (low, high) in _RANGES.items():
        value = get(config, field)
        if value is not None and not (low <= value <= high and value < math.inf):
            raise UsageError(f"{field}={value} is out of range; give a number in [{low}, {high}]")
    for section, axis in _AXES.items():
        plugins.arguments(axis, config[section])
    _check_evaluation(config)
    if config.batch_size % config.mixing.num_groups:
        raise UsageError(
            f"mixing.num_groups={config.mixing.num_groups} does not divide "
            f"batch_size={config.batch_size}; give a divisor"
        )
    if config.batch_size % config.num_parts:
        raise UsageError(
            f"num_parts={config.num_parts} does not divide batch_size={config.batch_size}; give a "
            "divisor"
        )
    grace = config.launch.asha_grace_epochs
    if grace and not (config.data.val_fraction and grace < config.total_epochs):
        raise UsageError(
            f"launch.asha_grace_epochs={grace} needs data.val_fraction > 0 and more epochs than "
            f"that (total_epochs={config.total_epochs}); give 0 for none"
        )
    groups = str(config.model.get("norm") or "").partition("batch:")[2]
    if groups.isdigit() and int(groups) and config.batch_size // config.num_parts % int(groups):
        raise UsageError(
            f"model.norm='batch:{groups}' does not divide batch_size={config.batch_size} in "
            f"num_parts={config.num_parts}; give a divisor"
        )
    if config.num_parts > 1 and config.mixing.stage != "before_attack":
        raise UsageError(
            f"num_parts={config.num_parts} needs mixing.stage=before_attack, not "
            f"{config.mixing.stage!r}, whose partners may lie in another part; give num_parts=1"
        )
    if config.evaluate.weights == "best" and config.data.val_fraction == 0:
        raise UsageError(
            "evaluate.weights='best' needs a validation split; "
            "set data.val_fraction above 0 or evaluate.weights=last"
        )


def _check_evaluation(config: ConfigDict) -> None:
    weights = config.evaluate.weights
    if weights not in ("best", "last") and not weights.endswith(".safetensors"):
        raise UsageError(
            f"evaluate.weights={weights!r} is unknown; choose best, last or NAME.safetensors"
        )
    attacks = [named.name for named in suite.parse(config.evaluate.attacks)]
    for prediction in predictions.parse(config.study):
        if prediction.attack not in (*attacks, suite.UNION):
            raise UsageError(
                f"study.predictions: {prediction.attack!r} of {prediction.name} is not among "
                f"evaluate.attacks={config.evaluate.attacks!r}; add it there"
            )
    radii = list(config.evaluate.radii)
    if radii != sorted(set(radii)) or not all(0 < radius < math.inf for radius in radii):
        raise UsageError(
            f"evaluate.radii={tuple(radii)} must be positive and rise, e.g. (0.5, 1.0, 1.5)"
        )


def get(config: ConfigDict, field: str) -> Any:
    """Returns the value of a dotted field name.

    Raises:
      UsageError: there is no such field.
    """
    value = config
    for part in field.split("."):
        if not isinstance(value, ConfigDict) or part not in value:
            raise UsageError(f"{field} is not a config field; see configs/base.py for all fields")
        value = value[part]
    return value


def resolved(config: ConfigDict) -> dict[str, Any]:
    """Returns the config as plain data in which every member's default is filled in."""
    plain = config.to_dict()
    for section, axis in _AXES.items():
        chosen = plain[section]
        plain[section] = {"name": chosen["name"]} | plugins.arguments(axis, chosen)
    own = {k: v for k, v in plain["data"].items() if k not in COMMON_FIELDS}
    common = {k: plain["data"][k] for k in COMMON_FIELDS}
    is_member = own["name"] in plugins.names("data")
    fields = plugins.arguments("data", own) if is_member else {}
    plain["data"] = {"name": own["name"]} | common | fields
    if plain["evaluate"]["step_size"] is None:
        plain["evaluate"]["step_size"] = plain["attack"]["epsilon"] / 4
    return plain


def flatten(plain: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the fields of a nested dictionary as `("attack.epsilon", value)`."""
    for name, value in plain.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
