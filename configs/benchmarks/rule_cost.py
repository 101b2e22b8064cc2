r"""What rules, bases and weight perturbation cost a training step.

Command:  TFDS_DATA_DIR=DIR python launch.py --mode=benchmark \
              --config=configs/benchmarks/rule_cost.py

TRADES of the small CNN on Fashion-MNIST, PGD-10, batches of 128, each member timed between
two runs of the first. What rules do between epochs is not in it. The figures in
docs/methods.md come from `results/rule_cost.json`, which is this command's `benchmark.json`.

Runtime: 6 minutes on two cores of an Intel Xeon with AVX-512.
"""

from fairmix_jax.lab.config import is_smoke
from fairmix_jax.lab.configs import fashion_mnist


def get_config(arg: str = ""):
    """Returns the config; `:smoke` times two steps of a narrow network on the digits."""
    smoke = is_smoke(arg)
    config = fashion_mnist.get_config().unlock()
    config.base.name = "trades"
    config.averaging.name = "none"
    config.data.num_train = 5_000
    config.sweep = (
        "rule.name=none,frl,cfa,wat,dafa,trix,cfol,faal,chi2_dro,variance "
        "| mixing.name=same_class | rule.name=fairmix_adaptive mixing.name=same_class "
        "| base.name=standard,fgsm_rs,n_fgsm,pgd_at,mart | awp.gamma=0.005"
    )
    if smoke:
        config.data.name = "digits"
        config.data.num_train = 500
        config.model.width = 8
        config.attack.num_steps = 2
        config.benchmark.rounds, config.benchmark.steps = 1, 2
        config.sweep = "rule.name=none,faal,cfol"
    return config.lock()
