"""Every config builds, is locked, holds plain data and has a smoke variant."""

import importlib

import pytest

from configs import base
from fairmix_jax import config as config_lib
from fairmix_jax import grid, plugins, study
from fairmix_jax.errors import UsageError

NAMES = sorted(
    path.stem
    for path in importlib.resources.files("configs").iterdir()
    if path.suffix == ".py" and path.stem not in ("base", "saved")
)


def get_config(name, arg=""):
    return importlib.import_module(f"configs.{name}").get_config(arg)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("arg", ["", "smoke"])
def test_config_is_valid_locked_and_plain(name, arg):
    config = get_config(name, arg)
    config_lib.check(config)
    assert config.is_locked
    for _, value in config_lib.flatten(config_lib.resolved(config)):
        assert isinstance(value, (str, int, float, bool, tuple, type(None)))
    for _, changes in grid.expand(config.sweep):
        for field in changes:
            config_lib.get(config, field)


@pytest.mark.parametrize("name", NAMES)
def test_other_variants_are_refused(name):
    with pytest.raises(ValueError, match="':smoke'"):
        get_config(name, "smok")


def test_the_configs_that_the_project_promises():
    promised = {"quickstart", "digits", "fashion_mnist", "cifar10", "cifar10_small", "synthetic"}
    methods = {
        "standard", "pgd_at", "trades", "mart", "fgsm_rs", "n_fgsm", "awp",
        "trades_awp", "frl", "cfa",
        "cfa_trades", "wat", "dafa", "cfol", "faal", "chi2_dro", "variance", "trix", "head_norm",
        "fairmix_adaptive", "same_class", "cross_class",
    }  # fmt: skip
    assert promised | {f"cifar10_{name}" for name in methods} <= set(NAMES)


METHODS = [name for name in NAMES if name.startswith("cifar10_")]


@pytest.mark.parametrize("name", METHODS)
def test_method_configs_say_what_was_published_and_what_we_ran(name):
    text = importlib.import_module(f"configs.{name}").__doc__
    assert f"--config=configs/{name}.py" in text
    assert name == "cifar10_small" or (
        "Published:" in text and "Ours:" in text and ("not available" in text or "arXiv" in text)
    )


def test_accelerator_recipe():
    plain = config_lib.resolved(get_config("cifar10"))
    assert plain["model"] == {"name": "preact_resnet", "depth": 18, "width": 64, "norm": "batch"}
    assert plain["attack"] == {
        "norm": "linf", "epsilon": 8 / 255, "step_size": 2 / 255, "num_steps": 10,
        "batch_norm": "eval",
    }  # fmt: skip
    assert plain["optim"]["name"] == "sgd" and plain["optim"]["nesterov"]
    assert plain["optim"]["schedule"] == "piecewise" and plain["averaging"]["name"] == "ema"


def test_base_has_a_field_for_every_member_argument():
    config = base.get_config()
    for axis in ("data", "models", "bases", "rules", "averaging"):
        section = {"data": "data", "models": "model", "bases": "base", "rules": "rule"}.get(
            axis, axis
        )
        for field in plugins.all_parameters(axis):
            assert field in config[section]


def test_sweep_expands_to_its_grid_in_order():
    members = grid.expand("mixing.name=none,same_class seed=0,1")
    assert [name for name, _ in members] == [
        "mixing.name=none,seed=0",
        "mixing.name=none,seed=1",
        "mixing.name=same_class,seed=0",
        "mixing.name=same_class,seed=1",
    ]
    assert members[3][1] == {"mixing.name": "same_class", "seed": 1}
    assert grid.expand("") == []
    values = [changes for _, changes in grid.expand("a=(1,2),(3,4)")]
    assert values == [{"a": (1, 2)}, {"a": (3, 4)}]
    assert grid.single("a=1 b=x") == {"a": 1, "b": "x"}
    with pytest.raises(UsageError, match="'seed=0,1' has 2 members; give each field one value"):
        grid.single("seed=0,1")


@pytest.mark.parametrize("sweep", ["seed", "seed=", "=1", "seed=1,,2"])
def test_malformed_sweeps_are_named(sweep):
    with pytest.raises(UsageError, match="is not understood"):
        grid.expand(sweep)


@pytest.mark.parametrize(
    ("arm", "attack", "message"),
    [
        ("mixing.rate=none", "pgd20", r"study.arms: 'a': mixing\.rate is not a config field"),
        ("seed=0,1", "pgd20", r"study.arms: 'a': 'seed=0,1' has 2 members"),
        ("seed=0", "pgd10", "'pgd10' of P is not among evaluate.attacks='clean,pgd20'"),
    ],
)
def test_a_study_is_checked_before_it_begins(arm, attack, message, tmp_path):
    config = get_config("digits_study").unlock()
    config.study.arms = {"a": arm, "b": "seed=1"}
    config.study.predictions = (f"P: gap({attack}): a < b",)
    with pytest.raises(UsageError, match=message):
        config_lib.check(config)
        study.run(config, tmp_path, with_training=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_recipe_trains_its_smoke_variant_on_real_images(name, tfds_dir, tmp_path):
    config = get_config(name, "smoke").unlock()
    config.data.dir = tfds_dir
    study.run(config, tmp_path, with_training=True)
    assert (tmp_path / "report" / "table.md").exists()
