"""What a program asks of `torch.hpu`: the device, its memory, its random numbers, its streams.

In: the loaded stand-in device. Out: the functions that Intel's documentation lists for `habana_frameworks.torch.hpu`
(https://docs.habana.ai/en/latest/PyTorch/Reference/Python_Packages.html) and that accelerate, transformers and
optimum-habana call. One device with one stream, on which everything has happened when a call returns.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from asr.rehearsal import device as stand_in

DEVICE_NAME = "GAUDI2"  # the first Gaudi has paths of its own in optimum-habana (models/wav2vec2/modeling_wav2vec2.py:140, :412)
LIMIT_BYTES = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # the host's, which it is


def is_available() -> bool:
    return True


def is_initialized() -> bool:
    return True


def init() -> None: ...


_lazy_init = init  # torch calls it by this name when the first tensor is made


def device_count() -> int:
    return 1


def current_device() -> int:
    return 0


def set_device(device: Any) -> None: ...


def get_device_name(device: Any = None) -> str:
    return DEVICE_NAME


def is_bf16_supported() -> bool:
    return True


def synchronize(device: Any = None) -> None:
    stand_in.load().synchronize()


def enable_dynamic_shape() -> None: ...


def disable_dynamic_shape() -> None: ...


def is_autocast_hpu_enabled() -> bool:
    return bool(torch.is_autocast_enabled("hpu"))


def get_autocast_hpu_dtype() -> torch.dtype:
    return torch.get_autocast_dtype("hpu")


@contextlib.contextmanager
def device(device: Any) -> Iterator[None]:
    """There is but one."""
    yield


# ---------------------------------------------------------------- memory: the host's, so it says nothing of a Gaudi's


def memory_stats(device: Any = None) -> dict[str, int]:
    bytes_ = stand_in.load().memory()
    return {"Limit": LIMIT_BYTES, "InUse": bytes_["in_use"], "MaxInUse": bytes_["most_in_use"]}


def memory_allocated(device: Any = None) -> int:
    return memory_stats()["InUse"]


def max_memory_allocated(device: Any = None) -> int:
    return memory_stats()["MaxInUse"]


def mem_get_info(device: Any = None) -> tuple[int, int]:
    return LIMIT_BYTES - memory_allocated(), LIMIT_BYTES


def reset_peak_memory_stats(device: Any = None) -> None:
    stand_in.load().forget_peak_memory()


# ---------------------------------------------------------------- random numbers


def manual_seed(seed: int) -> None:
    stand_in.load().seed(int(seed) % 2**63)


manual_seed_all = manual_seed


def initial_seed() -> int:
    return int(stand_in.load().initial_seed())


def get_rng_state(device: Any = None) -> torch.Tensor:
    """Return the generator's state, a uint8 CPU tensor."""
    return stand_in.load().random_state()  # type: ignore[no-any-return]


def set_rng_state(new_state: torch.Tensor, device: Any = None) -> None:
    stand_in.load().set_random_state(new_state)


def get_rng_state_all() -> list[torch.Tensor]:
    return [get_rng_state()]


def set_rng_state_all(new_states: Sequence[torch.Tensor]) -> None:
    set_rng_state(new_states[0])


# ---------------------------------------------------------------- streams


class Stream:
    """The stream; work on it is done when it is submitted."""

    def synchronize(self) -> None:
        synchronize()

    def wait_stream(self, stream: Stream) -> None: ...

    def wait_event(self, event: Event) -> None: ...

    def query(self) -> bool:
        return True


class Event:
    """A point on the stream, reached when it is recorded."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.enable_timing = enable_timing

    def record(self, stream: Stream | None = None) -> None: ...

    def wait(self, stream: Stream | None = None) -> None: ...

    def query(self) -> bool:
        return True

    def synchronize(self) -> None: ...


_STREAM = Stream()


def current_stream(device: Any = None) -> Stream:
    return _STREAM


default_stream = current_stream


@contextlib.contextmanager
def stream(stream: Stream | None) -> Iterator[None]:
    """Submit to a stream; here all are one."""
    yield
