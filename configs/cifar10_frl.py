"""FRL (Reweight + Remargin) on CIFAR-10, the published recipe: fine-tunes a robust network.

Command:  TFDS_DATA_DIR=DIR python launch.py --config=configs/cifar10_frl.py

Recipe of the official code of Xu et al. 2021 (arXiv 2010.06121): TRADES with beta 1.5,
L-inf 8/255, 10 steps of 2/255, 40 epochs at learning rate 1e-3, 6 % of the training set
validate with PGD-20. It starts from the last weights of a `cifar10_pgd_at` run that has not
seen these 6 %: `--config=configs/cifar10_pgd_at.py --workdir=runs/cifar10_pgd_at_val6
--config.data.val_fraction=0.06`. The original's starting weights are not available.
"Reweight" alone: `--config.rule.radius_rate=0 --config.rule.tolerance=0.1`.

Published: average / worst class in %, clean; AutoAttack (Wei et al. 2023, arXiv 2303.14460,
table 1, best chosen on the test set, PreActResNet-18, their rerun): best 82.8 / 71.4; 45.9
/ 25.4, last 82.8 / 72.9; 44.7 / 23.1. The paper's own tables were not read. Ours: not run.
"""

from configs import base, cifar10_pgd_at


def get_config(arg: str = ""):
    """Returns the config; `:smoke` trains a narrow network on 500 images and tests on 100."""
    smoke = base.variant(arg)
    config = cifar10_pgd_at.get_config(arg).unlock()
    config.base.name = "trades"
    config.base.beta = 1.5
    config.rule.name = "frl"
    config.attack.batch_norm = "eval"
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "constant"
    config.data.val_fraction = 0.06
    if not smoke:
        config.hot_start.workdir = "runs/cifar10_pgd_at_val6"
        config.total_epochs = 40
        config.validation.num_steps = 20
    return config.lock()
