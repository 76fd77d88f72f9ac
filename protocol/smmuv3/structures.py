"""Structures of configuration in memory (IHI 0070, chapter 5): stream table entries, context descriptors, and the
first levels of tables of both. Each is little-endian dwords of 64 bits; a class here is one of them.
"""

from enum import IntEnum

from wire_layout.registers import BitField, BitFields

__all__ = [
    "CD_SIZE",
    "L1_SIZE",
    "STE_SIZE",
    "Cd0",
    "Cd1",
    "Cd2",
    "L1Cd",
    "L1Std",
    "Ste0",
    "Ste1",
    "Ste2",
    "Ste3",
    "SteAts",
    "SteConfig",
    "SubstreamDefault",
]

STE_SIZE = CD_SIZE = 64
L1_SIZE = 8
"""Bytes of a descriptor of a first level."""


class L1Std(BitFields, width=64):
    """First level of a stream table."""

    SPAN = BitField(0, 4, doc="the second level has 2 ** (SPAN - 1) entries; 0: none")
    L2PTR = BitField(6, 51, doc="the second level, aligned down to its size")


class SteConfig(IntEnum):
    """Values of STE.Config; 1 to 3 are as ABORT."""

    ABORT = 0
    BYPASS = 4
    STAGE_1 = 5
    STAGE_2 = 6
    NESTED = 7


class SubstreamDefault(IntEnum):
    """Values of STE.S1DSS: what becomes of transactions without a SubstreamID, where there are SubstreamIDs; 3 is as
    TERMINATE."""

    TERMINATE = 0
    BYPASS = 1
    SUBSTREAM_0 = 2


class SteAts(IntEnum):
    """Values of STE.EATS; 3 is as NONE."""

    NONE = 0
    """translation requests and translated transactions are refused"""
    FULL = 1
    """translated transactions pass"""
    SPLIT = 2
    """they are of stage 1 only, and stage 2 translates them; with both stages and CR0.ATSCHK"""


class Ste0(BitFields, width=64):
    """Dword 0 of an STE."""

    V = BitField(0, doc="valid")
    CONFIG = BitField(1, 3, values=SteConfig)
    S1FMT = BitField(4, 5, doc="CD table: 0 and 3 linear, 1 and 2 of two levels with leaves of 4 and 64 KiB")
    S1CONTEXTPTR = BitField(6, 51, doc="the CD, or the table of them; an IPA if there is a stage 2")
    S1CDMAX = BitField(59, 63, doc="log2 of the CDs")


class Ste1(BitFields, width=64):
    """Dword 1 of an STE."""

    S1DSS = BitField(0, 1, values=SubstreamDefault)
    S1CIR = BitField(2, 3)
    S1COR = BitField(4, 5)
    S1CSH = BitField(6, 7)
    MEV = BitField(19, doc="events may be merged")
    S2FWB = BitField(25)
    S1STALLD = BitField(27, doc="stage 1 must not stall")
    EATS = BitField(28, 29, values=SteAts, doc="counts with IDR0.ATS only, and with a stage")
    STRW = BitField(30, 31, doc="world: counts with IDR0.HYP only; otherwise NS-EL1")
    SHCFG = BitField(44, 45)


class Ste2(BitFields, width=64):
    """Dword 2 of an STE."""

    S2VMID = BitField(0, 15)
    S2T0SZ = BitField(32, 37, doc="64 - the bits of an IPA")
    S2SL0 = BitField(38, 39, doc="where the walk begins")
    S2IR0 = BitField(40, 41)
    S2OR0 = BitField(42, 43)
    S2SH0 = BitField(44, 45)
    S2TG = BitField(46, 47, doc="granule: 0 4 KiB, 1 64 KiB, 2 16 KiB")
    S2PS = BitField(48, 50, doc="output addresses, as IDR5.OAS")
    S2AA64 = BitField(51)
    S2ENDI = BitField(52)
    S2AFFD = BitField(53, doc="the access flag is not looked at")
    S2PTW = BitField(54)
    S2HD = BitField(55)
    S2HA = BitField(56)
    S2S = BitField(57, doc="faults stall")
    S2R = BitField(58, doc="faults are recorded")


class Ste3(BitFields, width=64):
    """Dword 3 of an STE."""

    S2TTB = BitField(4, 51)


class L1Cd(BitFields, width=64):
    """First level of a CD table."""

    V = BitField(0)
    L2PTR = BitField(12, 51)


class Cd0(BitFields, width=64):
    """Dword 0 of a CD."""

    T0SZ = BitField(0, 5, doc="64 - the bits of an address below")
    TG0 = BitField(6, 7, doc="granule: 0 4 KiB, 1 64 KiB, 2 16 KiB")
    IR0 = BitField(8, 9)
    OR0 = BitField(10, 11)
    SH0 = BitField(12, 13)
    EPD0 = BitField(14, doc="no addresses below")
    ENDI = BitField(15)
    T1SZ = BitField(16, 21, doc="64 - the bits of an address above")
    TG1 = BitField(22, 23, doc="granule: 1 16 KiB, 2 4 KiB, 3 64 KiB")
    IR1 = BitField(24, 25)
    OR1 = BitField(26, 27)
    SH1 = BitField(28, 29)
    EPD1 = BitField(30, doc="no addresses above")
    V = BitField(31, doc="valid")
    IPS = BitField(32, 34, doc="output addresses, as IDR5.OAS")
    AFFD = BitField(35, doc="the access flag is not looked at")
    TBI0 = BitField(38, doc="bits 63 to 56 of addresses below mean nothing")
    TBI1 = BitField(39)
    AA64 = BitField(41)
    HD = BitField(42)
    HA = BitField(43)
    S = BitField(44, doc="faults stall")
    R = BitField(45, doc="faults are recorded")
    A = BitField(46, doc="faults abort")
    ASET = BitField(47)
    ASID = BitField(48, 63)


class Cd1(BitFields, width=64):
    """Dword 1 of a CD."""

    HAD0 = BitField(1, doc="permissions of tables are ignored")
    TTB0 = BitField(4, 51)


class Cd2(BitFields, width=64):
    """Dword 2 of a CD."""

    HAD1 = BitField(1)
    TTB1 = BitField(4, 51)
