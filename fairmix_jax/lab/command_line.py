"""The command line: reads flags, starts a mode, turns errors into exit statuses."""

import os
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from fairmix_jax.lab import config as config_lib
from fairmix_jax.lab import configs_folder
from fairmix_jax.lab.usage import BACKENDS, FLAGS, MODES, answers
from fairmix_jax.lab.workdir import require_writable
from fairmix_jax.runtime import cpu, errors, processes, registry
from fairmix_jax.runtime.console import console, printable
from fairmix_jax.runtime.errors import Interrupted, UsageError
from fairmix_jax.runtime.registry import AXES

_CONFIG = config_flags.DEFINE_config_file("config", None, FLAGS["config"])
_WORKDIR = flags.DEFINE_string("workdir", None, FLAGS["workdir"])
_MODE = flags.DEFINE_enum("mode", "train", list(MODES), FLAGS["mode"])
_BACKEND = flags.DEFINE_enum("backend", "local", list(BACKENDS), FLAGS["backend"])
_COORDINATOR = flags.DEFINE_string("coordinator", "", FLAGS["coordinator"])
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 0, FLAGS["num_processes"])
_PROCESS_ID = flags.DEFINE_integer("process_id", -1, FLAGS["process_id"])
_CACHE = flags.DEFINE_string(
    "compilation_cache", "~/.cache/fairmix_jax", FLAGS["compilation_cache"]
)


def main() -> None:
    """Runs the command line; never returns."""
    cpu.tune()
    logging.set_verbosity(logging.WARNING)
    if answers(sys.argv[1:]):
        sys.exit(0)
    sys.argv = _with_config(sys.argv)
    signal.signal(signal.SIGTERM, _stop)
    try:
        app.run(_run, flags_parser=_parse)
    except errors.RunsFailed as error:
        message, status = f"{error}; run the same command to try them again", errors.EXIT_FAILED
    except (Interrupted, KeyboardInterrupt) as stop:
        message = f"{str(stop) or 'SIGINT'}; run the same command to go on"
        status = errors.EXIT_INTERRUPTED
    except Exception as error:
        message, status = errors.told(error)
        if processes.is_joined() and not isinstance(error, UsageError):
            _abandon(error)
        if not message:
            raise
    console.show_cursor(True)
    _say(message)
    sys.exit(status)


def _stop(number: int, _) -> None:
    """Outside of the training loop, which has its own way to stop, there is nothing to save."""
    raise Interrupted(f"{signal.Signals(number).name}: training was not under way")


def _run(argv: Sequence[str]) -> None:
    if _CACHE.value and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        _keep_programs_in(Path(_CACHE.value).expanduser())
    if jax.config.jax_enable_x64:  # ty: ignore[missing-attribute]
        raise UsageError("JAX_ENABLE_X64 is set, but all is done in float32 here; unset it")
    mode, workdir = _MODE.value, _workdir()
    if mode in ("report", "benchmark", "compile", "audit"):
        require_writable(workdir)
        if _BACKEND.value != "local":
            console.print(f"--backend={_BACKEND.value} is for runs; --mode={mode} is done here")
    elif _BACKEND.value == "processes":
        from fairmix_jax.lab.engines import local_processes

        sys.exit(local_processes.run(sys.argv[1:], _NUM_PROCESSES.value))
    if mode == "report":
        from fairmix_jax import report

        report.write(workdir, [Path(path) for path in argv[1:]] or [workdir])
        return
    if len(argv) > 1 and mode != "audit":
        raise UsageError(f"argument {argv[1]!r} is not understood; flags start with --")
    if _CONFIG.value is None:
        raise UsageError("--config is missing; give --config=NAME, see `fairmix configs`")
    config_lib.check(_CONFIG.value)
    if mode == "sweep" and not _CONFIG.value.sweep.strip():
        raise UsageError(
            "sweep='' names no runs; give --config.sweep='field=value,value ...' or a study's "
            "config"
        )
    if mode == "benchmark":
        from fairmix_jax.lab import benchmark

        benchmark.run(_CONFIG.value, workdir)
    elif mode == "compile":
        from fairmix_jax.lab.compile import pod_programs

        pod_programs.run(_CONFIG.value, workdir)
    elif mode == "audit":
        from fairmix_jax.lab import audit

        audit.run(_CONFIG.value, argv[1:], workdir)
    else:
        _train(workdir)


def _keep_programs_in(folder: Path) -> None:
    """Has JAX keep what it compiles; if that is not possible, says so and does without."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**16))
    except OSError as error:
        reason = f"--compilation_cache={str(folder)!r} cannot be used ({error.strerror})"
        _say(f"{reason}; what is compiled is not kept")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _train(workdir: Path) -> None:
    """Trains and evaluates, or evaluates only, here or where an engine takes the runs."""
    from fairmix_jax.lab import engines, sweeps

    engine = None if _BACKEND.value == "local" else engines.load(_BACKEND.value)
    if engine is not None:
        jax.config.update("jax_platforms", "cpu")  # accelerators are for the runs
    else:
        processes.join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        console.quiet = not processes.is_main()
    sweeps.run(_CONFIG.value, workdir, with_training=_MODE.value != "evaluate", engine=engine)


def _workdir() -> Path:
    if _WORKDIR.value:
        return Path(os.path.expanduser(_WORKDIR.value))  # as no shell does after a `=`
    if not _CONFIG.value:
        raise UsageError("--workdir is missing; give the folder of a run, or --config to start one")
    path, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return Path("runs") / "-".join(filter(None, (Path(path).stem, variant)))


def _with_config(argv: list[str]) -> list[str]:
    """The command line with the path of its config.

    A bare name means one of our own configs. Where overrides or a mode need a config and none is
    given, it is that of the workdir.
    """
    apart = r"(\0--?(?:config|workdir|mode))\0"  # a flag whose value is the argument after it
    program, *arguments = re.sub(apart, r"\1=", "\0".join(argv)).split("\0")
    given = dict(argument.lstrip("-").split("=", 1) for argument in arguments if "=" in argument)
    path, colon, variant = given.get("config", "").partition(":")
    own = configs_folder() / f"{path}.py"
    if path and not Path(path).exists() and own.exists():
        full = f"--config={own}{colon}{variant}"
        arguments = [full if a.lstrip("-").startswith("config=") else a for a in arguments]
    elif "config" not in given and "workdir" in given and given.get("mode") != "report":
        saved = Path(__file__).with_name("workdir.py")
        arguments.insert(0, f"--config={saved}:{os.path.expanduser(given['workdir'])}")
    return [program, *arguments]


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
        if _CONFIG.value is not None:
            _ = _CONFIG.value.is_locked  # a config file that cannot be read says so on first use
        return rest
    except OSError as error:
        reason = " ".join(str(error.__cause__).split())
        if missing := re.search("No such file or directory: (.*)", reason):
            reason = f"there is no {missing.group(1)}"
        raise UsageError(
            f"--config cannot be read: {reason}; `fairmix configs` lists ours"
        ) from error
    except (KeyError, AttributeError) as error:
        said = re.search(r"[\w.]+", str(error.args[0]))  # the name, without a guess at another
        name = said.group() if said else str(error)
        field = re.compile(rf"--?config\.[^=]*\b{re.escape(name)}\b")
        unknown = [argument for argument in argv if field.match(argument)]
        known = _fields_beside(unknown, argv)
        raise UsageError(
            f"{' '.join(unknown) or name} names no config field; {known}`fairmix fields` shows "
            "them all"
        ) from error
    except (flags.Error, ValueError, TypeError) as error:
        message = str(error).strip()
        if "Error whilst parsing config file" in message:
            message = "--config: " + message.splitlines()[-1].removeprefix("ValueError: ")
        if "could not convert string to float" in message:
            message += "; give a decimal number, such as 0.0314 for 8/255"
        raise UsageError(" ".join(message.split())) from error


def _fields_beside(unknown: Sequence[str], argv: Sequence[str]) -> str:
    """The fields of the member that is chosen in an unknown field's section, or those like it."""
    section = re.match(r"--?config\.((\w+)[\w.]*)", "".join(unknown[:1]))
    if not section or section[2] not in AXES.keys() - {"data"}:
        return config_lib.nearest(section[1]) if section else ""
    wanted, again = ("config=", f"config.{section[2]}.name="), flags.FlagValues()
    chosen = [argument for argument in argv if argument.lstrip("-").startswith(wanted)]
    config_flags.DEFINE_config_file("config", flag_values=again, sys_argv=chosen)
    again([argv[0], *chosen])
    name = again.config[section[2]].name
    known = registry.parameters(AXES[section[2]], name)
    return f"{section[2]}.name={name} takes {', '.join(known) or 'no fields'}; "


def _abandon(error: Exception) -> NoReturn:
    """Leaves the other processes at once, who then end too: waiting for them would not end."""
    traceback.print_exception(error)
    is_of_devices = isinstance(error, jax.errors.JaxRuntimeError)
    lost = "another process is gone, or a device failed: " if is_of_devices else ""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    _say(f"{lost}{reason}; run the same command to go on")
    os._exit(errors.EXIT_FAILED)


def _say(message: str) -> None:
    """Prints a line to stderr that names the program, and which of several processes it is."""
    name = Path(sys.argv[0]).name
    if processes.is_joined():
        name += f", process {jax.process_index()} of {jax.process_count()}"
    print(f"{name}: {printable(message)}", file=sys.stderr, flush=True)
