"""DMA maps as bytes on the socket of a real back end, and what its engines can reach through them."""

from __future__ import annotations

import contextlib
import errno
import os
import struct

import pytest

from pviommu_abi.dma_test import DescriptorStatus, DmaOp
from pviommu_abi.registers import Status
from pviommu_abi.shared import EventReason
from vfio_user import Client, DmaMapFlags, RemoteError

from . import raw
from .guest import PATIENCE_S, RAM_SIZE, DmaEngine, Guest, Iommu, Ram
from .raw import Raw, dma_map, dma_unmap

row = pytest.mark.row
EINVAL, EEXIST, ENOENT, ENOSPC = errno.EINVAL, errno.EEXIST, errno.ENOENT, errno.ENOSPC
PAGE = 4096
ABSENT = 0xFE000000
"""Where a BAR of another function may be."""
FAULT, DONE = DescriptorStatus.FAULT, DescriptorStatus.DONE


@contextlib.contextmanager
def engine_with(folder, *maps):
    """A DMA engine in the default context, which is all of RAM; its client has made ``maps`` before anything else.

    A map: address, size, descriptor, file offset, flags.
    """
    engine = DmaEngine(Client.connect(folder / "dma0.sock", PATIENCE_S), None)
    try:
        for address, size, fd, offset, flags in maps:
            engine.client.dma_map(address, size, fd, offset, flags)
        yield engine.start()
    finally:
        engine.close()


READ_WRITE, READ = DmaMapFlags.READ | DmaMapFlags.WRITE, DmaMapFlags.READ


@pytest.fixture
def iommu(back_end, ram):
    """A PV-IOMMU that knows of the RAM; its ring is off."""
    function = Iommu(back_end.folder / "iommu.sock", ram)
    yield function
    function.close()


# -- the requests -----------------------------------------------------------------------------------------------------


@row("wire", 45)
@row("defect", "C1")
@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (dma_map(0, PAGE)[:31], EINVAL),
        (dma_map(0, PAGE, argsz=31), EINVAL),
        (dma_map(0, PAGE, flags=0x13), EINVAL),
        (dma_map(0, PAGE, flags=0x80000003), EINVAL),
        (dma_map(0, PAGE, flags=7), EINVAL),  # to be mapped, and nothing to map
        (dma_map(0, PAGE, flags=11), EINVAL),
        (dma_map(0, PAGE), b""),
        (dma_map(0, PAGE, flags=1), b""),
        (dma_map((1 << 64) - PAGE, PAGE), b""),
    ],
)
def test_a_map_without_descriptor_is_checked(peer, payload, expected):
    assert peer.ask(raw.DMA_MAP, payload) == expected


@row(
    "wire",
    45,
    deviation="the identical map again succeeds, as with libvfio-user: QEMU announces ranges anew; the protocol's "
    "text has EEXIST for it, too",
)
@row("defect", "C12")
def test_an_identical_map_succeeds_and_any_other_overlap_exists(peer, ram):
    def ask(address, size, offset, flags=3, fd=ram.fd):
        return peer.ask(raw.DMA_MAP, dma_map(address, size, offset, flags), fds=[] if fd is None else [fd])

    assert ask(0x10000, 4 * PAGE, 0) == b""
    assert ask(0x10000, 4 * PAGE, 0) == b""
    for address, size, offset, flags, fd in (
        (0x10000, 4 * PAGE, PAGE, 3, ram.fd),
        (0x10000, 4 * PAGE, 0, 1, ram.fd),
        (0x10000, 4 * PAGE, 0, 3, None),
        (0x10000, PAGE, 0, 3, ram.fd),
        (0xF000, 2 * PAGE, 0, 3, ram.fd),
        (0x13000, 2 * PAGE, 0, 3, ram.fd),
        (0xF000, 6 * PAGE, 0, 3, ram.fd),
    ):
        assert ask(address, size, offset, flags, fd) == EEXIST
    assert ask(0xF000, PAGE, 0) == b""
    assert ask(0x14000, PAGE, 0) == b""


@row("wire", 47)
@row("defect", "A7")
def test_unmap_takes_whole_maps_and_echoes_its_24_bytes(peer, ram):
    for address in (0, 4 * PAGE):
        peer.ask(raw.DMA_MAP, dma_map(address, 4 * PAGE, address), fds=[ram.fd])
    for address, size in ((0, PAGE), (PAGE, 3 * PAGE), (PAGE, PAGE), (PAGE, 7 * PAGE), (0, 5 * PAGE)):
        assert peer.ask(raw.DMA_UNMAP, dma_unmap(address, size)) == EINVAL
    for address, size in ((64 * PAGE, PAGE), (8 * PAGE, 64 * PAGE), (0, 0), (4 * PAGE, 0)):
        assert peer.ask(raw.DMA_UNMAP, dma_unmap(address, size)) == ENOENT
    for flags in (1, 3, 4, 0x80000000):
        assert peer.ask(raw.DMA_UNMAP, dma_unmap(0, 4 * PAGE, flags)) == EINVAL
    for argsz in (8, 23, (1 << 20) + 1):
        assert peer.ask(raw.DMA_UNMAP, dma_unmap(0, 4 * PAGE, argsz=argsz)) == EINVAL
    assert peer.ask(raw.DMA_UNMAP, dma_unmap(0, 4 * PAGE)) == dma_unmap(0, 4 * PAGE)
    assert peer.ask(raw.DMA_UNMAP, dma_unmap(0, 4 * PAGE)) == ENOENT
    assert peer.ask(raw.DMA_UNMAP, dma_unmap(1, 0, flags=2)) == EINVAL
    assert peer.ask(raw.DMA_UNMAP, dma_unmap(0, 1, flags=2)) == EINVAL
    assert peer.ask(raw.DMA_UNMAP, dma_unmap(0, 0, flags=2)) == dma_unmap(0, 0, flags=2)
    assert peer.ask(raw.DMA_UNMAP, dma_unmap(4 * PAGE, 4 * PAGE)) == ENOENT


@row("server", 53)
@row(
    "wire",
    47,
    deviation="all maps inside the range go, where the protocol asks for one exactly as it was mapped: QEMU's "
    "virtio-mem unmaps 128 MiB that it mapped in pieces",
)
def test_what_was_mapped_in_pieces_is_unmapped_at_once_and_out_of_reach(back_end, iommu, ram):
    piece = RAM_SIZE // 16
    maps = [(place * piece, piece, ram.fd, place * piece, READ_WRITE) for place in range(8) if place != 3]
    with engine_with(back_end.folder, *maps) as engine:
        client = engine.client
        assert engine.run(DmaOp.FILL, 8, dst=2 * piece, pattern=1).status == DONE
        with pytest.raises(RemoteError) as caught:
            client.dma_unmap(piece, 6 * piece + PAGE)
        assert caught.value.errno == EINVAL
        assert engine.run(DmaOp.FILL, 8, dst=6 * piece, pattern=2).status == DONE

        client.dma_unmap(piece, 6 * piece)

        for place, expected in ((0, DONE), (1, FAULT), (2, FAULT), (3, FAULT), (6, FAULT), (7, DONE)):
            assert engine.run(DmaOp.FILL, 8, dst=place * piece, pattern=3).status == expected
        assert ram.bytes[2 * piece] == 1
        client.dma_map(2 * piece, piece, ram.fd, 2 * piece)
        assert engine.run(DmaOp.FILL, 8, dst=2 * piece, pattern=4).status == DONE


@row("defect", "A4")
@pytest.mark.parametrize("flags", [1, 3])
def test_a_dirty_bitmap_of_a_map_without_memory_is_refused(peer, flags):
    assert peer.ask(raw.DMA_MAP, dma_map(0, PAGE)) == b""
    bitmap = struct.pack("<QQ", PAGE, 8)
    assert peer.ask(raw.DMA_UNMAP, dma_unmap(0, PAGE, flags, argsz=24 + 24) + bitmap) == EINVAL
    assert peer.ask(raw.DIRTY_PAGES, struct.pack("<II", 24, 4) + bitmap + bytes(8)) == EINVAL
    assert peer.ask(raw.DMA_UNMAP, dma_unmap(0, PAGE)) == dma_unmap(0, PAGE)


@row("wire", 48)
@row("defect", "C12")
@row("defect", "C17")
@pytest.mark.parametrize(
    ("address", "size", "offset", "expected"),
    [
        (0, RAM_SIZE + PAGE, 0, EINVAL),
        (0, PAGE, RAM_SIZE, EINVAL),
        (0, PAGE, (1 << 63) - PAGE, EINVAL),
        (0, PAGE, (1 << 64) - PAGE, EINVAL),
        (0, 0, 0, EINVAL),
        ((1 << 64) - PAGE, 2 * PAGE, 0, EINVAL),
        (0, (8 << 40) + PAGE, 0, ENOSPC),
        (1, PAGE, 0, EINVAL),
        (0, PAGE + 1, 0, EINVAL),
        (0, PAGE, 1, EINVAL),
    ],
)
def test_a_range_that_the_file_or_the_address_space_has_not_is_refused(peer, ram, address, size, offset, expected):
    assert peer.ask(raw.DMA_MAP, dma_map(address, size, offset), fds=[ram.fd]) == expected
    assert peer.ask(raw.DMA_UNMAP, dma_unmap(address, size)) == ENOENT


@row("wire", 48)
def test_what_is_no_memory_is_refused(peer, tmp_path):
    reader, writer = os.pipe()
    folder = os.open(tmp_path, os.O_RDONLY)
    for fd in (reader, writer, folder, peer.sock.fileno()):
        assert peer.ask(raw.DMA_MAP, dma_map(0, PAGE), fds=[fd]) == EINVAL
    for fd in (reader, writer, folder):
        os.close(fd)


@row("wire", 49)
@row("defect", "A11")
def test_a_file_is_mapped_once_and_let_go_with_its_last_range(back_end, peer, ram):
    before = back_end.descriptors()
    for index in range(64):
        assert peer.ask(raw.DMA_MAP, dma_map(index * PAGE, PAGE, index * PAGE), fds=[ram.fd]) == b""
    # the file's own descriptor, and the copy that a map in Python keeps
    assert (back_end.mapped_memory(), back_end.descriptors()) == ([RAM_SIZE], before + 2)
    for index in range(64):
        peer.ask(raw.DMA_UNMAP, dma_unmap(index * PAGE, PAGE))
    assert (back_end.mapped_memory(), back_end.descriptors()) == ([], before)


# -- what can be reached ----------------------------------------------------------------------------------------------


@row("wire", 46)
def test_4096_maps_before_info_are_accepted_and_one_access_spans_them(back_end, iommu, ram):
    pages = [(page * PAGE, PAGE, ram.fd, page * PAGE, READ_WRITE) for page in range(RAM_SIZE // PAGE)]
    assert len(pages) == 4096
    with engine_with(back_end.folder, *pages) as engine:
        assert engine.run(DmaOp.FILL, 3 * PAGE, dst=0x100800, pattern=0x5555555555555555).status == DONE
    assert ram.bytes[0x100800 : 0x100800 + 3 * PAGE] == b"\x55" * 3 * PAGE


@row("wire", 46)
@row("defect", "A16")
def test_a_read_only_range_is_not_written_though_its_neighbour_may_be(back_end, iommu, ram):
    maps = [(0, 0x100000, ram.fd, 0, READ_WRITE), (0x100000, 0x100000, ram.fd, 0x100000, READ)]
    with engine_with(back_end.folder, *maps) as engine:
        fault = engine.run(DmaOp.FILL, 2 * PAGE, dst=0x100000 - PAGE, pattern=1)
        assert (fault.status, fault.reason, fault.detail) == (FAULT, EventReason.NOT_RAM, 0x100000)
        assert engine.run(DmaOp.FILL, PAGE, dst=0x100000 - PAGE, pattern=1).status == DONE
    assert not any(ram.bytes[0x100000 : 0x100000 + PAGE])


@row("wire", 47)
@row("defect", "A14")
@row("defect", "A15")
@row("defect", "D14")
def test_once_unmap_is_answered_no_dma_touches_the_range(back_end, iommu, ram):
    with engine_with(back_end.folder, (0, RAM_SIZE, ram.fd, 0, READ_WRITE)) as engine:
        for number in range(100):
            engine.put(DmaOp.FILL, 1 << 20, dst=0x100000 * (number % 15 + 1), pattern=number)
        engine.client.dma_unmap(0, RAM_SIZE)
        before = ram.bytes[:]
        fault = engine.run(DmaOp.FILL, 64, dst=0x100000, pattern=0xFF)
        assert (fault.status, fault.reason) == (FAULT, EventReason.NOT_RAM)
    assert ram.bytes[:] == before


@row("wire", 47)
@row("defect", "A15")
def test_ranges_come_and_go_under_a_busy_engine(back_end, iommu, ram):
    with engine_with(back_end.folder, (0, RAM_SIZE, ram.fd, 0, READ_WRITE)) as engine:
        for _ in range(50):
            engine.put(DmaOp.COPY, 1 << 20, src=0x100000, dst=0x800000)
            engine.client.dma_unmap(0, RAM_SIZE)
            engine.client.dma_map(0, RAM_SIZE, ram.fd)
        assert engine.run(DmaOp.FILL, PAGE, dst=0x100000, pattern=7).status == DONE


@row("wire", 51, "message DMA is refused by design: what came without a descriptor cannot be reached")
@row("wire", 53)
@row("defect", "B8")
def test_dma_to_a_bar_faults_and_sends_no_message(back_end, ram):
    with Guest(back_end.folder, "dma0", "dma1") as guest:
        functions = [guest.iommu, *guest.engines.values()]
        for function in functions:  # QEMU tells every function of the mapped BARs of all
            for other in range(len(functions)):
                function.client.dma_map(ABSENT + other * 0x100000, 0x100000)
        guest.start()
        engine = guest.engines["dma0"]
        for index in range(len(functions)):
            for op in (DmaOp.FILL, DmaOp.CHECKSUM):
                address = ABSENT + index * 0x100000
                fault = engine.run(op, 64, src=address, dst=address)
                assert (fault.status, fault.detail) == (FAULT, address)
        for function in functions:
            function.client.config_read(0, 4)  # would stumble over a message of the server
        assert guest.iommu.alloc() == 1


@row("wire", 53)
@row("defect", "B8")
def test_a_context_cannot_lead_dma_to_a_bar(back_end):
    with Guest(back_end.folder, "dma0") as guest:
        for function in (guest.iommu, guest.engines["dma0"]):
            function.client.dma_map(ABSENT, 0x100000)
        guest.start()
        ctx = guest.attach("dma0")
        assert guest.iommu.map(ctx, 0x100, ABSENT >> 12, 1) == (-errno.EPERM, 0)
        assert guest.engines["dma0"].run(DmaOp.FILL, 64, dst=0x100000).status == FAULT


@row("wire", 50, "a private copy cannot be told from the descriptor: memory that holds no data keeps the rings off")
def test_a_guest_whose_memory_is_not_shared_is_told_when_it_turns_a_ring_on(back_end):
    unused = Ram()
    unused.bytes[0] = 0
    iommu = Iommu(back_end.folder / "iommu.sock", unused)
    with pytest.raises(AssertionError):
        iommu.start()
    assert iommu.read("STATUS") & Status.MEMORY_NOT_SHARED
    iommu.close()
    unused.close()


@row(
    "wire", 51, "message DMA is refused by design: a machine whose RAM came without descriptors is refused in one line"
)
def test_memory_without_descriptors_is_refused_and_never_asked_for_by_messages(back_end):
    with Raw(back_end.folder / "iommu.sock") as peer:
        peer.negotiate()
        assert peer.ask(raw.DMA_MAP, dma_map(0, 1 << 20)) == b""
        assert peer.ask(raw.GET_INFO, raw.info()) == EINVAL
        assert peer.is_alive()


@row("wire", 46)
def test_maps_past_the_announced_number_are_refused(peer):
    limit = 65535
    for index in range(limit):
        peer.send(raw.DMA_MAP, dma_map(index * PAGE, PAGE), raw.NO_REPLY)
    assert peer.ask(raw.DMA_MAP, dma_map(limit * PAGE, PAGE)) == ENOSPC
    assert peer.ask(raw.DMA_UNMAP, dma_unmap(0, PAGE)) == dma_unmap(0, PAGE)
    assert peer.ask(raw.DMA_MAP, dma_map(limit * PAGE, PAGE)) == b""


# -- memory that is not as safe as it should be -----------------------------------------------------------------------


@pytest.fixture
def loose():
    """RAM in a file that can shrink."""
    fd = os.memfd_create("guest-ram", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.truncate(fd, RAM_SIZE)
    os.pwrite(fd, b"\1", 0)
    yield fd
    os.close(fd)


@row("wire", 48)
@row("defect", "C17")
def test_a_file_that_shrinks_under_the_server_reads_as_zeros_and_kills_nobody(back_end, loose):
    iommu_client = Client.connect(back_end.folder / "iommu.sock", PATIENCE_S)
    iommu_client.dma_map(0, RAM_SIZE, loose)
    iommu = Iommu(iommu_client, None).start()
    with engine_with(back_end.folder, (0, RAM_SIZE, loose, 0, READ_WRITE)) as engine:
        assert back_end.mapped_memory() == []
        assert engine.run(DmaOp.FILL, PAGE, dst=0x100000, pattern=9).status == DONE
        for _ in range(20):
            engine.put(DmaOp.COPY, 4 << 20, src=0x100000, dst=0x800000)
        os.truncate(loose, PAGE)
        zeros = engine.run(DmaOp.VERIFY, PAGE, src=0x100000, pattern=0)
        assert zeros.status in (DONE, DescriptorStatus.MISMATCH)
        os.truncate(loose, 0)
        assert engine.run(DmaOp.VERIFY, PAGE, src=0xF00000, pattern=0).status == DONE
        assert iommu.alloc() == 1
    iommu.close()
    assert back_end.process.poll() is None


# -- translations that change -----------------------------------------------------------------------------------------


@row("defect", "D2")
def test_a_page_mapped_again_with_less_access_is_not_written_any_more(back_end):
    with Guest(back_end.folder, "dma0") as guest:
        guest.start()
        ctx, engine = guest.attach("dma0"), guest.engines["dma0"]
        assert guest.iommu.map(ctx, 0x100, 0x200, 1) == (0, 1)
        assert engine.run(DmaOp.FILL, 8, dst=0x100000, pattern=1).status == DONE
        guest.iommu.unmap(ctx, 0x100, 1)
        assert guest.iommu.map(ctx, 0x100, 0x200, 1, flags=1) == (0, 1)
        fault = engine.run(DmaOp.FILL, 8, dst=0x100000, pattern=2)
        assert (fault.status, fault.reason) == (FAULT, EventReason.PERMISSION)
        assert guest.ram.bytes[0x200000] == 1


@row("defect", "D3")
@row("defect", "D12")
def test_a_frame_given_to_another_context_is_out_of_reach_of_the_first(back_end):
    with Guest(back_end.folder, "dma0", "dma1") as guest:
        guest.start()
        first, second = guest.attach("dma0"), guest.attach("dma1")
        for number in range(50):
            giving, taking = (first, second) if number % 2 == 0 else (second, first)
            names = ("dma0", "dma1") if number % 2 == 0 else ("dma1", "dma0")
            assert guest.iommu.map(giving, 0x100, 0x200, 1) == (0, 1)
            assert guest.engines[names[0]].run(DmaOp.FILL, 8, dst=0x100000, pattern=number).status == DONE
            assert guest.iommu.unmap(giving, 0x100, 1) == (0, 1)
            assert guest.iommu.map(taking, 0x100, 0x200, 1) == (0, 1)
            assert guest.engines[names[0]].run(DmaOp.FILL, 8, dst=0x100000, pattern=99).status == FAULT
            assert guest.ram.bytes[0x200000] == number
            assert guest.iommu.unmap(taking, 0x100, 1) == (0, 1)
