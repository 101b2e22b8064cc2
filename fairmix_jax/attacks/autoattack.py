"""AutoAttack: the parameter-free ensemble that robustness is reported with."""

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fairmix_jax.attacks.ensemble import ensemble
from fairmix_jax.attacks.report import AttackReport
from fairmix_jax.attacks.stepwise import Classifier, Stepwise
from fairmix_jax.types import ThreatModel

VERSIONS: dict[str, dict[str, dict[str, int]]] = {
    "standard": {"apgd-ce": {}, "apgd-t": {}, "fab-t": {}, "square": {}},
    "plus": {name: {"num_restarts": 5} for name in ("apgd-ce", "apgd-dlr", "fab")}
    | {"square": {}, "apgd-t": {}, "fab-t": {}},
    "rand": {"apgd-ce": {"num_draws": 20}, "apgd-dlr": {"num_draws": 20}},
    "fast": {"apgd-ce": {}, "apgd-t": {}},
}
"""Attacks in order, with what differs from the defaults, which are AutoAttack's constants."""


def autoattack(
    logits_fn: Classifier, images: Any, labels: Any, *, threat: ThreatModel,
    version: str | Sequence[str] = "standard", seed: int = 0, batch_size: int = 256,
    workdir: Any = None, **options: Any,
) -> AttackReport:  # fmt: skip
    """Returns which images survive AutoAttack, class by class in `report.summary`.

    `standard` is APGD on the cross-entropy, targeted APGD on the difference of logits
    ratio, targeted FAB and Square; `plus` adds untargeted APGD-DLR and FAB and restarts;
    `rand`, for `Randomized` models, averages gradients over 20 draws. `fast` is the first
    two of `standard`; its number is an upper bound of AutoAttack's and must not be called so.

    Where DLR is undefined, for lack of classes, the margin takes its place, and the report's notes
    say so. There are at most `K - 1` targets.

    `version` is a key of `VERSIONS`, or names of `attack_makers`, run in that order; a
    `ValueError` if unknown. All other arguments and errors are those of `ensemble`.

    Reference: Croce and Hein 2020, arXiv 2003.01690.
    """
    attacks = members(version, threat)
    options |= dict(seed=seed, batch_size=batch_size, workdir=workdir)
    report = ensemble(logits_fn, images, labels, threat=threat, attacks=attacks, **options)
    return report._replace(notes=_notes(attacks, report.num_classes))


def robustness_curve(
    logits_fn: Classifier, images: Any, labels: Any, *, threat: ThreatModel,
    epsilons: Sequence[float], workdir: Any = None, **options: Any,
) -> np.ndarray:  # fmt: skip
    """Returns `[E, N]` bool: which images are robust at each radius.

    An image broken at one radius is broken at every larger one, by the same perturbation, and is
    not attacked again. Nothing is compiled twice. Of `threat` norm and bounds count. All other
    arguments and errors are those of `autoattack`; radii that do not rise are a `ValueError`, too.
    """
    if list(epsilons) != sorted(epsilons):
        raise ValueError(f"epsilons={list(epsilons)} do not rise; sort them")
    rows = [np.ones(len(images), bool)]
    for number, epsilon in enumerate(epsilons):
        options["threat"] = dataclasses.replace(threat, epsilon=epsilon)
        options["workdir"] = workdir and Path(workdir) / str(number)
        report = autoattack(logits_fn, images, labels, candidates=rows[-1], **options)
        rows.append(report.robust)
    return np.stack(rows[1:])


@functools.cache
def attack_makers() -> dict[str, Callable[..., Stepwise]]:
    """Returns the `MEMBERS` of the modules here: what makes each attack, by its name in configs."""
    package, found = importlib.import_module("fairmix_jax.attacks"), {}
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        found |= getattr(importlib.import_module(module.name), "MEMBERS", {})
    return found


def members(version: str | Sequence[str], threat: ThreatModel) -> dict[str, Stepwise]:
    """Returns the attacks of a version, or those named; `ValueError` if unknown."""
    if isinstance(version, str) and version not in VERSIONS:
        raise ValueError(f"version={version!r} is unknown; choose one of {', '.join(VERSIONS)}")
    chosen = VERSIONS[version] if isinstance(version, str) else {name: {} for name in version}
    makers = attack_makers()
    for name in chosen:
        if name not in makers:
            raise ValueError(f"attack {name!r} is unknown; choose from {', '.join(makers)}")
    return {
        name: makers[name](norm=threat.norm, bounds=threat.bounds, **arguments)
        for name, arguments in chosen.items()
    }


def _notes(names: Iterable[str], num_classes: int) -> tuple[str, ...]:
    needs = {"apgd-t": (4, "its DLR needs four"), "apgd-dlr": (3, "DLR needs three")}
    notes = [
        f"{num_classes} classes: {name} uses the margin, {why}"
        for name, (least, why) in needs.items()
        if name in names and num_classes < least
    ]
    targeted = [name for name in names if name in ("apgd-t", "fab-t")]
    if targeted and num_classes < 10:
        notes.append(f"{' and '.join(targeted)} have {num_classes - 1} targets, not nine")
    return tuple(notes)
