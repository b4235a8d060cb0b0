"""Runs and sweeps as submitted jobs: submitit's own local executor, and Slurm's programs as fakes that run the job here."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, TINY, launch_command

pytestmark = pytest.mark.slow

SHORT = [*TINY, "trainer.args.max_steps=2", "trainer.args.save_strategy=no", "hydra.sweep.dir=s"]
RATES = "trainer.args.learning_rate=1e-3,2e-3"
GAUDI_SLURM = ["hydra/launcher=gaudi_slurm", "hydra.launcher.gres=null"]


def read(path: Path):
    return json.loads(path.read_text())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


@pytest.fixture
def slurm(tmp_path) -> Iterator[dict[str, str]]:
    """Return an environment with the fakes on PATH; end what a failed test leaves of their jobs."""
    folder = tmp_path / "fake slurm"
    folder.mkdir()
    yield {"PATH": f"{ROOT / 'tests' / 'fakes' / 'slurm'}:{os.environ['PATH']}", "FAKE_SLURM": str(folder)}
    for pid in folder.glob("*.pid"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)


def test_a_single_run_is_one_job(launch, tmp_path):
    done = launch(tmp_path, "hydra/launcher=submitit_local", *SHORT)
    assert done.code == 0, done.err
    record = read(tmp_path / "s" / "0" / "run.json")
    assert (record["status"], record["exit_code"]) == ("finished", 0)
    assert "WER" in next((tmp_path / "s" / ".submitit").rglob("*_0_log.out")).read_text()
    assert not (tmp_path / "s" / "1").exists()
    assert not (tmp_path / "outputs").exists()


def test_a_sweep_of_two_with_submitit_s_local_executor(launch, tmp_path):
    done = launch(tmp_path, "-m", "hydra/launcher=submitit_local", RATES, *SHORT)
    assert done.code == 0, done.err
    for number, rate in enumerate((1e-3, 2e-3)):
        assert read(tmp_path / "s" / str(number) / "run.json")["status"] == "finished"
        assert yaml.safe_load((tmp_path / "s" / str(number) / "config.yaml").read_text())["trainer"]["args"]["learning_rate"] == rate
        assert len(read(tmp_path / "s" / str(number) / "metrics.json")) > 5


def test_two_servers_of_a_job_train_as_one_run(launch, tmp_path, slurm):
    """The folder is named by the time of submission, the same in both tasks."""
    nodes = ["topology.num_nodes=2", f"topology.master_port={free_port()}", "topology.backend=gloo"]
    done = launch(tmp_path, *GAUDI_SLURM, *nodes, *(word for word in SHORT if "sweep.dir" not in word), environment=slurm)
    assert done.code == 0, done.err
    (record_path,) = (tmp_path / "outputs" / "spoken_digits_ctc").glob("*-sweep/0/run.json")
    run_dir, record = record_path.parent, read(record_path)
    assert (record["status"], record["exit_code"], record["slurm_job"]) == ("finished", 0, "7")
    assert "--nnodes=2" in record["launch"]["line"]
    assert "--master-addr=127.0.0.1" in record["launch"]["line"]
    ranks = [read(run_dir / "ranks" / f"{rank}.json") for rank in range(2)]
    assert [rank["exit_code"] for rank in ranks] == [0, 0]
    lines = [json.loads(line)["id"] for line in (run_dir / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == len(set(lines)) == 10
    logs = sorted(p.name for p in run_dir.parent.rglob("*_log.out"))
    assert logs == ["7_0_log.out", "7_1_log.out"]
    assert (Path(slurm["FAKE_SLURM"]) / "7.state").read_text() == "COMPLETED"


def test_a_batch_script_of_one_s_own(tmp_path, own_cache, slurm):
    """As docs/slurm.md has it: srun starts launch.py on each node, with the folder's name given."""
    words = [word for word in SHORT if "sweep.dir" not in word]
    nodes = ["topology.num_nodes=2", f"topology.master_port={free_port()}", "topology.backend=gloo", "hydra.run.dir=runs/$SLURM_JOB_ID"]
    command = " ".join([*launch_command(), *nodes, *words])
    script = tmp_path / "job.sh"
    script.write_text(f"#!/bin/bash\n#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=1\nsrun {command}\n")
    environment = {**os.environ, **slurm}
    said = subprocess.run(["sbatch", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert said == "Submitted batch job 7\n"
    folder = Path(slurm["FAKE_SLURM"])
    wait_for(lambda: (folder / "7.exit").read_text(), seconds=240)
    assert (folder / "7.exit").read_text() == "0", (folder / "7.log").read_text()
    record = read(tmp_path / "runs" / "7" / "run.json")
    assert (record["status"], record["slurm_job"]) == ("finished", "7")
    assert "--nnodes=2" in record["launch"]["line"]


def test_a_job_that_fails_leaves_the_others_and_shows_in_slurm(launch, tmp_path, slurm):
    done = launch(tmp_path, *GAUDI_SLURM, "dataset.min_duration_in_seconds=60,0", *SHORT, environment=slurm)
    assert done.code == 3
    assert f"error: the job in {tmp_path / 's' / '0'} ended with exit code 3; its log is {tmp_path / 's' / '.submitit'}" in done.err
    assert "Traceback" not in done.err
    assert [read(tmp_path / "s" / str(i) / "run.json")["status"] for i in range(2)] == ["failed", "finished"]
    states = [(Path(slurm["FAKE_SLURM"]) / f"7_{i}.{what}").read_text() for i in range(2) for what in ("state", "exit")]
    assert states == ["FAILED", "3", "COMPLETED", "0"]


def test_a_device_that_a_node_lacks_is_found_in_the_job(launch, tmp_path, slurm):
    done = launch(tmp_path, *GAUDI_SLURM, *SHORT, "topology=hpu_nodes", environment=slurm)
    assert done.code == 2
    log = (tmp_path / "s" / ".submitit" / "7" / "7_0_log.out").read_text()
    assert "error: topology: computes on an HPU, and habana_frameworks is not installed here" in log
    assert "Traceback" not in log
    record = read(tmp_path / "s" / "0" / "run.json")
    assert (record["status"], record["exit_code"]) == ("failed", 2)
    assert "habana_frameworks is not installed here" in record["error"]


def test_slurm_s_warning_ends_a_run_in_good_order(tmp_path, own_cache, slurm):
    """Its time is over, and it may not start again: max_num_timeout is 0."""
    endless = [*TINY, "trainer.args.max_steps=100000", "trainer.args.save_strategy=no", "hydra.sweep.dir=s", "hydra.launcher.timeout_min=5"]
    run_dir = tmp_path / "s" / "0"
    with subprocess.Popen(
        launch_command(*GAUDI_SLURM, *endless), cwd=tmp_path, stderr=subprocess.PIPE, text=True, env={**os.environ, **slurm}
    ) as process:
        wait_for(lambda: "first optimizer step done" in (run_dir / "run.log").read_text())
        os.kill(read(run_dir / "run.json")["host"]["pid"], signal.SIGUSR2)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    record = read(run_dir / "run.json")
    assert (record["status"], record["exit_code"]) == ("preempted", 75)
    log = (tmp_path / "s" / ".submitit" / "7" / "7_0_log.out").read_text()
    assert f"timed-out too many times.): `asr resume {run_dir}` goes on with its run" in log
    wait_for(lambda: (Path(slurm["FAKE_SLURM"]) / "7.exit").read_text() == "75", seconds=20)


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if condition():
                return
        time.sleep(0.1)
    pytest.fail("waited in vain")
