from __future__ import annotations

import errno
import pickle
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

import mixlab
from mixlab.errors import UserError
from mixlab.train import checkpoint


def write(path):
    (path / "a.bin").write_bytes(bytes(range(256)))
    (path / "b.json").write_text("{}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A checkpoint of small files, and what each of them holds."""
    path = checkpoint.save(tmp_path_factory.mktemp("run"), 3, write)
    return path, {file.name: file.read_bytes() for file in path.iterdir()}


def damage_flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def damage_truncate(file):
    file.write_bytes(file.read_bytes()[:-1])


def damage_remove(file):
    file.unlink()


DAMAGES = [damage_flip, damage_truncate, damage_remove]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["a.bin", "b.json"])
def test_a_damaged_file_is_found_and_named(tmp_path, name, damage):
    path = checkpoint.save(tmp_path, 3, write)
    checkpoint.verify(path)
    damage(path / name)
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        checkpoint.verify(path)


@pytest.mark.parametrize("content", [None, "", "[1]", '{"files": 3}', '{"format": 99, "files": {}}'])
def test_a_manifest_that_is_none_is_named(tmp_path, content):
    path = checkpoint.save(tmp_path, 3, write)
    manifest = path / "manifest.json"
    manifest.unlink() if content is None else manifest.write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json"):
        checkpoint.verify(path)


def test_files_swapped_between_checkpoints_are_found(tmp_path):
    old = checkpoint.save(tmp_path, 1, write)
    new = checkpoint.save(tmp_path, 2, lambda p: (write(p), (p / "a.bin").write_bytes(bytes(256))))
    (new / "a.bin").write_bytes((old / "a.bin").read_bytes())
    with pytest.raises(UserError, match=r"a\.bin is damaged: its sha256"):
        checkpoint.verify(new)


def test_the_one_before_a_damaged_one_is_used_with_a_note(tmp_path):
    old, new = (checkpoint.save(tmp_path, step, write) for step in (1, 2))
    damage_flip(new / "a.bin")
    notes = []
    assert checkpoint.first_whole(checkpoint.list_checkpoints(tmp_path), notes.append) == old
    assert len(notes) == 1
    assert "step-0000002" in notes[0]
    assert "a.bin" in notes[0]


def test_when_none_is_left_the_damaged_file_of_each_is_named(tmp_path):
    for step in (1, 2):
        damage_flip(checkpoint.save(tmp_path, step, write) / "a.bin")
    each = r"step-0000002/a\.bin is damaged.*step-0000001/a\.bin is damaged.*no other checkpoint is left"
    with pytest.raises(UserError, match=each):
        checkpoint.first_whole(checkpoint.list_checkpoints(tmp_path), print)


def test_a_writer_that_fails_leaves_what_was_there_and_nothing_else(tmp_path):
    old = checkpoint.save(tmp_path, 1, write)

    def fail(path):
        write(path)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, 2, fail)
    assert list(tmp_path.iterdir()) == [old]
    checkpoint.verify(old)


def test_saving_a_step_again_replaces_it(tmp_path):
    checkpoint.save(tmp_path, 1, write)
    path = checkpoint.save(tmp_path, 1, lambda p: (p / "other").write_text("x"))
    assert set(checkpoint.verify(path)["files"]) == {"other"}
    assert list(tmp_path.iterdir()) == [path]


def test_the_newest_and_the_best_are_kept_and_rests_swept(tmp_path):
    for step in (1, 2, 3, 10_000_000):
        checkpoint.save(tmp_path, step, write)
    (tmp_path / ".step-0000009.1.tmp").mkdir()
    checkpoint.prune(tmp_path, keep=2, best=1)
    assert [checkpoint.step_of(p) for p in checkpoint.list_checkpoints(tmp_path)] == [10_000_000, 3, 1]
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_survives_and_nothing_is_pickled(tmp_path, tied, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("pickle was used")

    for where, name in (
        (pickle, "dumps"),
        (pickle, "loads"),
        (pickle, "Unpickler"),
        (torch, "load"),
        (torch, "save"),
    ):
        monkeypatch.setattr(where, name, refuse)
    shape = {"vocab_size": 40, "dim": 16, "depth": 1, "context": 8, "tied": tied}
    model, other = mixlab.build_model(shape), mixlab.build_model(shape)
    checkpoint.save_model(model, tmp_path / "m")
    names = checkpoint.load_tensors(tmp_path / "m")
    assert ("head.weight" in names) == (not tied)
    checkpoint.load_model(other, tmp_path / "m")
    for (name, a), (_, b) in zip(model.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_weights_of_another_shape_are_one_sentence(tmp_path):
    shape = {"vocab_size": 40, "dim": 16, "depth": 1, "context": 8}
    checkpoint.save_model(mixlab.build_model(shape), tmp_path / "m")
    for change in ({"dim": 32}, {"depth": 2}):
        with pytest.raises(UserError, match="does not fit the run's config"):
            checkpoint.load_model(mixlab.build_model(shape | change), tmp_path / "m")


@given(data=st.data())
def test_a_bit_flipped_anywhere_is_found_and_its_file_named(whole, data):
    path, originals = whole
    name = data.draw(st.sampled_from(sorted(originals)))
    content = originals[name]
    place = data.draw(st.integers(0, 8 * len(content) - 1))
    flipped = bytearray(content)
    flipped[place // 8] ^= 1 << place % 8
    (path / name).write_bytes(flipped)
    try:
        with pytest.raises(checkpoint.DamagedError, match=re.escape(str(path))):
            checkpoint.verify(path)
    finally:
        (path / name).write_bytes(content)
    checkpoint.verify(path)


def test_a_checkpoint_under_the_name_of_another_is_found(tmp_path):
    old, new = (checkpoint.save(tmp_path, step, write) for step in (1, 2))
    old.rename(tmp_path / "x")
    new.rename(old)
    with pytest.raises(checkpoint.DamagedError, match=r"step-0000001 is not what its name says: .* step 2"):
        checkpoint.verify(old)
    checkpoint.verify(tmp_path / "x")  # a name that says nothing is not wrong


def test_what_made_way_for_a_checkpoint_that_never_came_is_put_back(tmp_path):
    path = checkpoint.save(tmp_path, 1, write)
    path.rename(tmp_path / ".step-0000001.7.old")
    checkpoint.save(tmp_path, 2, write).rename(tmp_path / ".step-0000002.7.gone")
    checkpoint.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    checkpoint.verify(path)


def test_a_damaged_one_is_set_aside_and_none_is_overwritten(tmp_path):
    for _ in range(3):
        checkpoint.set_aside(checkpoint.save(tmp_path, 1, write))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"damaged-step-0000001{suffix}" for suffix in ("", "-2", "-3")}
    assert checkpoint.list_checkpoints(tmp_path) == []


@pytest.mark.parametrize("rest", ["I/O error: No space left on device (os error 28)", "what it says"])
def test_what_safetensors_says_of_a_disk_is_an_error_of_the_disk(tmp_path, monkeypatch, rest):
    def fail(*args, **kwargs):
        raise SafetensorError(f"Error while serializing: {rest}")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(OSError) as failure:
        checkpoint.save_tensors({}, tmp_path / "m")
    full = "os error" in rest
    assert failure.value.errno == (errno.ENOSPC if full else errno.EIO)
    assert failure.value.filename == str(tmp_path / "m")
    assert full or rest in failure.value.strerror
