"""The register frame (IHI 0070, chapter 6): two pages of 64 KiB.

The indices of the event queue and of that of page requests are in page 1 and nowhere else. Registers that are not
declared here are RAZ/WI: those of Secure, Realm and root states, of VATOS and of ECMDQ.
"""

from enum import IntEnum

from wire_layout.registers import AccessKind, BitField, BitFields, Register, RegisterMap

__all__ = [
    "FRAME_SIZE",
    "MSIX_BAR",
    "PAGE_1",
    "REGISTER",
    "REGISTERS",
    "REGISTER_BAR",
    "CommandError",
    "Cr0",
    "Cr1",
    "Cr2",
    "Format",
    "Gbpa",
    "GlobalError",
    "Idr0",
    "Idr1",
    "Idr3",
    "Idr5",
    "IrqControl",
    "MsiAddress",
    "MsiAttributes",
    "PageRequestInterrupt",
    "QueueBase",
    "QueueConsumer",
    "QueueProducer",
    "StreamTableBase",
    "StreamTableConfig",
    "Vector",
]

PAGE_1 = 0x10000
"""Where the second page begins."""
FRAME_SIZE = 0x20000


REGISTER_BAR, MSIX_BAR = 0, 2
"""BARs of our PCI function: the frame, and the MSI-X table and its pending bits."""


class Vector(IntEnum):
    """Which interrupt; on our PCI function these are its MSI-X vectors."""

    EVENTQ = 0
    """the event queue is no longer empty"""
    GERROR = 1
    """a global error has become active"""
    CMD_SYNC = 2
    """a CMD_SYNC that asked for an interrupt is complete"""
    PRIQ = 3
    """the queue of page requests is no longer empty, or the last one of a group has come (PRIQ_IRQ_CFG2); only where
    there is such a queue"""


class Idr0(BitFields):
    """Features (IDR0)."""

    S2P = BitField(0, doc="stage 2")
    S1P = BitField(1, doc="stage 1")
    TTF = BitField(2, 3, doc="formats of tables; 2 is AArch64")
    COHACC = BitField(4, doc="accesses of the SMMU are coherent")
    BTM = BitField(5, doc="takes part in broadcast TLB maintenance")
    HTTU = BitField(6, 7, doc="updates flags in tables; 1 access, 2 dirty too")
    HYP = BitField(9, doc="EL2 streams")
    ATS = BitField(10, doc="translation requests of endpoints")
    ASID16 = BitField(12, doc="ASIDs of 16 bits")
    MSI = BitField(13, doc="writes MSIs itself")
    SEV = BitField(14, doc="sends WFE wake-up events")
    PRI = BitField(16, doc="page requests of endpoints")
    VMID16 = BitField(18, doc="VMIDs of 16 bits")
    CD2L = BitField(19, doc="CD tables of two levels")
    TTENDIAN = BitField(21, 22, doc="0 both, 2 little-endian, 3 big-endian")
    STALL_MODEL = BitField(24, 25, doc="0 stall and terminate, 1 no stalls, 2 forced")
    TERM_MODEL = BitField(26, doc="terminated transactions always abort")
    ST_LEVEL = BitField(27, 28, doc="stream tables: 0 linear, 1 of two levels too")


class Idr1(BitFields):
    """Sizes (IDR1)."""

    SIDSIZE = BitField(0, 5, doc="bits of a StreamID")
    SSIDSIZE = BitField(6, 10, doc="bits of a SubstreamID; 0 if there are none")
    PRIQS = BitField(11, 15, doc="log2 of the most entries of the queue of page requests")
    EVENTQS = BitField(16, 20, doc="log2 of the most entries of the event queue")
    CMDQS = BitField(21, 25, doc="log2 of the most entries of the command queue")
    REL = BitField(28)
    QUEUES_PRESET = BitField(29)
    TABLES_PRESET = BitField(30)


class Idr3(BitFields):
    """Features of tables (IDR3)."""

    HAD = BitField(2, doc="hierarchical permissions can be turned off")
    XNX = BitField(4, doc="stage 2 tells execution by EL0 and EL1 apart")
    RIL = BitField(10, doc="invalidation by range, with level hints")
    BBML = BitField(11, 12, doc="block sizes may be changed in place")


class Idr5(BitFields):
    """Address sizes (IDR5)."""

    OAS = BitField(0, 2, doc="output addresses: 32, 36, 40, 42, 44, 48 or 52 bits")
    GRAN4K = BitField(4)
    GRAN16K = BitField(5)
    GRAN64K = BitField(6)
    VAX = BitField(10, 11, doc="input addresses: 0 48 bits, 1 52 bits")
    STALL_MAX = BitField(16, 31, doc="most transactions that are stalled at a time")


_RES0 = AccessKind.RES0


class Cr0(BitFields):
    """What is on (CR0); CR0ACK follows."""

    SMMUEN = BitField(0, doc="translates")
    PRIQEN = BitField(1, doc="writes to the queue of page requests; with IDR0.PRI only")
    EVENTQEN = BitField(2, doc="writes to the event queue")
    CMDQEN = BitField(3, doc="consumes the command queue")
    ATSCHK = BitField(4, doc="translated transactions are checked by STE.EATS; with IDR0.ATS only")
    VMW = BitField(6, 8, access=_RES0)


class Cr1(BitFields):
    """Attributes of the SMMU's own accesses (CR1); they have no effect here."""

    QUEUE_IC = BitField(0, 1)
    QUEUE_OC = BitField(2, 3)
    QUEUE_SH = BitField(4, 5)
    TABLE_IC = BitField(6, 7)
    TABLE_OC = BitField(8, 9)
    TABLE_SH = BitField(10, 11)


class Cr2(BitFields):
    """CR2."""

    E2H = BitField(0, access=_RES0)
    RECINVSID = BitField(1, doc="StreamIDs out of range are recorded")
    PTM = BitField(2, doc="broadcast TLB maintenance is ignored")


class Gbpa(BitFields):
    """What happens to transactions while SMMUEN is 0 (GBPA). Only ABORT has an effect here."""

    MEMATTR = BitField(0, 3)
    MTCFG = BitField(4)
    ALLOCCFG = BitField(8, 11)
    SHCFG = BitField(12, 13, reset=1)
    PRIVCFG = BitField(16, 17)
    INSTCFG = BitField(18, 19)
    ABORT = BitField(20, doc="they are aborted")
    UPDATE = BitField(31, doc="set it with a write; reads 0 when that has taken effect")


class IrqControl(BitFields):
    """Which interrupts are enabled (IRQ_CTRL); IRQ_CTRLACK follows."""

    GERROR_IRQEN = BitField(0)
    PRIQ_IRQEN = BitField(1, doc="with IDR0.PRI only")
    EVENTQ_IRQEN = BitField(2)


class MsiAddress(BitFields, width=64):
    """GERROR_IRQ_CFG0, EVENTQ_IRQ_CFG0 and PRIQ_IRQ_CFG0."""

    ADDR = BitField(2, 51, doc="where the MSI is written; 0: nowhere, a wire has it")


class MsiAttributes(BitFields):
    """GERROR_IRQ_CFG2 and EVENTQ_IRQ_CFG2; they have no effect here."""

    MEMATTR = BitField(0, 3)
    SH = BitField(4, 5)


class PageRequestInterrupt(BitFields):
    """PRIQ_IRQ_CFG2; without IDR0.MSI it has LO alone."""

    MEMATTR = BitField(0, 3)
    SH = BitField(4, 5)
    LO = BitField(31, doc="the last request of each group interrupts, even if it is lost; 0: a queue no longer empty")


class GlobalError(BitFields):
    """Bits of GERROR and GERRORN: an error is active while they differ."""

    CMDQ_ERR = BitField(0, doc="CMDQ_CONS.ERR says why; commands wait")
    EVENTQ_ABT_ERR = BitField(2, doc="an event could not be written; events are discarded")
    PRIQ_ABT_ERR = BitField(3, doc="a page request could not be written; page requests are refused")
    MSI_CMDQ_ABT_ERR = BitField(4, doc="the MSI of a CMD_SYNC could not be written; it is complete all the same")
    MSI_EVENTQ_ABT_ERR = BitField(5, doc="that of the event queue")
    MSI_PRIQ_ABT_ERR = BitField(6, doc="that of the queue of page requests")
    MSI_GERROR_ABT_ERR = BitField(7, doc="that of a global error; no interrupt tells of it")
    SFM_ERR = BitField(8)


class Format(IntEnum):
    """Values of STRTAB_BASE_CFG.FMT; others are as LINEAR."""

    LINEAR = 0
    TWO_LEVEL = 1


class StreamTableBase(BitFields, width=64):
    """STRTAB_BASE."""

    ADDR = BitField(6, 51, doc="aligned down to the size of the table, or of its first level")
    RA = BitField(62)


class StreamTableConfig(BitFields):
    """STRTAB_BASE_CFG."""

    LOG2SIZE = BitField(0, 5, doc="bits of the StreamIDs in the table")
    SPLIT = BitField(6, 10, doc="bits of the second level's index: 6, 8 or 10, others are as 6")
    FMT = BitField(16, 17, values=Format)


class QueueBase(BitFields, width=64):
    """CMDQ_BASE, EVENTQ_BASE and PRIQ_BASE."""

    LOG2SIZE = BitField(0, 4, doc="log2 of the entries")
    ADDR = BitField(5, 51, doc="aligned down to the size of the queue")
    ALLOCATE = BitField(62, doc="RA or WA")


class CommandError(IntEnum):
    """Values of CMDQ_CONS.ERR."""

    NONE = 0
    ILL = 1
    """the command is illegal"""
    ABT = 2
    """the command cannot be read"""
    ATC_INV_SYNC = 3
    """an endpoint has not answered an ATC_INV in time, and this CMD_SYNC waited for it"""


class QueueProducer(BitFields):
    """CMDQ_PROD, EVENTQ_PROD and PRIQ_PROD: the index, and above it a bit that changes with each wrap."""

    WR = BitField(0, 19)
    OVFLG = BitField(31, doc="EVENTQ_PROD, PRIQ_PROD: something was discarded, if it differs from OVACKFLG")


class QueueConsumer(BitFields):
    """CMDQ_CONS, EVENTQ_CONS and PRIQ_CONS."""

    RD = BitField(0, 19)
    ERR = BitField(24, 30, doc="CMDQ_CONS: why CMDQ_ERR became active last", values=CommandError)
    OVACKFLG = BitField(31, doc="EVENTQ_CONS, PRIQ_CONS: OVFLG as software has seen it")


RO, RW = AccessKind.RO, AccessKind.RW

REGISTERS = RegisterMap(
    Register("IDR0", 0x00, RO, "features", holds=Idr0, reset=None),
    Register("IDR1", 0x04, RO, "sizes", holds=Idr1, reset=None),
    Register("IDR2", 0x08, RO, "place of VATOS"),
    Register("IDR3", 0x0C, RO, "features of tables", holds=Idr3, reset=None),
    Register("IDR4", 0x10, RO, "implementation defined"),
    Register("IDR5", 0x14, RO, "address sizes", holds=Idr5, reset=None),
    Register("IIDR", 0x18, RO, "implementer"),
    Register("AIDR", 0x1C, RO, "architecture 3.1", reset=1),
    Register("CR0", 0x20, RW, "what is on", holds=Cr0),
    Register("CR0ACK", 0x24, RO, "CR0, when that has taken effect", holds=Cr0),
    Register("CR1", 0x28, RW, "attributes of the SMMU's own accesses", holds=Cr1),
    Register("CR2", 0x2C, RW, "further control", holds=Cr2),
    Register("STATUSR", 0x40, RO, "dormancy"),
    Register("GBPA", 0x44, RW, "transactions while SMMUEN is 0", holds=Gbpa),
    Register("IRQ_CTRL", 0x50, RW, "enabled interrupts", holds=IrqControl),
    Register("IRQ_CTRLACK", 0x54, RO, "IRQ_CTRL, when that has taken effect", holds=IrqControl),
    Register("GERROR", 0x60, RO, "global errors", holds=GlobalError),
    Register("GERRORN", 0x64, RW, "their acknowledgement", holds=GlobalError),
    Register("GERROR_IRQ_CFG0", 0x68, RW, "the MSI of global errors: where", width=64, holds=MsiAddress),
    Register("GERROR_IRQ_CFG1", 0x70, RW, "what is written"),
    Register("GERROR_IRQ_CFG2", 0x74, RW, "attributes", holds=MsiAttributes),
    Register("STRTAB_BASE", 0x80, RW, "the stream table", width=64, holds=StreamTableBase),
    Register("STRTAB_BASE_CFG", 0x88, RW, "its format", holds=StreamTableConfig),
    Register("CMDQ_BASE", 0x90, RW, "the command queue", width=64, holds=QueueBase),
    Register("CMDQ_PROD", 0x98, RW, "where software writes", holds=QueueProducer),
    Register("CMDQ_CONS", 0x9C, RW, "where the SMMU reads", holds=QueueConsumer),
    Register("EVENTQ_BASE", 0xA0, RW, "the event queue", width=64, holds=QueueBase),
    Register("EVENTQ_IRQ_CFG0", 0xB0, RW, "the MSI of the event queue: where", width=64, holds=MsiAddress),
    Register("EVENTQ_IRQ_CFG1", 0xB8, RW, "what is written"),
    Register("EVENTQ_IRQ_CFG2", 0xBC, RW, "attributes", holds=MsiAttributes),
    Register("PRIQ_BASE", 0xC0, RW, "the queue of page requests", width=64, holds=QueueBase),
    Register("PRIQ_IRQ_CFG0", 0xD0, RW, "the MSI of page requests: where", width=64, holds=MsiAddress),
    Register("PRIQ_IRQ_CFG1", 0xD8, RW, "what is written"),
    Register("PRIQ_IRQ_CFG2", 0xDC, RW, "attributes, and when", holds=PageRequestInterrupt),
    Register("CIDR", 0xFF0, RO, "component identification", 4, reset=None),
    Register("EVENTQ_PROD", PAGE_1 + 0xA8, RW, "where the SMMU writes", holds=QueueProducer),
    Register("EVENTQ_CONS", PAGE_1 + 0xAC, RW, "where software reads", holds=QueueConsumer),
    Register("PRIQ_PROD", PAGE_1 + 0xC8, RW, "where the SMMU writes", holds=QueueProducer),
    Register("PRIQ_CONS", PAGE_1 + 0xCC, RW, "where software reads", holds=QueueConsumer),
)
REGISTER = REGISTERS.by_name
