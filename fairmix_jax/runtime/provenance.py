"""The origin of this process's results: versions, devices, command, commit."""

import datetime
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-datasets")


def provenance() -> dict[str, Any]:
    """Returns where results of this process come from."""
    devices = jax.devices()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "argv": masked_arguments(sys.argv), "commit": _commit(),
        "device": f"{len(devices)} x {devices[0].device_kind}", "processes": jax.process_count(),
        "platform": devices[0].platform, "processor": processor(),
        "python": platform.python_version(), "xla_flags": masked(os.environ.get("XLA_FLAGS", "")),
        "versions": {name: metadata.version(name) for name in PACKAGES},
    }  # fmt: skip


_NAME = (
    r"(?i:[\w.-]*(?:token|secret|passw(?:or)?d|credentials?|(?:api|access|private|auth)[_-]?key))"
)
_SECRETS = (
    (re.compile(r"^(--?(?i:[\w.-]*key)=).+"), r"\1***"),
    (re.compile(rf"((?<![\w.-]){_NAME}['\"]?\s*[=:]\s*['\"]?)[^\s,;&'\"]+"), r"\1***"),
    (re.compile(r"(\w://)[^/\s]+@"), r"\1***@"),
    (re.compile(r"((?i:bearer|basic)\s+)[\w.~+/=-]{16,}"), r"\1***"),
    (re.compile(r"\b(?:hf_|gh[opsur]_|github_pat_|glpat-|sk-|xox[abp]-)[\w-]{16,}"), "***"),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\beyJ[\w-]{6,}\.[\w-]+\.[\w-]*"), "***"),
)


def masked(text: str) -> str:
    """Returns text with `***` for the values of tokens, keys and passwords, by name or by form."""
    for pattern, stands_for in _SECRETS:
        text = pattern.sub(stands_for, text)
    return text


def masked_arguments(arguments: Sequence[str]) -> list[str]:
    """Returns a command line, `masked`; also the value of a secret's flag that follows it."""
    flags = [re.fullmatch(rf"--?(?:{_NAME}|(?i:[\w.-]*key))", a) for a in ("", *arguments)]
    return ["***" if flag else masked(a) for a, flag in zip(arguments, flags, strict=False)]


def command(arguments: Sequence[str]) -> str:
    """Returns a recorded `sys.argv`, `masked`, as a shell takes it; empty if there is none."""
    python = ["python"] if arguments and arguments[0].endswith(".py") else []
    return shlex.join([*python, *masked_arguments(arguments)])


def processor() -> str:
    """Returns the processor's name and the cores this process may use."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


def _commit() -> str | None:
    """The commit of the source tree, marked `+` when it has been changed; `None` outside git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # a venv may lie in another repository
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
