"""How often programs are traced and compiled in a whole run: the training step once."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from jax.tree_util import Partial
from tiny import tiny

from fairmix_jax import evaluate_batchwise, train, trainer
from fairmix_jax.attacks import ThreatModel, autoattack
from fairmix_jax.attacks import crew as crews
from fairmix_jax.classwise import Settings, evaluate
from fairmix_jax.epoch_end import EpochEnd
from fairmix_jax.experiment import build


def test_a_run_traces_its_step_once_and_compiles_nothing_after_the_first_epoch(
    tmp_path, monkeypatch, compilations
):
    traces, after_epoch = [], []
    make, end = trainer.make_train_step, EpochEnd.__call__

    def counted(**options):
        step = make(**options)
        return lambda *arguments: traces.append(1) or step(*arguments)

    def noted(self, *arguments):
        state = end(self, *arguments)
        after_epoch.append(len(compilations))
        return state

    monkeypatch.setattr(trainer, "make_train_step", counted)
    monkeypatch.setattr(EpochEnd, "__call__", noted)
    config = tiny(total_epochs=4, rule__name="trix", averaging__name="ema")
    train.fit(config, build(config), tmp_path)
    assert sum(traces) == 1
    assert len(after_epoch) == 4 and len(set(after_epoch[1:])) == 1


@given(batch_size=st.integers(1, 4096), num_devices=st.integers(1, 8))
def test_a_pool_has_at_most_five_sizes(batch_size, num_devices):
    mesh = type("Mesh", (), {"size": num_devices})()
    crew = crews.Crew(*[None] * 7, mesh, batch_size, True, True)
    sizes = {crew.num_slots(number) for number in range(num_devices * batch_size + 1)}
    assert len(sizes) <= 5 and max(sizes) == batch_size
    assert all(crew.fewer(size) in sizes | {0} for size in sizes)


def test_attacks_of_a_whole_evaluation_have_at_most_five_shapes(monkeypatch):
    """AutoAttack on 300 images that break at all times, with compiling taken for free."""
    seen, judged = {}, {}
    advance, verdicts = crews.pools.advance, evaluate_batchwise._verdicts
    work = crews._work

    def recorded(attack, apply, work, pool, **options):
        seen.setdefault(attack, set()).add((work.images.shape, pool.slots.images.shape))
        return advance(attack, apply, work, pool, **options)

    def looked(logits, labels):
        judged.setdefault("shapes", set()).add(logits.shape)
        return verdicts(logits, labels)

    def timed(crew, attack, filled, num_steps, few):
        filled, gauge, _ = work(crew, attack, filled, num_steps, few)
        return filled, gauge, 1e6 * num_steps

    monkeypatch.setattr(crews.pools, "advance", recorded)
    monkeypatch.setattr(crews, "_work", timed)
    monkeypatch.setattr(crews, "_next_chunk", lambda chunk, seconds: 5)
    monkeypatch.setattr(evaluate_batchwise, "_verdicts", looked)
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
