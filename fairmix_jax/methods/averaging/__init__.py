"""Weight averaging: which weights are evaluated, one file each.

A file exports `make(*, ...) -> Averaging` and `SOURCE`; the keyword arguments are config fields,
and outside the ranges that its docstring gives `make` raises a ValueError.
Averages cover the batch statistics as well as the parameters, so that the averaged
network is normalised by what its own weights produce.
"""
