"""`--backend=processes`: one run by several processes of this machine, joined by loopback."""

import math
import signal
import socket
import subprocess
import time
from collections.abc import Sequence

from fairmix_jax.lab import engines
from fairmix_jax.runtime.errors import EXIT_INTERRUPTED, EXIT_USAGE, RunsFailed, UsageError

_PATIENCE = 90.0


def run(arguments: Sequence[str], num_processes: int) -> int:
    """Runs a command line in several processes at once and returns its exit status.

    SIGTERM and SIGINT are passed on. When one process dies, the others end by themselves;
    those that have not after 90 seconds are killed.

    Raises:
      UsageError: there are fewer than two.
      RunsFailed: one died, whose status is named.
    """
    if num_processes < 2:
        raise UsageError(
            f"num_processes={num_processes} with --backend=processes; give 2 or more, or "
            "--backend=local"
        )
    address = free_address("127.0.0.1")
    flags = ("--backend=local", f"--coordinator={address}", f"--num_processes={num_processes}")
    processes: list[subprocess.Popen] = []

    def pass_on(number: int, _) -> None:
        for process in processes:
            process.send_signal(number)  # to those that are still there

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    for number in range(num_processes):
        own = (*arguments, *flags, f"--process_id={number}")
        processes.append(engines.start(*own, start_new_session=True))  # Ctrl-C reaches it once
    return _wait(processes)


def free_address(host: str) -> str:
    """Returns `host:port` with a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return f"{host}:{probe.getsockname()[1]}"


def _wait(processes: Sequence[subprocess.Popen]) -> int:
    deadline, first = math.inf, 0
    while any(process.poll() is None for process in processes):
        time.sleep(0.05)
        lost = [n for n, p in enumerate(processes) if p.poll() not in (None, 0, EXIT_INTERRUPTED)]
        if lost and deadline == math.inf:
            first, deadline = lost[0], time.monotonic() + _PATIENCE
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()
    statuses = {process.returncode for process in processes}
    if statuses <= {0, EXIT_INTERRUPTED} or statuses == {EXIT_USAGE}:
        return max(statuses)
    status = processes[first].returncode
    how = signal.Signals(-status).name if status < 0 else f"status {status}"
    raise RunsFailed(f"process {first} of {len(processes)} ended with {how}, and so did the others")
