"""What PGD costs as steps, images and parameters grow by a factor of 16.

Command:  python launch.py --config=configs/benchmarks/attack_scaling.py --mode=benchmark

Wide residual networks of width 4 and depth 10 to 100, whose parameters and arithmetic grow
with their depth alike, but for the first layer. All members take turns, and the exponent of
each quantity comes from those that differ in it alone.

Runtime: 9 minutes on two cores of an Intel Xeon with AVX-512.
"""

from fairmix_jax.lab.config import is_smoke
from fairmix_jax.lab.configs.benchmarks import attack_throughput


def get_config(arg: str = ""):
    """Returns the config; `:smoke` varies images of 8x8 pixels only."""
    smoke = is_smoke(arg)
    config = attack_throughput.get_config().unlock()
    config.benchmark.bases = ""
    config.model.name = "wide_resnet"
    config.model.width = 4
    config.model.depth = 10
    config.batch_size = 8
    config.benchmark.rounds = 5
    config.benchmark.exponents = True
    config.benchmark.attacks = "pgd5,pgd10,pgd20,pgd40,pgd80"
    config.sweep = (
        "seed=0 | benchmark.attacks=pgd5 batch_size=16,32,64,128 "
        "| benchmark.attacks=pgd5 model.depth=16,28,52,100"
    )
    if smoke:
        config.data.height = config.data.width = 8
        config.model.width = 1
        config.benchmark.rounds = 1
        config.benchmark.attacks = "pgd1,pgd2,pgd4"
        config.sweep = "batch_size=32,64,128"
    return config.lock()
