"""Loads the stand-in device; from here on torch has an `hpu`."""

import os

from asr.rehearsal import device, hccl

os.environ.update(hccl.rank_variables(os.environ))
device.load()
device.supply_torchvision()

from habana_frameworks.torch import core, hpu  # noqa: E402

__all__ = ["core", "hpu"]
