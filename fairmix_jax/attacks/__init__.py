"""Adversarial attacks as functions of `logits_fn`, usable on any JAX model."""

from fairmix_jax.attacks.apgd import apgd, apgd_targeted
from fairmix_jax.attacks.autoattack import autoattack, robustness_curve
from fairmix_jax.attacks.fab import fab, fab_targeted
from fairmix_jax.attacks.pgd import fgsm, mi_fgsm, pgd
from fairmix_jax.attacks.report import AttackReport
from fairmix_jax.attacks.square import square
from fairmix_jax.attacks.stepwise import Randomized
from fairmix_jax.types import ThreatModel

__all__ = [
    "AttackReport", "Randomized", "ThreatModel", "apgd", "apgd_targeted", "autoattack", "fab",
    "fab_targeted", "fgsm", "mi_fgsm", "pgd", "robustness_curve", "square",
]  # fmt: skip
