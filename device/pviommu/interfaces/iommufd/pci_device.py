"""What vfio-pci lets a program do with a PCI function: regions, interrupts, resets.

As drivers/vfio/pci of Linux 7.3. Each region is at its index, 40 bits to the left, in the file of the device.
"""

from __future__ import annotations

import errno
import struct
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from vfio_user import (
    DeviceFlags,
    IrqAction,
    IrqIndex,
    IrqInfoFlags,
    IrqKind,
    IrqRequest,
    Region,
    RegionFlags,
    RegionIndex,
    Steps,
)
from vfio_user.foreign import is_eventfd
from vfio_user.framing import close_fds
from vfio_user.messages import SetIrqsFlags

from ...engine import PAGE_MASK
from ...pci.config_space import CAPABILITIES_POINTER, COMMAND, Command
from ...pci.function import PciFunction
from . import vfio_arguments as arguments
from . import vfio_structures as v
from .request_error import RequestError
from .user_memory import UserMemory

if TYPE_CHECKING:
    from .process import Process

__all__ = ["OFFSET_SHIFT", "Mappable", "PciDevice", "Piece"]

OFFSET_SHIFT = 40
"""A region begins at its index shifted by this."""
_REGIONS, _IRQS = 9, 5
_MAX_32 = (1 << 32) - 1
_DATA = SetIrqsFlags.DATA_NONE | SetIrqsFlags.DATA_BOOL | SetIrqsFlags.DATA_EVENTFD
_ACTIONS = SetIrqsFlags.ACTION_MASK | SetIrqsFlags.ACTION_UNMASK | SetIrqsFlags.ACTION_TRIGGER
_SINGLE = (IrqIndex.ERR, IrqIndex.REQ)
_MSIX, _MSIX_ENABLE, _MSIX_ENTRY = 0x11, 0x80, 16
_DEPENDENT = struct.Struct("<IHBB")
_WIDTHS = (4, 2, 1)
_ALL_FLAGS = _MAX_32


class Piece(NamedTuple):
    """Bytes of a device's file that a program maps."""

    fd: int | None
    """The file that they are; None: they are registers, and whoever maps them carries each access out by read() or
    write()."""
    place: int
    """Of the first one, in that file."""
    size: int
    """How many, at least 1."""


class Mappable(Enum):
    """What of BARs programs can map."""

    NOTHING = "nothing"
    SHARED = "what is shared memory"
    EVERYTHING = "registers too: who touches such a page is caught at it"


class PciDevice:
    """A function, and who has its file open: from the first to the last, it is one program's."""

    mappable: Mappable
    """What of BARs programs can map."""

    def __init__(self, function: PciFunction, address: int) -> None:
        """``address``: where its bus finds it, segment, bus, device and function as one number."""
        self.function = function
        self.address = address
        self.mappable = Mappable.SHARED
        self._opened = 0
        self._has_msix = False
        """whether the program has set MSI-X up"""
        self._msix_at, self._table = self._find_msix()

    def _find_msix(self) -> tuple[int, tuple[int, int, int]]:
        """Offset of the capability; BAR, start and end of the table. 0 and nothing without it."""
        at = self.function.config.get(CAPABILITIES_POINTER, 1)
        while at and self.function.config.get(at, 1) != _MSIX:
            at = self.function.config.get(at + 1, 1)
        if not at:
            return 0, (-1, 0, 0)
        place = self.function.config.get(at + 4, 4)
        vectors = (self.function.config.get(at + 2, 2) & 0x7FF) + 1
        return at, (place & 7, place & ~7, (place & ~7) + vectors * _MSIX_ENTRY)

    # -- open and closed --------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Another file of it is open. With the first, memory decoding is on, and bus mastering is off."""
        self._opened += 1
        if self._opened == 1:
            self.function.config.write(COMMAND, int(Command.MEMORY).to_bytes(2, "little"))

    def close(self) -> None:
        """A file of it is closed. After the last one it is as at power-on, and raises no interrupt."""
        self._opened -= 1
        if not self._opened:
            self._has_msix = False
            bars = self._bars()
            self.function.disconnected()
            self.function.region_write(RegionIndex.CONFIG, 0x10, bars)
            self.function.settle()

    def _bars(self) -> bytes:
        return self.function.config.read(0x10, 24)

    # -- regions ----------------------------------------------------------------------------------------------------

    def _place(self, offset: int) -> tuple[int, int, Region]:
        """Index, offset and kind of the region at an offset. Raises OSError (EINVAL) where there is none."""
        index, at = offset >> OFFSET_SHIFT, offset & (1 << OFFSET_SHIFT) - 1
        if not 0 <= index < _REGIONS:
            raise RequestError(errno.EINVAL, f"{self.function.name}: offset {offset:#x}: there are {_REGIONS} regions")
        return index, at, self.function.region(index)

    def _reach(self, offset: int, count: int) -> tuple[int, int, int]:
        """Index, offset into the region, and how many bytes are reached. Raises OSError: EINVAL where there is nothing,
        EFAULT past the end of configuration space, EIO for a BAR while memory decoding is off.
        """
        index, at, region = self._place(offset)
        if index == RegionIndex.CONFIG:
            if at + count > region.size:
                raise RequestError(errno.EFAULT, f"{self.function.name}: config space has no {at:#x}+{count}")
        elif at >= region.size:
            raise RequestError(errno.EINVAL, f"{self.function.name}: region {index} has no {at:#x}")
        elif not self.function.config.get(COMMAND, 2) & Command.MEMORY:
            raise RequestError(errno.EIO, f"{self.function.name}: region {index}: memory decoding is off")
        return index, at, min(count, region.size - at)

    def read(self, offset: int, count: int) -> bytes:
        """Bytes at an offset of the device's file; fewer at the end of a BAR. Raises OSError as above."""
        index, at, count = self._reach(offset, count)
        if index == RegionIndex.CONFIG:
            found = bytearray(self.function.region_read(index, at, count)) if count else bytearray()
            enable = self._msix_at + 3 - at
            if self._has_msix and 0 <= enable < count:
                found[enable] |= _MSIX_ENABLE
            return bytes(found)
        return b"".join(
            b"\xff" * size if self._is_table(index, place) else self.function.region_read(index, place, size)
            for place, size in self._accesses(index, at, count)
        )

    def write(self, offset: int, data: bytes) -> tuple[int, Steps]:
        """Write at an offset of the device's file: how many bytes that are, and the steps that it takes; the reply
        waits for the last of them. Raises OSError as above.
        """
        index, at, count = self._reach(offset, len(data))
        return count, self._write(index, at, data[:count])

    def _write(self, index: int, at: int, data: bytes) -> Steps:
        if index == RegionIndex.CONFIG:
            if data:
                self._write_config(at, bytearray(data))
            return
        for place, size in self._accesses(index, at, len(data)):
            if not self._is_table(index, place):
                steps = self.function.region_write(index, place, data[place - at : place - at + size])
                if steps is not None:
                    yield from steps

    def _write_config(self, at: int, data: bytearray) -> None:
        """MSI-X is set up by DEVICE_SET_IRQS, and a reset of the function leaves the header as it was."""
        for place in range(self._msix_at + 2, self._msix_at + 4) if self._msix_at else ():
            if 0 <= place - at < len(data):
                data[place - at] = self.function.config.get(place, 1)
        before, bars = self.function.config.get(COMMAND, 2), self._bars()
        self.function.region_write(RegionIndex.CONFIG, at, bytes(data))
        writes_command = at < COMMAND + 2 and at + len(data) > COMMAND
        if not writes_command and self.function.config.get(COMMAND, 2) != before:
            self._restore(before, bars)

    def _accesses(self, index: int, at: int, count: int) -> list[tuple[int, int]]:
        """(offset, bytes) of the accesses that are made of one: aligned, and of 4 bytes at most, as all registers take
        them."""
        if self.function.bars[index].is_memory:
            return [(at, count)]
        found: list[tuple[int, int]] = []
        end = at + count
        while at < end:
            size = next(size for size in _WIDTHS if at % size == 0 and at + size <= end)
            found.append((at, size))
            at += size
        return found

    def _is_table(self, index: int, at: int) -> bool:
        """Whether it is the table of MSI-X, which is the kernel's."""
        bar, start, end = self._table
        return index == bar and start <= at < end

    def mapped(self, offset: int, length: int) -> Piece:
        """What so many bytes at an offset of the device's file are, or the first of them. Raises OSError (EINVAL)
        unless all of them can be mapped. A page that is mapped may go on behind the end of a BAR.
        """
        index, at, region = self._place(offset)
        size, is_shared = region.size, self._flags(region) & RegionFlags.MMAP and region.fd is not None
        if self._maps_registers(index, region):
            size = size + PAGE_MASK & ~PAGE_MASK
        elif not is_shared:
            size = 0
        if not 0 < length <= size - at:
            raise RequestError(
                errno.EINVAL, f"{self.function.name}: region {index}: {at:#x}+{length:#x} cannot be mapped"
            )
        if self.mappable is not Mappable.EVERYTHING:
            return Piece(region.fd, region.file_offset + at, length)
        for first, count in sorted(region.areas or ((0, region.size),)) if is_shared else ():
            if at < first:
                return Piece(None, 0, min(length, first - at))
            if at < first + count:
                return Piece(region.fd, region.file_offset + at, min(length, first + count - at))
        return Piece(None, 0, length)

    def _flags(self, region: Region) -> RegionFlags:
        return region.flags & ~RegionFlags.MMAP if self.mappable is Mappable.NOTHING else region.flags

    def _maps_registers(self, index: int, region: Region) -> bool:
        return self.mappable is Mappable.EVERYTHING and index <= RegionIndex.BAR5 and bool(region.size)

    # -- requests ---------------------------------------------------------------------------------------------------

    def ioctl(self, process: Process, request: int, argument: int, dependent: tuple[int, v.HotResetFlag]) -> int:
        """Carry out a request. ``dependent``: the id by which a reset of the bus names the device, and its kind.

        Raises OSError: ENOTTY for a request that devices do not have, and what they say.
        """
        memory = process.user
        if request == v.VfioRequest.DEVICE_GET_INFO:
            minimum = v.DeviceInfo.offset_of("cap_offset")
            asked = arguments.read(v.DeviceInfo, memory, argument, _ALL_FLAGS, minimum)
            info = v.DeviceInfo(asked.argsz, DeviceFlags.RESET | DeviceFlags.PCI, _REGIONS, _IRQS, 0, 0)
            memory.write(argument, info.pack()[: asked.argsz])
        elif request == v.VfioRequest.DEVICE_GET_REGION_INFO:
            region = arguments.read(v.RegionInfo, memory, argument, _ALL_FLAGS)
            memory.write(argument, self._region_info(region))
        elif request == v.VfioRequest.DEVICE_GET_IRQ_INFO:
            irq = arguments.read(v.IrqInfo, memory, argument, _ALL_FLAGS)
            memory.write(argument, self._irq_info(irq).pack())
        elif request == v.VfioRequest.DEVICE_SET_IRQS:
            self._set_irqs(process, argument)
        elif request == v.VfioRequest.DEVICE_RESET:
            self.reset()
        elif request == v.VfioRequest.DEVICE_GET_PCI_HOT_RESET_INFO:
            self._hot_reset_info(process, argument, *dependent)
        elif request == v.VfioRequest.DEVICE_FEATURE:
            self._feature(process, argument)
        else:
            raise RequestError(errno.ENOTTY, f"request {request:#x} of {self.function.name}: devices have none such")
        self.function.settle()
        return 0

    def reset(self) -> None:
        """The function is as at power-on, but for its header and its interrupts."""
        before, bars = self.function.config.get(COMMAND, 2), self._bars()
        self.function.reset()
        self._restore(before, bars)
        self.function.settle()

    def _restore(self, command: int, bars: bytes) -> None:
        """The header after a reset is that before it."""
        self.function.region_write(RegionIndex.CONFIG, 0x10, bars)
        self.function.region_write(RegionIndex.CONFIG, COMMAND, command.to_bytes(2, "little"))

    def _region_info(self, asked: v.RegionInfo) -> bytes:
        if asked.index >= _REGIONS or asked.index == RegionIndex.VGA:
            raise RequestError(errno.EINVAL, f"region {asked.index} of {self.function.name}: there is none")
        region, offset = self.function.region(asked.index), asked.index << OFFSET_SHIFT
        flags = self._flags(region)
        capability: arguments.Capability | None = None
        if self._maps_registers(asked.index, region):
            flags = flags & ~RegionFlags.CAPS | RegionFlags.MMAP
            if asked.index == self._table[0]:
                capability = v.RegionCapabilityId.MSIX_MAPPABLE, b""
        elif flags & RegionFlags.MMAP:
            areas = [v.SparseArea(*area) for area in region.areas or ((0, region.size),)]
            body = v.SparseMmapCapability(len(areas), 0).pack() + b"".join(area.pack() for area in areas)
            capability = v.RegionCapabilityId.SPARSE_MMAP, body
        if capability is None:
            return v.RegionInfo(asked.argsz, flags, asked.index, 0, region.size, offset).pack()
        return arguments.with_chain(
            asked.argsz,
            [capability],
            v.RegionInfo.SIZE,
            lambda argsz, chain: v.RegionInfo(argsz, flags | RegionFlags.CAPS, asked.index, chain, region.size, offset),
        )

    def _irq_info(self, asked: v.IrqInfo) -> v.IrqInfo:
        if asked.index >= _IRQS:
            raise RequestError(errno.EINVAL, f"interrupt index {asked.index} of {self.function.name}: there is none")
        flags = IrqInfoFlags.EVENTFD
        if asked.index == IrqIndex.INTX:
            flags |= IrqInfoFlags.MASKABLE | IrqInfoFlags.AUTOMASKED
        elif asked.index != IrqIndex.MSIX:
            flags |= IrqInfoFlags.NORESIZE
        return v.IrqInfo(asked.argsz, flags, asked.index, self.function.irq(asked.index).count)

    # -- interrupts -------------------------------------------------------------------------------------------------

    def _set_irqs(self, process: Process, argument: int) -> None:
        asked = arguments.read(v.IrqSetHeader, process.user, argument, _DATA | _ACTIONS)
        what = f"{self.function.name}: interrupts {asked.start}+{asked.count} of index {asked.index}"
        if asked.index >= _IRQS or asked.count >= _MAX_32 - asked.start:
            raise RequestError(errno.EINVAL, f"{what}: there are {_IRQS} indexes")
        there_are = self.function.irq(asked.index).count
        if asked.start >= there_are or asked.start + asked.count > there_are:
            raise RequestError(errno.EINVAL, f"{what}: it has {there_are}")
        kind = asked.flags & _DATA
        size = {SetIrqsFlags.DATA_NONE: 0, SetIrqsFlags.DATA_BOOL: 1, SetIrqsFlags.DATA_EVENTFD: 4}.get(kind)
        if size is None or asked.argsz - v.IrqSetHeader.SIZE < asked.count * size:
            raise RequestError(errno.EINVAL, f"{what}: flags {asked.flags:#x}, argsz {asked.argsz}")
        data = b""
        if asked.count * size:
            process.system.places.interrupt()
            data = process.user.read(argument + v.IrqSetHeader.SIZE, asked.count * size)
        if asked.flags & _ACTIONS != SetIrqsFlags.ACTION_TRIGGER:
            raise RequestError(errno.ENOTTY, f"{what}: flags {asked.flags:#x}: none of them can be masked")
        if asked.index in _SINGLE:
            self._set_single(process, asked, data, what)
        else:
            self._set_msix(process, asked, data, what)

    def _set_single(self, process: Process, asked: v.IrqSetHeader, data: bytes, what: str) -> None:
        """Of errors, or of requests to give the device back: at most one eventfd each."""
        kind, table = asked.flags & _DATA, self.function.interrupts
        is_armed = table.armed(asked.index, 0)
        if (kind == SetIrqsFlags.DATA_NONE and not is_armed) or (kind != SetIrqsFlags.DATA_NONE and not asked.count):
            raise RequestError(errno.EINVAL, f"{what}: no eventfd is there, or none is given")
        if kind == SetIrqsFlags.DATA_EVENTFD:
            self._install(process, asked, data, what)
        elif kind == SetIrqsFlags.DATA_NONE and not asked.count:
            table.set_irqs(IrqRequest(asked.index, 0, 0, IrqAction.TRIGGER, IrqKind.NONE))
        elif kind == SetIrqsFlags.DATA_NONE or data[0]:
            table.trigger(asked.index, 0)

    def _set_msix(self, process: Process, asked: v.IrqSetHeader, data: bytes, what: str) -> None:
        kind, table = asked.flags & _DATA, self.function.interrupts
        if kind == SetIrqsFlags.DATA_EVENTFD:
            if not self._has_msix and not asked.start + asked.count:
                raise RequestError(errno.ERANGE, f"{what}: no vector is asked for")
            self._install(process, asked, data, what)
            self._has_msix = True
        elif not self._has_msix:
            raise RequestError(errno.EINVAL, f"{what}: MSI-X is not set up")
        elif kind == SetIrqsFlags.DATA_NONE and not asked.count:
            table.set_irqs(IrqRequest(asked.index, 0, 0, IrqAction.TRIGGER, IrqKind.NONE))
            self._has_msix = False
        else:
            for position in range(asked.count):
                if kind == SetIrqsFlags.DATA_NONE or data[position]:
                    table.trigger(asked.index, asked.start + position)

    def _install(self, process: Process, asked: v.IrqSetHeader, data: bytes, what: str) -> None:
        """Give vectors their eventfds, or take them away where the descriptor is negative. Raises OSError, EBADF or
        EINVAL, for what is none, and then these vectors of MSI-X have none.
        """
        numbers = struct.unpack(f"<{asked.count}i", data)
        given: list[int] = []
        try:
            for number in numbers:
                given += [process.duplicate(number) if number >= 0 else -1]
            if not all(fd < 0 or is_eventfd(fd) for fd in given):
                raise RequestError(errno.EINVAL, f"{what}: not every descriptor is an eventfd")
        except BaseException as error:
            close_fds([fd for fd in given if fd >= 0])
            if isinstance(error, RequestError) and asked.index == IrqIndex.MSIX:
                for vector in range(asked.start, asked.start + asked.count):
                    self._set_vector(asked.index, vector, -1)
            raise
        for vector, fd in enumerate(given, asked.start):
            self._set_vector(asked.index, vector, fd)

    def _set_vector(self, index: int, vector: int, fd: int) -> None:
        fds = (fd,) if fd >= 0 else ()
        self.function.set_irqs(IrqRequest(index, vector, 1, IrqAction.TRIGGER, IrqKind.EVENTFD, fds))

    # -- the rest ---------------------------------------------------------------------------------------------------

    def _hot_reset_info(self, process: Process, argument: int, number: int, flags: v.HotResetFlag) -> None:
        """Each device is alone on its bus."""
        asked = arguments.read(v.HotResetHeader, process.user, argument, _ALL_FLAGS)
        if asked.argsz - v.HotResetHeader.SIZE < _DEPENDENT.size:
            process.user.write(argument, v.HotResetHeader(asked.argsz, 0, 1).pack())
            raise RequestError(errno.ENOSPC, f"hot reset of {self.function.name}: argsz {asked.argsz}: for no device")
        address = self.address
        device = _DEPENDENT.pack(number, address >> 16, address >> 8 & 0xFF, address & 0xFF)
        process.user.write(argument, v.HotResetHeader(asked.argsz, flags, 1).pack() + device)

    def groups_of_reset(self, memory: UserMemory, argument: int, *, named: bool) -> list[int]:
        """The descriptors of groups that a request to reset the bus shows. ``named``: whether it must show some, or
        none. Raises OSError: EINVAL for the wrong number of them, or flags; EFAULT.
        """
        asked = arguments.read(v.HotResetHeader, memory, argument, 0)
        if bool(asked.count) != named or asked.count > 1:
            rule = "the group of each device on the bus, which is one" if named else "no groups for a device's own file"
            raise RequestError(errno.EINVAL, f"reset of the bus of {self.function.name}: {asked.count}: {rule}")
        data = memory.read(argument + v.HotResetHeader.SIZE, 4 * asked.count)
        return [fd for (fd,) in struct.iter_unpack("<i", data)]

    def _feature(self, process: Process, argument: int) -> None:
        """There are none: neither tokens, nor low power, nor migration."""
        every = 0xFFFF | v.FeatureFlag.GET | v.FeatureFlag.SET | v.FeatureFlag.PROBE
        asked = arguments.read(v.DeviceFeature, process.user, argument, int(every))
        how = v.FeatureFlag(asked.flags & ~0xFFFF)
        if how & (v.FeatureFlag.GET | v.FeatureFlag.SET) == v.FeatureFlag.GET | v.FeatureFlag.SET and (
            not how & v.FeatureFlag.PROBE
        ):
            raise RequestError(errno.EINVAL, f"feature {asked.flags & 0xFFFF}: it is both read and set")
        raise RequestError(errno.ENOTTY, f"feature {asked.flags & 0xFFFF} of {self.function.name}: it has none")
