"""Importing this makes "hccl" a backend of torch.distributed."""

from asr.rehearsal import hccl

hccl.register()
