"""The shared BAR: index lines, capability area, event ring, command rings.

Everything here lies in one memory object that the device exposes as BAR 2 and that the hypervisor maps into the
guest, so no access to it leaves the guest. All words are little-endian; index words are 32 bits, aligned, and each
cache line has one writer.

Indices run freely and wrap at 2**32; an entry's place is ``index % entries``. A ring holds ``producer - completed``
slots (modulo 2**32); more than ``entries`` is a broken ring.

Notifications are suppressed by event index only. ``x`` asks for a notification when an index passes ``x``: the
other side notifies if ``(new - x - 1) % 2**32 < (new - old) % 2**32``.
"""

from enum import IntEnum, IntFlag
from typing import Annotated

from wire_layout import S32, U8, U16, U32, U64, Record

CACHE_LINE = 64
MAX_RINGS = 8
MAX_RING_ENTRIES = 1024
MIN_RING_ENTRIES = 16
EVENT_ENTRIES = 256

INDEX_OFFSET = 0x0000
"""Index lines of ring n at ``INDEX_OFFSET + n * RING_INDEX_STRIDE``; the event ring's come after those of
MAX_RINGS rings.
"""
RING_INDEX_STRIDE = 2 * CACHE_LINE
EVENT_INDEX_OFFSET = INDEX_OFFSET + MAX_RINGS * RING_INDEX_STRIDE
CAPABILITY_OFFSET = 0x1000
CAPABILITY_SIZE = 0x2000
EVENT_OFFSET = 0x4000
"""``EVENT_ENTRIES`` records of 64 bytes."""
FAULT_RULES_OFFSET = 0x8000
"""A page with a record for each fault rule, if capability FAULT_RULES is there."""
FAULT_RULES_SIZE = 0x1000
IN_FLIGHT_OFFSET = 0x9000
"""``IN_FLIGHT_LINES`` lines of contexts whose tables the guest owns, if capability GUEST_TABLES is there."""
IN_FLIGHT_LINES = 256
RING_AREA_OFFSET = 0x10000
RING_AREA_SIZE = MAX_RINGS * MAX_RING_ENTRIES * 64
SHARED_BAR_SIZE = 0x100000
"""BAR 2 in bytes."""


class GuestRingLine(Record):
    """Words of a command ring that the guest writes."""

    producer: Annotated[int, U32, "slots submitted"]
    completion_event: Annotated[int, U32, "interrupt me when completed passes this"]
    awaited: Annotated[int, U32, "somebody polls until completed is this; no wait is over before it is reached"]


class DeviceRingLine(Record):
    """Words of a command ring that the device writes, one cache line further on."""

    completed: Annotated[int, U32, "slots completed"]
    doorbell_event: Annotated[int, U32, "ring the doorbell when producer passes this"]


class GuestEventLine(Record):
    """Words of the event ring that the guest writes."""

    consumer: Annotated[int, U32, "events taken"]
    arm: Annotated[int, U32, "interrupt me when producer passes this"]


class DeviceEventLine(Record):
    """Words of the event ring that the device writes, one cache line further on."""

    producer: Annotated[int, U32, "events written"]
    lost: Annotated[int, U32, "events dropped because the ring was full; wraps"]


class InFlightLine(Record):
    """Whether DMA through guest tables is in flight; the device writes it.

    The guest clears entries of its tables, then has a full memory barrier, then reads both words once, ``step`` with
    acquire. ``pending`` other than 0: FLUSH says when nothing can use the entries any more. Else, ``step`` even:
    nothing can by now. Else: nothing can once ``step`` is another value than the one that was read.
    """

    step: Annotated[int, U32, "odd while the device translates with entries that it has read, and copies; wraps"]
    pending: Annotated[int, U32, "requests in flight whose translations outlive a step"]


class TableFormat(IntEnum):
    """Formats of tables that the guest owns. The capability has a bit ``1 << format`` for each that there is."""

    VTD_SS = 0
    """second stage of VT-d: 4 levels, 48 bits, leaves of 4 KiB, 2 MiB and 1 GiB"""
    X86_64 = 1
    """x86-64: 4 levels, 47 bits of addresses from 0 on, leaves of 4 KiB, 2 MiB and 1 GiB"""


class EventReason(IntEnum):
    """What an event reports."""

    NOT_MAPPED = 1
    """DMA to a device address without a mapping"""
    PERMISSION = 2
    """DMA that the mapping's flags forbid"""
    OUT_OF_APERTURE = 3
    """DMA past the last legal device address"""
    RESERVED = 4
    """DMA to a reserved region, the MSI window for one"""
    BLOCKED = 5
    """DMA of an endpoint that waits for its reset, after the IOMMU's or a failure (no access then)"""
    NOT_RAM = 6
    """the translation leads to what is neither guest memory nor a BAR that may be reached, any more or at all"""
    ABORTED = 7
    """the translation leads to registers of a BAR, and to more of them than one request may touch"""
    POSTED_FAILED = 16
    """a posted slot failed: ``result`` and ``slot`` tell which"""
    RING_BROKEN = 17
    """the producer index of ring ``slot`` is impossible; the ring is stopped"""


class EventAccess(IntFlag):
    """The access that was refused."""

    READ = 1 << 0
    WRITE = 1 << 1


SBDF_UNBOUND = 0xFFFFFFFF
"""``sbdf`` of an endpoint that no BIND named."""


class Event(Record):
    """One record of the event ring."""

    sequence: Annotated[int, U32, "counts every event, lost ones too, so a gap shows how many are missing"]
    reason: Annotated[int, U16, "EventReason"]
    access: Annotated[int, U8, "EventAccess"]
    pad0: Annotated[int, U8, "0"] = 0
    stream: Annotated[int, U32, "stream id of the endpoint"] = 0
    sbdf: Annotated[int, U32, "segment << 16 | bus << 8 | devfn, or all ones"] = SBDF_UNBOUND
    iova: Annotated[int, U64, "first refused device address, exact to the byte"] = 0
    length: Annotated[int, U64, "bytes of the refused request, or of the scatter/gather element with that address"] = 0
    ctx_no: Annotated[int, U16, "context"] = 0
    pad1: Annotated[int, U16, "0"] = 0
    result: Annotated[int, S32, "POSTED_FAILED: negative errno"] = 0
    slot: Annotated[int, U32, "POSTED_FAILED: sequence of the slot; RING_BROKEN: ring"] = 0
    pad2: Annotated[int, U32, "0"] = 0
    time_ns: Annotated[int, U64, "the device's monotonic clock"] = 0
    pad3: Annotated[int, U64, "0"] = 0


# --- capability area -----------------------------------------------------------------------------------------------

CAPABILITY_MAGIC = 0x50414349
GLOBAL_STREAM = 0xFFFFFFFF
"""``stream`` of a reserved region that concerns every endpoint."""


class CapabilityArea(Record):
    """Head of the capability area. The device bumps ``generation`` to an odd value before it rewrites the area and
    to the next even one after.
    """

    magic: Annotated[int, U32, "CAPABILITY_MAGIC"]
    generation: Annotated[int, U32, "even when the area is stable"]
    length: Annotated[int, U32, "bytes in use, this head included"]
    first: Annotated[int, U32, "offset of the first capability from the start of the area"]


class CapabilityHeader(Record):
    """Head of each capability, as VFIO has them."""

    cap_id: Annotated[int, U16, "CapabilityId"]
    version: Annotated[int, U16, "1"]
    next: Annotated[int, U32, "offset of the next one from the start of the area, 0 for the last"]


class CapabilityId(IntEnum):
    """Kinds of capability. After the header come a count (u32), a zero (u32) and the entries.

    LIMITS, FAULT_RULES and GUEST_TABLES are one record each, without a count.
    """

    IOVA_RANGES = 1
    RESERVED_REGIONS = 2
    LIMITS = 3
    RAM_RANGES = 4
    ENDPOINTS = 5
    FAULT_RULES = 6
    """the device follows a scenario of faults, and tells what its rules did"""
    GUEST_TABLES = 7
    """contexts may have tables that the guest owns and the device walks when there is DMA"""


class CapabilityCount(Record):
    """Follows the header of a capability that is a list."""

    count: Annotated[int, U32, "entries"]
    pad0: Annotated[int, U32, "0"] = 0


class AddressRange(Record):
    """Entry of IOVA_RANGES (device addresses) and RAM_RANGES (guest physical addresses)."""

    start: Annotated[int, U64, "first byte"]
    last: Annotated[int, U64, "last byte, inclusive"]


class RegionKind(IntEnum):
    """Kinds of reserved region."""

    RESERVED = 1
    """no map may touch it"""
    MSI = 2
    """writes to it are interrupts and never translated"""
    DIRECT = 3
    """mapped 1:1 in whatever context the endpoint is attached to, as an RMRR or IVMD asks for"""


class ReservedRegion(Record):
    """Entry of RESERVED_REGIONS."""

    start: Annotated[int, U64, "first byte"]
    last: Annotated[int, U64, "last byte, inclusive"]
    kind: Annotated[int, U32, "RegionKind"]
    stream: Annotated[int, U32, "stream id, or GLOBAL_STREAM"]


class Limits(Record):
    """The record of LIMITS."""

    page_sizes: Annotated[int, U64, "bit mask of page sizes that a map may be made of"]
    max_nr_pages: Annotated[int, U32, "most pages in one map or unmap"]
    max_contexts: Annotated[int, U32, "contexts besides the default one"]
    pool_pages: Annotated[int, U32, "page-table pages of the pool"]
    rings: Annotated[int, U32, "rings that this device has"]
    aperture_bits: Annotated[int, U32, "bits of a device address"]
    default_policy: Annotated[int, U32, "what context 0 does: 1 identity, 0 blocked"]


class EndpointEntry(Record):
    """Entry of ENDPOINTS."""

    stream: Annotated[int, U32, "stream id"]
    flags: Annotated[int, U32, "1: the binding is fixed by the configuration"]
    sbdf: Annotated[int, U32, "the fixed binding, or all ones"]
    pad0: Annotated[int, U32, "0"] = 0


class GuestTables(Record):
    """The record of GUEST_TABLES."""

    formats: Annotated[int, U32, "1 << TableFormat for each that ALLOC_TABLES takes"]
    offset: Annotated[int, U32, "of line 0 of the in-flight lines, in bytes into BAR 2"]
    lines: Annotated[int, U32, "how many lines there are"]
    stride: Annotated[int, U32, "bytes from one line to the next"]


# --- fault rules ---------------------------------------------------------------------------------------------------


class FaultRules(Record):
    """The record of FAULT_RULES: where the page is that counts what the rules did.

    The page begins with a :class:`FaultPage`; the device alone writes it, and never reads it back.
    """

    offset: Annotated[int, U32, "of the page, in bytes into BAR 2"]
    size: Annotated[int, U32, "of the page, in bytes"]


class FaultPage(Record):
    """Head of the page.

    The device bumps ``generation`` to an odd value before other rules are loaded and to the next even one after; counts
    grow without that.
    """

    magic: Annotated[int, U32, "FAULT_PAGE_MAGIC"]
    generation: Annotated[int, U32, "even while the rules stay"]
    rules: Annotated[int, U32, "records behind this head, in the order of the scenario"]
    record_size: Annotated[int, U32, "bytes of a record"]
    state: Annotated[int, U64, "FNV-1a (64 bits) of the name of the state that the scenario is in"]
    seed: Annotated[int, U64, "of the scenario"]


class FaultRuleFlags(IntFlag):
    """Flags of a rule."""

    ADVERSARIAL = 1 << 0
    """no correct IOMMU does what it does"""


class FaultRule(Record):
    """What one rule did so far. Each count is written in one go."""

    id_hash: Annotated[int, U64, "FNV-1a (64 bits) of its id"]
    passed: Annotated[int, U64, "how many times its conditions held"]
    fired: Annotated[int, U64, "how many times it acted"]
    flags: Annotated[int, U32, "FaultRuleFlags"]
    pad0: Annotated[int, U32, "0"] = 0


FAULT_PAGE_MAGIC = 0x464C5450
FAULT_RULES_MOST = (FAULT_RULES_SIZE - FaultPage.SIZE) // FaultRule.SIZE
"""Rules that the page has room for."""


def name_hash(name: str) -> int:
    """FNV-1a (64 bits) of a name in UTF-8, by which the page tells rules and states."""
    found = 0xCBF29CE484222325
    for byte in name.encode():
        found = (found ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return found
