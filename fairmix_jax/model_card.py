"""The model card of a run: what the model is, class by class, and how far to trust it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairmix_jax.tables import Table, markdown

_LIMITS = """Accuracy under an attack is an upper bound of robustness: a stronger attack may find
more. The intervals cover the choice of test images, not the training seed: another seed gives
other numbers, above all for the worst class. Averages over classes hide that some classes are
far less robust; the table does not. The threat model is all that was measured: other norms,
larger radii and natural corruptions were not."""


def write(workdir: Path, evaluation: Mapping[str, Any], *, bounds: tuple[float, float]) -> None:
    """Writes `model_card.md`, Markdown with a YAML head, beside `model.json` and `run.json`.

    Args:
      workdir: of the run.
      evaluation: content of `evaluation.json`.
      bounds: of the pixels.
    """
    card, provenance = (
        json.loads((workdir / name).read_text()) for name in ("model.json", "run.json")
    )
    page = text(evaluation, card, provenance, bounds=bounds)
    (workdir / "model_card.md").write_text(page, encoding="utf-8")


def text(
    evaluation: Mapping[str, Any],
    card: Mapping[str, Any],
    provenance: Mapping[str, Any],
    *,
    bounds: tuple[float, float],
) -> str:
    """Returns the card.

    Args:
      evaluation, card, provenance: contents of `evaluation.json`, `model.json` and
        `run.json`.
      bounds: of the pixels.
    """
    threat, model = evaluation["threat"], card["model"]
    arguments = ", ".join(f"{k}={v}" for k, v in model.items() if k != "name")
    height, width, channels = card["image_shape"]
    parts = [
        "---\nlibrary_name: fairmix_jax\ntags:\n- image-classification\n"
        f"- adversarial-robustness\ndatasets:\n- {evaluation['dataset']}\n---",
        f"# {model['name']} trained on {evaluation['dataset']}",
        f"A `{model['name']}` ({arguments or 'no arguments'}) for images of {height} x {width} "
        f"pixels and {channels} channel{'s' * (channels > 1)}, values in [{bounds[0]:g}, "
        f"{bounds[1]:g}]; any normalisation is inside. The {evaluation['weights']} weights of "
        f"the run, evaluated in the {threat['norm']} ball of radius {threat['epsilon']:.4g}.",
        _headlines(evaluation),
        _classes(evaluation),
        f"## How to use it\n\n```python\nfrom fairmix_jax.export import load_model\n\n"
        'logits_fn, card = load_model("FOLDER")  # images [B, '
        f"{height}, {width}, {channels}] -> logits [B, {len(card['classes'])}]\n```\n\n"
        "`python -m fairmix_jax.torch_export FOLDER OUT` makes a PyTorch module of it.",
        f"## Limits\n\n{_LIMITS}",
        f"## Where it comes from\n\n```\n{' '.join(provenance['argv'])}\n```\n\n"
        f"{provenance['date']}, commit {provenance['commit']}, {provenance['processor']}, "
        f"{provenance['device']}, jax {provenance['versions']['jax']}. All settings: "
        "`config.json`.",
    ]
    return "\n\n".join(parts) + "\n"


def _headlines(evaluation: Mapping[str, Any]) -> str:
    rows = []
    for attack, result in evaluation["attacks"].items():
        cells = [attack]
        for name in ("average", "worst_class", "gap"):
            value = result["corrected"].get(name, result[name])
            low, high = result["ci95"][name]
            cells.append(f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
        masking = result.get("masking", {}).get("verdict", "–")
        rows.append([*cells, f"{result['worst_class_name']}", masking])
    header = ("attack", "average", "worst class", "gap", "which", "masked gradients")
    total = max(sum(result["class_total"]) for result in evaluation["attacks"].values())
    caption = (
        f"Accuracy in %, [95 % interval over {total:,} test images, or the class-balanced subset "
        "of `@`]; worst class and gap without the bias of extremes."
    )
    return markdown(Table(caption, header, rows))


def _classes(evaluation: Mapping[str, Any]) -> str:
    results = evaluation["attacks"]
    rows = [
        [name, *(_share(r["class_correct"][n], r["class_total"][n]) for r in results.values())]
        for n, name in enumerate(evaluation["classes"])
    ]
    return markdown(Table("Accuracy in % of each class.", ["class", *results], rows))


def _share(correct: int, total: int) -> str:
    return f"{100 * correct / total:.1f}" if total else "–"
