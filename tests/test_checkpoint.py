"""Checkpoints come back bit for bit, or not at all."""

import jax.numpy as jnp
import numpy as np
import pytest

from fairmix_jax.checkpoint import Checkpoints, digest


def tree(value):
    return {"a": jnp.full((300, 40), value), "b": {"n": jnp.asarray(3, jnp.int32)}}


def same(a, b):
    return digest(a) == digest(b)


def open_at(tmp_path, keep=2):
    return Checkpoints(tmp_path / "state", max_to_keep=keep)


def test_round_trip_with_facts(tmp_path):
    with open_at(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(tree(0.0)) is None
        checkpoints.save(5, tree(1.5), score=0.25)
    with open_at(tmp_path) as checkpoints:
        restored, facts = checkpoints.restore_latest(tree(0.0))
    assert same(restored, tree(1.5)) and facts["score"] == 0.25


def test_only_the_newest_are_kept(tmp_path):
    with open_at(tmp_path) as checkpoints:
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
    with open_at(tmp_path) as checkpoints:
        checkpoints.save(1, {"a": jnp.asarray(np.random.default_rng(0).random(50_000))})
        checkpoints.save(2, {"a": jnp.asarray(np.random.default_rng(1).random(50_000))})
    damage(tmp_path / "state" / "2")
    template = {"a": jnp.zeros(50_000)}
    with open_at(tmp_path) as checkpoints:
        restored, _ = checkpoints.restore_latest(template)
        assert same(restored, {"a": jnp.asarray(np.random.default_rng(0).random(50_000))})
        assert (tmp_path / "state" / "damaged-2").is_dir()
        checkpoints.save(2, template)
        assert same(checkpoints.restore_latest(template)[0], template)


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
