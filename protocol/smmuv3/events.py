"""Events (IHI 0070, 7.3): records of four dwords of 64 bits."""

import struct
from enum import IntEnum
from typing import NamedTuple

from wire_layout.registers import BitField, BitFields

__all__ = ["EVENT_SIZE", "Event", "Event0", "Event1", "EventClass", "EventType"]

_EVENT = struct.Struct("<4Q")
EVENT_SIZE = _EVENT.size
_FETCH_MASK, _IPA_MASK = 0xF_FFFF_FFFF_FFF8, 0xF_FFFF_FFFF_F000


class EventType(IntEnum):
    """Types of events."""

    F_UUT = 0x01
    C_BAD_STREAMID = 0x02
    """the StreamID is not in the stream table; recorded with CR2.RECINVSID only"""
    F_STE_FETCH = 0x03
    """the STE, or the first level of the table, cannot be read"""
    C_BAD_STE = 0x04
    F_BAD_ATS_TREQ = 0x05
    """a translation request, where there is no ATS"""
    F_STREAM_DISABLED = 0x06
    """without a SubstreamID, and the STE terminates that; or with 0, which is what those without one use"""
    F_TRANSL_FORBIDDEN = 0x07
    """a translated transaction, where there is no ATS"""
    C_BAD_SUBSTREAMID = 0x08
    F_CD_FETCH = 0x09
    C_BAD_CD = 0x0A
    F_WALK_EABT = 0x0B
    """a descriptor of a table cannot be read"""
    F_TRANSLATION = 0x10
    F_ADDR_SIZE = 0x11
    F_ACCESS = 0x12
    F_PERMISSION = 0x13
    F_TLB_CONFLICT = 0x20
    F_CFG_CONFLICT = 0x21
    E_PAGE_REQUEST = 0x24
    F_VMS_FETCH = 0x25


class EventClass(IntEnum):
    """What the SMMU did when it found the fault."""

    CD = 0
    """it read a CD"""
    TT = 1
    """it read a table of stage 1"""
    IN = 2
    """it translated the input address"""


class Event0(BitFields, width=64):
    """Dword 0."""

    TYPE = BitField(0, 7, values=EventType)
    SSV = BitField(11, doc="SSID counts")
    SSID = BitField(12, 31)
    SID = BitField(32, 63)


class Event1(BitFields, width=64):
    """Dword 1."""

    STAG = BitField(0, 15, doc="with STALL, what RESUME calls the transaction")
    STALL = BitField(31, doc="the transaction waits for RESUME or STALL_TERM")
    PNU = BitField(33, doc="privileged")
    IND = BitField(34, doc="instruction")
    RNW = BitField(35, doc="read")
    S2 = BitField(39, doc="stage 2")
    CLASS = BitField(40, 41, values=EventClass)
    TTRNW = BitField(44, doc="F_PERMISSION of class TT: the table was read")


class Event(NamedTuple):
    """One event, by its fields; those that its type does not have are 0."""

    type: EventType
    sid: int
    ssid: int | None = None
    address: int = 0
    """the input address"""
    is_read: bool = False
    stage_2: bool = False
    kind: EventClass = EventClass.CD
    is_table_read: bool = False
    fetch: int = 0
    """the address that could not be read"""
    ipa: int = 0
    stag: int | None = None
    """of a transaction that is stalled"""

    def pack(self) -> bytes:
        """The record."""
        is_qualified = self.type != EventType.C_BAD_SUBSTREAMID  # which always has one
        ssv = int(self.ssid is not None and is_qualified)
        first = Event0(TYPE=self.type, SID=self.sid, SSV=ssv, SSID=self.ssid or 0)
        second = Event1(RNW=int(self.is_read), S2=int(self.stage_2), CLASS=self.kind, TTRNW=int(self.is_table_read))
        if self.stag is not None:
            second = Event1(second, STALL=1, STAG=self.stag)
        return _EVENT.pack(first, second, self.address, self.fetch & _FETCH_MASK | self.ipa & _IPA_MASK)

    @classmethod
    def unpack(cls, record: bytes | memoryview) -> "Event":
        """The event of a record of :data:`EVENT_SIZE` bytes. Raises ValueError for an unknown type."""
        dword0, dword1, address, last = _EVENT.unpack(record)
        first, second = Event0(dword0), Event1(dword1)
        kind = EventType(first.TYPE)
        fetched = kind in (EventType.F_STE_FETCH, EventType.F_CD_FETCH, EventType.F_WALK_EABT)
        return cls(
            kind,
            first.SID,
            first.SSID if first.SSV or kind is EventType.C_BAD_SUBSTREAMID else None,
            address,
            bool(second.RNW),
            bool(second.S2),
            EventClass(second.CLASS),
            bool(second.TTRNW),
            last if fetched else 0,
            0 if fetched else last,
            second.STAG if second.STALL else None,
        )
