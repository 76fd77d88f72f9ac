"""What a hostile guest does: slots of every class, index words, registers, guest memory, DMA, in any order.

Input: u8 limits, u8 profile (bit 1: the endpoint has direct regions), then steps, each a u8 of ``_STEPS`` and what
that step takes. Frame numbers are a u8 with a u8 that spreads them (see ``_frame``), so that small inputs reach each
level of the page tables.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from pviommu.dma.fault import DmaRefusedError
from pviommu.dma.windows import MAX_REGISTER_BYTES
from pviommu.engine import Access
from pviommu.host.work import Work
from pviommu.machine import Machine
from pviommu.topology import IommuSection, ReservedSection
from pviommu_abi import dma_test, vendor, xen_2024, xen_v7
from pviommu_abi.registers import REGISTER, REGISTER_BAR, REGISTERS, Profile, RingControl
from pviommu_abi.shared import CACHE_LINE, EVENT_INDEX_OFFSET, RING_AREA_OFFSET, RING_INDEX_STRIDE
from pviommu_abi.slots import PAYLOAD_SIZE, SLOT_SIZE, OpClass, Slot, SlotFlags
from pviommu_abi.vendor import VendorOp
from pviommu_abi.xen_2024 import Xen2024Op
from pviommu_abi.xen_v7 import XenV7Op
from vfio_user import DmaMapping, RequestError

from .feed import Feed
from .machine import RAM_SIZE, STREAM, Meddled, check_engine, sealed_memory, small_machine

__all__ = ["TOKENS", "target"]

MAX_STEPS = 96
RINGS = 2
ENTRIES = 16
DEVFN = 0x28
RAM_PAGES = RAM_SIZE >> 12
DMA_LIMIT = 0x40000
MSI = (0xFEE00, 0xFEEFF)
DIRECT = (ReservedSection(0x10000, 0x4000), ReservedSection(0x7FFFF000, 0x2000))
_SPREAD = (0, 0, 8, 9, 17, 18, 20, 27, 51, 56)
_MASK = 0xFFFFFFFF
_MASK_64 = (1 << 64) - 1
TOKENS = tuple(
    Slot(op_class, op, 0, 0).pack()[:4]
    for op_class, ops in ((OpClass.XEN_2024, [0]), (OpClass.XEN_V7, XenV7Op), (OpClass.VENDOR, VendorOp))
    for op in ops
)


def target(data: bytes) -> None:
    """Nothing raises, one bad request fails alone, and the engine's books are right after every step of work."""
    feed = Feed(data)
    limits, profile = feed.u8(), feed.u8()
    entry = IommuSection(
        rings=RINGS,
        contexts=(3, 1, 255, 8)[limits & 3],
        pool_pages=(24, 3, 4096, 64)[limits >> 2 & 3],
        max_pages_per_op=(4096, 16)[limits >> 4 & 1],
        aperture_bits=(39, 48, 32, 39)[limits >> 5 & 3],
        default_policy=("identity", "blocked")[limits >> 7],
    )
    inputs, ram = Meddled(), sealed_memory()
    try:
        with small_machine(entry, inputs, ram, DIRECT if profile & 2 else ()) as machine:
            guest = _Guest(machine, inputs, ram)
            guest.start(profile)
            for _ in range(MAX_STEPS):
                if not feed:
                    break
                _STEPS[feed.u8() % len(_STEPS)](guest, feed)
            inputs.meddle = None
            guest.work(feed)
            guest.reset(feed)
            assert machine.iommu.engine.usage()[:2] == (0, 0)
    finally:
        os.close(ram)


def _frame(feed: Feed) -> int:
    low, spread = feed.u8(), feed.u8()
    return ((spread >> 4) << _SPREAD[(spread & 0xF) % len(_SPREAD)]) + low & _MASK_64


class _Guest:
    def __init__(self, machine: Machine, inputs: Meddled, ram: int) -> None:
        self.machine = machine
        self.step = Work(machine).step
        self.iommu = machine.iommu
        self.dma = machine.endpoints["dma0"]
        self.inputs = inputs
        self.ram = ram
        self.producer = [0] * RINGS

    def start(self, profile: int) -> None:
        """Bus mastering, profile, rings."""
        self.dma.region_write(7, 4, b"\x06\x00")
        self._set("PROFILE", Profile.XEN_V7 if profile & 1 else Profile.XEN_2024)
        for ring in range(RINGS):
            self.producer[ring] = 0
            self.iommu.shared.words[ring * RING_INDEX_STRIDE // 4] = 0
            self._set("RING_SELECT", ring)
            self._set("RING_ENTRIES", ENTRIES)
            self._set("RING_BASE_LO", self._base(ring))
            self._set("RING_CONTROL", RingControl.ENABLE)

    def _set(self, name: str, value: int) -> None:
        self.iommu.region_write(REGISTER_BAR, REGISTER[name].offset, value.to_bytes(4, "little"))

    @staticmethod
    def _base(ring: int) -> int:
        return RING_AREA_OFFSET + ring * 0x10000

    def _put(self, op_class: int, op: int, how: int, payload: bytes) -> None:
        """A slot; ``how``: bit 0 the ring, bit 1 posted, the others make flags wrong if all are set."""
        ring = how % RINGS
        flags = int(SlotFlags.POSTED) if how & 2 else 0
        if how >= 0xF8:
            flags |= how << 4
        position = self.producer[ring]
        at = self._base(ring) + position % ENTRIES * SLOT_SIZE
        head = Slot(op_class, op, flags, position).pack()
        self.iommu.shared.view[at : at + SLOT_SIZE] = head + payload[:PAYLOAD_SIZE].ljust(PAYLOAD_SIZE, b"\0")
        self.producer[ring] = position + 1 & _MASK
        self.iommu.shared.words[ring * RING_INDEX_STRIDE // 4] = self.producer[ring]

    # -- slots ------------------------------------------------------------------------------------------------------

    def any_slot(self, feed: Feed) -> None:
        self._put(feed.u8(), feed.u8(), feed.u8(), feed.take(PAYLOAD_SIZE))

    def context_2024(self, feed: Feed) -> None:
        op = feed.pick((Xen2024Op.ALLOC_CONTEXT, Xen2024Op.FREE_CONTEXT, Xen2024Op.QUERY_CAPABILITIES, Xen2024Op.NOOP))
        self._put(OpClass.XEN_2024, 0, feed.u8(), xen_2024.PvIommuOp(op, feed.u8(), feed.u8()).pack())

    def attach_2024(self, feed: Feed) -> None:
        payload = xen_2024.ReattachDevice(Xen2024Op.REATTACH_DEVICE, feed.u8(), 0, 0, 0, DEVFN).pack()
        self._put(OpClass.XEN_2024, 0, feed.u8(), payload)

    def map_2024(self, feed: Feed) -> None:
        how, ctx, flags, gfn, dfn, nr = feed.u8(), feed.u8(), feed.u8(), _frame(feed), _frame(feed), feed.u16()
        payload = xen_2024.MapPages(Xen2024Op.MAP_PAGES, ctx, flags, gfn, dfn, nr).pack()
        self._put(OpClass.XEN_2024, 0, how, payload)

    def unmap_2024(self, feed: Feed) -> None:
        how, ctx, dfn, nr = feed.u8(), feed.u8(), _frame(feed), feed.u16()
        self._put(OpClass.XEN_2024, 0, how, xen_2024.UnmapPages(Xen2024Op.UNMAP_PAGES, ctx, 0, dfn, nr).pack())

    def lookup_2024(self, feed: Feed) -> None:
        payload = xen_2024.LookupPage(Xen2024Op.LOOKUP_PAGE, feed.u8(), 0, 0, _frame(feed)).pack()
        self._put(OpClass.XEN_2024, 0, feed.u8(), payload)

    def context_v7(self, feed: Feed) -> None:
        """INIT, ALLOC, FREE, REATTACH, or any other operation with the bytes of the input."""
        op, how, ctx, flags = feed.u8() % (len(XenV7Op) + 1), feed.u8(), feed.u8(), feed.u8()
        if op == XenV7Op.INIT:
            payload = xen_v7.V7Init(ctx, flags).pack()
        elif op == XenV7Op.ALLOC_CONTEXT:
            payload = xen_v7.V7Alloc(0, 0, flags).pack()
        elif op == XenV7Op.FREE_CONTEXT:
            payload = xen_v7.V7Free(ctx, 0, flags).pack()
        elif op == XenV7Op.REATTACH_DEVICE:
            payload = xen_v7.V7ReattachDevice(ctx, 0, 0, DEVFN, 0, 0).pack()
        else:
            payload = feed.take(flags)
        self._put(OpClass.XEN_V7, op, how, payload)

    def map_v7(self, feed: Feed) -> None:
        how, ctx, flags, gfn, dfn, nr = feed.u8(), feed.u8(), feed.u8(), _frame(feed), _frame(feed), feed.u32()
        payload = xen_v7.V7MapPages(ctx, 0, 0, gfn, dfn, flags, 4096, nr, feed.u8()).pack()
        self._put(OpClass.XEN_V7, XenV7Op.MAP_PAGES, how, payload)

    def unmap_v7(self, feed: Feed) -> None:
        how, ctx, dfn, nr = feed.u8(), feed.u8(), _frame(feed), feed.u32()
        payload = xen_v7.V7UnmapPages(ctx, 0, 0, dfn, 4096, nr, feed.u8(), 0).pack()
        self._put(OpClass.XEN_V7, XenV7Op.UNMAP_PAGES, how, payload)

    def binding(self, feed: Feed) -> None:
        ops = (VendorOp.BIND, VendorOp.UNBIND, VendorOp.QUERY_ENDPOINT, VendorOp.BLOCK)
        op, how, stream = feed.pick(ops), feed.u8(), feed.u8()
        self._put(OpClass.VENDOR, op, how, vendor.Binding(0, 0, DEVFN, STREAM if stream & 1 else stream).pack())

    def own(self, feed: Feed) -> None:
        op, how = feed.u8(), feed.u8()
        self._put(OpClass.VENDOR, op, how, feed.take(feed.u8()))

    def batch(self, feed: Feed) -> None:
        """Write the elements to guest memory, then the slot that names them."""
        how, ctx, flags, count = feed.u8(), feed.u8(), feed.u8(), feed.u8()
        address = feed.u16() << 3
        elements = b"".join(
            vendor.MapOp(_frame(feed), _frame(feed), feed.u8(), 0).pack() for _ in range(min(count, 16)) if feed
        )
        os.pwrite(self.ram, elements[: max(0, RAM_SIZE - address)], address)
        self._put(OpClass.VENDOR, VendorOp.BATCH, how, vendor.Batch(address, count, flags, ctx).pack())

    def call(self, feed: Feed) -> None:
        """Write a structure to guest memory, then the slot that names it."""
        how, op, address = feed.u8(), feed.u8(), feed.u16() << 3
        os.pwrite(self.ram, feed.take(feed.u8())[: max(0, RAM_SIZE - address)], address)
        self._put(OpClass.VENDOR, VendorOp.CALL, how, vendor.Call(address, op).pack())

    # -- everything else that a guest can do ------------------------------------------------------------------------

    def work(self, _: Feed) -> None:
        """Some steps of the loop, then the books."""
        for _ in range(4):
            if not self.step():
                break
        check_engine(self.iommu.engine)

    def index(self, feed: Feed) -> None:
        """Producer, completion event, event consumer or arm word."""
        which, value = feed.u8(), feed.u32()
        base = EVENT_INDEX_OFFSET if which & 4 else which % RINGS * RING_INDEX_STRIDE
        self.iommu.shared.words[base // 4 + (which >> 1 & 1)] = value

    def register(self, feed: Feed) -> None:
        which, value = feed.u8(), feed.u32()
        self._set(REGISTERS[which % len(REGISTERS)].name, value)

    def shared(self, feed: Feed) -> None:
        """Any bytes to any place of the shared BAR."""
        offset, piece = feed.u32() % (RING_AREA_OFFSET + 0x20000), feed.take(feed.u8())
        self.iommu.shared.view[offset : offset + len(piece)] = piece

    def device_line(self, feed: Feed) -> None:
        """The words that only the device should write: it must not believe them."""
        which, value = feed.u8(), feed.u32()
        self.iommu.shared.words[(which % RINGS * RING_INDEX_STRIDE + CACHE_LINE) // 4 + (which >> 1 & 1)] = value

    def do_dma(self, feed: Feed) -> None:
        """DMA, allowed or refused; what is allowed lies in RAM."""
        what, iova, length = feed.u8(), (_frame(feed) << 12 & _MASK_64) + feed.u8(), feed.u32() % DMA_LIMIT + 1
        try:
            if what & 1:
                self.dma.dma.write([(iova, length)], bytes(length))
            else:
                assert len(self.dma.dma.read([(iova, length), (iova, 1)])) == length + 1
        except DmaRefusedError as refused:
            first = refused.fault.iova
        else:
            first = iova
            self._check_allowed(iova, length, Access.WRITE if what & 1 else Access.READ)
        assert iova <= first < iova + length, "the first refused address lies in the request"

    def _check_allowed(self, iova: int, length: int, access: Access) -> None:
        """The tables, looked at page by page, allow what DMA was just allowed."""
        engine = self.iommu.engine
        assert not engine.is_blocked(STREAM)
        context = engine.endpoints()[STREAM]
        for dfn in range(iova >> 12, (iova + length - 1 >> 12) + 1):
            found = engine.lookup(context, dfn)
            assert found is not None, f"DMA through dfn {dfn:#x}, which context {context} does not map"
            assert found[1] & access, f"{access.name} through dfn {dfn:#x}, which is {found[1]!r}"

    def bar(self, feed: Feed) -> None:
        """A BAR of the endpoint goes anywhere, to memory or into another one too, or its decoding off and on."""
        which, address = feed.u8(), _frame(feed) << 12 & _MASK_64
        if which & 4:
            self.dma.region_write(7, 4, bytes((6 if which & 8 else 4, 0)))
        self.dma.region_write(7, 0x10 + 4 * (which & 3), address.to_bytes(8, "little")[: 8 if which & 3 == 2 else 4])
        for first, last in self.iommu.engine.mmio:
            assert last < MSI[0] or first > MSI[1], "a BAR in the MSI window is reached"

    def descriptor(self, feed: Feed) -> None:
        """The endpoint gets a descriptor, carries it out and what it leads to: it may lead to the endpoint itself."""
        op, flags, src, dst = feed.u8() % 6, feed.u8(), _frame(feed) << 12, _frame(feed) << 12
        length, pattern = feed.u32() % DMA_LIMIT, feed.u64()
        consumer = int.from_bytes(self.dma.region_read(0, dma_test.REGISTER["CONSUMER"].offset, 4), "little")
        at = consumer % dma_test.ENTRIES * dma_test.Descriptor.SIZE
        packed = dma_test.Descriptor(op, flags & 7, 0, length, src & _MASK_64, dst & _MASK_64, pattern).pack()
        self.dma.shared.view[at : at + len(packed)] = packed
        for name, value in (("CONTROL", 1), ("PRODUCER", consumer + 1)):
            self.dma.region_write(0, dma_test.REGISTER[name].offset, (value & _MASK).to_bytes(4, "little"))
        self.step()
        self._check_queue()

    def _check_queue(self) -> None:
        producer, consumer = (
            int.from_bytes(self.dma.region_read(0, dma_test.REGISTER[name].offset, 4), "little")
            for name in ("PRODUCER", "CONSUMER")
        )
        assert producer - consumer & _MASK <= dma_test.ENTRIES, "the queue holds more than fits"
        assert self.machine.windows.room() == MAX_REGISTER_BYTES, "a register is still to be written"

    def memory(self, feed: Feed) -> None:
        """The hypervisor adds or removes guest memory."""
        page, pages = feed.u8() % (2 * RAM_PAGES), feed.u8()
        mapping = DmaMapping(page << 12, max(1, pages) << 12, 0, True, True, os.dup(self.ram))
        function = self.dma if pages & 1 else self.iommu
        try:
            if pages < 2:
                function.dma_unmap(0, RAM_SIZE)
            else:
                function.dma_map(mapping)
                return
        except RequestError:
            if pages >= 2:
                return
        assert mapping.fd is not None
        os.close(mapping.fd)

    def arm(self, _: Feed) -> None:
        if self.iommu.arm():
            assert not self.iommu.work()
        self.iommu.disarm()

    def drain(self, _: Feed) -> None:
        for _ in self.iommu.drain():
            pass

    def meddle(self, feed: Feed) -> None:
        """From now on the guest changes what the device has just copied."""
        offset, piece = feed.u32() % (RING_AREA_OFFSET + 0x20000), feed.take(feed.u8())

        def change() -> None:
            self.iommu.shared.view[offset : offset + len(piece)] = piece

        self.inputs.meddle = change if piece else None

    def reset(self, _: Feed) -> None:
        self.iommu.reset()
        check_engine(self.iommu.engine)

    def restart(self, feed: Feed) -> None:
        """Rings off, a profile, rings on."""
        for ring in range(RINGS):
            self._set("RING_SELECT", ring)
            self._set("RING_CONTROL", 0)
        self.start(feed.u8())

    def endpoint(self, feed: Feed) -> None:
        """Reset of the endpoint, or its bus mastering off and on."""
        held = STREAM in self.iommu.contexts._held
        if feed.u8() & 1:
            self.dma.reset()
        self.dma.region_write(7, 4, b"\0\0")
        self.dma.region_write(7, 4, b"\x06\0")
        assert self.iommu.engine.is_blocked(STREAM) is held


_STEPS: tuple[Callable[[_Guest, Feed], None], ...] = (
    _Guest.work,
    _Guest.any_slot,
    _Guest.context_2024,
    _Guest.attach_2024,
    _Guest.map_2024,
    _Guest.unmap_2024,
    _Guest.lookup_2024,
    _Guest.context_v7,
    _Guest.map_v7,
    _Guest.unmap_v7,
    _Guest.binding,
    _Guest.own,
    _Guest.batch,
    _Guest.call,
    _Guest.index,
    _Guest.register,
    _Guest.shared,
    _Guest.device_line,
    _Guest.do_dma,
    _Guest.memory,
    _Guest.arm,
    _Guest.drain,
    _Guest.meddle,
    _Guest.reset,
    _Guest.restart,
    _Guest.endpoint,
    _Guest.bar,
    _Guest.descriptor,
)
STEP = {step.__name__: number for number, step in enumerate(_STEPS)}
"""The byte of each step, for seeds."""
