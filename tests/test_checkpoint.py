"""Checkpoints come back bit for bit, or not at all."""

import shutil
import tarfile

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from tiny import assemble

from fairmix_jax.lab.workdir import get_config
from fairmix_jax.methods import class_statistics
from fairmix_jax.runtime.errors import UsageError
from fairmix_jax.training.checkpoints import Checkpoints, digest
from fairmix_jax.training.step import StepMetrics


def tree(value):
    return {"a": jnp.full((300, 40), value), "b": {"n": jnp.asarray(3, jnp.int32)}}


def same(a, b):
    return digest(a) == digest(b)


def open_at(tmp_path, keep=2):
    return Checkpoints(tmp_path / "state", max_to_keep=keep)


def test_round_trip_with_facts(tmp_path):
    checkpoints = open_at(tmp_path)
    assert checkpoints.restore_latest(tree(0.0)) is None
    checkpoints.save(5, tree(1.5), score=0.25)
    checkpoints = open_at(tmp_path)
    restored, facts = checkpoints.restore_latest(tree(0.0))
    assert same(restored, tree(1.5)) and facts["score"] == 0.25


def test_only_the_newest_are_kept(tmp_path):
    checkpoints = open_at(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(step, tree(float(step)))
    names = sorted(path.name for path in (tmp_path / "state").iterdir() if path.is_dir())
    assert names == ["2", "3"]


def largest_file(step_dir):
    files = [path for path in step_dir.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def flip_a_bit(step_dir):
    path = largest_file(step_dir)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(step_dir):
    path = largest_file(step_dir)
    path.write_bytes(path.read_bytes()[:10])


def empty(step_dir):
    for path in sorted(step_dir.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, empty])
def test_damage_is_noticed_and_the_one_before_is_used(damage, tmp_path):
    checkpoints = open_at(tmp_path)
    checkpoints.save(1, {"a": jnp.asarray(np.random.default_rng(0).random(50_000))})
    checkpoints.save(2, {"a": jnp.asarray(np.random.default_rng(1).random(50_000))})
    damage(tmp_path / "state" / "2")
    template = {"a": jnp.zeros(50_000)}
    checkpoints = open_at(tmp_path)
    restored, _ = checkpoints.restore_latest(template)
    assert same(restored, {"a": jnp.asarray(np.random.default_rng(0).random(50_000))})
    assert (tmp_path / "state" / "damaged-2").is_dir()
    checkpoints.save(2, template)
    assert same(checkpoints.restore_latest(template)[0], template)


def test_where_none_can_stand_in_damage_and_loss_are_refused_and_nothing_is_touched(tmp_path):
    checkpoints = open_at(tmp_path, keep=1)
    assert checkpoints.restore_latest(tree(0.0), since=0) is None
    checkpoints.save(2, tree(1.5))
    assert same(checkpoints.restore_latest(tree(0.0), since=2)[0], tree(1.5))
    assert same(checkpoints.restore_latest(tree(0.0), since=1)[0], tree(1.5))  # a later one
    with pytest.raises(UsageError, match=r"state/3/checkpoint.npz' is damaged .*; put it back"):
        checkpoints.restore_latest(tree(0.0), since=3)
    flip_a_bit(tmp_path / "state" / "2")
    with pytest.raises(UsageError, match=r"state/2/checkpoint.npz' is damaged .*; put it back"):
        checkpoints.restore_latest(tree(0.0), since=2)
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["2"]


@pytest.mark.parametrize("template", [
    {"a": jnp.zeros((300, 41)), "b": {"n": jnp.asarray(3, jnp.int32)}},
    {"a": jnp.zeros((300, 40)), "b": {"n": jnp.asarray(3.0)}},
    {"a": jnp.zeros((300, 40)), "b": {}},
    {"a": jnp.zeros((300, 40)), "b": {"n": jnp.asarray(3, jnp.int32)}, "c": jnp.zeros(1)},
])  # fmt: skip
def test_a_checkpoint_of_another_network_is_refused_and_stays(template, tmp_path):
    checkpoints = open_at(tmp_path)
    checkpoints.save(1, tree(1.0))
    checkpoints.save(2, tree(2.0))
    for since in (None, 0):
        with pytest.raises(UsageError, match="state/2' is of another network") as refused:
            checkpoints.restore_latest(template, since=since)
        assert len(str(refused.value).splitlines()) == 1
    assert same(checkpoints.restore_latest(tree(0.0))[0], tree(2.0))
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["1", "2"]


@pytest.mark.parametrize("name", [
    "[", "]", "a[b]c", "[!a]", "*", "?", "a b", "100%", "%41", "ü日本", "it's", 'q"q', "-x", "dot.",
    "~", "$HOME", "a\\b", "a\nb", "a:b#c", "{a,b}", "state.part", "3", "\udcff", "x" * 255,
])  # fmt: skip
def test_any_name_of_a_folder_will_do(name, tmp_path):
    for step in (1, 2, 3):
        Checkpoints(tmp_path / name / "state", max_to_keep=2).save(step, tree(float(step)))
    checkpoints = Checkpoints(tmp_path / name / "state", max_to_keep=2)
    assert same(checkpoints.restore_latest(tree(0.0))[0], tree(3.0))
    names = sorted(path.name for path in (tmp_path / name / "state").iterdir())
    assert names == ["2", "3"]


def test_every_kind_of_array_comes_back(tmp_path):
    kinds = ("bfloat16", "float8_e4m3fn", "float16", "bool", "uint8", "int32", "complex64")
    saved = {kind: jnp.asarray([0, 1, 1], kind) for kind in kinds}
    saved |= {"scalar": jnp.asarray(1.5, jnp.bfloat16), "none": jnp.zeros((0, 3)), "empty": ()}
    checkpoints = open_at(tmp_path)
    checkpoints.save(1, saved)
    assert same(checkpoints.restore_latest(saved)[0], saved)


def test_what_a_killed_process_left_half_written_is_no_checkpoint_and_goes(tmp_path):
    checkpoints = open_at(tmp_path)
    checkpoints.save(1, tree(1.0))
    shutil.copytree(tmp_path / "state" / "1", tmp_path / "state" / "2.part")
    truncate(tmp_path / "state" / "2.part")
    assert same(checkpoints.restore_latest(tree(0.0))[0], tree(1.0))
    checkpoints.save(3, tree(3.0))
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["1", "3"]


def test_checkpoints_stand_in_a_with_as_in_version_0_1(tmp_path):
    with Checkpoints(tmp_path, max_to_keep=1) as saved:
        saved.save(3, {"a": np.arange(4)})
    tree, _ = Checkpoints(tmp_path, max_to_keep=1).restore_latest({"a": np.zeros(4, int)})
    assert tree["a"].tolist() == [0, 1, 2, 3]


def test_checkpoints_of_version_0_1_are_verified_as_well(tmp_path):
    with tarfile.open(ROOT / "tests" / "data" / "run_of_version_0_1.tar.gz") as archive:
        archive.extractall(tmp_path)
    state = tmp_path / "stopped" / "checkpoints" / "state"
    config = get_config(str(tmp_path / "stopped")).unlock()
    trainer, _ = assemble(config)
    template = trainer.initial_state, StepMetrics(jnp.zeros(()), class_statistics.zeros(10))
    config.model.width = 16
    other, _ = assemble(config)
    checkpoints = Checkpoints(state, max_to_keep=2)
    with pytest.raises(UsageError, match="state/10' is of another network"):
        checkpoints.restore_latest((other.initial_state, template[1]))
    assert checkpoints.restore_latest(template)[0][0].step == 10
    flip_a_bit(state / "10")
    assert checkpoints.restore_latest(template)[0][0].step == 9
    assert sorted(path.name for path in state.iterdir()) == ["9", "damaged-10"]


def test_digest_sees_values_types_shapes_and_names():
    reference = {"a": np.zeros(4, np.float32)}
    others = [
        {"a": np.zeros(4, np.int32)},
        {"a": np.zeros((2, 2), np.float32)},
        {"b": np.zeros(4, np.float32)},
        {"a": np.array([0, 0, 0, -0.0], np.float32)},
    ]
    assert len({digest(tree) for tree in [reference, *others]}) == 5
    assert digest({"a": jnp.zeros(4)}) == digest(reference)
