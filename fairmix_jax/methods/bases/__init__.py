"""Base losses: the per-example training loss and the attack before it, one file each.

A file exports `make(apply_fn, attack, *, ...) -> Base` and `SOURCE`; the keyword arguments
of `make` are config fields, and their defaults the published values; outside the ranges that
its docstring gives it raises a ValueError. `apply_fn` is the model, `attack` perturbs the images;
a base sets its `start` and `noise`, see `TrainingAttack`. To add one, copy `pgd_at.py`.
"""
