"""The disk is full, the folder is read-only or no folder at all: one line, and nothing is lost."""

import os
import subprocess

import pytest

from faults.bench import RUN, copied, differing, final, said_clearly

LONG = 10
PLACES = {  # and whether it is tried in the long form only
    "": False, "checkpoints": False, "checkpoints/state": True, "attacks": True, "report": True,
}  # fmt: skip


def pytest_generate_tests(metafunc):
    if "share" in metafunc.fixturenames:
        shares = [0.02 + 0.96 * number / (LONG - 1) for number in range(LONG)]
        cases = [pytest.param(s, id=f"{s:.2f}", marks=pytest.mark.faults) for s in shares]
        metafunc.parametrize("share", [pytest.param(0.3, id="short"), *cases])


class Disk:
    """A small disk at a folder, in memory; skips the test where none may be mounted."""

    def __init__(self, folder, size):
        self.folder, self._size = folder, size

    def __enter__(self):
        self.folder.mkdir()
        try:
            self._mount(f"size={self._size}", "tmpfs")
        except (subprocess.CalledProcessError, FileNotFoundError):
            pytest.skip("no disk may be mounted here, which takes root and Linux")
        return self

    def __exit__(self, *_):
        subprocess.run(["umount", str(self.folder)], check=True)

    def _mount(self, options, *source):
        kind = ["-t", "tmpfs"] if source else []
        subprocess.run(
            ["mount", *kind, "-o", options, *source, str(self.folder)],
            check=True, capture_output=True,
        )  # fmt: skip

    def change(self, options):
        self._mount(f"remount,{options}")


def blocks(folder):
    """Returns the bytes that a folder takes on such a disk."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in files)


def judged(record_property, group, row, wrong):
    record_property("fault", (group, "failed" if wrong else "refused", row))
    assert not wrong


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(
    share, server, finished, tmp_path, record_property
):
    with Disk(tmp_path / "disk", int(share * blocks(finished))) as disk:
        ended = server.launch(*RUN, f"--workdir={disk.folder / 'run'}")
        wrong = said_clearly(ended, about=("No space left on device", "no space left"))
        if wrong:
            record_property("fault", ("full disk", "failed", "while it is full"))
        disk.change("size=64m")
        again = server.launch(*RUN, f"--workdir={disk.folder / 'run'}")
        names = differing(final(finished), final(disk.folder / "run"))
        is_sound = again.status == 0 and not names
        how = "the same" if is_sound else "failed"
        record_property("fault", ("full disk", how, "once there is room"))
        assert not wrong, f"full at {share:.0%}: {wrong}"
        assert is_sound, f"{again.err} {names}"
        record_property("fault", ("full disk", "refused", "while it is full"))


def test_a_read_only_disk_can_be_read_and_refuses_the_rest(
    server, finished, tmp_path, record_property
):
    with Disk(tmp_path / "disk", "64m") as disk:
        folder = copied(finished, disk.folder / "run")
        disk.change("ro")
        report = server.launch("--mode=report", f"--workdir={tmp_path}", str(folder))
        assert report.status == 0, report.err
        assert server("load", str(folder)).status == 0
        commands = (RUN, ("--mode=evaluate",), ("--mode=report",))
        ends = [server.launch(*flags, f"--workdir={folder}") for flags in commands]
    wrong = [
        said_clearly(ended, about=("Read-only file system", "cannot be written")) for ended in ends
    ]
    judged(record_property, "places", "a read-only disk", "; ".join(filter(None, wrong)))


@pytest.mark.parametrize(
    "what, place",
    [
        pytest.param(what, place, marks=pytest.mark.faults if is_long else (), id=f"{what} {place}")
        for place, is_long in PLACES.items()
        for what in ("a file", "a link to nothing")
    ],
)
def test_no_folder_where_one_should_be_is_one_line(what, place, server, tmp_path, record_property):
    folder = tmp_path / "run"
    folder.parent.mkdir(exist_ok=True)
    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("") if what == "a file" else path.symlink_to(tmp_path / "nowhere" / "at all")
    ended = server.launch(*RUN, f"--workdir={folder}")
    wrong = said_clearly(ended, about=(os.fspath(path),))
    judged(record_property, "places", f"{what} for a folder", wrong)
