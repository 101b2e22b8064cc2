"""Weight averaging: which weights are evaluated, one file each.

A file exports `make(*, ...) -> Averaging`; its keyword arguments are config fields.
Averages cover the batch statistics as well as the parameters, so that the averaged
network is normalised by what its own weights produce.
"""
