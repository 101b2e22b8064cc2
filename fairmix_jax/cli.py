"""The command line: reads flags, starts a mode, turns errors into exit statuses."""

import itertools
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from fairmix_jax import cluster, cpu
from fairmix_jax import config as config_lib
from fairmix_jax.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    Interrupted,
    MembersFailed,
    UsageError,
)
from fairmix_jax.progress import console

_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment: configs/NAME.py[:variant].")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default runs/NAME[-variant].")
_MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "evaluate", "sweep", "report", "benchmark", "compile"], "What to do."
)
_BACKEND = flags.DEFINE_enum(
    "backend",
    "local",
    ["local", "processes", "ray", "slurm"],
    "Where runs happen: in this process, in --num_processes joined ones of this machine, or on a "
    "cluster with config.launch for each.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "host:port of the first of several processes; empty to detect a cluster."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 0, "0 to detect a cluster; 1 for alone.")
_PROCESS_ID = flags.DEFINE_integer("process_id", -1, "Which of them this is; -1 to detect.")
_CACHE = flags.DEFINE_string(
    "compilation_cache",
    "~/.cache/fairmix_jax",
    "Folder of compiled programs, shared by all runs; empty for none.",
)


def main() -> None:
    """Runs the command line; never returns."""
    cpu.tune()
    logging.set_verbosity(logging.WARNING)
    sys.argv = _with_saved_config(sys.argv)
    signal.signal(signal.SIGTERM, _stop)
    try:
        app.run(_run, flags_parser=_parse)
    except UsageError as error:
        _exit_with(str(error), EXIT_USAGE)
    except MembersFailed as error:
        _exit_with(f"{error}; run the same command to try them again", EXIT_FAILED)
    except (Interrupted, KeyboardInterrupt) as stop:
        reason = str(stop) or "SIGINT"
        _exit_with(f"{reason}; run the same command to go on", EXIT_INTERRUPTED)
    except Exception as error:
        if not cluster.is_joined():
            raise
        _abandon(error)


def _stop(number: int, _) -> None:
    """Outside of the training loop, which has its own way to stop, there is nothing to save."""
    raise Interrupted(f"{signal.Signals(number).name}: training was not under way")


def _run(argv: Sequence[str]) -> None:
    if _CACHE.value and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(Path(_CACHE.value).expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    from fairmix_jax import benchmark, compile_report, engines, report, study
    from fairmix_jax.engines import processes, ray, slurm

    workdir = _workdir()
    if _BACKEND.value == "processes":
        sys.exit(processes.run(sys.argv, _NUM_PROCESSES.value))
    if _MODE.value == "report":
        report.write(workdir, [Path(path) for path in argv[1:]] or [workdir])
        return
    if len(argv) > 1:
        raise UsageError(f"argument {argv[1]!r} is not understood; flags start with --")
    if _CONFIG.value is None:
        raise UsageError("--config is missing; give --config=configs/NAME.py")
    config_lib.check(_CONFIG.value)
    if _MODE.value == "benchmark":
        benchmark.run(_CONFIG.value, workdir)
        return
    if _MODE.value == "compile":
        compile_report.run(_CONFIG.value, workdir)
        return
    if _MODE.value == "sweep" and not _CONFIG.value.sweep.strip():
        raise UsageError(
            "sweep='' is no grid; give --config.sweep='field=value,value ...' or a study's config"
        )
    elsewhere: dict[str, engines.Engine] = {"ray": ray.run, "slurm": slurm.run}
    engine = elsewhere.get(_BACKEND.value)
    if engine is not None:
        jax.config.update("jax_platforms", "cpu")  # accelerators are for the runs
    else:
        cluster.join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        console.quiet = not cluster.is_main()
    study.run(_CONFIG.value, workdir, with_training=_MODE.value != "evaluate", engine=engine)


def _workdir() -> Path:
    if _WORKDIR.value:
        return Path(_WORKDIR.value)
    source = config_flags.get_config_filename(flags.FLAGS["config"]) if _CONFIG.value else ""
    if not source:
        raise UsageError("--workdir is missing; give the folder of a run, or --config to start one")
    path, _, variant = source.partition(":")
    return Path("runs") / "-".join(filter(None, (Path(path).stem, variant)))


def _with_saved_config(argv: list[str]) -> list[str]:
    """Adds `--config` from the workdir where overrides or a mode need one and none is given."""
    values = {}
    for argument, following in itertools.pairwise([*argv[1:], ""]):
        name, equals, value = argument.lstrip("-").partition("=")
        values[name] = value if equals else following
    if "config" in values or "workdir" not in values or values.get("mode") == "report":
        return argv
    saved = Path(__file__).parents[1] / "configs" / "saved.py"
    return [argv[0], f"--config={saved}:{values['workdir']}", *argv[1:]]


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
        if _CONFIG.value is not None:
            _ = _CONFIG.value.is_locked  # a config file that cannot be read says so on first use
    except OSError as error:
        raise UsageError(_one_line(f"--config cannot be read: {error.__cause__}")) from error
    except (KeyError, AttributeError) as error:
        unknown = [argument for argument in argv if str(error).strip("'\"") in argument]
        raise UsageError(
            f"{' '.join(unknown) or error} names no config field; configs/base.py has them all"
        ) from error
    except (flags.Error, ValueError, TypeError) as error:
        message = str(error).strip()
        if "Error whilst parsing config file" in message:
            message = "--config: " + message.splitlines()[-1].removeprefix("ValueError: ")
        raise UsageError(_one_line(message)) from error
    return rest


def _one_line(message: str) -> str:
    return " ".join(message.split())


def _exit_with(message: str, status: int) -> None:
    console.show_cursor(True)
    print(f"{_speaker()}: {message}", file=sys.stderr)
    sys.exit(status)


def _abandon(error: Exception) -> None:
    """Leaves the other processes at once, who then end too: waiting for them would not end."""
    traceback.print_exception(error)
    lost = "another process is gone, or a device failed: " if _is_of_devices(error) else ""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    print(f"{_speaker()}: {lost}{reason}; run the same command to go on", file=sys.stderr)
    sys.stderr.flush()
    os._exit(EXIT_FAILED)


def _is_of_devices(error: Exception) -> bool:
    return isinstance(error, jax.errors.JaxRuntimeError)


def _speaker() -> str:
    name = Path(sys.argv[0]).name
    if not cluster.is_joined():
        return name
    return f"{name}, process {jax.process_index()} of {jax.process_count()}"
