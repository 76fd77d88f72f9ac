"""What guests do for scenarios: each workload passes other probes, and looks whether the device keeps its promises."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import NamedTuple

from pviommu_abi.dma_test import DmaOp
from pviommu_abi.registers import Profile
from pviommu_abi.slots import Errno, OpClass
from pviommu_abi.vendor import Batch, Binding, Call, MapOp, Reserve, VendorOp
from pviommu_abi.xen_2024 import PvIommuOp, QueryCapabilities, UnmapPages, Xen2024Op
from pviommu_abi.xen_v7 import (
    DOMID_SELF,
    V7Alloc,
    V7Capabilities,
    V7Free,
    V7Init,
    V7MapPages,
    V7ReattachDevice,
    V7RemoteCmd,
    V7UnmapPages,
    XenV7Op,
)
from vfio_user import Command, IrqIndex, RegionIndex, RemoteError
from vfio_user.messages import GetRegionIoFds, WriteMulti

from ..guest.events import EventRing
from ..guest.tables import InFlight, PageTables
from ..guest.wire import WireFunction
from ..topology import Topology
from . import iommufd, network, smmu
from .guest import Played, PlayedGuest
from .stage import RAM_PAGES, STREAMS, TOPOLOGY, Stage, tried_again

__all__ = ["WORKLOADS", "Workload", "newcomer"]

_SELDOM = (
    (Command.DEVICE_GET_REGION_IO_FDS, GetRegionIoFds(GetRegionIoFds.SIZE, 0, 0, 0).pack()),
    (Command.REGION_WRITE_MULTI, WriteMulti(0).pack()),
)
"""Messages that QEMU may send and this guest has no use for."""

ROUNDS = 32
_IOVA, _GPA = 0x40000000, 0x200000
_TABLES = 0x100
"""First frame of tables that the guest owns."""
_IN_FLIGHT = 2
"""Maps that are in a ring at a time."""
_LIVES = 2
"""How often the IOMMU is set up, with a reset in between."""


class Workload(NamedTuple):
    """One of them."""

    text: str
    play: Callable[[Stage], Iterator[Played]]
    """gives the guest as soon as there is one, and then plays it"""
    has_clients: bool = False
    """whether the guest comes by sockets, and so is seen to go"""
    topology: Callable[[], Topology] = lambda: TOPOLOGY
    """of the machine"""


def _rounds(guest: PlayedGuest, count: int) -> None:
    """Maps, DMA to what is mapped, unmaps, DMA to what was unmapped; retries what is refused for lack of memory."""
    contexts = {name: guest.attached(name) for name in STREAMS}
    for number in range(count):
        name = ("dma0", "dma1")[number % 2]
        ctx, pages = contexts[name], 1 + number * 7 % 13
        if ctx is None:
            continue
        dfn, gfn = (_IOVA >> 12) + 0x40 * number, (_GPA >> 12) + 0x20 * number
        _round(guest, name, ctx, dfn, gfn, pages)
    guest.burst(4)
    usage = guest.usage()
    guest.check(usage.mapped_pages == 0, f"{usage.mapped_pages} pages are still mapped")
    for ctx in contexts.values():
        if ctx is not None:
            guest.check(guest.free(ctx, 1) == 0, f"context {ctx} cannot be freed")


def _round(guest: PlayedGuest, name: str, ctx: int, dfn: int, gfn: int, pages: int) -> None:
    mapped = 0
    for _ in range(3):
        result, done = guest.map(ctx, dfn + mapped, gfn + mapped, pages - mapped)
        guest.check(done <= pages - mapped, f"a map of {pages - mapped} pages counts {done}")
        mapped += min(done, pages - mapped)
        if result != -Errno.ENOMEM:
            break
    if mapped:
        found, frame = guest.lookup(ctx, dfn + mapped - 1)
        guest.check((found, frame) == (0, gfn + mapped - 1), f"dfn {dfn + mapped - 1:#x} is mapped to {frame:#x}")
        guest.fill(name, (dfn << 12) + 5, (gfn << 12) + 5, (mapped << 12) - 10, 0x1122334455667788 + dfn)
    left = mapped
    for _ in range(3):
        if not left:
            break
        _, done = guest.unmap(ctx, dfn + mapped - left, left)
        left -= min(done, left)
    guest.check(left == 0, f"{left} pages from dfn {dfn:#x} on cannot be unmapped")
    guest.refused(name, dfn << 12)


def maps(stage: Stage) -> Iterator[PlayedGuest]:
    """By calls in one process."""
    guest = PlayedGuest(stage)
    yield guest
    guest.start()
    _rounds(guest, ROUNDS)


def rings(stage: Stage) -> Iterator[PlayedGuest]:
    """By calls: a ring for each engine, with commands in flight in both."""
    guest = PlayedGuest(stage)
    yield guest
    guest.start()
    guest.second_ring.turn_on()
    used = {
        name: (ring, ctx)
        for name, ring in zip(STREAMS, (guest.ring, guest.second_ring), strict=True)
        if (ctx := guest.attached(name)) is not None
    }
    for number in range(ROUNDS // 2):
        dfn, gfn, pages = (_IOVA >> 12) + 0x40 * number, (_GPA >> 12) + 0x40 * number, 1 + number % 5
        maps = {
            name: [
                guest.submit(ring, guest.map_payload(ctx, dfn + at, gfn + 0x20 * which + at, pages))
                for at in range(0, _IN_FLIGHT * pages, pages)
            ]
            for which, (name, (ring, ctx)) in enumerate(used.items())
        }
        results = {name: {guest.answer(used[name][0], slot)[0] for slot in maps[name]} for name in used}
        length = _IN_FLIGHT * pages << 12
        for which, name in enumerate(used):
            if results[name] == {0}:
                guest.fill(name, dfn << 12, gfn + 0x20 * which << 12, length, 0x0807060504030201 + number)
        unmaps = {
            name: guest.submit(ring, guest.unmap_payload(ctx, dfn, _IN_FLIGHT * pages))
            for name, (ring, ctx) in used.items()
        }
        for name, (ring, _) in used.items():
            result = guest.answer(ring, unmaps[name])[0]
            guest.check(result == 0 or results[name] != {0}, f"dfn {dfn:#x} of {name} cannot be unmapped")
            guest.refused(name, dfn << 12)


def recovery(stage: Stage) -> Iterator[PlayedGuest]:
    """By calls: what is refused or stops is tried again, after a reset if need be; a reset of the IOMMU in between."""
    guest = PlayedGuest(stage)
    yield guest
    guest.start()
    for life in range(_LIVES):
        if life:
            guest.reset_iommu()
            for name in STREAMS:
                guest.refused(name, _IOVA)
                guest.reset_engine(name)
        for number, name in enumerate(STREAMS):
            ctx = guest.attached(name)
            if ctx is None:
                continue
            gpa = _GPA + (number << 16)
            guest.check(guest.map(ctx, _IOVA >> 12, gpa >> 12, 4) == (0, 4), f"4 pages of {name} cannot be mapped")
            for page in range(0, 0x4000, 0x1000):
                guest.fill_in_the_end(name, _IOVA + page, gpa + page, 0x1000, 0x0102030405060708 + page)


def operations(stage: Stage) -> Iterator[PlayedGuest]:
    """Each operation of either profile, and each of the device's own."""
    guest = PlayedGuest(stage)
    yield guest
    guest.start()
    ram, ctx = stage.ram.bytes, guest.attached("dma0")
    guest.call(QueryCapabilities(Xen2024Op.QUERY_CAPABILITIES, 0, 0).pack())
    if ctx is not None:
        guest.map(ctx, 0x100, 0x10, 4)
        guest.lookup(ctx, 0x100)
        guest.unmap(ctx, 0x100, 4)
        ram[0x3000:0x3018] = MapOp(0x200, 0x20, 3).pack()
        guest.call(Batch(0x3000, 1, 0, ctx).pack(), OpClass.VENDOR, VendorOp.BATCH)
        ram[0x3000:0x3020] = UnmapPages(Xen2024Op.UNMAP_PAGES, ctx, 0, 0x200, 1, 0).pack().ljust(32, b"\0")
        guest.call(Call(0x3000, 0).pack(), OpClass.VENDOR, VendorOp.CALL)
        guest.call(Reserve(ctx, 0, 8).pack(), OpClass.VENDOR, VendorOp.RESERVE)
    binding = Binding(0, 0, guest.devfns["dma0"])
    guest.call(binding.pack(), OpClass.VENDOR, VendorOp.QUERY_ENDPOINT)
    guest.burst(4)
    guest.call(binding.pack(), OpClass.VENDOR, VendorOp.BLOCK)
    guest.call(binding.pack(), OpClass.VENDOR, VendorOp.UNBIND)
    if ctx is not None:
        guest.call(PvIommuOp(Xen2024Op.FREE_CONTEXT, ctx, 1).pack())
    guest.iommu.write("RING_CONTROL", 0)
    guest.start(Profile.XEN_V7)
    for op, payload in (
        (XenV7Op.QUERY_CAPABILITIES, V7Capabilities()),
        (XenV7Op.INIT, V7Init(8, 6)),
        (XenV7Op.ALLOC_CONTEXT, V7Alloc(0, 0, 0)),
        (XenV7Op.MAP_PAGES, V7MapPages(1, 0, 0, 0x10, 0x100, 3, 4096, 4, 0)),
        (XenV7Op.UNMAP_PAGES, V7UnmapPages(1, 0, 0, 0x100, 4096, 4, 0, 0)),
    ):
        guest.call(payload.pack(), OpClass.XEN_V7, op)
    guest.bind_stream(guest.devfns["dma0"], STREAMS["dma0"])
    guest.call(V7ReattachDevice(1, 0, 0, guest.devfns["dma0"], 0, 0).pack(), OpClass.XEN_V7, XenV7Op.REATTACH_DEVICE)
    ram[0x3000:0x3008] = V7Free(1, 0, 1).pack()
    remote = V7RemoteCmd(DOMID_SELF, XenV7Op.FREE_CONTEXT, 0, 0x3000)
    guest.call(remote.pack(), OpClass.XEN_V7, XenV7Op.REMOTE_CMD)
    guest.call(V7Free(1, 0, 1).pack(), OpClass.XEN_V7, XenV7Op.FREE_CONTEXT)


def tables(stage: Stage) -> Iterator[PlayedGuest]:
    """By calls: tables that the guest owns, mapped and unmapped by stores. What was unmapped strictly must be out of
    reach, and is used by the guest at once.
    """
    guest = PlayedGuest(stage)
    yield guest
    guest.start()
    ram = stage.ram.bytes
    with contextlib.closing(PageTables(memoryview(ram), count(_TABLES))) as owned:
        result, made = guest.retried(lambda: guest.alloc_tables(owned.root))
        name = "dma0"
        if result or guest.bind_stream(guest.devfns[name], STREAMS[name]) not in (0, -Errno.EEXIST):
            return
        if guest.retried(lambda: guest.reattach_device(guest.devfns[name], made.ctx_no))[0]:
            return
        line = InFlight(guest.iommu, made.line)
        for number in range(ROUNDS // 2):
            iova, gpa, pages = _IOVA + (number << 16), _GPA + (number << 14), 1 + number % 3
            for page in range(pages):
                owned.map(iova + (page << 12), gpa + (page << 12))
            guest.fill(name, iova + 5, gpa + 5, (pages << 12) - 10, 0x1122334455667788 + number)
            for page in range(pages):
                owned.unmap(iova + (page << 12))
            if number % 4 == 0 or not line.is_quiet():
                guest.flush(made.ctx_no)
            guest.check(line.is_quiet(), f"step {line.step}, {line.pending} pending, and nothing is in flight")
            mark = bytes([number]) * 16
            ram[gpa : gpa + 16] = mark
            guest.refused(name, iova)
            guest.check(bytes(ram[gpa : gpa + 16]) == mark, f"DMA reached GPA {gpa:#x} after its unmap")
        guest.check(guest.free(made.ctx_no, 1) == 0, f"context {made.ctx_no} cannot be freed")


def wire(stage: Stage) -> Iterator[PlayedGuest]:
    """Over vfio-user: sockets, messages, shared memory, interrupts; a client that goes and comes again."""
    with contextlib.ExitStack() as stack:
        functions = _powered(stage, stack)
        guest = PlayedGuest(stage, functions)
        yield guest
        iommu = functions["iommu"]
        guest.start()
        iommu.client.irq_info(IrqIndex.MSIX)
        for fd in iommu.client.enable_msix(2):
            stack.callback(os.close, fd)
        iommu.client.config_read(RegionIndex.CONFIG, 4)
        for command, payload in _SELDOM:
            with contextlib.suppress(RemoteError):
                iommu.client.request(command, payload)
        _rounds(guest, ROUNDS)
        iommu.unplug(0, RAM_PAGES << 12)
        tried_again(partial(iommu.plug, 0, RAM_PAGES << 12, stage.ram.fd))
        with contextlib.suppress(RemoteError):
            iommu.client.reset()
        guest.events = EventRing(iommu)
        guest.dma("dma0", DmaOp.FILL, 8, dst=0x300000, pattern=1)


def newcomer(stage: Stage) -> list[str]:
    """A guest that comes after another one, over vfio-user where it drives DMA test engines, and does some rounds: the
    harm that it came to.
    """
    if stage.machine.smmus:
        return _smmu_newcomer(stage)
    if stage.topology != TOPOLOGY:
        return _network_newcomer(stage)
    with contextlib.ExitStack() as stack:
        guest = PlayedGuest(stage, _powered(stage, stack))
        guest.start()
        _rounds(guest, 4)
        return guest.harm


def _network_newcomer(stage: Stage) -> list[str]:
    for card in network.cards_of(stage):
        card.set_link(True)  # as an operator does
    stage.machine.iommu.reset()
    guest = _played(stage, network.exchanges(stage, 4))
    arrived = guest.answers["frame arrived"]
    return guest.harm if arrived == 4 else [*guest.harm, f"{arrived} of 4 frames arrived"]


def _smmu_newcomer(stage: Stage) -> list[str]:
    for function in stage.machine.functions():
        function.reset()
    return _played(stage, smmu.rounds(stage, 4)).harm


def _played(stage: Stage, steps: Iterator[PlayedGuest]) -> PlayedGuest:
    """The guest of a workload by calls, once it is done and has gone."""
    guest = next(steps)
    next(steps, None)
    for function in stage.machine.functions():
        function.disconnected()
    return guest


def _powered(stage: Stage, stack: contextlib.ExitStack) -> dict[str, WireFunction]:
    """All functions, each by a client that is closed with ``stack``, and reset as a machine that is turned on does."""
    functions = stage.connected(stack)
    for function in functions.values():
        function.client.reset()
    return functions


WORKLOADS = {
    "maps": Workload("maps, DMA and unmaps of two engines, each byte looked at", maps),
    "rings": Workload("the same with a ring for each engine and commands in flight in both", rings),
    "recovery": Workload("transfers that are tried again, resets of engines and IOMMU in between", recovery),
    "operations": Workload("every operation of both profiles", operations),
    "tables": Workload("maps and strict unmaps in tables that the guest owns", tables),
    "wire": Workload("the same as maps over vfio-user, with messages and interrupts", wire, True),
    "network": Workload(
        "frames to and fro between two network cards, resets and frames that are sent again",
        network.exchanges,
        topology=network.topology,
    ),
    "iommufd": Workload("programs that make requests of iommufd and VFIO, again where one fails", iommufd.programs),
    "smmu": Workload("maps, DMA and unmaps of an engine behind a virtual SMMUv3", smmu.rounds, topology=smmu.topology),
    "smmu-ats": Workload(
        "the same with an engine that keeps translations and asks for pages",
        smmu.ats_rounds,
        topology=smmu.ats_topology,
    ),
}
"""By name."""
