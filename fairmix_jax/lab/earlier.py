"""What the evaluation in a workdir has found before, and what of it still holds."""

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairmix_jax.classwise.attack_names import UNION, parse
from fairmix_jax.runtime.console import console
from fairmix_jax.runtime.json_files import read_json

_READ = {
    "any": ("weights", "num_examples"), "clean": (), "fgsm": ("num_restarts",),
    "mifgsm": ("num_restarts",), "pgd": ("num_restarts", "step_size"),
    "ensemble": ("search_dtype", "masking", "save_adversarial"),
}  # fmt: skip
"""The settings that an attack of a kind reads; those of any choose weights and images."""


def has_all(directory: Path, settings: Mapping[str, Any], calibration: Mapping[str, Any]) -> bool:
    """Whether the evaluation there was done with these settings and has all of their attacks."""
    found, asked = _read(directory / "evaluation.json"), json.loads(json.dumps(settings))
    is_same = found["settings"] | {"attacks": asked["attacks"]} == asked
    calibrated = {"name": "none"} | found.get("calibration", {})
    is_same &= calibrated | calibration == calibrated
    return is_same and {choice.name for choice in parse(asked["attacks"])} <= set(found["attacks"])


def kept(
    directory: Path, identity: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the `attacks` and the `curve` of the evaluation there that hold for this one.

    They do if the fields of `identity` are the same there, and so are the settings that the attack
    reads, unless they ask for less now. Says what is kept, and what is not, and why.
    """
    path = directory / "evaluation.json"
    found = _read(path)
    other = {f for f, value in settings.items() if found["settings"].get(f) != value is not False}
    differing = {k: [f"evaluate.{f}" for f in fs if f in other] for k, fs in _READ.items()}
    if everywhere := [name for name in identity if found.get(name) != identity[name]]:
        everywhere = [*differing["any"], *everywhere]
    held, names = {}, defaultdict(list)
    for name, result in found["attacks"].items():
        if name != UNION:
            why = (everywhere or differing[parse(name)[0].kind] or [""])[0]
            names[why].append(name)
            held |= {} if why else {name: result}
    for why, chosen in names.items():
        end = f"not kept, since {why} is another" if why else "kept; delete it to attack again"
        console.print(f"{path}: {', '.join(chosen)}: {end}")
    return {
        "attacks": held,
        "curve": None if everywhere or differing["pgd"] else found.get("curve"),
    }


def _read(path: Path) -> dict[str, Any]:
    return {"attacks": {}, "settings": {}} | (read_json(path, is_remade=True) or {})
