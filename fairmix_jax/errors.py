"""The one exception that means "the user can mend this"."""


class UsageError(Exception):
    """Bad usage, config or data.

    The message is one line that names the field, its value and the remedy; `launch.py`
    prints it to stderr without a traceback and exits with status 2.
    """


class Interrupted(Exception):
    """Training was stopped by a signal after saving; run the same command to go on."""


class MembersFailed(Exception):
    """Some members of a grid failed and the others are done; the message says which."""
