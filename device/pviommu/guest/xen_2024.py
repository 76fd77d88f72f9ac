"""Operations of profile xen-2024, and the vendor operations that its driver uses."""

from __future__ import annotations

from abc import ABC, abstractmethod

from pviommu_abi.shared import TableFormat
from pviommu_abi.slots import OpClass
from pviommu_abi.vendor import AllocTables, Binding, Flush, Usage, VendorOp
from pviommu_abi.xen_2024 import LookupPage, MapPages, PvIommuOp, ReattachDevice, UnmapPages, Xen2024Op

__all__ = ["UNTOUCHED", "Xen2024"]

UNTOUCHED = 0xAAAA
"""What OUT fields hold when they are submitted."""
READ_WRITE = 3


class Xen2024(ABC):
    """Each operation as a method; results are 0 or a negative errno."""

    @abstractmethod
    def call(self, payload: bytes, op_class: int = OpClass.XEN_2024, op: int = 0) -> tuple[int, bytes]:
        """Submit a slot and wait for it: its result and payload."""

    def alloc_context(self, flags: int = 0) -> tuple[int, int]:
        """Result and ctx_no."""
        result, answer = self.call(PvIommuOp(Xen2024Op.ALLOC_CONTEXT, UNTOUCHED, flags).pack())
        return result, PvIommuOp.unpack(answer).ctx_no

    def free(self, ctx: int, flags: int = 0) -> int:
        return self.call(PvIommuOp(Xen2024Op.FREE_CONTEXT, ctx, flags).pack())[0]

    @staticmethod
    def map_payload(ctx: int, dfn: int, gfn: int, nr: int, flags: int = READ_WRITE) -> bytes:
        return MapPages(Xen2024Op.MAP_PAGES, ctx, flags, gfn, dfn, nr, UNTOUCHED).pack()

    def map(self, ctx: int, dfn: int, gfn: int, nr: int, flags: int = READ_WRITE) -> tuple[int, int]:
        """Result and pages mapped."""
        result, answer = self.call(self.map_payload(ctx, dfn, gfn, nr, flags))
        return result, MapPages.unpack(answer).mapped

    @staticmethod
    def unmap_payload(ctx: int, dfn: int, nr: int) -> bytes:
        return UnmapPages(Xen2024Op.UNMAP_PAGES, ctx, 0, dfn, nr, UNTOUCHED).pack()

    def unmap(self, ctx: int, dfn: int, nr: int) -> tuple[int, int]:
        """Result and pages unmapped."""
        result, answer = self.call(self.unmap_payload(ctx, dfn, nr))
        return result, UnmapPages.unpack(answer).unmapped

    def lookup(self, ctx: int, dfn: int) -> tuple[int, int]:
        """Result and gfn."""
        result, answer = self.call(LookupPage(Xen2024Op.LOOKUP_PAGE, ctx, 0, UNTOUCHED, dfn).pack())
        return result, LookupPage.unpack(answer).gfn

    def bind_stream(self, devfn: int, stream: int) -> int:
        return self.call(Binding(0, 0, devfn, stream).pack(), OpClass.VENDOR, VendorOp.BIND)[0]

    def reattach_device(self, devfn: int, ctx: int) -> int:
        return self.call(ReattachDevice(Xen2024Op.REATTACH_DEVICE, ctx, 0, 0, 0, devfn).pack())[0]

    def alloc_tables(
        self, root: int, aperture_bits: int = 39, format: int = TableFormat.VTD_SS, flags: int = 0
    ) -> tuple[int, AllocTables]:
        """Result, and the structure as it was answered."""
        op = AllocTables(format, flags, root, aperture_bits)
        result, answer = self.call(op.pack(), OpClass.VENDOR, VendorOp.ALLOC_TABLES)
        return result, AllocTables.unpack(answer)

    def flush(self, ctx: int) -> int:
        return self.call(Flush(ctx).pack(), OpClass.VENDOR, VendorOp.FLUSH)[0]

    def usage(self) -> Usage:
        return Usage.unpack(self.call(b"", OpClass.VENDOR, VendorOp.QUERY_USAGE)[1])
