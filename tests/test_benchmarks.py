"""Every benchmark says what it does and still runs; what is exact in them is held to it. Nothing timed is asserted."""

import importlib
import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from asr.batching import LengthGroupedBatches

BENCHMARKS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if "def main" in path.read_text())


pytestmark = pytest.mark.optimum_habana  # they measure the default engine


@pytest.fixture
def ran(monkeypatch, capsys, tmp_path):
    """Return a function that runs a benchmark in this process and gives the JSON object of its last line."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("ASR_CACHE", str(tmp_path / "cache"))  # a benchmark sets its own: this one is put back

    def run(name, *arguments):
        importlib.import_module(name).main([*arguments, "--corpus", str(tmp_path)])
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


@pytest.fixture
def corpus(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("corpus")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_readme_lists_every_benchmark(name):
    assert f"benchmarks/{name}.py" in (ROOT / "README.md").read_text()


def test_the_corpus_has_librispeech_s_lengths(corpus):
    corpus.check()
    assert corpus.lengths("train", 1) == pytest.approx([13.9])
    limited = corpus.lengths("dev", 1000, longest_seconds=20)
    assert limited.max() == pytest.approx(20)
    assert limited.mean() < corpus.lengths("dev", 1000).mean()


@pytest.mark.slow
def test_a_corpus_is_made_once_and_the_same_again(corpus, tmp_path):
    asked = {"train": 3, "dev": 2, "audio_format": "flac", "longest_seconds": 5.0}
    root = corpus.make(tmp_path / "a", **asked)
    files = corpus.audio_files(root)
    before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]
    assert corpus.make(tmp_path / "a", **asked) == root
    assert [(file.read_bytes(), file.stat().st_mtime_ns) for file in files] == before
    again = corpus.audio_files(corpus.make(tmp_path / "b", **asked))
    assert [file.read_bytes() for file in again] == [content for content, _ in before]
    (root / "corpus.json").unlink()  # as if making it had been stopped
    files[0].unlink()
    corpus.make(tmp_path / "a", **asked)
    assert files[0].exists()
    rows = [json.loads(line) for line in (root / "train.jsonl").read_text().splitlines()]
    assert sum(len(row["text"]) for row in rows) == pytest.approx(14 * np.sum([row["duration"] for row in rows]), rel=0.05)


@pytest.mark.slow
def test_training_is_to_the_digit_what_transformers_own_pieces_give(ran):
    figures = ran("parity", "--steps", "4", "--batch-size", "2")
    assert figures["steps"] == 4
    assert figures["last_loss"] < figures["first_loss"]  # something was learnt, so there was something to differ in
    assert figures["max_relative_difference"] <= 1e-5


@pytest.mark.slow
def test_parity_would_show_another_learning_rate(ran, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    parity = importlib.import_module("parity")
    ours = parity.our_losses

    def then_changed(trainer):
        losses = ours(trainer)
        trainer.args.learning_rate *= 1.01
        return losses

    monkeypatch.setattr(parity, "our_losses", then_changed)
    assert ran("parity", "--steps", "4", "--batch-size", "2")["max_relative_difference"] > 1e-5


@pytest.mark.slow
def test_the_loader_s_benchmark_runs(ran):
    figures = ran("loader", "--utterances", "8", "--batch-size", "4", "--rounds", "1")
    assert figures["ratio"] > 0
    assert {name.split(",")[0] for name in figures["figures"]} == {"flac", "wav"}


@pytest.mark.slow
def test_ranks_with_the_same_shapes_never_wait(ran):
    figures = ran("scaling", "--rounds", "0", "--utterances", "20000")
    assert figures["waiting_512_synchronised"] == 0
    assert 0 < figures["waiting_512_unsynchronised"] < 1
    for name, row in figures["simulated"].items():
        assert row["8"]["waiting"] <= row["64"]["waiting"] <= row["512"]["waiting"], name
        assert row["8"]["useful"] <= 1 - row["8"]["waiting"]


def test_waiting_is_counted_from_the_slowest_rank(corpus):
    scaling = importlib.import_module("scaling")
    lengths = np.array([16000, 32000, 32000, 48000])
    batches = LengthGroupedBatches(lengths.tolist(), 1, group_by_length=False, world_size=2)
    steps = list(batches)
    seconds = [lengths[batch[0].row] / 16000 for batch in steps]
    epoch = scaling.simulate(batches, scaling.Work(lengths, attention_share=0.0), ranks=2)
    assert epoch.num_steps == 2
    assert epoch.seconds == pytest.approx(max(seconds[:2]) + max(seconds[2:]))
    assert epoch.waiting_seconds == pytest.approx(epoch.seconds - 8 / 2)  # 8 s of audio, half for each
    assert epoch.useful_seconds == 4
    assert epoch.filler_share == 0


@pytest.mark.slow
def test_the_scaling_benchmark_runs(ran):
    figures = ran("scaling", "--rounds", "1", "--train", "8", "--batch-size", "2", "--utterances", "500")
    assert figures["efficiency_2"] > 0
    assert set(figures["audio_seconds_per_second"]) == {"one rank", "two ranks", "two runs"}


@pytest.mark.slow
def test_the_padding_benchmark_runs(ran):
    figures = ran("padding", "--train", "6", "--dev", "4", "--batch-size", "2", "--rounds", "1")
    assert {"train_vs_fixed", "train_vs_longest", "eval_vs_fixed", "padding_efficiency", "num_train_shapes"} <= set(figures)
    assert 1 <= figures["num_train_shapes"] <= 8
    assert 0.6 < figures["padding_efficiency"] <= 1


@pytest.mark.slow
def test_the_first_step_s_benchmark_runs(ran):
    figures = ran("first_step", "8", "--rounds", "1")
    assert 0 < figures["bytes_ratio"] < 1
    assert set(figures["figures"]["theirs"]) == {"1", "8"}


@pytest.mark.slow
def test_memory_is_flat_in_training_and_text_alone_in_evaluation(ran):
    """A leak of a batch's activations or of an evaluation's logits would be megabytes an epoch, and 10 kB an utterance and more."""
    figures = ran("memory", "--steps", "1000", "--stream", "1000", "--utterances", "200", "2000")
    assert figures["steps"] == 1000
    assert figures["training_growth"] < 1.03
    assert (figures["stream_steps"], figures["stream_growth"] < 1.03) == (1000, True)
    assert figures["evaluation_bytes_an_utterance"] < 5000


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_has_help(name):
    done = subprocess.run([sys.executable, f"benchmarks/{name}.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"python benchmarks/{name}.py" in done.stdout


def test_a_page_is_written_and_weighed(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    importlib.import_module("page").main(["--utterances", "5", "--steps", "100"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["utterances"] == 5
    assert 0 < figures["megabytes"] < 4
