"""What leaves the house: safetensors, the model card, RobustBench's entry."""

import json
import re
import shlex
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest
from conftest import ROOT
from safetensors.numpy import load_file
from tiny import build, tiny

from fairmix_jax import export
from fairmix_jax.classwise import metrics
from fairmix_jax.data import balanced_rows
from fairmix_jax.export import model_card, robustbench, torch_export
from fairmix_jax.lab import config as config_lib
from fairmix_jax.lab import evaluate_run
from fairmix_jax.models.described import build_model
from fairmix_jax.runtime.errors import UsageError
from fairmix_jax.types import Weights

CARD = {
    "model": {"name": "preact_resnet", "depth": 10, "width": 8, "norm": "batch"},
    "image_shape": [8, 8, 3], "mean": [0.5] * 3, "std": [0.2] * 3, "classes": list("abcdefghij"),
}  # fmt: skip
PAPER = dict(link="https://arxiv.org/abs/1", name="T", authors="A, B", venue="arXiv, Nov 2026")
# Of model_info/cifar10/Linf/Bartoldson2024Adversarial_WRN-94-16.json, RobustBench ae5814d (2024).
FIELDS = {
    "link": str, "name": str, "authors": str, "additional_data": bool,
    "number_forward_passes": int, "dataset": str, "venue": str, "architecture": str, "eps": str,
    "clean_acc": str, "reported": str, "autoattack_acc": str, "footnote": str, "unreliable": bool,
}  # fmt: skip


def evaluation(images=1000, dataset="cifar10", epsilon=8 / 255, norm="linf", **settings):
    """An evaluation with AutoAttack on so many images of each class."""
    total = [images] * 10
    clean, robust = (metrics.result(total, [c] * 10, CARD["classes"], seconds=1.0)
                     for c in (9 * images // 10, images // 2))  # fmt: skip
    names = ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
    each = dict.fromkeys(names, 0.0)
    robust["detail"] = {
        "broken_by": {name: [0] * 10 for name in names}, "seconds_by_attack": each,
        "forward_passes_per_image": each, "gradient_passes_per_image": each,
        "confusion": [[0] * 10] * 10, "non_finite": 0, "notes": [],
    }  # fmt: skip
    return {
        "dataset": dataset, "classes": CARD["classes"], "weights": "best",
        "threat": {"norm": norm, "epsilon": epsilon},
        "attacks": {"clean": clean, "autoattack": robust}, "settings": settings,
    }  # fmt: skip


def test_safetensors_round_trip_is_bit_exact(tmp_path):
    model = build_model(CARD)
    weights = Weights(*model.init(jax.random.key(0)))
    export.save_model(tmp_path, weights, CARD, evaluation())
    stored = load_file(tmp_path / "model.safetensors")
    leaves = {f"{kind}/{'/'.join(k.key for k in path)}": leaf
              for kind, tree in zip(Weights._fields, weights, strict=True)
              for path, leaf in jax.tree.leaves_with_path(tree)}  # fmt: skip
    assert set(leaves) == set(stored)
    for name, leaf in leaves.items():
        assert stored[name].dtype == leaf.dtype and stored[name].tobytes() == leaf.tobytes()
    logits_fn, card = export.load_model(tmp_path)
    images = jax.random.uniform(jax.random.key(1), (4, 8, 8, 3))
    expected = model.apply(*weights, images, train=False)[0]
    np.testing.assert_array_equal(logits_fn(images), expected)
    assert card["threat"] == {"norm": "linf", "epsilon": 8 / 255}


def test_an_exported_file_is_evaluated_again_without_its_run(tmp_path):
    """By its name and beside its card alone; a file of another model is refused.

    The card says nothing of an argument, as one that is older than it.
    """
    config = tiny(evaluate__attacks="clean,pgd2", evaluate__num_examples=50)
    built = build(config)
    weights = Weights(*built.model.init(jax.random.key(3)))
    older = {k: v for k, v in built.model_card["model"].items() if k != "norm"}
    export.save_model(tmp_path, weights, built.model_card | {"model": older}, evaluation())
    for suffix in (".safetensors", ".json"):
        (tmp_path / f"model{suffix}").rename(tmp_path / f"other{suffix}")
    config.evaluate.weights = str(tmp_path / "other.safetensors")
    config_lib.check(config)
    again = evaluate_run.run(config_lib.settings(config), built, tmp_path / "again")
    logits_fn, _ = export.load_model(config.evaluate.weights)
    rows = balanced_rows(built.dataset.test.labels, 50)
    split = built.dataset.test.take(rows)
    found = logits_fn(split.images / np.float32(255)).argmax(-1) == split.labels
    assert sum(again["attacks"]["clean"]["class_correct"]) == found.sum()
    assert again["weights"] == config.evaluate.weights
    assert json.loads((tmp_path / "again" / "model.json").read_text())["model"]["width"] == 8
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"holds a run, whose files .* give another --workdir"):
        evaluate_run.run(config_lib.settings(config), built, tmp_path / "run")
    whole = (tmp_path / "other.safetensors").read_bytes()
    (tmp_path / "other.safetensors").write_bytes(whole[:-100])
    with pytest.raises(UsageError, match="is not a model of this config"):
        evaluate_run.run(config_lib.settings(config), built, tmp_path / "again")
    card = json.loads((tmp_path / "other.json").read_text())
    del card["checksum"]  # as its message says to one who edits it
    (tmp_path / "other.json").write_text(json.dumps(card | {"mean": [0.0]}))
    with pytest.raises(UsageError, match=r"is not a model of this config: its mean is \[0.0\]"):
        evaluate_run.run(config_lib.settings(config), built, tmp_path / "again")
    (tmp_path / "other.json").unlink()
    with pytest.raises(UsageError, match="another file with its card beside it"):
        evaluate_run.run(config_lib.settings(config), built, tmp_path / "again")


def test_no_flipped_bit_of_exported_weights_goes_unseen(tmp_path):
    export.save_model(
        tmp_path, Weights(*build_model(CARD).init(jax.random.key(0))), CARD, evaluation()
    )
    (tmp_path / "model_card.md").write_text("")
    path, rng = tmp_path / "model.safetensors", np.random.default_rng(0)
    sound = path.read_bytes()
    for place in [*rng.integers(len(sound), size=60), *rng.integers(3000, size=60), 0, 7, 8]:
        flipped = bytearray(sound)
        flipped[place] ^= 1 << rng.integers(8)
        path.write_bytes(flipped)
        assert not export.is_whole(tmp_path)
    for content in (sound[:-1], sound[:100], b"", sound + b"0"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"model.safetensors' is damaged .*; run what") as told:
            export.load_model(tmp_path)
        assert len(str(told.value).splitlines()) == 1
    path.write_bytes(sound)
    assert export.is_whole(tmp_path)
    for name in ("model.json", "model_card.md", "model.safetensors"):
        (tmp_path / name).unlink()
        assert not export.is_whole(tmp_path)


def test_a_card_without_a_digest_is_accepted(tmp_path):
    """As versions before 0.2 wrote it."""
    weights = Weights(*build_model(CARD).init(jax.random.key(0)))
    export.save_model(tmp_path, weights, CARD, evaluation())
    card = {n: v for n, v in export.read_card(tmp_path).items() if n not in ("sha256", "checksum")}
    (tmp_path / "model.json").write_text(json.dumps(card))
    chex.assert_trees_all_equal(export.read_weights(tmp_path, weights), weights)


def test_robustbench_entry_has_the_schema_of_the_benchmark():
    entry = robustbench.model_info(evaluation(), CARD, **PAPER)
    assert {name: type(value) for name, value in entry.items()} == FIELDS
    assert entry["eps"] == "8/255" and entry["architecture"] == "PreActResNet-10 of width 8"
    assert entry["clean_acc"] == "90.00" and entry["autoattack_acc"] == "50.00"
    assert robustbench.model_info(evaluation(norm="l2", epsilon=0.5), CARD, **PAPER)["eps"] == "0.5"
    wide = CARD | {"model": {"name": "wide_resnet", "depth": 28, "width": 10}}
    entry = robustbench.model_info(evaluation(), wide, **PAPER)
    assert entry["architecture"] == "WideResNet-28-10"


def test_a_model_without_a_width_has_an_architecture():
    found = robustbench.model_info(evaluation(), CARD | {"model": {"name": "linear"}}, **PAPER)
    assert found["architecture"] == "linear"


def test_only_a_real_autoattack_on_all_images_fills_the_entry():
    subset, cheap, weaker = evaluation(100), evaluation(search_dtype="bfloat16"), evaluation()
    del weaker["attacks"]["autoattack"]["detail"]["broken_by"]["square"]
    pgd = evaluation()
    pgd["attacks"]["pgd20"] = pgd["attacks"].pop("autoattack")
    for found in (subset, cheap, weaker, pgd):
        entry = robustbench.model_info(found, CARD, **PAPER)
        assert entry["autoattack_acc"] is None and entry["reported"] is None
    with pytest.raises(UsageError, match="no leaderboard"):
        robustbench.model_info(evaluation(dataset="digits"), CARD, **PAPER)


@pytest.fixture
def workdir(tmp_path):
    weights = Weights(*build_model(CARD).init(jax.random.key(0)))
    export.save_model(tmp_path, weights, CARD, evaluation())
    provenance = {
        "argv": ["launch.py"], "processor": "p", "device": "d", "versions": {"jax": "1"},
        "date": "2026", "commit": "abc",
    }  # fmt: skip
    for name, content in (("evaluation", evaluation()), ("run", provenance)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def test_model_card_tells_every_class_and_its_limits(workdir):
    model_card.write(workdir, evaluation(), bounds=(0.0, 1.0))
    text = (workdir / "model_card.md").read_text()
    assert text.startswith("---\nlibrary_name: fairmix_jax")
    assert "| j | 90.0 | 50.0 |" in text and "## Limits" in text and "commit abc" in text
    assert re.search(
        r"^# preact_resnet trained on .*\n\n.* weights of the run, evaluated in", text, re.M
    )


def test_a_model_card_has_one_number_under_each_heading_of_the_report(workdir):
    """Of noisy classes the smallest as counted, as tables and terminal have it, and corrected."""
    found = metrics.result([50] * 10, [*range(30, 40)], CARD["classes"], seconds=1.0)
    assert found["corrected"]["worst_class"] != found["worst_class"] == 0.6
    shown = evaluation() | {"attacks": {"clean": found}}
    model_card.write(workdir, shown, bounds=(0.0, 1.0))
    lines = (workdir / "model_card.md").read_text().splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("| attack |"))
    header, row = ([c.strip() for c in lines[n].strip("|").split("|")] for n in (start, start + 2))
    cells = dict(zip(header, row, strict=True))
    assert cells["worst class"] == "60.0 (a)" and cells["gap"] == "18.0"
    for name, heading in (("worst_class", "corrected"), ("gap", "corrected gap")):
        low, high = (f"{100 * end:.1f}" for end in found["ci95"][name])
        assert cells[heading] == f"{100 * found['corrected'][name]:.1f} [{low}, {high}]"


def test_the_command_of_a_model_card_can_be_pasted_into_a_shell(workdir):
    argv = ["launch.py", "--config.sweep=seed=0,1 optim.decay=0.1", "--workdir=my run's", "$(x)"]
    recorded = json.loads((workdir / "run.json").read_text()) | {"argv": argv}
    (workdir / "run.json").write_text(json.dumps(recorded))
    model_card.write(workdir, evaluation(), bounds=(0.0, 1.0))
    (line,) = re.findall(r"^python launch.py .*$", (workdir / "model_card.md").read_text(), re.M)
    assert shlex.split(line) == ["python", *argv]


def test_command_lines(workdir, tmp_path):
    paper = [f"--{name}={value}" for name, value in PAPER.items()]
    done = run_module("robustbench", str(workdir), *paper)
    assert done.returncode == 0 and json.loads(done.stdout)["autoattack_acc"] == "50.00"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "torch_model.py").write_text("damaged")
    done = run_module("torch_export", str(workdir), str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "def load(folder)" in (tmp_path / "out" / "torch_model.py").read_text()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "model.json", "model_torch.safetensors", "torch_model.py",
    ]  # fmt: skip
    for arguments in (("robustbench", "/nowhere", *paper), ("torch_export", "/nowhere", "/tmp/x")):
        failed = run_module(*arguments)
        assert failed.returncode == 2 and "evaluate" in failed.stderr
    (workdir / "model.safetensors").write_bytes(b"")
    failed = run_module("torch_export", str(workdir), str(tmp_path / "out"))
    assert failed.returncode == 2 and failed.stderr.count("\n") == 1, failed.stderr
    assert "model.safetensors' is damaged" in failed.stderr


def run_module(name, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"fairmix_jax.{name}", *arguments],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip


def test_models_without_a_counterpart_in_pytorch_are_refused():
    with pytest.raises(UsageError, match="'mine' has 'Conv_7'"):
        torch_export.state_dict(
            {"params/Conv_7/kernel": np.zeros((1, 1, 1, 1))}, {"model": {"name": "mine"}}
        )
