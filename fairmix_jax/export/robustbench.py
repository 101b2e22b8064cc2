"""A RobustBench entry of a run: `python -m fairmix_jax.export.robustbench WORKDIR --link=... ...`.

Prints the JSON that RobustBench keeps in `model_info/DATASET/THREAT/NAME.json`.
`autoattack_acc` is filled only by a standard AutoAttack in float32 on the whole test set;
what was not run is `null`.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairmix_jax.runtime.errors import UsageError, exits_on_usage_error
from fairmix_jax.runtime.json_files import load

_TEST_IMAGES = {"cifar10": 10_000, "cifar100": 10_000, "imagenet": 5_000}
_STANDARD = ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
_ARCHITECTURES = {
    "preact_resnet": ("PreActResNet-{depth}", 64),
    "resnet": ("ResNet-{depth}", 64),
    "wide_resnet": ("WideResNet-{depth}-{width}", None),
}


def model_info(
    evaluation: Mapping[str, Any], card: Mapping[str, Any], *, link: str, name: str, authors: str,
    venue: str, additional_data: bool = False, footnote: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Returns the entry of a model; raises a `UsageError` if its data or norm have no leaderboard.

    Args:
      evaluation, card: contents of `evaluation.json` and `model.json`.
      link, name, authors, venue: of the paper; `name` is its title.
      additional_data: whether other images than the training set's were used.
    """
    dataset, threat, model = evaluation["dataset"], evaluation["threat"], card["model"]
    if dataset not in _TEST_IMAGES or threat["norm"] not in ("linf", "l2"):
        raise UsageError(
            f"dataset={dataset!r} with norm={threat['norm']!r} has no leaderboard; RobustBench "
            f"knows {', '.join(_TEST_IMAGES)} with linf or l2"
        )
    steps = 255 * threat["epsilon"]
    is_steps = threat["norm"] == "linf" and abs(steps - round(steps)) < 1e-3
    text, usual = _ARCHITECTURES.get(model["name"], (model["name"], None))
    width = "" if usual in (None, model.get("width")) else f" of width {model['width']}"
    robust = _accuracy(evaluation, "autoattack")
    return {
        "link": link, "name": name, "authors": authors, "additional_data": additional_data,
        "number_forward_passes": 1, "dataset": dataset, "venue": venue,
        "architecture": text.format(**model) + width,
        "eps": f"{round(steps)}/255" if is_steps else f"{threat['epsilon']:g}",
        "clean_acc": _accuracy(evaluation, "clean"), "reported": robust, "autoattack_acc": robust,
        "footnote": footnote, "unreliable": False,
    }  # fmt: skip


def _accuracy(evaluation: Mapping[str, Any], attack: str) -> str | None:
    """Returns an accuracy in percent, of the whole test set and a standard attack only."""
    result = evaluation["attacks"].get(attack)
    if not result or sum(result["class_total"]) != _TEST_IMAGES[evaluation["dataset"]]:
        return None
    if attack == "autoattack":
        searched = evaluation.get("settings", {}).get("search_dtype", "float32")
        if list(result["detail"]["broken_by"]) != _STANDARD or searched != "float32":
            return None
    return f"{100 * sum(result['class_correct']) / sum(result['class_total']):.2f}"


@exits_on_usage_error("robustbench")
def main() -> None:
    """Runs the command line; see the head of this file."""
    parser = argparse.ArgumentParser(description="Prints the RobustBench entry of a run.")
    parser.add_argument("workdir", type=Path, help="folder of an evaluated run")
    parser.add_argument("--link", required=True, help="address of the paper")
    parser.add_argument("--name", required=True, help="title of the paper")
    parser.add_argument("--authors", required=True, help="separated by commas")
    parser.add_argument("--venue", required=True, help="e.g. 'ICML 2026' or 'arXiv, Nov 2026'")
    parser.add_argument("--additional_data", action="store_true", help="other images were used")
    parser.add_argument("--footnote", default="")
    arguments = vars(parser.parse_args())
    workdir = arguments.pop("workdir")
    files = [workdir / "evaluation.json", workdir / "model.json"]
    if not all(file.is_file() for file in files):
        raise UsageError(f"there is no evaluated run in {str(workdir)!r}; evaluate it first")
    entry = model_info(*map(load, files), **arguments)
    print(json.dumps(entry, indent=2))
    if entry["autoattack_acc"] is None:
        print(
            "robustbench: no standard AutoAttack on the whole test set; run --mode=evaluate "
            "--config.evaluate.attacks=clean,autoattack --config.evaluate.num_examples=0",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
