"""Fused attention, CTC loss and rotary embeddings."""

from asr.rehearsal.kernels import CTCLoss, FusedSDPA, RotaryPosEmbeddingHelperV2

__all__ = ["CTCLoss", "FusedSDPA", "RotaryPosEmbeddingHelperV2"]
