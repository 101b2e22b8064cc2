"""Base losses: the per-example training loss and the attack inside it, one file each.

A file exports `make(apply_fn, attack, *, ...) -> Base`; its keyword arguments are config fields.
"""
