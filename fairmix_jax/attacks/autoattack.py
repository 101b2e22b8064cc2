"""AutoAttack: the parameter-free ensemble that robustness is reported with."""

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fairmix_jax.attacks.ensemble import checked, ensemble
from fairmix_jax.attacks.report import AttackReport
from fairmix_jax.attacks.stepwise import Randomized, Stepwise, partial_of
from fairmix_jax.types import LogitsFn, ThreatModel

VERSIONS: dict[str, dict[str, dict[str, int]]] = {
    "standard": {"apgd-ce": {}, "apgd-t": {}, "fab-t": {}, "square": {}},
    "plus": {
        "apgd-ce": {"num_restarts": 5},
        "apgd-dlr": {"num_restarts": 5},
        "fab": {"num_restarts": 5},
        "square": {},
        "apgd-t": {},
        "fab-t": {},
    },
    "rand": {"apgd-ce": {"num_draws": 20}, "apgd-dlr": {"num_draws": 20}},
    "fast": {"apgd-ce": {}, "apgd-t": {}},
}
"""Attacks in order, with what differs from the defaults, which are AutoAttack's constants."""

TITLES = {
    "standard": "AutoAttack (standard)",
    "plus": "AutoAttack+ (plus)",
    "rand": "AutoAttack (rand)",
    "fast": "APGD-CE and targeted APGD (not AutoAttack)",
}


def autoattack(
    logits_fn: LogitsFn | Randomized,
    images: Any,
    labels: Any,
    *,
    threat: ThreatModel,
    version: str | Sequence[str] = "standard",
    seed: int = 0,
    batch_size: int = 256,
    workdir: Any = None,
    **options: Any,
) -> AttackReport:
    """Returns which images survive AutoAttack, class by class in `report.summary`.

    `standard` is APGD on the cross-entropy, targeted APGD on the difference of logits
    ratio, targeted FAB and Square; `plus` adds untargeted APGD-DLR and FAB and restarts;
    `rand`, for `Randomized` models, averages gradients over 20 draws. `fast` is the first
    two of `standard`; its number is an upper bound of AutoAttack's and must not be called so.

    With fewer than four classes targeted DLR, and with two untargeted DLR, is undefined;
    the margin takes its place, and the report's notes say so. There are at most `K - 1`
    targets.

    Args:
      logits_fn, images, labels, threat, seed, batch_size, workdir: as in `ensemble`.
      version: a key of `VERSIONS`, or names of `attack_makers`, run in that order.
      **options: further arguments of `ensemble`.

    Raises:
      ValueError: unknown version or attack, and as in `ensemble`.

    Reference: Croce and Hein 2020, arXiv 2003.01690.
    """
    attacks = members(version, threat)
    images, labels = checked(images, labels, threat)
    logits = jax.eval_shape(partial_of(logits_fn), images[:1], jax.random.key(0))
    return ensemble(
        logits_fn, images, labels, threat=threat, attacks=attacks, seed=seed,
        batch_size=batch_size, workdir=workdir,
        notes=_notes(attacks, logits.shape[1]), **options,
    )  # fmt: skip


def robustness_curve(
    logits_fn: LogitsFn | Randomized,
    images: Any,
    labels: Any,
    *,
    threat: ThreatModel,
    epsilons: Sequence[float],
    workdir: Any = None,
    **options: Any,
) -> np.ndarray:
    """Returns `[E, N]` bool: which images are robust at each radius.

    The radii are taken in rising order; an image broken at one is broken at every larger
    one, by the same perturbation, and is not attacked again. Nothing is compiled twice.

    Args:
      threat: norm and bounds; its radius is not used.
      epsilons: `[E]`, rising.
      logits_fn, images, labels, workdir: as in `autoattack`.
      **options: further arguments of `autoattack`.

    Raises:
      ValueError: the radii do not rise, and as in `autoattack`.
    """
    if list(epsilons) != sorted(epsilons):
        raise ValueError(f"epsilons={list(epsilons)} do not rise; sort them")
    robust = np.ones(len(images), bool)
    rows = []
    for number, epsilon in enumerate(epsilons):
        report = autoattack(
            logits_fn, images, labels, threat=dataclasses.replace(threat, epsilon=epsilon),
            candidates=robust, workdir=workdir and Path(workdir) / str(number), **options,
        )  # fmt: skip
        robust = report.robust
        rows.append(robust)
    return np.stack(rows)


@functools.cache
def attack_makers() -> dict[str, Callable[..., Stepwise]]:
    """Returns what makes each attack, by its name in reports and configs.

    They are the `MEMBERS` of the modules in `fairmix_jax.attacks`; each takes `norm` and
    `bounds`, and more of its own.
    """
    package = importlib.import_module("fairmix_jax.attacks")
    modules = (
        importlib.import_module(f"{package.__name__}.{module.name}")
        for module in pkgutil.iter_modules(package.__path__)
    )
    return {
        name: make for module in modules for name, make in getattr(module, "MEMBERS", {}).items()
    }


def members(version: str | Sequence[str], threat: ThreatModel) -> dict[str, Stepwise]:
    """Returns the attacks of a version, or those named, for a norm and bounds.

    Raises:
      ValueError: unknown version or name.
    """
    if isinstance(version, str):
        if version not in VERSIONS:
            raise ValueError(f"version={version!r} is unknown; choose one of {', '.join(VERSIONS)}")
        chosen = VERSIONS[version]
    else:
        chosen = {name: {} for name in version}
    makers = attack_makers()
    for name in chosen:
        if name not in makers:
            raise ValueError(f"attack {name!r} is unknown; choose from {', '.join(makers)}")
    return {
        name: makers[name](norm=threat.norm, bounds=threat.bounds, **arguments)
        for name, arguments in chosen.items()
    }


def _notes(names: Iterable[str], num_classes: int) -> list[str]:
    notes = []
    if "apgd-t" in names and num_classes < 4:
        notes.append(f"{num_classes} classes: apgd-t uses the margin, its DLR needs four")
    if "apgd-dlr" in names and num_classes < 3:
        notes.append(f"{num_classes} classes: apgd-dlr uses the margin, DLR needs three")
    if num_classes < 10:
        targeted = [name for name in names if name in ("apgd-t", "fab-t")]
        if targeted:
            notes.append(f"{' and '.join(targeted)} have {num_classes - 1} targets, not nine")
    return notes
