"""What the tests of faults share: the server that runs commands, and a finished run."""

import pytest

from faults.bench import RUN, ForkServer


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    with ForkServer(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="session")
def finished(server, tmp_path_factory):
    """The folder of a sound run, which no test may change."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    ended = server.launch(*RUN, f"--workdir={folder}")
    assert ended.status == 0, ended.err
    return folder
