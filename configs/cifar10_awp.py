"""PGD-AT with adversarial weight perturbation on CIFAR-10, the published recipe.

Command:  TFDS_DATA_DIR=DIR python launch.py --config=configs/cifar10_awp.py

Recipe of the official code of Wu et al. 2020 (arXiv 2004.05884): that of `cifar10_pgd_at`
with gamma 0.01 from the first epoch.

Published: average in %, clean; PGD-20 (logs in the official repository, best chosen on the
test set): best 81.2; 55.4, last 81.7; 54.3. Class-wise numbers and AutoAttack are not
available. Ours: not run.
"""

from configs import cifar10_pgd_at


def get_config(arg: str = ""):
    """Returns the config; `:smoke` trains a narrow network on 500 images and tests on 100."""
    config = cifar10_pgd_at.get_config(arg).unlock()
    config.awp.gamma = 0.01
    return config.lock()
