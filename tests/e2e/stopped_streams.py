"""Streamed runs that are stopped and gone on with: test_resume.py runs this file in a process of its own, from which runs are forked."""

import sys
from pathlib import Path

import pytest
from conftest import ENGINE, ROOT
from shards_made import parquet, tar

from asr.runs import Run

sys.path.insert(0, str(ROOT / "benchmarks"))
import killing

STEPS = 6
STREAM = [
    *("dataset.streaming=true", "dataset.shuffle_buffer_size=9", "topology.environment={}", "seed=7", "dataset.max_eval_samples=4"),
    *(f"trainer.args.{arg}" for arg in (f"max_steps={STEPS}", "gradient_accumulation_steps=3", "logging_steps=2", "warmup_steps=2")),
    *(f"trainer.args.{arg}" for arg in ("save_steps=1", "save_total_limit=3", "report_to=[]", "disable_tqdm=true")),
    *(f"trainer.args.{arg}" for arg in ("per_device_train_batch_size=3", "learning_rate=2.5e-3")),
    "augment.speed_factors=[0.9,1.0,1.1]",
]
DICE = [f"model.{key}" for key in ("hidden_dropout=0.1", "layerdrop=0.1", "mask_time_prob=0.2", "mask_feature_prob=0.1")]
"""What the default CTC model throws dice for."""


@pytest.fixture(scope="session", autouse=True)
def libraries():
    killing.import_libraries()


@pytest.fixture(scope="session")
def corpora(tmp_path_factory):
    """Small corpora by the source that reads them."""
    made = tmp_path_factory.mktemp("corpora")
    for name, make in (("hub", parquet), ("webdataset", tar)):
        make(make(made / name, range(30), shards=3), range(100, 104), split="test", shards=1)
    return made


@pytest.fixture(scope="session")
def config(corpora):
    def compose(source, *overrides):
        dice = [] if "trainer=seq2seq" in overrides else DICE
        return killing.composed([f"dataset={source}", f"dataset.root={corpora / source}", *STREAM, *dice, *ENGINE, *overrides])

    return compose


def said(run_dir: Path) -> str:
    return run_dir.with_suffix(".said").read_text(encoding="utf-8")


def saved(run_dir: Path, step: int):
    return lambda: (run_dir / "checkpoints" / f"checkpoint-{step}").exists()


def killed_and_gone_on_with(config, folder: Path, steps, source: str, *overrides: str) -> int:
    """Kill runs once they have a checkpoint of each step; assert that they go on as one that was never stopped; return how many died."""
    whole = folder / "whole"
    assert killing.run(config(source, *overrides), whole)[0] == 0, said(whole)
    died = 0
    for step in steps:
        run_dir = folder / f"killed at {step}"
        died += killing.run(config(source, *overrides), run_dir, until=saved(run_dir, step))[0] == 137
        code, _ = killing.run(config(source, *overrides, "resume=auto"), run_dir)
        assert code == 0, said(run_dir)
        assert killing.differences(killing.results(whole), killing.results(run_dir)) == []
        assert Run.load(run_dir).record["stream"] == Run.load(whole).record["stream"]
    return died


@pytest.mark.parametrize("source", [pytest.param("hub", marks=pytest.mark.slow), "webdataset"])
def test_killed_it_goes_on_as_if_nothing_had_been(config, tmp_path, source):
    assert killed_and_gone_on_with(config, tmp_path, [2], source) == 1


@pytest.mark.slow
@pytest.mark.parametrize("source", ["hub", "webdataset"])
@pytest.mark.parametrize(
    "overrides", [[], ["batching=longest"], ["trainer.args.dataloader_num_workers=2"], ["trainer.engine=transformers"]]
)
def test_killed_at_any_step(config, tmp_path, source, overrides):
    assert killed_and_gone_on_with(config, tmp_path, range(1, STEPS), source, *overrides)


@pytest.mark.slow
def test_a_model_that_generates_goes_on_too(config, tmp_path):
    """Its shapes differ in labels as well, and a batch's loss is over its labels."""
    model = ["trainer=seq2seq", "model=digits_encoder_decoder", "trainer.args.predict_with_generate=false"]
    assert killed_and_gone_on_with(config, tmp_path, (2, 4), "webdataset", *model) == 2


@pytest.mark.slow
def test_workers_share_the_stream_in_turn(config, tmp_path):
    """Five readers of three archives: each takes its rows of all."""
    workers = "trainer.args.dataloader_num_workers=5"
    assert killed_and_gone_on_with(config, tmp_path, (1, 3), "webdataset", workers)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_batches(config, tmp_path):
    found = []
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        run_dir = tmp_path / name
        assert killing.run(config("hub", f"seed={seed}", "trainer.args.max_steps=2"), run_dir)[0] == 0, said(run_dir)
        found.append(killing.results(run_dir))
    assert killing.differences(found[0], found[1]) == []
    assert found[0]["logged"] != found[2]["logged"]
