"""`fairmix doctor`: what it finds on this machine, and what it says of broken ones."""

import shutil

import jax
import pytest

import fairmix_jax
from fairmix_jax.lab import doctor
from fairmix_jax.runtime import cpu

_version = doctor._version


def found(what):
    (finding,) = [finding for finding in doctor.findings() if finding.what == what]
    return finding


def test_a_healthy_machine_is_told_what_it_has_and_exits_with_zero(monkeypatch, tmp_path, capsys):
    version = tmp_path / "fashion_mnist" / "3.0.1"
    version.mkdir(parents=True)
    (version / "dataset_info.json").write_text("{}")
    (tmp_path / "cifar10.npz").touch()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(SystemExit) as stop:
        doctor.main()
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "\n!" not in text
    wide = [line for line in text.splitlines() if len(line) > 80]
    assert [line for line in wide if len(line.split()[-1]) <= 64] == []  # a long path stays whole
    text = " ".join(text.split())
    for known in (
        fairmix_jax.__version__, f"jax {jax.__version__}", f"{jax.device_count()} x ", " cores, ",
        "GiB of memory", f"{tmp_path}: cifar10.npz, fashion_mnist 3.0.1", "files, ",
    ):  # fmt: skip
        assert known in text


def test_a_folder_of_data_that_is_not_there_is_an_error_and_none_is_a_hint(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nowhere"))
    assert found("data sets").needed and "TFDS_DATA_DIR" in found("data sets").remedy
    with pytest.raises(SystemExit) as stop:
        doctor.main()
    assert stop.value.code == 1
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    data = found("data sets")
    assert not data.needed and "data.prepare" in data.remedy and "is not set" in data.found


def test_missing_packages_come_with_the_command_that_installs_them(monkeypatch):
    gone = ("optax", "submitit", "jax-cuda13-plugin")
    monkeypatch.setattr(doctor, "_version", lambda name: "" if name in gone else _version(name))
    packages = found("packages")
    assert packages.needed and "optax missing" in packages.found
    assert packages.remedy == "pip install 'optax>=0.2.8'"
    assert found("extra sweep").found.endswith("'submitit>=1.5'")
    assert found("extra cuda").found == "pip install 'jax[cuda13]'"
    text = doctor.report([doctor.Finding("extra x", "pip install " + "'package>=1.0' " * 20)])
    assert max(map(len, text.splitlines())) <= 80 < len(text)
    assert "! packages" in doctor.report(doctor.findings())


def test_slow_or_idle_devices_are_pointed_out(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not found("devices").remedy
    monkeypatch.setattr(cpu, "tune", lambda: False)
    assert "jaxlib 0.10" in found("devices").remedy
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert "cuda12" in found("devices").remedy and not found("devices").needed


def test_no_device_at_all_is_an_error(monkeypatch):
    def broken():
        raise RuntimeError("Unable to initialize backend 'cuda'")

    monkeypatch.setattr(jax, "devices", broken)
    assert found("devices").needed and "Unable" in found("devices").found


def test_a_cache_that_cannot_be_written_is_pointed_out(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "new" / "cache"))
    assert found("cache").found.endswith("0 files, 0 MiB") and not found("cache").remedy
    (tmp_path / "new").write_text("a file")
    assert "--compilation_cache" in found("cache").remedy
