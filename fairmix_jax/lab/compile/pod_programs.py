"""Will it run on that pod? Compiles a config's programs for named TPUs, on any Linux machine."""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fairmix_jax.attacks import device_pools
from fairmix_jax.attacks.autoattack import members
from fairmix_jax.attacks.stepwise import partial_of
from fairmix_jax.classwise import attack_names, step_attacks
from fairmix_jax.lab import config as config_lib
from fairmix_jax.lab.compile import cost_model, tables, tpu
from fairmix_jax.lab.compile.tpu import DoesNotFit
from fairmix_jax.models.described import logits_partial, weights_template
from fairmix_jax.runtime import sharding
from fairmix_jax.runtime.console import console
from fairmix_jax.runtime.errors import UsageError
from fairmix_jax.runtime.json_files import write_json
from fairmix_jax.runtime.tables import publish
from fairmix_jax.training import assembly
from fairmix_jax.training.task import Task, build
from fairmix_jax.types import Batch

_MOST_IMAGES = 2**20


def run(config: ConfigDict, directory: Path) -> dict[str, Any]:
    """Compiles the training step, evaluations and attacks of a config for `compile.topology`.

    Writes `compile.json` and `compile.md` in `directory`, prints the tables, and returns the
    content of `compile.json`. With `compile.largest_batch` larger batches are tried, until one by
    an eighth larger does not fit, or 2**20 images a chip do.

    Raises:
      UsageError: no libtpu, an unknown topology, a batch that does not divide among its
        chips, or a program that does not fit.
    """
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # it cannot read TPU programs back
    devices = tpu.devices(config.compile.topology)
    mesh = sharding.data_mesh(devices)
    steps, parts, size = config.attack.num_steps, config.num_parts, config.evaluate.batch_size
    if config.batch_size % (mesh.size * parts) or size % mesh.size:
        raise UsageError(
            f"batch_size={config.batch_size} (in num_parts={parts}) and evaluate.batch_size={size} "
            f"do not both divide among the {mesh.size} chips of compile.topology="
            f"{config.compile.topology!r}; give multiples of {mesh.size}"
        )
    # A batch for many chips may be larger than the data set.
    smallest = config_lib.override(config, {"batch_size": _granule(config, mesh)})
    task = build(config_lib.settings(smallest))
    kind = devices[0].device_kind
    console.print(f"{mesh.size} x {kind}, compiling for each program ...")
    try:
        step = _training_step(config, task, mesh)
        found = {"training step": step} | _evaluations(config, task, mesh)
        bare = _training_step(config_lib.override(config, {"attack.num_steps": 0}), task, mesh)
    except DoesNotFit as error:
        raise UsageError(
            f"batch_size={config.batch_size} or evaluate.batch_size={size} does not fit "
            f"{config.compile.topology}: {error}; give smaller ones or more chips"
        ) from error
    content = {
        "topology": config.compile.topology, "chips": mesh.size, "device_kind": kind,
        "batch_size": config.batch_size, "evaluate_batch_size": size,
        "training_step": {  # XLA counts an attack step once, which is what `step` adds to `bare`
            name: parts * (bare[name] + steps * (step[name] - bare[name]))
            for name in ("flops", "bytes")
        },
        "predicted": _predicted(config, task, mesh), "programs": found,
    }  # fmt: skip
    write_json(directory / "compile.json", content)
    if config.compile.largest_batch:
        content["largest_batch"] = _largest_batch(config, task, mesh, step)
        write_json(directory / "compile.json", content)
    shown = [tables.programs, tables.model] if content["predicted"] else [tables.programs]
    publish(directory / "compile.md", [table(content) for table in shown])
    return content


def _granule(config: ConfigDict, mesh: Mesh) -> int:
    """The smallest batch that divides as the config wants it."""
    each = math.lcm(mesh.size, config_lib.norm_groups(config_lib.settings(config)))
    return math.lcm(each * config.num_parts, config.mixing.num_groups)


def _predicted(config: ConfigDict, task: Task, mesh: Mesh) -> dict[str, float] | None:
    """What the cost model says, which knows PGD-AT only."""
    if config.base.name != "pgd_at" or config.awp.gamma:
        return None
    weights = jax.eval_shape(lambda: weights_template(task.model))
    forward = cost_model.operations_of(
        lambda weights, x: task.model.apply(*weights, x, train=True)[0],
        weights, _batch(task, config.batch_size, mesh).images,
    )  # fmt: skip
    return {
        "flops": cost_model.step_flops(forward, config.attack.num_steps) / mesh.size,
        "reduced_bytes": cost_model.reduced_bytes(weights),
    }


def _training_step(config: ConfigDict, task: Task, mesh: Mesh) -> dict[str, Any]:
    settings, whole = config_lib.settings(config), sharding.replicated(mesh)
    parts = partial(assembly.assemble, settings, task, total_steps=10**6)
    step = parts(key=jax.random.key(0)).train_step
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(lambda key: parts(key=key).initial_state, key)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=whole)
    batch = _batch(task, config.batch_size, mesh)
    return tpu.compiled(lambda: jitted.lower(_placed(state, whole), batch, _placed(key, whole)))


def _evaluations(config: ConfigDict, task: Task, mesh: Mesh) -> dict[str, dict[str, Any]]:
    """The programs of `evaluate.attacks`: of AutoAttack one for each of its attacks."""
    given, whole, found = config_lib.settings(config).evaluate, sharding.replicated(mesh), {}
    apply = task.model.apply
    logits_fn = jax.eval_shape(lambda: logits_partial(apply, weights_template(task.model)))
    key_and_scale = jax.eval_shape(lambda: (jax.random.key(0), jnp.float32(0)))
    arguments = _placed(logits_fn, whole), _batch(task, given.batch_size, mesh)
    arguments += _placed(key_and_scale, whole)
    for named in attack_names.parse(given.attacks):
        if named.kind != "ensemble":
            judge: Any = step_attacks.make_judge(named, threat=task.threat, settings=given)
            program = partial(judge.lower, *arguments)
            found[f"evaluation, {named.name}"] = tpu.compiled(program)
            continue
        num_images = named.num_examples or given.num_examples or len(task.dataset.test.labels)
        model = _placed(partial_of(logits_fn, task.train.images), whole)
        for name, attack in members(named.version, task.threat).items():
            program = partial(
                device_pools.lower, attack, model,
                Mesh(np.asarray(mesh.devices), "device"),
                (-(-num_images // mesh.size), *task.train.images.shape[1:]),
                num_classes=len(task.dataset.class_names), num_slots=given.batch_size,
                precision=given.search_precision,
            )  # fmt: skip
            found[f"{named.name}, {name}"] = tpu.compiled(program)
    return found


def _batch(task: Task, size: int, mesh: Mesh) -> Batch:
    shape = (size, *task.train.images.shape[1:])
    parts = [jax.ShapeDtypeStruct(shape, "float32")]
    parts += [jax.ShapeDtypeStruct((size,), kind) for kind in ("int32", "int32", "bool")]
    return Batch._make(_placed(parts, sharding.along_batch(mesh)))


def _placed(tree: Any, where: Any) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), tree
    )


def _largest_batch(
    config: ConfigDict, task: Task, mesh: Mesh, step: dict[str, Any]
) -> dict[str, int | None]:
    """The largest batch that was seen to fit, and the smallest that was not, if any was."""
    chip = cost_model.CHIPS.get(mesh.devices.flat[0].device_kind)
    memory, most = chip.memory if chip else math.inf, _MOST_IMAGES * mesh.size
    needs, refused = {config.batch_size: step["arguments"] + step["temporaries"]}, None
    parts = _granule(config, mesh)
    while size := next_size(needs, refused, memory=memory, most=most):
        size = size // parts * parts
        if size in (refused, *needs):
            break
        console.print(f"compiling with batches of {size:,} ...")
        larger = config_lib.override(config, {"batch_size": size})
        try:
            found = _training_step(larger, task, mesh)
            needs[size] = found["arguments"] + found["temporaries"]
        except DoesNotFit:
            refused = size
    return {"fits": max(needs), "refused": refused}


def next_size(
    needs: Mapping[int, float], refused: int | None, *, memory: float, most: int
) -> int | None:
    """Returns the batch to try next, at most `most`; `None` when the limit is known to an eighth.

    `needs` are the bytes of batches that fit, which grow linearly towards the `memory` of a chip;
    `refused` is the smallest batch that does not fit.
    """
    *_, second, largest = 0, *sorted(needs)
    if refused is not None:
        return None if refused - largest <= largest / 8 else math.isqrt(largest * refused)
    if largest >= most:
        return None
    slope = (needs[largest] - needs.get(second, 0)) / (largest - second)
    room = (memory - needs[largest]) / slope if slope > 0 else math.inf
    return int(min(max(largest + min(room, 3 * largest), 1.25 * largest), most))
