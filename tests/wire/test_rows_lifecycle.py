"""Clients that end, hang or are reset in the middle of something."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import sys

import pytest

from pviommu_abi.dma_test import DescriptorFlags, DescriptorStatus, DmaOp
from pviommu_abi.registers import REGISTER
from pviommu_abi.shared import CapabilityId
from vfio_user import IrqAction, IrqIndex, IrqKind

from . import raw
from .guest import CHECKOUT, PATIENCE_S, Guest, environment
from .raw import Raw, dma_map

row = pytest.mark.row
IOVA = 0x40000000


def register(peer, name):
    return struct.unpack("<I", peer.read(0, REGISTER[name].offset, 4))[0]


@row(
    "wire",
    54,
    deviation="the device returns to its state after power-on, where the protocol would keep it for the next client: "
    "that is another guest, and must find nothing of this one",
)
@row("defect", "A13")
@row("defect", "A14")
@pytest.mark.parametrize("cut", [0, 1, 8, 15, 16, 17, 47, 48])
def test_the_end_of_a_client_at_any_byte_leaves_nothing_of_it(back_end, ram, cut):
    with Raw(back_end.folder / "iommu.sock") as idle:  # so that both counts are taken with one client of this function,
        idle.negotiate()  # whose connection ends that of the client before, which may not have been looked at yet
        before = back_end.descriptors()
    with Raw(back_end.folder / "iommu.sock") as first:
        first.negotiate()
        assert first.ask(raw.DMA_MAP, dma_map(0, ram.size), fds=[ram.fd]) == b""
        assert first.write(0, REGISTER["PROFILE"].offset, struct.pack("<I", 1)) == 0
        eventfd = os.eventfd(0)
        assert first.ask(raw.SET_IRQS, raw.set_irqs(raw.EVENTFD | raw.TRIGGER), fds=[eventfd]) == b""
        os.close(eventfd)
        message = raw.HEADER.pack(9, raw.DMA_MAP, 48, 0, 0) + dma_map(ram.size, 4096)
        if cut:
            first.send_bytes(message[:cut], [ram.fd])
    with Raw(back_end.folder / "iommu.sock") as following:
        following.negotiate()
        assert (register(following, "PROFILE"), register(following, "STATUS")) == (0, 0)
        assert following.ask(raw.DMA_UNMAP, raw.dma_unmap(0, ram.size)) == errno.ENOENT
        assert (back_end.mapped_memory(), back_end.descriptors()) == ([], before)


@row("wire", 55)
@row("wire", 58)
@pytest.mark.parametrize("ending", ["close", "reset"])
def test_a_client_that_leaves_replies_behind_is_dropped_at_once(back_end, ending):
    with Raw(back_end.folder / "iommu.sock") as first:
        first.negotiate()
        for _ in range(8):
            first.send(raw.REGION_READ, raw.access(2, 0, 1 << 20))
        first.receive()  # the server is at it
        if ending == "reset":
            first.sock.shutdown(socket.SHUT_RD)
            while first.sock.recv(1 << 20):
                pass  # what was on its way; then the end, which the server must have made
    with Raw(back_end.folder / "iommu.sock") as following:
        following.negotiate()
        assert following.is_alive()


@row("wire", 58)
@row("wire", 44)
def test_a_client_that_reads_no_replies_holds_up_no_other(back_end, peer):
    for _ in range(20):
        peer.send(raw.REGION_READ, raw.access(2, 0, 1 << 20))
    with Raw(back_end.folder / "dma0.sock") as other:
        other.negotiate()
        for _ in range(100):
            assert other.is_alive()
    for _ in range(20):
        assert peer.receive().size == 32 + (1 << 20)


@row("wire", 56)
@row("wire", 59)
@row("defect", "B10")
def test_an_interrupt_taken_away_or_reset_is_not_raised(back_end):
    with Guest(back_end.folder, "dma0") as guest:
        guest.start()
        engine = guest.engines["dma0"]
        engine.vectors = engine.client.enable_msix(1)
        fill = {"length": 64, "dst": 0x100000, "flags": DescriptorFlags.INTERRUPT}
        engine.run(DmaOp.FILL, **fill)
        assert engine.interrupted(0)
        engine.client.set_irqs(IrqIndex.MSIX, IrqAction.TRIGGER, IrqKind.NONE)
        assert engine.run(DmaOp.FILL, **fill).status == DescriptorStatus.DONE
        with pytest.raises(BlockingIOError):
            os.eventfd_read(engine.vectors[0])
        for fd in engine.vectors:
            os.close(fd)
        engine.vectors = engine.client.enable_msix(1)
        for _ in range(10):
            engine.put(DmaOp.FILL, 1 << 20, dst=0x100000)
        engine.client.reset()
        assert [engine.read(name) for name in ("CONTROL", "PRODUCER", "CONSUMER")] == [0, 0, 0]
        engine.descriptors.producer = 0
        engine.start()
        assert engine.run(DmaOp.FILL, **fill).status == DescriptorStatus.DONE, "memory maps outlive a reset"


@row("wire", 56)
@row("defect", "B6")
@row("defect", "B10")
@pytest.mark.parametrize("state", ["off", "profile", "ring", "busy", "broken", "attached"])
def test_a_reset_in_any_state_is_power_on_and_keeps_the_memory(back_end, state):
    with Guest(back_end.folder, "dma0") as guest:
        iommu = guest.iommu
        iommu.ring_doorbell()  # before there is anything to ring for
        if state == "profile":
            iommu.write("PROFILE", 1)
        if state in ("ring", "busy", "broken", "attached"):
            guest.start()
        if state == "attached":
            iommu.map(guest.attach("dma0"), IOVA >> 12, 0x100, 300)
            for _ in range(20):
                guest.engines["dma0"].put(DmaOp.FILL, 1 << 20, dst=IOVA)
        if state == "busy":
            for _ in range(200):
                iommu.submit(b"\0" * 32, ring=False)
        if state == "broken":
            iommu.words[0] = 0x80000000
            iommu.ring_doorbell()
        iommu.client.reset()
        names = ("STATUS", "PROFILE", "RING_SELECT", "RING_ENTRIES", "RING_STATUS", "RING_BASE_LO")
        assert [iommu.read(name) for name in names] == [0] * len(names)
        assert not any(iommu.view[:0x1000])
        assert iommu.capabilities()[CapabilityId.RAM_RANGES][0].last == guest.ram.size - 1
        iommu.producer = 0
        iommu.start()
        usage = iommu.usage()
        assert (usage.contexts, usage.bindings, usage.mapped_pages) == (0, 0, 0)
        assert iommu.alloc() == 1


def test_a_reset_while_the_ring_is_full_is_answered_and_leaves_nothing_of_it(back_end):
    with Guest(back_end.folder) as guest:
        iommu = guest.start().iommu
        ctx = iommu.alloc()
        for number in range(250):
            iommu.submit(iommu.map_payload(ctx, 0x200000 + number * 4096, 1, 4000), ring=False)
        iommu.write("RESET", 1)
        iommu.producer = 0
        assert iommu.start().usage().mapped_pages == 0


@row("wire", 57)
def test_a_stale_socket_file_is_replaced_and_a_busy_one_is_left_alone(tmp_path):
    program = (
        "import sys; from vfio_user import transport\n"
        "first = transport.listen(sys.argv[1]); first.close()\n"
        "second = transport.listen(sys.argv[1])\n"
        "try: transport.listen(sys.argv[1])\n"
        "except OSError as error: print(error.errno)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "socket"],
        env=environment(),
        cwd=CHECKOUT,
        capture_output=True,
        timeout=PATIENCE_S,
        check=True,
    )
    assert int(done.stdout) == errno.EADDRINUSE
