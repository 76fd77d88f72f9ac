"""Command slots: the 64-byte entries of a ring, and the operations they carry.

A slot is a 16-byte header and a 48-byte payload. The guest fills a slot, the device executes it, writes the OUT
fields of the payload and the result back into the same slot, and then advances the ring's ``completed`` index.

The payload of class ``XEN_2024`` is ``struct pv_iommu_op`` of the June 2024 header of the Xen PV-IOMMU series, bit
for bit (32 bytes; the remaining 16 must be zero). The operations of class ``OWN`` are this device's own; they never
borrow Xen numbers.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Annotated

from wire_layout import S32, U8, U16, U32, U64, Record

SLOT_SIZE = 64
PAYLOAD_OFFSET = 16
PAYLOAD_SIZE = SLOT_SIZE - PAYLOAD_OFFSET

PAGE_SHIFT = 12
"""DFNs, GFNs and all counts are in pages of 4 KiB."""

DEFAULT_CONTEXT = 0
"""The context that always exists; it can be neither edited nor freed."""


class OpClass(IntEnum):
    """Whose numbering the operation of a slot belongs to."""

    XEN_2024 = 1
    """``pv_iommu_op`` of June 2024; the number is in the payload (``subop_id``), ``op`` must be 0"""
    XEN_V7 = 2
    """versions 4 to 7 of the series; the number is in ``op``, the payload is that operation's structure"""
    OWN = 0x80
    """this device's own operations; the number is in ``op``"""


class SlotFlags(IntFlag):
    """Flags of a slot; other bits are refused with -EINVAL."""

    POSTED = 1 << 0
    """nobody waits for the result: a failure is reported as an event"""


class Errno(IntEnum):
    """Results of operations, returned negative. Xen's values, which are Linux's on x86."""

    EPERM = 1
    ENOENT = 2
    EIO = 5
    E2BIG = 7
    ENOMEM = 12
    EACCES = 13
    EFAULT = 14
    EBUSY = 16
    EEXIST = 17
    ENODEV = 19
    EINVAL = 22
    ENOSPC = 28
    ERANGE = 34
    EOPNOTSUPP = 95
    EADDRINUSE = 98
    EADDRNOTAVAIL = 99


class Slot(Record):
    """Header of a slot."""

    op_class: Annotated[int, U8, "class of the operation (PVIOMMU_CLASS_*)"]
    op: Annotated[int, U8, "operation of classes that number it here, else 0"]
    flags: Annotated[int, U16, "PVIOMMU_SLOT_*"]
    sequence: Annotated[int, U32, "chosen by the guest; echoed in completed"]
    result: Annotated[int, S32, "OUT: 0 or a negative errno"] = 0
    completed: Annotated[int, U32, "OUT: sequence, written once result and payload are in place"] = 0


# --- class XEN_2024 ------------------------------------------------------------------------------------------------


class Xen2024Op(IntEnum):
    """Sub-operations of ``pv_iommu_op`` (``IOMMUOP_*`` of the June 2024 header; 0 has no name there)."""

    NOOP = 0
    QUERY_CAPABILITIES = 1
    ALLOC_CONTEXT = 2
    FREE_CONTEXT = 3
    REATTACH_DEVICE = 4
    MAP_PAGES = 5
    UNMAP_PAGES = 6
    LOOKUP_PAGE = 7


class CreateFlags(IntFlag):
    """Flags of ALLOC_CONTEXT (``IOMMU_CREATE_*``)."""

    CLONE = 1 << 0
    """begin with 1:1 mappings of all guest memory"""


class FreeFlags(IntFlag):
    """Flags of FREE_CONTEXT (the header leaves the bit unnamed; the hypervisor calls it reattach-to-default)."""

    REATTACH_DEFAULT = 1 << 0
    """move the attached devices to the default context instead of failing with -EBUSY"""


class MapFlags(IntFlag):
    """Flags of MAP_PAGES (``IOMMU_OP_*``)."""

    READABLE = 1 << 0
    WRITEABLE = 1 << 1


class PvIommuOp(Record):
    """Common head of ``pv_iommu_op``, for the operations that use nothing else."""

    subop_id: Annotated[int, U16, "Xen2024Op"]
    ctx_no: Annotated[int, U16, "context; OUT for ALLOC_CONTEXT"]
    flags: Annotated[int, U32, "meaning depends on the operation"]


class QueryCapabilities(Record):
    """QUERY_CAPABILITIES: everything after ``flags`` is OUT."""

    subop_id: Annotated[int, U16, "1"]
    ctx_no: Annotated[int, U16, "ignored"]
    flags: Annotated[int, U32, "0"]
    max_ctx_no: Annotated[int, U16, "OUT: number of contexts besides the default one; ids are 1 to this"] = 0
    pad0: Annotated[int, U16, "0"] = 0
    max_nr_pages: Annotated[int, U32, "OUT: most pages in one map or unmap"] = 0
    max_iova_addr: Annotated[int, U64, "OUT: last legal device address, inclusive"] = 0


class MapPages(Record):
    """MAP_PAGES: map ``nr_pages`` pages from ``gfn`` at ``dfn``."""

    subop_id: Annotated[int, U16, "5"]
    ctx_no: Annotated[int, U16, "context"]
    flags: Annotated[int, U32, "MapFlags"]
    gfn: Annotated[int, U64, "first guest frame"]
    dfn: Annotated[int, U64, "first device frame"]
    nr_pages: Annotated[int, U32, "pages to map"]
    mapped: Annotated[int, U32, "OUT: pages mapped, also on error"] = 0


class UnmapPages(Record):
    """UNMAP_PAGES: note that ``dfn`` lies where MAP_PAGES has ``gfn``."""

    subop_id: Annotated[int, U16, "6"]
    ctx_no: Annotated[int, U16, "context"]
    flags: Annotated[int, U32, "0"]
    dfn: Annotated[int, U64, "first device frame"]
    nr_pages: Annotated[int, U32, "pages to unmap"]
    unmapped: Annotated[int, U32, "OUT: pages unmapped, also on error"] = 0


class ReattachDevice(Record):
    """REATTACH_DEVICE: move a bound endpoint to ``ctx_no``."""

    subop_id: Annotated[int, U16, "4"]
    ctx_no: Annotated[int, U16, "target context, 0 included"]
    flags: Annotated[int, U32, "0"]
    seg: Annotated[int, U16, "PCI segment"]
    bus: Annotated[int, U8, "PCI bus"]
    devfn: Annotated[int, U8, "device << 3 | function"]


class LookupPage(Record):
    """LOOKUP_PAGE: the gfn comes first."""

    subop_id: Annotated[int, U16, "7"]
    ctx_no: Annotated[int, U16, "context"]
    flags: Annotated[int, U32, "0"]
    gfn: Annotated[int, U64, "OUT: guest frame; untouched on error"]
    dfn: Annotated[int, U64, "device frame"]


PV_IOMMU_OP_SIZE = 32
"""Bytes of ``pv_iommu_op``."""

# --- class XEN_V7 ---------------------------------------------------------------------------------------------------


class XenV7Op(IntEnum):
    """Sub-operations of the series' versions 4 to 7 (``IOMMU_*``). The numbers differ from those of June 2024."""

    NOOP = 0
    QUERY_CAPABILITIES = 1
    INIT = 2
    ALLOC_CONTEXT = 3
    FREE_CONTEXT = 4
    REATTACH_DEVICE = 5
    MAP_PAGES = 6
    UNMAP_PAGES = 7
    REMOTE_CMD = 8
    ALLOC_NESTED = 9
    FLUSH_NESTED = 10
    ATTACH_PASID = 11
    DETACH_PASID = 12


class V7Capability(IntFlag):
    """Bits of ``cap_flags`` (``IOMMUCAP_*``)."""

    DEFAULT_IDENTITY = 1 << 0
    """the default context maps all guest memory 1:1"""
    CACHE = 1 << 1
    NESTED = 1 << 2
    PASID = 1 << 3
    IDENTITY = 1 << 4
    """ALLOC_CONTEXT can make identity contexts"""


class V7AllocFlags(IntFlag):
    """Flags of ALLOC_CONTEXT (``IOMMU_ALLOC_*``)."""

    IDENTITY = 1 << 0
    """begin with 1:1 mappings of all guest memory"""


class V7FreeFlags(IntFlag):
    """Flags of FREE_CONTEXT (``IOMMU_FREE_*``)."""

    REATTACH_DEFAULT = 1 << 0
    """move the attached devices to the default context instead of failing with -EBUSY"""


class V7MapFlags(IntFlag):
    """Flags of MAP_PAGES (``IOMMU_MAP_*``)."""

    READABLE = 1 << 0
    WRITEABLE = 1 << 1


class V7Capabilities(Record):
    """QUERY_CAPABILITIES: all fields are OUT."""

    max_iova_addr: Annotated[int, U64, "OUT: last legal device address, inclusive"] = 0
    cap_flags: Annotated[int, U32, "OUT: V7Capability"] = 0
    pgsize_mask: Annotated[int, U32, "OUT: page sizes that pgsize may name"] = 0
    max_pasid: Annotated[int, U32, "OUT: 0"] = 0
    max_ctx_no: Annotated[int, U16, "OUT: contexts besides the default one; 0 before INIT"] = 0
    pad0: Annotated[int, U16, "OUT: 0"] = 0


class V7Init(Record):
    """INIT: once after the profile was selected."""

    max_ctx_no: Annotated[int, U32, "contexts besides the default one"]
    arena_order: Annotated[int, U32, "binary logarithm of the page-table pages wanted"]


class V7Alloc(Record):
    """ALLOC_CONTEXT."""

    ctx_no: Annotated[int, U16, "OUT: the context"]
    pad0: Annotated[int, U16, "0"]
    alloc_flags: Annotated[int, U32, "V7AllocFlags"]


class V7Free(Record):
    """FREE_CONTEXT."""

    ctx_no: Annotated[int, U16, "context"]
    pad0: Annotated[int, U16, "0"]
    free_flags: Annotated[int, U32, "V7FreeFlags"]


class V7MapPages(Record):
    """MAP_PAGES. ``mapped`` is added to, so the guest sets it to 0 first."""

    ctx_no: Annotated[int, U16, "context"]
    pad0: Annotated[int, U16, "0"]
    pad1: Annotated[int, U32, "0"]
    gfn: Annotated[int, U64, "first guest frame"]
    dfn: Annotated[int, U64, "first device frame"]
    map_flags: Annotated[int, U32, "V7MapFlags"]
    pgsize: Annotated[int, U32, "4096"]
    nr_pages: Annotated[int, U32, "pages to map; no limit"]
    mapped: Annotated[int, U32, "INOUT: grows by the pages mapped, also on error"]


class V7UnmapPages(Record):
    """UNMAP_PAGES. ``unmapped`` is added to."""

    ctx_no: Annotated[int, U16, "context"]
    pad0: Annotated[int, U16, "0"]
    pad1: Annotated[int, U32, "0"]
    dfn: Annotated[int, U64, "first device frame"]
    pgsize: Annotated[int, U32, "4096"]
    nr_pages: Annotated[int, U32, "pages to unmap; no limit"]
    unmapped: Annotated[int, U32, "INOUT: grows by the pages unmapped, also on error"]
    pad2: Annotated[int, U32, "0"]


class V7ReattachDevice(Record):
    """REATTACH_DEVICE."""

    ctx_no: Annotated[int, U16, "target context, 0 included"]
    seg: Annotated[int, U16, "PCI segment"]
    bus: Annotated[int, U8, "PCI bus"]
    devfn: Annotated[int, U8, "device << 3 | function"]
    pad0: Annotated[int, U16, "0"]
    pasid: Annotated[int, U32, "0"]


DOMID_SELF = 0x7FF0
"""``domid`` of REMOTE_CMD that names the caller; so does 0, the only domain there is."""


class V7RemoteCmd(Record):
    """REMOTE_CMD: carry out ``subop``, whose structure lies at guest physical address ``arg``, for domain ``domid``."""

    domid: Annotated[int, U16, "0 or DOMID_SELF"]
    subop: Annotated[int, U16, "XenV7Op, but not REMOTE_CMD"]
    pad0: Annotated[int, U32, "0"]
    arg: Annotated[int, U64, "guest physical address of the structure"]


XEN_V7_RECORDS: dict[XenV7Op, type[Record] | None] = {
    XenV7Op.NOOP: None,
    XenV7Op.QUERY_CAPABILITIES: V7Capabilities,
    XenV7Op.INIT: V7Init,
    XenV7Op.ALLOC_CONTEXT: V7Alloc,
    XenV7Op.FREE_CONTEXT: V7Free,
    XenV7Op.REATTACH_DEVICE: V7ReattachDevice,
    XenV7Op.MAP_PAGES: V7MapPages,
    XenV7Op.UNMAP_PAGES: V7UnmapPages,
    XenV7Op.REMOTE_CMD: V7RemoteCmd,
}
"""The structure of each operation that is carried out; the others are -EOPNOTSUPP."""

# --- class OWN -----------------------------------------------------------------------------------------------------


class OwnOp(IntEnum):
    """Operations of class OWN."""

    BIND = 1
    """tell the device which stream the function at an SBDF is (a vfio-user device never learns its address)"""
    UNBIND = 2
    """forget the binding; the endpoint goes back to the default context"""
    QUERY_ENDPOINT = 3
    """stream and context of a bound function"""
    QUERY_USAGE = 4
    """what is in use"""
    BATCH = 5
    """map or unmap each element of an array in guest memory, with a status each (the interface of 2014)"""
    CALL = 6
    """carry out an operation of the selected profile whose structure lies in guest memory, as a hypercall's does"""
    RESERVE = 7
    """set pool pages aside for a context, so that maps which need no more of them cannot fail for lack of any"""


class Binding(Record):
    """BIND, UNBIND and QUERY_ENDPOINT.

    BIND: unknown stream -ENODEV; SBDF or stream bound elsewhere -EEXIST; fixed by the configuration -EPERM; the
    same binding again 0.
    UNBIND and QUERY_ENDPOINT: not bound -ENOENT.
    """

    seg: Annotated[int, U16, "PCI segment"]
    bus: Annotated[int, U8, "PCI bus"]
    devfn: Annotated[int, U8, "device << 3 | function"]
    stream: Annotated[int, U32, "stream id; IN for BIND, OUT for QUERY_ENDPOINT"] = 0
    ctx_no: Annotated[int, U16, "OUT of QUERY_ENDPOINT: the context it is attached to"] = 0
    blocked: Annotated[int, U16, "OUT of QUERY_ENDPOINT: 1 while it waits for its reset after one of the IOMMU"] = 0
    pad0: Annotated[int, U32, "0"] = 0


class Usage(Record):
    """QUERY_USAGE: all fields are OUT."""

    contexts: Annotated[int, U32, "contexts allocated, the default one not counted"] = 0
    bindings: Annotated[int, U32, "functions bound"] = 0
    pool_used: Annotated[int, U32, "page-table pages charged"] = 0
    pool_total: Annotated[int, U32, "page-table pages of the pool"] = 0
    mapped_pages: Annotated[int, U64, "pages mapped in all contexts"] = 0
    events_lost: Annotated[int, U64, "events dropped because the ring was full, since reset"] = 0


class BatchFlags(IntFlag):
    """Flags of BATCH."""

    UNMAP = 1 << 0
    """unmap the elements; ``mfn`` and ``flags`` of each are ignored then"""


class Batch(Record):
    """BATCH: -EFAULT if an element fails or the array is not in guest memory; later elements are not looked at."""

    address: Annotated[int, U64, "guest physical address of the array, a multiple of 8"]
    count: Annotated[int, U32, "elements of 24 bytes"]
    flags: Annotated[int, U32, "BatchFlags"]
    ctx_no: Annotated[int, U16, "context"]
    pad0: Annotated[int, U16, "0"] = 0
    done: Annotated[int, U32, "OUT: elements carried out before the first that failed"] = 0


class MapOp(Record):
    """Element of a batch, ``iommu_map_op`` of 2014, one page each."""

    bfn: Annotated[int, U64, "device frame"]
    mfn: Annotated[int, U64, "guest frame"]
    flags: Annotated[int, U32, "MapFlags"]
    status: Annotated[int, S32, "OUT: 0 or a negative errno"] = 0


class Call(Record):
    """CALL: -EFAULT if the structure cannot be read, or not be written back; what was done stays done."""

    address: Annotated[int, U64, "guest physical address of the structure, a multiple of 8"]
    op: Annotated[int, U32, "XenV7Op; 0 under profile xen-2024, whose structure holds its number"]
    pad0: Annotated[int, U32, "0"] = 0


class Reserve(Record):
    """RESERVE: the context holds at least ``pages`` pages of the pool from now on, whatever it has mapped.

    A number lower than before gives pages back. Default or unknown context -EINVAL; pool exhausted -ENOMEM, and then
    nothing changes. The reservation ends with the context.
    """

    ctx_no: Annotated[int, U16, "context"]
    pad0: Annotated[int, U16, "0"] = 0
    pages: Annotated[int, U32, "pool pages, the root's included"] = 0


XEN_2024_RECORDS: dict[Xen2024Op, type[Record]] = {
    Xen2024Op.NOOP: PvIommuOp,
    Xen2024Op.QUERY_CAPABILITIES: QueryCapabilities,
    Xen2024Op.ALLOC_CONTEXT: PvIommuOp,
    Xen2024Op.FREE_CONTEXT: PvIommuOp,
    Xen2024Op.REATTACH_DEVICE: ReattachDevice,
    Xen2024Op.MAP_PAGES: MapPages,
    Xen2024Op.UNMAP_PAGES: UnmapPages,
    Xen2024Op.LOOKUP_PAGE: LookupPage,
}
"""The layout that each sub-operation uses within ``pv_iommu_op``."""
