"""Configuration in guest memory: which STE and CD a transaction has, whether they are legal, and what they say.

The rules are those of IHI 0070, 3.3 and chapter 5, for an SMMU without Secure state and EL2, whose tables are
little-endian AArch64 ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple

from smmuv3.events import Event, EventType
from smmuv3.registers import Format
from smmuv3.structures import (
    CD_SIZE,
    L1_SIZE,
    STE_SIZE,
    Cd0,
    Cd1,
    Cd2,
    L1Cd,
    L1Std,
    Ste0,
    Ste1,
    Ste2,
    Ste3,
    SteAts,
    SteConfig,
    SubstreamDefault,
)

from ...engine import ParentRefusal
from ...engine.formats import arm_stage1, arm_stage2
from ...engine.walk import Halves, Tables
from .config import ADDRESS_SIZES, SmmuConfig
from .memory import Abort, GuestReader, Structure
from .registers import SmmuRegisters

__all__ = [
    "Context",
    "Fetch",
    "Refused",
    "Stage2",
    "Stream",
    "StreamTable",
    "fetch_context",
    "read_cd",
    "read_ste",
    "substream",
]

_DWORDS = Struct("<8Q")
_SPLITS = (6, 8, 10)
_MAX_SPAN = 11
_TG0 = {0: 12, 1: 16, 2: 14}
_TG1 = {1: 14, 2: 12, 3: 16}
_CD_LEAF_BITS = {1: 6, 2: 10}
"""log2 of the CDs in a leaf of a table of two levels, by S1Fmt"""


class Refused(NamedTuple):
    """Why a transaction is refused."""

    event: Event | None
    """what it is to the guest"""
    parent: ParentRefusal | None = None
    """what the parent refused meanwhile, which is told to whoever owns the parent"""
    is_recorded: bool = True
    """whether the guest wants to know"""
    stalls: bool = False
    """whether the transaction is to wait for the guest instead"""


Fetch = Callable[[Structure, int, int], bytes | Refused]
"""Reads so many bytes of CDs at an address of the stream, or says why it cannot."""


@dataclass(frozen=True)
class Stage2:
    """A guest's own stage 2."""

    tables: Tables
    records: bool
    stalls: bool


@dataclass(frozen=True)
class Stream:
    """A legal STE."""

    config: SteConfig
    vmid: int = 0
    stage2: Stage2 | None = None
    contexts: int = 0
    """address of the CD, or of the table of them"""
    context_format: int = 0
    context_bits: int = 0
    """log2 of the CDs"""
    default: SubstreamDefault = SubstreamDefault.SUBSTREAM_0
    may_stall: bool = False
    """whether its CDs may have faults stall"""
    ats: SteAts = SteAts.NONE
    """what EATS says"""

    @property
    def has_stage1(self) -> bool:
        return self.config in (SteConfig.STAGE_1, SteConfig.NESTED)


@dataclass(frozen=True)
class Context:
    """A legal CD."""

    halves: Halves
    asid: int
    records: bool
    stalls: bool


class StreamTable:
    """The stream table of an SMMU."""

    def __init__(self, config: SmmuConfig, registers: SmmuRegisters, memory: GuestReader) -> None:
        self._config = config
        self._registers = registers
        self._memory = memory

    def find(self, sid: int, ssid: int | None) -> Stream | Refused:
        """The STE of a stream; ``ssid`` is for the event only."""
        place = self._place(sid, ssid)
        if isinstance(place, Refused):
            return place
        data = self._memory.fetch(Structure.STE, place, STE_SIZE)
        if isinstance(data, Abort):
            return Refused(Event(EventType.F_STE_FETCH, sid, ssid, fetch=place), data.parent)
        return read_ste(self._config, _DWORDS.unpack(data)) or Refused(Event(EventType.C_BAD_STE, sid, ssid))

    def _place(self, sid: int, ssid: int | None) -> int | Refused:
        """Where the STE is."""
        recorded = self._registers.records_unknown_streams
        out_of_range = Refused(Event(EventType.C_BAD_STREAMID, sid, ssid), is_recorded=recorded)
        base, config, bits = self._registers.stream_table()
        if sid >> bits:
            return out_of_range
        if config.FMT != Format.TWO_LEVEL:
            return (base & -(STE_SIZE << bits)) + sid * STE_SIZE
        split = config.SPLIT if config.SPLIT in _SPLITS else _SPLITS[0]
        base &= -max(64, L1_SIZE << max(0, bits - split))
        place = base + (sid >> split) * L1_SIZE
        found = self._memory.fetch(Structure.L1STD, place, L1_SIZE)
        if isinstance(found, Abort):
            return Refused(Event(EventType.F_STE_FETCH, sid, ssid, fetch=place), found.parent)
        descriptor = L1Std(int.from_bytes(found, "little"))
        span, index = descriptor.SPAN, sid & (1 << split) - 1
        if not span or span > min(_MAX_SPAN, split + 1) or index >> span - 1:
            return out_of_range
        return (descriptor & int(L1Std.L2PTR) & -(STE_SIZE << span - 1)) + index * STE_SIZE


def read_ste(config: SmmuConfig, dwords: tuple[int, ...]) -> Stream | None:
    """What an STE says; None if it is illegal."""
    ste0, ste1, ste2 = Ste0(dwords[0]), Ste1(dwords[1]), Ste2(dwords[2])
    if not ste0.V:
        return None
    if ste0.CONFIG < SteConfig.BYPASS:
        return Stream(SteConfig.ABORT)
    kind, vmid = SteConfig(ste0.CONFIG), ste2.S2VMID if config.stage2 else 0
    stage2 = None
    if kind & 2:
        stage2 = _read_stage2(config, ste2, dwords[3]) if config.stage2 else None
        if stage2 is None:
            return None
    ats = SteAts(ste1.EATS) if config.ats and kind is not SteConfig.BYPASS and ste1.EATS < 3 else SteAts.NONE
    if (ats and stage2 is not None and stage2.stalls) or (ats is SteAts.SPLIT and kind is not SteConfig.NESTED):
        return None
    if not kind & 1:
        return Stream(kind, vmid, stage2, ats=ats)
    bits, contexts = ste0.S1CDMAX, ste0 & int(Ste0.S1CONTEXTPTR)
    is_illegal = ste1.S1STALLD and not config.stalls
    if bits > config.ssid_bits or is_illegal or contexts >> config.address_bits:
        return None
    may_stall = bool(config.stalls and not ste1.S1STALLD)
    if not bits:
        return Stream(kind, vmid, stage2, contexts, may_stall=may_stall, ats=ats)
    default = SubstreamDefault.TERMINATE if ste1.S1DSS == 3 else SubstreamDefault(ste1.S1DSS)
    return Stream(kind, vmid, stage2, contexts, ste0.S1FMT, bits, default, may_stall, ats)


def _read_stage2(config: SmmuConfig, ste2: Ste2, ste3: int) -> Stage2 | None:
    granule, input_bits = _TG0.get(ste2.S2TG), 64 - ste2.S2T0SZ
    root = ste3 & int(Ste3.S2TTB)
    output_bits = _address_bits(config, ste2.S2PS)
    is_unsupported = not ste2.S2AA64 or ste2.S2ENDI or (ste2.S2S and not config.stalls)
    is_unsupported = is_unsupported or not _may_update(config, ste2.S2HA, ste2.S2HD)
    if granule is None or is_unsupported or root >> output_bits or input_bits > config.address_bits:
        return None
    start = (2 if granule == 12 else 3) - ste2.S2SL0
    try:
        tables = arm_stage2(
            granule,
            input_bits,
            start,
            root,
            output_bits,
            machine_bits=config.address_bits,
            checks_access=not ste2.S2AFFD,
            updates_access=bool(ste2.S2HA),
            updates_dirty=bool(ste2.S2HA and ste2.S2HD),
        )
    except ValueError:
        return None
    return Stage2(tables, bool(ste2.S2R), bool(ste2.S2S))


def substream(stream: Stream, sid: int, ssid: int | None) -> int | Refused | None:
    """The index of a transaction's CD, a refusal, or None if stage 1 is bypassed."""
    if ssid is not None:
        if not stream.has_stage1 or not stream.context_bits or ssid >> stream.context_bits:
            return Refused(Event(EventType.C_BAD_SUBSTREAMID, sid, ssid))
        is_disabled = ssid == 0 and stream.default == SubstreamDefault.SUBSTREAM_0
        return Refused(Event(EventType.F_STREAM_DISABLED, sid)) if is_disabled else ssid
    if not stream.has_stage1 or stream.default == SubstreamDefault.BYPASS:
        return None
    is_terminated = stream.default == SubstreamDefault.TERMINATE
    return Refused(Event(EventType.F_STREAM_DISABLED, sid)) if is_terminated else 0


def fetch_context(
    config: SmmuConfig, stream: Stream, index: int, sid: int, ssid: int | None, fetch: Fetch
) -> Context | Refused:
    """The CD of this index, or a refusal, for a transaction of ``sid`` and ``ssid``."""
    leaf_bits = _CD_LEAF_BITS.get(stream.context_format)
    if leaf_bits is None:
        place = (stream.contexts & -(CD_SIZE << stream.context_bits)) + index * CD_SIZE
    else:
        size = L1_SIZE << max(0, stream.context_bits - leaf_bits)
        base = stream.contexts & -max(64, size)
        found = fetch(Structure.L1CD, base + (index >> leaf_bits) * L1_SIZE, L1_SIZE)
        if isinstance(found, Refused):
            return found
        first = L1Cd(int.from_bytes(found, "little"))
        if not first.V or (first & int(L1Cd.L2PTR)) >> config.address_bits:
            return Refused(Event(EventType.C_BAD_SUBSTREAMID, sid, index))
        place = (first & int(L1Cd.L2PTR) & -(CD_SIZE << leaf_bits)) + (index & (1 << leaf_bits) - 1) * CD_SIZE
    data = fetch(Structure.CD, place, CD_SIZE)
    if isinstance(data, Refused):
        return data
    return read_cd(config, _DWORDS.unpack(data), stream.may_stall) or Refused(Event(EventType.C_BAD_CD, sid, ssid))


def read_cd(config: SmmuConfig, dwords: tuple[int, ...], may_stall: bool = False) -> Context | None:
    """What a CD says; None if it is illegal. ``may_stall``: whether the STE allows stalls."""
    cd0, cd1, cd2 = Cd0(dwords[0]), Cd1(dwords[1]), Cd2(dwords[2])
    is_big_endian = cd0.ENDI and not (cd0.EPD0 and cd0.EPD1)  # without tables it does not matter
    if not cd0.V or not cd0.AA64 or not cd0.A or is_big_endian:
        return None
    if (cd0.S and not may_stall) or not _may_update(config, cd0.HA, cd0.HD):
        return None
    output_bits = _address_bits(config, cd0.IPS)

    def half(granule: int | None, size: int, root: int, is_flat: int) -> Tables:
        if granule is None or root >> output_bits:
            raise ValueError("reserved granule, or a table beyond the output addresses")
        return arm_stage1(
            granule,
            64 - size,
            root,
            output_bits,
            hierarchical=not is_flat,
            checks_access=not cd0.AFFD,
            updates_access=bool(cd0.HA),
            updates_dirty=bool(cd0.HA and cd0.HD),
        )

    try:
        low = None if cd0.EPD0 else half(_TG0.get(cd0.TG0), cd0.T0SZ, cd1 & int(Cd1.TTB0), cd1.HAD0)
        high = None if cd0.EPD1 else half(_TG1.get(cd0.TG1), cd0.T1SZ, cd2 & int(Cd2.TTB1), cd2.HAD1)
    except ValueError:
        return None
    return Context(Halves(low, high, (bool(cd0.TBI0), bool(cd0.TBI1))), cd0.ASID, bool(cd0.R), bool(cd0.S))


def _may_update(config: SmmuConfig, access: int, dirty: int) -> bool:
    """Whether an SMMU can do what HA and HD ask for."""
    return config.httu >= (2 if dirty else 1 if access else 0)


def _address_bits(config: SmmuConfig, code: int) -> int:
    """Output bits that a code of IPS or S2PS stands for, at most those of the SMMU."""
    return min(config.address_bits, ADDRESS_SIZES[code] if code < len(ADDRESS_SIZES) else config.address_bits)
