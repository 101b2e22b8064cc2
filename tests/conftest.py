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

from fairmix_jax.models.convolution import lowering  # noqa: E402
from fairmix_jax.runtime import cpu  # noqa: E402

cpu.tune()
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)

settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=25)
settings.load_profile("fixed")


STRICT = {
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_DEBUG_KEY_REUSE": "1",
}
"""The same checks, for the environment of another process."""

# Longest first: a worker that begins one of them last leaves the other one idle.
LONGEST = (
    "test_launch.py",
    "test_cluster.py",
    "test_evidence.py",
    "test_tutorials.py",
    "test_feedback.py",
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_addoption(parser):
    parser.addoption(
        "--lowering", choices=["by_platform", "plain"], default="by_platform",
        help="plain: without our own convolutions, for the tests of parity",
    )  # fmt: skip
    for name, default, text in (
        ("--kills", 30, "how many kills there are under `-m faults`"),
        ("--corruptions", 200, "how many files are damaged"),
        ("--faults-seed", 0, "of the moments and the damage; another number gives other ones"),
    ):
        parser.addoption(name, type=int, default=default, help=text)


def pytest_terminal_summary(terminalreporter, config):
    """Prints the table of docs/reliability.md where the tests of faults were asked for."""
    if config.option.markexpr != "faults":
        return
    from faults.figures import table

    terminalreporter.section("faults, for docs/reliability.md")
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    for line in table(reports):
        terminalreporter.write_line(line)


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
