"""Calibrations: weights changed after training, in an evaluation and by the command line."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from tiny import build, fit, tiny

from fairmix_jax import load_model
from fairmix_jax.lab import config as config_lib
from fairmix_jax.lab import evaluate_run, shared_training, sweeps, workdir
from fairmix_jax.methods.calibrations import class_bias
from fairmix_jax.methods.class_bias import margin_tables
from fairmix_jax.models.described import logits_partial
from fairmix_jax.runtime import json_files, registry
from fairmix_jax.runtime.errors import UsageError
from fairmix_jax.types import CalibrationData, ThreatModel, Weights


def make(name, num_classes, **arguments):
    return registry.load("calibrations", name)(num_classes, **arguments)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_head_norm_by_hand():
    """Columns (3, 4) and (0, 2) have norms 5 and 2, mean 3.5."""
    kernel = jnp.asarray([[3.0, 0.0], [4.0, 2.0]])
    weights = Weights({"head": {"kernel": kernel, "bias": jnp.asarray([7.0, 8.0])}}, {})

    def rows(weights=weights, **arguments):
        changed, facts = make("head_norm", 2, **arguments).calibrate(weights, None)
        close(changed.params["head"]["bias"], [7, 8])
        close(facts["row_norms"], np.linalg.norm(weights.params["head"]["kernel"], axis=0))
        return changed.params["head"]["kernel"]

    close(rows(), [[0.6, 0], [0.8, 1]])
    close(rows(to="mean"), [[2.1, 0], [2.8, 3.5]])
    close(rows(tau=0.0), kernel)
    close(rows(tau=0.5), np.asarray(kernel) / np.sqrt([5, 2]))
    same = weights._replace(params={"head": {"kernel": rows(to="mean"), "bias": jnp.array([7, 8])}})
    close(rows(same, to="mean"), rows(to="mean"))


def test_a_model_without_one_last_layer_is_refused():
    weights = Weights({"a": {"kernel": jnp.ones((2, 3))}, "b": {"kernel": jnp.ones((3, 3))}}, {})
    for name in ("head_norm", "class_bias"):
        with pytest.raises(ValueError, match="found 2 layers with 3 outputs"):
            make(name, 3).check(weights)
        with pytest.raises(ValueError, match="found 0 layers with 4 outputs"):
            make(name, 4).check(weights)
    one = Weights({"a": {"kernel": jnp.ones((2, 3))}}, {})
    with pytest.raises(ValueError, match="needs a last layer with a bias"):
        make("class_bias", 3).check(one)
    for arguments in (dict(to="two"), dict(tau=1.5)):
        with pytest.raises(ValueError, match=f"calibration.{min(arguments)}="):
            make("head_norm", 3, **arguments)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny run, its task and its folder."""
    config = tiny(evaluate__attacks="clean,pgd5", evaluate__num_examples=100, data__num_train=500)
    task, folder = build(config), tmp_path_factory.mktemp("trained")
    fit(config, task, folder)
    return config, task, folder


def evaluated(trained, folder=None, **calibration):
    config, task, own = trained
    chosen = config.copy_and_resolve_references().unlock()
    for name, value in calibration.items():
        with chosen.ignore_type():
            chosen.calibration[name] = value
    settings = config_lib.settings(chosen)
    if folder is not None:
        given = dataclasses.replace(settings.evaluate, weights=str(own / "model.safetensors"))
        settings = dataclasses.replace(settings, evaluate=given)
    return evaluate_run.run(settings, task, own if folder is None else folder)


def test_class_bias_changes_the_last_bias_only_and_raises_its_worst_class(trained):
    _, task, folder = trained
    plain = evaluated(trained)
    before, _ = load_model(folder)
    found = evaluated(trained, name="class_bias", t=0.5, num_steps=5)
    after, card = load_model(folder)
    images = jnp.asarray(task.validation.images[:9], jnp.float32) / 255
    offsets = np.asarray(found["calibration"]["offsets"])
    np.testing.assert_allclose(after(images) - before(images), np.tile(offsets, (9, 1)), atol=1e-4)
    assert card["calibration"] == found["calibration"] and abs(offsets.mean()) < 1e-9
    facts = found["calibration"]
    assert facts["fitted"]["worst_class"] >= facts["as_trained"]["worst_class"]
    assert facts["name"] == "class_bias" and facts["t"] == 0.5
    assert found["weights_sha256"] != plain["weights_sha256"]
    again = evaluated(trained)  # the checkpoints hold what was trained
    assert again["weights_sha256"] == plain["weights_sha256"] and "calibration" not in again


def test_an_evaluation_without_the_calibration_says_that_it_undoes_it(trained, capsys):
    evaluated(trained)
    evaluated(trained, name="class_bias", t=0.5, num_steps=2)
    capsys.readouterr()
    evaluated(trained)
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("calibration.name=none replaces the exported model and the evaluation") == 1
    assert "add --config.calibration.name=class_bias to have the calibration back" in said
    evaluated(trained)
    evaluated(trained, name="class_bias", t=0.5, num_steps=2)
    evaluated(trained, name="class_bias", t=0.5, num_steps=2)
    assert "replaces" not in capsys.readouterr().out


def test_with_t_0_the_weights_stay_bit_for_bit(trained):
    plain, found = evaluated(trained), evaluated(trained, name="class_bias", t=0.0, num_steps=1)
    assert found["weights_sha256"] == plain["weights_sha256"]
    assert found["attacks"] == plain["attacks"]  # so nothing was attacked again


def test_a_calibration_is_done_once(trained, monkeypatch):
    found = evaluated(trained, name="class_bias", num_steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(class_bias, "fit_biases", None)
        again = evaluated(trained, name="class_bias", num_steps=2)
    assert again["calibration"] == found["calibration"]
    assert again["weights_sha256"] == found["weights_sha256"]
    other = evaluated(trained, name="class_bias", num_steps=3)
    assert other["calibration"]["num_steps"] == 3


def test_an_exported_model_is_calibrated_in_another_folder(trained, tmp_path):
    evaluated(trained)
    found = evaluated(trained, tmp_path, name="class_bias", t=1.0, num_steps=5)
    own, _ = load_model(tmp_path)
    theirs, _ = load_model(trained[2])
    images = jnp.asarray(trained[1].validation.images[:5], jnp.float32) / 255
    moved = own(images) - theirs(images)
    np.testing.assert_allclose(moved[0], found["calibration"]["offsets"], atol=1e-4)


def test_a_last_layer_whose_outputs_are_not_the_logits_is_refused(trained):
    _, task, _ = trained

    def apply(params, batch_stats, images, **options):
        logits, stats = task.model.apply(params, batch_stats, images, **options)
        return 2 * logits, stats

    weights = Weights(*task.model.init(jax.random.key(0)))
    data = CalibrationData(
        apply, np.asarray(task.validation.images[:40], np.float32) / 255,
        task.validation.labels[:40], np.arange(40), ThreatModel("linf", 0.05), 0, None,
    )  # fmt: skip
    np.asarray(logits_partial(apply, weights)(data.images[:1]))
    with pytest.raises(ValueError, match="whose logits are its last layer's outputs"):
        make("class_bias", 10, t=1.0, num_steps=2).calibrate(weights, data)


def test_a_file_is_not_calibrated_on_images_that_it_was_trained_on(trained, tmp_path):
    evaluated(trained)
    config, task, own = trained
    for name in ("model.json", "model.safetensors"):
        shutil.copy(own / name, tmp_path)
    card = json_files.load(tmp_path / "model.json")
    assert card["data"] == {"name": "digits", "num_train": 500, "val_fraction": 0.15}
    json_files.write_json(
        tmp_path / "model.json", card | {"data": card["data"] | {"val_fraction": 0.05}}
    )
    with pytest.raises(UsageError, match=r"val_fraction=0.05 on images that this run validates"):
        evaluated((config, task, tmp_path), tmp_path / "new", name="class_bias")


def test_without_validation_images_it_is_refused_before_training(trained, tmp_path):
    config = tiny(data__val_fraction=0.0, evaluate__weights="last", calibration__name="class_bias")
    with pytest.raises(UsageError, match="class_bias' reads a validation set"):
        evaluate_run.assembly.calibration(config_lib.settings(config), build(config))


def test_runs_of_a_sweep_that_differ_in_calibration_are_trained_once(tmp_path, monkeypatch):
    config = tiny(
        model__name="linear", model__width=None, total_epochs=1, evaluate__attacks="clean,pgd2",
        evaluate__num_examples=50, evaluate__radii=(),
        sweep="calibration.name=none,head_norm | calibration.name=class_bias "
        "calibration.num_steps=2 calibration.t=0.2,1.0 | seed=1",
    )  # fmt: skip
    trained, tables = [], []
    fit, rows = sweeps.loop.fit, margin_tables._rows
    monkeypatch.setattr(sweeps.loop, "fit", lambda *a: trained.append(a[2].name) or fit(*a))
    monkeypatch.setattr(margin_tables, "_rows", lambda *a: tables.append(1) or rows(*a))
    sweeps.run(config.lock(), tmp_path, with_training=True)
    folders = {path.parent.name: path.parent for path in tmp_path.glob("*/evaluation.json")}
    assert len(folders) == 5
    assert trained == ["calibration.name=none", "seed=1"] and len(tables) == 1
    told = {name: json.loads((path / "run.json").read_text()) for name, path in folders.items()}
    assert len({each["state_sha256"] for each in told.values()}) == 2
    trained_in = [each["trained_in"] for each in told.values() if "trained_in" in each]
    assert trained_in == ["calibration.name=none"] * 3
    found = [json.loads((path / "evaluation.json").read_text()) for path in folders.values()]
    assert len({each["weights_sha256"] for each in found}) >= 4
    assert sorted(each.get("calibration", {"name": "none"})["name"] for each in found) == [
        "class_bias", "class_bias", "head_norm", "none", "none",
    ]  # fmt: skip


def test_a_training_is_taken_over_with_its_log_or_not_at_all(tmp_path, monkeypatch):
    source, folder = tmp_path / "source", tmp_path / "new"
    (source / "checkpoints" / "last" / "1").mkdir(parents=True)
    workdir.claim(source, tiny())
    json_files.write_json(source / "run.json", {"argv": [], "state_sha256": "0"})
    (source / "metrics.jsonl").write_text("{}\n")
    for other in (tiny(data__dir="/elsewhere"), tiny(num_devices=2)):
        shared_training.take_over(folder, other, [source])
        assert not folder.exists()  # trained on other data, or in another order of sums
    rename = Path.rename

    def killed(path, target):
        rename(path, target)
        if target.name == "checkpoints":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", killed)
        shared_training.take_over(folder, tiny(calibration__name="head_norm"), [source])
    assert (folder / "metrics.jsonl").exists()
    with pytest.raises(UsageError, match="holds a run with seed=0"):
        workdir.claim(folder, tiny(seed=1))


def test_the_command_calibrates_a_trained_run(trained, tmp_path):
    """As a process: trained as it is, then `--mode=evaluate` with a calibration."""
    common = [
        sys.executable, "launch.py", "--config=configs/digits.py:smoke", f"--workdir={tmp_path}",
        "--config.model.width=8", "--config.attack.num_steps=2", "--config.validation.num_steps=2",
        "--config.total_epochs=1", "--config.evaluate.attacks=clean,pgd5",
        "--config.evaluate.radii=()",
    ]  # fmt: skip
    first = subprocess.run(common, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert first.returncode == 0, first.stderr
    second = subprocess.run(
        [*common, "--mode=evaluate", "--config.calibration.name=class_bias",
         "--config.calibration.num_steps=5"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert second.returncode == 0, second.stderr
    assert "worst class on validation images under attack" in " ".join(second.stdout.split())
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["calibration"]["name"] == "class_bias"
    assert "calibration=class_bias" in (tmp_path / "report" / "table.md").read_text()
