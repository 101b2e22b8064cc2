"""Makes JAX strict and gives every test the same small things."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CACHE = Path("~/.cache/fairmix_jax").expanduser()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import chex  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
from hypothesis import settings  # noqa: E402

from fairmix_jax import cpu  # noqa: E402
from fairmix_jax.conv import lowering  # noqa: E402

cpu.tune()
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)

settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=25)
settings.load_profile("fixed")


def pytest_addoption(parser):
    parser.addoption(
        "--lowering", choices=["by_platform", "plain"], default="by_platform",
        help="plain: without our own convolutions, for the tests of parity",
    )  # fmt: skip


@pytest.fixture(autouse=True, scope="session")
def _lowering(request):
    with lowering(request.config.getoption("lowering")):
        yield


@pytest.fixture(autouse=True)
def _clear_trace_counter():
    chex.clear_trace_counter()


@pytest.fixture
def compilations():
    """A list that grows by one whenever a program is compiled."""
    events = []

    def listen(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def tfds_dir():
    """The folder of real TFDS data, where there is one."""
    directory = os.environ.get("TFDS_DATA_DIR", str(ROOT.parent / "shared" / "tfds"))
    if not Path(directory).is_dir():
        pytest.skip(f"no TFDS data in {directory}; set TFDS_DATA_DIR")
    return directory
