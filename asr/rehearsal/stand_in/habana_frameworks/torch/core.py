"""What ends a lazy graph."""

from asr.rehearsal.device import mark_step
from habana_frameworks.torch import hpu

__all__ = ["hpu", "hpu_initialize", "mark_step"]


def hpu_initialize(*_: object, **__: object) -> None:
    """Ready the device for inference, which it is."""
