"""Fast adversarial training on CIFAR-10: N-FGSM.

Command:  TFDS_DATA_DIR=DIR python launch.py --config=configs/cifar10_n_fgsm.py

Recipe of the official code of de Jorge et al. 2022 (arXiv 2202.01181):
PreActResNet-18, 30 epochs, learning rate up to 0.2 and down again, noise of twice the
radius, one step of the radius, no clipping to it. The loop reports catastrophic overfitting
(`catastrophic_overfitting` in metrics.jsonl).

Published: class-wise numbers are not available. Ours: not run.
"""

from configs import base, cifar10_pgd_at


def get_config(arg: str = ""):
    """Returns the config; `:smoke` trains a narrow network on 500 images and tests on 100."""
    smoke = base.variant(arg)
    config = cifar10_pgd_at.get_config(arg).unlock()
    config.base.name = "n_fgsm"
    config.optim.learning_rate = 0.2
    config.optim.schedule = "linear"
    config.optim.warmup = 0.5
    if not smoke:
        config.total_epochs = 30
    return config.lock()
