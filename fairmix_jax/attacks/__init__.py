"""Adversarial attacks as functions of `logits_fn`, usable on any JAX model."""

from fairmix_jax.attacks.pgd import pgd
from fairmix_jax.types import ThreatModel

__all__ = ["ThreatModel", "pgd"]
