"""The model card of a run: what the model is, class by class, and how far to trust it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairmix_jax.classwise import metrics
from fairmix_jax.runtime import templates
from fairmix_jax.runtime.json_files import load, write_text
from fairmix_jax.runtime.provenance import command
from fairmix_jax.runtime.tables import MISSING, Table, markdown


def write(workdir: Path, evaluation: Mapping[str, Any], *, bounds: tuple[float, float]) -> None:
    """Writes `model_card.md`, Markdown with a YAML head, beside `model.json` and `run.json`.

    `evaluation` is the content of `evaluation.json`, `bounds` are those of the pixels.
    """
    card, provenance = (load(workdir / name) for name in ("model.json", "run.json"))
    page = templates.render(
        "fairmix_jax.export", "model_card.md.j2",
        evaluation=evaluation, card=card, provenance=provenance, bounds=bounds,
        command=command(provenance["argv"]),
        arguments=", ".join(f"{k}={v}" for k, v in card["model"].items() if k != "name"),
        headlines=markdown(_headlines(evaluation)), classes=markdown(_classes(evaluation)),
    )  # fmt: skip
    write_text(workdir / "model_card.md", page)


def _headlines(evaluation: Mapping[str, Any]) -> Table:
    rows = []
    every = evaluation["attacks"].values()
    overall = [] if all(metrics.is_balanced(r["class_total"]) for r in every) else ["overall"]
    for attack, result in evaluation["attacks"].items():
        cells = [attack]
        for name in ("average", "worst_class", "gap"):
            value = result["corrected"].get(name, result[name])
            low, high = result["ci95"][name]
            cells.append(f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
        share = sum(result["class_correct"]) / sum(result["class_total"])
        worst = f"{100 * result['worst_class']:.1f} ({result['worst_class_name']})"
        cells[2:2] = [*[f"{100 * share:.1f}"] * len(overall), worst]
        cells[-1:-1] = [f"{100 * result['gap']:.1f}"]
        rows.append([*cells, result.get("masking", {}).get("verdict", MISSING)])
    header = (
        "attack", "average", *overall, "worst class", "corrected", "gap", "corrected gap",
        "masked gradients",
    )  # fmt: skip
    total = max(sum(result["class_total"]) for result in evaluation["attacks"].values())
    caption = (
        f"Accuracy in %, with [95 % intervals over {total:,} test images, or N of an attack `@N`]. "
        "Average is the mean over classes. The class in parentheses is the worst one. The smallest "
        "of noisy accuracies tends to be too small, and the gap too large: the corrected columns "
        "estimate the true values."
    )
    return Table(caption, header, rows)


def _classes(evaluation: Mapping[str, Any]) -> Table:
    results, rows = evaluation["attacks"], []
    for n, name in enumerate(evaluation["classes"]):
        counts = [(r["class_correct"][n], r["class_total"][n]) for r in results.values()]
        shares = [f"{100 * right / total:.1f}" if total else MISSING for right, total in counts]
        rows.append([name, *shares])
    return Table("Accuracy in % of each class.", ["class", *results], rows)
