"""Evaluating and fine-tuning a model in a file, whose network, mean and std are its own."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import build, fit, tiny

from fairmix_jax import export
from fairmix_jax.data import digits
from fairmix_jax.lab import config as config_lib
from fairmix_jax.lab import sweeps
from fairmix_jax.models.described import build_model
from fairmix_jax.runtime.errors import UsageError
from fairmix_jax.training import assembly
from fairmix_jax.training.checkpoints import digest, stored_weights
from fairmix_jax.types import Weights

SOURCE = {"file": "theirs.pt", "sha256": 64 * "0", "zoo": "", "licence": "MIT"}
FACTS = {"dataset": "digits", "threat": {}, "weights": "imported"}


@pytest.fixture
def stranger(tmp_path):
    """Makes a file of a model with a mean and a std that no data of ours have."""

    def make(**model):
        card = {
            "model": {"name": "small_cnn", "width": 8, "norm": "batch"} | model,
            "image_shape": [8, 8, 1], "mean": [0.125], "std": [0.75],
            "classes": list("0123456789"), "source": SOURCE,
        }  # fmt: skip
        weights = Weights(*build_model(card).init(jax.random.key(3)))
        export.save_model(tmp_path / "theirs", weights, card, FACTS)
        return tmp_path / "theirs" / "model.safetensors", weights

    return make


@pytest.mark.filterwarnings("ignore:logits_fn has no gradient")  # a linear one starts at zero
def test_a_model_of_another_network_is_evaluated_as_its_card_says(stranger, tmp_path):
    """And the card of the evaluated model keeps where it is from."""
    file, _ = stranger(name="linear", width=None, norm=None)
    config = tiny(evaluate__weights=str(file), evaluate__attacks="clean,pgd2",
                  evaluate__num_examples=0)  # fmt: skip
    sweeps.run(config, tmp_path / "own", with_training=False)
    found = json.loads((tmp_path / "own" / "evaluation.json").read_text())
    test = digits.make().test
    logits_fn, _ = export.load_model(file)
    right = logits_fn(jnp.asarray(test.images / np.float32(255))).argmax(-1) == test.labels
    assert sum(found["attacks"]["clean"]["class_correct"]) == right.sum()
    card = json.loads((tmp_path / "own" / "model.json").read_text())
    assert card["source"]["licence"] == "MIT" and card["mean"] == [0.125]
    assert card["model"]["name"] == "linear" and card["dataset"] == "digits"
    assert found["method"] == "theirs.pt"
    said = (tmp_path / "own" / "model_card.md").read_text()
    assert "MIT" in said and "\n# linear imported from `theirs.pt`\n\n" in said
    assert "trained on" not in said and "weights of the run" not in said


@pytest.mark.parametrize("field", ["evaluate__weights", "hot_start__workdir"])
def test_a_model_of_other_data_is_refused(field, stranger, tmp_path):
    file, _ = stranger()
    card = json.loads(file.with_suffix(".json").read_text())
    del card["checksum"]
    for name, value in (("classes", list("abcdefghij")), ("image_shape", [8, 8, 3])):
        file.with_suffix(".json").write_text(json.dumps(card | {name: value}))
        config = tiny(**{field: str(file)})
        with pytest.raises(UsageError, match=rf"{field.replace('__', '.')}=.*its {name} is"):
            sweeps.run(config, tmp_path / "run", with_training="hot" in field)
    assert not (tmp_path / "run").exists()


def test_a_file_is_fine_tuned_with_its_own_mean_and_std(stranger, tmp_path):
    """They stay the network's: in training, in a checkpoint that goes on, and in the export."""
    file, weights = stranger()
    config = tiny(total_epochs=1, hot_start__workdir=str(file), optim__learning_rate=1e-30)
    task = build(config)
    assert task.model_card["mean"] == [0.125] and task.model_card["std"] == [0.75]
    found = assembly.hot_start(config_lib.settings(config), task)
    assert digest(found) == digest(weights)
    fit(config, task, tmp_path / "run")
    last, _ = stored_weights(tmp_path / "run", "last", task.model)
    for old, new in zip(*map(jax.tree.leaves, (weights.params, last.params)), strict=True):
        np.testing.assert_allclose(new, old, atol=1e-6)
    images = jax.random.uniform(jax.random.key(0), (4, 8, 8, 1))
    expected = export.load_model(file)[0](images)
    logits, _ = task.model.apply(*weights, images, train=False)
    np.testing.assert_allclose(logits, expected, rtol=1e-5)


def test_a_file_of_another_model_or_without_a_card_starts_nothing(stranger, tmp_path):
    file, _ = stranger(width=16)
    with pytest.raises(UsageError, match=r"hot_start\.workdir=.*its model is .*'width': 16"):
        sweeps.run(tiny(hot_start__workdir=str(file)), tmp_path / "run", with_training=True)
    file, _ = stranger()
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(UsageError, match=r"hot_start\.workdir=.* is damaged"):
        sweeps.run(tiny(hot_start__workdir=str(file)), tmp_path / "run", with_training=True)
    file.with_suffix(".json").unlink()
    with pytest.raises(UsageError, match=r"hot_start\.workdir=.*put file and card there"):
        sweeps.run(tiny(hot_start__workdir=str(file)), tmp_path / "run", with_training=True)
    assert not (tmp_path / "run").exists()
