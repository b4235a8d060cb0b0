"""Streamed training as a user starts it."""

import json
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tests" / "streaming"))
from shards_made import parquet, tar


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    made = tmp_path_factory.mktemp("corpora")
    for name, make in (("hub", parquet), ("webdataset", tar)):
        make(make(made / name, range(40)), range(100, 106), split="test", shards=1)
    return made


def stream(corpora, source: str) -> list[str]:
    small = ["trainer.args.per_device_train_batch_size=4", "trainer.args.logging_steps=2", "hydra.run.dir=run"]
    return [f"dataset={source}", f"dataset.root={corpora / source}", "dataset.streaming=true", *small]


def test_epochs_are_refused_before_anything_is_written(launch, corpora, tmp_path):
    done = launch(tmp_path, *stream(corpora, "hub"), "trainer.args.num_train_epochs=3")
    assert done.code == 2
    assert "trainer.args.num_train_epochs: a stream is trained on for so many steps: set trainer.args.max_steps, and this to " in done.err
    assert done.outputs == []
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("source", ["hub", "webdataset"])
def test_a_streamed_run_from_shards_to_predictions(launch, corpora, tmp_path, source):
    done = launch(tmp_path, *stream(corpora, source), "trainer.args.max_steps=12", "dataset.max_duration_in_seconds=0.55")
    assert done.code == 0, done.err
    run = tmp_path / "run"
    record, metrics = (json.loads((run / name).read_text()) for name in ("run.json", "metrics.json"))
    assert record["status"] == "finished"
    assert record["stream"]["epochs_begun"] >= 2
    assert record["stream"]["left_out"]["longer than max_duration_in_seconds (0.55)"] > 0
    assert metrics["train_times_left_out"] == sum(record["stream"]["left_out"].values())
    assert metrics["train_padding_efficiency"] > 0.8
    assert len((run / "predictions.jsonl").read_text().splitlines()) == record["dataset"]["splits"]["eval"]["utterances"]
    assert {path.name for path in (run / "manifest").iterdir()} >= {"train.units.json", "train.plan.json", "eval.jsonl"}


@pytest.mark.slow
def test_an_utterance_that_cannot_be_decoded_is_named_and_bounded(launch, tmp_path):
    from shards_made import encoded

    def audio(n: int) -> bytes:
        return encoded(n, "FLAC")[:-900] + bytes(900) if n % 4 == 0 else encoded(n, "FLAC")

    parquet(parquet(tmp_path / "corpora" / "hub", range(40), audio=audio), range(101, 104), split="test", shards=1)
    args = ["trainer.args.max_steps=12", "trainer.args.dataloader_num_workers=2"]
    done = launch(tmp_path, *stream(tmp_path / "corpora", "hub"), *args, "dataset.max_bad_fraction=0.01")
    assert done.code == 3
    assert "utterances of the training split can't be decoded, more than dataset.max_bad_fraction (0.01) allows: " in done.err
    (tmp_path / "run").rename(tmp_path / "bad")
    done = launch(tmp_path, *stream(tmp_path / "corpora", "hub"), *args, "dataset.max_bad_fraction=1")
    assert done.code == 0, done.err
    listed = [json.loads(line)["id"] for line in (tmp_path / "run" / "manifest" / "train.undecodable.jsonl").read_text().splitlines()]
    assert 1 < len(listed) == len(set(listed)) <= 10


@pytest.mark.slow
def test_a_streamed_experiment_is_rehearsed(launch, stand_in, corpora, tmp_path):
    asked = ["topology=hpu1", "gaudi_config=wav2vec2", "rehearse=true", "trainer.args.max_steps=100", "dataset.sample_utterances=30"]
    done = launch(tmp_path, *stream(corpora, "webdataset"), *asked)
    assert done.code == 0, done.err + done.out
