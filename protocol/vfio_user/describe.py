"""Messages in words, for a log: the fields that a header and a payload declare, by name. Never raises."""

from __future__ import annotations

import enum
import errno
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from wire_layout import Record

from .messages import (
    WRITE_MULTI_DATA_BYTES,
    CapabilityHeader,
    CapabilityId,
    Command,
    DeviceFeature,
    DeviceFlags,
    DmaAccess,
    DmaMap,
    DmaMapFlags,
    DmaUnmap,
    DmaUnmapFlags,
    FeatureFlags,
    GetInfo,
    GetIrqInfo,
    GetRegionInfo,
    GetRegionIoFds,
    Header,
    HeaderFlags,
    IrqIndex,
    IrqInfoFlags,
    MessageType,
    MigrationData,
    RegionAccess,
    RegionFlags,
    RegionIndex,
    SetIrqs,
    SetIrqsFlags,
    SparseArea,
    SparseMmap,
    Version,
    WriteMulti,
    WriteMultiEntry,
)

__all__ = ["fields", "text"]

_MOST_DATA = 32
_MOST_TEXT = 256
_MOST_PARTS = 16
_HEXADECIMAL = frozenset(("address", "cap_offset", "offset", "size"))

_REQUEST: dict[int, type[Record]] = {
    Command.VERSION: Version,
    Command.DMA_MAP: DmaMap,
    Command.DMA_UNMAP: DmaUnmap,
    Command.DEVICE_GET_INFO: GetInfo,
    Command.DEVICE_GET_REGION_INFO: GetRegionInfo,
    Command.DEVICE_GET_REGION_IO_FDS: GetRegionIoFds,
    Command.DEVICE_GET_IRQ_INFO: GetIrqInfo,
    Command.DEVICE_SET_IRQS: SetIrqs,
    Command.REGION_READ: RegionAccess,
    Command.REGION_WRITE: RegionAccess,
    Command.DMA_READ: DmaAccess,
    Command.DMA_WRITE: DmaAccess,
    Command.REGION_WRITE_MULTI: WriteMulti,
    Command.DEVICE_FEATURE: DeviceFeature,
    Command.MIG_DATA_READ: MigrationData,
    Command.MIG_DATA_WRITE: MigrationData,
}
_EMPTY_REPLIES = frozenset((Command.DMA_MAP, Command.DEVICE_SET_IRQS))
_FLAGS: dict[type[Record], type[enum.IntFlag]] = {
    DmaMap: DmaMapFlags,
    DmaUnmap: DmaUnmapFlags,
    GetInfo: DeviceFlags,
    GetRegionInfo: RegionFlags,
    GetIrqInfo: IrqInfoFlags,
    SetIrqs: SetIrqsFlags,
}
_INDEX: dict[type[Record], type[enum.IntEnum]] = {
    GetRegionInfo: RegionIndex,
    GetRegionIoFds: RegionIndex,
    GetIrqInfo: IrqIndex,
    SetIrqs: IrqIndex,
}


def fields(header: Header, payload: bytes, descriptors: int = 0) -> dict[str, Any]:
    """What a message says: ``direction`` request or reply, ``command``, ``id``, and the fields of its payload by name.

    Numbers stay numbers, enumerations and flags become names, data becomes hexadecimal text, shortened.
    """
    is_reply = header.type == MessageType.REPLY
    found: dict[str, Any] = {
        "direction": "reply" if is_reply else "request" if header.type == MessageType.COMMAND else header.type,
        "command": _name(Command, header.command),
        "id": header.id,
    }
    if header.no_reply:
        found["no_reply"] = True
    if descriptors:
        found["descriptors"] = descriptors
    if header.flags & HeaderFlags.ERROR:
        found["error"] = errno.errorcode.get(header.error, header.error)
    record = None if is_reply and header.command in _EMPTY_REPLIES else _REQUEST.get(header.command)
    if record is None or len(payload) < record.SIZE:
        return found | _data(payload)
    return found | _record(record, payload) | dict(_rest(header.command, is_reply, record, payload))


def text(found: Mapping[str, Any]) -> str:
    """One line of what :func:`fields` found."""
    first = " ".join(str(found[name]) for name in ("direction", "id", "command"))
    others = (
        f"{name} {value:#x}" if name in _HEXADECIMAL and isinstance(value, int) else f"{name} {value}"
        for name, value in found.items()
        if name not in ("direction", "id", "command")
    )
    return " ".join((first, *others))


def _record(record: type[Record], payload: bytes) -> dict[str, Any]:
    value = record.unpack(payload)
    found = {field.name: getattr(value, field.name) for field in record.FIELDS}
    if record in _FLAGS:
        found["flags"] = _flags(_FLAGS[record], found["flags"])
    elif record is DeviceFeature:
        found |= {"feature": found["flags"] & 0xFFFF, "flags": _flags(FeatureFlags, found["flags"] & ~0xFFFF)}
    if record in _INDEX:
        found["index"] = _name(_INDEX[record], found["index"])
    if record is RegionAccess:
        found["region"] = _name(RegionIndex, found["region"])
    return found


def _rest(command: int, is_reply: bool, record: type[Record], payload: bytes) -> Iterator[tuple[str, Any]]:
    """What follows the record."""
    rest = payload[record.SIZE :]
    if command == Command.VERSION and rest:
        yield "capabilities", _printable(rest[:_MOST_TEXT].rstrip(b"\0"))
    elif command == Command.REGION_WRITE_MULTI and not is_reply:
        yield "writes", list(_writes(rest))
    elif command == Command.DEVICE_GET_REGION_INFO and is_reply and rest:
        yield "areas", list(_areas(rest))
    else:
        yield from _data(rest).items()


def _writes(rest: bytes) -> Iterator[str]:
    for offset in _places(rest, WriteMultiEntry):
        entry = WriteMultiEntry.unpack(rest, offset)
        data = entry.data[: min(entry.count, WRITE_MULTI_DATA_BYTES)].hex()
        yield f"{_name(RegionIndex, entry.region)} {entry.offset:#x}+{entry.count} {data}"


def _areas(rest: bytes) -> Iterator[str]:
    """The areas of the only capability that there is."""
    try:
        capability = CapabilityHeader.unpack(rest)
    except struct.error:
        return
    if capability.id == CapabilityId.SPARSE_MMAP:
        rest = rest[CapabilityHeader.SIZE + SparseMmap.SIZE :]
        for offset in _places(rest, SparseArea):
            area = SparseArea.unpack(rest, offset)
            yield f"{area.offset:#x}+{area.size:#x}"


def _places(rest: bytes, record: type[Record]) -> range:
    """Where records begin, as many as are shown."""
    return range(0, min(len(rest) // record.SIZE, _MOST_PARTS) * record.SIZE, record.SIZE)


def _data(data: bytes) -> dict[str, str]:
    if not data:
        return {}
    return {"data": data[:_MOST_DATA].hex() + ("..." if len(data) > _MOST_DATA else "")}


def _printable(data: bytes) -> str:
    """Text from a peer, which must not begin a new line of the log."""
    return data.decode("latin-1").encode("unicode_escape").decode()


def _name(kind: type[enum.IntEnum], value: int) -> str | int:
    try:
        return kind(value).name
    except ValueError:
        return value


def _flags(kind: type[enum.IntFlag], value: int) -> str:
    """The names of known bits and the number of unknown ones, joined by ``|``; ``0`` if none is set."""
    names = [bit.name or "" for bit in kind if value & bit]
    unknown = value & ~sum(kind)
    return "|".join([*names, f"{unknown:#x}"] if unknown else names) or "0"
