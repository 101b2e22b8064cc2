"""Reports over any set of runs: class-wise tables, charts, and a page that shows everything."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from fairmix_jax.report import audited, chart_rows, differences, headlines, page, runs, tables
from fairmix_jax.report.comparable import Comparable, comparable
from fairmix_jax.report.runs import Run, find
from fairmix_jax.runtime.console import console, printable, working
from fairmix_jax.runtime.json_files import write_text
from fairmix_jax.runtime.tables import as_data, markdown, rich_table

__all__ = ["Run", "find", "write"]


def write(
    directory: Path, workdirs: Sequence[Path], *, show: bool = True, alone: bool = False
) -> None:
    """Writes `directory/report/`: `index.html`, `table.md` and charts as PNG; prints the outcome.

    Runs of different data, classes, norms, radii or test images get tables and charts of
    their own, and are never averaged together. What a run lacks is shown as
    missing. `index.html` needs nothing else. Where `directory` has the `config.json` of a
    study, methods have the names of its arms, and a table says what became of its predictions.
    `workdirs` are runs, or folders with runs somewhere below, which do not count if `alone`. Raises
    a `UsageError` if there is no run, a method has two runs of one seed, or the study's config is
    not valid.
    """
    found = {run.path.resolve(): run for path in workdirs for run in find(path, alone=alone)}
    unfinished = runs.unfinished([directory, *workdirs])
    study = runs.content(directory).get("config", {}).get("study", {})
    sets = comparable(list(found.values()), study.get("arms", {}))
    panels = [_panel(one, study) for one in sets]
    output = directory / "report"
    with working("writing the report") if show else nullcontext():
        page.write(output / "index.html", panels, unfinished)
        page.draw(output, panels)
    texts = [as_data(f"Not done: {name}: {how}") for name, how in unfinished.items()]
    for panel in panels:
        texts += [as_data(f"## {panel.runs.title}")] if len(panels) > 1 else []
        texts += [as_data(panel.outcome), *map(markdown, (*panel.tables, *panel.ensembles))]
    write_text(output / "table.md", "\n\n".join(texts) + "\n")
    if show:
        for name, how in unfinished.items():
            console.print(printable(f"not in the report: {name}: {how}"), soft_wrap=True)
        for panel in panels:
            console.print(rich_table(headlines.short(panel.runs, panel.tables[0])))
            console.print(printable(panel.outcome))
        console.print(f"report: {output / 'index.html'}", soft_wrap=True)
        console.print(f"all tables: {output / 'table.md'}", soft_wrap=True)


def _panel(one: Comparable, study: Mapping[str, Any]) -> page.Panel:
    """A set's headlines, differences, predictions and classes, then the rest."""
    found = headlines.headlines(one)
    compared = differences.against_first(one)
    checked = differences.checked_predictions(one, study)
    shown = [headlines.table(one, found), *audited.tables(one)]
    shown += [differences.table(compared, is_aside=bool(checked))] if compared else []
    shown += [differences.predictions_table(checked)] if checked else []
    shown += [tables.classes(one, study), *tables.confidence(one), *tables.training(one)]
    said = headlines.outcome(one, found, compared)
    return page.Panel(one, said, shown, tables.ensembles(one), chart_rows.all_of(one, found))
