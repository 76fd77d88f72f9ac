"""Page requests (IHI 0070, chapter 8): records of two dwords of 64 bits in the PRI queue."""

import struct
from typing import NamedTuple, Self

from wire_layout.registers import BitField, BitFields

__all__ = ["PAGE_REQUEST_SIZE", "PageRequest", "PageRequest0", "PageRequest1"]

_RECORD = struct.Struct("<QQ")
PAGE_REQUEST_SIZE = _RECORD.size


class PageRequest0(BitFields, width=64):
    """Dword 0."""

    SID = BitField(0, 31)
    SSID = BitField(32, 51)
    PRIV = BitField(58, doc="privileged")
    EXEC = BitField(59, doc="to execute")
    READ = BitField(60)
    WRITE = BitField(61)
    LAST = BitField(62, doc="of its group: software answers it now")
    SSV = BitField(63, doc="SSID counts")


class PageRequest1(BitFields, width=64):
    """Dword 1."""

    PRGINDEX = BitField(0, 8, doc="its group, by which PRI_RESP answers")
    ADDR = BitField(12, 63)


class PageRequest(NamedTuple):
    """One page that an endpoint asks for."""

    sid: int
    ssid: int | None
    address: int
    """of the page"""
    group: int
    """its number, by which it is answered"""
    reads: bool
    writes: bool
    is_last: bool
    """whether it is the last one of its group"""

    def pack(self) -> bytes:
        """The record. Raises ValueError for what does not fit its field."""
        asks = {"READ": int(self.reads), "WRITE": int(self.writes), "LAST": int(self.is_last)}
        first = PageRequest0(SID=self.sid, SSID=self.ssid or 0, SSV=int(self.ssid is not None), **asks)
        return _RECORD.pack(first, PageRequest1(PRGINDEX=self.group, ADDR=self.address >> 12))

    @classmethod
    def unpack(cls, record: bytes | memoryview) -> Self:
        """The page request of a record of :data:`PAGE_REQUEST_SIZE` bytes."""
        dword0, dword1 = _RECORD.unpack(record)
        first, second = PageRequest0(dword0), PageRequest1(dword1)
        flags = bool(first.READ), bool(first.WRITE), bool(first.LAST)
        return cls(first.SID, first.SSID if first.SSV else None, second.ADDR << 12, second.PRGINDEX, *flags)
