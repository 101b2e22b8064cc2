"""Weight averaging: which weights are evaluated, one file each.

A file exports `make(*, ...) -> Averaging`, `checked`, and `SOURCE`. Averages cover the batch
statistics too, so that the averaged network is normalised by what its own weights produce.
"""

from fairmix_jax.runtime.registry import checked as checked
