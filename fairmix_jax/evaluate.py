"""Evaluation: class counts, clean and under attack, on the test set."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from fairmix_jax import attacks, data, evaluate_ensemble, export, metrics, suite
from fairmix_jax.checkpoint import Checkpoints
from fairmix_jax.class_statistics import count
from fairmix_jax.config import resolved
from fairmix_jax.data import Split, batches
from fairmix_jax.errors import UsageError
from fairmix_jax.experiment import Experiment
from fairmix_jax.export import write_json
from fairmix_jax.progress import console
from fairmix_jax.types import ApplyFn, Array, Batch, Key, Weights

_STATISTICS = ("average", "worst_class", "worst_class_name", "gap", "std")

EvalAttack = Callable[..., Any]
"""`(logits_fn, key, images, labels, *, index) -> images`, or several arrays of them."""
Counter = Callable[[Weights, Batch, Key], Any]
"""Returns `ClassCounts` for each array of images of its attack."""


def make_counter(apply_fn: ApplyFn, attack: EvalAttack | None, num_classes: int) -> Counter:
    """Returns a jitted counter; one of an attack that returns several arrays counts each.

    Args:
      apply_fn: the model; used with running batch statistics.
      attack: how to perturb, or `None` for clean accuracy.
      num_classes: `K`.
    """

    @jax.jit
    def counter(weights: Weights, batch: Batch, key: Key) -> Any:
        def logits_fn(images: Array) -> Array:
            return apply_fn(weights.params, weights.batch_stats, images, train=False)[0]

        images = batch.images
        if attack is not None:
            images = attack(logits_fn, key, images, batch.labels, index=batch.index)
        return jax.tree.map(lambda x: count(logits_fn(x), batch, num_classes=num_classes), images)

    return counter


def count_split(
    counter: Counter, weights: Weights, split: batches.DeviceSplit, key: Key, *, batch_size: int
) -> Any:
    """Returns the counts of a whole split, summed over batches, as NumPy arrays."""
    parts = [counter(weights, batch, key) for batch in batches.in_order(split, batch_size)]
    return jax.tree.map(lambda *counts: np.sum(np.stack(counts), axis=0), *parts)


def run(config: ConfigDict, experiment: Experiment, workdir: Path) -> dict[str, Any]:
    """Evaluates the weights in `workdir` on the test set and writes the results there.

    Writes `evaluation.json`, `model.safetensors` and `model.json`, and for each of
    AutoAttack's kind `attacks/NAME/verdicts.npz`, what became of every image. An example's random
    numbers depend on the seed, the attack's name and its position in the test set only.
    AutoAttack goes on where it was interrupted.

    Returns: the content of `evaluation.json`.

    Raises:
      UsageError: there is no trained model in `workdir`, or an attack is unknown.
    """
    chosen = suite.parse(config.evaluate.attacks)
    weights, facts = load_weights(workdir, config.evaluate.weights, experiment)
    names = list(experiment.dataset.class_names)
    test = experiment.dataset.test
    rows = data.balanced_rows(test.labels, config.evaluate.num_examples)
    split = test.take(rows)
    results = {}
    for named in chosen:
        if named.kind == "ensemble":
            directory = workdir / "attacks" / named.name
            options = evaluate_ensemble.Options(
                seed=config.seed,
                batch_size=config.evaluate.batch_size,
                search_dtype=config.evaluate.search_dtype,
                save_adversarial=config.evaluate.save_adversarial,
                masking=config.evaluate.masking,
            )
            result = evaluate_ensemble.run(
                named, experiment, weights, split, rows, directory, options
            )
        else:
            result = _run_batchwise(named, config, experiment, weights, split)
        results[named.name] = result
        console.print(
            f"{named.name}: average {result['average']:.1%}, worst class "
            f"{result['worst_class']:.1%} ({result['worst_class_name']}), "
            f"{len(rows):,} test images in {result['seconds']:.1f} s"
        )
    evaluation = {
        "schema": 1,
        "dataset": config.data.name,
        "classes": names,
        "threat": {"norm": experiment.threat.norm, "epsilon": experiment.threat.epsilon},
        "weights": config.evaluate.weights,
        "attacks": results,
        "settings": resolved(config)["evaluate"],
    }
    export.save_model(workdir, weights, experiment.model_card | facts, evaluation)
    write_json(workdir / "evaluation.json", evaluation)
    return evaluation


def _run_batchwise(
    named: suite.Named, config: ConfigDict, experiment: Experiment, weights: Weights, split: Split
) -> dict[str, Any]:
    """The result of a clean evaluation or a fixed number of steps; PGD's with any iterate."""
    settings = resolved(config)["evaluate"]
    names = experiment.dataset.class_names
    options = {"threat": experiment.threat, "num_restarts": settings["num_restarts"]}
    attack: EvalAttack | None = {
        "clean": lambda: None,
        "fgsm": lambda: partial(attacks.fgsm, **options),
        "mifgsm": lambda: partial(attacks.mi_fgsm, num_steps=named.num_steps, **options),
        "pgd": lambda: partial(
            attacks.pgd, num_steps=named.num_steps, step_size=settings["step_size"], keep="both",
            **options,
        ),
    }[named.kind]()  # fmt: skip
    counter = make_counter(experiment.model.apply, attack, len(names))
    key = jax.random.fold_in(jax.random.key(config.seed), named.num_steps)
    start = time.perf_counter()
    counts = count_split(
        counter, weights, batches.to_device(split), key, batch_size=config.evaluate.batch_size
    )
    seconds = time.perf_counter() - start
    if named.kind != "pgd":
        return metrics.result(*counts, names, seconds=seconds)
    last, any_iterate = counts
    result = metrics.result(*last, names, seconds=seconds)
    found = metrics.result(*any_iterate, names, seconds=seconds)
    return result | {"any_iterate": {k: found[k] for k in ("class_correct", *_STATISTICS)}}


def load_weights(
    workdir: Path, which: str, experiment: Experiment
) -> tuple[Weights, dict[str, Any]]:
    """Returns the weights in `workdir`, `which` is `"best"` or `"last"`, and facts about them.

    Raises:
      UsageError: `workdir` holds no sound checkpoint of them.
    """
    directory = workdir / "checkpoints" / which
    restored = None
    if directory.is_dir():
        with Checkpoints(directory, max_to_keep=1) as checkpoints:
            restored = checkpoints.restore_latest(weights_template(experiment))
    if restored is None:
        raise UsageError(
            f"evaluate.weights={which!r} are not in workdir={str(workdir)!r}; "
            "train there first with --mode=train, and for 'best' with data.val_fraction > 0"
        )
    return restored


def weights_template(experiment: Experiment) -> Weights:
    """Returns zeros with the structure, shapes and types of the model's weights."""
    shapes = jax.eval_shape(lambda: Weights(*experiment.model.init(jax.random.key(0))))
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
