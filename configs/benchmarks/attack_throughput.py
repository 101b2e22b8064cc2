r"""How fast attacks and training steps are: against their own gradients, and against others.

Command:  python launch.py --config=configs/benchmarks/attack_throughput.py --mode=benchmark
With what people use instead, of which what is not installed is skipped with a message:
          pip install -e '.[peers]' && pip install --no-deps torchattacks==3.5.1
          python launch.py --config=configs/benchmarks/attack_throughput.py --mode=benchmark \
              --config.benchmark.peers=true --config.benchmark.rounds=5

The small CNN on 28x28 images and PreActResNet-18 of width 16 on 32x32 ones, batches of 128,
random weights, noise for images: at a radius where nothing is ever broken, so that every
image pays for the whole attack. FAB-T has one target here and Square few queries; both cost
in proportion. Other models, batches and data types: `--config.sweep`, for example
"model.name=preact_resnet model.width=64 batch_size=128,512 evaluate.search_dtype=bfloat16".

Runtime: 16 minutes with peers on two cores of an Intel Xeon with AVX-512.
"""

from fairmix_jax.lab.config import default_config, is_smoke


def get_config(arg: str = ""):
    """Returns the config; `:smoke` times two rounds of a narrow network on 8x8 images."""
    smoke = is_smoke(arg)
    config = default_config()
    config.data.name = "noise"
    config.data.val_fraction = 0.0
    config.evaluate.weights = "last"
    config.base.name = "pgd_at"
    config.model.width = 16
    config.benchmark.rounds = 9
    config.benchmark.attacks = "pgd20,apgd100,fab-t50,square200"
    config.benchmark.bases = "standard,pgd_at,trades,mart"
    config.sweep = (
        "model.name=small_cnn data.height=28 data.width=28 data.channels=1 "
        "| model.name=preact_resnet model.depth=18"
    )
    if smoke:
        config.batch_size = 16
        config.attack.num_steps = 2
        config.benchmark.rounds = 2
        config.benchmark.attacks = "pgd2,apgd2,fab-t2,square2"
        config.benchmark.bases = "pgd_at"
        config.sweep = "model.width=8 data.height=8 data.width=8 data.channels=1"
    return config.lock()
