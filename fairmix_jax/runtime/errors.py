"""The ways in which a program ends: exceptions that a user meets, exit statuses, signals."""

import errno
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 75


class UsageError(Exception):
    """Bad usage, config or data.

    The message is one line that names the field, its value and the remedy; a command line
    prints it to stderr without a traceback and exits with status 2.
    """


class Damaged(UsageError, ValueError):
    """A file is not there, cannot be read, or does not hold what was written; names it."""


@contextmanager
def refused(what: str, remedy: str = "", *, keeps: type[Exception] = UsageError) -> Generator[None]:
    """Makes `Damaged`, in one line, of whatever is raised but what it `keeps`.

    Who reads a file that may be damaged, or made to harm, cannot know what is raised.
    """
    try:
        yield
    except keeps:
        raise
    except Exception as error:
        from fairmix_jax.runtime.console import printable  # and rich, which attacks do without

        said = repr(error) if isinstance(error, KeyError) else str(error) or repr(error)
        remedy = remedy and f"; {remedy}"
        raise Damaged(printable(f"{what} ({' '.join(said.split())[:300]}){remedy}")) from error


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def told(error: Exception) -> tuple[str, int]:
    """Returns the line and the exit status of a `UsageError`, or of what the file system refused.

    The latter names path and remedy. The line is empty for all other errors.
    """
    if isinstance(error, UsageError):
        return str(error), EXIT_USAGE
    path = getattr(error, "filename2", None) or getattr(error, "filename", None)
    if isinstance(error, OSError) and error.errno in _FULL:
        line = f"{path or 'a file'}: {error.strerror}; make room, and run the same command again"
        return line, EXIT_FAILED
    if isinstance(error, OSError) and path:
        reason = "It is no folder" if error.errno == errno.EEXIST else error.strerror
        return f"{path}: {reason}; mend that, or give another path", EXIT_USAGE
    return "", EXIT_FAILED


@contextmanager
def exits_on_usage_error(program: str) -> Generator[None]:
    """Decorates the main function of a `program` so that it ends with a line that is `told`."""
    try:
        yield
    except (UsageError, OSError) as error:
        message, status = told(error)
        if not message:
            raise
        from fairmix_jax.runtime.console import printable  # and rich, which attacks do without

        print(f"{program}: {printable(message)}", file=sys.stderr)
        sys.exit(status)


class Interrupted(BaseException):
    """A signal stopped the run; run the same command to go on.

    Like `KeyboardInterrupt` it is no `Exception`, so that nothing takes it for a failure.
    """


class StopRequest:
    """A context manager under which SIGTERM and SIGINT only set a flag, for the loop to answer.

    The second SIGINT interrupts at once. Outside the main thread it does nothing, since
    Python lets only that thread handle signals.
    """

    received: str | None = None

    def __enter__(self) -> "StopRequest":
        is_main = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGTERM, signal.SIGINT) if is_main else ()
        self._previous = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name


class RunsFailed(Exception):
    """Some runs of a sweep failed and the others are done; the message says which."""
