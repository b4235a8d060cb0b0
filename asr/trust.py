"""What a run directory may do here, which may be a stranger's: make objects of this package's classes, run no code
of its own, and publish nothing.

In: a run, and what its user allows on the command line. Out: its configuration as plain containers, or a ConfigError with the key;
nothing has been imported for it, and nothing written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from asr import config, runs
from asr.errors import ConfigError

OURS = "asr."
HARMLESS = ("CUDA_", "GC_KERNEL_", "GLOO_", "HABANA_", "HCCL_", "HCL_", "LOG_LEVEL_", "NCCL_", "OMP_", "PT_", "TOKENIZERS_")
"""Beginnings of variables that tune devices and threads. Others can name libraries to load, or servers that get a token."""


def config_of(run: runs.Run, allowed: Sequence[str] = ()) -> dict[str, Any]:
    """Return the configuration of a run, none of which can run code or publish but what is `allowed`: packages, or keys of `_RUN_CODE`."""
    composed = run.config
    keys = [name for name in allowed if name in _RUN_CODE]
    for key, find in _RUN_CODE.items():
        said = None if key in keys else find(composed)
        if said:
            raise ConfigError(f"{said}; --allow {key} if you trust this run.", key=key)
    check_targets(composed, allowed)
    return composed


def check_targets(composed: Mapping[str, Any], allowed: Sequence[str]) -> None:
    """Raise ConfigError unless a configuration makes objects of this package and the allowed ones alone."""
    packages = [name if name.endswith(".") else f"{name}." for name in allowed if name not in _RUN_CODE]
    for name in packages:
        if not all(part.isidentifier() for part in name[:-1].split(".")):
            raise ConfigError(f"{name[:-1]!r} names neither a package nor one of {', '.join(_RUN_CODE)}.", key="--allow")
    config.check_targets(composed, (OURS, *packages))


def _repository_code(composed: Mapping[str, Any]) -> str:
    return "runs code of the model's repository" if _node(composed, "model").get("trust_remote_code") else ""


def _metric_files(composed: Mapping[str, Any]) -> str:
    named = _node(composed, "trainer").get("eval_metrics")
    files = [str(name) for name in named if str(name).endswith(".py")] if isinstance(named, (list, tuple)) else []
    return f"runs {files[0]}" if files else ""


def _variables(composed: Mapping[str, Any]) -> str:
    set_here = _node(composed, "topology").get("environment")
    names = [str(name) for name in set_here if not str(name).startswith(HARMLESS)] if isinstance(set_here, Mapping) else []
    return f"sets {names[0]} for the workers, which can load code" if names else ""


def _publishes(composed: Mapping[str, Any]) -> str:
    return _PUSHES if composed.get("publish") else ""


def _pushes(composed: Mapping[str, Any]) -> str:
    args = _node(composed, "trainer").get("args")
    return _PUSHES if isinstance(args, Mapping) and args.get("push_to_hub") else ""


_PUSHES = "pushes a model to the hub with your token"
_RUN_CODE = {
    "model.trust_remote_code": _repository_code,
    "trainer.eval_metrics": _metric_files,
    "topology.environment": _variables,
    "publish": _publishes,
    "trainer.args.push_to_hub": _pushes,
}
"""Keys that run code beside `_target_`, or use your token, with what finds it."""


def _node(composed: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    node = composed.get(name)
    return node if isinstance(node, Mapping) else {}
