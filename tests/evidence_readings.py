"""What docs/evidence/ reads off the committed results beside their reports, as rows of cells."""

import functools
import json

import numpy as np
from conftest import ROOT
from scipy import stats

from fairmix_jax.report import runs
from fairmix_jax.runtime import json_files

RESULTS = ROOT / "results"


@functools.cache
def packed(study):
    """The lines of a committed study: its own, and those of its runs."""
    return json_files.read_lines(RESULTS / study / runs.PACK)


def members(study):
    return packed(study)[0]["sweep"]["members"]


def hours(study):
    """The row `time`: hours of all runs of a study, and minutes of the quickest and slowest."""
    seconds = [member["seconds"] for member in members(study).values()]
    numbers = {"hours": sum(seconds) / 3600, "least": min(seconds) / 60, "most": max(seconds) / 60}
    return {"what": "time"} | {name: f"{number:.1f}" for name, number in numbers.items()}


def accuracies(arm, study="study_mixing", seeds=(0, 1, 2)):
    """PGD-20 accuracy of each class, mean over seeds, in percent."""
    names = [f"{arm}/seed{seed}" for seed in seeds]
    found = [run["evaluation"]["attacks"]["pgd20"] for run in packed(study) if run["name"] in names]
    assert len(found) == len(seeds)
    return np.mean([np.divide(f["class_correct"], f["class_total"]) for f in found], 0) * 100


def easy_minus_hard(accuracy, easy):
    return accuracy[easy].mean() - np.delete(accuracy, easy).mean()


def easy_of_all():
    """The names of all classes, and the numbers of the easy ones."""
    classes = json.loads((RESULTS / "models" / "pgd_at.json").read_text())["classes"]
    study = packed("study_mixing")[0]["config"]["study"]
    return classes, [classes.index(name) for name in study["easy_classes"]]


def cuts():
    """Rows of what was looked at after study 1: other cuts, and the classes without Shirt."""
    classes, easy = easy_of_all()
    nine = [name for name in classes if name != "Shirt"]
    numbers = [classes.index(n) for n in nine]
    easy = [nine.index(classes[n]) for n in easy]
    order = np.argsort(-accuracies("pgd_at"))
    rows = []
    for base in ("pgd_at", "trades"):
        arms = [accuracies(base), accuracies(f"{base}_k2")]
        found = {
            "cuts": [
                easy_minus_hard(arms[1], order[:n]) - easy_minus_hard(arms[0], order[:n])
                for n in range(2, 10)
            ],
            "halves without Shirt": [easy_minus_hard(arm[numbers], easy) for arm in arms],
        }
        rows += [
            {"what": what, "base": base} | {str(n): f"{x:+.1f}" for n, x in enumerate(values)}
            for what, values in found.items()
        ]
    return rows


def epochs(study, arm):
    """For each run of an arm: its lines of `metrics.jsonl`, one an epoch."""
    found = [run["metrics"] for run in packed(study) if run["name"].startswith(f"{arm}/")]
    assert found
    return found


def seed_two():
    """The row `seed 2`: easy minus hard of that seed with some classes mixed, less that of none."""
    _, easy = easy_of_all()
    none = accuracies("pgd_at", seeds=[2])
    mixed = {name: accuracies(name, "study_theory", [2]) for name in ("easy", "hard")}
    changes = {n: easy_minus_hard(a, easy) - easy_minus_hard(none, easy) for n, a in mixed.items()}
    return [{"what": "seed 2"} | {name: f"{change:+.1f}" for name, change in changes.items()}]


def mixed_by_signal():
    """Rows of study 2's adaptive strengths, an epoch's set at the end of the one before."""
    rows = []
    for signal in ("easy", "boundary"):
        runs = epochs("study_theory", f"adaptive_{signal}")
        strengths = [[of_classes(line, "rule/mixing/class_") for line in run] for run in runs]
        shirt = [run[1]["Shirt"] for run in strengths]
        amount = [np.mean([*run[0].values()]) for run in strengths]
        first = [of_classes(run[0], "val_robust/class_")["Shirt"] * 100 for run in runs]
        found = {"Shirt on validation images": first, "Shirt mixed": shirt, "all mixed": amount}
        rows += [
            {"what": what, "signal": signal, "least": f"{min(x):.1f}", "most": f"{max(x):.1f}"}
            for what, x in found.items()
        ]
    return rows


def risks():
    """Rows of risks in percent: PGD-AT's on validation images, and where S13 changes its sign."""
    (run,) = epochs("study_tuning", "learning_rate0.1_none")
    found = of_classes(run[-1], "val_robust/class_")
    lines = {"lower": f"{100 * stats.norm.cdf(-1):.1f}", "upper": f"{100 * stats.norm.cdf(1):.1f}"}
    rows = {"risk": {name: f"{100 * (1 - x):.1f}" for name, x in found.items()}, "S13": lines}
    return [{"what": what} | row for what, row in rows.items()]


def of_classes(line, prefix):
    return {k.removeprefix(prefix): x for k, x in line.items() if k.startswith(prefix)}


_OF_STUDY = {
    "study_tuning": [risks],
    "study_mixing": [cuts],
    "study_theory": [seed_two, mixed_by_signal],
}


def tables(study):
    """Returns the readings of a study, each a list of rows."""
    return [[hours(study)], *(read() for read in _OF_STUDY.get(study, []))]
