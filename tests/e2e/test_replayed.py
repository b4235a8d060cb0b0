"""`asr replay` as a user runs it: training for real, in one process and in two."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import FINISHED, TINY

SCRIPT = Path(sys.executable).with_name("asr")


def asr(*words: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([str(SCRIPT), *words], cwd=cwd, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_a_run_again_is_the_same_to_the_last_bit(run_dir, tmp_path):
    done = asr("replay", str(run_dir), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (again,) = (tmp_path / "outputs" / "spoken_digits_ctc").iterdir()
    for file in ("predictions.jsonl", "model/model.safetensors", "config.yaml", "vocab.json"):
        assert (again / file).read_bytes() == (run_dir / file).read_bytes(), file
    assert "all metrics are equal" in done.stdout
    assert json.loads((again / "run.json").read_text())["replay_of"]["other_metrics"] == []


@pytest.mark.slow
def test_two_ranks_and_a_job_of_a_sweep_are_replayed(launch, tmp_path):
    """The sweep's job had a process of its own, the replay hasn't."""
    sweep = launch(tmp_path, "-m", *FINISHED, "topology=cpu,cpu2", "hydra.sweep.dir=s")
    assert sweep.code == 0, sweep.err
    for job in ("0", "1"):
        done = asr("replay", f"s/{job}", "--into", f"again-{job}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "all metrics are equal" in done.stdout, done.stdout


@pytest.mark.slow
def test_another_corpus_ends_in_3_before_it_trains(run_dir, tmp_path):
    done = asr("replay", str(run_dir), "dataset.corpus_seed=9", "--into", "other", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "train (train) had 24 utterances" in done.stderr
    assert "trainer: " not in (tmp_path / "other" / "run.log").read_text()
    done = asr("replay", str(run_dir), *TINY[:1], "dataset.corpus_seed=9", "--other-data", "trainer.args.max_steps=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "metrics differ" in done.stdout
