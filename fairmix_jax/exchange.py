"""What processes tell each other: values and exceptions as bytes, through their devices."""

import pickle
import signal
import traceback
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from fairmix_jax.errors import Interrupted
from fairmix_jax.signals import StopRequest

_CHUNK = 2**28


def outcome(make: Callable[[], Any]) -> bytes:
    """What `make` returns or raises, as bytes that can be read back."""
    try:
        return _readable((make(), None))
    except (Exception, Interrupted) as error:  # raised again in every process
        error.add_note(f"in process {jax.process_index()}:\n{traceback.format_exc()}")
        try:
            return _readable((None, error))
        except Exception:
            stands_for = RuntimeError(f"{type(error).__name__}: {error}")
            stands_for.add_note(traceback.format_exc())
            return pickle.dumps((None, stands_for))


def _readable(found: Any) -> bytes:
    data = pickle.dumps(found)
    if found[1] is not None:
        pickle.loads(data)  # some exceptions can be written and not read
    return data


def opened(data: bytes) -> Any:
    """Returns what `outcome` wrote, or raises it, with `is_agreed` set."""
    value, error = pickle.loads(data)
    if error is not None:
        error.is_agreed = True
        raise error
    return value


def told(data: bytes) -> bytes:
    """What the main process gave."""
    with _Undisturbed():
        size = _joined_size(multihost_utils.broadcast_one_to_all(_split_size(len(data))))
        parts = [
            multihost_utils.broadcast_one_to_all(_part(data, start, min(_CHUNK, size - start)))
            for start in range(0, size, _CHUNK)
        ]
    return b"".join(np.asarray(part, np.uint8).tobytes() for part in parts)


def exchanged(data: bytes) -> list[bytes]:
    """What each process gave."""
    with _Undisturbed():
        gathered = np.asarray(multihost_utils.process_allgather(_split_size(len(data))))
        sizes = [_joined_size(row) for row in gathered.reshape(-1, 2)]
        parts = [
            np.asarray(
                multihost_utils.process_allgather(
                    _part(data, start, min(_CHUNK, max(sizes) - start))
                ),
                np.uint8,
            ).reshape(len(sizes), -1)
            for start in range(0, max(sizes), _CHUNK)
        ]
    whole = np.concatenate(parts, axis=1)
    return [row[:size].tobytes() for row, size in zip(whole, sizes, strict=True)]


def _split_size(size: int) -> np.ndarray:
    return np.asarray(divmod(size, _CHUNK), np.int32)


def _joined_size(pair: Any) -> int:
    return int(pair[0]) * _CHUNK + int(pair[1])


def _part(data: bytes, start: int, size: int) -> np.ndarray:
    padded = np.zeros(size, np.uint8)
    here = np.frombuffer(data[start : start + size], np.uint8)
    padded[: len(here)] = here
    return padded


class _Undisturbed(StopRequest):
    """Puts signals off: a process that left an exchange half way would hold up the others."""

    def __exit__(self, *reason) -> None:
        super().__exit__(*reason)
        if self.received:
            signal.raise_signal(signal.Signals[self.received])
