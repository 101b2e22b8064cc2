"""Predictions of a study: how they are written, and what runs say of them."""

import json
import re

import numpy as np
import pytest
from test_report import make_run, table_rows

from fairmix_jax import report
from fairmix_jax.classwise import metrics, paired, predictions
from fairmix_jax.report import differences, runs
from fairmix_jax.report.comparable import comparable
from fairmix_jax.runtime.errors import UsageError

ARMS = {"none": "mixing.name=none", "same": "mixing.name=same_class"}


def study(*stated, easy=("a",), hard=("b",), arms=ARMS):
    return {"arms": arms, "predictions": stated, "easy_classes": easy, "hard_classes": hard}


def test_a_prediction_is_a_contrast_with_a_sign():
    (one,) = predictions.parse(study("P1: gap(pgd20): same < none"))
    assert one == ("P1", "gap", "pgd20", "same < none", ("same", "none"), (1, -1), -1)
    arms = {name: "seed=0" for name in "abcd"}
    (four,) = predictions.parse(study("P2, wd: average(autoattack@50): a - b > c - d", arms=arms))
    assert four.arms == ("a", "b", "c", "d") and four.weights == (1, -1, -1, 1)
    assert four.name == "P2, wd" and four.attack == "autoattack@50" and four.sign == 1


@pytest.mark.parametrize(
    ("stated", "options", "message"),
    [
        ("gap of pgd20 falls", {}, "'gap of pgd20 falls' is not understood; write 'NAME: "),
        ("P1: spread(pgd20): same < none", {}, "'spread' in .* is unknown; choose one of average"),
        ("P1: gap(pgd): same < none", {}, r"study\.predictions='pgd' is unknown"),
        ("P1: gap(clean,fgsm): same < none", {}, "'clean,fgsm' in .* is a list; name one attack"),
        ("P1: gap(fgsm): none < none", {}, "names an arm twice"),
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
    (path / "config.json").write_text(json.dumps({"seed": 0, "study": predicted}))
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
    rows = table_rows(text[text.index("What the study predicted") :], "| P")
    assert [row[-1] for row in rows] == ["holds", "fails", "open", "not answered"]
    assert rows[0][3:6] == ["same < none", "3", rows[0][5]] and rows[0][5].startswith("-32.0 [")
    assert rows[1][5].startswith("+30.0 [") and rows[3][4:7] == ["0", "–", "–"]
    assert re.search(r"\| pgd20 \| same \| 3 \|", text)  # methods have the names of their arms
    rows = table_rows(text[text.index("Accuracy of each class in %") :], "| ")
    own, every = (next(r for r in rows if r[0] == name) for name in ("a", "mean of easy"))
    assert own[1:] == every[1:]  # a is the only easy class


def test_p_values_are_adjusted_for_all_predictions(tmp_path):
    stated = study("P1: gap(pgd20): same < none", "P2: average(pgd20): same > none",
                   "P3: gap(autoattack): same < none")  # fmt: skip
    (found,) = comparable(runs.find(write_study(tmp_path, stated)), ARMS)
    told = differences.checked_predictions(found, stated)
    pair = [method.under("pgd20").verdicts for method in found.methods[::-1]]
    alone = []
    for name in ("gap", "average"):
        statistic = metrics.STATISTICS[name]
        noise = paired.pooled_noise(pair, statistic)
        alone.append(paired.contrast(pair, (1, -1), statistic, noise=noise).p_value)
    assert [one.adjusted for one in told] == pytest.approx(paired.holm([*alone, 1.0]))
    assert told[0].alone == paired.contrast(pair, (1, -1), metrics.gap).p_value
    assert told[2].difference is None and told[2].verdict == "not answered"


def test_one_seed_answers_nothing(tmp_path):
    make_run(tmp_path / "none", 0, "none", (80, 40))
    make_run(tmp_path / "same", 0, "same_class", (78, 70))
    (found,) = comparable(runs.find(tmp_path), ARMS)
    assert differences.checked_predictions(found, study("P1: gap(pgd20): same < none")) == []
    assert [method.label for method in found.methods] == ["none", "same"]


def test_classes_of_the_study_must_be_those_of_the_data(tmp_path):
    stated = study("P1: easy_minus_hard(pgd20): same < none", easy=("cat",))
    (found,) = comparable(runs.find(write_study(tmp_path, stated)), ARMS)
    with pytest.raises(UsageError, match=r"study\.easy_classes: 'cat' is not one of a, b"):
        differences.checked_predictions(found, stated)
    with pytest.raises(UsageError, match=r"study\.hard_classes: 'dog' is not one of a, b"):
        differences.class_numbers({"hard_classes": ["a", "dog"]}, found.classes, "hard")


def test_a_run_has_the_name_of_the_arm_that_says_most_about_it(tmp_path):
    make_run(tmp_path / "none", 0, "none", (80, 40))
    make_run(tmp_path / "same", 0, "same_class", (78, 70))
    arms = {"any": "base.name=pgd_at", "same": "base.name=pgd_at mixing.name=same_class"}
    (found,) = comparable(runs.find(tmp_path), arms)
    assert [method.label for method in found.methods] == ["any", "same"]
    (found,) = comparable(runs.find(tmp_path), {"same": arms["same"]})
    assert [method.label for method in found.methods] == ["same"]  # the other is no arm


def test_arms_are_all_that_runs_may_differ_in(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / f"none{seed}", seed, "none", (80, 40))
    config = tmp_path / "none1" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"total_epochs": 9}))
    other = tmp_path / "none0" / "config.json"
    other.write_text(json.dumps(json.loads(other.read_text()) | {"total_epochs": 3}))
    with pytest.raises(UsageError, match=r"has total_epochs=3, .* has 9, and no arm of the study"):
        comparable(runs.find(tmp_path), ARMS)
    comparable(runs.find(tmp_path), {"a": "total_epochs=3", "b": "total_epochs=9.0"})
    with pytest.raises(UsageError, match=r"no run is one of study\.arms: x"):
        comparable(runs.find(tmp_path), {"x": "mixing.name=cross_class"})


def test_arguments_of_a_member_may_differ_between_members_only(tmp_path):
    """Each base loss has a start of its own, which no arm sets."""
    arms = {"pgd_at": "base.name=pgd_at", "trades": "base.name=trades"}

    def make(number, base):
        path = make_run(tmp_path / str(number), number, "none", (80, 40))
        config = json.loads((path / "config.json").read_text()) | {"base": base}
        (path / "config.json").write_text(json.dumps(config))

    make(0, {"name": "pgd_at", "start": "uniform"})
    make(1, {"name": "trades", "start": "normal", "beta": 6.0})
    (found,) = comparable(runs.find(tmp_path), arms)
    assert [method.label for method in found.methods] == ["pgd_at", "trades"]
    make(2, {"name": "trades", "start": "uniform", "beta": 6.0})
    with pytest.raises(UsageError, match=r"has base\.start=normal, .* has uniform, and no arm"):
        comparable(runs.find(tmp_path), arms)


def test_easy_minus_hard_has_a_sign():
    accuracies = np.array([[0.9, 0.5, 0.7, 0.1], [0.1, 0.5, 0.3, 0.9]])
    found = metrics.easy_minus_hard([0, 2], [3])(accuracies)
    np.testing.assert_allclose(found, [0.7, -0.7])
