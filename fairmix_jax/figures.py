"""Figures, drawn with matplotlib without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fairmix_jax import metrics


def classes(
    path: Path, class_names: Sequence[str], accuracies: Mapping[tuple[str, str], np.ndarray]
) -> None:
    """Draws the accuracy of each class, one panel an attack, one bar a method.

    Args:
      path: of the PNG file.
      class_names: `K` names.
      accuracies: `(method, attack) -> [runs, K]`; with several runs the bar is their mean
        and the whisker its 95 % t interval.
    """
    methods = list(dict.fromkeys(method for method, _ in accuracies))
    attacks = list(dict.fromkeys(attack for _, attack in accuracies))
    size = (max(6.0, 0.9 * len(class_names) + 1), 2.4 * len(attacks) + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(attacks), 1, sharex=True, squeeze=False)
    positions, width = np.arange(len(class_names)), 0.8 / len(methods)
    for axis, attack in zip(axes[:, 0], attacks, strict=True):
        for number, method in enumerate(methods):
            values = np.array([metrics.mean_interval(v) for v in accuracies[method, attack].T])
            axis.bar(
                positions + (number - (len(methods) - 1) / 2) * width,
                100 * values[:, 0],
                width,
                yerr=100 * values[:, 1] if np.isfinite(values).all() else None,
                label=method,
                error_kw={"linewidth": 0.8},
            )
        axis.set(ylabel=f"{attack} accuracy, %", ylim=(0, 100))
        axis.grid(axis="y", linewidth=0.3)
    axes[-1, 0].set_xticks(positions, class_names)
    if len(methods) > 1:
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    figure.savefig(path, dpi=120)


def survivors(path: Path, curves: Mapping[str, Sequence[tuple[str, float, int]]]) -> None:
    """Draws how many images survive while attacks run one after another, one line a method.

    Args:
      path: of the PNG file.
      curves: by method, points `(attack, seconds since it began, survivors)`; the attacks of
        the first are marked.
    """
    figure = Figure(figsize=(8.0, 3.2), layout="constrained")
    axis = figure.subplots()
    for number, (method, curve) in enumerate(curves.items()):
        begun, last, times = 0.0, 0.0, []
        for (attack, seconds, _), (before, *_) in zip(curve, [curve[0], *curve], strict=False):
            if attack != before:
                begun = last
                if number == 0:
                    axis.axvline(begun, color="0.8", linewidth=0.8)
                    axis.text(
                        begun, 0.02, f" {attack}", fontsize=8, transform=axis.get_xaxis_transform()
                    )
            last = begun + seconds
            times.append(last)
        axis.step(times, [count for *_, count in curve], where="post", label=method)
    axis.set(xlabel="seconds", ylabel="images not broken", ylim=(0, None))
    axis.grid(axis="y", linewidth=0.3)
    if len(curves) > 1:
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
