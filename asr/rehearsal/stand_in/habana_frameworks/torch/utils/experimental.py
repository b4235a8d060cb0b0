"""The kind of device, as optimum-habana and accelerate ask for it."""

from enum import IntEnum

from habana_frameworks.torch import hpu

__all__ = ["_get_device_type", "hpu", "synDeviceType"]


class synDeviceType(IntEnum):  # noqa: N801
    """Kinds of device that are told apart."""

    synDeviceGaudi = 1  # noqa: N815
    synDeviceGaudi2 = 2  # noqa: N815
    synDeviceGaudi3 = 3  # noqa: N815


def _get_device_type() -> synDeviceType:
    return synDeviceType.synDeviceGaudi2
