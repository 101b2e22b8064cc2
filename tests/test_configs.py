"""Every config builds, is locked, holds plain data and has a smoke variant."""

import importlib

import pytest
from conftest import ROOT

from fairmix_jax.lab import config as config_lib
from fairmix_jax.lab import sweeps
from fairmix_jax.lab.configs.cifar10_recipes import RECIPES
from fairmix_jax.runtime import field_texts, json_files, registry
from fairmix_jax.runtime.errors import UsageError

NAMES = sorted(
    ".".join(path.relative_to(ROOT / "configs").with_suffix("").parts)
    for path in (ROOT / "configs").rglob("*.py")
    if path.stem != "cifar10_recipes"
)
VARIANTS = [(name, arg) for name in NAMES for arg in ("", "smoke")]
VARIANTS += [("cifar10", arg) for name in RECIPES for arg in (name, f"{name}-smoke")]


def get_config(name, arg=""):
    return importlib.import_module(f"configs.{name}").get_config(arg)


@pytest.mark.parametrize(("name", "arg"), VARIANTS)
def test_config_is_valid_locked_and_plain(name, arg):
    config = get_config(name, arg)
    config_lib.check(config)
    assert config.is_locked
    for _, value in json_files.flatten(config_lib.resolved(config)):
        assert isinstance(value, (str, int, float, bool, tuple, type(None)))
    for _, changes in field_texts.expand(config.sweep):
        for field in changes:
            config_lib.get(config, field)


@pytest.mark.parametrize("name", NAMES)
def test_other_variants_are_refused(name):
    with pytest.raises(ValueError, match="':smoke'"):
        get_config(name, "smok")


@pytest.mark.parametrize(
    "arg", ["nosuch", "nosuch-smoke", "dafa-", "dafasmoke", "dafa-smok", "-smoke"]
)
def test_other_recipes_are_refused(arg):
    with pytest.raises(ValueError, match=f"{arg!r} is unknown; .* ':RECIPE-smoke' .* dafa, trix,"):
        get_config("cifar10", arg)


def test_the_configs_that_the_project_promises():
    promised = {"quickstart", "digits", "fashion_mnist", "cifar10", "synthetic"}
    recipes = {
        "small", "standard", "pgd_at", "trades", "mart", "fgsm_rs", "n_fgsm", "awp",
        "trades_awp", "frl", "cfa",
        "cfa_trades", "wat", "dafa", "cfol", "faal", "chi2_dro", "variance", "trix", "head_norm",
        "fairmix_adaptive", "same_class", "cross_class",
    }  # fmt: skip
    assert promised <= set(NAMES) and recipes <= set(RECIPES)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_recipes_say_what_was_published_and_what_we_ran(recipe):
    assert recipe.title and recipe.source and recipe.published and recipe.ours
    assert "not available" in recipe.published or "arXiv" in recipe.source


@pytest.mark.parametrize("name", ["faal", "frl", "head_norm"])
def test_fine_tuning_starts_where_pgd_at_trains_by_default(name):
    assert get_config("cifar10", name).hot_start.workdir.startswith("runs/cifar10-pgd_at")


def test_accelerator_recipe():
    plain = config_lib.resolved(get_config("cifar10"))
    assert plain["model"] == {
        "name": "preact_resnet", "depth": 18, "width": 64, "norm": "batch",
        "activation": "relu", "padding": "torch", "shortcut": "activated", "last_norm": True,
    }  # fmt: skip
    assert plain["attack"] == {
        "norm": "linf", "epsilon": 8 / 255, "step_size": 2 / 255, "num_steps": 10,
        "batch_norm": "eval",
    }  # fmt: skip
    assert plain["optim"]["name"] == "sgd" and plain["optim"]["nesterov"]
    assert plain["optim"]["schedule"] == "piecewise" and plain["averaging"]["name"] == "ema"


def test_base_has_a_field_for_every_member_argument():
    config = config_lib.default_config()
    assert "calibration" in registry.AXES
    for section, axis in registry.AXES.items():
        for name in registry.names(axis):
            assert registry.parameters(axis, name).keys() <= set(config[section])


def test_sweep_expands_to_its_grid_in_order():
    members = field_texts.expand("mixing.name=none,same_class seed=0,1")
    assert [name for name, _ in members] == [
        "mixing.name=none,seed=0",
        "mixing.name=none,seed=1",
        "mixing.name=same_class,seed=0",
        "mixing.name=same_class,seed=1",
    ]
    assert members[3][1] == {"mixing.name": "same_class", "seed": 1}
    assert field_texts.expand("") == []
    values = [changes for _, changes in field_texts.expand("a=(1,2),(3,4)")]
    assert values == [{"a": (1, 2)}, {"a": (3, 4)}]
    assert field_texts.single("a=1 b=x") == {"a": 1, "b": "x"}
    with pytest.raises(UsageError, match="'seed=0,1' makes 2 runs; give each field one value"):
        field_texts.single("seed=0,1")


@pytest.mark.parametrize(
    ("sweep", "names"),
    [
        ("hot_start.workdir=runs/a", ["hot_start.workdir=runs_a"]),
        ("w=a/b,a_b", ["w=a%2Fb", "w=a_b"]),
        ("w=a_b/c,a/b_c,a_b_c seed=0", ["w=a_b%2Fc,seed=0", "w=a%2Fb_c,seed=0", "w=a_b_c,seed=0"]),
        ("w=a/b|w=a_b", ["w=a%2Fb", "w=a_b"]),
        ("seed=0,0|seed=0", ["seed=0"]),
        ("w='my runs/a','b,c|d' x=[1,2]", ["w='my runs_a',x=[1,2]", "w='b,c|d',x=[1,2]"]),
        ("x=[1,2],[2,1]", ["x=[1,2]", "x=[2,1]"]),
    ],
)  # fmt: skip
def test_combinations_that_differ_have_names_that_differ(sweep, names):
    assert [name for name, _ in field_texts.expand(sweep)] == names


def test_texts_in_quotes_and_brackets_are_one_value():
    (run,) = field_texts.expand("w='my runs/a, b' x=[1,2] y=it's")
    assert run[1] == {"w": "my runs/a, b", "x": [1, 2], "y": "it's"}


def test_a_name_that_two_runs_would_share_is_refused():
    with pytest.raises(UsageError, match="two runs have the name 'w=a%2Fb'; give other values"):
        field_texts.expand("w=a/b,a_b,a%2Fb")


@pytest.mark.parametrize("sweep", ["seed", "seed=", "=1", "seed=1,,2"])
def test_malformed_sweeps_are_named(sweep):
    with pytest.raises(UsageError, match="is not understood"):
        field_texts.expand(sweep)


@pytest.mark.parametrize(
    ("arm", "attack", "message"),
    [
        ("mixing.rate=none", "pgd20", r"study.arms: 'a': mixing\.rate is not a config field"),
        ("seed=0,1", "pgd20", r"study.arms: 'a': 'seed=0,1' makes 2 runs"),
        ("seed=0", "pgd10", "'pgd10' of P is not among evaluate.attacks='clean,pgd20'"),
    ],
)
def test_a_study_is_checked_before_it_begins(arm, attack, message, tmp_path):
    config = get_config("studies.digits_study").unlock()
    config.study.arms = {"a": arm, "b": "seed=1"}
    config.study.predictions = (f"P: gap({attack}): a < b",)
    with pytest.raises(UsageError, match=message):
        config_lib.check(config)
        sweeps.run(config, tmp_path, with_training=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_its_smoke_variant_on_real_images(name, tfds_dir, tmp_path):
    config = get_config("cifar10", f"{name}-smoke").unlock()
    config.data.dir = tfds_dir
    sweeps.run(config, tmp_path, with_training=True)
    assert (tmp_path / "report" / "table.md").exists()
