"""Reports over any set of runs: class-wise tables, charts, and a page that shows everything."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairmix_jax.progress import console
from fairmix_jax.report import charts, numbers, outcomes, page, rows, runs, tables
from fairmix_jax.report.runs import Comparable, Run, find
from fairmix_jax.tables import markdown, rich_table

__all__ = ["Run", "find", "write"]


_DRAWN = ("classes", "tradeoff", "calibration", "training", "survivors")


def write(directory: Path, workdirs: Sequence[Path], *, show: bool = True) -> None:
    """Writes `directory/report/`: `index.html`, `table.md` and charts as PNG; prints the tables.

    Runs of different data, classes, norms, radii or test images get tables and charts of
    their own, and are never averaged together. What a run lacks is shown as
    missing. `index.html` needs nothing else. Where `directory` has the `config.json` of a
    study, methods have the names of its arms, and a table says what became of its predictions.

    Args:
      directory: where to.
      workdirs: runs, or folders with runs somewhere below.
      show: whether to print.

    Raises:
      UsageError: there is no run, a method has two runs of one seed, or the study's config
        is not valid.
    """
    found = {run.path.resolve(): run for path in workdirs for run in find(path)}
    unfinished = runs.unfinished([directory, *workdirs])
    study = runs.study_of(directory)
    sets = runs.comparable(list(found.values()), study.get("arms", {}))
    panels = [_panel(comparable, study) for comparable in sets]
    output = directory / "report"
    output.mkdir(parents=True, exist_ok=True)
    for name in _DRAWN:
        for old in output.glob(f"{name}*.png"):
            old.unlink()
    page.write(output / "index.html", panels, unfinished)
    drawn = [name for number, panel in enumerate(panels) for name in _draw(output, number, panel)]
    texts = [f"Not done: {name}: {how}" for name, how in unfinished.items()]
    for panel in panels:
        texts += [f"## {panel.runs.title}"] if len(panels) > 1 else []
        texts += [markdown(table) for table in (*panel.tables, *panel.ensembles)]
    (output / "table.md").write_text("\n\n".join(texts) + "\n")
    if show:
        for panel in panels:
            for table in (*panel.tables, *panel.ensembles):
                console.print(rich_table(table))
        console.print(f"report: {output / 'index.html'}  (also table.md, {', '.join(drawn)})")


def _panel(comparable: Comparable, study: Mapping[str, Any]) -> page.Panel:
    headlines = numbers.headlines(comparable)
    found = outcomes.outcomes(comparable, study)
    return page.Panel(
        comparable,
        tables.of_set(comparable, headlines, numbers.differences(comparable), found, study),
        tables.of_ensembles(comparable),
        rows.of_set(comparable, headlines),
    )


def _draw(output: Path, number: int, panel: page.Panel) -> list[str]:
    """Draws the charts that need no choice of one method; returns the names of their files."""
    attack = panel.runs.main_attack
    methods = [group.label for group in panel.runs.groups]
    specs = charts.specs(methods, panel.runs.classes)
    classes = [
        row | {"kind": "attack" if row["attack"] == attack else "clean"}
        for row in panel.rows["classes"]
        if row["attack"] in (attack, "clean")
    ]
    under = {
        name: [row for row in panel.rows[name] if row["attack"] == attack]
        for name in ("tradeoff", "calibration")
    }
    rows_of = {**panel.rows, "classes": classes, **under}
    drawn = []
    for name in _DRAWN:
        if rows_of[name]:
            drawn.append(f"{name}{number + 1 if number else ''}.png")
            is_whole = name in ("training", "survivors")
            title = panel.runs.title + ("" if is_whole else f", {attack}")
            charts.png(output / drawn[-1], specs[name], rows_of[name], title)
    return drawn
