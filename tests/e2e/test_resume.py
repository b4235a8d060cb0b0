"""Runs stopped at any moment go on as if nothing had been.

What forks runs is in stopped.py and stopped_streams.py, in a process of its own.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, launch_command
from test_supervision import left_behind, until

sys.path.insert(0, str(ROOT / "benchmarks"))
import killing

HERE = Path(__file__).parent


def in_its_own_process(*options: str, files: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "streaming")])}
    done = subprocess.run(
        [*command, *(str(HERE / file) for file in files)], capture_output=True, text=True, env=environment, timeout=1500, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_runs_that_are_stopped():
    in_its_own_process("-m", "not slow", files=("stopped.py",))


@pytest.mark.slow
def test_streams_that_are_stopped():
    in_its_own_process("-m", "not slow", files=("stopped_streams.py",))


@pytest.mark.slow
def test_runs_that_are_stopped_at_each_of_their_steps():
    in_its_own_process("-m", "slow", files=("stopped.py",))


@pytest.mark.slow
def test_streams_that_are_stopped_at_each_of_their_steps():
    in_its_own_process("-m", "slow", files=("stopped_streams.py",))


# ---- slow: launches of two ranks ----

OF_RANKS = [*killing.SHORT, "model.layerdrop=0.0"]  # DDP waits for the gradients of layers that are dropped
TWO = [*OF_RANKS, "topology=cpu2"]


def read(path: Path):
    return json.loads(path.read_text())


def equal(run_dir: Path, other: Path) -> list[str]:
    return killing.differences(killing.results(other), killing.results(run_dir))


@pytest.fixture(scope="module")
def never_stopped(launch, tmp_path_factory):
    done = launch(tmp_path_factory.mktemp("two"), *TWO, "hydra.run.dir=run")
    assert done.code == 0, done.err
    return done.cwd / "run"


def stopped(folder: Path, stop, *overrides: str, base: list[str] = TWO) -> int:
    """Launch in folder/run, call `stop` with process and run directory once a checkpoint is there, and return the exit code."""
    with (folder / "out").open("w") as out:
        process = subprocess.Popen(launch_command(*base, *overrides, "hydra.run.dir=run"), cwd=folder, stdout=out, stderr=out)
        try:
            until(lambda: process.poll() is not None or any((folder / "run" / "checkpoints").glob("checkpoint-*")), seconds=200)
            stop(process, folder / "run")
            return process.wait(timeout=60)
        finally:
            process.kill()
            process.wait()


def rank_killed(process: subprocess.Popen, run_dir: Path) -> None:
    os.kill(read(run_dir / "ranks" / "1.json")["pid"], signal.SIGKILL)


def parent_killed(process: subprocess.Popen, run_dir: Path) -> None:
    process.kill()


def asked_to_end(process: subprocess.Popen, run_dir: Path) -> None:
    process.send_signal(signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize(("stop", "code"), [(rank_killed, 137), (parent_killed, -9), (asked_to_end, 75)])
def test_two_ranks_go_on_as_if_nothing_had_been(launch, never_stopped, tmp_path, stop, code):
    assert stopped(tmp_path, stop) == code
    done = launch(tmp_path, *TWO, "hydra.run.dir=run", "resume=auto")
    assert done.code == 0, done.err
    record = read(tmp_path / "run" / "run.json")
    assert len(record["sessions"]) == 1
    assert record["sessions"][0]["status"] in {137: ("failed",), -9: ("running", "failed", "preempted"), 75: ("preempted",)}[code]
    assert equal(tmp_path / "run", never_stopped) == []
    assert left_behind(tmp_path / "run") == []


@pytest.mark.slow
def test_one_rank_goes_on_with_what_two_began(launch, tmp_path):
    assert stopped(tmp_path, asked_to_end) == 75
    done = launch(tmp_path, *OF_RANKS, "topology=cpu", "hydra.run.dir=run", "resume=auto")
    assert done.code == 0, done.err
    assert "topology.ranks_per_node is 1 now, and was 2" in done.err
    assert "is of 2 ranks, and 1 go on: steps count on, the batches of its epoch are dealt anew" in done.err
    assert read(tmp_path / "run" / "run.json")["status"] == "finished"


@pytest.mark.slow
def test_a_sweep_goes_on_with_its_jobs(launch, tmp_path):
    sweep = ["-m", *killing.SHORT, "seed=1,2", "trainer.args.max_steps=2", "hydra.sweep.dir=s"]
    sweep.remove("seed=7")
    assert launch(tmp_path, *sweep).code == 0
    first, second = tmp_path / "s" / "0", tmp_path / "s" / "1"
    expected = killing.results(second)
    record = read(second / "run.json")
    (second / "run.json").write_text(json.dumps(record | {"status": "preempted", "exit_code": 75}))
    for lost in ("metrics.json", "predictions.jsonl"):
        (second / lost).unlink()
    before = (first / "run.json").read_bytes()
    done = launch(tmp_path, *sweep, "resume=auto")
    assert done.code == 0, done.err
    assert (first / "run.json").read_bytes() == before
    assert killing.differences(expected, killing.results(second)) == []
    assert [session["status"] for session in read(second / "run.json")["sessions"]] == ["preempted"]


# ---- slow: streams of two ranks ----


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    sys.path.insert(0, str(ROOT / "tests" / "streaming"))
    from shards_made import tar

    folder = tmp_path_factory.mktemp("shards")
    return tar(tar(folder, range(60), shards=5), range(100, 104), split="test", shards=1)


@pytest.fixture(scope="module")
def streamed(shards):
    stream = ["dataset=webdataset", f"dataset.root={shards}", "dataset.streaming=true", "dataset.shuffle_buffer_size=7"]
    mine = ("dataset.", "trainer.args.num_train_epochs=", "trainer.args.save_strategy=")
    args = [f"trainer.args.{arg}" for arg in ("max_steps=6", "per_device_train_batch_size=3")]
    return [*stream, *args, *(option for option in OF_RANKS if not option.startswith(mine))]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_two_ranks_go_on_with_a_stream_as_if_nothing_had_been(launch, streamed, tmp_path, workers):
    overrides = [*streamed, f"trainer.args.dataloader_num_workers={workers}"]
    (tmp_path / "whole").mkdir()
    whole = launch(tmp_path / "whole", *overrides, "topology=cpu2", "hydra.run.dir=run")
    assert whole.code == 0, whole.err
    assert stopped(tmp_path, rank_killed, "topology=cpu2", base=overrides) == 137
    done = launch(tmp_path, *overrides, "topology=cpu2", "hydra.run.dir=run", "resume=auto")
    assert done.code == 0, done.err
    assert equal(tmp_path / "run", whole.cwd / "run") == []
    assert read(tmp_path / "run" / "run.json")["stream"] == read(whole.cwd / "run" / "run.json")["stream"]
    assert left_behind(tmp_path / "run") == []


@pytest.mark.slow
def test_one_rank_begins_the_next_epoch_of_a_stream_that_two_read(launch, streamed, tmp_path):
    assert stopped(tmp_path, asked_to_end, "topology=cpu2", base=streamed) == 75
    done = launch(tmp_path, *streamed, "topology=cpu", "hydra.run.dir=run", "resume=auto")
    assert done.code == 0, done.err
    assert "the stream is dealt anew: every reader begins epoch " in done.err
    assert read(tmp_path / "run" / "run.json")["status"] == "finished"
