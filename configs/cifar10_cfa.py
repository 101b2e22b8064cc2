"""CFA with PGD-AT on CIFAR-10, the published recipe.

Command:  TFDS_DATA_DIR=DIR python launch.py --config=configs/cifar10_cfa.py

Recipe of Wei et al. 2023 (arXiv 2303.14460): that of `cifar10_pgd_at`, class-wise radii 0.5
+ training robustness after 10 epochs, and gated weight averaging (FAWA). Paper and code
disagree on the average; see `averaging/fawa.py`.

Published: average / worst class in %, clean; AutoAttack (Wei et al. 2023, arXiv 2303.14460,
table 1, PreActResNet-18, best chosen on the test set): best 80.8 / 64.6; 50.1 / 24.4, last
83.6 / 68.7; 47.7 / 20.5. Plain AT with EMA: best 81.9 / 61.6; 49.6 / 21.3. Ours: not run.
"""

from configs import cifar10_pgd_at


def get_config(arg: str = ""):
    """Returns the config; `:smoke` trains a narrow network on 500 images and tests on 100."""
    config = cifar10_pgd_at.get_config(arg).unlock()
    config.rule.name = "cfa"
    config.rule.radius_offset = 0.5
    config.averaging.name = "fawa"
    return config.lock()
