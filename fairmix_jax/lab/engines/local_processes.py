"""`--backend=processes`: one run by several processes of this machine, joined by loopback."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fairmix_jax.lab import engines
from fairmix_jax.runtime.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, UsageError

_PATIENCE = 90.0


def run(arguments: Sequence[str], num_processes: int) -> int:
    """Runs a command line in several processes at once and returns its exit status.

    SIGTERM and SIGINT are passed on. When one process dies, the others end by themselves;
    those that have not after 90 seconds are killed. Fewer than two are a `UsageError`.
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
    deadline, first = None, 0
    while any(process.poll() is None for process in processes):
        time.sleep(0.05)
        lost = [n for n, p in enumerate(processes) if p.poll() not in (None, 0, EXIT_INTERRUPTED)]
        if lost and deadline is None:
            first, deadline = lost[0], time.monotonic() + _PATIENCE
        if deadline is not None and time.monotonic() > deadline:
            for process in processes:
                process.kill()
    statuses = {process.returncode for process in processes}
    if statuses <= {0, EXIT_INTERRUPTED}:
        return max(statuses)
    if statuses == {EXIT_USAGE}:
        return EXIT_USAGE
    status = processes[first].returncode
    how = signal.Signals(-status).name if status < 0 else f"status {status}"
    print(
        f"{Path(sys.argv[0]).name}: process {first} of {len(processes)} ended with {how}, and so "
        "did the others; run the same command to go on",
        file=sys.stderr,
    )
    return EXIT_FAILED
