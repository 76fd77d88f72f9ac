"""What a program finds in /dev and /sys of its devices: a folder to which the preloaded library leads such paths.

Links, folders and files there are real ones, with the contents that the kernel's have.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from ..interfaces.iommufd import System
from ..interfaces.iommufd.devices import Device
from ..pci.config_space import COMMAND, Command

__all__ = ["device_number", "files_beside", "make_files"]

_CLASS, _SUBSYSTEM = 0x08, 0x2C
_BUS = "sys/bus/pci/devices"
_NUMBERS = {"/dev/iommu": os.makedev(10, 125), "/dev/vfio/vfio": os.makedev(10, 196)}
_GROUP_MAJOR, _DEVICE_MAJOR = 240, 241
"""For local use, as Linux' devices.txt has them; in Linux they are found at run time."""


def device_number(node: str) -> int:
    """What stat() says of a file of /dev; 0 for one that has none. The preloaded library has the same (paths.c)."""
    if node in _NUMBERS:
        return _NUMBERS[node]
    found = re.fullmatch(r"/dev/vfio/(devices/vfio)?([0-9]{1,6})", node)
    return os.makedev(_DEVICE_MAJOR if found[1] else _GROUP_MAJOR, int(found[2])) if found else 0


def files_beside(socket: Path) -> Path:
    """The folder of a server."""
    return socket.with_name(f"{socket.name}.files")


def make_files(system: System, folder: Path, debug: Mapping[str, Sequence[str]] = MappingProxyType({})) -> None:
    """Make ``dev`` and ``sys`` in a folder that has neither. Raises OSError.

    Files of /dev are empty there: opening them is the server's. Of /sys there is what leads to a device's files: the
    devices of the PCI bus, their driver, and the groups; below /sys/kernel/debug, files by folder in ``debug``.
    """
    nodes = ["/dev/iommu"]
    if not system.is_rfc:
        nodes += ["/dev/vfio/vfio", *{device.group.node for device in system.devices.values()}]
    for node in (*nodes, *(device.node for device in system.devices.values())):
        path = folder / node.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (folder / _BUS).mkdir(parents=True)
    (folder / "sys/bus/pci/drivers/vfio-pci").mkdir(parents=True)
    (folder / "sys/kernel/iommu_groups").mkdir(parents=True)
    (folder / "sys/class/vfio-dev").mkdir(parents=True)
    for device in system.devices.values():
        if device.pci is not None:
            _make_device(device, folder)
    for name, files in debug.items():
        path = folder / "sys/kernel/debug" / name
        path.mkdir(parents=True)
        for file in files:
            (path / file).touch()


def _make_device(device: Device, folder: Path) -> None:
    assert device.pci
    address, config = device.config.name, device.pci.function.config
    number, group = os.path.basename(device.node), device.group.number
    real = folder / f"sys/devices/pci{address[:7]}/{address}"
    (real / "vfio-dev" / number).mkdir(parents=True)
    members = folder / f"sys/kernel/iommu_groups/{group}/devices"
    members.mkdir(parents=True, exist_ok=True)
    for link, target in (
        (folder / _BUS / address, real),
        (folder / "sys/bus/pci/drivers/vfio-pci" / address, real),
        (folder / "sys/class/vfio-dev" / number, real / "vfio-dev" / number),
        (members / address, real),
        (real / "iommu_group", members.parent),
        (real / "driver", folder / "sys/bus/pci/drivers/vfio-pci"),
        (real / "subsystem", folder / "sys/bus/pci"),
        (real / "vfio-dev" / number / "device", real),
    ):
        link.symlink_to(os.path.relpath(target, link.parent))
    words = {
        "vendor": f"0x{config.get(0, 2):04x}",
        "device": f"0x{config.get(2, 2):04x}",
        "class": f"0x{config.get(_CLASS, 4) >> 8:06x}",
        "revision": f"0x{config.get(_CLASS, 1):02x}",
        "subsystem_vendor": f"0x{config.get(_SUBSYSTEM, 2):04x}",
        "subsystem_device": f"0x{config.get(_SUBSYSTEM + 2, 2):04x}",
        "numa_node": "-1",
        "enable": "1",
        "driver_override": "vfio-pci",
        "resource": _resources(device),
    }
    for name, text in words.items():
        (real / name).write_text(f"{text}\n", encoding="ascii")
    header = bytearray(config.read(0, 4096))
    header[COMMAND] |= int(Command.MEMORY)
    (real / "config").write_bytes(header)
    own = device_number(device.node)
    (real / "vfio-dev" / number / "dev").write_text(f"{os.major(own)}:{os.minor(own)}\n", encoding="ascii")
    (members.parent / "type").write_text("DMA\n", encoding="ascii")
    lines = "".join(f"{region}\n" for region in device.config.regions)
    (members.parent / "reserved_regions").write_text(lines, encoding="ascii")


def _resources(device: Device) -> str:
    """First and last address of each BAR and the flags of memory, as sysfs has them; of six BARs and the ROM."""
    assert device.pci
    lines = []
    for index in range(7):
        size = device.pci.function.region(index).size
        first = device.pci.function.config.get(0x10 + 4 * index, 4) & ~0xF if size else 0
        lines.append(f"0x{first:016x} 0x{first + size - 1 if size else 0:016x} 0x{0x40200 if size else 0:016x}")
    return "\n".join(lines)
