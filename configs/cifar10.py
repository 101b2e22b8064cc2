"""The accelerator recipe: PGD-AT of a PreActResNet-18 on CIFAR-10, L-inf 8/255.

Command:  TFDS_DATA_DIR=DIR python launch.py --config=configs/cifar10.py

`cifar10_recipes.py` has a recipe for each method: `--config=configs/cifar10.py:dafa` trains in
`runs/cifar10-dafa`, `:dafa-smoke` tries it out. Recipes that fine-tune start from
`runs/cifar10-pgd_at`, which `:pgd_at` makes.

The plain recipe is after Rice et al. 2020 (arXiv 2002.11569), with weight averaging and Nesterov
momentum: 200 epochs, learning rate 0.1 divided by ten at epochs 100 and 150, PGD-10 with
step 2/255, random crop and flip.

Runtime: one training step takes 30 ms on an H100 (80 GB; jax 0.11.2, 2026-11-23; random
images), so an epoch about 12 s and the run about 40 minutes, the evaluation apart. Result:
not run.
"""

from fairmix_jax.lab.config import default_config
from fairmix_jax.lab.configs.cifar10_recipes import RECIPES


def get_config(arg: str = ""):
    """Returns the config of a recipe, `:RECIPE`, or the plain one.

    `:smoke` and `:RECIPE-smoke` train a narrow network on 500 images and test on 100.
    """
    name = arg.removesuffix("smoke").removesuffix("-")
    smoke = arg != name
    if arg not in (name, f"{name}-smoke".removeprefix("-")) or name not in ("", *RECIPES):
        raise ValueError(
            f"variant {arg!r} is unknown; give ':smoke', or ':RECIPE' or ':RECIPE-smoke' with a "
            f"RECIPE of {', '.join(RECIPES)}"
        )
    return _config(name, smoke).lock()


def _config(name: str, smoke: bool):
    if not name:
        return _plain(smoke)
    recipe = RECIPES[name]
    config = _config(recipe.after, smoke)
    config.update_from_flattened_dict(recipe.changes)
    config.update_from_flattened_dict(recipe.smoke if smoke else recipe.full)
    return config


def _plain(smoke: bool):
    config = default_config()
    config.data.name = "cifar10"
    config.data.val_fraction = 0.02
    config.data.crop_padding = 4
    config.data.flip = True

    config.total_epochs = 200
    config.model.name = "preact_resnet"
    config.model.depth = 18
    config.model.width = 64
    config.attack.epsilon = 8 / 255
    config.attack.step_size = 2 / 255
    config.attack.num_steps = 10
    config.optim.learning_rate = 0.1
    config.optim.weight_decay = 5e-4
    config.optim.milestones = (0.5, 0.75)
    config.averaging.name = "ema"
    config.averaging.decay = 0.999
    config.checkpoint.every_epochs = 5

    if smoke:
        config.total_epochs = 1
        config.batch_size = 50
        config.model.width = 8
        config.attack.num_steps = 2
        config.data.num_train = 500
        config.data.val_fraction = 0.1
        config.validation.num_steps = 2
        config.evaluate.attacks = "clean,pgd5"
        config.evaluate.num_examples = 100
        config.evaluate.batch_size = 100
        config.averaging.decay = 0.9
    return config
