"""Operations of class ``XEN_2024``: ``struct pv_iommu_op`` of the June 2024 header of the Xen PV-IOMMU series.

All of them are 32 bytes and share a head; the number of the operation is in it.
"""

from enum import IntEnum, IntFlag
from typing import Annotated

from wire_layout import U8, U16, U32, U64, Record


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
