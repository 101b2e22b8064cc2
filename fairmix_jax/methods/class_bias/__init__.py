"""A bias for each class, fitted under attack: `fairmix_jax.calibration`.

`calibrate` does all of it for any function, and `with_bias` adds the biases to it. Its parts:
`margin_table` attacks; `class_bias` and `frontier` find the biases that are best on its table;
`fit` shrinks them and says how much of their gain is luck; `margins`, `class_accuracies` and
`reached` read accuracies from a table.
"""

from fairmix_jax.methods.class_bias.accuracies import class_accuracies, margins, reached
from fairmix_jax.methods.class_bias.calibrated import calibrate, with_bias
from fairmix_jax.methods.class_bias.half_splits import Fit, fit
from fairmix_jax.methods.class_bias.margin_tables import margin_table
from fairmix_jax.methods.class_bias.search import class_bias, frontier

__all__ = [
    "Fit", "calibrate", "class_accuracies", "class_bias", "fit", "frontier", "margin_table",
    "margins", "reached", "with_bias",
]  # fmt: skip
