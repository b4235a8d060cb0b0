"""How many ranks run where, with which variables; every YAML of conf/topology, and what can't be."""

import os
import socket
import stat
from functools import lru_cache

import pytest
from conftest import ROOT, composed

from asr import topology as room
from asr.errors import ConfigError
from asr.topology import Topology, read_hostfile


@pytest.fixture(autouse=True)
def bare_shell(monkeypatch):
    for name in (
        "OMP_NUM_THREADS",
        "PT_HPU_LAZY_MODE",
        "HABANA_VISIBLE_MODULES",
        "CUDA_VISIBLE_DEVICES",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "SLURM_NODEID",
        "SLURM_JOB_NODELIST",
    ):
        monkeypatch.delenv(name, raising=False)


@lru_cache
def node_of(name: str) -> dict:
    return composed(f"topology={name}")["topology"]


def of(name: str, **changes) -> Topology:
    values = {key: value for key, value in node_of(name).items() if key != "_target_"}
    return Topology(**values | changes)


@pytest.mark.parametrize(
    ("name", "device", "processes", "backend", "habana"),
    [
        ("cpu", "cpu", 1, None, False),
        ("cpu2", "cpu", 2, "gloo", False),
        ("hpu1", "hpu", 1, None, True),
        ("hpu8", "hpu", 8, "hccl", True),
        ("hpu8_deepspeed", "hpu", 8, "hccl", True),
        ("hpu_nodes", "hpu", 16, "hccl", True),
        ("gpu1", "cuda", 1, None, False),
        ("gpu4", "cuda", 4, "nccl", False),
        ("gpu8", "cuda", 8, "nccl", False),
    ],
)
def test_the_topologies(name, device, processes, backend, habana):
    made = of(name)
    assert (made.device, made.num_processes, made.backend) == (device, processes, backend)
    assert made.use_habana is made.use_lazy_mode is habana
    assert of(name, world_size=4).num_processes == 4


@pytest.mark.parametrize(("name", "engine"), [("gpu1", "transformers"), ("gpu8", "transformers")])
def test_a_gpu_s_topology_brings_its_engine(name, engine):
    assert composed(f"topology={name}")["trainer"]["engine"] == engine


def test_every_topology_is_tested():
    listed = {path.stem for path in (ROOT / "conf" / "topology").glob("*.yaml")}
    assert listed == {"cpu", "cpu2", "hpu1", "hpu8", "hpu8_deepspeed", "hpu_nodes", "gpu1", "gpu4", "gpu8"}


def test_servers_share_the_processes():
    assert (of("hpu_nodes").processes_here, of("hpu_nodes", num_nodes=4).num_processes) == (8, 32)
    assert of("hpu_nodes", world_size=4).processes_here == 2


@pytest.mark.parametrize(
    ("values", "key", "said"),
    [
        ({"world_size": 3, "num_nodes": 2}, "world_size", "3 processes can't be shared out evenly among 2 servers"),
        ({"master_addr": ""}, "master_addr", "is empty"),
        ({"hostfile": "hosts"}, "hostfile", "only launcher=deepspeed reads a hostfile"),
        ({"launcher": "mpirun", "num_nodes": 2}, "launcher", "one server"),
        ({"launcher": "deepspeed", "num_nodes": 2}, "hostfile", "is missing"),
        ({"num_nodes": 2, "node_rank": 2}, "node_rank", "the last of 2 servers is 1"),
        ({"environment": {"HF_TOKEN": "x"}}, "environment.HF_TOKEN", "never written"),
        ({"environment": {"MLFLOW_TRACKING_PASSWORD": "x"}}, "environment.MLFLOW_TRACKING_PASSWORD", "never written"),
        ({"device": "cpu", "backend": "nccl"}, "backend", "nccl moves no tensors of a cpu: take gloo, or null"),
        ({"device": "cuda", "backend": "hccl"}, "backend", "take nccl or gloo"),
        ({"environment": {"A": None}}, "environment.A", "can't be the value"),
    ],
)
def test_what_can_t_be(values, key, said):
    with pytest.raises(ConfigError, match=said) as error:
        Topology(**values)
    assert error.value.key == key


# --- the host --------------------------------------------------------------------------------------------------------


def test_more_ranks_than_devices(monkeypatch):
    monkeypatch.setenv("HABANA_VISIBLE_MODULES", "0,1,2")
    with pytest.raises(ConfigError, match=r"world_size: 8 processes, but this host has 3 hpus: one process a device"):
        of("hpu8").check_host()
    of("hpu8", world_size=3).check_host()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match="1 processes, but this host has 0 cudas"):
        of("gpu1").check_host()


def test_devices_are_counted_from_the_driver(monkeypatch, tmp_path):
    for number in (0, 1):
        (tmp_path / f"accel{number}").touch()
        (tmp_path / f"accel_controlD{number}").touch()
    monkeypatch.setattr(room, "Path", lambda path: tmp_path if path == "/dev/accel" else os.devnull)
    assert room.num_devices("hpu") == 2


def test_a_port_in_use(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"master_port: port {port} can't be used .Address already in use"):
            of("cpu2", master_port=port).check_host()
        monkeypatch.setattr(Topology, "meeting_port", lambda _: port)
        with pytest.raises(ConfigError, match=f"port {port} can't be used"):  # what several servers take when none is given
            of("cpu2", num_nodes=2, node_rank=0, master_addr="127.0.0.1").check_host()
    of("cpu2", master_port=port).check_host()


@pytest.mark.parametrize("variable", ["RANK", "WORLD_SIZE", "LOCAL_RANK"])
def test_launch_py_under_torchrun_or_mpirun_is_refused(monkeypatch, variable):
    """Or in a shell where they are left over: trainers read each of them."""
    monkeypatch.setenv(variable, "0")
    with pytest.raises(ConfigError, match=rf"don't start it with torchrun \({variable} is set\).*or unset it"):
        of("cpu").check_host()


def test_slots_of_a_hostfile(tmp_path):
    path = tmp_path / "my hosts"
    path.write_text("# ours\nnode0 slots=8\n\nnode1  slots=4 # small\n")
    assert read_hostfile(path) == {"node0": 8, "node1": 4}
    made = Topology(launcher="deepspeed", num_nodes=2, hostfile=str(path), world_size=14)
    with pytest.raises(ConfigError, match=r"14 processes, but .*my hosts has 12 slots"):
        made.check_host()
    assert made.meeting_host() == "node0"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("node0 slots=8\nnode1 slot=8\n", r"hosts:2: 'node1 slot=8' is no `host slots=8`"),
        ("node0\n", "hosts:1: 'node0' is no"),
        ("node0 slots=0\n", "hosts:1"),
        ("node0 slots=8\nnode0 slots=8\n", "hosts:2: node0 stands there twice"),
        ("# nothing\n", "names no host"),
    ],
)
def test_a_hostfile_with_a_bad_line(tmp_path, content, said):
    (tmp_path / "hosts").write_text(content)
    with pytest.raises(ConfigError, match=said) as error:
        read_hostfile(tmp_path / "hosts")
    assert error.value.key == "hostfile"


def test_a_hostfile_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="can't be read"):
        read_hostfile(tmp_path / "hosts")


# --- several servers -------------------------------------------------------------------------------------------------


def test_a_server_s_number_is_given_or_slurm_s(monkeypatch):
    with pytest.raises(ConfigError, match="start the same command on each of the 2 servers"):
        _ = of("hpu_nodes").node
    monkeypatch.setenv("SLURM_NODEID", "1")
    assert of("hpu_nodes").node == 1
    assert of("hpu_nodes", node_rank=0).node == 0
    assert of("hpu8").node == 0  # alone on its node of a job
    monkeypatch.setenv("SLURM_NODEID", "2")
    with pytest.raises(ConfigError, match=r"node_rank: 2 \(SLURM_NODEID\) is out of range; the last of 2 servers is 1"):
        _ = of("hpu_nodes").node


def test_the_meeting_host_is_given_or_slurm_s_first(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="name the host of server 0"):
        of("hpu_nodes").meeting_host()
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\ntest "$1 $2 $3" = "show hostnames gaudi[3-4]" && printf "gaudi3\\ngaudi4\\n"\n')
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gaudi[3-4]")
    assert of("hpu_nodes").meeting_host() == "gaudi3"
    assert of("hpu_nodes", master_addr="10.0.0.1").meeting_host() == "10.0.0.1"
    assert of("hpu8").meeting_host() == "127.0.0.1"


# --- the environment -------------------------------------------------------------------------------------------------


def test_lazy_mode_is_always_set_and_over_the_shell(monkeypatch):
    assert of("cpu").worker_environment()["PT_HPU_LAZY_MODE"] == "0"
    monkeypatch.setenv("PT_HPU_LAZY_MODE", "0")
    environment = of("hpu1").worker_environment()
    assert environment["PT_HPU_LAZY_MODE"] == "1"
    assert room.set_over_shell(environment) == ["PT_HPU_LAZY_MODE=1 (your shell has 0)"]


def test_compiled_recipes_are_kept_and_no_module_is_chosen_for_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("ASR_CACHE", str(tmp_path))
    environment = of("hpu8").worker_environment()
    assert environment["PT_HPU_RECIPE_CACHE_CONFIG"] == f"{tmp_path}/recipes,false,16384"
    assert "HABANA_VISIBLE_MODULES" not in environment
    assert "PT_HPU_RECIPE_CACHE_CONFIG" not in of("cpu").worker_environment()


def test_the_shell_wins_over_the_topology_s_environment(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert "OMP_WAIT_POLICY" not in of("cpu").worker_environment()


@pytest.mark.parametrize(("cores", "processes", "threads"), [(16, 8, "2"), (2, 2, "1"), (2, 8, "1"), (17, 2, "8")])
def test_ranks_share_the_cores(monkeypatch, cores, processes, threads):
    monkeypatch.setattr(room, "available_cores", lambda: cores)
    made = Topology(world_size=processes)
    assert made.worker_environment()["OMP_NUM_THREADS"] == threads
    assert Topology(world_size=processes, threads_per_rank=3).worker_environment()["OMP_NUM_THREADS"] == "3"


def test_one_process_has_all_cores():
    assert "OMP_NUM_THREADS" not in Topology().worker_environment()


def test_two_hardware_threads_are_one_core(monkeypatch, tmp_path):
    """A Gaudi server has 160 cores and 320 threads: mpirun refuses to bind 8 ranks to 40 cores each."""
    for thread in range(8):
        path = tmp_path / f"cpu{thread}" / "topology" / "thread_siblings_list"
        path.parent.mkdir(parents=True)
        path.write_text(f"{thread % 4},{thread % 4 + 4}\n")
    monkeypatch.setattr(room, "CPUS", tmp_path)
    monkeypatch.setattr(room.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(room.Path, "is_file", lambda path: path.name != "cpu.max")
    assert room.available_cores() == 4


def test_cores_are_those_this_process_may_use():
    assert 1 <= room.available_cores() <= len(os.sched_getaffinity(0))
