"""Fused norms."""

from asr.rehearsal.kernels import FusedClipNorm, FusedRMSNorm

__all__ = ["FusedClipNorm", "FusedRMSNorm"]
