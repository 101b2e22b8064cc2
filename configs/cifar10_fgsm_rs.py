"""Fast adversarial training on CIFAR-10: FGSM from a random start.

Command:  TFDS_DATA_DIR=DIR python launch.py --config=configs/cifar10_fgsm_rs.py

Recipe of the official code of Wong et al. 2020 (arXiv 2001.03994): PreActResNet-18,
15 epochs, learning rate up to 0.2 and down again, one step of 10/255 at L-inf 8/255. The
loop reports catastrophic overfitting (`catastrophic_overfitting` in metrics.jsonl).

Published: class-wise numbers are not available. Ours: not run.
"""

from configs import base, cifar10_pgd_at


def get_config(arg: str = ""):
    """Returns the config; `:smoke` trains a narrow network on 500 images and tests on 100."""
    smoke = base.variant(arg)
    config = cifar10_pgd_at.get_config(arg).unlock()
    config.base.name = "fgsm_rs"
    config.optim.learning_rate = 0.2
    config.optim.schedule = "linear"
    config.optim.warmup = 0.5
    if not smoke:
        config.total_epochs = 15
    return config.lock()
