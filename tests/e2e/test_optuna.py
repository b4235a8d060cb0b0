"""Sweeps by Optuna of real, tiny trainings, started as a user does: killed and continued, stopped, several at once."""

import importlib.util
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from conftest import TINY, launch_command

pytestmark = [pytest.mark.slow, pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="needs optuna")]

TRAINING = [*TINY, "trainer.args.max_steps=40", "trainer.args.save_strategy=steps", "trainer.args.save_steps=2"]
SWEEP = ["+sweep=optuna", "hydra.sweep.dir=s", "hydra.sweeper.n_trials=3"]
SHORT = [*TINY, "trainer.args.max_steps=2", "trainer.args.save_strategy=no"]


def read(path: Path):
    return json.loads(path.read_text())


def wait_for(condition, process: subprocess.Popen, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        try:
            if condition():
                return
        except (OSError, ValueError):
            pass  # not written yet
        time.sleep(0.05)
    pytest.fail("waited in vain")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["SIGKILL", "SIGINT"])
def test_a_sweep_that_is_killed_goes_on_where_it_was(launch, own_cache, tmp_path, number):
    with subprocess.Popen(
        launch_command(*SWEEP, *TRAINING), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        wait_for(lambda: (tmp_path / "s" / "1" / "checkpoints" / "checkpoint-4").exists(), process)
        os.kill(process.pid, number)
        process.communicate(timeout=120)
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    assert not (tmp_path / "s" / "2").exists()
    first, stopped = read(tmp_path / "s" / "0" / "run.json"), yaml.safe_load((tmp_path / "s" / "1" / "config.yaml").read_text())

    refused = launch(tmp_path, *SWEEP, *TRAINING)
    assert (refused.code, "hydra.sweep.dir: " in refused.err) == (2, True)

    done = launch(tmp_path, *SWEEP, *TRAINING, "resume=auto")
    assert done.code == 0, done.err
    assert "the sweep in s goes on: 2 of 3 trials are there; unfinished: 1" in done.err
    assert read(tmp_path / "s" / "0" / "run.json") == first
    second = read(tmp_path / "s" / "1" / "run.json")
    assert (second["status"], len(second["sessions"])) == ("finished", 1)
    assert second["resumed_from"].startswith("checkpoint-")
    went_on = yaml.safe_load((tmp_path / "s" / "1" / "config.yaml").read_text())
    assert went_on["trainer"] == stopped["trainer"]
    assert read(tmp_path / "s" / "2" / "run.json")["status"] == "finished"
    found = yaml.safe_load((tmp_path / "s" / "optimization_results.yaml").read_text())
    values = [read(tmp_path / "s" / str(i) / "metrics.json")["eval_wer"] for i in range(3)]
    assert found["best_value"] == min(values) == values[found["best_trial"]]
    assert found["trials"] == {"complete": 3, "fail": 0, "running": 0}

    again = launch(tmp_path, *SWEEP, *TRAINING, "resume=auto")  # there is nothing left
    assert again.code == 0, again.err
    assert read(tmp_path / "s" / "2" / "run.json")["sessions"] == []


def test_one_bad_job_is_reported_and_the_others_go_on(launch, tmp_path):
    """A batch of 64 rows, without what is left over, is no batch of 24 utterances: the data's mistake, which shows in the job alone."""
    space = ["batching=longest", "trainer.args.dataloader_drop_last=true", "trainer.args.per_device_train_batch_size=choice(64,8)"]
    done = launch(tmp_path, "-m", "hydra/sweeper=asr_optuna", "hydra.sweep.dir=s", "hydra.sweeper.n_trials=4", *SHORT, *space)
    codes = [read(tmp_path / "s" / str(i) / "run.json")["exit_code"] for i in range(4)]
    assert sorted(set(codes)) == [0, 3]
    assert done.code == 3
    assert f"the job in {tmp_path / 's' / str(codes.index(3))} ended with exit code 3" in done.err
    assert "Traceback" not in done.err
    found = yaml.safe_load((tmp_path / "s" / "optimization_results.yaml").read_text())
    assert found["best_params"] == {"trainer.args.per_device_train_batch_size": 8}
    assert found["trials"] == {"complete": codes.count(0), "fail": codes.count(3), "running": 0}


@pytest.mark.parametrize(
    ("launcher", "package"),
    [
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], "hydra_plugins.hydra_joblib_launcher"),
        (["hydra/launcher=submitit_local", "hydra.sweeper.n_jobs=2"], "hydra_plugins.hydra_submitit_launcher"),
    ],
)
def test_jobs_that_run_at_once(launch, tmp_path, launcher, package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")
    done = launch(tmp_path, *SWEEP, *launcher, *SHORT)
    assert done.code == 0, done.err
    rates = [yaml.safe_load((tmp_path / "s" / str(i) / "config.yaml").read_text())["trainer"]["args"]["learning_rate"] for i in range(3)]
    assert len(set(rates)) == 3
    found = yaml.safe_load((tmp_path / "s" / "optimization_results.yaml").read_text())
    assert found["trials"] == {"complete": 3, "fail": 0, "running": 0}
