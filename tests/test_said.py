"""What reports, terminals and results say of numbers that are easily misread."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from test_report import make_run

from fairmix_jax import classwise, report
from fairmix_jax.attacks import ThreatModel, masking
from fairmix_jax.classwise import metrics
from fairmix_jax.export import model_card
from fairmix_jax.report import chart_rows, headlines, runs
from fairmix_jax.report.comparable import comparable
from fairmix_jax.report.tables import ensembles

UNEVEN = metrics.result([100, 20], [90, 2], ["a", "b"], seconds=1.0)  # 50 % on average


def detail(curve, **seconds):
    passes = dict.fromkeys(seconds, 1.0)
    return {
        "broken_by": {name: [1, 0] for name in seconds}, "confusion": [[9, 1], [0, 10]],
        "seconds_by_attack": seconds, "gradient_passes_per_image": passes,
        "forward_passes_per_image": passes, "curve": curve, "notes": [], "non_finite": 0,
    }  # fmt: skip


def with_detail(folder, seed, found):
    entry = {"class_total": [10, 10], "class_correct": [5, 5], "detail": found}
    make_run(folder / str(seed), seed, "none", (80, 40), attacks={"autoattack": entry})


def test_an_attack_starts_in_the_chart_when_those_before_it_have_ended(tmp_path):
    curve = [["clean", 0, 18], ["apgd-ce", 0.3, 12], ["square", 0.2, 11]]
    with_detail(tmp_path, 0, detail(curve, clean=0.0, **{"apgd-ce": 4.0, "square": 8.6}))
    (one,) = comparable(runs.find(tmp_path))
    rows = chart_rows.all_of(one, headlines.headlines(one))["survivors"]
    points = [(row["member"], row["seconds"], row["survivors"]) for row in rows]
    assert points == [
        ("clean", 0, 18), ("apgd-ce", 0.3, 12), ("square", 4.2, 11), ("square", 12.6, 11),
    ]  # fmt: skip


def test_runs_whose_ensembles_have_other_members_share_a_table(tmp_path):
    curve = [["clean", 0, 18]]
    with_detail(tmp_path, 0, detail(curve, clean=0.0, square=1.0))
    with_detail(tmp_path, 1, detail(curve, clean=0.0, fab=3.0))
    (one,) = comparable(runs.find(tmp_path))
    (table,) = ensembles(one)
    assert table.header[1:4] == ["clean", "square", "fab"]
    assert table.rows[0][1:4] == ["2", "1", "1"] and table.footer[1][2:4] == ["1.0", "3.0"]


@pytest.mark.parametrize("is_earlier", [False, True])
def test_overall_accuracy_stands_beside_the_average_of_uneven_classes(is_earlier, tmp_path, capsys):
    assert UNEVEN["average"] == pytest.approx(0.5) and UNEVEN["overall"] == pytest.approx(92 / 120)
    known = {k: v for k, v in UNEVEN.items() if not (is_earlier and k == "overall")}
    make_run(tmp_path / "run", 0, "none", (80, 40), attacks={"clean": known, "pgd20": known})
    report.write(tmp_path, [tmp_path])
    for text in ((tmp_path / "report" / "table.md").read_text(), capsys.readouterr().out):
        assert "76.7 % of the test images correctly, 50.0 % on average over" in " ".join(
            text.split()
        )
        assert "overall" in text and "76.7" in text
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert model_card._headlines(evaluation).rows[0][2] == "76.7"


def test_even_classes_have_no_column_of_their_overall_accuracy(tmp_path):
    make_run(tmp_path / "run", 0, "none", (80, 40))
    report.write(tmp_path, [tmp_path], show=False)
    text = (tmp_path / "report" / "table.md").read_text()
    assert "| overall |" not in text and "60.0 % of the test images correctly, and" in text
    assert "NSD is the standard deviation" in text and "rho is the relative gain" in text


@pytest.mark.parametrize(
    "share, number, verdict",
    [
        (2, 10, "too few to tell"),
        (2, 1000, "pass"),
        (0, 2, "too few to tell"),
        (0, 10, "pass"),
        (3, 100, "suspicious"),
        (3, 10, "fail"),
    ],
)
def test_too_few_to_tell_is_a_verdict_and_no_pass(share, number, verdict):
    chosen = np.arange(number) < share
    found = masking._finding("zero_gradient", chosen, np.zeros(number, int), 2)
    assert found.verdict == verdict and (verdict == "too few to tell") == (verdict in found.reason)
    assert masking.SEVERITY.index("pass") < masking.SEVERITY.index("too few to tell")


@pytest.mark.parametrize("constant", [True, False])
def test_one_class_for_all_images_is_said(constant, capsys):
    labels = np.arange(12, dtype=np.int32) % 3
    images = np.repeat(labels[:, None, None, None] / np.float32(4), 4, axis=1)

    def logits_fn(x):  # the nearest of three levels, or the last one whatever the image
        near = -10 * (4 * x[:, 0, 0] - jnp.arange(3.0)[None]) ** 2
        return near + jnp.array([[0.0, 0.0, 100.0 * constant]])

    chosen = classwise.Settings("clean,fgsm")
    classwise.evaluate(
        logits_fn, images, labels, class_names=["ant", "bee", "cat"],
        threat=ThreatModel("linf", 0.01), settings=chosen,
    )  # fmt: skip
    said = " ".join(capsys.readouterr().out.split())
    line = "clean: predicts cat for all 12 images; check normalisation and weights"
    assert said.count("predicts") == said.count(line) == constant


def test_what_is_not_finite_is_counted_and_said(tmp_path, capsys):
    images = np.random.default_rng(0).uniform(0.2, 0.8, (6, 3, 3, 1)).astype(np.float32)
    images[0], images[1] = 0.0, 1.0

    def logits_fn(x):  # no derivative at black, no logits at white
        flat = x.reshape(len(x), -1)
        length = jnp.maximum(jnp.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
        return jnp.where(jnp.min(flat, axis=1, keepdims=True) == 1, jnp.nan, 5 * flat / length)[
            :, :3
        ]

    found = classwise.evaluate(
        logits_fn, images, np.zeros(6, np.int32), class_names="abc",
        threat=ThreatModel("linf", 0.01), settings=classwise.Settings("clean,mifgsm2"),
    )["attacks"]  # fmt: skip
    assert found["clean"]["non_finite"] == {"logits": 1, "gradients": 0}
    assert found["mifgsm2"]["non_finite"]["gradients"] >= 1
    said = " ".join(capsys.readouterr().out.split())
    assert "clean: the logits of 1 images are not finite" in said and "gradients of" in said
    entry = UNEVEN | {"non_finite": {"logits": 3, "gradients": 2}}
    make_run(tmp_path / "run", 0, "none", (80, 40), attacks={"clean": UNEVEN, "pgd20": entry})
    report.write(tmp_path, [tmp_path], show=False)
    text = (tmp_path / "report" / "table.md").read_text()
    assert "Not finite under pgd20, pgd_at: the logits of 3 images and the gradients of 2" in text
