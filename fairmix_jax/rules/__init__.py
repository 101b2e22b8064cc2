"""Rules: from class statistics to knobs per class, one file each.

A file exports `make(num_classes, *, ...) -> Rule`; its keyword arguments are config fields.
"""
