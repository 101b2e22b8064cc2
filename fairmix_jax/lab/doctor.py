"""`fairmix doctor`: lists what this machine offers and what it lacks."""

import os
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path
from textwrap import wrap
from typing import NamedTuple

import jax

from fairmix_jax import data
from fairmix_jax.lab.workdir import is_writable
from fairmix_jax.runtime import VERSION, cpu, provenance

_OF_JAX = {"cuda12": "jax-cuda12-plugin", "cuda13": "jax-cuda13-plugin", "tpu": "libtpu"}


class Finding(NamedTuple):
    """A fact about the machine and the remedy if it is wrong; `needed` ones stop everything."""

    what: str
    found: str
    remedy: str = ""
    needed: bool = False


def findings() -> list[Finding]:
    """Returns what there is here."""
    place, python = Path(cpu.__file__).parents[1], sys.version.split()[0]
    ours = Finding("fairmix_jax", f"{VERSION} in {place}, Python {python}")
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    host = Finding("host", f"{provenance.processor()}, {gib:.1f} GiB of memory")
    return [ours, *_packages(), host, _devices(), _data(), _cache()]


def _packages() -> list[Finding]:
    """The versions of what is always needed, then what is missing of each extra."""
    missing: dict[str, list[str]] = {"": []}
    ours = next(iter(metadata.distributions(name="fairmix-jax")), None)  # a clone may have two
    for requirement in (ours.requires if ours else None) or ():
        text, _, condition = requirement.partition(";")
        of_jax = re.match(r"jax\[(\w+)\]", text)
        package = _OF_JAX[of_jax[1]] if of_jax else re.split(r"[^\w.-]", text)[0]
        extra = "".join(re.findall(r"\w+", condition)[-1:])
        missing.setdefault(extra, []).extend([] if _version(package) else [f"'{text}'"])
    install = {extra: f"pip install {' '.join(names)}" for extra, names in missing.items() if names}
    versions = ", ".join(f"{name} {_version(name) or 'missing'}" for name in provenance.PACKAGES)
    needed = Finding("packages", versions, install.get("", ""), bool(missing.pop("")))
    return [needed, *(Finding(f"extra {x}", install.get(x, "installed")) for x in missing)]


def _version(package: str) -> str:
    return next((found.version for found in metadata.distributions(name=package)), "")


def _devices() -> Finding:
    is_tuned, remedy = cpu.tune(), ""
    try:
        device = jax.devices()[0]
    except RuntimeError as error:
        return Finding("devices", str(error).splitlines()[0], "mend driver or JAX's plugin", True)
    if device.platform == "cpu" and shutil.which("nvidia-smi"):
        remedy = "JAX does not see the GPU; install the extra cuda13, or cuda12 for old drivers"
    elif device.platform == "cpu" and not is_tuned:
        remedy = "use jaxlib 0.10 without XLA_FLAGS; in others cpu.tune leaves convolutions slow"
    kind = f"{jax.device_count()} x {device.device_kind} ({device.platform})"
    if size := (device.memory_stats() or {}).get("bytes_limit"):
        kind += f", {size / 2**30:.1f} GiB of memory each"
    return Finding("devices", kind, remedy)


def _data() -> Finding:
    given, folder = os.environ.get("TFDS_DATA_DIR"), data.directory()
    sets = sorted(path.name for path in folder.glob("*.npz"))
    sets += [" ".join(path.parts[-3:-1]) for path in sorted(folder.glob("*/*/dataset_info.json"))]
    found = f"{folder}{'' if given else ', TFDS_DATA_DIR is not set'}: {', '.join(sets) or 'none'}"
    remedy = "" if sets else "set TFDS_DATA_DIR or run python -m fairmix_jax.data.prepare cifar10"
    return Finding("data sets", found, remedy, bool(given) and not folder.is_dir())


def _cache() -> Finding:
    folder = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or "~/.cache/fairmix_jax")
    folder = folder.expanduser().absolute()
    sizes = [path.stat().st_size for path in folder.glob("*")]
    remedy = "" if is_writable(folder) else "give --compilation_cache=FOLDER"
    return Finding("cache", f"{folder}: {len(sizes)} files, {sum(sizes) / 2**20:.0f} MiB", remedy)


def report(found: list[Finding]) -> str:
    """Returns the findings as text; `!` marks what is needed, `?` what has another remedy."""
    lines = []
    for what, text, remedy, needed in found:
        mark = "!" if needed else "?" if remedy else " "
        for head, said in ((f"{mark} {what:<14}", text), (f"{'':<16}-> ", remedy)):
            lines += wrap(
                said, 80, initial_indent=head, subsequent_indent=" " * len(head),
                break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Prints the report; exits with status 1 if something needed is missing, else with 0."""
    found = findings()
    print(report(found))
    sys.exit(int(any(finding.needed for finding in found)))
