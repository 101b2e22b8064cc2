"""Run in a process of its own with eight CPU devices; prints JSON for `test_sharding.py`."""

import contextlib
import json
import sys
from unittest import mock

import jax

jax.config.update("jax_num_cpu_devices", 8)

import numpy as np  # noqa: E402
from tiny import assemble, build, tiny  # noqa: E402

from fairmix_jax import classwise  # noqa: E402
from fairmix_jax.lab.compile.tpu import collectives  # noqa: E402
from fairmix_jax.models.described import logits_partial  # noqa: E402
from fairmix_jax.runtime import sharding  # noqa: E402
from fairmix_jax.types import Weights  # noqa: E402

PARTS = dict(model__norm="batch:8", mixing__name="same_class", mixing__num_groups=8)
PROGRAMS = {
    "plain": PARTS,
    "seven_steps": PARTS | dict(attack__num_steps=7),
    "trades": PARTS | dict(base__name="trades"),
    "fgsm": PARTS | dict(base__name="fgsm_rs"),
    "dafa": PARTS | dict(rule__name="dafa"),
    "faal": PARTS | dict(rule__name="faal"),
    "awp": PARTS | dict(awp__gamma=0.01),
    "augmented": PARTS | dict(data__crop_padding=1, data__flip=True, averaging__name="ema"),
    "synchronised": dict(model__norm="batch"),
}


def placed(config, num_devices):
    """The compiled step on so many devices, and its arguments."""
    trainer, batches = assemble(config)
    mesh = sharding.data_mesh(jax.devices()[:num_devices])
    state = jax.device_put(trainer.initial_state, sharding.replicated(mesh))
    key = jax.device_put(jax.random.key(7), sharding.replicated(mesh))
    batches = [jax.device_put(batch, sharding.along_batch(mesh)) for batch in batches]
    step = jax.jit(trainer.train_step, out_shardings=sharding.replicated(mesh))
    return step.lower(state, batches[0], key).compile(), state, batches, key


def counted(name):
    step, state, *_ = placed(tiny(**PROGRAMS[name]), 8)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, state.batch_stats)))
    return {"weights": weights, "found": [c._asdict() for c in collectives(step.as_text())]}


def trained(num_devices):
    """Loss of each of 20 steps and the final parameters."""
    step, state, batches, key = placed(tiny(**PARTS), num_devices)
    losses = []
    for number in range(20):
        state, metrics = step(state, batches[number % len(batches)], key)
        losses.append(float(metrics.loss))
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.params)])
    return state, {"losses": losses, "params": flat.tolist()}


def judged(state, num_devices):
    """The verdict on each of 61 images, by attack, of an evaluation on so many devices."""
    task = build(tiny(**PARTS))
    weights = jax.tree.map(np.asarray, Weights(state.params, state.batch_stats))
    with mock.patch.object(jax, "local_devices", lambda: jax.devices()[:num_devices]):
        found = classwise.evaluate(
            logits_partial(task.model.apply, weights),
            *task.dataset.test.take(np.arange(61)),
            class_names=task.dataset.class_names,
            threat=task.threat,
            settings=classwise.Settings("clean,pgd5,apgd-ce", batch_size=32, masking=False),
        )
    return {name: result["verdicts"] for name, result in found["attacks"].items()}


if __name__ == "__main__":
    assert jax.device_count() == 8
    runs = {number: trained(number) for number in (1, 2, 4, 8)}
    with contextlib.redirect_stdout(sys.stderr):
        verdicts = {number: judged(runs[1][0], number) for number in runs}
    results = {
        "counts": {name: counted(name) for name in PROGRAMS},
        "runs": {number: found for number, (_, found) in runs.items()},
        "verdicts": verdicts,
    }
    json.dump(results, sys.stdout)
