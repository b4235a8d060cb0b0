"""Checkpoints are whole or not there; what isn't whole any more is found out."""

import json
import os
import random

import pytest

from asr import checkpoints
from asr.checkpoints import Checkpoint


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


def made(folder, step, content=b"weights"):
    aside = checkpoints.begin(folder) / f"checkpoint-{step}"
    (aside / "part").mkdir(parents=True)
    (aside / "model.safetensors").write_bytes(content * 100)
    (aside / "part" / "optimizer.pt").write_bytes(os.urandom(500))
    (aside / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return checkpoints.publish(aside, folder, world_size=1)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_being_written_has_no_name(folder):
    made(folder, 1)
    aside = checkpoints.begin(folder) / "checkpoint-2"
    aside.mkdir()
    (aside / "model.safetensors").write_bytes(b"half")
    assert [one.step for one in checkpoints.every(folder)] == [1]
    assert checkpoints.newest_good(folder) == Checkpoint(folder / "checkpoint-1")
    assert names(folder) == ["checkpoint-1"]  # half of it is cleared away


def test_the_newest_is_by_number(folder):
    for step in (9, 10, 100):
        made(folder, step)
    assert checkpoints.newest_good(folder).step == 100


def test_any_cut_anywhere_is_found_out(folder, caplog):
    made(folder, 1)
    dice = random.Random(0)
    files = [path.relative_to(folder / "checkpoint-2") for path in made(folder, 2).path.rglob("*") if path.is_file()]
    assert len(files) == 4
    for file in sorted(files) * 6:
        path = made(folder, 2).path / file
        os.truncate(path, dice.randrange(path.stat().st_size))
        assert checkpoints.newest_good(folder).step == 1, file
        assert names(folder) == ["checkpoint-1", "damaged-checkpoint-2"]
        assert f"{file.name} of checkpoint-2" in caplog.text
        caplog.clear()


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda path: (path / "model.safetensors").write_bytes(b"Weights" * 100), "is not what was written"),
        (lambda path: (path / "model.safetensors").unlink(), "can't be read (No such file"),
        (lambda path: (path / "manifest.json").unlink(), "has no manifest.json"),
        (lambda path: (path / "manifest.json").write_text('{"files": {"model.safetensors": 3}}'), "no size and hash of"),
        (lambda path: (path / "manifest.json").write_text("[]"), "can't be read"),
    ],
)
def test_other_harm_is_found_out_too(folder, harm, said):
    checkpoint = made(folder, 1)
    assert checkpoint.problem() is None
    harm(checkpoint.path)
    assert said in checkpoint.problem()
    assert checkpoints.newest_good(folder) is None


def test_a_newer_one_takes_the_place_of_another_of_its_name(folder):
    made(folder, 3, b"old")
    assert made(folder, 3, b"new").problem() is None
    assert (folder / "checkpoint-3" / "model.safetensors").read_bytes() == b"new" * 100


@pytest.mark.parametrize(
    ("keep", "protected", "left"),
    [
        (None, [], [1, 2, 3, 4]),
        (2, [], [3, 4]),
        (1, [], [4]),
        (1, [2], [2, 4]),
        (2, [1], [1, 4]),
        (3, [1], [1, 3, 4]),
        (9, [], [1, 2, 3, 4]),
    ],
)
def test_the_oldest_are_deleted_but_never_the_newest_or_the_protected(folder, keep, protected, left):
    for step in (1, 2, 3, 4):
        made(folder, step)
    checkpoints.rotate(folder, keep, protect={folder / f"checkpoint-{step}" for step in protected})
    assert [one.step for one in checkpoints.every(folder)] == left
    assert not (folder / checkpoints.SAVING).exists()


def test_one_that_is_damaged_is_not_counted_among_those_to_keep(folder):
    for step in (1, 2):
        made(folder, step)
    os.truncate(folder / "checkpoint-2" / "model.safetensors", 3)
    assert checkpoints.newest_good(folder).step == 1
    made(folder, 3)
    checkpoints.rotate(folder, 2)
    assert [one.step for one in checkpoints.every(folder)] == [1, 3]


def test_a_folder_takes_the_place_of_another_whole(tmp_path):
    for content in ("first", "second"):
        (tmp_path / ".model").mkdir()
        (tmp_path / ".model" / "weights").write_text(content)
        checkpoints.replace(tmp_path / ".model", tmp_path / "model")
        assert (tmp_path / "model" / "weights").read_text() == content
    assert names(tmp_path) == ["model"]
