"""What libraries raise in the midst of training, in a user's words: memory that doesn't suffice, a loader's worker that is gone.

In: a trainer, and an exception. Out: a TrainingError that names the batch or the process, and the settings to change.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from typing import Any

from asr.batching import Buckets, Fixed
from asr.errors import TrainingError
from asr.shape_trial import seconds_of

NO_MEMORY = re.compile(
    r"out of memory"  # CUDA, ROCm, XPU (accelerate 1.10.1, utils/memory.py:109)
    r"|PT_DEVMEM Allocation failed"  # Gaudi (likewise)
    r"|can't allocate memory|not enough memory"  # DefaultCPUAllocator, on Linux and Windows (c10/core/impl/alloc_cpu.cpp)
    r"|Cannot allocate memory|std::bad_alloc"  # mmap, and C++'s own
    r"|No executable batch size found",  # what auto_find_batch_size ends with (accelerate, utils/memory.py:172)
    re.IGNORECASE,
)
PEER = re.compile(r"gloo.*(Connection (closed|reset) by peer|Broken pipe)|remote process exited", re.IGNORECASE | re.DOTALL)
"""gloo (gloo/transport/tcp/pair.cc) and NCCL, when the other end of a connection is gone."""
WORKER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? (?P<pid>[\d, ]+)\) (?P<end>exited unexpectedly|is killed by signal: (?P<signal>[^.]+))"
)
"""torch, utils/data/dataloader.py:1305, and torch/csrc/DataLoader.cpp for those killed by a signal."""


@contextlib.contextmanager
def explained(trainer: Any) -> Iterator[None]:
    """Raise a TrainingError in place of what a library raises for want of memory, or when a loader's worker or a rank is gone."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        said = _in_words(trainer, error)
        if said is None:
            raise
        raise TrainingError(said) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an exception means that memory, of the host or the device, doesn't suffice."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or bool(NO_MEMORY.search(str(error)))


def _in_words(trainer: Any, error: BaseException) -> str | None:
    worker = WORKER.search(str(error))
    if worker:
        return _of_worker(trainer, worker)
    if PEER.search(str(error)):
        return "another rank is gone, and this one waited for it: its own message says why."
    if not is_out_of_memory(error):
        return None
    if "DataLoader worker" in str(error):  # what a worker raised is raised again with its traceback in the message
        workers = trainer.args.dataloader_num_workers
        return (
            "a process that loads batches ran out of memory. Lower trainer.args.dataloader_num_workers "
            f"({workers}) or trainer.args.dataloader_prefetch_factor. It said: {_last_line(error)}"
        )
    return f"memory doesn't suffice for {_where(trainer)}. {_mend(trainer)}. It was said: {_last_line(error)}"


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return (lines[-1] if lines[0].startswith("Caught ") else lines[0]).strip()[:200]


def _of_worker(trainer: Any, found: re.Match[str]) -> str:
    workers = trainer.args.dataloader_num_workers
    signal = (found["signal"] or "").strip()
    end = f"was killed by the signal {signal!r}" if signal else "ended without a word"
    likely = {
        "Bus error": "most likely shared memory (/dev/shm) is full: make it larger (docker run --shm-size)",
        "Killed": "most likely the system killed it, since the host's memory was full",
    }.get(signal, "most likely the host's memory or its shared memory (/dev/shm) is full")
    return (
        f"process {found['pid'].strip()}, which loads batches, {end}: {likely}, or lower trainer.args.dataloader_num_workers ({workers}); "
        "0 loads in the process that trains."
    )


def _where(trainer: Any) -> str:
    """Return which batch was in work."""
    if trainer.latest is None:
        return "what is made before the first batch: the model and the optimizer"
    phase, shape = trainer.latest
    data = trainer.train_dataset if phase == "train" else trainer.eval_dataset
    rows = f"{shape.rows} row{'s' if shape.rows > 1 else ''}"
    what = {"train": "a training batch", "eval": "an evaluation batch"}[phase]
    at = f"at step {trainer.state.global_step + 1}" if phase == "train" else f"after step {trainer.state.global_step}"
    when = "as it was tried before the first step" if trainer.trying else at
    return f"{what} of {rows} of {round(seconds_of(shape.length, data), 1):g} s with up to {shape.labels} labels, {when}"


def _mend(trainer: Any) -> str:
    """Return the settings that make a batch smaller, the first to be tried first."""
    phase, shape = trainer.latest or ("train", None)
    size = "per_device_train_batch_size" if phase == "train" else "per_device_eval_batch_size"
    mends = []
    if shape is None or shape.rows > 1:
        more = "; trainer.args.gradient_accumulation_steps makes up for it" if phase == "train" else ""
        mends.append(f"trainer.args.{size} ({getattr(trainer.args, size)}{more})")
        if isinstance(trainer.batching, Buckets):
            mends.append("batching.reference_seconds or batching.max_batch_size, which bound the rows of a batch")
    longer = "batching.seconds" if isinstance(trainer.batching, Fixed) else "dataset.max_duration_in_seconds"
    mends.append(f"{longer}, which leaves longer utterances out")
    checkpointing = "" if phase == "eval" or trainer.args.gradient_checkpointing else "; or set trainer.args.gradient_checkpointing=true"
    return f"Lower {', or '.join(mends)}{checkpointing}"
