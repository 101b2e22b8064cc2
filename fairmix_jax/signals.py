"""Stopping a run politely: SIGTERM and SIGINT ask, the training loop answers."""

import signal
import threading


class StopRequest:
    """A context manager under which SIGTERM and SIGINT only set a flag.

    The second SIGINT interrupts at once. Outside the main thread it does nothing, since
    Python lets only that thread handle signals.
    """

    def __init__(self):
        """Starts with nothing asked for."""
        self.received: str | None = None
        self._previous = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
