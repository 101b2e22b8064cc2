"""`pytest -n 0 tests/parity --lowering=plain` runs the same tests without our convolutions."""

import pytest

from fairmix_jax.conv import lowering


def pytest_addoption(parser):
    parser.addoption("--lowering", choices=["by_platform", "plain"], default="by_platform")


@pytest.fixture(autouse=True, scope="session")
def _lowering(request):
    with lowering(request.config.getoption("lowering", "by_platform")):
        yield
