"""python launch.py with several processes and servers: one run, its record, and what ends it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY, launch_command
from test_supervision import descendants, left_behind, until

LOGGED = [*TINY, "seed=7", "trainer.args.logging_steps=1"]
SHORT = [*LOGGED, "trainer.args.max_steps=4", "trainer.args.save_strategy=steps", "trainer.args.save_steps=2"]
SERVERS = ["topology=cpu", "topology.num_nodes=2", "topology.master_addr=127.0.0.1"]
LONG = [*LOGGED, "trainer.args.num_train_epochs=100000", "trainer.args.save_strategy=steps", "trainer.args.save_steps=5"]


def read(path: Path):
    return json.loads(path.read_text())


def losses(run_dir: Path) -> list[float]:
    """The training losses that rank 0 logged."""
    return [float(x) for x in re.findall(r"\[rank 0\] \{'loss': '?([\d.]+)", (run_dir / "run.log").read_text())]


@pytest.fixture(scope="session")
def two(launch, tmp_path_factory):
    """A short run of two processes; its directory has a space and quotes in its name."""
    done = launch(tmp_path_factory.mktemp("two"), *SHORT, "topology=cpu2", 'hydra.run.dir="a \\"two\'s\\" run"')
    assert done.code == 0, done.err
    return done.cwd / 'a "two\'s" run'


def test_two_processes_leave_one_run(two):
    record, metrics = read(two / "run.json"), read(two / "metrics.json")
    assert (record["status"], record["exit_code"], record["topology"]["ranks_per_node"]) == ("finished", 0, 2)
    assert record["launch"]["command"][-3:] == ["--module", "asr.worker", str(two)]
    assert record["launch"]["environment"]["PT_HPU_LAZY_MODE"] == "0"
    assert len(losses(two)) == 4
    assert len((two / "predictions.jsonl").read_text().splitlines()) == 10
    assert {p.name for p in (two / "checkpoints").iterdir()} == {"checkpoint-2", "checkpoint-4"}
    assert {p.name for p in (two / "checkpoints" / "checkpoint-4").glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    assert {n: read(two / "ranks" / f"{n}.json")["exit_code"] for n in (0, 1)} == {0: 0, 1: 0}
    assert metrics["num_eval_shapes"] <= 8
    assert 0 < metrics["padding_efficiency"] <= 1


def test_every_rank_s_words_are_in_the_log_and_nothing_is_prepared_twice(two):
    log = (two / "run.log").read_text()
    for rank in (0, 1):
        assert f"[rank {rank}] " in log
        assert not re.search(rf"\[rank {rank}\] .*(headers of|utterances, )", log)
    assert log.count("headers of train") == 1
    assert "Traceback" not in log


def test_a_dry_run_shows_the_command_and_starts_nothing(launch, tmp_path):
    done = launch(
        tmp_path,
        "dry_run=true",
        "dataset.root=/not/there",
        "dataset=folder",
        "topology=hpu_nodes",
        "topology.master_addr=gaudi3",
        "hydra.run.dir='a dry run'",
    )
    assert done.code == 0, done.err
    shown = done.out.splitlines()
    assert shown[0::2] == ["# server 0", "# server 1"]
    assert "--nnodes=2 --nproc-per-node=8 --node-rank=1 --master-addr=gaudi3 --master-port=29500" in shown[3]
    assert "PT_HPU_LAZY_MODE=1" in shown[1]
    assert shown[1].endswith(f"asr.worker '{tmp_path}/a dry run'")
    assert {p.name for p in (tmp_path / "a dry run").iterdir()} == {"config.yaml", "run.json", "run.log"}
    record = read(tmp_path / "a dry run" / "run.json")
    assert record["status"] == "dry_run"
    assert [launch["line"] for launch in record["launch"]] == shown[1::2]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([*SERVERS, "topology.node_rank=0"], "hydra.run.dir: each server would make a folder of its own"),
        (["topology=cpu2", "topology.launcher=mpirun"], "topology.launcher: mpirun is not on PATH"),
    ],
)
def test_what_can_t_start_is_refused_and_leaves_nothing(launch, tmp_path, overrides, said):
    done = launch(tmp_path, *overrides, environment={"PATH": "/usr/bin:/bin"} if "mpirun" in said else None)
    assert done.code == 2, done.err
    assert said in done.err
    assert "Traceback" not in done.err
    assert done.outputs == []


# --- slow: what ends a run ------------------------------------------------------------------------------------------


@pytest.fixture
def running(tmp_path):
    """Return a function that starts a training in the background, in `tmp_path`/run."""
    started = []

    def start(*overrides: str, said: str = "first optimizer step done", log: str = "run.log") -> tuple[subprocess.Popen, Path]:
        command = launch_command(*overrides, f"hydra.run.dir={tmp_path}/run")
        out = (tmp_path / f"out{len(started)}").open("w")
        process = subprocess.Popen(command, cwd=tmp_path, stdout=out, stderr=out)
        started.append(process)
        path = tmp_path / "run" / log
        if said:
            until(lambda: process.poll() is not None or (path.exists() and said in path.read_text()), seconds=200)
        return process, tmp_path / "run"

    yield start
    for process in started:
        process.kill()
        process.wait()


def pid_of(run_dir: Path, rank: int) -> int:
    return read(run_dir / "ranks" / f"{rank}.json")["pid"]


def shown(run_dir: Path, number: int = 0) -> str:
    return (run_dir.parent / f"out{number}").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "rank"), [("at start", 1), ("in mid-step", 1), ("while saving", 0)])
def test_a_rank_killed_takes_the_run_down(running, moment, rank):
    process, folder = running(*LONG, "topology=cpu2", said="starting 2 processes" if moment == "at start" else "first optimizer step done")
    if moment == "at start":
        until(lambda: (folder / "ranks" / "1.json").exists())
    if moment == "while saving":
        until(lambda: any((folder / "checkpoints").glob("*")), seconds=60)
    os.kill(pid_of(folder, rank), signal.SIGKILL)
    begin = time.monotonic()
    assert process.wait(timeout=60) == 137
    assert time.monotonic() - begin < 20
    record = read(folder / "run.json")
    assert (record["status"], record["exit_code"]) == ("failed", 137)
    assert f"rank {rank} was killed by SIGKILL" in record["error"]
    assert f"rank {rank} was killed by SIGKILL" in shown(folder)
    assert left_behind(folder) == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status", "code"), [(signal.SIGINT, "failed", 130), (signal.SIGTERM, "preempted", 75)])
def test_a_stop_ends_a_training_of_two(running, number, status, code):
    process, folder = running(*LONG, "topology=cpu2")
    process.send_signal(number)
    assert process.wait(timeout=60) == code
    assert (read(folder / "run.json")["status"], read(folder / "run.json")["exit_code"]) == (status, code)
    assert left_behind(folder) == []


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_run(running):
    process, folder = running(*LONG, "topology=cpu2", "trainer.args.ddp_timeout=5", "topology.stop_seconds=3")
    os.kill(pid_of(folder, 1), signal.SIGSTOP)
    assert process.wait(timeout=90) == 1
    error = read(folder / "run.json")["error"]
    assert "waited for each other longer than trainer.args.ddp_timeout seconds" in error
    assert left_behind(folder) == []


@pytest.mark.slow
def test_mpirun_trains_as_torchrun_does(launch, two, tmp_path):
    done = launch(tmp_path, *SHORT, "topology=cpu2", "topology.launcher=mpirun", "hydra.run.dir=mpi")
    assert done.code == 0, done.err
    assert losses(tmp_path / "mpi") == losses(two)
    assert (tmp_path / "mpi" / "predictions.jsonl").read_bytes() == (two / "predictions.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.optimum_habana
def test_both_engines_average_the_gradients_of_two_processes(launch, two, tmp_path):
    """GaudiTrainer alone doesn't on CPU: its ranks would each train a model of their own, and from the third loss on it shows."""
    done = launch(tmp_path, *SHORT, "topology=cpu2", "trainer.engine=transformers", "hydra.run.dir=other")
    assert done.code == 0, done.err
    assert losses(tmp_path / "other") == losses(two)


@pytest.mark.slow
def test_two_processes_train_lora(launch, run_dir, tmp_path):
    """DDP waits for the gradient of everything that is trained, and the ranks end with one model."""
    from safetensors.torch import load_file

    done = launch(tmp_path, *SHORT, f"model.name_or_path={run_dir}/model", "model.lora.r=4", "topology=cpu2", "hydra.run.dir=lora")
    assert done.code == 0, done.err
    assert read(tmp_path / "lora" / "run.json")["parameters"]["trained"] == 2 * 2 * 4 * (128 + 128)
    assert re.search(r"parameters: [\d,]+, of which 4,096 are trained \(0\.6\d+ %\)", done.err + done.out)
    before, after = (load_file(folder / "model" / "model.safetensors") for folder in (run_dir, tmp_path / "lora"))
    moved = {name for name in before if not before[name].equal(after[name])}
    assert moved == {name for name in before if name.endswith(("linear_q.weight", "linear_v.weight"))}


@pytest.mark.slow
def test_two_processes_evaluate_as_one_does(launch, run_dir, tmp_path):
    model = f"model.name_or_path={run_dir}/model"
    done = launch(tmp_path, *TINY, model, "stages=[evaluate]", "topology=cpu2", "topology.world_size=3", "hydra.run.dir=three")
    assert done.code == 0, done.err
    assert (tmp_path / "three" / "predictions.jsonl").read_text() == (run_dir / "predictions.jsonl").read_text()
    assert read(tmp_path / "three" / "metrics.json")["eval_loss"] == pytest.approx(read(run_dir / "metrics.json")["eval_loss"], rel=1e-5)


# --- slow: two servers on one machine --------------------------------------------------------------------------------


def free_port() -> str:
    from asr.topology import _free_port

    return f"topology.master_port={_free_port()}"


@pytest.mark.slow
def test_two_servers_train_as_one_run(running, two):
    port = free_port()
    second, folder = running(*SHORT, *SERVERS, port, "topology.node_rank=1", said="")
    until(lambda: "waiting for server 0 to begin the run" in shown(folder), seconds=60)
    first, _ = running(*SHORT, *SERVERS, port, "topology.node_rank=0", said="")
    assert (first.wait(timeout=200), second.wait(timeout=30)) == (0, 0), shown(folder, 1)
    assert losses(folder) == losses(two)
    assert (folder / "predictions.jsonl").read_bytes() == (two / "predictions.jsonl").read_bytes()
    assert "[rank 1] " in (folder / "run.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize("how", ["its launch.py", "everything at once"])
def test_a_killed_server_ends_the_other(running, killed, how):
    both = [*LONG, *SERVERS, free_port(), "topology.node_timeout_seconds=8", "topology.stop_seconds=3"]
    second, folder = running(*both, "topology.node_rank=1", said="")
    first, _ = running(*both, "topology.node_rank=0")
    victim, other = (first, second) if killed == 0 else (second, first)
    if how == "its launch.py":
        victim.kill()
    else:
        tree = [victim.pid, *descendants(victim.pid)]
        for pid in tree:
            os.kill(pid, signal.SIGSTOP)
        for pid in tree:
            os.kill(pid, signal.SIGKILL)
    code = other.wait(timeout=60)
    said = shown(folder, 0 if other is second else 1)
    assert code in (1, 129, 137), said
    assert re.search(rf"server {killed} |rank {killed} ", said.split("error: ")[-1]), said
    if killed == 1:
        assert (read(folder / "run.json")["status"], read(folder / "run.json")["exit_code"]) == ("failed", code)
    until(lambda: left_behind(folder) == [], seconds=20)


@pytest.mark.slow
def test_servers_with_other_configurations_are_refused(running):
    port = free_port()
    second, folder = running(*SHORT, *SERVERS, port, "topology.node_rank=1", "trainer.args.learning_rate=1e-5", said="")
    first, _ = running(*SHORT, *SERVERS, port, "topology.node_rank=0", "topology.join_seconds=30", said="starting 1 processes")
    assert second.wait(timeout=60) == 2
    assert "trainer.args.learning_rate: is 1e-05 here and 0.0025 on server 0" in shown(folder, 0)
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=30) == 75


if sys.platform != "linux":
    pytest.skip("processes are ended with their parent by Linux", allow_module_level=True)
