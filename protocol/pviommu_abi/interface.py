"""What the C headers and the ABI page are made of: the declarations, in the order in which a reader meets them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag

from wire_layout import Record
from wire_layout.registers import Register

from . import dma_test, registers, shared, slots, vendor, xen_2024, xen_v7, xor

EnumClass = type[IntEnum] | type[IntFlag]


@dataclass(frozen=True)
class Constant:
    """A number with a name; ``hexadecimal`` says how to write it."""

    name: str
    value: int
    doc: str
    hexadecimal: bool = True


@dataclass(frozen=True)
class Section:
    """One chapter: registers, then constants, then what registers hold, then enumerations with the prefix of their C
    names, then records.
    """

    title: str
    doc: str
    registers: tuple[Register, ...] = ()
    constants: tuple[Constant, ...] = ()
    enums: tuple[tuple[str, EnumClass], ...] = ()
    records: tuple[tuple[str, type[Record]], ...] = ()


@dataclass(frozen=True)
class Interface:
    """Everything behind one C header. C names begin with ``prefix``, in lower or upper case."""

    header: str
    prefix: str
    title: str
    sections: tuple[Section, ...]


def _text(module: object) -> str:
    return (getattr(module, "__doc__", "") or "").strip()


PVIOMMU = Interface(
    "pviommu_abi.h",
    "pviommu",
    "The PV-IOMMU function",
    (
        Section(
            "PCI function and registers",
            _text(registers),
            registers.REGISTERS,
            (
                Constant("VENDOR_ID", registers.VENDOR_ID, "default PCI vendor id"),
                Constant("DEVICE_ID", registers.IOMMU_DEVICE_ID, "default PCI device id"),
                Constant("MAGIC", registers.MAGIC, "value of register MAGIC"),
                Constant("ABI_VERSION", registers.ABI_VERSION, "value of register VERSION", False),
                Constant("REGISTER_BAR", registers.REGISTER_BAR, "BAR of the registers", False),
                Constant("REGISTER_BAR_SIZE", registers.REGISTER_BAR_SIZE, "bytes"),
                Constant("SHARED_BAR", registers.SHARED_BAR, "BAR of the shared memory", False),
                Constant("MSIX_BAR", registers.MSIX_BAR, "BAR of the MSI-X table", False),
                Constant("VECTOR_EVENTS", 0, "MSI-X vector of the event ring", False),
                Constant("VECTOR_RING", 1, "MSI-X vector of ring 0; ring n has the nth after it", False),
                Constant("DOORBELL_STRIDE", registers.DOORBELL_STRIDE, "bytes from one doorbell to the next", False),
                Constant("ENDPOINT_SIGNATURE", registers.ENDPOINT_SIGNATURE, "signature of the vendor capability"),
            ),
            (),
            (("endpoint_capability", registers.EndpointCapability),),
        ),
        Section(
            "Shared memory",
            _text(shared),
            (),
            (
                Constant("SHARED_BAR_SIZE", shared.SHARED_BAR_SIZE, "bytes"),
                Constant("CACHE_LINE", shared.CACHE_LINE, "from the guest's words to the device's", False),
                Constant("INDEX_OFFSET", shared.INDEX_OFFSET, "index lines of ring 0"),
                Constant("RING_INDEX_STRIDE", shared.RING_INDEX_STRIDE, "from one ring's index lines to the next"),
                Constant("EVENT_INDEX_OFFSET", shared.EVENT_INDEX_OFFSET, "index lines of the event ring"),
                Constant("CAPABILITY_OFFSET", shared.CAPABILITY_OFFSET, "capability area"),
                Constant("CAPABILITY_SIZE", shared.CAPABILITY_SIZE, "bytes"),
                Constant("EVENT_OFFSET", shared.EVENT_OFFSET, "event records"),
                Constant("EVENT_ENTRIES", shared.EVENT_ENTRIES, "records of the event ring", False),
                Constant("FAULT_RULES_OFFSET", shared.FAULT_RULES_OFFSET, "page of the fault rules"),
                Constant("FAULT_RULES_SIZE", shared.FAULT_RULES_SIZE, "bytes"),
                Constant("FAULT_PAGE_MAGIC", shared.FAULT_PAGE_MAGIC, "magic of that page"),
                Constant("IN_FLIGHT_OFFSET", shared.IN_FLIGHT_OFFSET, "in-flight lines"),
                Constant("IN_FLIGHT_LINES", shared.IN_FLIGHT_LINES, "lines there", False),
                Constant("MAX_RINGS", shared.MAX_RINGS, "rings that the layout has room for", False),
                Constant("MIN_RING_ENTRIES", shared.MIN_RING_ENTRIES, "fewest slots of a ring", False),
                Constant("CAPABILITY_MAGIC", shared.CAPABILITY_MAGIC, "magic of the capability area"),
                Constant("GLOBAL_STREAM", shared.GLOBAL_STREAM, "stream of a region that concerns all"),
                Constant("SBDF_UNBOUND", shared.SBDF_UNBOUND, "sbdf of an endpoint that is not bound"),
            ),
            (
                ("TABLE_FORMAT", shared.TableFormat),
                ("EVENT", shared.EventReason),
                ("ACCESS", shared.EventAccess),
                ("CAP", shared.CapabilityId),
                ("REGION", shared.RegionKind),
                ("FAULT_RULE", shared.FaultRuleFlags),
            ),
            (
                ("guest_ring_line", shared.GuestRingLine),
                ("device_ring_line", shared.DeviceRingLine),
                ("guest_event_line", shared.GuestEventLine),
                ("device_event_line", shared.DeviceEventLine),
                ("in_flight_line", shared.InFlightLine),
                ("event", shared.Event),
                ("capability_area", shared.CapabilityArea),
                ("capability_header", shared.CapabilityHeader),
                ("capability_count", shared.CapabilityCount),
                ("address_range", shared.AddressRange),
                ("reserved_region", shared.ReservedRegion),
                ("limits", shared.Limits),
                ("endpoint_entry", shared.EndpointEntry),
                ("guest_tables", shared.GuestTables),
                ("fault_rules", shared.FaultRules),
                ("fault_page", shared.FaultPage),
                ("fault_rule", shared.FaultRule),
            ),
        ),
        Section(
            "Slots and operations",
            _text(slots),
            (),
            (
                Constant("SLOT_SIZE", slots.SLOT_SIZE, "bytes of a slot", False),
                Constant("PAYLOAD_OFFSET", slots.PAYLOAD_OFFSET, "payload within a slot", False),
                Constant("PAYLOAD_SIZE", slots.PAYLOAD_SIZE, "bytes", False),
                Constant("PAGE_SHIFT", slots.PAGE_SHIFT, "frames and counts are in pages of 4 KiB", False),
                Constant("DOMID_SELF", xen_v7.DOMID_SELF, "domid that names the caller"),
                Constant("DEFAULT_CONTEXT", slots.DEFAULT_CONTEXT, "cannot be edited or freed", False),
            ),
            (
                ("CLASS", slots.OpClass),
                ("SLOT", slots.SlotFlags),
                ("XEN2024", xen_2024.Xen2024Op),
                ("CREATE", xen_2024.CreateFlags),
                ("FREE", xen_2024.FreeFlags),
                ("MAP", xen_2024.MapFlags),
                ("V7", xen_v7.XenV7Op),
                ("V7_CAP", xen_v7.V7Capability),
                ("V7_ALLOC", xen_v7.V7AllocFlags),
                ("V7_FREE", xen_v7.V7FreeFlags),
                ("V7_MAP", xen_v7.V7MapFlags),
                ("VENDOR_OP", vendor.VendorOp),
                ("BATCH", vendor.BatchFlags),
                ("TABLES", vendor.TablesFlags),
            ),
            (
                ("slot", slots.Slot),
                ("op_head", xen_2024.PvIommuOp),
                ("op_query_capabilities", xen_2024.QueryCapabilities),
                ("op_map_pages", xen_2024.MapPages),
                ("op_unmap_pages", xen_2024.UnmapPages),
                ("op_reattach_device", xen_2024.ReattachDevice),
                ("op_lookup_page", xen_2024.LookupPage),
                ("v7_capabilities", xen_v7.V7Capabilities),
                ("v7_init", xen_v7.V7Init),
                ("v7_alloc", xen_v7.V7Alloc),
                ("v7_free", xen_v7.V7Free),
                ("v7_map_pages", xen_v7.V7MapPages),
                ("v7_unmap_pages", xen_v7.V7UnmapPages),
                ("v7_reattach_device", xen_v7.V7ReattachDevice),
                ("v7_remote_cmd", xen_v7.V7RemoteCmd),
                ("op_binding", vendor.Binding),
                ("op_batch", vendor.Batch),
                ("map_op", vendor.MapOp),
                ("op_call", vendor.Call),
                ("op_reserve", vendor.Reserve),
                ("op_usage", vendor.Usage),
                ("op_alloc_tables", vendor.AllocTables),
                ("op_flush", vendor.Flush),
            ),
        ),
    ),
)

DMA_TEST = Interface(
    "pviommu_dma_test.h",
    "pvdt",
    "The DMA test engine",
    (
        Section(
            "Registers, descriptors, scatter/gather",
            _text(dma_test),
            dma_test.REGISTERS,
            (
                Constant("VENDOR_ID", registers.VENDOR_ID, "default PCI vendor id"),
                Constant("DEVICE_ID", registers.DMA_TEST_DEVICE_ID, "default PCI device id"),
                Constant("MAGIC", dma_test.MAGIC, "value of register MAGIC"),
                Constant("VERSION", dma_test.VERSION, "value of register VERSION", False),
                Constant("REGISTER_BAR", registers.REGISTER_BAR, "BAR of the registers", False),
                Constant("SHARED_BAR", registers.SHARED_BAR, "BAR of descriptors and entries", False),
                Constant("SHARED_BAR_SIZE", dma_test.SHARED_BAR_SIZE, "bytes"),
                Constant("ENTRIES", dma_test.ENTRIES, "descriptors of the queue", False),
                Constant("SG_ENTRIES", dma_test.SG_ENTRIES, "scatter/gather entries", False),
                Constant("SG_OFFSET", dma_test.SG_OFFSET, "first scatter/gather entry"),
                Constant("MAX_LENGTH", dma_test.MAX_LENGTH, "most bytes of one descriptor"),
            ),
            (
                ("OP", dma_test.DmaOp),
                ("FLAG", dma_test.DescriptorFlags),
                ("STATUS", dma_test.DescriptorStatus),
            ),
            (("descriptor", dma_test.Descriptor), ("sg_entry", dma_test.SgEntry)),
        ),
    ),
)

XOR = Interface(
    "pviommu_xor.h",
    "pvxor",
    "The XOR endpoint",
    (
        Section(
            "Registers",
            _text(xor),
            xor.REGISTERS,
            (
                Constant("VENDOR_ID", registers.VENDOR_ID, "PCI vendor id"),
                Constant("DEVICE_ID", registers.XOR_DEVICE_ID, "PCI device id"),
                Constant("REGISTER_BAR", registers.REGISTER_BAR, "BAR of the registers", False),
                Constant("MAX_LENGTH", xor.MAX_LENGTH, "most bytes of a buffer"),
            ),
        ),
    ),
)

INTERFACES = (PVIOMMU, DMA_TEST, XOR)
