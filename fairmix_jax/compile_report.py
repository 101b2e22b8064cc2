"""Will it run on that pod? Compiles a config's programs for named TPUs, on any Linux machine.

XLA's compiler for TPUs (libtpu) needs no TPU: it says what a program needs of a chip, what
the chips tell each other, and refuses what does not fit.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fairmix_jax import (
    compile_tables,
    cost_model,
    evaluate_batchwise,
    grid,
    sharding,
    suite,
    tpu,
    trainer,
)
from fairmix_jax.attacks import crew
from fairmix_jax.attacks.autoattack import members
from fairmix_jax.attacks.stepwise import partial_of
from fairmix_jax.config import resolved
from fairmix_jax.errors import UsageError
from fairmix_jax.evaluate import logits_partial, weights_template
from fairmix_jax.experiment import Experiment, build
from fairmix_jax.export import write_json
from fairmix_jax.progress import console
from fairmix_jax.tables import markdown, rich_table
from fairmix_jax.tpu import Compiled, DoesNotFit
from fairmix_jax.types import Batch, TrainState

_MOST_IMAGES = 2**20


def run(config: ConfigDict, directory: Path) -> dict[str, Any]:
    """Compiles the training step, evaluations and attacks of a config for `compile.topology`.

    Writes `compile.json` and `compile.md` in `directory` and prints the tables. FLOPs and
    bytes of a training step count every attack step: the step is compiled without any as
    well, and what one adds is multiplied. With `compile.largest_batch` larger batches are
    guessed from the memory they need, until one by an eighth larger does not fit, or 2**20
    images a chip do.

    Returns: the content of `compile.json`.

    Raises:
      UsageError: no libtpu, an unknown topology, a batch that does not divide among its
        chips, or a program that does not fit.
    """
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # it cannot read TPU programs back
    devices = tpu.devices(config.compile.topology)
    mesh = sharding.data_mesh(devices)
    if config.batch_size % (mesh.size * config.num_parts) or (
        config.evaluate.batch_size % mesh.size
    ):
        raise UsageError(
            f"batch_size={config.batch_size} (in num_parts={config.num_parts}) and "
            f"evaluate.batch_size={config.evaluate.batch_size} do not both divide among the "
            f"{mesh.size} chips of compile.topology={config.compile.topology!r}; give multiples of "
            f"{mesh.size}"
        )
    smallest = grid.override(config, {"batch_size": _granule(config, mesh)})
    experiment = build(smallest)  # a batch for many chips may be larger than the data set
    kind = devices[0].device_kind
    console.print(f"{mesh.size} x {kind}, compiling for each program ...")
    try:
        step = _training_step(config, experiment, mesh)
        found = {"training step": step} | _evaluations(config, experiment, mesh)
        bare = _training_step(grid.override(config, {"attack.num_steps": 0}), experiment, mesh)
    except DoesNotFit as error:
        raise UsageError(
            f"batch_size={config.batch_size} or evaluate.batch_size={config.evaluate.batch_size} "
            f"does not fit {config.compile.topology}: {error}; give smaller ones or more chips"
        ) from error
    content = {
        "topology": config.compile.topology,
        "chips": mesh.size,
        "device_kind": kind,
        "batch_size": config.batch_size,
        "evaluate_batch_size": config.evaluate.batch_size,
        "training_step": _whole_step(config, bare, step),
        "predicted": _predicted(config, experiment, mesh),
        "programs": {
            name: program._asdict() | {"found": [c._asdict() for c in program.found]}
            for name, program in found.items()
        },
    }
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "compile.json", content)
    if config.compile.largest_batch:
        content["largest_batch"] = _largest_batch(config, experiment, mesh, step)
    tables = compile_tables.all_of(content)
    write_json(directory / "compile.json", content)
    text = "\n\n".join(markdown(table) for table in tables)
    (directory / "compile.md").write_text(text + "\n", encoding="utf-8")
    for table in tables:
        console.print(rich_table(table))
    return content


def _granule(config: ConfigDict, mesh: Mesh) -> int:
    """The smallest batch that divides as the config wants it."""
    groups = str(resolved(config)["model"].get("norm", "")).partition("batch:")[2]
    each = math.lcm(mesh.size, int(groups) if groups.isdigit() and int(groups) else 1)
    return math.lcm(each * config.num_parts, config.mixing.num_groups)


def _whole_step(config: ConfigDict, bare: Compiled, step: Compiled) -> dict[str, float]:
    """What a step costs a chip when the bodies of its loops count each time."""
    steps = config.attack.num_steps
    return {
        name: config.num_parts
        * (getattr(bare, name) + steps * (getattr(step, name) - getattr(bare, name)))
        for name in ("flops", "bytes")
    }


def _predicted(config: ConfigDict, experiment: Experiment, mesh: Mesh) -> dict[str, float] | None:
    """What the cost model says, which knows PGD-AT."""
    if config.base.name != "pgd_at" or config.awp.gamma:
        return None
    weights = jax.eval_shape(lambda: weights_template(experiment))
    images = (config.batch_size, *experiment.train.images.shape[1:])
    forward = cost_model.work_of(
        lambda weights, x: experiment.model.apply(*weights, x, train=True)[0],
        weights,
        jax.ShapeDtypeStruct(images, "float32"),
    )
    return {
        "flops": cost_model.step_flops(forward, config.attack.num_steps) / mesh.size,
        "reduced_bytes": cost_model.reduced_bytes(weights),
    }


def _training_step(config: ConfigDict, experiment: Experiment, mesh: Mesh) -> Compiled:
    def parts(key: jax.Array) -> TrainState:
        return trainer.assemble(config, experiment, total_steps=10**6, key=key).initial_state

    key = jax.eval_shape(lambda: jax.random.key(0))
    step = trainer.assemble(config, experiment, total_steps=10**6, key=jax.random.key(0)).train_step
    whole = sharding.replicated(mesh)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=whole)
    state = _placed(jax.eval_shape(parts, key), whole)
    batch = _batch(experiment, config.batch_size, mesh)
    return tpu.compiled(lambda: jitted.lower(state, batch, _placed(key, whole)))


def _evaluations(config: ConfigDict, experiment: Experiment, mesh: Mesh) -> dict[str, Compiled]:
    """The programs of `evaluate.attacks`: of AutoAttack one for each of its attacks."""
    found = {}
    for named in suite.parse(config.evaluate.attacks):
        if named.kind != "ensemble":
            found[f"evaluation, {named.name}"] = _evaluation(named, config, experiment, mesh)
            continue
        for name, attack in members(named.version, experiment.threat).items():
            number = named.num_examples or config.evaluate.num_examples
            found[f"{named.name}, {name}"] = _attack(attack, number, config, experiment, mesh)
    return found


def _evaluation(
    named: suite.Named, config: ConfigDict, experiment: Experiment, mesh: Mesh
) -> Compiled:
    settings, whole = resolved(config)["evaluate"], sharding.replicated(mesh)
    look: Any = evaluate_batchwise.make_judge(
        named,
        threat=experiment.threat,
        step_size=settings["step_size"],
        num_restarts=settings["num_restarts"],
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    scale = jax.ShapeDtypeStruct((), "float32")
    arguments = _placed((_model(experiment), key, scale), whole)
    batch = _batch(experiment, config.evaluate.batch_size, mesh)
    return tpu.compiled(lambda: look.lower(arguments[0], batch, *arguments[1:]))


def _attack(
    attack: Any, number: int, config: ConfigDict, experiment: Experiment, mesh: Mesh
) -> Compiled:
    """AutoAttack's member on so many test images; on all if 0."""
    num_images = len(experiment.dataset.test.labels)
    apply = _placed(partial_of(_model(experiment)), sharding.replicated(mesh))
    return tpu.compiled(
        lambda: crew.lower(
            attack,
            apply,
            Mesh(np.asarray(mesh.devices), "device"),
            image_shape=experiment.train.images.shape[1:],
            num_classes=len(experiment.dataset.class_names),
            num_images=-(-(number or num_images) // mesh.size),
            batch_size=config.evaluate.batch_size,
        )
    )


def _model(experiment: Experiment) -> Any:
    return jax.eval_shape(
        lambda: logits_partial(experiment.model.apply, weights_template(experiment))
    )


def _batch(experiment: Experiment, size: int, mesh: Mesh) -> Batch:
    shape = (size, *experiment.train.images.shape[1:])
    parts = [jax.ShapeDtypeStruct(shape, "float32")]
    parts += [jax.ShapeDtypeStruct((size,), kind) for kind in ("int32", "int32", "bool")]
    return Batch._make(_placed(parts, sharding.along_batch(mesh)))


def _placed(tree: Any, where: Any) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), tree
    )


def _largest_batch(
    config: ConfigDict, experiment: Experiment, mesh: Mesh, step: Compiled
) -> dict[str, int | None]:
    """The largest batch that was seen to fit, and the smallest that was not, if any was."""
    chip = cost_model.CHIPS.get(mesh.devices.flat[0].device_kind)
    parts = _granule(config, mesh)
    needs, refused = {config.batch_size: step.arguments + step.temporaries}, None
    size: int | None = 2 * config.batch_size
    while size is not None:
        console.print(f"compiling with batches of {size:,} ...")
        try:
            larger = grid.override(config, {"batch_size": size})
            found = _training_step(larger, experiment, mesh)
            needs[size] = found.arguments + found.temporaries
        except DoesNotFit:
            refused = size
        memory = chip.memory if chip else math.inf
        size = next_size(needs, refused, memory=memory, most=_MOST_IMAGES * mesh.size)
        size = size and size // parts * parts
        size = None if size in needs or size == refused else size
    return {"fits": max(needs), "refused": refused}


def next_size(
    needs: Mapping[int, float], refused: int | None, *, memory: float, most: int
) -> int | None:
    """Returns the batch to try next, `None` when the limit is known to an eighth.

    Args:
      needs: of batches that fit, the bytes they need.
      refused: the smallest that does not fit.
      memory: bytes of a chip; need grows linearly towards it.
      most: not to be exceeded.
    """
    *_, second, largest = 0, *sorted(needs)
    if refused is not None:
        return None if refused - largest <= largest / 8 else math.isqrt(largest * refused)
    if largest >= most:
        return None
    slope = (needs[largest] - needs.get(second, 0)) / (largest - second)
    room = (memory - needs[largest]) / slope if slope > 0 else math.inf
    return int(min(max(largest + min(room, 3 * largest), 1.25 * largest), most))
