"""Commands (IHI 0070, chapter 4): two dwords of 64 bits each, of which the low byte of the first is the opcode."""

import struct
from enum import IntEnum

from wire_layout.registers import BitField, BitFields

__all__ = [
    "ALL_ADDRESSES",
    "ALL_STREAMS",
    "COMMAND",
    "COMMAND_SIZE",
    "AtcInv1",
    "Cfgi0",
    "Cfgi1",
    "CfgiRange1",
    "Completion",
    "Opcode",
    "PriResp1",
    "PriResponse",
    "Resume0",
    "Resume1",
    "Sync0",
    "Sync1",
    "Tlbi0",
    "Tlbi1",
    "atc_inv",
    "cfgi",
    "pri_resp",
    "resume",
    "stall_term",
    "sync",
    "tlbi",
]

COMMAND = struct.Struct("<QQ")
COMMAND_SIZE = COMMAND.size
ALL_STREAMS = 31
"""CFGI_STE_RANGE with this range is CFGI_ALL."""
ALL_ADDRESSES = 52
"""ATC_INV of this size is of everything."""


class Opcode(IntEnum):
    """Opcodes; those of Secure and Realm state are missing."""

    PREFETCH_CFG = 0x01
    PREFETCH_ADDR = 0x02
    CFGI_STE = 0x03
    CFGI_STE_RANGE = 0x04
    CFGI_CD = 0x05
    CFGI_CD_ALL = 0x06
    CFGI_VMS_PIDM = 0x07
    TLBI_NH_ALL = 0x10
    TLBI_NH_ASID = 0x11
    TLBI_NH_VA = 0x12
    TLBI_NH_VAA = 0x13
    TLBI_EL3_ALL = 0x18
    TLBI_EL3_VA = 0x1A
    TLBI_EL2_ALL = 0x20
    TLBI_EL2_ASID = 0x21
    TLBI_EL2_VA = 0x22
    TLBI_EL2_VAA = 0x23
    TLBI_S12_VMALL = 0x28
    TLBI_S2_IPA = 0x2A
    TLBI_NSNH_ALL = 0x30
    ATC_INV = 0x40
    PRI_RESP = 0x41
    RESUME = 0x44
    STALL_TERM = 0x45
    SYNC = 0x46


class Completion(IntEnum):
    """Values of CMD_SYNC's CS: how its completion is told."""

    NONE = 0
    IRQ = 1
    SEV = 2


class PriResponse(IntEnum):
    """Values of PRI_RESP's RESP; 3 is illegal."""

    FAILURE = 0
    """for good: page requests are not possible"""
    INVALID = 1
    """a page is not there, or does not allow what was asked for"""
    SUCCESS = 2


class Cfgi0(BitFields, width=64):
    """Dword 0 of CFGI_*, PREFETCH_*, ATC_INV and PRI_RESP."""

    OPCODE = BitField(0, 7, values=Opcode)
    GLOBAL = BitField(9, doc="ATC_INV with SSV: of every SubstreamID")
    SSEC = BitField(10, doc="Secure stream; illegal here")
    SSV = BitField(11, doc="SSID counts")
    SSID = BitField(12, 31)
    SID = BitField(32, 63)


class Cfgi1(BitFields, width=64):
    """Dword 1 of CFGI_STE and CFGI_CD."""

    LEAF = BitField(0, doc="the first level has not changed")


class CfgiRange1(BitFields, width=64):
    """Dword 1 of CFGI_STE_RANGE."""

    RANGE = BitField(0, 4, doc="2 ** (RANGE + 1) streams, aligned to that; ALL_STREAMS: all")


class AtcInv1(BitFields, width=64):
    """Dword 1 of ATC_INV."""

    SIZE = BitField(0, 5, doc="2 ** SIZE pages of 4 KiB, aligned to that; ALL_ADDRESSES: all")
    ADDR = BitField(12, 63)


class PriResp1(BitFields, width=64):
    """Dword 1 of PRI_RESP."""

    PRGINDEX = BitField(0, 8, doc="of the page requests that are answered")
    RESP = BitField(12, 13, values=PriResponse)


class Tlbi0(BitFields, width=64):
    """Dword 0 of TLBI_*."""

    OPCODE = BitField(0, 7, values=Opcode)
    NUM = BitField(12, 16)
    SCALE = BitField(20, 24)
    VMID = BitField(32, 47)
    ASID = BitField(48, 63)


class Tlbi1(BitFields, width=64):
    """Dword 1 of TLBI_* with an address. With TG, (NUM + 1) * 2 ** SCALE pages of 2 ** (2 * TG + 10) bytes from there
    on; without, what translates that address."""

    LEAF = BitField(0)
    TTL = BitField(8, 9, doc="with TG, the level of the leaves; 0: any")
    TG = BitField(10, 11, doc="1 4 KiB, 2 16 KiB, 3 64 KiB")
    ADDR = BitField(12, 63)


class Resume0(BitFields, width=64):
    """Dword 0 of RESUME, and of STALL_TERM but for AC and AB."""

    OPCODE = BitField(0, 7, values=Opcode)
    SSEC = BitField(10, doc="Secure stream; illegal here")
    AC = BitField(12, doc="1 the transaction is tried again, 0 it is terminated")
    AB = BitField(13, doc="terminated, it is aborted; so it is in any case here (IDR0.TERM_MODEL)")
    SID = BitField(32, 63)


class Resume1(BitFields, width=64):
    """Dword 1 of RESUME."""

    STAG = BitField(0, 15, doc="of the event that told of the stall")


class Sync0(BitFields, width=64):
    """Dword 0 of CMD_SYNC."""

    OPCODE = BitField(0, 7, values=Opcode)
    CS = BitField(12, 13, values=Completion)
    MSH = BitField(22, 23)
    MSIATTR = BitField(24, 27)
    MSIDATA = BitField(32, 63)


class Sync1(BitFields, width=64):
    """Dword 1 of CMD_SYNC."""

    MSIADDRESS = BitField(2, 51, doc="with IDR0.MSI and IRQ, where MSIDATA is written; 0: nowhere, a wire tells")


def cfgi(opcode: Opcode, sid: int = 0, *, ssid: int | None = None, leaf: bool = False, span: int = 0) -> bytes:
    """CFGI_* of a stream; ``span`` is RANGE of CFGI_STE_RANGE. Raises ValueError for what does not fit its field."""
    first = Cfgi0(OPCODE=opcode, SID=sid, SSV=int(ssid is not None), SSID=ssid or 0)
    return COMMAND.pack(first, CfgiRange1(RANGE=span) if span else Cfgi1(LEAF=int(leaf)))


def tlbi(
    opcode: Opcode,
    address: int = 0,
    *,
    vmid: int = 0,
    asid: int = 0,
    leaf: bool = False,
    granule: int = 0,
    ttl: int = 0,
    num: int = 0,
    scale: int = 0,
) -> bytes:
    """TLBI_*; with ``granule``, which is TG, of (num + 1) * 2 ** scale pages, whose leaves are at level ``ttl`` if that
    is not 0. Raises ValueError as :func:`cfgi`.
    """
    first = Tlbi0(OPCODE=opcode, VMID=vmid, ASID=asid, NUM=num, SCALE=scale)
    return COMMAND.pack(first, Tlbi1(LEAF=int(leaf), TTL=ttl, TG=granule, ADDR=address >> 12))


def atc_inv(
    sid: int, address: int = 0, size: int = ALL_ADDRESSES, *, ssid: int | None = None, every_ssid: bool = False
) -> bytes:
    """ATC_INV of 2 ** ``size`` pages of 4 KiB. Without ``ssid`` it is of entries with and without SubstreamIDs. Raises
    ValueError as :func:`cfgi`.
    """
    first = Cfgi0(OPCODE=Opcode.ATC_INV, SID=sid, SSV=int(ssid is not None), SSID=ssid or 0, GLOBAL=int(every_ssid))
    return COMMAND.pack(first, AtcInv1(SIZE=size, ADDR=address >> 12))


def pri_resp(sid: int, index: int, response: PriResponse, *, ssid: int | None = None) -> bytes:
    """PRI_RESP to the group of page requests of this index. Raises ValueError as :func:`cfgi`."""
    first = Cfgi0(OPCODE=Opcode.PRI_RESP, SID=sid, SSV=int(ssid is not None), SSID=ssid or 0)
    return COMMAND.pack(first, PriResp1(PRGINDEX=index, RESP=response))


def resume(sid: int, stag: int, *, retry: bool) -> bytes:
    """RESUME of a stalled transaction: try it again, or abort it."""
    first = Resume0(OPCODE=Opcode.RESUME, SID=sid, AC=int(retry), AB=int(not retry))
    return COMMAND.pack(first, Resume1(STAG=stag))


def stall_term(sid: int) -> bytes:
    """STALL_TERM: abort all stalled transactions of a stream."""
    return COMMAND.pack(Resume0(OPCODE=Opcode.STALL_TERM, SID=sid), 0)


def sync(completion: Completion = Completion.NONE, address: int = 0, data: int = 0) -> bytes:
    """CMD_SYNC, with the attributes that Linux gives it: inner shareable, write-back. With IRQ, ``data`` is written to
    ``address``, a multiple of 4, if that is not 0. Raises ValueError as :func:`cfgi`.
    """
    first = Sync0(OPCODE=Opcode.SYNC, CS=completion, MSH=3, MSIATTR=15, MSIDATA=data)
    return COMMAND.pack(first, Sync1(MSIADDRESS=address >> 2))
