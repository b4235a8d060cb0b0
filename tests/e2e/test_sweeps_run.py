"""Sweeps as a user runs them: what they leave, jobs that fail, and going on after they were stopped or killed."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ENGINE, ROOT, TINY, launch_command

SHORT = [*TINY, "trainer.args.max_steps=2", "trainer.args.save_strategy=no", "hydra.sweep.dir=s"]
ASR = [sys.executable, "-c", "from asr.cli import app; app()"]
RATES = "trainer.args.learning_rate=1e-3,2e-3"


def read(path):
    return json.loads(path.read_text())


def table_of(folder):
    return list(csv.DictReader((folder / "sweep.csv").read_text().splitlines()))


@pytest.mark.slow
def test_a_saved_sweep_with_a_bad_job_leaves_a_table_a_page_and_its_exit_code(launch, tmp_path):
    bad = "batching=longest", "trainer.args.dataloader_drop_last=true", "trainer.args.per_device_train_batch_size=64,8"
    done = launch(tmp_path, *SHORT, *bad, "+sweep=lr_batch", RATES)
    assert done.code == 3
    assert "Traceback" not in done.err
    rows = table_of(tmp_path / "s")
    assert [(row["status"], row["exit_code"]) for row in rows] == [("failed", "3"), ("finished", "0")] * 2
    assert all(row["error"] for row in rows[::2])
    assert "go on with it: asr resume" in done.out
    (best,) = [line for line in done.out.splitlines() if line.startswith("best: ")]
    assert "sweep" not in best
    assert "<svg" in (tmp_path / "s" / "sweep.html").read_text()
    sweep = read(tmp_path / "s" / "sweep.json")
    assert (sweep["status"], sweep["exit_code"]) == ("failed", 3)
    kept = [path for path in (tmp_path / "s" / "prepared").iterdir() if path.is_dir()]
    assert len(kept) == 1, "all jobs have the same data"
    assert os.path.samefile(tmp_path / "s" / "3" / "vocab.json", kept[0] / "vocab.json")
    shown = subprocess.run([*ASR, "show", str(tmp_path / "s")], capture_output=True, text=True, cwd=ROOT)
    assert "4 jobs, 2 failed" in shown.stdout, shown.stderr


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "killed"])
def test_a_sweep_that_was_stopped_goes_on_where_it_was(launch, tmp_path, how):
    steps = ["trainer.args.max_steps=30", "trainer.args.save_strategy=steps", "trainer.args.save_steps=2", "hydra.sweep.dir=s"]
    words = ["-m", *TINY, *steps, "seed=1,2,3", "trainer.args.logging_steps=1"]
    with subprocess.Popen(
        launch_command(*words), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        give_up_at = time.monotonic() + 120
        while not any((tmp_path / "s" / "1" / "checkpoints").glob("checkpoint-*")):
            assert time.monotonic() < give_up_at
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, how)
        process.communicate(timeout=60)
    sweep = read(tmp_path / "s" / "sweep.json")
    assert sweep["status"] == ("interrupted" if how == signal.SIGINT else "running")
    first = (tmp_path / "s" / "0" / "run.json").read_bytes()
    command = [*ASR, "resume", str(tmp_path / "s")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path.parent, env=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "s" / "0" / "run.json").read_bytes() == first, "a job that has finished is left alone"
    second = read(tmp_path / "s" / "1" / "run.json")
    assert second["resumed_from"].startswith("checkpoint-")
    assert [row["status"] for row in table_of(tmp_path / "s")] == ["finished"] * 3
    assert (read(tmp_path / "s" / "sweep.json")["status"], read(tmp_path / "s" / "sweep.json")["sessions"]) == ("finished", 2)
    alone = launch(tmp_path, *(word for word in words[1:] if not word.startswith(("seed=", "hydra."))), "seed=2", "hydra.run.dir=alone")
    assert alone.code == 0, alone.err
    measured = [read(tmp_path / folder / "metrics.json") for folder in ("alone", "s/1")]
    for key in ("eval_wer", "eval_loss", "train_loss"):
        assert measured[0][key] == measured[1][key], key


@pytest.mark.slow
def test_resume_auto_finds_the_sweep(launch, tmp_path):
    words = ["-m", *(word for word in SHORT if "sweep.dir" not in word), RATES]
    assert launch(tmp_path, *words).code == 0
    (folder,) = (tmp_path / "outputs" / "spoken_digits_ctc").glob("*-sweep")
    (folder / "sweep.json").write_text(json.dumps(read(folder / "sweep.json") | {"status": "interrupted"}))
    done = launch(tmp_path, *words, "resume=auto")
    assert done.code == 0, done.err
    assert "there is nothing to resume" in done.err
    assert list((tmp_path / "outputs" / "spoken_digits_ctc").iterdir()) == [folder]
    refused = launch(tmp_path, *words, f"hydra.sweep.dir={folder}")
    assert refused.code == 2
    assert "already holds a sweep" in refused.err
    assert ENGINE == [] or ENGINE[0] in read(folder / "sweep.json")["overrides"]
