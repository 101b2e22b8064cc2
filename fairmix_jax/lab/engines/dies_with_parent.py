"""`python dies_with_parent.py PARENT ARGUMENTS ...` becomes `python ARGUMENTS ...`.

On Linux that is killed when the thread that started it is gone; `PARENT` is the number of the
thread's process. It ignores the signal by which submitit says that a job's time is nearly up.
"""

import ctypes
import os
import signal
import sys

_SET_PARENT_DEATH_SIGNAL = 1
_INTERRUPTED = 75

if __name__ == "__main__":
    parent, *arguments = sys.argv[1:]
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != int(parent):  # it was gone before the system knew
            sys.exit(_INTERRUPTED)
    os.execv(sys.executable, [sys.executable, *arguments])
