"""Hostile guests and clients that die: the back end outlives them, and nothing of theirs stays."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import traceback

import pytest

from pviommu_abi.dma_test import DescriptorStatus, DmaOp
from pviommu_abi.registers import REGISTER, RingStatus
from pviommu_abi.shared import EVENT_ENTRIES, RING_AREA_OFFSET, EventReason
from pviommu_abi.slots import SLOT_SIZE, Errno, OpClass
from pviommu_abi.vendor import Batch, Call, VendorOp
from pviommu_abi.xen_2024 import PvIommuOp, Xen2024Op
from vfio_user import Client, Command
from vfio_user.messages import Header

from . import raw
from .guest import ENTRIES, PATIENCE_S, Guest, Ram, spin_until
from .raw import Raw

row = pytest.mark.row
IOVA = 0x40000000
DFN = IOVA >> 12
NOOP = PvIommuOp(Xen2024Op.NOOP, 0, 0).pack()
SLACK = 3 << 20
"""Bytes by which the server's own memory may grow: what an allocator keeps, not a leak in each of many rounds."""
BROKEN = RingStatus.ENABLED | RingStatus.BROKEN
FAULT, DONE = DescriptorStatus.FAULT, DescriptorStatus.DONE

# -- clients that end -------------------------------------------------------------------------------------------------


def connected(guest):
    pass


def in_a_message(guest):
    guest.iommu.client.send(Header(1, Command.REGION_WRITE, 64, 0, 0).pack() + b"half")


def with_contexts(guest):
    guest.start()
    guest.iommu.map(guest.attach("dma0"), DFN, 0x100, 300)


def in_a_ring(guest):
    with_contexts(guest)
    for number in range(60):
        guest.iommu.submit(guest.iommu.map_payload(1, DFN + 0x1000 + number, 0x100, 1), posted=True)


def with_queued_dma(guest):
    with_contexts(guest)
    for number in range(20):
        guest.engines["dma0"].put(DmaOp.FILL, 1 << 20, dst=IOVA, pattern=0xFF, start=number == 19)


def with_unread_replies(guest):
    for _ in range(3):
        guest.iommu.client.send(Header(1, Command.REGION_READ, 32, 0, 0).pack() + raw.access(2, 0, 1 << 20))


def with_a_broken_ring(guest):
    guest.start()
    guest.iommu.words[0] = 0x80000000
    guest.iommu.ring_doorbell()


WAYS = (connected, in_a_message, with_contexts, in_a_ring, with_queued_dma, with_unread_replies, with_a_broken_ring)


def kill_a_client(folder, ram, leave):
    """Fork a client that does ``leave`` with all it has open, and kill it there."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            leave(Guest(folder, "dma0", ram=ram))
            os.write(writer, b"!")
            signal.pause()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(writer)
    try:
        assert os.read(reader, 1) == b"!", f"the client failed to {leave.__name__}"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)


@row("wire", 54)
@row("wire", 61)
@row("defect", "A13")
@row("defect", "A14")
def test_two_hundred_killed_clients_leave_power_on_state_and_nothing_reachable(back_end):
    ram = Ram(4 << 20)
    counts = set()
    for leave in itertools.islice(itertools.cycle(WAYS), 200):
        kill_a_client(back_end.folder, ram, leave)
        with Raw(back_end.folder / "iommu.sock") as following, Raw(back_end.folder / "dma0.sock") as engine:
            following.negotiate()
            engine.negotiate()
            for name in ("STATUS", "PROFILE", "RING_ENTRIES", "RING_STATUS"):
                assert following.read(0, REGISTER[name].offset, 4) == bytes(4), (leave, name)
            assert following.read(2, 0, 0x1000) == bytes(0x1000), leave
            assert following.read(2, 0x4000, 0x20000) == bytes(0x20000), leave
            assert back_end.mapped_memory() == [], leave
            before = ram.bytes[:]
            assert engine.read(2, 0, 0x4000) == bytes(0x4000)
            counts.add(back_end.descriptors())
            assert ram.bytes[:] == before, leave
    assert len(counts) == 1
    with Guest(back_end.folder, "dma0") as guest:
        usage = guest.start().iommu.usage()
        assert (usage.contexts, usage.bindings, usage.pool_used, usage.mapped_pages) == (0, 0, 0, 0)
        assert guest.attach("dma0") == 1
    ram.close()


@row("wire", 54)
@row("defect", "A12")
@row("defect", "A13")
def test_a_thousand_reconnects_leave_descriptors_and_memory_flat(back_end):
    ram = Ram(4 << 20)
    counts = set()
    resident = []
    for leave in itertools.islice(itertools.cycle(WAYS), 1000):
        with Guest(back_end.folder, "dma0", ram=ram) as guest:
            guest.iommu.vectors = guest.iommu.client.enable_msix(2)
            counts.add(back_end.descriptors())
            if leave is connected:
                resident.append(back_end.resident())
            leave(guest)
    assert len(counts) == 1
    assert max(resident[-20:]) - max(resident[20:40]) < SLACK
    ram.close()


@row("defect", "A11")
def test_maps_and_unmaps_leave_descriptors_and_memory_flat(back_end, peer, ram):
    def cycles(count):
        for _ in range(count):
            peer.send(raw.DMA_MAP, raw.dma_map(0, ram.size), raw.NO_REPLY, fds=[ram.fd])
            peer.send(raw.DMA_UNMAP, raw.dma_unmap(0, ram.size), raw.NO_REPLY)
        assert peer.is_alive()
        return back_end.descriptors(), back_end.resident()

    descriptors, resident = cycles(1000)
    found = cycles(5000)
    assert found[0] == descriptors
    assert found[1] - resident < SLACK


# -- guests that break the rules --------------------------------------------------------------------------------------


@row("defect", "B3")
@row("defect", "B4")
def test_any_producer_index_is_either_worked_or_stops_its_ring(back_end):
    chance = random.Random(2024)
    indices = [0, 1, ENTRIES, ENTRIES + 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
    indices += [chance.getrandbits(32) for _ in range(40)]
    with Guest(back_end.folder) as guest:
        iommu = guest.start().iommu
        for index in indices:
            iommu.words[0] = index
            iommu.ring_doorbell()
            if index <= ENTRIES:
                spin_until(lambda index=index: iommu.completed == index, f"slots up to {index}")
                assert iommu.read("RING_STATUS") == RingStatus.ENABLED
            else:
                spin_until(lambda: iommu.read("RING_STATUS") == BROKEN, f"index {index} to stop the ring")
            iommu.write("RING_CONTROL", 0)
            iommu.words[0] = 0
            iommu.write("RING_CONTROL", 1)
        iommu.producer = 0
        assert iommu.call(NOOP)[0] == 0


@row("defect", "B3")
@pytest.mark.parametrize(
    ("entries", "base"),
    [
        (15, RING_AREA_OFFSET),
        (24, RING_AREA_OFFSET),
        (0, RING_AREA_OFFSET),
        (1 << 31, RING_AREA_OFFSET),
        (2048, RING_AREA_OFFSET),
        (256, 0),
        (256, 0x1000),
        (256, RING_AREA_OFFSET + 64),
        (1024, 0xFFFFF000),
        (256, 0x100000),
    ],
)
def test_a_ring_that_does_not_fit_its_memory_is_never_on(back_end, entries, base):
    with Guest(back_end.folder) as guest:
        iommu = guest.iommu
        iommu.write("PROFILE", 1)
        iommu.write("RING_ENTRIES", entries)
        iommu.write("RING_BASE_LO", base)
        iommu.write("RING_CONTROL", 1)
        assert iommu.read("RING_STATUS") == 0


@row("defect", "B2")
def test_slots_that_change_while_they_are_read_give_one_result_each(back_end):
    with Guest(back_end.folder) as guest:
        iommu = guest.start().iommu
        area = slice(RING_AREA_OFFSET, RING_AREA_OFFSET + ENTRIES * SLOT_SIZE)
        stop = threading.Event()
        chance = random.Random(7)
        noise = chance.randbytes(ENTRIES * SLOT_SIZE)

        def mutate():
            while not stop.is_set():
                iommu.view[area] = noise
                iommu.view[area] = bytes(ENTRIES * SLOT_SIZE)

        mutator = threading.Thread(target=mutate)
        mutator.start()
        try:
            for _ in range(200):
                iommu.producer = (iommu.producer + 100) & 0xFFFFFFFF
                iommu.words[0] = iommu.producer
                iommu.ring_doorbell()
                spin_until(lambda: iommu.completed == iommu.producer, "a batch")
        finally:
            stop.set()
            mutator.join()
        assert iommu.read("RING_STATUS") == RingStatus.ENABLED
        assert iommu.call(NOOP)[0] == 0


@row("defect", "B7")
@row("defect", "C10")
@row("defect", "C16")
def test_bad_operations_fail_one_by_one_and_leave_memory_flat(back_end):
    with Guest(back_end.folder) as guest:
        iommu = guest.start().iommu

        def bad(count):
            for number in range(0, count, 200):
                for place in range(200):
                    payload = bytes([number & 0xFF, place]) * 24
                    position = iommu.submit(payload, op_class=place, op=number & 0xFF)
                assert iommu.wait(position)[0] < 0
            return back_end.resident()

        resident = bad(2_000)
        assert bad(30_000) - resident < SLACK
        assert iommu.call(NOOP)[0] == 0


@row("defect", "B5")
@row("defect", "C8")
def test_a_guest_that_never_takes_events_loses_them_and_nothing_else(back_end):
    with Guest(back_end.folder, "dma0") as guest:
        guest.start()
        ctx, engine = guest.attach("dma0"), guest.engines["dma0"]
        faults = EVENT_ENTRIES + 100
        for number in range(faults):
            assert engine.run(DmaOp.FILL, 8, dst=IOVA + number).status == FAULT
        usage = guest.iommu.usage()
        assert usage.events_lost == 100
        assert guest.iommu.map(ctx, DFN, 0x100, 1) == (0, 1)
        assert engine.run(DmaOp.FILL, 8, dst=IOVA).status == DONE
        events = guest.iommu.events()
        assert [event.sequence for event in events] == list(range(EVENT_ENTRIES))
        assert {event.reason for event in events} == {EventReason.NOT_MAPPED}
        engine.run(DmaOp.FILL, 8, dst=0)
        assert [event.sequence for event in guest.iommu.events()] == [faults]


@row("defect", "C1")
@row("defect", "C14")
@pytest.mark.parametrize(("dfn", "nr"), [((1 << 64) - 1, 2), ((1 << 63), 1), (1 << 27, 1), ((1 << 27) - 1, 2)])
def test_a_range_that_wraps_or_leaves_the_aperture_is_erange(back_end, dfn, nr):
    with Guest(back_end.folder) as guest:
        iommu = guest.start().iommu
        ctx = iommu.alloc()
        assert iommu.map(ctx, dfn, 1, nr) == (-Errno.ERANGE, 0)
        assert iommu.unmap(ctx, dfn, nr) == (-Errno.ERANGE, 0)
        assert iommu.usage().mapped_pages == 0


@row("defect", "C17")
@pytest.mark.parametrize(
    ("address", "count"),
    [
        (0x4000000, 1),
        ((16 << 20) - 24, 2),
        ((1 << 64) - 24, 2),
        (0, 0xFFFFFFFF),
        (0xFE000000, 4),  # a BAR
    ],
)
def test_an_array_outside_guest_memory_is_efault_and_maps_nothing(back_end, address, count):
    with Guest(back_end.folder) as guest:
        guest.iommu.client.dma_map(0xFE000000, 0x1000)
        iommu = guest.start().iommu
        ctx = iommu.alloc()
        batch = Batch(address & ~7, count, 0, ctx)
        assert iommu.call(batch.pack(), OpClass.VENDOR, VendorOp.BATCH)[0] == -Errno.EFAULT
        if count != 0xFFFFFFFF:
            assert iommu.call(Call(address & ~7, 0).pack(), OpClass.VENDOR, VendorOp.CALL)[0] == -Errno.EFAULT
        assert iommu.usage().mapped_pages == 0


@row("defect", "C9")
def test_contexts_run_out_with_a_status_and_come_back(back_end):
    with Guest(back_end.folder) as guest:
        iommu = guest.start().iommu
        alloc = PvIommuOp(Xen2024Op.ALLOC_CONTEXT, 0, 0).pack()
        results = []
        while not results or results[-1] == 0:
            results.append(iommu.call(alloc)[0])
        assert results[-1] == -Errno.ENOSPC
        assert iommu.free(1) == 0
        assert iommu.alloc() == 1


@row("defect", "B8")
def test_dma_to_the_engines_own_descriptors_is_dma_to_what_is_no_ram(back_end):
    with Guest(back_end.folder, "dma0") as guest:
        bar = 0xFE000000
        guest.engines["dma0"].client.dma_map(bar, 0x100000)
        guest.start()
        engine = guest.engines["dma0"]
        assert engine.run(DmaOp.FILL, 64, dst=bar, pattern=0xFF).status == FAULT
        assert guest.iommu.call(NOOP, OpClass.XEN_2024)[0] == 0


@row("defect", "A19")
def test_both_sides_go_on_after_the_server_stood_still(serve):
    with Client.connect(serve.folder / "iommu.sock", timeout=0.2) as client:
        serve.process.send_signal(signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            client.device_info()
    serve.process.send_signal(signal.SIGCONT)
    with Client.connect(serve.folder / "iommu.sock", PATIENCE_S) as client:
        assert client.device_info().num_regions == 9
