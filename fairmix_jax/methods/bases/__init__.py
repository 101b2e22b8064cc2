"""Base losses: the per-example training loss and the attack before it, one file each.

A file exports `make(apply_fn, attack, *, ...) -> Base`, `checked`, whose defaults are the
published values, and `SOURCE`. `apply_fn` is the model, `attack` perturbs the images; a base sets
its `start` and `noise`, see `TrainingAttack`. To add one, copy `pgd_at.py`.
"""

from fairmix_jax.runtime.registry import checked as checked
