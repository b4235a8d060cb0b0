"""The commands that start ranks: exact, as lists, accepted by the real launchers' own parsers."""

import shlex
import subprocess
import sys

import pytest

from asr import launchers
from asr.errors import ConfigError
from asr.topology import Topology


@pytest.fixture(autouse=True)
def eight_cores_on_two_sockets(monkeypatch):
    monkeypatch.setattr(launchers, "available_cores", lambda: 8)
    monkeypatch.setattr(launchers, "num_sockets", lambda: 2)
    monkeypatch.setattr(launchers.os, "geteuid", lambda: 1000)
    monkeypatch.delenv("PYTHONPATH", raising=False)


def command(tmp_path, node=0, **topology) -> list[str]:
    return list(launchers.launch(Topology(master_port=29500, **topology), tmp_path / "a 'run'", node=node).command)


def test_one_process_is_a_child(tmp_path):
    assert command(tmp_path) == [sys.executable, "-m", "asr.worker", f"{tmp_path}/a 'run'"]


def test_torchrun(tmp_path):
    made = command(tmp_path, world_size=8)
    assert made == [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=8", "--node-rank=0", "--master-addr=127.0.0.1"),
        *("--master-port=29500", "--max-restarts=0", "--module", "asr.worker", f"{tmp_path}/a 'run'"),
    ]


def test_torchrun_on_each_of_several_servers(tmp_path):
    made = command(tmp_path, node=1, num_nodes=2, ranks_per_node=8, master_addr="gaudi3", join_seconds=60)
    assert made[3:9] == "--nnodes=2 --nproc-per-node=8 --node-rank=1 --master-addr=gaudi3 --master-port=29500 --max-restarts=0".split()
    assert made[9] == "--rdzv-conf=timeout=60"


def test_torchrun_s_parser_takes_it(tmp_path):
    from torch.distributed.run import get_args_parser

    made = command(tmp_path, node=1, num_nodes=2, ranks_per_node=8, master_addr="gaudi3")
    parsed = get_args_parser().parse_args(made[3:])
    assert (parsed.nnodes, parsed.nproc_per_node, parsed.node_rank, parsed.master_addr) == ("2", "8", 1, "gaudi3")
    assert (parsed.module, parsed.training_script, parsed.training_script_args) == (True, "asr.worker", [f"{tmp_path}/a 'run'"])


def test_mpirun_as_the_published_runner_builds_it(tmp_path):
    made = command(tmp_path, world_size=4, launcher="mpirun")
    assert made[:-4] == "mpirun -n 4 --bind-to core --map-by socket:PE=2 --rank-by slot --report-bindings".split()
    assert made[-4:] == [sys.executable, "-m", "asr.worker", f"{tmp_path}/a 'run'"]
    environment = launchers.launch(Topology(world_size=4, launcher="mpirun", master_port=29500), tmp_path, node=0).environment
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("127.0.0.1", "29500")


@pytest.mark.parametrize(("ranks", "said"), [(8, "socket:PE=1"), (3, "socket:PE=2"), (9, ":OVERSUBSCRIBE")])
def test_mpirun_never_asks_for_more_cores_than_a_socket_has(tmp_path, ranks, said):
    assert said in command(tmp_path, world_size=ranks, launcher="mpirun")


def test_mpirun_as_root(tmp_path, monkeypatch):
    monkeypatch.setattr(launchers.os, "geteuid", lambda: 0)
    assert "--allow-run-as-root" in command(tmp_path, world_size=2, launcher="mpirun")


def test_real_mpirun_starts_more_ranks_than_cores(tmp_path, monkeypatch):
    monkeypatch.undo()
    made = command(tmp_path, world_size=9, launcher="mpirun")
    at = made.index("asr.worker")
    done = subprocess.run([*made[: at - 1], "-c", "print('here')"], capture_output=True, text=True, check=True)
    assert done.stdout.count("here") == 9


def test_deepspeed_on_one_server(tmp_path):
    assert command(tmp_path, world_size=8, launcher="deepspeed") == [
        *"deepspeed --num_nodes 1 --num_gpus 8 --master_addr 127.0.0.1 --master_port 29500 --no_local_rank --module asr.worker".split(),
        f"{tmp_path}/a 'run'",
    ]


def test_deepspeed_with_one_process_has_its_launcher(tmp_path):
    assert command(tmp_path, launcher="deepspeed", deepspeed={"zero_optimization": {"stage": 2}})[0] == "deepspeed"
    assert "--nproc-per-node=1" in command(tmp_path, deepspeed={"zero_optimization": {"stage": 2}})


def test_deepspeed_on_several(tmp_path):
    hosts = tmp_path / "my hosts"
    hosts.write_text("gaudi3 slots=8\ngaudi4 slots=8\n")
    made = command(tmp_path, num_nodes=2, ranks_per_node=8, launcher="deepspeed", hostfile=str(hosts))
    assert made[:11] == [
        *("deepspeed", "--hostfile", str(hosts), "--num_nodes", "2", "--num_gpus", "8", "--master_addr", "gaudi3"),
        *("--master_port", "29500"),
    ]


def test_it_is_shown_as_a_line_for_a_shell(tmp_path):
    launch = launchers.launch(Topology(environment={"A": "b c"}), tmp_path / "a 'run'", node=0)
    words = shlex.split(str(launch))
    assert words[0] == "env"
    assert "A=b c" in words
    assert words[-4:] == list(launch.command)


def test_the_workers_run_this_code(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/mine")
    assert launchers.launch(Topology(), tmp_path, node=0).environment["PYTHONPATH"] == f"{launchers.CODE}:/mine"


@pytest.mark.parametrize("topology", [{}, {"world_size": 2}, {"world_size": 2, "launcher": "mpirun"}])
def test_a_rehearsal_s_workers_find_the_stand_in_first_and_nobody_else_does(topology, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/mine")
    plain, rehearsed = (launchers.launch(Topology(**topology), tmp_path, node=0, rehearse=rehearse) for rehearse in (False, True))
    assert rehearsed.environment["PYTHONPATH"] == f"{launchers.CODE}/asr/rehearsal/stand_in:{plain.environment['PYTHONPATH']}"
    assert "rehearsal" not in plain.environment["PYTHONPATH"]
    assert rehearsed.command[-3:] == plain.command[-3:]


@pytest.mark.parametrize(("launcher", "mend"), [("mpirun", "Open MPI brings it"), ("deepspeed", "Gaudi's fork of DeepSpeed")])
def test_a_launcher_that_is_not_installed(monkeypatch, launcher, mend):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match=mend) as error:
        launchers.check_installed(Topology(world_size=2, launcher=launcher))
    assert error.value.key == "launcher"
    launchers.check_installed(Topology(launcher=launcher))  # one process needs none


def test_deepspeed_that_is_not_installed():
    with pytest.raises(ConfigError, match="take Intel's fork of it"):
        launchers.check_installed(Topology(world_size=1, deepspeed={"zero_optimization": {"stage": 2}}))
