"""What this machine has for training speech recognition models, and what is missing for which topology, with the mend.

In: overrides of a configuration, as launch.py takes them. Out: findings, each with what was found and what mends it. Nothing is
installed, downloaded or written; libraries are looked up, and neither torch nor a driver's Python is imported.
"""

from __future__ import annotations

import codecs
import locale
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from asr import composition, config, config_files, gaudi, hub, launchers
from asr.errors import AsrError, ConfigError
from asr.pipeline import Pipeline
from asr.pretrained import PretrainedFiles
from asr.topology import num_devices

OK, NOTE, BAD = "ok", "note", "bad"
NEEDED = ("torch", "transformers", "accelerate", "datasets", "evaluate", "jiwer", "hydra-core", "omegaconf", "soundfile", "soxr")
OPTIONAL = {
    "optimum-habana": ("gaudi", "trainer.engine=gaudi, the default"),
    "espeakng-loader": ("digits", "dataset=spoken_digits"),
    "phonemizer": ("phonemes", "vocabulary.phoneme_language"),
    "hydra-submitit-launcher": ("slurm", "hydra/launcher=gaudi_slurm"),
    "hydra-joblib-launcher": ("parallel", "hydra/launcher=joblib"),
    "optuna": ("optuna", "hydra/sweeper=asr_optuna"),
    "peft": ("lora", "model.lora"),
}
"""Packages that a part of the product needs: the extra that brings each, and the part."""
LEAST_SHARED_BYTES = 1 << 30
"""Of /dev/shm: loader workers hand batches over in it, and a container has 64 MiB unless told."""
DRIVER_SECONDS = 20
STATES_OF_ADAM = 3
"""A checkpoint holds the weights and Adam's two moments, all in float32."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: its state, what was found, and what mends it."""

    name: str
    state: str
    found: str
    mend: str = ""


def examine(overrides: Sequence[str] = ()) -> list[Finding]:
    """Look at this machine, for a configuration where overrides say which; raise ConfigError for overrides that can't be composed."""
    composed = composition.to_container(composition.compose(list(overrides)))
    pipeline = Pipeline.of(composed)
    found = [*_packages(), *_driver(), *_system(), *_disk(pipeline), *_hub()]
    return [*found, *_topologies(), *_configuration(pipeline, overrides)]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _packages() -> Iterator[Finding]:
    new_enough = sys.version_info >= (3, 10)
    yield Finding(
        "Python", OK if new_enough else BAD, f"{platform.python_version()} on {platform.platform()}", "" if new_enough else "3.10 or newer"
    )
    for name in NEEDED:
        has = _version(name)
        yield Finding(name, OK if has else BAD, has or "not installed", "" if has else f"pip install {name}")
    for name, (extra, part) in OPTIONAL.items():
        has = _version(name)
        yield Finding(name, OK if has else NOTE, has or f"not installed; for {part}", "" if has else f"pip install -e '.[{extra}]'")
    yield from _pins()
    habana = _version("habana-torch-plugin")
    there = gaudi.habana_is_installed()
    yield Finding(
        "habana_frameworks",
        OK if there else NOTE,
        habana or ("there" if there else "not installed: no HPU is used here"),
        "" if there else "comes with Intel's Gaudi image and its torch (docs.habana.ai, Installation Guide); other hosts need none",
    )


def _pins() -> Iterator[Finding]:
    """Yield where optimum-habana's pins and what is installed don't go together."""
    for line in (requires("optimum-habana") or []) if _version("optimum-habana") else []:
        try:
            needed = Requirement(line)
        except InvalidRequirement:
            continue
        has = _version(needed.name)
        if needed.marker is None and has and needed.specifier and not needed.specifier.contains(has, prereleases=True):
            mend = f"pip install '{needed.name}{needed.specifier}', or trainer.engine=transformers"
            yield Finding(needed.name, BAD, f"{has}; optimum-habana {_version('optimum-habana')} needs {needed.specifier}", mend)


def _driver() -> Iterator[Finding]:
    program = shutil.which("hl-smi")
    if program is None:
        yield Finding("Gaudi driver", NOTE, "hl-smi is not on PATH: this host has no Gaudi, or its driver isn't installed")
    else:
        yield _asked_driver(program)
    for device, what in (("hpu", "HPUs"), ("cuda", "GPUs")):
        number = num_devices(device)
        chosen = os.environ.get({"hpu": "HABANA_VISIBLE_MODULES", "cuda": "CUDA_VISIBLE_DEVICES"}[device])
        said = f"{number if number is not None else 'none'}{f' (the shell chooses {chosen})' if chosen else ''}"
        yield Finding(what, OK if number else NOTE, said)
    if gaudi.habana_is_installed():
        yield _hccl()


def _asked_driver(program: str) -> Finding:
    """Ask hl-smi as its manual says (docs.habana.ai, "System Management Interface Tool": -Q, -f)."""
    try:
        done = subprocess.run(
            [program, "-Q", "driver_version,name", "-f", "csv,noheader"],
            capture_output=True,
            text=True,
            timeout=DRIVER_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("Gaudi driver", BAD, f"hl-smi doesn't answer ({error})", "see `dmesg` and the driver's service; reboot the host")
    said = " ".join((done.stdout or done.stderr).split())
    if done.returncode:
        return Finding(
            "Gaudi driver", BAD, f"hl-smi ends with {done.returncode}: {said[:200]}", "install the driver of your software version"
        )
    return Finding("Gaudi driver", OK, said[:200])


def _hccl() -> Finding:
    """Find the part of habana_frameworks that registers HCCL with torch.distributed, without importing it: that takes a device."""
    package = find_spec("habana_frameworks")
    folders = [Path(name) for name in (package.submodule_search_locations or [])] if package else []
    there = any((folder / "torch" / "distributed" / "hccl").exists() for folder in folders)
    mend = "take Intel's image, or install the whole habana-torch-plugin: runs of several HPUs need it"
    return Finding("HCCL", OK if there else BAD, "in habana_frameworks" if there else "not in habana_frameworks", "" if there else mend)


def _system() -> Iterator[Finding]:
    encoding = locale.getpreferredencoding(do_setlocale=False)
    is_utf8 = codecs.lookup(encoding).name == "utf-8" and codecs.lookup(sys.getfilesystemencoding()).name == "utf-8"
    mend = "export LC_ALL=C.UTF-8 (or PYTHONUTF8=1): names of files and transcripts are UTF-8"
    yield Finding("locale", OK if is_utf8 else BAD, encoding, "" if is_utf8 else mend)
    shared = Path("/dev/shm")  # noqa: S108  # Linux's shared memory
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        enough = free >= LEAST_SHARED_BYTES
        mend = "start the container with --ipc=host or --shm-size=8g, or trainer.args.dataloader_num_workers=0"
        yield Finding("shared memory", OK if enough else BAD, f"{_size(free)} free in {shared}", "" if enough else mend)
    for program, part in (("git", "run.json's commit"), ("mpirun", "topology.launcher=mpirun"), ("sbatch", "hydra/launcher=gaudi_slurm")):
        path = shutil.which(program)
        yield Finding(program, OK if path else NOTE, path or f"not on PATH; for {part}")


def _disk(pipeline: Pipeline) -> Iterator[Finding]:
    for name, folder in (("disk for runs", Path("outputs")), ("disk for caches", config.cache_root(None, ""))):
        there = next(parent for parent in [folder.absolute(), *folder.absolute().parents] if parent.exists())
        free = shutil.disk_usage(there).free
        writable = os.access(there, os.W_OK)
        weights, times = _weight_bytes(pipeline.model), _times_weights(pipeline)
        needed = weights * times if weights and name == "disk for runs" else None
        said = f"{_size(free)} free in {there}{'' if writable else ', which can not be written'}"
        if name == "disk for runs":
            takes = f"about {_size(needed)}" if needed else f"{times} times its model's weights, whose size isn't known here"
            said += f"; a run of this configuration takes {takes}"
        enough = writable and (needed is None or free > needed)
        mend = "" if enough else "make room, fewer checkpoints (trainer.args.save_total_limit), or hydra.run.dir elsewhere"
        yield Finding(name, OK if enough else BAD, said, mend)


def _times_weights(pipeline: Pipeline) -> int:
    """Return how many times its model's weights a run takes at most at a time: model/, and checkpoints with Adam's two moments."""
    args: Mapping[str, Any] = pipeline.trainer.args
    kept = 0 if args.get("save_strategy") == "no" else args.get("save_total_limit")
    checkpoints = 2 if kept is None else kept + 1  # one is written before the oldest goes
    return 1 + STATES_OF_ADAM * checkpoints


def _weight_bytes(model: Any) -> int | None:
    """Return how large the weights are that a model begins with, in all its parts; None where one isn't here, or is made from scratch."""
    parts = ("name_or_path",) if getattr(model, "name_or_path", None) is not None else ("encoder_name_or_path", "decoder_name_or_path")
    sizes = []
    for part in parts:
        name, revision = getattr(model, part, None), getattr(model, part.replace("name_or_path", "revision"), None)
        sizes.append(PretrainedFiles(name, revision, getattr(model, "cache_dir", None)).weight_bytes() if name else None)
    return None if None in sizes else sum(size for size in sizes if size)


def _hub() -> Iterator[Finding]:
    if hub.is_offline():
        yield Finding("hub", NOTE, "HF_HUB_OFFLINE is set: only what its cache has is used")
        return
    problem = hub.why_silent()
    mend = "set HF_ENDPOINT to a mirror or HTTPS_PROXY, or HF_HUB_OFFLINE=1 with files that are here (docs/security.md)"
    yield Finding("hub", NOTE if problem else OK, f"{hub.endpoint()}: {problem or 'answers'}", mend if problem else "")


def _topologies() -> Iterator[Finding]:
    """Yield, for each topology of conf/, whether it runs here and, if not, why."""
    for path in sorted((config_files.CONF / "topology").glob("*.yaml")):
        node = composition.to_container(composition.compose(config_name=f"topology/{path.stem}"))["topology"]
        topology = config.node_of(config.import_target(node.pop("_target_")), node)
        reasons = []
        if (topology.use_habana or topology.device == "hpu") and not gaudi.habana_is_installed():
            reasons.append("habana_frameworks isn't installed")
        for look in (partial(launchers.check_installed, topology), topology.check_host):
            try:
                with config.under("topology"):
                    look()
            except ConfigError as error:
                reasons.append(re.sub(r"(?<!\.)\.$", "", str(error)))  # an ellipsis stays
        if topology.device != "cpu" and num_devices(topology.device) is None:
            reasons.append(f"no {topology.device} is found")
        yield Finding(f"topology={path.stem}", NOTE if reasons else OK, "; ".join(reasons) or "runs here")


def _configuration(pipeline: Pipeline, overrides: Sequence[str]) -> Iterator[Finding]:
    """Yield what would refuse a launch of the configuration here."""
    name = f"launch.py {' '.join(overrides)}".strip()
    problems = []
    for look in (pipeline.check_compatible, pipeline.check_reachable, lambda: _check_host(pipeline)):
        try:
            look()
        except AsrError as error:
            problems += [line.removeprefix("also: ") for line in str(error).splitlines()]
    for problem in dict.fromkeys(problems):
        yield Finding(name, BAD, problem)
    if not problems:
        yield Finding(name, OK, "can be launched here")


def _check_host(pipeline: Pipeline) -> None:
    with config.under("topology"):
        launchers.check_installed(pipeline.topology)
        pipeline.topology.check_host()


def _size(number: float | None) -> str:
    number = float(number or 0)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def is_well(findings: Sequence[Finding]) -> bool:
    """Whether nothing was found that a launch of the configuration needs and hasn't got."""
    return all(finding.state != BAD for finding in findings)
