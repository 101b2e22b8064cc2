"""The report of a study on the two-Gaussian mixture: theory, test set and training side by side."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import vl_convert
from scipy import special

from fairmix_jax import theory
from fairmix_jax.classwise import metrics
from fairmix_jax.data import gaussian
from fairmix_jax.export import read_tensors
from fairmix_jax.report.comparable import method_fields
from fairmix_jax.report.runs import Run, find
from fairmix_jax.runtime import templates
from fairmix_jax.runtime.console import console
from fairmix_jax.runtime.errors import UsageError
from fairmix_jax.runtime.json_files import write_bytes
from fairmix_jax.runtime.tables import MISSING, Table, publish
from fairmix_jax.theory import calibration, surrogates

_LABELS = {"ce": "logistic", "squared": "squared", "zero_one": "smooth 0-1"}
_SETTING = ["loss", "ratio", "separation", "budget", "num_samples", "weight_decay", "t"]
_PREMISES = {
    "data.name": "gaussian", "model.name": "linear", "base.name": "pgd_at", "attack.norm": "linf",
    "rule.name": "none", "averaging.name": "none", "awp.gamma": 0,
    "mixing.name": "same_class", "mixing.law": "uniform", "mixing.weights": [],
    "mixing.probability": 1, "mixing.class_strength": [], "mixing.off_epochs": 0,
    "calibration.name": "class_bias", "calibration.objective": "worst_class",
    "calibration.clean_share": 0,
}  # fmt: skip
"""What theory is of; of mixing and calibration only where there is some."""


def write(directory: Path, workdirs: Sequence[Path], *, alone: bool = False) -> None:
    """Writes `report/theory.md` and `report/theory.png` and prints the table.

    For every setting of `workdirs`, runs of linear models on the Gaussian mixture: the bias and
    the disparities of the trained classifiers, exactly from their weights, then measured on the
    test set under PGD, beside the prediction.
    """
    every = [run for path in workdirs for run in find(path, alone=alone)]
    for run in every:
        require(run.config, run.evaluation["attacks"])
    require_alike(every)
    runs = pd.DataFrame([_setting(run.config) | _trained(run) | _tested(run) for run in every])
    output = directory / "report"
    publish(output / "theory.md", [_table(runs)])
    spec = json.loads(templates.read("fairmix_jax.report", "gaussian.json"))
    spec["datasets"] = {"disparities": list(_disparities(runs)), "plane": list(_plane(runs))}
    spec["hconcat"][-1]["title"] = f"{_LABELS[runs.loss[0]]} loss"
    write_bytes(output / "theory.png", vl_convert.vegalite_to_png(spec, scale=1.5))
    console.print(f"theory: {output / 'theory.md'} and {output / 'theory.png'}", soft_wrap=True)


def require(config: Mapping[str, Any], attacks: Iterable[str]) -> None:
    """Raises a `UsageError` unless theory is of such a run: its flat config, names of attacks."""
    for field, wanted in _PREMISES.items():
        section = field.partition(".")[0]
        is_read = section not in ("mixing", "calibration") or config[f"{section}.name"] != "none"
        if is_read and config.get(field, wanted) != wanted:
            raise UsageError(
                f"report='gaussian' needs {field}={wanted!r}, not {config[field]!r}; give that, "
                "or report=classes"
            )
    if not ({"clean"} <= {*attacks} and any(re.fullmatch(r"pgd\d+", name) for name in attacks)):
        raise UsageError(
            "report='gaussian' needs clean and a PGD of all images in evaluate.attacks, not "
            f"{','.join(attacks)!r}; add them, e.g. clean,pgd20, or give report=classes"
        )


def require_alike(runs: Sequence[Run]) -> None:
    """Raises a `UsageError` if runs of one row differ in more than the seed and the draw."""
    first: dict[tuple[Any, ...], Run] = {}
    for run in runs:
        other = first.setdefault(tuple(_setting(run.config).values()), run)
        own, theirs = method_fields(run), method_fields(other)
        for field in (field for field in own if theirs.get(field) != own[field]):
            raise UsageError(
                f"{other.path} has {field}={theirs.get(field)}, {run.path} has {own[field]}, which "
                "report='gaussian' would take for seeds of one setting; report them apart"
            )


def _setting(config: Mapping[str, Any]) -> dict[str, Any]:
    """The setting of a run; lengths are in units of the narrow class's deviation.

    `ratio`, `separation` and `budget` are `K`, `m` and `e` of training and test, `num_samples` is
    `k` of uniform same-class mixing, `t` the calibration's. `weight_decay` is on the slope of the
    one-dimensional classifier, half of that on each of the two columns of the softmax's matrix.
    """
    mixed = config["mixing.name"] == "same_class"
    return {
        "loss": config["base.loss"],
        "ratio": config["data.ratio"],
        "separation": config["data.separation"],
        "budget": round(config["attack.epsilon"] * config["data.dimension"] ** 0.5, 6),
        "num_samples": config["mixing.num_samples"] if mixed else 1,
        "weight_decay": config["optim.weight_decay"] / 2,
        "t": MISSING if config["calibration.name"] == "none" else f"{config['calibration.t']:g}",
    }


def _trained(run: Run) -> dict[str, float]:
    """Bias and disparities `risk(+) - risk(-)`, natural and adversarial, from the weights.

    Distances are along the classifier's own direction, then follow closed forms: S1, also for a
    classifier that points the wrong way.
    """
    tensors = read_tensors(run.path)
    kernel = np.asarray(tensors["params/Dense_0/kernel"], np.float64)
    direction = kernel[:, 1] - kernel[:, 0]
    minus, plus = (float(value) for value in tensors["params/Dense_0/bias"])
    found = {"bias": (plus - minus) / float(np.linalg.norm(direction))}
    mean = np.full(len(direction), run.config["data.separation"] / len(direction) ** 0.5)
    separation, budget = surrogates.project(direction, mean, epsilon=run.config["attack.epsilon"])
    for risk, margin in (("natural", separation), ("adversarial", separation - budget)):
        of_plus = special.ndtr(-(margin + found["bias"]) / run.config["data.ratio"])
        found[risk] = float(of_plus - special.ndtr(-(margin - found["bias"])))
    return found


def _tested(run: Run) -> dict[str, float]:
    """The disparities on the test set: of clean images, and under the PGD with the most steps."""
    attacks = run.evaluation["attacks"]
    steps = {int(name[3:]): name for name in attacks if re.fullmatch(r"pgd\d+", name)}
    found = {"natural_test": attacks["clean"], "adversarial_test": attacks[steps[max(steps)]]}
    accuracies = {k: np.divide(r["class_correct"], r["class_total"]) for k, r in found.items()}
    return {name: float(minus - plus) for name, (minus, plus) in accuracies.items()}


def _predicted(setting: Any, num_samples: float) -> dict[str, float]:
    """As `_trained`, of the classifier that theory predicts for a loss."""
    model, s = (setting.separation - setting.budget, setting.ratio), 1 / num_samples
    if setting.t != MISSING:
        bias = calibration.calibrated_bias(*model, t=float(setting.t))
    elif setting.loss == "squared":
        bias = 0.0
    elif setting.loss == "ce":
        bias = surrogates.logistic_bias(*model, s=s, weight_decay=setting.weight_decay)[1]
    else:
        bias = theory.optimal_bias(*model, s=s)
    budgets = {"natural": 0.0, "adversarial": setting.budget}
    at = bias, setting.separation, setting.ratio
    found = {risk: float(theory.disparity(*at, budget=of)) for risk, of in budgets.items()}
    return {"bias": float(bias)} | found


def _table(runs: pd.DataFrame) -> Table:
    columns = {"bias trained": "bias", "theory": "bias_theory"}
    for short, risk in (("D nat", "natural"), ("D adv", "adversarial")):
        columns |= {f"{short} trained": risk}
        columns |= {f"{short} {source}": f"{risk}_{source}" for source in ("test", "theory")}
    rows = []
    for _, seeds in runs.groupby(_SETTING, sort=False):
        setting = seeds.iloc[0]
        predicted = _predicted(setting, setting.num_samples)
        cells = {f"{name}_theory": f"{value:.4f}" for name, value in predicted.items()}
        cells |= seeds.drop(columns=_SETTING).apply(_cell).to_dict()
        numbers = [*(f"{setting[name]:g}" for name in _SETTING[1:-1]), setting.t, str(len(seeds))]
        rows.append([_LABELS[setting.loss], *numbers, *(cells[name] for name in columns.values())])
    caption = (
        "adversarial training on k-sample averages of one class; D = risk(+) - risk(-), mean ± "
        "95 % t interval over seeds; trained: exactly from the weights; test: clean and PGD; "
        "theory: the population optimum, of the 0-1 loss for its smooth version; with a t, the "
        "bias of a calibration with that weight of the worst class, on endless validation points"
    )
    header = ["loss", "K", "m", "e", "k", "decay", "t", "seeds", *columns]
    return Table(caption, header, rows)


def _cell(values: pd.Series) -> str:
    mean, half = metrics.mean_interval(values)
    return f"{mean:.4f} ± {half:.4f}" if np.isfinite(half) else f"{mean:.4f}"


def _alike(runs: pd.DataFrame, fields: list[str]) -> pd.DataFrame:
    """The runs that share these fields with the first."""
    return runs[(runs[fields] == runs[fields].iloc[0]).all(axis=1)]


def _disparities(runs: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Returns curves of theory over `s` for the first setting's mixture, and what was trained."""
    titles = {risk: f"{risk} disparity, risk(+) - risk(-)" for risk in ("natural", "adversarial")}
    alike = _alike(runs, ["ratio", "separation", "budget", "t"])
    for _, curve in alike.groupby(["loss", "weight_decay"], sort=False):
        setting = curve.iloc[0]
        decay = f", decay {setting.weight_decay:g}" if setting.weight_decay else ""
        for risk, title in titles.items():
            known = {"loss": _LABELS[setting.loss] + decay, "risk": title}
            for k in curve.num_samples.unique():
                mean, half = metrics.mean_interval(curve[risk][curve.num_samples == k])
                ends = {"low": mean - half, "high": mean + half} if np.isfinite(half) else {}
                yield known | {"s": 1 / k, "trained": mean} | ends
            for k in np.arange(1.0, 4.01, 0.25):
                yield known | {"s": 1 / k, "theory": _predicted(setting, k)[risk]}


def _plane(runs: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """A sample of the first mixture in two dimensions, and the lines where classifiers decide."""
    first = runs.iloc[0]
    sample = gaussian.make(
        dimension=2, separation=first.separation, ratio=first.ratio, examples_per_class=400,
        test_per_class=1,
    ).train  # fmt: skip
    for (x, y), label in zip(sample.images.reshape(-1, 2), sample.labels, strict=True):
        yield {"what": f'class "{"-+"[label]}"', "x": float(x), "y": float(y)}
    alike = _alike(runs, [field for field in _SETTING if field != "num_samples"])
    biases = alike.groupby("num_samples", sort=False).bias.mean()
    lines = {f"trained, k = {k}": bias for k, bias in biases.items()}
    lines["equal error"] = theory.equal_error_bias(first.separation - first.budget, first.ratio)
    for name, bias in lines.items():
        for x in (-8.0, 8.0):
            yield {"what": name, "is_line": True, "x": x, "y": float(-bias * 2**0.5 - x)}
