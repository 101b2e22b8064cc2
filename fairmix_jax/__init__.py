"""Class-wise fair adversarial training in JAX: mix within the class, attack, count by class.

The main names are here, loaded when they are first asked for. Everything else is in its room; the
table of rooms is in CONTRIBUTING.md.
"""

import importlib
from typing import Any

from fairmix_jax.runtime import VERSION, moved

__version__ = VERSION

_HOMES = {
    "Batch": "types",
    "ThreatModel": "types",
    "TrainState": "types",
    "Weights": "types",
    "apgd": "attacks",
    "apgd_targeted": "attacks",
    "autoattack": "attacks",
    "cross_class_mixup": "mixup",
    "fab_targeted": "attacks",
    "fgsm": "attacks",
    "initial_state": "training.step",
    "load_model": "export",
    "make_train_step": "training.step",
    "pgd": "attacks",
    "robustness_curve": "attacks",
    "same_class_mixup": "mixup",
    "same_class_partners": "mixup",
    "square": "attacks",
    "tune": "runtime.cpu",
}
_MODULES = ("attacks", "calibration", "classwise", "mixup", "theory")

__all__ = [*_HOMES, *_MODULES]

moved.install()


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
