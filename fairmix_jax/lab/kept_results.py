"""Which results of an earlier evaluation still hold."""

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fairmix_jax.classwise import image_verdicts
from fairmix_jax.classwise.attack_names import UNION, parse
from fairmix_jax.data import batches
from fairmix_jax.runtime import VERSION
from fairmix_jax.runtime.console import console
from fairmix_jax.runtime.json_files import read_json
from fairmix_jax.types import ThreatModel

_READ = {
    "any": ("weights", "num_examples"), "clean": (), "fgsm": ("num_restarts", "search_precision"),
    "mifgsm": ("num_restarts", "search_precision"),
    "pgd": ("num_restarts", "step_size", "search_precision"),
    "ensemble": ("search_dtype", "search_precision", "masking", "save_adversarial"),
}  # fmt: skip
"""The settings that an attack of a kind reads; those of any choose weights and images."""
_SAID = {
    "weights_sha256": "the weights",
    "images_sha256": "the images",
    "network": "the options of the network",
}
COMPUTES = ("model", "mean", "std")
"""The fields of a model's card that say what it computes with its weights."""


def identity(
    weights_sha256: str, card: Mapping[str, Any], images: np.ndarray, labels: np.ndarray,
    threat: ThreatModel,
) -> dict[str, Any]:  # fmt: skip
    """Returns what all results of an evaluation hang on: a part of `evaluation.json`.

    `card` describes the network that has the weights; `{}` if the digest tells networks apart.
    """
    return {
        "weights_sha256": weights_sha256,
        "network": json.loads(json.dumps({k: card[k] for k in COMPUTES if k in card})),
        "images_sha256": image_verdicts.fingerprint(labels, batches.as_float(images)),
        "threat": {"norm": threat.norm, "epsilon": threat.epsilon},
        "version": VERSION,
    }


def kept(
    directory: Path, identity: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The `attacks` and the `curve` of the evaluation there that hold for this one.

    They do if the fields of `identity` are the same there, and so are the settings that the attack
    reads, unless they ask for less now. Says what is kept, and what is not, and why.
    """
    path = directory / "evaluation.json"
    found = earlier(directory)
    other = {f for f, value in settings.items() if found["settings"].get(f) != value is not False}
    differing = {k: [f"evaluate.{f}" for f in fs if f in other] for k, fs in _READ.items()}
    if everywhere := [name for name in identity if found.get(name) != identity[name]]:
        everywhere = [*differing["any"], *everywhere]
    held, names = {}, defaultdict(list)
    no_curve = everywhere or differing["pgd"]
    if no_curve and "curve" in found:
        names[no_curve[0]].append("curve")
    for name, result in found["attacks"].items():
        if name != UNION:
            why = (everywhere or differing[parse(name)[0].kind] or [""])[0]
            names[why].append(name)
            held |= {} if why else {name: result}
    for why, chosen in names.items():
        which = _SAID.get(why, why)
        verb = "have" if which != why else "has"
        end = f"not kept, since {which} {verb} changed" if why else "kept; delete the file to redo"
        console.print(f"{path}: {', '.join(chosen)}: {end}")
    return {"attacks": held, "curve": None if no_curve else found.get("curve")}


def earlier(directory: Path) -> dict[str, Any]:
    """Returns the content of `evaluation.json` there, without results if there is none."""
    found = read_json(directory / "evaluation.json", is_remade=True)
    found = {"attacks": {}, "settings": {}} | (found or {})
    return found | {"settings": {"search_precision": "default"} | found["settings"]}  # as it was
