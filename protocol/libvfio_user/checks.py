"""Arguments that the library takes without a look, checked before it gets them. All raise :class:`ArgumentError`."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Sequence

from .errors import ArgumentError
from .raw import CapabilityFlag, Generation, Irq, PciType, Region, RegionFlag

__all__ = [
    "CONFIG_SIZES",
    "MAX_VECTORS",
    "check_areas",
    "check_capability",
    "check_file",
    "check_path",
    "check_region",
    "check_unsigned",
    "check_vectors",
]

CONFIG_SIZES = {
    PciType.CONVENTIONAL: 256,
    PciType.PCI_X_1: 256,
    PciType.PCI_X_2: 4096,
    PciType.EXPRESS: 4096,
}
"""Bytes of configuration space."""

MAX_VECTORS = {Irq.INTX: 1, Irq.MSI: 32, Irq.MSIX: 2048, Irq.ERR: 1, Irq.REQ: 1}
"""By the PCI specification, and 1 for those that VFIO adds."""

_MAX_PATH = 107  # sun_path without its final zero
_HEADER_BYTES = 64
_CAPABILITY_BYTES = {0x01: 8, 0x05: 24, 0x10: 60, 0x11: 12}
"""What the library copies, whatever it is given: power management, MSI, PCI Express, MSI-X."""
_EXTENDED_BYTES = {0x03: 12}
_VENDOR, _EXTENDED_VENDOR = 0x09, 0x0B
_OF_CURRENT = RegionFlag.BITS_64 | RegionFlag.PREFETCH


def check_unsigned(name: str, value: int, bits: int) -> int:
    """C would cut it off silently."""
    if not 0 <= value < 1 << bits:
        raise ArgumentError(f"{name} {value:#x} does not fit into {bits} bits")
    return value


def check_path(path: str | os.PathLike[str]) -> bytes:
    """A path that fits into a socket's address."""
    name = os.fsencode(path)
    if not name or len(name) > _MAX_PATH or b"\0" in name:
        raise ArgumentError(f"the socket's path {os.fsdecode(name)!r} has {len(name)} bytes, not 1 to {_MAX_PATH}")
    return name


def check_region(region: Region, size: int, flags: RegionFlag, generation: Generation) -> None:
    """Size and flags of a region as this generation can have it."""
    name = region.name
    if region is Region.MIGR and generation is Generation.CURRENT:
        raise ArgumentError("region MIGR: this library migrates without a region")
    if flags & _OF_CURRENT and generation is Generation.OF_2022:
        raise ArgumentError(f"region {name}: this library has no {flags & _OF_CURRENT!r}")
    if size < 1:
        raise ArgumentError(f"region {name}: size {size}")
    if generation is Generation.OF_2022 and size > 0xFFFF_FFFF:
        raise ArgumentError(f"region {name}: size {size:#x}, this library cuts it to 32 bits")
    if region <= Region.BAR5:
        least = 16 if flags & RegionFlag.MEM else 4
        if size < least or size & (size - 1):
            raise ArgumentError(f"region {name}: size {size:#x} is no power of two from {least} on")
        if flags & RegionFlag.BITS_64 and region == Region.BAR5:
            raise ArgumentError("region BAR5: a 64-bit BAR needs the next one too")


def check_areas(region: Region, size: int, areas: Sequence[tuple[int, int]]) -> None:
    """Areas ``(offset, size)`` that a client can map: whole pages, within the region, none over another."""
    end = 0
    for offset, length in sorted(areas):
        area = f"region {region.name}: area {offset:#x}+{length:#x}"
        if offset < 0 or length < 1 or offset % mmap.PAGESIZE or length % mmap.PAGESIZE:
            raise ArgumentError(f"{area} is not of whole pages of {mmap.PAGESIZE} bytes")
        if offset + length > size:
            raise ArgumentError(f"{area} ends after the region's {size:#x} bytes")
        if offset < end:
            raise ArgumentError(f"{area} overlaps another")
        end = offset + length


def check_file(region: Region, descriptor: int, offset: int, size: int) -> None:
    """A file that has the bytes which clients map: touching others would end their process."""
    if offset < 0 or offset % mmap.PAGESIZE:
        raise ArgumentError(f"region {region.name}: file offset {offset:#x} is not of whole pages")
    try:
        found = os.fstat(descriptor)
    except OSError as error:
        raise ArgumentError(f"region {region.name}: descriptor {descriptor}: {error.strerror}") from error
    if stat.S_ISREG(found.st_mode) and found.st_size < offset + size:
        raise ArgumentError(
            f"region {region.name}: the file has {found.st_size:#x} bytes, {offset + size:#x} are mapped"
        )


def check_vectors(irq: Irq, count: int) -> None:
    """A number of vectors that the kind of interrupt can have."""
    if not 0 <= count <= MAX_VECTORS[irq]:
        raise ArgumentError(f"{irq.name}: {count} vectors, at most {MAX_VECTORS[irq]} are possible")


def check_capability(data: bytes, position: int, flags: CapabilityFlag, pci_type: PciType) -> None:
    """A capability of the length that the library copies, at a place where it can be.

    Which capabilities the library knows, it says itself.
    """
    is_extended = bool(flags & CapabilityFlag.EXTENDED)
    shortest = 4 if is_extended else 2
    if len(data) < shortest:
        raise ArgumentError(f"a capability of {len(data)} bytes, the header alone has {shortest}")
    number = int.from_bytes(data[:2], "little") if is_extended else data[0]
    expected = (_EXTENDED_BYTES if is_extended else _CAPABILITY_BYTES).get(number)
    if is_extended and number == _EXTENDED_VENDOR:
        expected = (int.from_bytes(data[4:8], "little") >> 20) if len(data) >= 8 else 8
    elif not is_extended and number == _VENDOR:
        expected = max(data[2], 3) if len(data) >= 3 else 3
    if expected is not None and len(data) != expected:
        raise ArgumentError(f"capability {number:#x} has {len(data)} bytes, not {expected}")
    first, last = (256, CONFIG_SIZES[pci_type]) if is_extended else (_HEADER_BYTES, 256)
    if position and (position % 4 or not first <= position <= last - len(data)):
        raise ArgumentError(
            f"capability {number:#x}: position {position:#x} is not within {first:#x} to {last:#x}, or no multiple of 4"
        )
