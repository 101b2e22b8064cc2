"""A setting of XLA that makes CPU programs faster; accelerators are not touched."""

import os

import jaxlib.version

_FIELD = "xla_cpu_experimental_ynn_fusion_type"
_KNOWN = (0, 10)  # jaxlib releases in which flag and gain were checked
_KINDS = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"

TUNED = {_FIELD: _KINDS}
"""Options of `jax.jit(f, compiler_options=...)` that do for one program what `tune` does."""

DEFAULT = {_FIELD: f"{_KINDS},LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"}
"""Those that undo it."""


def tune() -> bool:
    """Makes XLA compute convolutions on CPU with Eigen instead of YNNPACK, in this process.

    Forward convolutions and input gradients become up to twice as fast, weight gradients two
    to three times (docs/performance/cpu.md). Results change by rounding. The command line calls
    this; a program of your own should, before its first computation.

    Returns: whether the setting is in force; it is not if `XLA_FLAGS` holds another value of
      it, or with a jaxlib in which it was not checked.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    wanted = f"--{_FIELD}=-individual_convolution"
    if _FIELD in flags:
        return wanted in flags
    if jaxlib.version.__version_info__[:2] != _KNOWN:
        return False
    os.environ["XLA_FLAGS"] = f"{flags} {wanted}".strip()
    return True
