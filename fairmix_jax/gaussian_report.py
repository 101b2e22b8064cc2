"""The report of a study on the two-Gaussian mixture: theory, test set and training side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from safetensors.numpy import load_file
from scipy import special

from fairmix_jax import metrics, report, theory, theory_surrogates
from fairmix_jax.data import gaussian
from fairmix_jax.errors import UsageError
from fairmix_jax.progress import console
from fairmix_jax.tables import Table, markdown, rich_table

_LABELS = {"ce": "logistic", "squared": "squared", "zero_one": "smooth 0-1"}


class Setting(NamedTuple):
    """What a run was asked for; lengths in units of the narrow class's deviation.

    Attributes:
      loss: `"ce"`, `"squared"` or `"zero_one"`.
      ratio, separation, budget: `K`, `m` and `e` of training and test.
      num_samples: `k` of uniform same-class mixing.
      weight_decay: on the slope of the one-dimensional classifier, half of that on each of
        the two columns of the softmax's matrix.
    """

    loss: str
    ratio: float
    separation: float
    budget: float
    num_samples: int
    weight_decay: float

    @property
    def bias(self) -> float:
        """The bias that theory predicts for this loss."""
        arguments = (self.separation - self.budget, self.ratio)
        if self.loss == "squared":
            return 0.0
        if self.loss == "ce":
            s, decay = 1 / self.num_samples, self.weight_decay
            return float(theory_surrogates.logistic_bias(*arguments, s=s, weight_decay=decay)[1])
        return float(theory.optimal_bias(*arguments, s=1 / self.num_samples))


class Outcome(NamedTuple):
    """Bias and disparities `risk(+) - risk(-)`, natural and adversarial."""

    bias: float
    natural: float
    adversarial: float


def write(directory: Path, workdirs: Sequence[Path]) -> None:
    """Writes `report/theory.md` and `report/theory.png` and prints the table.

    For every setting: the bias and the disparities of the trained classifiers, exactly
    from their weights, then measured on the test set under PGD, beside the prediction.

    Args:
      directory: where to.
      workdirs: runs of linear models on the Gaussian mixture.
    """
    groups: dict[Setting, list[tuple[Outcome, Outcome]]] = {}
    runs = [run for path in workdirs for run in report.find(path)]
    for run in runs:
        setting = _setting(run.config)
        groups.setdefault(setting, []).append((_exact(run), _measured(run)))
    table = _table(groups)
    output = directory / "report"
    output.mkdir(parents=True, exist_ok=True)
    (output / "theory.md").write_text(markdown(table) + "\n")
    _figure(output / "theory.png", groups)
    console.print(rich_table(table))
    console.print(f"theory: {output / 'theory.md'} and {output / 'theory.png'}", soft_wrap=True)


def _setting(config: Any) -> Setting:
    mixed = config["mixing.name"] == "same_class"
    return Setting(
        loss=config["base.loss"],
        ratio=config["data.ratio"],
        separation=config["data.separation"],
        budget=round(config["attack.epsilon"] * config["data.dimension"] ** 0.5, 6),
        num_samples=config["mixing.num_samples"] if mixed else 1,
        weight_decay=config["optim.weight_decay"] / 2,
    )


def _exact(run: report.Run) -> Outcome:
    """From the weights: distances along the classifier's own direction, then closed forms."""
    tensors = load_file(str(run.path / "model.safetensors"))
    kernel = np.asarray(tensors["params/Dense_0/kernel"], np.float64)
    direction = kernel[:, 1] - kernel[:, 0]
    length = float(np.linalg.norm(direction))
    minus, plus = (float(value) for value in tensors["params/Dense_0/bias"])
    bias = (plus - minus) / length
    setting = _setting(run.config)
    mean = np.full(len(direction), setting.separation / len(direction) ** 0.5)
    separation, budget = theory_surrogates.project(
        direction, mean, epsilon=run.config["attack.epsilon"]
    )

    def disparity(e: float) -> float:
        """S1, also for a classifier that points the wrong way."""
        plus = special.ndtr(-(separation - e + bias) / setting.ratio)
        return float(plus - special.ndtr(-(separation - e - bias)))

    return Outcome(bias, disparity(0.0), disparity(float(budget)))


def _measured(run: report.Run) -> Outcome:
    """On the test set: of clean images, and under the PGD with the most steps."""
    attacks = run.evaluation["attacks"]
    steps = {int(name[3:]): name for name in attacks if name.startswith("pgd")}
    if "clean" not in attacks or not steps:
        raise UsageError(
            f"{run.path} was evaluated with {', '.join(attacks)}; this report needs clean and a PGD"
        )
    disparities = []
    for name in ("clean", steps[max(steps)]):
        minus, plus = np.divide(attacks[name]["class_correct"], attacks[name]["class_total"])
        disparities.append(float(minus - plus))
    return Outcome(float("nan"), *disparities)


def _predicted(setting: Setting) -> Outcome:
    model = (setting.bias, setting.separation, setting.ratio)
    return Outcome(
        setting.bias,
        *(float(theory.disparity(*model, budget=e)) for e in (0.0, setting.budget)),
    )


def _table(groups: dict[Setting, list[tuple[Outcome, Outcome]]]) -> Table:
    header = ["loss", "K", "m", "e", "k", "decay", "seeds", "bias trained", "theory"]
    header += [
        f"D {risk} {how}" for risk in ("nat", "adv") for how in ("trained", "test", "theory")
    ]
    rows = []
    for setting, outcomes in groups.items():
        exact = np.array([outcome for outcome, _ in outcomes])
        measured = np.array([outcome for _, outcome in outcomes])
        predicted = _predicted(setting)
        numbers = [f"{value:g}" for value in setting[1:]]
        rows.append(
            [
                _LABELS[setting.loss], *numbers, str(len(outcomes)),
                _cell(exact[:, 0]), f"{predicted.bias:.4f}",
                _cell(exact[:, 1]), _cell(measured[:, 1]), f"{predicted.natural:.4f}",
                _cell(exact[:, 2]), _cell(measured[:, 2]), f"{predicted.adversarial:.4f}",
            ]
        )  # fmt: skip
    caption = (
        "adversarial training on k-sample averages of one class; D = risk(+) - risk(-), mean ± "
        "95 % t interval over seeds; trained: exactly from the weights; test: clean and PGD; "
        "theory: the population optimum, of the 0-1 loss for its smooth version"
    )
    return Table(caption, header, rows)


def _cell(values: np.ndarray) -> str:
    mean, half = metrics.mean_interval(values)
    return f"{mean:.4f} ± {half:.4f}" if np.isfinite(half) else f"{mean:.4f}"


def _figure(path: Path, groups: dict[Setting, list[tuple[Outcome, Outcome]]]) -> None:
    """Disparity against `s` for the first model, and decision lines on its mixture."""
    model = next(iter(groups))
    same = {
        setting: np.array([exact for exact, _ in outcomes])
        for setting, outcomes in groups.items()
        if setting[1:4] == model[1:4]
    }
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    natural, adversarial, plane = figure.subplots(1, 3)
    kinds = dict.fromkeys((s.loss, s.weight_decay) for s in same)
    for color, (loss, decay) in enumerate(kinds):
        label = f"{_LABELS[loss]}, decay {decay:g}" if decay else _LABELS[loss]
        points = [(s, o) for s, o in same.items() if (s.loss, s.weight_decay) == (loss, decay)]
        counts = np.unique(np.concatenate([[1, 4], np.arange(1.0, 4.01, 0.25)]))
        curve = [_predicted(points[0][0]._replace(num_samples=k)) for k in counts]
        for axis, column in ((natural, 1), (adversarial, 2)):
            axis.plot(1 / counts, [o[column] for o in curve], color=f"C{color}", label=label)
            for setting, outcomes in points:
                mean, half = metrics.mean_interval(outcomes[:, column])
                axis.errorbar(
                    1 / setting.num_samples, mean, half if np.isfinite(half) else 0.0,
                    fmt="o", color=f"C{color}", markersize=4, capsize=2,
                )  # fmt: skip
    for axis, what in ((natural, "natural"), (adversarial, "adversarial")):
        axis.axhline(0, color="grey", linewidth=0.5)
        axis.set(xlabel="variance factor s = 1/k", title=f"{what} disparity, risk(+) - risk(-)")
    natural.legend(fontsize=8, title="lines: theory; dots: trained")
    _plane(plane, model, same)
    figure.savefig(path, dpi=120)


def _plane(axis: Any, model: Setting, same: dict[Setting, np.ndarray]) -> None:
    sample = gaussian.make(
        dimension=2, separation=model.separation, ratio=model.ratio, examples_per_class=400,
        test_per_class=1,
    ).train  # fmt: skip
    for label, color in ((0, "C7"), (1, "C8")):
        x, y = sample.images[sample.labels == label].reshape(-1, 2).T
        axis.scatter(x, y, s=4, color=color, alpha=0.4, label=f'class "{"-+"[label]}"')
    ends = np.array([-8.0, 8.0])
    for setting, outcomes in same.items():
        if setting.loss == model.loss and setting.weight_decay == model.weight_decay:
            beta = outcomes[:, 0].mean()
            axis.plot(ends, -beta * 2**0.5 - ends, label=f"trained, k = {setting.num_samples}")
    equal = theory.equal_error_bias(model.separation - model.budget, model.ratio)
    axis.plot(ends, -equal * 2**0.5 - ends, "k--", linewidth=0.8, label="equal error")
    axis.set(xlim=(-5, 7), ylim=(-5, 7), aspect="equal", title=f"{_LABELS[model.loss]} loss")
    axis.legend(fontsize=7)
