"""Runs commands in forks of a process that has imported everything, seconds sooner than anew.

Reads one JSON object a line, `{"argv", "out", "err", "limit", "kill_at"}`, and answers with the
exit status: negative for a signal, as `subprocess` has it, `null` for a command that took more than
`limit` seconds. It is killed as soon as there is the path `kill_at`, unless that is empty. `argv`
is a command line of `launch.py`, or `["load", WORKDIR]`, which prints what an exported model says.

What does not depend on the workdir is made once: the charts' library, and a chart whose
specification was drawn before.
"""

import hashlib
import json
import os
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

import numpy as np
import saving_often
import vl_convert

import fairmix_jax.lab.engines
import fairmix_jax.lab.sweeps
import fairmix_jax.report  # noqa: F401


def _kept(function, folder):
    """`function` of text, whose results are kept in files."""

    def wrapped(*arguments, **options):
        name = hashlib.sha256(repr((function.__name__, arguments, options)).encode()).hexdigest()
        path = folder / name
        if not path.exists():
            result = function(*arguments, **options)
            part = path.with_suffix(f".{os.getpid()}")
            part.write_bytes(result if isinstance(result, bytes) else result.encode())
            part.replace(path)
        found = path.read_bytes()
        return found.decode() if function.__name__ == "javascript_bundle" else found

    return wrapped


def _load(workdir):
    """Prints a digest of what the exported model says of some images."""
    from fairmix_jax.export import load_model

    try:
        logits_fn, card = load_model(workdir)
        images = np.random.default_rng(0).random((16, *card["image_shape"]), np.float32)
        logits = np.asarray(logits_fn(images))
    except (OSError, ValueError) as error:  # the documented ones
        print(f"load: {error}", file=sys.stderr)
        sys.exit(2)
    print(hashlib.sha256(logits.tobytes()).hexdigest(), json.dumps(card["classes"]))
    sys.exit(0)


def _child(request):
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv, status = request["argv"], 0
    try:
        _load(sys.argv[1]) if sys.argv[0] == "load" else saving_often.main()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _wait(pid, limit, kill_at):
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if kill_at and os.path.exists(kill_at):
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002 if kill_at else 0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    vl_convert.javascript_bundle = _kept(vl_convert.javascript_bundle, folder)
    vl_convert.vegalite_to_png = _kept(vl_convert.vegalite_to_png, folder)
    warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _child(request)
        status = _wait(pid, request["limit"], request["kill_at"])
        print(json.dumps(status), file=answers, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
