"""Training: one pure step composed of four choices, and the loop that repeats it."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from fairmix_jax import attacks, evaluate, metrics, mixup, optim, plugins
from fairmix_jax.checkpoint import Checkpoints, digest
from fairmix_jax.data import batches
from fairmix_jax.errors import Interrupted, UsageError
from fairmix_jax.experiment import Experiment
from fairmix_jax.progress import TrainProgress, console
from fairmix_jax.signals import StopRequest
from fairmix_jax.types import (
    Array,
    Averaging,
    Base,
    Batch,
    ClassCounts,
    Key,
    Rule,
    StepInput,
    TrainState,
    Weights,
)
from fairmix_jax.writers import JsonlWriter, MultiWriter, TensorBoardWriter

Augment = Callable[[Key, Array], Array]


class StepMetrics(NamedTuple):
    """Sums over a batch; sums of several batches add.

    Attributes:
      loss: `[]`, the weighted losses summed over examples.
      counts: at the inputs trained on, so robust training accuracy for adversarial bases.
    """

    loss: Array
    counts: ClassCounts


TrainStep = Callable[[TrainState, Batch, Key], tuple[TrainState, StepMetrics]]


def make_train_step(
    *,
    augment: Augment,
    mixing: mixup.Mixing,
    base: Base,
    rule: Rule,
    averaging: Averaging,
    tx: optax.GradientTransformation,
    mixing_steps: int = 2**31 - 1,
) -> TrainStep:
    """Returns the training step, a pure function for the caller to jit and donate.

    One step: augment, mix, attack and loss (inside `base`), weighted mean over the batch,
    optimizer update, weight average. Its randomness is `fold_in(key, state.step)`.

    Args:
      augment: `(key, images) -> images`.
      mixing: see `mixup.Mixing`.
      base: per-example losses, with the model and the attack inside.
      rule: gives the knobs; its state is updated by the loop, once an epoch.
      averaging: which weights are evaluated.
      tx: the optimizer.
      mixing_steps: after this many steps nothing is mixed any more.

    Returns: `(state, batch, key) -> (state, metrics)`; the batch has no padding.
    """

    def train_step(state: TrainState, batch: Batch, key: Key) -> tuple[TrainState, StepMetrics]:
        augment_key, mixing_key, base_key = jax.random.split(jax.random.fold_in(key, state.step), 3)
        knobs = rule.knobs(state.rule_state)
        strength = jnp.where(state.step < mixing_steps, knobs.mixing, 0.0)
        images = augment(augment_key, batch.images)
        mixed = mixing(mixing_key, images, batch.labels, strength)
        inputs = StepInput(
            labels=batch.labels,
            radius=knobs.radius[batch.labels],
            beta=knobs.beta[batch.labels],
            **mixed._asdict(),
        )

        def loss_fn(params):
            result = base(params, state.batch_stats, base_key, inputs)
            losses = knobs.loss_weight[batch.labels] * result.losses
            return jnp.mean(losses), (jnp.sum(losses), result)

        gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (_, (loss, result)), gradient = gradient_fn(state.params)
        updates, opt_state = tx.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        step = state.step + 1
        weights = Weights(params, result.batch_stats)
        counts = evaluate.count(result.logits, batch, num_classes=mixed.targets.shape[1])
        state = state.replace(
            step=step,
            params=params,
            batch_stats=result.batch_stats,
            opt_state=opt_state,
            average=averaging.update(state.average, weights, step),
        )
        return state, StepMetrics(loss, counts)

    return train_step


class Trainer(NamedTuple):
    """A run's pure parts.

    Attributes:
      initial_state: before the first step.
      train_step: see `make_train_step`.
      rule, averaging: as given to the step; the loop calls their other functions.
    """

    initial_state: TrainState
    train_step: TrainStep
    rule: Rule
    averaging: Averaging


def assemble(config: ConfigDict, experiment: Experiment, *, total_steps: int, key: Key) -> Trainer:
    """Returns the training step and the initial state of a config; the key is consumed."""
    num_classes = len(experiment.dataset.class_names)
    attack = partial(
        attacks.pgd,
        threat=experiment.threat,
        num_steps=config.attack.num_steps,
        step_size=config.attack.step_size,
    )
    base = _member("bases", config.base, experiment.model.apply, attack)
    rule = _member("rules", config.rule, num_classes)
    averaging = _member("averaging", config.averaging)
    options = config.mixing.to_dict()
    off_epochs = options.pop("off_epochs")
    tx = optim.make(total_steps=total_steps, **config.optim)
    train_step = make_train_step(
        augment=partial(
            batches.augment, crop_padding=config.data.crop_padding, flip=config.data.flip
        ),
        mixing=_built(mixup.make, num_classes=num_classes, **options),
        base=base,
        rule=rule,
        averaging=averaging,
        tx=tx,
        mixing_steps=round(total_steps * (1 - off_epochs / config.total_epochs)),
    )
    params, batch_stats = experiment.model.init(key)
    state = TrainState(
        step=jnp.asarray(0, jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=tx.init(params),
        rule_state=rule.init(),
        average=averaging.init(Weights(params, batch_stats)),
    )
    return Trainer(state, train_step, rule, averaging)


def _member(axis: str, section: ConfigDict, *arguments: Any) -> Any:
    make = plugins.load(axis, section.name)
    return _built(make, *arguments, **plugins.arguments(axis, section))


def _built(make: Callable[..., Any], *arguments: Any, **fields: Any) -> Any:
    try:
        return make(*arguments, **fields)
    except ValueError as error:
        raise UsageError(str(error)) from error


def fit(config: ConfigDict, experiment: Experiment, workdir: Path) -> str:
    """Trains, or goes on training, in `workdir`; returns the sha256 of the final state.

    Guarantees: a run that is stopped at any moment, by any signal, and run again ends in
    the same state, bit for bit, as a run left alone on the same number of cores and
    devices. The test set is not touched.

    Raises:
      Interrupted: SIGTERM or SIGINT came; everything is saved.
      UsageError: the config cannot be built.
      FloatingPointError: the loss is no longer finite.
    """
    split, batch_size = batches.to_device(experiment.train), config.batch_size
    steps_per_epoch = len(split.labels) // batch_size
    total_steps = steps_per_epoch * config.total_epochs
    init_key, order_key, step_key = jax.random.split(jax.random.key(config.seed), 3)
    trainer = assemble(config, experiment, total_steps=total_steps, key=init_key)
    template = (trainer.initial_state, _zeros(len(experiment.dataset.class_names)))

    with (
        Checkpoints(workdir / "checkpoints" / "state", max_to_keep=2) as saved,
        StopRequest() as stop,
    ):
        restored = saved.restore_latest(template)
        state, totals = restored[0] if restored else template
        step = int(state.step)
        if step == total_steps:
            return digest(state)
        if step:
            console.print(f"resuming at step {step} of {total_steps}")
        train_step = _compile(trainer.train_step, state, split, batch_size, step_key)
        progress = TrainProgress(
            first_step=step,
            total_steps=total_steps,
            steps_per_epoch=steps_per_epoch,
            batch_size=batch_size,
        )
        with progress, _EpochEnd(config, experiment, trainer, workdir, step) as epoch_end:
            while step < total_steps:
                epoch = step // steps_per_epoch
                order = batches.epoch_order(order_key, epoch, size=len(split.labels))
                rows = np.asarray(order, np.int32)[: steps_per_epoch * batch_size]
                for batch_rows in rows.reshape(-1, batch_size)[step % steps_per_epoch :]:
                    batch = batches.take(split, batch_rows, batch_size)
                    state, measured = train_step(state, batch, step_key)
                    totals, step = _add(totals, measured), step + 1
                    progress.advance(step)
                    if stop.received:
                        break
                is_epoch_over = step % steps_per_epoch == 0
                if is_epoch_over:
                    state = epoch_end(state, totals, epoch + 1, progress)
                    totals = template[1]
                is_due = is_epoch_over and (epoch + 1) % config.checkpoint.every_epochs == 0
                if is_due or stop.received or step == total_steps:
                    saved.save(step, (state, totals))
                if stop.received and step < total_steps:
                    raise Interrupted(f"{stop.received}: saved at step {step} of {total_steps}")
    return digest(state)


class _EpochEnd:
    """What happens after an epoch: validation, the rule's update, best weights, the log.

    A context manager, which closes the files. Called as `(state, totals, epoch, progress)`
    with the epoch counted from 1, it returns the state with the rule's new state.
    """

    def __init__(
        self, config: ConfigDict, experiment: Experiment, trainer: Trainer, workdir: Path, step: int
    ):
        self._config, self._trainer = config, trainer
        self._directory = workdir / "checkpoints"
        self._best = Checkpoints(self._directory / "best", max_to_keep=1)
        self._writer = MultiWriter(
            JsonlWriter(workdir / "metrics.jsonl", last_step=step),
            TensorBoardWriter(workdir, last_step=step),
        )
        self._class_names = experiment.dataset.class_names
        self._split = batches.to_device(experiment.validation)
        num_classes = len(self._class_names)
        attack = evaluate.make_attack(
            config.validation.num_steps, experiment.threat, config.evaluate
        )
        apply_fn = experiment.model.apply
        self._clean = evaluate.make_counter(apply_fn, None, num_classes)
        self._robust = evaluate.make_counter(apply_fn, attack, num_classes)
        found = self._best.restore_latest(_weights(trainer, trainer.initial_state))
        self._best_score = found[1]["score"] if found else -1.0

    def __enter__(self) -> "_EpochEnd":
        return self

    def __exit__(self, *_) -> None:
        self._writer.close()
        self._best.__exit__()

    def __call__(
        self, state: TrainState, totals: StepMetrics, epoch: int, progress: TrainProgress
    ) -> TrainState:
        step, seen = int(state.step), int(totals.counts.total.sum())
        loss = float(totals.loss) / seen
        if not np.isfinite(loss):
            raise FloatingPointError(
                f"the training loss is {loss} after epoch {epoch}; lower optim.learning_rate"
            )
        scalars = {"epoch": epoch, "loss": loss} | self._scalars("train", totals.counts)
        clean = robust = None
        weights = _weights(self._trainer, state)
        is_last = epoch == self._config.total_epochs
        if is_last:
            with Checkpoints(self._directory / "last", max_to_keep=1) as last:
                last.save(step, weights)
        is_due = epoch % self._config.validation.every_epochs == 0 or is_last
        if len(self._split.labels) and is_due:
            counts = [self._measure(counter, weights) for counter in (self._clean, self._robust)]
            scalars |= self._scalars("val_clean", counts[0]) | self._scalars(
                "val_robust", counts[1]
            )
            clean, robust = scalars["val_clean/average"], scalars["val_robust/average"]
            self._keep_best(step, weights, robust + scalars["val_robust/worst_class"])
            rule_state = self._trainer.rule.update(state.rule_state, counts[1])
            state = state.replace(rule_state=rule_state)
        scalars["images_per_second"] = round(progress.images_per_second, 1)
        self._writer.write_scalars(step, scalars)
        progress.end_epoch(epoch, loss=loss, clean=clean, robust=robust)
        return state

    def _measure(self, counter, weights: Weights) -> ClassCounts:
        key = jax.random.key(self._config.seed)
        return evaluate.count_split(
            counter, weights, self._split, key, batch_size=self._config.evaluate.batch_size
        )

    def _scalars(self, prefix: str, counts: ClassCounts) -> dict[str, float]:
        summary = metrics.summarize(*counts)
        del summary["worst_class_index"]
        per_class = {
            f"class_{name}": float(correct / total)
            for name, total, correct in zip(
                self._class_names, *map(np.asarray, counts), strict=True
            )
            if total
        }
        return {f"{prefix}/{name}": value for name, value in (summary | per_class).items()}

    def _keep_best(self, step: int, weights: Weights, score: float) -> None:
        if score > self._best_score:
            self._best.save(step, weights, score=score)
            self._best_score = score


def _weights(trainer: Trainer, state: TrainState) -> Weights:
    return trainer.averaging.weights(state.average, Weights(state.params, state.batch_stats))


def _zeros(num_classes: int) -> StepMetrics:
    counts = ClassCounts(*(jnp.zeros(num_classes, jnp.int32) for _ in ClassCounts._fields))
    return StepMetrics(jnp.zeros(()), counts)


@jax.jit
def _add(a: StepMetrics, b: StepMetrics) -> StepMetrics:
    return jax.tree.map(jnp.add, a, b)


def _compile(
    train_step: TrainStep, state: TrainState, split: batches.DeviceSplit, batch_size: int, key: Key
) -> TrainStep:
    """Compiles ahead of time, so that the run has one shape and the wait is announced."""
    start = time.perf_counter()
    batch = batches.take(split, np.arange(batch_size, dtype=np.int32), batch_size)
    compiled = jax.jit(train_step, donate_argnums=0).lower(state, batch, key).compile()
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    console.print(
        f"compiled the training step in {time.perf_counter() - start:.1f} s "
        f"({size:,} parameters, {len(split.labels):,} training images, batches of {batch_size})"
    )
    return compiled
