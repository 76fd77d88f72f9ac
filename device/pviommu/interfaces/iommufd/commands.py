"""The requests of iommufd as data: number, structure, how much of it a caller must bring, what must be zero.

What all of them have in common is carried out here, once, from this table: see :func:`read`.
"""

from __future__ import annotations

import errno
import re
from functools import cached_property
from typing import NamedTuple

from wire_layout import U32, Record

from . import structures as s
from .request_error import RequestError
from .user_memory import UserMemory, read_structure

__all__ = ["BASE", "COMMANDS", "LIMIT", "Command", "read", "request"]

BASE = 0x80
"""Number of the first request; those of VFIO are below."""


def request(number: int) -> int:
    """What ioctl() takes for the request of this number: ``_IO(';', number)``."""
    return ord(";") << 8 | number


class _Row(NamedTuple):
    number: int
    record: type[Record]
    last: str
    flags: int | None = None
    reserved: tuple[str, ...] = ()


class Command(_Row):
    """One request.

    ``last`` is the last field that a caller must bring; ``flags`` are those that are known, if others are refused
    before anything else is looked at; the fields in ``reserved`` must be 0.
    """

    @cached_property
    def request(self) -> int:
        """What ioctl() takes."""
        return request(self.number)

    @cached_property
    def name(self) -> str:
        """Of what carries it out, as in ``ioas_map``."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", self.record.__name__).lower()

    @cached_property
    def method(self) -> str:
        """Of an open /dev/iommu, which carries it out."""
        return f"_do_{self.name}"

    @cached_property
    def creates(self) -> str | None:
        """The field with the id of a new object."""
        return next((field.name for field in self.record.FIELDS if re.fullmatch("out_.*_id", field.name)), None)

    @cached_property
    def opens(self) -> str | None:
        """The field with the descriptor of a new file."""
        return next((field.name for field in self.record.FIELDS if re.fullmatch("out_.*_fd", field.name)), None)

    @cached_property
    def minimum(self) -> int:
        """Bytes that a caller must bring."""
        field = self.record.field_named(self.last)
        return field.offset + field.size


_MAP_FLAGS = int(s.MapFlag.FIXED_IOVA | s.MapFlag.WRITEABLE | s.MapFlag.READABLE)

COMMANDS = {
    command.number: command
    for command in (
        Command(0x80, s.Destroy, "id"),
        Command(0x81, s.IoasAlloc, "out_ioas_id", 0),
        Command(0x82, s.IoasAllowIovas, "allowed_iovas", None, ("reserved",)),
        Command(0x83, s.IoasCopy, "src_iova", _MAP_FLAGS),
        Command(0x84, s.IoasIovaRanges, "out_iova_alignment", None, ("reserved",)),
        Command(0x85, s.IoasMap, "iova", _MAP_FLAGS, ("reserved",)),
        Command(0x86, s.IoasUnmap, "length"),
        Command(0x87, s.Option, "val64", None, ("reserved",)),
        Command(0x88, s.VfioIoas, "reserved", None, ("reserved",)),
        Command(0x89, s.HwptAlloc, "reserved", None, ("reserved",)),
        Command(0x8A, s.GetHwInfo, "reserved", int(s.HwInfoFlag.INPUT_TYPE), ("reserved",)),
        Command(0x8B, s.HwptSetDirtyTracking, "reserved", int(s.DirtyTrackingFlag.ENABLE)),
        Command(0x8C, s.HwptGetDirtyBitmap, "data", int(s.DirtyBitmapFlag.NO_CLEAR), ("reserved",)),
        Command(0x8D, s.HwptInvalidate, "reserved"),
        Command(0x8E, s.FaultQueueAlloc, "out_fault_fd", 0),
        Command(0x8F, s.IoasMapFile, "iova", _MAP_FLAGS),
        Command(0x90, s.ViommuAlloc, "out_viommu_id", 0),
        Command(0x91, s.VdeviceAlloc, "virt_id"),
        Command(0x92, s.IoasChangeProcess, "reserved", None, ("reserved",)),
        Command(0x93, s.VeventqAlloc, "out_veventq_fd", 0, ("reserved",)),
        Command(0x94, s.HwQueueAlloc, "length", 0),
        Command(0x95, s.IoasNoiommuGetPa, "out_phys"),
    )
}
"""By number."""
LIMIT = max(COMMANDS) + 1


def read(command: Command, memory: UserMemory, argument: int) -> tuple[Record, int]:
    """The structure at an address of the caller, and its size as the caller has it.

    Raises OSError: EFAULT for memory that is not there, EINVAL for less than must be brought, E2BIG for bytes behind
    our structure that are not 0, EOPNOTSUPP for flags that are not known and reserved fields that are not 0. What the
    caller left out is 0.
    """
    size = int.from_bytes(memory.read(argument, U32.size), "little")
    if size < command.minimum:
        raise RequestError(errno.EINVAL, f"{command.name}: size {size}: at least {command.minimum} bytes are needed")
    record = command.record.unpack(read_structure(memory, argument, size, command.record.SIZE))
    if command.flags is not None and (flags := getattr(record, "flags", 0)) & ~command.flags:
        raise RequestError(errno.EOPNOTSUPP, f"{command.name}: flags {flags:#x}: known are {command.flags:#x}")
    for name in command.reserved:
        value = getattr(record, name)
        if any(value) if isinstance(value, bytes) else value:
            raise RequestError(errno.EOPNOTSUPP, f"{command.name}: {name} is {value!r}, and must be 0")
    return record, size
