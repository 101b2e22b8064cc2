"""How often programs are traced and compiled in a whole run: the training step once."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from jax.tree_util import Partial
from tiny import build, fit, tiny

from fairmix_jax.attacks import ThreatModel, autoattack, device_pools
from fairmix_jax.classwise import Settings, evaluate, step_attacks
from fairmix_jax.training import assembly
from fairmix_jax.training.epoch_end import EpochEnd


def test_a_run_traces_its_step_once_and_compiles_nothing_after_the_first_epoch(
    tmp_path, monkeypatch, compilations
):
    traces, after_epoch = [], []
    make, end = assembly.make_train_step, EpochEnd.__call__

    def counted(**options):
        step = make(**options)
        return lambda *arguments: traces.append(1) or step(*arguments)

    def noted(self, *arguments):
        state = end(self, *arguments)
        after_epoch.append(len(compilations))
        return state

    monkeypatch.setattr(assembly, "make_train_step", counted)
    monkeypatch.setattr(EpochEnd, "__call__", noted)
    config = tiny(total_epochs=4, rule__name="trix", averaging__name="ema")
    fit(config, build(config), tmp_path)
    assert sum(traces) == 1
    assert len(after_epoch) == 4 and len(set(after_epoch[1:])) == 1


@given(batch_size=st.integers(1, 4096), num_devices=st.integers(1, 8))
def test_a_pool_has_at_most_five_sizes(batch_size, num_devices):
    counts = range(num_devices * batch_size + 1)
    sizes = {device_pools.fitting(batch_size, -(-number // num_devices)) for number in counts}
    assert len(sizes) <= 5 and max(sizes) == batch_size
    assert all(device_pools.smaller(batch_size, size) in sizes | {0} for size in sizes)


def test_attacks_of_a_whole_evaluation_have_at_most_five_shapes(monkeypatch):
    """AutoAttack on 300 images that break at all times, with compiling taken for free."""
    seen, judged = {}, {}
    advance, verdicts = device_pools.slots.advance, step_attacks._verdicts
    work = device_pools._work

    def recorded(attack, apply, queue, pool, **options):
        seen.setdefault(attack, set()).add((queue.images.shape, pool.slots.item.shape))
        return advance(attack, apply, queue, pool, **options)

    def looked(logits, labels):
        judged.setdefault("shapes", set()).add(logits.shape)
        return verdicts(logits, labels)

    def timed(plan, attack, queue, pool, num_steps, few):
        pool, counts, _ = work(plan, attack, queue, pool, num_steps, few)
        return pool, counts, 1e6 * num_steps

    monkeypatch.setattr(device_pools.slots, "advance", recorded)
    monkeypatch.setattr(device_pools, "_work", timed)
    monkeypatch.setattr(device_pools, "_next_chunk", lambda chunk, seconds: 5)
    monkeypatch.setattr(step_attacks, "_verdicts", looked)
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.normal(size=(16, 5)), jnp.float32)
    images = rng.random((300, 4, 4, 1), np.float32)

    def apply(weights, images):
        return images.reshape(len(images), -1) @ weights

    labels = np.argmax(apply(weights, images), axis=1)
    threat = ThreatModel("linf", 0.02)
    logits_fn = Partial(apply, weights)
    autoattack(
        logits_fn, images, labels, threat=threat, version=["apgd-ce", "fab-t"], batch_size=256,
        devices=jax.devices()[:1],
    )  # fmt: skip
    assert len(seen) == 2 and all(1 < len(shapes) <= 5 for shapes in seen.values())
    evaluate(
        logits_fn, images, labels, class_names=list("abcde"), threat=threat,
        settings=Settings(attacks="clean,pgd2", step_size=0.01, batch_size=128),
    )  # fmt: skip
    assert judged["shapes"] == {(128, 5)}  # of the last, smaller batch too
