"""Python bindings of the C library libvfio-user: write a PCI device, any vfio-user client (QEMU) attaches to it.

:class:`Device` is what to subclass; :class:`Library` and :mod:`libvfio_user.raw` are the C interface as it is. Needs
the library (``docs/libvfio-user.md``) and Python's standard library only.
"""

from __future__ import annotations

from .device import Device
from .errors import ArgumentError, DisconnectedError, StateError, VfuError
from .find import VARIABLE, find_library
from .memory import DmaRange
from .raw import (
    CapabilityFlag,
    Generation,
    Irq,
    Library,
    LibraryError,
    MigrationState,
    PciType,
    Region,
    RegionFlag,
    Reset,
)

__all__ = [
    "VARIABLE",
    "ArgumentError",
    "CapabilityFlag",
    "Device",
    "DisconnectedError",
    "DmaRange",
    "Generation",
    "Irq",
    "Library",
    "LibraryError",
    "MigrationState",
    "PciType",
    "Region",
    "RegionFlag",
    "Reset",
    "StateError",
    "VfuError",
    "find_library",
]
