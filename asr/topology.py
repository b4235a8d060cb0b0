"""Where a run computes: device, servers, processes, and each process' environment.

In: the topology node and this host's cores and devices. Out: how many ranks run where, and with which variables.
"""

from __future__ import annotations

import math
import os
import re
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from asr.config import bounded, cache_root, choice, free_form
from asr.errors import ConfigError
from asr.secrets import SECRET_NAME

LAUNCHED_BY = {"RANK": "torchrun", "OMPI_COMM_WORLD_RANK": "mpirun", "WORLD_SIZE": "torchrun", "LOCAL_RANK": "torchrun"}
"""Variables by which a launcher tells a process its rank, with that launcher. Trainers read each of them, also alone."""
VISIBLE = {"hpu": "HABANA_VISIBLE_MODULES", "cuda": "CUDA_VISIBLE_DEVICES"}
"""The variable by which a process is given some of a host's devices."""
BACKENDS = {"cpu": ("gloo",), "hpu": ("hccl",), "cuda": ("nccl", "gloo")}
"""Backends of torch.distributed that move tensors of a device."""


@dataclass(kw_only=True)
class Topology:
    """One process or many, on one server or several. One process a device; many share the CPU of a `cpu` topology."""

    device: str = choice("cpu", "cpu", "hpu", "cuda")
    use_habana: bool = False
    """Runs optimum-habana's HPU path; with false an `hpu` is reached through accelerate alone (trainer.engine=transformers)."""
    use_lazy_mode: bool = False
    """Gathers ops into graphs before they are compiled (PT_HPU_LAZY_MODE); HPU graphs need it."""
    world_size: int | None = bounded(None, at_least=1)
    """Number of processes in all; null takes num_nodes times ranks_per_node."""
    num_nodes: int = bounded(1, at_least=1)
    """Number of servers. `python launch.py` is started once on each, by hand or by srun; DeepSpeed starts them all itself."""
    ranks_per_node: int = bounded(1, at_least=1)
    """Processes on each server; not used once world_size is given."""
    launcher: str = choice("torchrun", "torchrun", "mpirun", "deepspeed")
    """What starts the processes of a run that has several."""
    backend: str | None = choice(None, "gloo", "hccl", "nccl")
    """Of torch.distributed; null leaves it to the device."""
    node_rank: int | None = bounded(None, at_least=0)
    """This server's number, from 0; null takes Slurm's."""
    master_addr: str | None = None
    """Host of server 0, as the others reach it; null takes the first host of Slurm's job, and on one server this one."""
    master_port: int | None = bounded(None, at_least=1, at_most=65535)
    """Where the ranks meet; null takes a free port, with several servers 29500."""
    hostfile: str | None = None
    """For DeepSpeed on several servers: one `host slots=8` a line."""
    deepspeed: dict[str, Any] = free_form()
    """DeepSpeed's configuration (ZeRO); empty trains without it."""
    threads_per_rank: int | None = bounded(None, at_least=1)
    """OMP_NUM_THREADS of each process; null shares the cores out among several, and leaves one process alone."""
    shown_ranks: str = choice("first", "first", "all")
    """Whose output the terminal shows; run.log has everybody's."""
    stop_seconds: float = bounded(10.0, at_least=0)
    """How long a rank that was asked to stop may take before it is killed."""
    preempt_seconds: float = bounded(120.0, at_least=0)
    """How long ranks have, after SIGTERM or SIGUSR1 to the parent, to end their step and save a checkpoint before they are killed."""
    join_seconds: float = bounded(3600.0, above=0)
    """How long a server waits for the others to start and prepare."""
    node_timeout_seconds: float = bounded(60.0, above=0)
    """A server that gives no sign for so long is taken for dead, and the run ends."""
    lease_devices: bool = True
    """A run on one server waits until it has its HPUs or GPUs for itself (asr/leases.py); false shares them."""
    environment: dict[str, Any] = free_form()
    """Environment variables of the workers, set only where the shell hasn't set them."""

    def __post_init__(self) -> None:
        for name, value in self.environment.items():
            if SECRET_NAME.search(str(name)):
                raise ConfigError("secrets come from your shell's environment and are never written.", key=f"environment.{name}")
            if value is None or isinstance(value, (dict, list)):
                raise ConfigError(f"{value!r} can't be the value of an environment variable.", key=f"environment.{name}")
        if self.num_nodes < 1 or (self.world_size or 1) < 1 or self.ranks_per_node < 1:
            return  # out of range, which is said better than what follows from it
        if self.num_processes % self.num_nodes and self.hostfile is None:
            raise ConfigError(
                f"{self.num_processes} processes can't be shared out evenly among {self.num_nodes} servers.", key="world_size"
            )
        if self.backend is not None and self.backend not in BACKENDS.get(self.device, (self.backend,)):
            raise ConfigError(
                f"{self.backend} moves no tensors of a {self.device}: take {' or '.join(BACKENDS[self.device])}, or null.", key="backend"
            )
        if self.hostfile is not None and self.launcher != "deepspeed":
            raise ConfigError("only launcher=deepspeed reads a hostfile; torchrun is started once on each server.", key="hostfile")
        if self.launcher == "mpirun" and self.num_nodes > 1:
            raise ConfigError("mpirun starts the processes of one server; choose torchrun or deepspeed for several.", key="launcher")
        if self.launcher == "deepspeed" and self.num_nodes > 1 and self.hostfile is None:
            raise ConfigError("is missing: DeepSpeed finds several servers in it, one `host slots=8` a line.", key="hostfile")
        if self.master_addr is not None and not self.master_addr.strip():
            raise ConfigError("is empty; null finds a host where that is possible.", key="master_addr")
        if self.node_rank is not None:
            self._check_node(self.node_rank)

    def _check_node(self, number: int, said_by: str = "") -> None:
        if number >= self.num_nodes:
            raise ConfigError(
                f"{number}{said_by} is out of range; the last of {self.num_nodes} servers is {self.num_nodes - 1}.", key="node_rank"
            )

    @property
    def num_processes(self) -> int:
        """The number of ranks in all."""
        return self.world_size or self.num_nodes * self.ranks_per_node

    @property
    def has_launcher(self) -> bool:
        """Whether a launcher starts the processes: DeepSpeed asks for its variables even with one."""
        return self.num_processes > 1 or bool(self.deepspeed)

    @property
    def processes_here(self) -> int:
        """The number of ranks on this server."""
        return math.ceil(self.num_processes / self.num_nodes)

    @property
    def started_on_each_node(self) -> bool:
        """Whether `python launch.py` runs on every server: all but DeepSpeed's launcher stay on their own."""
        return self.num_nodes > 1 and self.launcher != "deepspeed"

    def started_nodes(self) -> Sequence[int]:
        """The servers on which `python launch.py` is started: one command each."""
        return range(self.num_nodes if self.started_on_each_node else 1)

    @property
    def node(self) -> int:
        """This server's number; raises ConfigError when nothing says it."""
        if not self.started_on_each_node:
            return 0
        if self.node_rank is not None:
            return self.node_rank
        given = os.environ.get("SLURM_NODEID")
        if given is None:
            raise ConfigError(
                f"is missing: start the same command on each of the {self.num_nodes} servers, with 0 on the first, then 1, ...",
                key="node_rank",
            )
        self._check_node(int(given), " (SLURM_NODEID)")
        return int(given)

    def meeting_host(self) -> str:
        """Return the host where the ranks meet; raises ConfigError when nothing says it."""
        if self.master_addr is not None:
            return self.master_addr
        if self.hostfile is not None:
            return next(iter(read_hostfile(Path(self.hostfile))))
        if not self.started_on_each_node:
            return "127.0.0.1"
        if "SLURM_JOB_NODELIST" in os.environ:
            return _first_slurm_host(os.environ["SLURM_JOB_NODELIST"])
        raise ConfigError("is missing: name the host of server 0 as the others reach it.", key="master_addr")

    def meeting_port(self) -> int:
        """Return the port where the ranks meet: the given one, a free one on one server, 29500 on several."""
        if self.master_port is not None:
            return self.master_port
        return 29500 if self.num_nodes > 1 else _free_port()

    def check_host(self, *, has_devices: bool = True) -> None:
        """Check what needs this host: devices, unless others stand in for them, the port, a hostfile; raise ConfigError."""
        for variable, launcher in LAUNCHED_BY.items():
            if variable in os.environ:
                raise ConfigError(
                    f"launch.py starts the processes itself; don't start it with {launcher} ({variable} is set). "
                    "Say `python launch.py topology.world_size=N`, or unset it.",
                    key="world_size",
                )
        if self.hostfile is not None:
            slots = read_hostfile(Path(self.hostfile))
            if self.num_processes > sum(slots.values()):
                raise ConfigError(f"{self.num_processes} processes, but {self.hostfile} has {sum(slots.values())} slots.", key="world_size")
        devices = num_devices(self.device, self.environment) if has_devices else None
        if devices is not None and self.processes_here > devices:
            named = f"{devices} {self.device}" + ("s" if devices != 1 else "")
            raise ConfigError(f"{self.processes_here} processes, but this host has {named}: one process a device.", key="world_size")
        if self.num_processes > 1 and self.node == 0:
            self.meeting_host()
            if self.master_port is not None or self.num_nodes > 1:
                _check_port_is_free(self.meeting_port())

    def worker_environment(self) -> dict[str, str]:
        """Return the variables that the workers get from us, by name; what the shell has set is left out.

        Raises ConfigError where the shell contradicts the topology.
        """
        ours = {name: str(value) for name, value in self.environment.items()}
        if self.threads_per_rank is not None:
            ours["OMP_NUM_THREADS"] = str(self.threads_per_rank)
        elif self.num_processes > 1:
            ours.setdefault("OMP_NUM_THREADS", str(self.cores_per_rank()))
        if self.device == "hpu":
            ours.setdefault("PT_HPU_RECIPE_CACHE_CONFIG", f"{cache_root(None, 'recipes')},false,16384")
        given = {name: value for name, value in ours.items() if name not in os.environ}
        # the arguments of the trainer and this variable must say the same, and the documentation disagrees on its default
        return given | {"PT_HPU_LAZY_MODE": str(int(self.use_lazy_mode))}

    def apply_environment(self) -> None:
        """Set the worker's environment in this process; call it before torch is imported."""
        os.environ.update(self.worker_environment())

    def cores_per_rank(self) -> int:
        """Return how many of this host's cores each process may use: at least one, in all never more than there are."""
        return max(1, available_cores() // self.processes_here)


CPUS = Path("/sys/devices/system/cpu")


def available_cores() -> int:
    """Return the cores that this process may use: its CPU affinity, and a container's quota (cgroup v2's cpu.max).

    Two hardware threads are one core: `mpirun --bind-to core` can't bind a rank to more cores than there are.
    """
    threads = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = len({_siblings(thread) for thread in threads})
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        allowed, _, period = quota.read_text(encoding="ascii").partition(" ")
        if allowed != "max":
            cores = min(cores, max(1, int(allowed) // int(period)))
    return cores


def _siblings(thread: int) -> str:
    """Return which hardware threads share a core with one, as Linux lists them."""
    listed = CPUS / f"cpu{thread}" / "topology" / "thread_siblings_list"
    return listed.read_text(encoding="ascii") if listed.is_file() else str(thread)


def num_sockets() -> int:
    """Return the number of CPU sockets; 1 where the system doesn't say."""
    info = Path("/proc/cpuinfo")
    found = set(re.findall(r"^physical id\s*: (\d+)", info.read_text(encoding="utf-8"), re.MULTILINE)) if info.is_file() else set()
    return max(1, len(found))


def num_devices(device: str, given: Mapping[str, Any] | None = None) -> int | None:
    """Return how many of a kind of device this host offers; None where that can't be told. `given`: as for `visible_devices`."""
    found = visible_devices(device, given)
    return None if found is None else len(found)


def visible_devices(device: str, given: Mapping[str, Any] | None = None) -> tuple[str, ...] | None:
    """Return the names of a kind of device that a run may use, without importing torch; None where that can't be told.

    `given` are the variables that a topology sets where the shell doesn't.

    Gaudi: HABANA_VISIBLE_MODULES, else the driver's /dev/accel/accel<n>
    (https://docs.habana.ai, "Multiple Workloads on a Single Docker"); CUDA: CUDA_VISIBLE_DEVICES, whose list ends at a number
    below 0 (CUDA's programming guide, "Environment Variables"), else its driver's list.
    """
    if device not in VISIBLE:
        return None
    chosen = str({**(given or {}), **os.environ}.get(VISIBLE[device], "all"))
    if chosen != "all":
        names = [part.strip() for part in chosen.split(",") if part.strip()]
        end = next((i for i, name in enumerate(names) if device == "cuda" and name.startswith("-")), None)
        return tuple(dict.fromkeys(names[:end]))
    folder, pattern = (Path("/dev/accel"), "accel[0-9]*") if device == "hpu" else (Path("/proc/driver/nvidia/gpus"), "*")
    return tuple(str(number) for number in range(len(list(folder.glob(pattern))))) if folder.is_dir() else None


def read_hostfile(path: Path) -> dict[str, int]:
    """Return the slots of each host in a DeepSpeed hostfile; raise ConfigError for a line that is none."""
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read ({error}).", key="hostfile") from error
    slots: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        found = re.fullmatch(r"(\S+)\s+slots=([1-9]\d*)", text)
        if found is None:
            raise ConfigError(f"{path}:{number}: {line.strip()!r} is no `host slots=8`.", key="hostfile")
        if found.group(1) in slots:
            raise ConfigError(f"{path}:{number}: {found.group(1)} stands there twice.", key="hostfile")
        slots[found.group(1)] = int(found.group(2))
    if not slots:
        raise ConfigError(f"{path} names no host.", key="hostfile")
    return slots


@lru_cache
def _first_slurm_host(nodelist: str) -> str:
    """Return the first host of Slurm's compressed list, as scontrol expands it."""
    try:
        done = subprocess.run(["scontrol", "show", "hostnames", nodelist], capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"scontrol can't expand SLURM_JOB_NODELIST={nodelist} ({error}); name the host.", key="master_addr") from error
    return done.stdout.split()[0]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _check_port_is_free(port: int) -> None:
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the store itself does
            probe.bind(("", port))
    except OSError as error:
        raise ConfigError(
            f"port {port} can't be used ({error.strerror}); choose another, or on one server null for a free one.", key="master_port"
        ) from error


def set_over_shell(environment: Mapping[str, str]) -> list[str]:
    """Return what in `environment` replaces a value of the shell, in words; PYTHONPATH is only added to."""
    changed = {k: v for k, v in environment.items() if k != "PYTHONPATH" and os.environ.get(k, v) != v}
    return [f"{name}={value} (your shell has {os.environ[name]})" for name, value in changed.items()]
