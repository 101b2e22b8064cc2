"""A RobustBench entry of a run: `python -m fairmix_jax.robustbench WORKDIR --link=... ...`.

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

from fairmix_jax.errors import UsageError

_TEST_IMAGES = {"cifar10": 10_000, "cifar100": 10_000, "imagenet": 5_000}
_STANDARD = ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
_ARCHITECTURES = {
    "preact_resnet": ("PreActResNet-{depth}", 64),
    "resnet": ("ResNet-{depth}", 64),
    "wide_resnet": ("WideResNet-{depth}-{width}", None),
}


def model_info(
    evaluation: Mapping[str, Any],
    card: Mapping[str, Any],
    *,
    link: str,
    name: str,
    authors: str,
    venue: str,
    additional_data: bool = False,
    footnote: str = "",
) -> dict[str, Any]:
    """Returns the entry of a model.

    Args:
      evaluation: content of `evaluation.json`.
      card: content of `model.json`.
      link, name, authors, venue: of the paper; `name` is its title.
      additional_data: whether other images than the training set's were used.
      footnote: shown with the entry.

    Raises:
      UsageError: RobustBench has no such data set or norm.
    """
    dataset, threat = evaluation["dataset"], evaluation["threat"]
    if dataset not in _TEST_IMAGES or threat["norm"] not in ("linf", "l2"):
        raise UsageError(
            f"dataset={dataset!r} with norm={threat['norm']!r} has no leaderboard; RobustBench "
            f"knows {', '.join(_TEST_IMAGES)} with linf or l2"
        )
    robust = _percent(_standard_autoattack(evaluation))
    return {
        "link": link,
        "name": name,
        "authors": authors,
        "additional_data": additional_data,
        "number_forward_passes": 1,
        "dataset": dataset,
        "venue": venue,
        "architecture": _architecture(card),
        "eps": _radius(threat),
        "clean_acc": _percent(_whole(evaluation, "clean")),
        "reported": robust,
        "autoattack_acc": robust,
        "footnote": footnote,
        "unreliable": False,
    }


def _whole(evaluation: Mapping[str, Any], attack: str) -> Mapping[str, Any] | None:
    """The result of an attack on the whole test set."""
    result = evaluation["attacks"].get(attack)
    expected = _TEST_IMAGES[evaluation["dataset"]]
    return result if result and sum(result["class_total"]) == expected else None


def _standard_autoattack(evaluation: Mapping[str, Any]) -> Mapping[str, Any] | None:
    result = _whole(evaluation, "autoattack")
    searched = evaluation.get("settings", {}).get("search_dtype", "float32")
    is_standard = result and list(result["detail"]["broken_by"]) == _STANDARD
    return result if is_standard and searched == "float32" else None


def _percent(result: Mapping[str, Any] | None) -> str | None:
    if result is None:
        return None
    return f"{100 * sum(result['class_correct']) / sum(result['class_total']):.2f}"


def _radius(threat: Mapping[str, Any]) -> str:
    steps = 255 * threat["epsilon"]
    is_steps = threat["norm"] == "linf" and abs(steps - round(steps)) < 1e-3
    return f"{round(steps)}/255" if is_steps else f"{threat['epsilon']:g}"


def _architecture(card: Mapping[str, Any]) -> str:
    model = card["model"]
    text, usual = _ARCHITECTURES.get(model["name"], (model["name"], None))
    name = text.format(**model)
    return name if usual in (None, model["width"]) else f"{name} of width {model['width']}"


def main() -> None:
    """Runs the command line; see the head of this file."""
    parser = argparse.ArgumentParser(description="Prints the RobustBench entry of a run.")
    parser.add_argument("workdir", type=Path, help="folder of an evaluated run")
    for field, text in (
        ("link", "address of the paper"), ("name", "title of the paper"),
        ("authors", "separated by commas"), ("venue", "e.g. 'ICML 2026' or 'arXiv, Nov 2026'"),
    ):  # fmt: skip
        parser.add_argument(f"--{field}", required=True, help=text)
    parser.add_argument("--additional_data", action="store_true", help="other images were used")
    parser.add_argument("--footnote", default="")
    arguments = vars(parser.parse_args())
    workdir = arguments.pop("workdir")
    try:
        files = [workdir / "evaluation.json", workdir / "model.json"]
        if not all(file.is_file() for file in files):
            raise UsageError(f"there is no evaluated run in {str(workdir)!r}; evaluate it first")
        entry = model_info(*(json.loads(file.read_text()) for file in files), **arguments)
    except UsageError as error:
        print(f"robustbench: {error}", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(entry, indent=2))
    if entry["autoattack_acc"] is None:
        print(
            "robustbench: no standard AutoAttack on the whole test set; run --mode=evaluate "
            "--config.evaluate.attacks=clean,autoattack --config.evaluate.num_examples=0",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
