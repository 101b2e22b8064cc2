"""Reports: class-wise tables and a figure of any set of runs, mean and interval over seeds."""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fairmix_jax import attack_tables, figures, metrics
from fairmix_jax.config import flatten
from fairmix_jax.errors import UsageError
from fairmix_jax.progress import console
from fairmix_jax.tables import Table, markdown, rich_table

_NOT_A_METHOD = (
    "seed", "sweep", "report", "data.dir", "data.draw", "checkpoint.", "evaluate.", "benchmark.",
)  # fmt: skip
_HEADLINES = ("average", "worst_class", "gap")


class Run(NamedTuple):
    """A finished run.

    Attributes:
      path: its workdir.
      config: flat, `{"attack.epsilon": ...}`.
      evaluation: content of `evaluation.json`.
      provenance: content of `run.json`.
    """

    path: Path
    config: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    provenance: Mapping[str, Any]


class Group(NamedTuple):
    """Runs that differ in nothing but the seed."""

    label: str
    runs: list[Run]

    def values(self, attack: str, statistic: str) -> np.ndarray:
        """One number a run."""
        return np.array([run.evaluation["attacks"][attack][statistic] for run in self.runs])

    def class_accuracies(self, attack: str) -> np.ndarray:
        """`[runs, K]`."""
        results = [run.evaluation["attacks"][attack] for run in self.runs]
        return np.array(
            [np.divide(r["class_correct"], np.maximum(r["class_total"], 1)) for r in results]
        )


def write(directory: Path, workdirs: Sequence[Path], *, show: bool = True) -> None:
    """Writes `directory/report/`: `index.html`, `table.md` and figures; prints the tables.

    Args:
      directory: where to.
      workdirs: runs, or folders with runs somewhere below.
      show: whether to print.

    Raises:
      UsageError: there is no run, or runs that cannot be compared: different data,
        classes, threat models or attacks.
    """
    runs = [run for path in workdirs for run in find(path)]
    groups = _group(runs)
    attacks = list(runs[0].evaluation["attacks"])
    tables = [_summary(groups, attacks), _per_class(groups, attacks)]
    for group in groups:
        results = [run.evaluation["attacks"] for run in group.runs]
        tables += attack_tables.tables(group.label, results, runs[0].evaluation["classes"])
    output = directory / "report"
    output.mkdir(parents=True, exist_ok=True)
    figures.classes(
        output / "classes.png",
        runs[0].evaluation["classes"],
        {(g.label, a): g.class_accuracies(a) for g in groups for a in attacks},
    )
    pictures = [output / "classes.png", *_draw_curves(output, groups, attacks)]
    (output / "table.md").write_text("\n\n".join(markdown(t) for t in tables) + "\n")
    (output / "index.html").write_text(_page(runs, tables, pictures))
    if show:
        for table in tables:
            console.print(rich_table(table))
        console.print(f"report: {output / 'index.html'}  (also table.md and classes.png)")


def _draw_curves(output: Path, groups: Sequence[Group], attacks: Sequence[str]) -> list[Path]:
    """A figure of the survivors for each attack that has a curve, of each group's first run."""
    drawn = []
    for attack in attacks:
        results = {g.label: g.runs[0].evaluation["attacks"][attack] for g in groups}
        curves = {label: r["detail"]["curve"] for label, r in results.items() if "detail" in r}
        if curves:
            drawn.append(output / f"{attack}_survivors.png")
            figures.survivors(drawn[-1], curves)
    return drawn


def find(path: Path) -> list[Run]:
    """Returns the evaluated runs in a folder or anywhere below it.

    Raises:
      UsageError: there is none.
    """
    found = sorted(path.rglob("evaluation.json"))
    if not found:
        raise UsageError(f"there is no evaluated run in {str(path)!r}; train one there first")
    return [
        Run(
            file.parent,
            dict(flatten(json.loads((file.parent / "config.json").read_text()))),
            json.loads(file.read_text()),
            json.loads((file.parent / "run.json").read_text()),
        )
        for file in found
    ]


def _group(runs: Sequence[Run]) -> list[Group]:
    """Groups runs by everything but the seed, labelled by what tells the groups apart."""
    for run in runs[1:]:
        for part in ("dataset", "classes", "threat", "weights"):
            if run.evaluation[part] != runs[0].evaluation[part]:
                raise UsageError(
                    f"{run.path} has {part} {run.evaluation[part]!r}, {runs[0].path} has "
                    f"{runs[0].evaluation[part]!r}; report them apart"
                )
        if list(run.evaluation["attacks"]) != list(runs[0].evaluation["attacks"]):
            raise UsageError(
                f"{run.path} and {runs[0].path} were evaluated with different attacks; evaluate "
                "them alike with --mode=evaluate first"
            )
    methods = [
        {k: v for k, v in run.config.items() if not k.startswith(_NOT_A_METHOD)} for run in runs
    ]
    varying = sorted({k for m in methods for k in m if any(o.get(k) != m[k] for o in methods)})
    groups: dict[str, list[Run]] = {}
    for run in runs:
        label = ", ".join(f"{k.removesuffix('.name')}={run.config.get(k)}" for k in varying)
        groups.setdefault(label or run.config["base.name"], []).append(run)
    return [Group(label, members) for label, members in groups.items()]


def _summary(groups: Sequence[Group], attacks: Sequence[str]) -> Table:
    """Headline numbers of each group, and paired differences where the seeds match."""
    seeds = [[run.config["seed"] for run in group.runs] for group in groups]
    rows = []
    for attack in attacks:
        for group, own in zip(groups, seeds, strict=True):
            cells = [_cell(group, attack, statistic) for statistic in _HEADLINES]
            rows.append([attack, group.label, str(len(own)), *cells])
        for group, own in zip(groups[1:], seeds[1:], strict=True):
            if own == seeds[0] and len(own) > 1:
                cells = [
                    _interval(group.values(attack, s) - groups[0].values(attack, s), sign="+")
                    for s in _HEADLINES
                ]
                name = "difference" if len(groups) == 2 else f"{group.label} minus first"
                rows.append([attack, name, str(len(own)), *cells])
    evaluation = groups[0].runs[0].evaluation
    what = (
        "mean ± 95 % t interval over seeds, differences paired by seed"
        if any(len(own) > 1 for own in seeds)
        else "[95 % interval over test images]"
    )
    caption = (
        f"{evaluation['dataset']}, {evaluation['threat']['norm']} radius "
        f"{evaluation['threat']['epsilon']:.4g}, "
        f"{sum(evaluation['attacks'][attacks[0]]['class_total']):,} test images, "
        f"{evaluation['weights']} weights; accuracy in %, {what}"
    )
    return Table(caption, ("attack", "method", "seeds", "average", "worst class", "gap"), rows)


def _cell(group: Group, attack: str, statistic: str) -> str:
    if len(group.runs) > 1:
        return _interval(group.values(attack, statistic))
    result = group.runs[0].evaluation["attacks"][attack]
    low, high = result["ci95"][statistic]
    return f"{100 * result[statistic]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _interval(values: np.ndarray, sign: str = "") -> str:
    mean, half = metrics.mean_interval(values)
    return f"{100 * mean:{sign}.1f} ± {100 * half:.1f}"


def _per_class(groups: Sequence[Group], attacks: Sequence[str]) -> Table:
    columns = [(g, a) for a in attacks for g in groups]
    header = ["class", *(f"{a}: {g.label}" if len(groups) > 1 else a for g, a in columns)]
    means = [g.class_accuracies(a).mean(axis=0) for g, a in columns]
    names = groups[0].runs[0].evaluation["classes"]
    rows = [
        [name, *(f"{100 * mean[number]:.1f}" for mean in means)]
        for number, name in enumerate(names)
    ]
    return Table("accuracy in % of each class, mean over seeds", header, rows)


_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.3rem .7rem;text-align:right;"
    "border-bottom:1px solid #ccc}td:first-child,th:first-child{text-align:left}"
    "caption{text-align:left}.wide{overflow-x:auto}img{max-width:100%}code{font-size:.85em}"
)

_ALT = ("Images not broken while the attacks run", "Accuracy of each class, clean and under attack")


def _page(runs: Sequence[Run], tables: Sequence[Table], pictures: Sequence[Path]) -> str:
    """One HTML file that needs nothing else."""

    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    shown = [
        f"<div class=wide><table><caption>{html.escape(table.caption)}</caption>"
        + row(table.header, "th")
        + "".join(row(cells, "td") for cells in table.rows)
        + "</table></div>"
        for table in tables
    ]
    images = [
        f'<img alt="{_ALT[picture.stem == "classes"]}" src="data:image/png;base64,'
        f'{base64.b64encode(picture.read_bytes()).decode()}">'
        for picture in pictures
    ]
    sources = [
        f"<li><code>{html.escape(' '.join(run.provenance['argv']))}</code><br>"
        f"{html.escape(str(run.path))}: {html.escape(run.provenance['processor'])}, "
        f"{html.escape(run.provenance['device'])}, jax {run.provenance['versions']['jax']}, "
        f"{run.provenance['date']}, commit {run.provenance['commit']}</li>"
        for run in runs
    ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>fairmix_jax report</title><style>{_STYLE}</style>"
        "<h1>Accuracy class by class</h1>"
        + "".join(shown)
        + "".join(images)
        + f"<h2>Where the numbers come from</h2><ul>{''.join(sources)}</ul></html>\n"
    )
