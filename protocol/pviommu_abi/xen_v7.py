"""Operations of class ``XEN_V7``: versions 4 to 7 of the Xen PV-IOMMU series, a structure for each operation."""

from enum import IntEnum, IntFlag
from typing import Annotated

from wire_layout import U8, U16, U32, U64, Record


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


XEN_V7_RECORDS: dict[XenV7Op, type[Record]] = {
    XenV7Op.QUERY_CAPABILITIES: V7Capabilities,
    XenV7Op.INIT: V7Init,
    XenV7Op.ALLOC_CONTEXT: V7Alloc,
    XenV7Op.FREE_CONTEXT: V7Free,
    XenV7Op.REATTACH_DEVICE: V7ReattachDevice,
    XenV7Op.MAP_PAGES: V7MapPages,
    XenV7Op.UNMAP_PAGES: V7UnmapPages,
    XenV7Op.REMOTE_CMD: V7RemoteCmd,
}
"""The structure of each operation that is carried out. NOOP has none; the others are -EOPNOTSUPP."""
