"""The exceptions that a user meets, and the exit statuses of `launch.py`."""

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 75


class UsageError(Exception):
    """Bad usage, config or data.

    The message is one line that names the field, its value and the remedy; `launch.py`
    prints it to stderr without a traceback and exits with status 2.
    """


class Interrupted(BaseException):
    """A signal stopped the run; run the same command to go on.

    Like `KeyboardInterrupt` it is no `Exception`, so that nothing takes it for a failure.
    """


class MembersFailed(Exception):
    """Some members of a grid failed and the others are done; the message says which."""
