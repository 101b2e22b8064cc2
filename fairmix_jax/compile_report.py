"""Will it run on that pod? Compiles a config's programs for named TPUs, on any Linux machine.

XLA's compiler for TPUs (libtpu) needs no TPU: it says what a program needs of a chip, what
the chips tell each other, and refuses what does not fit.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fairmix_jax import evaluate_batchwise, sharding, study, suite, trainer
from fairmix_jax.collectives import Collective, collectives
from fairmix_jax.config import resolved
from fairmix_jax.errors import UsageError
from fairmix_jax.evaluate import logits_partial, weights_template
from fairmix_jax.experiment import Experiment, build
from fairmix_jax.export import write_json
from fairmix_jax.progress import console
from fairmix_jax.tables import Table, markdown, rich_table
from fairmix_jax.types import Batch, TrainState

_MIB = 2**20


class Compiled(NamedTuple):
    """What the compiler says of a program; numbers are those of one chip.

    Attributes:
      seconds: to compile.
      arguments, temporaries: bytes in the chip's memory, and those it needs on the way.
      flops: with loop bodies counted once, as the compiler does.
      found: its collectives.
    """

    seconds: float
    arguments: int
    temporaries: int
    flops: float
    found: list[Collective]


def run(config: ConfigDict, directory: Path) -> dict[str, Any]:
    """Compiles the training step and the evaluations of a config for `compile.topology`.

    Writes `compile.json` and `compile.md` in `directory` and prints the table. FLOPs of a
    training step count every attack step: the step is compiled without any as well, and what
    one adds is multiplied.

    Returns: the content of `compile.json`.

    Raises:
      UsageError: no libtpu, an unknown topology, a batch that does not divide among its
        chips, or a program that does not fit.
    """
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # it cannot read TPU programs back
    devices = _devices(config.compile.topology)
    mesh = sharding.data_mesh(devices)
    if config.batch_size % mesh.size or config.evaluate.batch_size % mesh.size:
        raise UsageError(
            f"batch_size={config.batch_size} and evaluate.batch_size="
            f"{config.evaluate.batch_size} do not both divide among the {mesh.size} chips of "
            f"compile.topology={config.compile.topology!r}; give multiples of {mesh.size}"
        )
    experiment = build(config)
    console.print(f"{mesh.size} x {devices[0].device_kind}, compiling for each program ...")
    step = _training_step(config, experiment, mesh)
    found = {"training step": step}
    for named in suite.parse(config.evaluate.attacks):
        if named.kind != "ensemble":
            found[f"evaluation, {named.name}"] = _evaluation(named, config, experiment, mesh)
    bare = _training_step(study.override(config, {"attack.num_steps": 0}), experiment, mesh)
    steps = config.attack.num_steps
    content = {
        "topology": config.compile.topology,
        "chips": mesh.size,
        "device_kind": devices[0].device_kind,
        "batch_size": config.batch_size,
        "training_step_flops": bare.flops + steps * (step.flops - bare.flops),
        "programs": {
            name: program._asdict() | {"found": [c._asdict() for c in program.found]}
            for name, program in found.items()
        },
    }
    table = _table(config, found, content)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "compile.json", content)
    (directory / "compile.md").write_text(markdown(table) + "\n", encoding="utf-8")
    console.print(rich_table(table))
    return content


def _devices(topology: str) -> list[Any]:
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nothing here touches a chip
    if not topology:
        raise UsageError("compile.topology is empty; name one, e.g. v5e:2x4, v5e:16x16, v5p:2x2x4")
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        if "libtpu" in reason or "not found" in reason.lower():
            raise UsageError(
                f"compile.topology={topology!r} needs XLA's compiler for TPUs ({reason}); "
                "install the extra: pip install -c constraints.txt -e '.[tpu]'"
            ) from error
        raise UsageError(
            f"compile.topology={topology!r} is not understood ({reason}); give e.g. v5e:2x4, "
            "v5e:16x16 or v5p:2x2x4"
        ) from error


def _training_step(config: ConfigDict, experiment: Experiment, mesh: Mesh) -> Compiled:
    def parts(key: jax.Array) -> TrainState:
        return trainer.assemble(config, experiment, total_steps=10**6, key=key).initial_state

    key = jax.eval_shape(lambda: jax.random.key(0))
    step = trainer.assemble(config, experiment, total_steps=10**6, key=jax.random.key(0)).train_step
    whole = sharding.replicated(mesh)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=whole)
    state = _placed(jax.eval_shape(parts, key), whole)
    batch = _batch(experiment, config.batch_size, mesh)
    return _compile(lambda: jitted.lower(state, batch, _placed(key, whole)), config)


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
    model = jax.eval_shape(
        lambda: logits_partial(experiment.model.apply, weights_template(experiment))
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    scale = jax.ShapeDtypeStruct((), "float32")
    arguments = _placed((model, key, scale), whole)
    batch = _batch(experiment, config.evaluate.batch_size, mesh)
    return _compile(lambda: look.lower(arguments[0], batch, *arguments[1:]), config)


def _batch(experiment: Experiment, size: int, mesh: Mesh) -> Batch:
    shape = (size, *experiment.train.images.shape[1:])
    parts = [jax.ShapeDtypeStruct(shape, "float32")]
    parts += [jax.ShapeDtypeStruct((size,), kind) for kind in ("int32", "int32", "bool")]
    return Batch._make(_placed(parts, sharding.along_batch(mesh)))


def _placed(tree: Any, where: Any) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), tree
    )


def _compile(lower: Callable[[], Any], config: ConfigDict) -> Compiled:
    start = time.perf_counter()
    try:
        compiled = lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = " ".join(str(error).split())[:300]
        raise UsageError(
            f"batch_size={config.batch_size} does not fit {config.compile.topology}: {reason}; "
            "give a smaller batch or more chips"
        ) from error
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    return Compiled(
        round(time.perf_counter() - start, 1),
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        float(cost.get("flops", 0.0)),
        collectives(compiled.as_text()),
    )


def _table(config: ConfigDict, found: dict[str, Compiled], content: dict[str, Any]) -> Table:
    rows = []
    for name, program in found.items():
        kinds = sorted({c.kind for c in program.found})
        told = sum(c.num_bytes for c in program.found)
        rows.append([
            name, f"{program.arguments / _MIB:.1f}", f"{program.temporaries / _MIB:.1f}",
            f"{program.flops / 1e9:.2f}", f"{len(program.found)} {', '.join(kinds)}".strip(),
            f"{told / _MIB:.2f}", str(sum(c.in_loop for c in program.found)),
            f"{program.seconds:.0f}",
        ])  # fmt: skip
    caption = (
        f"{config.compile.topology}: {content['chips']} x {content['device_kind']}, batches of "
        f"{config.batch_size} ({config.batch_size // content['chips']} a chip), evaluation of "
        f"{config.evaluate.batch_size}; of one chip, GFLOP with loop bodies once; a training "
        f"step with {config.attack.num_steps} attack steps is "
        f"{content['training_step_flops'] / 1e9:.2f} GFLOP"
    )
    header = ["program", "arguments MiB", "temporaries MiB", "GFLOP", "collectives",
              "their MiB", "in loops", "compile s"]  # fmt: skip
    return Table(caption, header, rows)
