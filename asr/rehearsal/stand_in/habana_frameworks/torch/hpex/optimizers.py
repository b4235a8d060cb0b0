"""The fused optimizer."""

from asr.rehearsal.kernels import FusedAdamW

__all__ = ["FusedAdamW"]
