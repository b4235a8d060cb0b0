"""The stand-in device: device.cpp compiled with this host's g++ on first use, and what it has observed.

In: torch's CPU build and g++. Out: torch's own `hpu` device on host memory, in this process from `load` on. Its process
is a rehearsal's own: once loaded, hpu is the accelerator of the whole process.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr.config import cache_root
from asr.errors import ConfigError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("device.cpp")
FLAGS = ("-std=c++20", "-O1", "-fPIC", "-shared", "-Wno-deprecated-declarations")

AUTOCAST_LOWER_PRECISION = (
    "addmm addbmm batch_norm baddbmm bmm conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d dot dropout "
    "feature_dropout group_norm instance_norm layer_norm leaky_relu linear matmul mean mm mul mv softmax log_softmax "
    "scaled_dot_product_attention"
).split()
AUTOCAST_FLOAT32 = (
    "acos addcdiv asin atan2 bilinear binary_cross_entropy binary_cross_entropy_with_logits cdist cosh cosine_embedding_loss "
    "cosine_similarity cross_entropy_loss dist div divide embedding embedding_bag erfinv exp expm1 hinge_embedding_loss huber_loss "
    "kl_div l1_loss log log10 log1p log2 logsumexp margin_ranking_loss mse_loss multi_margin_loss multilabel_margin_loss nll_loss "
    "pdist poisson_nll_loss pow reciprocal renorm rsqrt sinh smooth_l1_loss soft_margin_loss softplus tan topk triplet_margin_loss "
    "true_divide"
).split()
"""Ops that autocast runs in bfloat16 and in float32 on a Gaudi, by default
(https://docs.habana.ai/en/latest/PyTorch/PyTorch_Mixed_Precision/index.html, "Registered Operators")."""


def check_host() -> None:
    """Raise ConfigError where the stand-in can't be built: another build of torch, or no g++. Imports no torch."""
    if find_spec("habana_frameworks") is not None:
        raise ConfigError(
            "habana_frameworks is installed here, so this host has the real thing: launch the experiment itself, shortened by "
            "trainer.args.max_steps and dataset.max_train_samples.",
            key="rehearse",
        )
    _check_tools()


def _check_tools() -> None:
    others = [name for name in ("cuda", "hip", "xpu") if torch_builds().get(name)]
    if others:
        raise ConfigError(
            f"needs torch's CPU build; the installed torch {version('torch')} is built for {others[0]}, whose device would be taken "
            "instead. Rehearse in an environment of its own: `make setup`, or pip install torch from "
            "https://download.pytorch.org/whl/cpu",
            key="rehearse",
        )
    if not library_path().exists() and shutil.which(_compiler()[0]) is None:
        raise ConfigError(
            f"{_compiler()[0]} is not on PATH: the stand-in device is compiled on first use. `apt install g++` brings it, or name "
            "another C++20 compiler in CXX.",
            key="rehearse",
        )


def library_path() -> Path:
    """Return where the compiled device lies: its name holds everything that it was made from."""
    made_from = [SOURCE.read_bytes(), version("torch").encode(), shlex.join(_compiler()).encode(), " ".join(FLAGS).encode()]
    key = hashlib.sha256(b"\0".join(made_from)).hexdigest()[:16]
    return cache_root(None, "rehearsal") / f"hpu-{key}.so"


def build() -> Path:
    """Compile the device unless that was done before, and return its path; raise ConfigError when it can't be.

    Takes half a minute, once. Several processes wait for the first. Imports no torch.
    """
    library = library_path()
    if library.exists():
        return library
    _check_tools()
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with _alone(library.with_suffix(".lock")):
            if not library.exists():
                log.info("compiling the stand-in device, once: about half a minute (%s)", library)
                _compile(library)
    except OSError as error:
        raise ConfigError(f"{library} can't be written ({error}); name another place in ASR_CACHE.", key="rehearse") from error
    return library


def _compile(library: Path) -> None:
    torch = _torch_folder()
    aside = library.with_suffix(f".{os.getpid()}")
    include = [f"-I{torch / 'include'}", f"-I{torch / 'include' / 'torch' / 'csrc' / 'api' / 'include'}"]
    link = [f"-L{torch / 'lib'}", f"-Wl,-rpath,{torch / 'lib'}", "-ltorch_cpu", "-ltorch", "-lc10"]
    command = [*_compiler(), *FLAGS, *include, str(SOURCE), *link, "-o", str(aside)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        aside.unlink(missing_ok=True)
        said = [line for line in done.stderr.splitlines() if "error" in line][:3] or done.stderr.splitlines()[-3:]
        said = said or [f"it ended with exit code {done.returncode}"]
        raise ConfigError(
            f"the stand-in device can't be compiled against torch {version('torch')} by {shlex.join(_compiler())}: {' | '.join(said)}",
            key="rehearse",
        )
    aside.replace(library)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process compiles the stand-in device; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _compiler() -> list[str]:
    """Return the compiler's command, which may have options."""
    return shlex.split(os.environ.get("CXX") or "g++")


def _torch_folder() -> Path:
    spec = find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("torch is not installed.", key="rehearse")
    return Path(next(iter(spec.submodule_search_locations)))


def torch_builds() -> dict[str, Any]:
    """Return what torch/version.py says: cuda, hip and xpu are None in a CPU build."""
    said: dict[str, Any] = {}
    for node in ast.parse((_torch_folder() / "version.py").read_text(encoding="utf-8")).body:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets if isinstance(node, ast.Assign) else []
        value = getattr(node, "value", None)
        if value is not None and isinstance(value, ast.Constant):
            said |= {target.id: value.value for target in targets if isinstance(target, ast.Name)}
    return said


@lru_cache
def load() -> Any:
    """Put the device into this process and return its controls (torch.ops.asr_hpu); raise ConfigError when it can't be built."""
    import torch

    torch.ops.load_library(str(build()))
    controls = torch.ops.asr_hpu
    from asr.rehearsal import hpu

    torch._register_device_module("hpu", hpu)  # torch.hpu: without it no tensor can be made there
    sys.modules["torch.hpu.random"] = hpu  # transformers asks both (trainer.py:3304)
    hpu.random = hpu  # type: ignore[attr-defined]
    controls.set_lazy(os.environ.get("PT_HPU_LAZY_MODE", "1") == "1")
    for variable, names, lower in (
        ("PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST", AUTOCAST_LOWER_PRECISION, True),
        ("PT_HPU_AUTOCAST_FP32_OPS_LIST", AUTOCAST_FLOAT32, False),
    ):
        for overload in (overload for name in _chosen(variable, names) for overload in _overloads(name)):
            controls.register_autocast(overload, lower)
    return controls


def _chosen(variable: str, names: Sequence[str]) -> Sequence[str]:
    """Return the ops that a file names, one a line, in place of the documented ones; raise ConfigError where it can't be read."""
    path = os.environ.get(variable)
    if path is None:
        return names
    try:
        return Path(path).read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{variable}={path} can't be read ({error}): a file that names ops, one a line.", key="topology.environment"
        ) from error


def _overloads(name: str) -> list[str]:
    """Return an op's functional overloads, as the dispatcher spells them; empty for an op that aten hasn't."""
    import torch

    packet = getattr(torch.ops.aten, name, None)
    names = packet.overloads() if packet is not None else []
    return [name if overload == "default" else f"{name}.{overload}" for overload in names if "out" not in overload.split("_")]


def mark_step() -> None:
    """End the lazy graph that is being gathered, as `habana_frameworks.torch.core.mark_step` does."""
    load().mark_step()


def host_view(tensor: torch.Tensor) -> torch.Tensor:
    """Return a CPU tensor on the same memory, which keeps `tensor` alive."""
    return load().host_view(tensor)  # type: ignore[no-any-return]


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """Count what happens inside under a name; a graph belongs to the phase of its first op."""
    before = load().get_phase()
    load().set_phase(name)
    try:
        yield
    finally:
        load().set_phase(before)


def graphs(*phases: str) -> Counter[str]:
    """Return the lazy graphs that were recorded in these phases, by the hash of their ops, each with how often it ran."""
    found: Counter[str] = Counter()
    for key, times in load().counted_graphs().items():
        where, _, ops = key.partition("\t")
        if where in phases:
            found[ops] += times
    return found


def events(what: str, *phases: str) -> Counter[str]:
    """Return how often something happened in these phases, by its detail.

    `what`: sync, dynamic (an op whose result's size depends on data), or within a capture sync_in_capture,
    dynamic_in_capture, host_value_in_capture (a copy from the host, which a replay doesn't repeat).
    """
    found: Counter[str] = Counter()
    for key, times in load().counted_events().items():
        kind, where, detail = key.split("\t")
        if kind == what and where in phases:
            found[detail] += times
    return found


def supply_torchvision() -> None:
    """Put an empty torchvision where there is none: optimum-habana imports it on every HPU run, for one model's tokenizer
    (models/glm4v/tokenization_chatglm.py:32), and installing it would replace torch's CPU build."""
    if find_spec("torchvision") is not None:
        return
    for name in ("torchvision", "torchvision.transforms"):
        module = module_from_spec(ModuleSpec(name, None, is_package=name == "torchvision"))
        sys.modules[name] = module
    sys.modules["torchvision"].transforms = module  # type: ignore[attr-defined]
