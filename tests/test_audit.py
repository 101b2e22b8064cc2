"""Models of others: one command evaluates a list of them, goes on where it was, and reports."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import torch_files
from conftest import ROOT
from safetensors.numpy import save
from scipy import stats

from fairmix_jax import classwise, data, export
from fairmix_jax.classwise import metrics
from fairmix_jax.data import batches, digits
from fairmix_jax.export import torch_export
from fairmix_jax.lab import audit
from fairmix_jax.lab import config as config_lib
from fairmix_jax.lab.configs.digits import get_config
from fairmix_jax.models.described import build_model
from fairmix_jax.report import audited
from fairmix_jax.runtime.errors import RunsFailed, UsageError
from fairmix_jax.runtime.json_files import write_json
from fairmix_jax.types import Weights

GUESTS = """
import jax.numpy as jnp
from flax import nnx
from beside import FACTOR


class Net(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, images):
        return FACTOR * self.layer(images.reshape(len(images), -1))


def nnx_net():
    return Net(nnx.Rngs(0))


def nine_classes():
    return lambda images: jnp.zeros((len(images), 9))


def broken():
    raise RuntimeError("no weights here")


def ends():
    import os, jax
    os.chdir("/")
    jax.config.update("jax_default_prng_impl", "rbg")
    raise SystemExit(0)


def late():
    def logits_fn(images):
        import beside
        return nnx_net()(images) / beside.FACTOR
    return logits_fn


def nothing():
    pass
"""


@pytest.fixture(scope="module")
def guests(tmp_path_factory):
    """Sources of models: two exported ones, and functions in a file."""
    folder = tmp_path_factory.mktemp("guests")
    card = {"image_shape": [8, 8, 1], "classes": list(digits.make().class_names)}
    card |= {"mean": [0.3], "std": [0.4], "model": {"name": "linear"}}
    facts = {"dataset": "digits", "threat": {"norm": "linf", "epsilon": 0.2}, "weights": "last"}
    for number, name in enumerate(("first", "second")):
        source = {"file": "x.pt", "sha256": 64 * "0", "zoo": f"cifar10/Linf/Zoo{number}"}
        own = card | {"source": source | {"licence": "", "parameters": 650, "assumed": []}}
        weights = Weights(*build_model(own).init(jax.random.key(number)))  # of zeros
        rng = np.random.default_rng(number)
        weights = jax.tree.map(
            lambda w, rng=rng: rng.normal(0, 0.3, w.shape).astype(np.float32), weights
        )
        export.save_model(folder / name, weights, own, facts)
    (folder / "beside.py").write_text("FACTOR = 2.0\n")
    (folder / "own.py").write_text(GUESTS)
    return folder


def settings(**changes):
    config = get_config("smoke")
    quick = {"evaluate.attacks": "clean,pgd2", "evaluate.num_examples": 100, "attack.epsilon": 0.1}
    with config.unlocked():
        config.update_from_flattened_dict(quick | changes)
    return config


def read(folder, name):
    return json.loads((folder / name / "evaluation.json").read_text())


def test_each_model_is_what_evaluate_finds_and_failing_ones_stop_no_other(guests, tmp_path):
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    (zoo / "Zoo1.json").write_text('{"clean_acc": "12.5", "autoattack_acc": "6.25"}')
    (zoo / "nnx_net.json").write_text('{"clean_acc": 50, "name": "x"}')
    models = [f"{guests}/first/model.safetensors", f"{guests}/own.py:broken"]
    models += [f"{guests}/own.py:nnx_net", f"{guests}/second", f"{guests}/own.py:nine_classes"]
    models[3] += "/model.safetensors"
    config = settings(**{"audit.published": str(zoo)})
    with pytest.raises(RunsFailed, match=r"2 of 5 models failed: broken: .*no weights here"):
        audit.run(config, models, tmp_path / "audit")
    states = json.loads((tmp_path / "audit" / "sweep.json").read_text())["members"]
    assert [state["status"] for state in states.values()] == [
        "done", "failed", "done", "done", "failed"
    ]  # fmt: skip
    assert "9" in states["nine_classes"]["error"]
    assert "RuntimeError" in (tmp_path / "audit" / "broken" / "error.txt").read_text()

    test = digits.make().test
    rows = data.balanced_rows(test.labels, 100)
    logits_fn, _ = export.load_model(guests / "second")
    again = classwise.evaluate(
        logits_fn, *test.take(rows), class_names=digits.make().class_names, rows=rows,
        threat=audit.build(config_lib.settings(config)).threat,
        settings=classwise.Settings(attacks="clean,pgd2", seed=config.seed),
    )  # fmt: skip
    found = read(tmp_path / "audit", "second")
    for name in ("clean", "pgd2"):
        assert found["attacks"][name]["verdicts"] == again["attacks"][name]["verdicts"]
    assert found["audit"]["published"] == {"clean_acc": 0.125, "autoattack_acc": 0.0625}
    table = (tmp_path / "audit" / "report" / "table.md").read_text()
    overall = f"{100 * again['attacks']['clean']['overall']:.1f}"
    assert f"| clean | second | {overall} | 12.5 |" in table
    assert "| clean | first | " in table and "calibrated" not in table
    assert "broken: failed: " in table


def test_a_calibrated_model_is_tested_on_images_that_did_not_choose_its_biases(guests, tmp_path):
    chosen = {"calibration.name": "class_bias", "evaluate.num_examples": 0}
    config = settings(**chosen | {"audit.fit_fraction": 0.4})
    config.calibration.num_steps = 2
    models = [f"{guests}/first/model.safetensors"]
    audit.run(config, models, tmp_path)
    before, after = (read(tmp_path, name) for name in ("first", "first/calibrated"))
    labels = digits.make().test.labels
    tested, _ = data.stratified_split(labels, 0.4)
    with np.load(tmp_path / "first" / "calibrated" / "attacks" / "pgd2" / "verdicts.npz") as stored:
        assert sorted(stored["row"]) == tested.tolist()
    totals = np.bincount(labels[tested], minlength=10).tolist()
    assert before["attacks"]["clean"]["class_total"] == totals
    assert after["attacks"]["clean"]["class_total"] == totals
    assert np.any(after["calibration"]["offsets"])

    logits_fn, _ = export.load_model(guests / "first")
    images = batches.as_float(digits.make().test.images[tested])
    predicted = np.argmax(
        np.asarray(logits_fn(images)) + np.array(after["calibration"]["offsets"]), axis=1
    )
    right = np.bincount(labels[tested][predicted == labels[tested]], minlength=10)
    assert after["attacks"]["clean"]["class_correct"] == right.tolist()
    table = (tmp_path / "report" / "table.md").read_text()
    assert "calibrated worst class" in table and "first, class_bias" in table


FIVE = """
import guests as nets

from fairmix_jax.models.adapters.equinox import equinox_logits
from fairmix_jax.models.adapters.nnx import nnx_logits


def of_nnx():
    return nets.trained("nnx")[1]


def of_equinox():
    return nets.trained("equinox")[1]
"""


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """Three models as PyTorch wrote them, imported by the command, one of NNX, one of Equinox."""
    folder = tmp_path_factory.mktemp("five")
    own = {"image_shape": [8, 8, 1], "classes": list("0123456789"), "mean": [0.3], "std": [0.4]}
    wanted = {
        "zip.pt": {"name": "small_cnn", "width": 4, "norm": "batch"},
        "legacy.pth": {"name": "small_cnn", "width": 8, "norm": "batch"},
        "plain.safetensors": {"name": "linear"},
    }
    for number, (name, model) in enumerate(wanted.items()):
        weights = Weights(*build_model(own | {"model": model}).init(jax.random.key(number)))
        state = torch_export.state_dict(export.tensors(weights), own | {"model": model})
        write = {".pt": torch_files.zipped, ".pth": torch_files.legacy, ".safetensors": save}
        (folder / name).write_bytes(write[Path(name).suffix](state))
        command = [sys.executable, "-m", "fairmix_jax.export.torch_import", str(folder / name)]
        command += [str(folder / Path(name).stem), "--image_shape=8,8,1", "--mean=0.3", "--std=0.4"]
        subprocess.run([*command, "--classes=0,1,2,3,4,5,6,7,8,9"], cwd=ROOT, check=True)
    (folder / "five.py").write_text(FIVE)
    shutil.copy(ROOT / "tests" / "guests.py", folder)
    imported = [f"{folder / Path(name).stem}/model.safetensors" for name in wanted]
    return [*imported, f"{folder}/five.py:of_nnx", f"{folder}/five.py:of_equinox"]


def test_five_models_are_one_command_that_goes_on_where_killed(five, tmp_path):
    command = [
        sys.executable, "launch.py", "--mode=audit", "--config=configs/digits.py:smoke",
        f"--workdir={tmp_path}", "--config.evaluate.attacks=clean,pgd3",
        "--config.evaluate.num_examples=100", *five,
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (tmp_path / "legacy" / "evaluation.json").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "of_equinox" / "evaluation.json").exists()
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.replace("\n", " ").count("clean, pgd3: kept") >= 2
    states = json.loads((tmp_path / "sweep.json").read_text())["members"]
    assert list(states) == ["zip", "legacy", "plain", "of_nnx", "of_equinox"]
    assert {state["status"] for state in states.values()} == {"done"}
    table = (tmp_path / "report" / "table.md").read_text()
    assert all(f"| pgd3 | {name} | " in table for name in states)
    assert (tmp_path / "report" / "index.html").exists()


def test_a_model_is_added_by_a_command_that_names_it_alone(guests, tmp_path):
    config = settings(**{"evaluate.attacks": "clean"})
    audit.run(config, [f"{guests}/first/model.safetensors"], tmp_path)
    audit.run(config, [f"{guests}/own.py:nnx_net"], tmp_path)
    states = json.loads((tmp_path / "sweep.json").read_text())["members"]
    assert [(name, of["status"]) for name, of in states.items()] == [
        ("first", "done"), ("nnx_net", "done")
    ]  # fmt: skip
    table = (tmp_path / "report" / "table.md").read_text()
    assert "| clean | first | " in table and "| clean | nnx_net | " in table


def test_another_card_is_another_model(guests, tmp_path):
    """Weights that are imported again with another mean are judged again."""
    folder = shutil.copytree(guests / "first", tmp_path / "first")
    config = settings(**{"evaluate.attacks": "clean"})
    audit.run(config, [f"{folder}/model.safetensors"], tmp_path / "audit")
    before = read(tmp_path / "audit", "first")
    card = json.loads((folder / "model.json").read_text())
    del card["checksum"]
    write_json(folder / "model.json", card | {"mean": [0.9]})
    audit.run(config, [f"{folder}/model.safetensors"], tmp_path / "audit")
    after = read(tmp_path / "audit", "first")
    assert before["attacks"]["clean"]["verdicts"] != after["attacks"]["clean"]["verdicts"]


def test_a_function_with_other_gradients_is_another_model(tmp_path):
    """Who takes away what hid the gradients audits again, with the same logits."""
    text = "import jax\ndef net():\n    return lambda x: 3 * {}.reshape(len(x), -1)[:, 20:30]\n"
    (tmp_path / "own.py").write_text(text.format("jax.lax.stop_gradient(x)"))
    with pytest.warns(UserWarning, match="no gradient"):
        audit.run(settings(), [f"{tmp_path}/own.py:net"], tmp_path / "audit")
    (tmp_path / "own.py").write_text(text.format("x"))
    audit.run(settings(), [f"{tmp_path}/own.py:net"], tmp_path / "audit")
    attacks = read(tmp_path / "audit", "net")["attacks"]
    assert attacks["pgd2"]["average"] < attacks["clean"]["average"]


def test_what_a_guest_does_to_the_process_is_undone(guests, tmp_path, monkeypatch):
    """Helpers of the same name are each guest's own; JAX, folder and process are as before."""
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "beside.py").write_text("FACTOR = -2.0\n")
    shutil.copy(guests / "own.py", tmp_path / "b" / "other.py")
    (tmp_path / "b" / "other.py").write_text(GUESTS.replace("nnx_net", "other_net"))
    monkeypatch.chdir(tmp_path)
    models = [f"{guests}/own.py:{name}" for name in ("ends", "nnx_net", "nothing", "late")]
    with pytest.raises(RunsFailed, match=r"2 of 5 models failed: ends: .*ended the process"):
        audit.run(settings(), [*models, "b/other.py:other_net"], Path("audit"))
    states = json.loads((tmp_path / "audit" / "sweep.json").read_text())["members"]
    assert "returned None" in states["nothing"]["error"]
    assert Path.cwd() == tmp_path and jax.config.jax_default_prng_impl == "threefry2x32"
    assert not {"own", "other", "beside"} & set(sys.modules)
    images = batches.as_float(digits.make().test.images[:50])
    found = [read(tmp_path / "audit", name) for name in ("nnx_net", "other_net")]
    ours, theirs = (np.array(f["attacks"]["clean"]["class_correct"]) for f in found)
    assert len(images) and (ours != theirs).any()


def test_runs_and_sweeps_are_not_replaced(guests, tmp_path):
    (tmp_path / "first" / "checkpoints").mkdir(parents=True)
    write_json(tmp_path / "sweep.json", {"members": {"first": {"status": "done"}}})
    before = sorted(tmp_path.rglob("*"))
    for name in ("first", "second"):
        with pytest.raises(UsageError, match="first' holds a run; give another --workdir"):
            audit.run(settings(), [f"{guests}/{name}/model.safetensors"], tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("value", ["-5", "900", "nan", "true", '"1e999"', "[1]"])
def test_a_published_number_is_a_share(value, guests, tmp_path):
    (tmp_path / "Zoo0.json").write_text(f'{{"clean_acc": {value}}}')
    with pytest.raises(UsageError, match=r"Zoo0\.json' is no model's JSON"):
        audit._published(str(tmp_path))


@pytest.mark.parametrize(
    "models, message",
    [
        ([], "names no model"),
        (["{guests}/nowhere.safetensors"], "does not exist"),
        (["{guests}/own.py"], "is no FILE.safetensors and no FILE.py:NAME"),
        (["{guests}/first/model.safetensors"] * 2, "two models are named 'first'"),
    ],
)
def test_a_wrong_list_writes_nothing(models, message, guests, tmp_path):
    models = [model.format(guests=guests) for model in models]
    with pytest.raises(UsageError, match=message):
        audit.run(settings(), models, tmp_path / "audit")
    for wrong in ({"calibration.name": "head_norm"}, {"audit.published": "/nowhere"}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            audit.run(settings(**wrong), [f"{guests}/own.py:nnx_net"], tmp_path / "audit")
    assert not list(tmp_path.iterdir())


def test_gini_is_that_of_the_sorted_list_and_0_where_all_are_equal():
    total, correct = [4, 5, 10, 0], [1, 4, 3, 0]
    values = np.sort(np.divide(correct[:3], total[:3]))
    ranks = np.arange(1, 4)  # the other usual form of the coefficient
    expected = 2 * (ranks * values).sum() / (3 * values.sum()) - 4 / 3
    assert metrics.gini(total, correct) == pytest.approx(expected)
    assert metrics.gini([3, 3], [0, 0]) == 0 == metrics.gini([2, 4], [1, 2])


def test_over_models_counts_worst_classes_and_ranks():
    def one(worst, average, lowest):
        before = dict.fromkeys(("average", "overall", "gap", "gini"), average)
        return audited._Audited(np.nan, worst, before | {"worst_class": lowest}, {})

    every = [("cat", 0.5, 0.1), ("dog", 0.6, 0.3), ("cat", 0.7, 0.2), ("cat", 0.8, 0.4)]
    models = {str(n): one(*values) for n, values in enumerate(every)}
    (row,) = audited._over_models({"clean": models}).rows
    rho = stats.spearmanr([e[1] for e in every], [e[2] for e in every]).statistic
    assert row == ["clean", "4", "cat 3, dog 1", f"{rho:+.2f}", "–", "–"]
    models.pop("0")
    assert audited._over_models({"clean": models}).rows[0][3] == "–"
