"""FAAL on CIFAR-10, the published recipe: two epochs of fine-tuning.

Command:  TFDS_DATA_DIR=DIR python launch.py --config=configs/cifar10_faal.py

Recipe of the official code of Zhang et al. 2024 (arXiv 2402.17729): two epochs from a
robust network, here the last weights of `cifar10_pgd_at`, learning rate 0.01, then 0.001,
PGD-10 with step 2/255, batch norm in evaluation mode inside the attack, ball radius 0.5,
the whole training set. With AWP: `--config.awp.gamma=0.005`.

Published: average / worst class in % (logs in the official repository, checkpoint chosen on
test images): clean 80.7 / 65.9 (radius 1.0), AutoAttack 45.5 / 31.1 (radius 0.5). Ours: not
run.
"""

from configs import base, cifar10_pgd_at


def get_config(arg: str = ""):
    """Returns the config; `:smoke` trains a narrow network on 500 images and tests on 100."""
    smoke = base.variant(arg)
    config = cifar10_pgd_at.get_config(arg).unlock()
    config.rule.name = "faal"
    config.rule.ball_radius = 0.5
    config.attack.batch_norm = "eval"
    config.optim.learning_rate = 0.01
    config.optim.milestones = (0.5,)
    if not smoke:
        config.hot_start.workdir = "runs/cifar10_pgd_at"
        config.data.val_fraction = 0.0
        config.evaluate.weights = "last"
        config.total_epochs = 2
    return config.lock()
