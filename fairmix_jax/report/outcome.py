"""The outcome in words: the first sentence of the page and the last one on the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fairmix_jax.classwise import metrics
from fairmix_jax.report.comparable import Comparable
from fairmix_jax.report.differences import AgainstFirst
from fairmix_jax.report.tables import percent

_FEW = 3


def outcome(
    runs: Comparable, rows: Sequence[Mapping[str, Any]], compared: Sequence[AgainstFirst]
) -> str:
    """Returns how good the first method is under the main attack, and whether others are better.

    A method is better or worse if the difference in the worst class is significant, p < 0.05 after
    Holm's adjustment. `rows` are `headlines`, `compared` all differences of the set.
    """
    attack, first = runs.main_attack, runs.methods[0].label
    (row,) = (row for row in rows if (row["attack"], row["method"]) == (attack, first))
    where = "Without an attack" if attack == "clean" else f"Under {attack}"
    if not row["seeds"]:
        return f"{where} '{first}' was not evaluated."
    plain, name = row["plain"], f"'{first}'" if len(runs.methods) > 1 else "the model"
    means = runs.methods[0].under(attack).accuracies.mean(axis=0)
    tied = np.count_nonzero(means == np.nanmin(means)) - 1
    worst = row["worst_name"] + (f" (and {tied} more)" if tied else "")
    results = runs.methods[0].under(attack).results
    is_balanced = all(metrics.is_balanced(result["class_total"]) for result in results)
    mean = "" if is_balanced else f", {percent(plain['average'])} % on average over classes"
    levels = (
        f"{where} {name} classifies {percent(plain['overall'])} % of the test images correctly"
        f"{mean}, and {percent(plain['worst_class'])} % of its worst class, {worst}."
    )
    pairs = [pair for pair in compared if pair.attack == attack]
    return f"{levels} {_against(pairs)}" if pairs else levels


def _against(pairs: Sequence[AgainstFirst]) -> str:
    """Says which methods have a better or a worse worst class than the first one."""
    if len(pairs) == 1:
        return _one(pairs[0])
    better, worse = [], []
    for pair in pairs:
        if pair.adjusted["worst_class"] < 0.05:
            is_better = pair.differences["worst_class"].interval.estimate > 0
            (better if is_better else worse).append(pair.method)
    return (
        f"Of the {len(pairs)} methods compared with it, {_named(better)} a significantly better "
        f"worst class, and {_named(worse)} a significantly worse one{_networks(pairs)}."
    )


def _one(pair: AgainstFirst) -> str:
    found, p = pair.differences["worst_class"].interval, pair.adjusted["worst_class"]
    low, estimate, high = (percent(number, "+") for number in found)
    significant = "significant" if p < 0.05 else "not significant"
    return (
        f"'{pair.method}' changes the worst class by {estimate} points [{low}, {high}], which is "
        f"{significant} (p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}){_networks([pair])}."
    )


def _named(methods: Sequence[str]) -> str:
    if not methods:
        return "no method has"
    verb = "has" if len(methods) == 1 else "have"
    names = " and ".join(f"'{method}'" for method in methods)
    return f"{names} {verb}" if len(methods) <= _FEW else f"{len(methods)} have"


def _networks(pairs: Sequence[AgainstFirst]) -> str:
    is_one = any(pair.seeds == 1 for pair in pairs)
    return "; with one seed this compares networks, not methods" if is_one else ""
