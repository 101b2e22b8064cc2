"""Configs: their defaults, their checks, and the plain settings that they become.

The fields are declared in `training.settings` and `lab.schema`; the arguments of members, such as
`rule.gamma`, by the members themselves.
"""

import dataclasses
import difflib
from typing import Any

from ml_collections import ConfigDict, config_dict

from fairmix_jax.classwise import attack_names, predictions
from fairmix_jax.lab import schema
from fairmix_jax.runtime import declared, field_texts, registry
from fairmix_jax.runtime.errors import UsageError, refused
from fairmix_jax.runtime.json_files import flatten
from fairmix_jax.runtime.registry import AXES
from fairmix_jax.training.settings import Member


def default_config() -> ConfigDict:
    """Returns every field with its default, unlocked, for a config file to change and lock.

    A member's argument is `None`, for the default of whichever member is chosen.
    """
    config = ConfigDict(schema.as_plain(schema.Config()))
    config.evaluate.step_size = config_dict.placeholder(float)
    for section, axis in AXES.items():
        for name in registry.names(axis):
            for field, default in registry.parameters(axis, name).items():
                config[section][field] = config_dict.placeholder(type(default))
    return config


def is_smoke(variant: str) -> bool:
    """Returns whether a config's smoke variant is asked for; another is a `ValueError`."""
    if variant not in ("", "smoke"):
        raise ValueError(f"variant {variant!r} is unknown; the only one is ':smoke'")
    return variant == "smoke"


def settings(config: ConfigDict) -> schema.Config:
    """Returns what a config says, as frozen dataclasses in which every default is filled in.

    Raises a `UsageError` if a member is unknown, or lacks an argument that is set, or a value is
    none of its field's choices or range; see `check` for what else is refused.
    """
    found = _read(schema.Config(), config.to_dict())
    declared.check(found)
    given = found.evaluate
    size = given.step_size_at(found.attack.epsilon)
    return dataclasses.replace(found, evaluate=dataclasses.replace(given, step_size=size))


def _read(default: Any, plain: Any, section: str = "") -> Any:
    """Settings like the default ones; what those of a member do not declare, its `make` takes."""
    if not isinstance(plain, dict):
        raise UsageError(f"{section}={declared.shown(plain)} is a section; set a field of it")
    values, rest = {}, dict(plain)
    for field in dataclasses.fields(default):
        if field.name in plain:
            known, value = getattr(default, field.name), rest.pop(field.name)
            is_section = dataclasses.is_dataclass(known)
            values[field.name] = _read(known, value, field.name) if is_section else value
    if isinstance(default, Member):
        axis, name = AXES[section], values["name"]
        is_ours = section != "data" or name in registry.names(axis)
        values["arguments"] = registry.arguments(axis, rest | {"name": name}) if is_ours else {}
    elif rest:
        field = f"{section}.{min(rest)}".lstrip(".")
        remedy = f"{nearest(field)}remove it, see docs/config.md"
        raise UsageError(f"config.{field} is no field of a config; {remedy}")
    return type(default)(**values)


def resolved(config: ConfigDict) -> dict[str, Any]:
    """Returns the `settings` of a config as plain data."""
    return schema.as_plain(settings(config))


def check(config: ConfigDict) -> None:
    """Raises a `UsageError` that names the first field with a wrong value and the remedy."""
    found = settings(config)
    field_texts.expand(found.sweep)
    try:  # which need not have a network's shapes to refuse its size
        registry.load("models", found.model.name)(2, **found.model.arguments)
    except ValueError as error:
        raise UsageError(str(error)) from error
    attack_names.parse(found.evaluate.attacks)
    predictions.parse(vars(found.study))
    _check_batch(found)
    _check_together(found)


def _check_together(found: schema.Config) -> None:
    """Fields of which one says what another may be."""
    mixing, optim = found.mixing, found.optim
    if found.evaluate.weights == "best" and found.data.val_fraction == 0:
        raise UsageError(
            "evaluate.weights='best' needs a validation split; "
            "set data.val_fraction above 0 or evaluate.weights=last"
        )
    if mixing.num_samples > found.batch_size:
        raise UsageError(
            f"mixing.num_samples={mixing.num_samples} is above batch_size={found.batch_size}; give "
            "at most that"
        )
    if optim.decays and len(optim.decays) != len(optim.milestones):
        raise UsageError(
            f"optim.decays={optim.decays} is not one for each of optim.milestones="
            f"{optim.milestones}; give as many"
        )
    if mixing.weights and abs(sum(mixing.weights) - 1) > 1e-6:
        raise UsageError(f"mixing.weights={mixing.weights} is not of sum 1; give e.g. (0.5, 0.5)")
    grace, every = found.launch.asha_grace_epochs, found.validation.every_epochs
    if grace and not (found.data.val_fraction and every <= grace < found.total_epochs):
        raise UsageError(
            f"launch.asha_grace_epochs={grace} needs data.val_fraction > 0 and more epochs than "
            f"that (total_epochs={found.total_epochs}), one of them validated by then "
            f"(validation.every_epochs={every}); give 0 for none"
        )


def _check_batch(found: schema.Config) -> None:
    """A batch divides into all the parts that are asked for."""
    size, parts = found.batch_size, found.num_parts
    for field, number in (("mixing.num_groups", found.mixing.num_groups), ("num_parts", parts)):
        if size % number:
            raise UsageError(f"{field}={number} does not divide batch_size={size}; give a divisor")
    if size // parts % norm_groups(found):
        raise UsageError(
            f"model.norm={found.model.arguments['norm']!r} does not divide batch_size={size} in "
            f"num_parts={parts}; give a divisor"
        )
    if parts > 1 and found.mixing.stage != "before_attack":
        raise UsageError(
            f"num_parts={parts} needs mixing.stage=before_attack, not {found.mixing.stage!r}, "
            "whose partners may lie in another part; give num_parts=1"
        )


def norm_groups(found: schema.Config) -> int:
    """Returns in how many groups of a batch the model normalises: `N` of `batch:N`, else 1."""
    groups = str(found.model.arguments.get("norm")).partition("batch:")[2]
    return int(groups) if groups.isdecimal() else 1


def get(config: ConfigDict, field: str) -> Any:
    """Returns the value of a dotted field name; that there is no such field is a `UsageError`."""
    value = config
    for part in field.split("."):
        if not isinstance(value, ConfigDict) or part not in value:
            known = f"{nearest(field)}`fairmix fields` shows them all"
            raise UsageError(f"{field} is not a config field; {known}")
        value = value[part]
    return value


def nearest(field: str) -> str:
    """Returns which fields have names like this one, for a message; nothing if none has."""
    names = [name for name, _ in flatten(default_config().to_dict())]
    found = ", ".join(difflib.get_close_matches(field, names))
    return found and f"the nearest are {found}; "


def override(config: ConfigDict, changes: dict[str, Any]) -> ConfigDict:
    """Returns a checked copy of the config with some fields changed, of no sweep and no study."""
    run = config.copy_and_resolve_references()
    for field, value in changes.items():
        given = f"sweep: {field}={declared.shown(value)}"
        if isinstance(get(run, field), ConfigDict):
            raise UsageError(f"{given} is a section; set a field of it")
        with refused(f"{given} has the wrong type", "give one like its default"):
            run.update_from_flattened_dict({field: value})
    run.sweep = ""
    run.study = {name: type(value)() for name, value in run.study.items()}
    check(run)
    return run
