"""Class-wise accuracies and their uncertainty, from integer counts; NumPy, on the host."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from fairmix_jax import intervals


def summarize(class_total: ArrayLike, class_correct: ArrayLike) -> dict[str, float | int]:
    """Returns what the class accuracies `a_c` come to; classes without examples do not count.

    * `average`: the mean of `a_c` (on a balanced test set the ordinary accuracy).
    * `worst_class`: the smallest; `worst_class_index` is its first position.
    * `worst_k`: the mean of the `worst_count(K)` smallest.
    * `gap`: the largest less the smallest. As a difference of risks `1 - a_c` it is the
      class disparity of Zhong and Tandon 2024, arXiv 2411.14424, for two classes
      `|R(+1) - R(-1)|`; adversarial risk under an attack, natural risk of clean images.
    * `std`: the population standard deviation of `a_c`, and of the errors.
    * `nsd`: `std` divided by the mean class error; 0 without any error. (Normalised
      standard deviation, after Xu et al. 2021, arXiv 2010.06121, as their blog has it.)

    Args:
      class_total: `[K]`, examples.
      class_correct: `[K]`, of these correct.

    Raises:
      ValueError: no examples at all, or more correct ones than there are.
    """
    total, correct = np.asarray(class_total), np.asarray(class_correct)
    if not total.any() or (correct > total).any() or (correct < 0).any():
        raise ValueError(f"{correct} of {total} correct are not class counts")
    accuracy = correct / np.where(total > 0, total, 1)
    present = accuracy[total > 0]
    error = float(np.mean(1 - present))
    values = {
        "average": present.mean(),
        "worst_class": present.min(),
        "worst_k": np.sort(present)[: worst_count(len(present))].mean(),
        "gap": present.max() - present.min(),
        "std": present.std(),
        "nsd": present.std() / error if error > 0 else 0.0,
    }
    return {
        **{name: float(value) for name, value in values.items()},
        "worst_class_index": int(np.argmin(np.where(total > 0, accuracy, np.inf))),
    }


def worst_count(num_classes: int) -> int:
    """Returns how many classes `worst_k` averages: a tenth, at least two where there are two."""
    return min(max(2, num_classes // 10), num_classes)


def boundary_error(clean: ArrayLike, robust: ArrayLike) -> np.ndarray:
    """Returns `[K]`: what an attack takes from each class, clean less robust accuracy.

    A class's robust risk is its natural risk plus this.

    Reference: Zhang et al. 2019, arXiv 1901.08573; class by class Xu et al. 2021, arXiv
    2010.06121.
    """
    return np.asarray(clean, float) - np.asarray(robust, float)


def rho(average: float, worst_class: float, *, base: tuple[float, float]) -> float:
    """Returns the relative gain of the worst class plus that of the average over a baseline.

    `(worst - worst_b) / worst_b + (average - average_b) / average_b`; 0 for the baseline
    itself, positive where the worst class gains more than the average loses. Not a number
    where the baseline's worst class or average is 0.

    Args:
      average, worst_class: of the method.
      base: average and worst class of the baseline.

    Reference: the form is recalled from Li and Liu 2023 (WAT, arXiv 2302.04025) and Jin et
    al. 2024 (DAFA); it was not read in either.
    """
    if min(base) <= 0:
        return float("nan")
    return (worst_class - base[1]) / base[1] + (average - base[0]) / base[0]


def mean_interval(values: ArrayLike, *, level: float = 0.95) -> tuple[float, float]:
    """Returns the mean and the half-width of its Student t interval over seeds.

    Args:
      values: one number a seed; with a single one the half-width is infinite.
      level: of the interval.
    """
    sample = np.asarray(values, float)
    if len(sample) < 2:
        return float(sample.mean()), float("inf")
    error = sample.std(ddof=1) / np.sqrt(len(sample))
    return float(sample.mean()), float(special.stdtrit(len(sample) - 1, (1 + level) / 2) * error)


def result(
    class_total: ArrayLike,
    class_correct: ArrayLike,
    class_names: Sequence[str],
    *,
    seconds: float,
) -> dict[str, Any]:
    """Returns one attack's entry of `evaluation.json`.

    `ci95` covers the choice of test images, not the training seed. `worst_class` and `gap`
    are those of the counts, which are biased (see `intervals`); `corrected` has the
    estimates without that bias.
    """
    summary = summarize(class_total, class_correct)
    worst = int(summary.pop("worst_class_index"))
    found = {
        "average": intervals.average(class_total, class_correct),
        "worst_class": intervals.worst_class(class_total, class_correct),
        "gap": intervals.gap(class_total, class_correct),
    }
    return {
        "class_total": np.asarray(class_total).tolist(),
        "class_correct": np.asarray(class_correct).tolist(),
        **summary,
        "worst_class_name": class_names[worst],
        "corrected": {name: found[name].estimate for name in ("worst_class", "gap")},
        "ci95": {name: [interval.low, interval.high] for name, interval in found.items()},
        "seconds": round(seconds, 3),
    }
