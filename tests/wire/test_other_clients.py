"""Clients other than QEMU, by what is known of how they speak: rust-vmm's, which Cloud Hypervisor has, and SPDK's.

rust-vmm's reads as many bytes as the answer it hopes for has, looks neither at the size nor for an error in its header,
and has room for one descriptor. So a reply of another size, or an error to what its guest may do, ends its virtual
machine. SPDK's has one id for all messages, sends no JSON, room for the answer along with its request, and a descriptor
with DMA_UNMAP.
"""

from __future__ import annotations

import array
import errno
import json
import mmap
import os
import select
import socket
import struct

import pytest

from vfio_user import Client, RegionFlags, transport

from . import raw
from .guest import PATIENCE_S, Iommu
from .raw import CONFIG, Raw, access, dma_map, dma_unmap, info, region_info, set_irqs

row = pytest.mark.row

RUST_OFFER = {"capabilities": {"max_msg_fds": 1, "max_data_xfer_size": 1048576, "migration": {"pgsize": 4096}}}
HEADER_SIZE = 16
PAGE = 4096


class Hopeful(Raw):
    """rust-vmm's."""

    def __init__(self, path):
        super().__init__(path)
        self.number = 0xFFFF  # the first id is 0
        self.fds = []

    def __exit__(self, *_):
        super().__exit__()
        for fd in self.fds:
            os.close(fd)

    def exchange(self, command, payload, size, fds=()):
        """Send, and read ``size`` bytes; what follows the header. Checks what the real one does not look at."""
        number = self.send(command, payload, fds=fds)
        head = self.take(HEADER_SIZE + size)
        assert raw.HEADER.unpack_from(head)[:2] == (number, command)
        assert raw.HEADER.unpack_from(head)[3:] == (raw.REPLY, 0)
        return head[HEADER_SIZE:]

    def take(self, size):
        """``size`` bytes, and a descriptor that comes with them, into :attr:`fds`."""
        data, ancillary, flags, _ = self.sock.recvmsg(size, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
        assert not flags & socket.MSG_CTRUNC
        for _level, _kind, found in ancillary:
            self.fds.extend(array.array("i", found))
        while len(data) < size:
            data += self.sock.recv(size - len(data))
        return data

    def has_read_all(self):
        """Whether nothing is left that it would take for the beginning of the next reply."""
        return not select.select([self.sock], [], [], 0)[0] or not self.sock.recv(1, socket.MSG_PEEK)

    def begin(self):
        """VERSION; the capabilities of the server."""
        self.send(raw.VERSION, raw.version(0, 1, RUST_OFFER))
        head = self.take(20)
        assert raw.HEADER.unpack_from(head)[3:] == (raw.REPLY, 0)
        assert struct.unpack_from("<HH", head, HEADER_SIZE) <= (0, 1)
        return json.loads(self.take(raw.HEADER.unpack_from(head)[2] - 20)[:-1])["capabilities"]

    def region(self, index):
        """Flags, size, where it begins in its file, and its areas, if it has any."""
        argsz, flags, _, _, size, offset = struct.unpack(
            "<IIIIQQ", self.exchange(raw.GET_REGION_INFO, region_info(32, index), 32)
        )
        if argsz <= 32:
            return flags, size, offset, []
        number = self.send(raw.GET_REGION_INFO, region_info(argsz, index))  # 32 bytes, with more room announced
        head = self.take(HEADER_SIZE + 32)
        argsz, flags, _, where, size, offset = struct.unpack_from("<IIIIQQ", head, HEADER_SIZE)
        assert raw.HEADER.unpack_from(head) == (number, raw.GET_REGION_INFO, HEADER_SIZE + argsz, raw.REPLY, 0)
        capabilities = self.take(argsz - 32)
        areas = []
        while where:
            kind, _, following = struct.unpack_from("<HHI", capabilities, where - 32)
            if kind == 1:
                (count,) = struct.unpack_from("<I", capabilities, where - 24)
                areas += struct.iter_unpack("<QQ", capabilities[where - 16 : where - 16 + 16 * count])
            where = following
        return flags, size, offset, areas

    def read_exactly(self, region, offset, count):
        return self.exchange(raw.REGION_READ, access(region, offset, count), 16 + count)[16:]

    def write_exactly(self, region, offset, data):
        self.exchange(raw.REGION_WRITE, access(region, offset, len(data)) + data, 16)


@pytest.fixture
def hopeful(back_end):
    with Hopeful(back_end.folder / "iommu.sock") as client:
        yield client
        assert client.has_read_all()


@row("wire", 13)
@row("wire", 14)
def test_version_0_1_is_answered_with_numbers_of_32_bits_for_what_was_offered(hopeful):
    told = hopeful.begin()
    assert told.keys() <= RUST_OFFER["capabilities"].keys()
    assert all(0 <= value < 1 << 32 for value in told.values())


@row("wire", 21)
@row("wire", 22)
@row("wire", 23)
def test_every_region_is_described_in_replies_of_the_size_hoped_for(hopeful):
    hopeful.begin()
    _, flags, regions, irqs = struct.unpack("<IIII", hopeful.exchange(raw.GET_INFO, info(32), 16))
    assert (flags, regions, irqs) == (3, 9, 5)
    found = [hopeful.region(index) for index in range(regions)]
    mapped = [index for index, (flags, *_) in enumerate(found) if flags & RegionFlags.MMAP]
    assert mapped == [2]
    assert len(hopeful.fds) == len(mapped)
    _, size, offset, areas = found[2]
    assert areas == [(0, size)]
    with mmap.mmap(hopeful.fds[0], size, mmap.MAP_SHARED, mmap.PROT_READ, offset=offset) as memory:
        assert memory[:PAGE] == hopeful.read_exactly(2, 0, PAGE)


@row("wire", 36)
@row("wire", 39)
@row("wire", 40)
def test_nothing_that_its_guest_does_in_configuration_space_is_an_error(hopeful):
    hopeful.begin()
    whole = hopeful.read_exactly(CONFIG, 0, PAGE)
    for size in (1, 2, 4):
        for offset in range(0, 256, size):
            assert hopeful.read_exactly(CONFIG, offset, size) == whole[offset : offset + size]
    for offset in range(256, PAGE, 4):
        hopeful.read_exactly(CONFIG, offset, 4)
    for bar in range(0x10, 0x34, 4):  # sized one by one, the ROM and what is no BAR included
        hopeful.write_exactly(CONFIG, bar, b"\xff" * 4)
        hopeful.read_exactly(CONFIG, bar, 4)
        hopeful.write_exactly(CONFIG, bar, whole[bar : bar + 4])
    assert hopeful.read_exactly(CONFIG, 0, PAGE) == whole


@row("wire", 25)
@row("wire", 29)
@row("wire", 31)
@row("wire", 33)
def test_all_vectors_are_installed_in_sixteens_and_every_index_can_be_disabled(hopeful):
    hopeful.begin()
    counts = [struct.unpack("<IIII", hopeful.exchange(raw.GET_IRQ_INFO, info(16, 0, i), 16))[3] for i in range(5)]
    events = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(counts[raw.MSIX])]
    for start in range(0, len(events), 16):
        part = events[start : start + 16]
        payload = set_irqs(raw.EVENTFD | raw.TRIGGER, raw.MSIX, start, len(part))
        hopeful.exchange(raw.SET_IRQS, payload, 0, fds=part)
    hopeful.exchange(raw.SET_IRQS, set_irqs(raw.NONE | raw.TRIGGER, raw.MSIX, 0, len(events)), 0)
    assert [os.eventfd_read(event) for event in events] == [1] * len(events)
    for index in (raw.INTX, raw.MSI, raw.MSIX):
        hopeful.exchange(raw.SET_IRQS, set_irqs(raw.NONE | raw.TRIGGER, index, 0, 0), 0)
    for event in events:
        os.close(event)


@row("wire", 47)
@row("wire", 54)
def test_memory_comes_last_and_goes_by_an_echo_of_40_bytes(back_end, hopeful, ram):
    hopeful.begin()
    hopeful.exchange(raw.GET_INFO, info(32), 16)
    for address in (0, 1 << 32):
        hopeful.exchange(raw.DMA_MAP, dma_map(address, ram.size), 0, fds=[ram.fd])
    assert hopeful.exchange(raw.DMA_UNMAP, dma_unmap(0, ram.size), 24) == dma_unmap(0, ram.size)
    assert back_end.mapped_memory() == [ram.size]
    hopeful.sock.shutdown(socket.SHUT_RDWR)  # its end, without unmapping the rest
    with Raw(back_end.folder / "iommu.sock") as following:
        following.negotiate()
        assert following.is_alive()
        assert back_end.mapped_memory() == []


@row("wire", 46)
def test_a_guest_whose_memory_is_mapped_after_all_questions_turns_a_ring_on(back_end, ram):
    client = Client(transport.connect(back_end.folder / "iommu.sock", PATIENCE_S))
    client.negotiate(1)
    for index in range(client.device_info().num_regions):
        client.region_info(index).close()
    iommu = Iommu(client, ram).start()
    assert iommu.alloc() == 1
    iommu.close()


@row("wire", 9)
def test_ids_go_on_at_0_after_the_last(hopeful):
    hopeful.begin()
    hopeful.number = 0xFFFE
    for _ in range(3):
        hopeful.read_exactly(CONFIG, 0, 4)
    assert hopeful.number == 1


class OneId(Raw):
    """SPDK's: every message has id 0."""

    def send(self, *message, **fields):
        self.number = -1
        return super().send(*message, **fields)


@row("wire", 9)
@row("wire", 11)
@row("wire", 18)
@row("wire", 23)
def test_one_id_no_json_padding_and_a_descriptor_with_an_unmap_are_served(back_end, ram):
    with OneId(back_end.folder / "iommu.sock") as client:
        reply = client.ask(raw.VERSION, raw.version(0, 1, None))
        assert struct.unpack_from("<HH", reply) == (0, 1)
        client.ask(raw.GET_INFO, info())
        for index in range(9):
            reply = client.ask(raw.GET_REGION_INFO, region_info(4064, index) + bytes(4032))
            assert struct.unpack_from("<II", reply, 4)[1] == index
        assert client.ask(raw.DMA_MAP, dma_map(0, ram.size), fds=[ram.fd]) == b""
        assert len(client.read(CONFIG, 0, PAGE)) == PAGE
        before = back_end.descriptors()
        assert client.ask(raw.DMA_UNMAP, dma_unmap(0, ram.size), fds=[ram.fd]) == dma_unmap(0, ram.size)
        assert back_end.descriptors() < before


@row("wire", 1)
@row("wire", 11)
@pytest.mark.parametrize("at", [0, 1, HEADER_SIZE, HEADER_SIZE + 1, 47])
def test_a_descriptor_may_ride_on_any_byte_of_its_message(peer, ram, at):
    message = raw.HEADER.pack(7, raw.DMA_MAP, 48, 0, 0) + dma_map(0, ram.size)
    if at:
        peer.send_bytes(message[:at])
    peer.send_bytes(message[at:], [ram.fd])
    answer = peer.receive()
    assert (answer.number, answer.flags, answer.error) == (7, raw.REPLY, 0)
    assert peer.ask(raw.DMA_MAP, dma_map(0, PAGE, flags=1), fds=[ram.fd]) == errno.EEXIST
