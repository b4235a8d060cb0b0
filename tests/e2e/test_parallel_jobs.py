"""Jobs of a sweep at the same time, for real: one that fails, stops in the middle, and going on; no process stays."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import TINY, launch_command
from test_supervision import left_behind, until

JOBS = ["-m", *TINY, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=s"]


def read(path: Path):
    return json.loads(path.read_text())


@pytest.mark.slow
def test_a_job_that_fails_leaves_the_others_alone(launch, tmp_path):
    grid = ["batching=longest", "trainer.args.dataloader_drop_last=true", "trainer.args.per_device_train_batch_size=64,8,4"]
    done = launch(tmp_path, *JOBS, *grid, "trainer.args.max_steps=2", "trainer.args.save_strategy=no")
    assert done.code == 3, done.err
    assert [read(tmp_path / "s" / str(i) / "run.json")["status"] for i in range(3)] == ["failed", "finished", "finished"]
    configs = [yaml.safe_load((tmp_path / "s" / str(i) / "config.yaml").read_text()) for i in range(3)]
    assert [config["trainer"]["args"]["per_device_train_batch_size"] for config in configs] == [64, 8, 4]
    assert "Traceback" not in done.err
    assert left_behind(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "status"), [(signal.SIGINT, 130, "failed"), (signal.SIGTERM, 75, "preempted"), (signal.SIGKILL, -9, "failed")]
)
def test_a_stop_in_the_middle_ends_all_and_the_sweep_goes_on(launch, own_cache, tmp_path, number, code, status):
    asked = [*JOBS, "seed=1,2,3", "trainer.args.max_steps=60", "trainer.args.save_strategy=steps", "trainer.args.save_steps=1"]
    jobs = [tmp_path / "s" / str(i) for i in range(3)]
    with (
        (tmp_path / "said").open("w") as said,
        subprocess.Popen(launch_command(*asked), cwd=tmp_path, stdout=said, stderr=said, start_new_session=True) as process,
    ):
        until(lambda: process.poll() is not None or all(list(job.glob("checkpoints/checkpoint-*")) for job in jobs[:2]), seconds=200)
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)  # Ctrl-C goes to the whole group
        assert process.wait(timeout=90) == code, (tmp_path / "said").read_text()
    until(lambda: left_behind(tmp_path) == [], seconds=30)
    records = [read(job / "run.json") for job in jobs[:2]]
    assert [record["status"] for record in records] == [status, status]
    assert {record["exit_code"] for record in records} == {129 if code == -9 else code}
    assert not jobs[2].exists()
    workers = {record["host"]["pid"] for record in records}
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), seconds=30)
    if number != signal.SIGTERM:
        return
    done = launch(tmp_path, *asked, "resume=auto")
    assert done.code == 0, done.err
    assert [read(job / "run.json")["status"] for job in jobs] == ["finished"] * 3
    assert [len(read(job / "run.json")["sessions"]) for job in jobs] == [1, 1, 0]
