"""docs/evidence/ and the README say of the studies what their committed results say."""

import functools
import json
import re

import evidence_readings
import jax
import numpy as np
import pytest
from conftest import ROOT
from evidence_readings import RESULTS, accuracies, members, packed
from PIL import Image
from scipy import stats
from test_launch import launch, table_rows

from fairmix_jax import data, export, report
from fairmix_jax.models.described import build_model
from fairmix_jax.training import checkpoints
from fairmix_jax.types import Weights

STUDIES = {  # and the studies that the report of each reads
    "study_tuning": ["study_tuning"],
    "study_mixing": ["study_mixing"],
    "study_theory": ["study_mixing", "study_theory"],
    "study_rate": ["study_rate"],
    "study_strength": ["study_strength"],
    "study_cifar10": ["study_cifar10"],
}
EVIDENCE = {path.stem: path for path in sorted((ROOT / "docs" / "evidence").glob("*.md"))}
DOCUMENTS = EVIDENCE | {"README": ROOT / "README.md"}
MODELS = sorted((RESULTS / "models").glob("*.safetensors"))
WITH_AUTOATTACK = ("pgd_at", "pgd_at_k2")
NUMBER = r"[+-]?\d+\.\d(?!\d|\.\d)"
DECIMAL = re.compile(rf"(?<![\w.]){NUMBER}")
INTERVAL = re.compile(rf"(?<![\w.])({NUMBER})\D*?\[({NUMBER}), ({NUMBER})\]")
P_VALUE = re.compile(r"p = (0\.\d{3})")
CODE = re.compile(r"`[^`]*[A-Za-z][^`]*`|<!--.*?-->", re.S)


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """Makes the report of a study again, and returns its folder."""
    root = tmp_path_factory.mktemp("reports")

    @functools.cache
    def make(study):
        directory = root / study
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(packed(study)[0]["config"]))
        report.write(directory, [RESULTS / name for name in STUDIES[study]], show=False)
        return directory / "report"

    return make


@pytest.fixture(scope="module")
def tables(reported):
    """Returns the tables of a study: its report's, its hours, and what was read off it later."""

    @functools.cache
    def read(study):
        parts = (reported(study) / "table.md").read_text().split("\n\n")
        found = [records(part) for part in parts if part.startswith("|")]
        return [*found, *evidence_readings.tables(study)]

    return read


def records(text):
    """Rows as mappings; a p-value's heading is that of its number with " p"."""
    header, _, *rows = table_rows(text)
    header = [f"{header[n - 1]} p" if name == "p" else name for n, name in enumerate(header)]
    return [dict(zip(header, row, strict=True)) for row in rows]


def marked(kind):
    """What follows each `<!-- KIND: STUDY -->` of a document, up to the next empty line."""
    return [
        pytest.param(study, text, id=f"{name}-{study}-{number}")
        for name, path in DOCUMENTS.items()
        for number, (study, text) in enumerate(
            re.findall(rf"<!-- {kind}: (\w+) -->\n(.*?)(?=\n\n|\Z)", path.read_text(), re.S)
        )
    ]


@pytest.mark.parametrize(("study", "text"), marked("table"))
def test_published_tables_are_rows_and_columns_of_the_report(study, text, tables):
    rows = records(text)
    homes = [table for table in tables(study) if rows[0].keys() <= table[0].keys()]
    known = [{name: row[name] for name in rows[0]} for table in homes for row in table]
    assert rows and [row for row in rows if row not in known] == []


def test_every_study_has_a_page():
    assert {*EVIDENCE} == {"index", "protocol", *STUDIES}


@pytest.mark.parametrize("name", EVIDENCE)
def test_every_table_of_the_evidence_is_checked(name):
    blocks = EVIDENCE[name].read_text().split("\n\n")
    assert all(b.startswith("<!-- table: ") for b in blocks if re.search(r"^\|", b, re.M))
    tables = [block for block in blocks if block.startswith("<!-- table: ")]
    assert len(tables) == len([case for case in marked("table") if case.id.startswith(f"{name}-")])
    assert all(block.startswith(f"<!-- table: {name} -->") for block in tables)


def statements():
    """Paragraphs and items outside tables, and the rows they name: `<!-- rows: STUDY: ... -->`.

    Rows are named by some of their cells, `cell, cell; cell, cell`.
    """
    for name, path in DOCUMENTS.items():
        text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
        for number, block in enumerate(re.split(r"\n\n|\n(?=\* |\d+\. )", text)):
            sources = re.findall(r"<!-- rows: (\w+): (.+?) -->", block)
            plain = CODE.sub("", block)
            prose = DECIMAL.search(plain) and not re.search(r"^\|", plain, re.M)
            if prose and (sources or name in EVIDENCE):
                yield pytest.param(on_one_line(plain), sources, id=f"{name}-{number}")


def on_one_line(text):
    return " ".join(text.split())


@pytest.mark.parametrize(("text", "sources"), list(statements()))
def test_numbers_in_the_text_are_those_of_the_rows_it_names(text, sources, tables):
    decimals = {*DECIMAL.findall(text), *P_VALUE.findall(text)}
    known, intervals = set(), set()
    for study, rows in sources:
        for name in rows.split("; "):
            cells = [
                cell
                for table in tables(study)
                for row in table
                if {*name.split(", ")} <= {*row.values()}
                for cell in row.values()
            ]
            assert cells, f"no row of {study} has the cells {name}"
            numbers = {number for cell in cells for number in (*DECIMAL.findall(cell), cell)}
            used = numbers & {sign + d for d in decimals for sign in ("", "+", "-")}
            assert used, f"{study}: {name} is named, and the text has no number of it"
            known |= numbers
            intervals |= {found for cell in cells for found in read_intervals(cell)}
    assert [d for d in decimals if not known & {d, f"+{d}", f"-{d}"}] == []
    turned = {(-middle, -high, -low) for middle, low, high in intervals}
    assert read_intervals(text) - intervals - turned == set()


def read_intervals(text):
    """All of the form `1.2 points [0.3, 2.1]`, as three numbers."""
    return {tuple(map(float, found)) for found in INTERVAL.findall(text)}


@pytest.mark.parametrize("study", STUDIES)
def test_committed_reports_are_whole(study, reported):
    for name in STUDIES[study]:
        evaluated = [run["folder"] for run in packed(name) if "evaluation" in run]
        assert evaluated == [*members(name)]
    committed = (RESULTS / study / "report" / "table.md").read_text()
    assert committed == (reported(study) / "table.md").read_text()
    assert "Not done" not in committed


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/report/*.png")), ids=lambda p: p.stem)
def test_pictures_are_drawn_from_the_results(path, reported):
    again = reported(path.parent.parent.name) / path.name
    ours, theirs = (np.asarray(Image.open(p).convert("L"), float) for p in (path, again))
    assert ours.shape == theirs.shape
    assert np.mean(np.abs(ours - theirs) > 64) < 2e-3  # fonts may differ from machine to machine


def test_pictures_and_files_of_the_text_exist():
    for path in DOCUMENTS.values():
        for target in re.findall(r"\]\(((?!http|#)[^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), target


def run_of(card):
    """The study of the one committed run whose model this is, and the run."""
    (found,) = [(s, run) for s in STUDIES for run in packed(s) if run.get("model") == card]
    return found


def test_models_are_few_and_small():
    assert 0 < len(MODELS) <= 10 and all(path.stat().st_size < 3e6 for path in MODELS)


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_models_are_those_of_their_runs(path):
    card = export.read_card(path)
    model = build_model(card)
    shapes = jax.eval_shape(lambda: Weights(*model.init(jax.random.key(0))))
    assert checkpoints.digest(export.read_weights(path, shapes)) == card["sha256"]
    assert "evaluation" in run_of(card)[1]


@pytest.mark.slow
@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_models_withstand_what_was_published(path, tfds_dir, tmp_path):
    """To the image on the same processor; on another one rounding moves a few images."""
    study, run = run_of(export.read_card(path))
    published = run["evaluation"]["attacks"]
    seed = run["config"]["seed"]  # random starts are of it
    attacks = ["clean", "pgd20", *(["autoattack@300"] if path.stem in WITH_AUTOATTACK else [])]
    result = launch(
        "--mode=evaluate", f"--config=configs/studies/{study}.py", "--config.sweep=",
        f"--config.seed={seed}",
        f"--config.evaluate.weights={path}", f"--config.evaluate.attacks={','.join(attacks)}",
        f"--workdir={tmp_path}", TFDS_DATA_DIR=tfds_dir,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "evaluation.json").read_text())["attacks"]
    here = json.loads((tmp_path / "run.json").read_text())["processor"]
    for attack in attacks:
        assert found[attack]["class_total"] == published[attack]["class_total"]
        ours, theirs = (np.array(f[attack]["class_correct"]) for f in (found, published))
        if run["run"]["processor"] == here:
            assert ours.tolist() == theirs.tolist()
        assert abs(ours.sum() - theirs.sum()) <= 0.003 * sum(found[attack]["class_total"])


@pytest.mark.parametrize(
    ("study", "sentence"),
    [
        ("study_mixing", "Of sixteen predictions three hold: .*? Ten fail, .*? three are open"),
        ("study_theory", "Of fifteen predictions three hold, two fail, ten are open"),
        ("study_strength", "Of eleven predictions four hold, one fails, six are open"),
    ],
)
def test_verdicts_of_the_text(study, sentence):
    table = (RESULTS / study / "report" / "table.md").read_text()
    counts = [table.count(f"| {verdict} |\n") for verdict in ("holds", "fails", "open")]
    words = (
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
        "fifteen sixteen"
    ).split()
    number = re.compile(rf"\b({'|'.join(words)}) (?:predictions|holds?|fails?|are open)", re.I)
    said = re.search(sentence, on_one_line(EVIDENCE[study].read_text()))
    assert [words.index(word.lower()) for word in number.findall(said[0])] == [sum(counts), *counts]


def test_processors_of_the_text():
    processors = [run["run"]["processor"].startswith("AMD") for run in packed("study_mixing")[1:]]
    assert (len(processors), sum(processors)) == (24, 10)
    text = on_one_line(EVIDENCE["study_mixing"].read_text())
    assert "fourteen runs on an Intel Xeon, ten on an AMD EPYC" in text


def test_what_orders_the_classes(tfds_dir):
    """The rank correlations of the text: of the training set's pixels and study 1's accuracy."""
    images, labels = data.load({"name": "fashion_mnist", "dir": tfds_dir, "num_train": 0}).train
    pixels = [images[labels == k].reshape(sum(labels == k), -1) / 255 for k in range(10)]
    means = np.stack([p.mean(0) for p in pixels])
    width = np.array([p.var(0).sum() for p in pixels])
    apart = (np.linalg.norm(means[:, None] - means, axis=-1) + np.diag([np.inf] * 10)).min(1)
    before = accuracies("pgd_at")
    change = accuracies("pgd_at_k2") - before
    no_bag = np.arange(10) != np.argmax(width)
    text = on_one_line(EVIDENCE["study_mixing"].read_text())
    for name, (rho, p_value) in {
        "accuracy and variance": stats.spearmanr(width, before),
        "accuracy and variance, without Bag": stats.spearmanr(width[no_bag], before[no_bag]),
        "accuracy and distance": stats.spearmanr(apart, before),
        "distance and what pairs change": stats.spearmanr(apart, change),
        "variance and what pairs change": stats.spearmanr(width, change),
    }.items():
        assert f"Rank correlation of {name}: {rho:+.2f}, p = {p_value:.3f}" in text
    mutual = [k for k in range(10) if np.sum(np.isclose(apart, apart[k])) == 2]
    assert len(mutual) == 6 and "six classes share theirs with another" in text
