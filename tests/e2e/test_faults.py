"""Faults in the midst of training, made for real in whole runs of one and two processes."""

import json

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT
from safetensors.torch import load_file

SHORT = [
    "dataset=folder",
    "dataset.root=corpus",
    "trainer.args.max_steps=8",
    "trainer.args.per_device_train_batch_size=2",
    "trainer.args.logging_steps=1",
    "trainer.args.save_strategy=no",
    "hydra.run.dir=run",
]


FAULTY = ["++model._target_=faulty_model.FaultyModel"]
FAKES = {"PYTHONPATH": str(ROOT / "tests" / "fakes")}


@pytest.fixture
def corpus(tmp_path):
    """A folder of sixteen short files for training and three to test with; returns a function that writes one more, of given samples."""
    dice = np.random.default_rng(0)

    def write(split, name, samples):
        folder = tmp_path / "corpus" / split
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"{name}.wav", samples.astype(np.float32), 16000, subtype="FLOAT")
        (folder / f"{name}.txt").write_text("take a" if split == "test" else f"take {name}")

    for split, number in (("train", 16), ("test", 3)):
        for i in range(number):
            write(split, "abcdefghijklmnop"[i], dice.uniform(-0.3, 0.3, 16000))
    return write


def read(path):
    return json.loads(path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("ranks", ["cpu", "cpu2"])
def test_a_bad_loss_stops_a_run_with_one_message_and_exit_code_1(launch, tmp_path, corpus, ranks):
    corpus("train", "long", np.linspace(-0.3, 0.3, 32000))
    done = launch(tmp_path, *SHORT, *FAULTY, f"topology={ranks}", environment=FAKES)
    assert done.code == 1, done.err
    error = read(tmp_path / "run" / "run.json")["error"]
    assert "the loss is nan" in error and "long" in error and "trainer.on_nan=skip" in error
    assert ("(rank " in error) == (ranks == "cpu2")
    assert "Traceback" not in done.err + done.out
    (facts,) = [read(path) for path in (tmp_path / "run" / "bad_batches").glob("*.json")]
    assert f"step-{facts['step']}-rank-{facts['rank']}.safetensors" in error
    assert any(u["id"].endswith("long") for u in facts["utterances"])


@pytest.mark.slow
def test_two_ranks_leave_the_same_step_out_and_end_with_equal_weights(launch, tmp_path, corpus):
    corpus("train", "long", np.linspace(-0.3, 0.3, 32000))
    done = launch(tmp_path, *SHORT, *FAULTY, "topology=cpu2", "trainer.on_nan=skip", environment=FAKES)
    assert done.code == 0, done.err
    metrics = read(tmp_path / "run" / "metrics.json")
    assert metrics["num_train_steps_skipped"] == 3  # in each of three epochs, of three steps each
    log = (tmp_path / "run" / "run.log").read_text()
    assert log.count("The step is left out (trainer.on_nan=skip)") == 3
    assert all(torch.isfinite(weight).all() for weight in load_file(tmp_path / "run" / "model" / "model.safetensors").values())


@pytest.mark.slow
@pytest.mark.parametrize("ranks", ["cpu", "cpu2"])
def test_too_much_unreadable_audio_ends_a_run_with_exit_code_3_and_the_list(launch, tmp_path, corpus, ranks):
    for i in range(4):
        corpus("train", f"bad{i}", np.full(16000, np.nan))
    done = launch(tmp_path, *SHORT, f"topology={ranks}", "trainer.args.max_steps=10", "dataset.max_bad_fraction=0.11")  # 2 of 20
    assert done.code == 3, done.err
    error = read(tmp_path / "run" / "run.json")["error"]
    assert "of 20 utterances of the training split can't be decoded, more than dataset.max_bad_fraction (0.11) allows" in error
    assert "Traceback" not in done.err + done.out
    listed = [json.loads(line)["id"] for line in (tmp_path / "run" / "manifest" / "train.undecodable.jsonl").read_text().splitlines()]
    assert len(listed) >= 3
    assert all(name in error for name in listed)


@pytest.mark.slow
def test_an_evaluation_of_unreadable_audio_ends_a_run_at_its_end(launch, tmp_path, corpus):
    corpus("test", "bad", np.full(16000, np.nan))
    done = launch(tmp_path, *SHORT, "topology=cpu2", "dataset.max_bad_fraction=0.2")
    assert done.code == 3, done.err
    assert "1 of 4 utterances of the evaluation split" in read(tmp_path / "run" / "run.json")["error"]
    assert (tmp_path / "run" / "manifest" / "eval.undecodable.jsonl").exists()


@pytest.mark.slow
def test_two_ranks_that_try_shapes_end_as_those_that_don_t(launch, tmp_path, corpus):
    weights = []
    for on in ("true", "false"):
        done = launch(tmp_path, *SHORT[:-1], "topology=cpu2", f"trainer.try_shapes={on}", f"hydra.run.dir=run-{on}")
        assert done.code == 0, done.err
        weights.append(load_file(tmp_path / f"run-{on}" / "model" / "model.safetensors"))
        assert ("fit into memory" in (tmp_path / f"run-{on}" / "run.log").read_text()) == (on == "true")
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
