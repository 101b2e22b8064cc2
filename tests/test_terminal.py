"""What a person sees on a terminal of 80 columns, and in a log."""

import io

import pytest
from rich.console import Console

from fairmix_jax.runtime import console as console_lib
from fairmix_jax.training import progress


def narrow(width=80, *, terminal=True):
    return Console(width=width, force_terminal=terminal, file=io.StringIO(), highlight=False)


@pytest.mark.parametrize("width", [80, 160])
def test_progress_fits_the_terminal_and_keeps_its_figures(monkeypatch, width):
    console = narrow(width)
    monkeypatch.setattr(progress, "console", console)
    with progress.TrainProgress(0, 40_000, total_epochs=400, batch_size=128) as shown:
        shown.advance(39_990)
        shown.end_epoch(399, loss=12.345, clean=1.0, robust=0.987)
    last = console.file.getvalue().rsplit("epoch", 1)[1]
    assert "400/400" in last and "loss 12.345" in last
    assert "clean 100.0%" in last and "robust  98.7%" in last and "left" in last
    assert "…" not in last
    assert ("images/s" in last) == (width == 160)


def test_what_takes_a_while_is_said_in_a_log_and_beside_a_spinner(monkeypatch):
    for terminal in (False, True):
        console = narrow(terminal=terminal)
        monkeypatch.setattr(console_lib, "console", console)
        with console_lib.working("examining masking"):
            pass
        text = console.file.getvalue()
        assert "examining masking ..." in text and ("\x1b" in text) == terminal
