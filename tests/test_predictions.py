"""Predictions of a study: how they are written, and what runs say of them."""

import json
import re

import numpy as np
import pytest

from fairmix_jax import comparison, paired, predictions, report
from fairmix_jax.errors import UsageError
from fairmix_jax.report import outcomes, runs
from tests.test_report import make_run, table_rows

ARMS = {"none": "mixing.name=none", "same": "mixing.name=same_class"}


def study(*stated, easy=("a",), hard=("b",), arms=ARMS):
    return {"arms": arms, "predictions": stated, "easy_classes": easy, "hard_classes": hard}


def test_a_prediction_is_a_contrast_with_a_sign():
    (one,) = predictions.parse(study("P1: gap(pgd20): same < none"))
    assert one == ("P1", "gap", "pgd20", "same < none", ("same", "none"), (1, -1), -1)
    (four,) = predictions.parse(study("P2, wd: average(autoattack@50): same - none > none - same"))
    assert four.arms == ("same", "none", "none", "same") and four.weights == (1, -1, -1, 1)
    assert four.name == "P2, wd" and four.attack == "autoattack@50" and four.sign == 1


@pytest.mark.parametrize(
    ("stated", "options", "message"),
    [
        ("gap of pgd20 falls", {}, "'gap of pgd20 falls' is not understood; write 'NAME: "),
        ("P1: spread(pgd20): same < none", {}, "'spread' in .* is unknown; choose one of average"),
        ("P1: gap(pgd): same < none", {}, r"evaluate\.attacks='pgd' is unknown"),
        ("P1: gap(pgd20): some < none", {}, "arm 'some' in .* is unknown; choose one of none"),
        ("P1: gap(pgd20): same - none < none", {}, "compares unlike things"),
        ("P1: gap(pgd20): same < none", dict(hard=("a",)), r"\['a'\] overlap"),
        ("P1: easy_minus_hard(pgd20): same < none", dict(hard=()), "without classes"),
    ],
)  # fmt: skip
def test_bad_predictions_are_named(stated, options, message):
    with pytest.raises(UsageError, match=message):
        predictions.parse(study(stated, **options))


def write_study(path, predicted):
    """Three seeds; under attack class b is 30 points better with mixing, a two points worse."""
    for seed in range(3):
        make_run(path / f"none{seed}", seed, "none", (80 + seed, 40 - seed))
        make_run(path / f"same{seed}", seed, "same_class", (78 + seed, 70 - seed))
    (path / "config.json").write_text(json.dumps({"study": predicted}))
    return path


def test_runs_uphold_refute_or_leave_open(tmp_path):
    stated = (
        "P1: easy_minus_hard(pgd20): same < none",
        "P2: worst_class(pgd20): same < none",
        "P3: average(clean): same > none",
        "P4: gap(autoattack): same < none",
    )
    directory = write_study(tmp_path, study(*stated))
    report.write(directory, [directory], show=False)
    text = (directory / "report" / "table.md").read_text()
    rows = table_rows(text[text.index("predictions, written") :], "| P")
    assert [row[-1] for row in rows] == ["holds", "fails", "open", "not run"]
    assert rows[0][3:6] == ["same < none", "3", rows[0][5]] and rows[0][5].startswith("-32.0 [")
    assert rows[1][5].startswith("+30.0 [") and rows[3][4:7] == ["0", "–", "–"]
    assert re.search(r"\| pgd20 \| same \| 3 \|", text)  # methods have the names of their arms


def test_p_values_are_adjusted_for_the_predictions_that_were_tested(tmp_path):
    stated = study("P1: gap(pgd20): same < none", "P2: average(pgd20): same > none",
                   "P3: gap(autoattack): same < none")  # fmt: skip
    (found,) = runs.comparable(runs.find(write_study(tmp_path, stated)), ARMS)
    told = outcomes.outcomes(found, stated)
    alone = [
        paired.difference(
            *(group.verdicts("pgd20") for group in found.groups[::-1]), comparison.STATISTICS[name]
        ).p_value
        for name in ("gap", "average")
    ]  # fmt: skip
    assert [one.adjusted for one in told[:2]] == pytest.approx(paired.holm(alone))
    assert told[2].difference is None and told[2].verdict == "not run"


def test_one_seed_answers_nothing(tmp_path):
    make_run(tmp_path / "none", 0, "none", (80, 40))
    make_run(tmp_path / "same", 0, "same_class", (78, 70))
    (found,) = runs.comparable(runs.find(tmp_path), ARMS)
    assert outcomes.outcomes(found, study("P1: gap(pgd20): same < none")) == []
    assert [group.label for group in found.groups] == ["none", "same"]


def test_classes_of_the_study_must_be_those_of_the_data(tmp_path):
    stated = study("P1: easy_minus_hard(pgd20): same < none", easy=("cat",))
    (found,) = runs.comparable(runs.find(write_study(tmp_path, stated)), ARMS)
    with pytest.raises(UsageError, match=r"study\.easy_classes: 'cat' is not one of a, b"):
        outcomes.outcomes(found, stated)


def test_easy_minus_hard_has_a_sign():
    accuracies = np.array([[0.9, 0.5, 0.7, 0.1], [0.1, 0.5, 0.3, 0.9]])
    found = comparison.easy_minus_hard([0, 2], [3])(accuracies)
    np.testing.assert_allclose(found, [0.7, -0.7])
