"""No calibration: the weights are evaluated as they were trained."""

from fairmix_jax.types import Calibration, Source

SOURCE = Source("-")


def make(num_classes: int) -> Calibration:
    """Returns the calibration that changes nothing."""
    del num_classes
    return Calibration(lambda weights, data: (weights, {}))
