"""Base losses: the per-example training loss and the attack before it, one file each.

A file exports `make(apply_fn, attack, *, ...) -> Base` and `SOURCE`; the keyword arguments
of `make` are config fields, and their defaults the published values.
"""
