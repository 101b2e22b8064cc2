"""A bias for each class, fitted under attack: `fairmix_jax.calibration`.

`margin_table` attacks; `class_bias` and `frontier` find the biases that are best on its table;
`fit` also says how much of their gain is luck. `calibrate` does all of it for any function, and
`with_bias` adds the biases to it.
"""

from fairmix_jax.methods.class_bias.accuracies import margins, reached, shares
from fairmix_jax.methods.class_bias.calibrated import calibrate, with_bias
from fairmix_jax.methods.class_bias.cross_fitting import Fit, fit
from fairmix_jax.methods.class_bias.margin_tables import margin_table
from fairmix_jax.methods.class_bias.search import class_bias, frontier, objective_of

__all__ = [
    "Fit", "calibrate", "class_bias", "fit", "frontier", "margin_table", "margins", "objective_of",
    "reached", "shares", "with_bias",
]  # fmt: skip
