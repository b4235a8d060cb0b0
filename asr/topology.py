"""Where a run computes: device, number of processes, and each worker's environment.

In: the topology node. Out: where a trainer is to compute, and a worker process for a sweep's job.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asr.config import SECRET_NAME, bounded, choice, free_form
from asr.errors import ConfigError


@dataclass(kw_only=True)
class Topology:
    """One process on the host's CPU; several processes and HPUs come with their own topologies."""

    device: str = choice("cpu", "cpu")
    world_size: int = bounded(1, at_least=1, at_most=1)
    """Number of processes, one a device."""
    use_habana: bool = False
    """Computes on an HPU by optimum-habana's path."""
    use_lazy_mode: bool = False
    """Lazy mode of that path; eager otherwise."""
    backend: str | None = choice(None, "gloo", "hccl", "nccl")
    """torch.distributed's; null leaves it to accelerate."""
    deepspeed: dict[str, Any] = free_form()
    """A DeepSpeed configuration (ZeRO); empty for none."""
    environment: dict[str, Any] = free_form()
    """Environment variables of the workers, set only where the shell hasn't set them."""

    def __post_init__(self) -> None:
        for name, value in self.environment.items():
            if SECRET_NAME.search(str(name)):
                raise ConfigError("secrets come from your shell's environment and are never written.", key=f"environment.{name}")
            if value is None or isinstance(value, (dict, list)):
                raise ConfigError(f"{value!r} can't be the value of an environment variable.", key=f"environment.{name}")

    def worker_environment(self) -> dict[str, str]:
        """Return the whole environment of a worker: ours, and what the shell set over it."""
        return {name: str(value) for name, value in self.environment.items()} | dict(os.environ)

    def apply_environment(self) -> None:
        """Set the worker's environment in this process; call it before torch is imported."""
        os.environ.update(self.worker_environment())

    def run_in_child(self, run_dir: Path) -> int:
        """Run a prepared run directory in a process of its own and return its exit code, 128+n for signal n."""
        command = [sys.executable, "-m", "asr.worker", str(run_dir)]
        environment = self.worker_environment()
        here = str(Path(__file__).resolve().parent.parent)  # the worker runs this code, whatever else is installed
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [here, environment.get("PYTHONPATH")]))
        code = subprocess.run(command, env=environment, check=False).returncode
        return 128 - code if code < 0 else code
