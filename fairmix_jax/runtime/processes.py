"""Several processes that run one program: joining them, and agreeing among them.

All processes go through the same steps. Only the first, the main one, reads and writes the
folder of a run; what it finds there, the others are told. Alone, a process is the main one
and nothing is sent anywhere.
"""

import faulthandler
import os
import re
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from fairmix_jax.runtime import sharding
from fairmix_jax.runtime.errors import EXIT_USAGE, StopRequest, UsageError
from fairmix_jax.runtime.messages import opened, outcome

HEARTBEAT_SECONDS = 30
"""A process that is silent for so long is taken for dead, and the others end."""

JOIN_SECONDS = 300.0  # after which a process that waits for others ends
_CHUNK = 2**28  # bytes that devices exchange at a time
_TASKS = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
_REMEDY = (
    "give --coordinator, --num_processes and --process_id on each, "
    "or --num_processes=1 to run alone"
)

T = TypeVar("T")
_STATE = {"joined": False}


def join(coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Makes this process one of several, if there are several; before anything else of JAX.

    Without arguments JAX detects the cluster (see `--coordinator`); where it finds none, or one of
    a single task, the process stays alone. Under Slurm and Open MPI each process then gets the one
    GPU of its local number, unless `JAX_LOCAL_DEVICE_IDS` says otherwise.

    Args:
      coordinator: `host:port` at which the first process listens, on the loopback only if
        the host is `127.0.0.1`.
      num_processes, process_id: how many there are, 1 for alone, and which one this is, from 0.

    Raises:
      UsageError: only some arguments are given, or the cluster cannot be joined. Where others do
        not come in `JOIN_SECONDS` the process ends, with the line and status of such an error.
    """
    given = [bool(coordinator), num_processes > 0, process_id >= 0]
    tasks = [os.environ[name] for name in _TASKS if name in os.environ]
    if num_processes == 1 or (not any(given) and tasks[:1] == ["1"]):
        return
    if any(given) and not all(given):
        raise UsageError(
            f"coordinator={coordinator!r}, num_processes={num_processes} and process_id="
            f"{process_id} go together; {_REMEDY}"
        )
    if all(given) and process_id >= num_processes:
        raise UsageError(f"process_id={process_id} must be below num_processes={num_processes}")
    if coordinator and not re.fullmatch(r"[^\s/]+:[0-9]{1,5}", coordinator):
        raise UsageError(f"coordinator={coordinator!r} is not understood; give host:port")
    jax.config.update("jax_enable_preemption_service", False)  # see `StopVote`
    is_loopback = coordinator.startswith("127.0.0.1:")
    try:
        with _patience(coordinator, num_processes, process_id) if all(given) else nullcontext():
            jax.distributed.initialize(
                coordinator or None, num_processes or None, process_id if process_id >= 0 else None,
                coordinator_bind_address=coordinator if is_loopback else None,
                initialization_timeout=int(10 * JOIN_SECONDS) if all(given) else int(JOIN_SECONDS),
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=HEARTBEAT_SECONDS,
            )  # fmt: skip
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        is_scheduled = tasks or "TPU_WORKER_HOSTNAMES" in os.environ
        was_not_looked_for = "must be called before" in reason and not is_scheduled  # JAX is in use
        if not any(given) and (was_not_looked_for or "coordinator_address should be" in reason):
            return
        raise UsageError(f"the processes do not find each other ({reason}); {_REMEDY}") from error
    faulthandler.disable()  # when another process dies JAX aborts this one, and says why
    _STATE["joined"] = True


@contextmanager
def _patience(coordinator: str, num_processes: int, process_id: int) -> Generator[None]:
    """Says what is waited for, and ends the process in time: JAX would abort it with a dump."""
    what = f"process {process_id} of {num_processes}"
    text = f"{JOIN_SECONDS:g} s for all of them to come to {coordinator}"

    def give_up() -> None:
        print(
            f"{what} has waited {text}; start them with that address", file=sys.stderr, flush=True
        )
        os._exit(EXIT_USAGE)

    from fairmix_jax.runtime.console import console  # and rich, which attacks do without

    console.print(f"{what} waits up to {text}; see --coordinator")
    timer = threading.Timer(JOIN_SECONDS, give_up)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def is_joined() -> bool:
    """Whether this process is one of several, joined by `join`."""
    return _STATE["joined"]


def is_main() -> bool:
    """Whether this is the process that reads and writes the folder of the run."""
    return jax.process_index() == 0


def from_main(make: Callable[[], T]) -> T:
    """Returns in every process what `make` returns in the main one, which alone calls it.

    What it raises there is raised everywhere.
    """
    if jax.process_count() == 1:
        return make()
    data = outcome(make) if is_main() else b""
    return opened(_sent(multihost_utils.broadcast_one_to_all, data)[0])


def from_each(make: Callable[[], T]) -> list[T]:
    """Returns in every process what `make` returned in each of them, in their order.

    If it raises anywhere, the first such exception is raised everywhere, once all are done.
    """
    if jax.process_count() == 1:
        return [make()]
    return [opened(data) for data in _sent(multihost_utils.process_allgather, outcome(make))]


def _sent(collective: Callable[[np.ndarray], Any], data: bytes) -> list[bytes]:
    """Returns the rows of a collective operation, one a sender, sent in pieces it can carry."""
    here = np.frombuffer(data, np.uint8)
    with _Undisturbed():
        pairs = np.reshape(collective(np.asarray(divmod(len(here), _CHUNK), np.int32)), (-1, 2))
        sizes = [int(chunks) * _CHUNK + int(rest) for chunks, rest in pairs]
        padded = np.pad(here, (0, max(sizes) - len(here)))
        pieces = np.split(padded, range(_CHUNK, len(padded), _CHUNK))
        sent = [np.asarray(collective(piece), np.uint8) for piece in pieces]
    rows = np.concatenate([piece.reshape(len(sizes), -1) for piece in sent], axis=1)
    return [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]


class _Undisturbed(StopRequest):
    """Puts signals off: a process that left an exchange half way would hold up the others."""

    def __exit__(self, *reason) -> None:
        super().__exit__(*reason)
        if self.received:
            signal.raise_signal(signal.Signals[self.received])


def require_equal(what: str, value: str) -> None:
    """Raises a `UsageError` that names `what` and a process if a text is not the same in all."""
    for number, other in enumerate(values := from_each(lambda: value)):
        if other != values[0]:
            raise UsageError(
                f"{what} of process {number} differs from that of process 0; run the same command "
                "on the same data everywhere"
            )


def is_agreed(error: BaseException) -> bool:
    """Whether an exception is one that all processes raise."""
    return jax.process_count() == 1 or getattr(error, "is_agreed", False)


def share(number: int) -> np.ndarray:
    """Returns which of `number` things this process is to do: positions, dealt out in turns."""
    return np.arange(jax.process_index(), number, jax.process_count())


def dealt(parts: list[T]) -> T:
    """Returns pytrees of arrays, one a process for its `share`, as one in the original order."""

    def merged(*arrays: np.ndarray) -> np.ndarray:
        whole = np.concatenate(arrays)
        for number, array in enumerate(arrays):
            whole[number :: len(arrays)] = array
        return whole

    return parts[0] if len(parts) == 1 else jax.tree.map(merged, *parts)


class StopVote:
    """All processes, with a mesh of all their devices, stop at the same step when one is told to.

    Each says at every step whether it wants to. Devices add that up beside the training
    steps, and the sum is read two steps later, so nothing waits for it. Alone, a process has
    its way at once. (JAX's own `reached_preemption_sync_point` takes SIGTERM away from Python for
    good, also in evaluation, where nothing calls it.)
    """

    _LAG = 2

    def __init__(self, mesh: Mesh):
        self._place = sharding.along_batch(mesh)
        self._any = jax.jit(jnp.any, out_shardings=sharding.replicated(mesh))
        self._size, self._sums = mesh.size, deque()

    def __call__(self, wants: bool) -> bool:
        """Says whether all are to stop now; called by all, once a step."""
        if jax.process_count() == 1:
            return wants
        self._sums.append(self._sum(wants))
        return len(self._sums) > self._LAG and bool(self._sums.popleft())

    def last(self, wants: bool) -> bool:
        """Says whether anyone has wanted to stop since it was last answered."""
        if jax.process_count() == 1:
            return wants
        return any([bool(votes) for votes in (*self._sums, self._sum(wants))])

    def _sum(self, wants: bool) -> jax.Array:
        flags = np.full(len(self._place.addressable_devices), wants)
        return self._any(jax.make_array_from_process_local_data(self._place, flags, (self._size,)))
