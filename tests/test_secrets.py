"""What looks like a secret is in no file that a run leaves behind."""

import json
import sys
from types import SimpleNamespace

import pytest

from fairmix_jax.lab import sweeps, workdir
from fairmix_jax.report import page
from fairmix_jax.runtime import provenance

TOKEN = "q9Zr7" * 5


@pytest.mark.parametrize(
    "argument",
    [
        f"--hub_token={TOKEN}", f"--config.data.password={TOKEN}", f"--key={TOKEN}",
        f"--API-KEY={TOKEN}", f"--secret={TOKEN}", f"AWS_SECRET_ACCESS_KEY={TOKEN}",
        f"--url=https://me:{TOKEN}@host/path", f"--url=https://{TOKEN}@host", f"hf_{TOKEN}",
        f"--x=ghp_{TOKEN}", "--id=AKIA0123456789ABCDEF", f"Authorization: Bearer {TOKEN}",
        f"{{'token': '{TOKEN}'}}", f"eyJhbGciOiJI.{TOKEN}.{TOKEN}", f"sk-{TOKEN}",
        f"https://me:a@{TOKEN}@host", f"password = {TOKEN}",
    ],
)  # fmt: skip
def test_what_looks_like_a_secret_is_masked(argument):
    (shown,) = provenance.masked_arguments([argument])
    assert TOKEN not in shown and "AKIA0" not in shown and "***" in shown


def test_a_value_that_follows_its_flag_is_masked():
    given = ["fairmix", "--token", TOKEN, "--key", TOKEN, "--mode", "train"]
    masked = ["fairmix", "--token", "***", "--key", "***", "--mode", "train"]
    assert provenance.masked_arguments(given) == masked


@pytest.mark.parametrize(
    "argument",
    [
        "--config=configs/digits.py:smoke", "--workdir=runs/token_study", "--config.seed=1",
        "--config.sweep=seed=0,1 optim.learning_rate=0.1", "--config.hot_start.weights=best",
        "key, other = jax.random.split(key)", "KeyError: 'attack'", "s3://bucket/data",
        "--config.evaluate.attacks=clean,pgd20@500", "me@host:/data", "http://host/a@b",
    ],
)  # fmt: skip
def test_what_is_no_secret_stays(argument):
    assert provenance.masked_arguments([argument]) == [argument]


def test_files_of_a_run_hold_no_secret(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["fairmix", f"--hub_token={TOKEN}", "--password", TOKEN])
    monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to=https://me:{TOKEN}@host")
    workdir.record(tmp_path)
    entry = sweeps._failed(tmp_path / "run", ValueError(f"no access with token={TOKEN}"))
    assert "token=***" in entry["error"]
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or TOKEN not in path.read_text()
    assert "--hub_token=***" in json.loads((tmp_path / "run.json").read_text())["argv"]


def test_the_page_masks_what_an_earlier_run_json_holds():
    provenance = {"argv": ["fairmix", f"--hub_token={TOKEN}"], "python": "3.11"}
    trained, _ = page._provenance(SimpleNamespace(provenance=provenance, evaluation={}))  # ty: ignore
    assert trained == ("Trained", "fairmix '--hub_token=***'", {"python": "3.11"})
