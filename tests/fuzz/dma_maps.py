"""DMA_MAP and DMA_UNMAP of two functions, against a list of what succeeded.

Input: requests, each a u8 (low nibble what, high nibble function and sort of file) and, to map, u8 first page, u8
pages, u8 page of the file, u8 flags (upper nibble: how the numbers are made wrong); the file sorts are in ``_Files``.
"""

from __future__ import annotations

import os

from pviommu.dma.access import GuestMemoryError
from pviommu.pci.function import PciFunction
from vfio_user import Command
from vfio_user.messages import DmaMap, DmaMapFlags, DmaUnmap

from .feed import Feed
from .machine import Descriptors, Talk, open_descriptors, sealed_memory, small_machine

__all__ = ["TOKENS", "target"]

MAX_REQUESTS = 64
MAP, UNMAP, UNMAP_ALL, READ, SHRINK, AGAIN, RESET = range(7)
PAGE = 4096
FILE_PAGES = 32
SEALED, UNSEALED, READ_ONLY = range(3)
SORTS = 5
"""Those and what every client has."""
DESCRIPTORS = 4
"""Most that a client has open: one for each of the three files, and the duplicate that mmap keeps of the sealed one."""
TOKENS = (b"\x00\x00\x08\x00\x03", b"\x10\x00\x08\x00\x03", b"\x01\x00\x08")


class _Files(Descriptors):
    """Sealed and unsealed memory and memory open for reading only, filled with their page numbers; then the others."""

    def __init__(self) -> None:
        sealed = sealed_memory(FILE_PAGES * PAGE)
        unsealed = os.memfd_create("unsealed", os.MFD_CLOEXEC)
        os.truncate(unsealed, FILE_PAGES * PAGE)
        for page in range(FILE_PAGES):
            os.pwrite(sealed, bytes([page + 1]) * PAGE, page * PAGE)
            os.pwrite(unsealed, bytes([page + 101]) * PAGE, page * PAGE)
        super().__init__(sealed, unsealed, os.open(f"/proc/self/fd/{sealed}", os.O_RDONLY))


PROTECTION = int(DmaMapFlags.READ | DmaMapFlags.WRITE)


class _Client:
    """One function's client and what it mapped: address and size to file sort (None: no file), offset, flags."""

    def __init__(self, function: PciFunction, files: _Files) -> None:
        self.talk = Talk(function)
        self.function = function
        self.files = files
        self.maps: dict[tuple[int, int], tuple[int | None, int, int]] = {}

    def map(self, sort: int | None, address: int, size: int, offset: int, flags: int) -> None:
        overlapping = [key for key in self.maps if key[0] < address + size and address < sum(key)]
        before = self.maps.get((address, size))
        again = before == (sort, offset, flags)
        # the access mode is a hint: it makes no other mapping, but may itself be refused (without a descriptor)
        same = before is not None and (*before[:2], before[2] & PROTECTION) == (sort, offset, flags & PROTECTION)
        fds = [] if sort is None else [self.files.send(sort)]
        reply = self.talk.request(Command.DMA_MAP, DmaMap(DmaMap.SIZE, flags, offset, address, size).pack(), fds)
        accepted = reply is not None
        assert reply in (b"", None)
        if accepted:
            assert same or not overlapping, f"{address:#x}+{size:#x} overlaps {overlapping}"
            assert size
            assert not (address | size | offset) % PAGE
            self.maps[address, size] = before if same else (sort, offset, flags)
        else:
            assert not again, f"{address:#x}+{size:#x} is mapped so already, which is a success"
        self.check()

    def unmap(self, address: int, size: int) -> None:
        request = DmaUnmap(DmaUnmap.SIZE, 0, address, size).pack()
        reply = self.talk.request(Command.DMA_UNMAP, request)
        inside = [key for key in self.maps if address <= key[0] and sum(key) <= address + size]
        cut = [key for key in self.maps if key not in inside and key[0] < address + size and address < sum(key)]
        assert (reply is not None) is (bool(inside) and not cut)
        assert reply in (request, None)
        if reply is not None:
            for key in inside:
                del self.maps[key]
        self.check()

    def unmap_all(self) -> None:
        assert self.talk.request(Command.DMA_UNMAP, DmaUnmap(DmaUnmap.SIZE, 2, 0, 0).pack()) is not None
        self.maps.clear()
        self.check()

    def check(self) -> None:
        assert [(held.address, held.size) for held in self.function.memory] == sorted(self.maps)

    def read(self, page: int, shrunk: bool) -> None:
        """A page of RAM reads as its file, and what is not RAM cannot be read."""
        covering = [(key, held) for key, held in self.maps.items() if key[0] <= page * PAGE < sum(key)]
        try:
            found = self.function.memory.read([(page * PAGE, PAGE)])
        except GuestMemoryError:
            assert not any(held[0] in (SEALED, UNSEALED) and held[2] & 3 == 3 for _, held in covering)
            return
        [((address, _), (sort, offset, flags))] = covering
        assert sort in (SEALED, UNSEALED)
        assert flags & 3 == 3
        number = (page * PAGE - address + offset) // PAGE
        fill = number + 1 if sort == SEALED else 0 if shrunk else number + 101
        assert found == bytes([fill]) * PAGE


def target(data: bytes) -> None:
    """What succeeded is reachable, byte for byte, and nothing else; refused requests change nothing."""
    feed = Feed(data)
    files = _Files()
    try:
        with small_machine() as machine:
            before = open_descriptors()
            clients = [_Client(function, files) for function in machine.functions()]
            _run(feed, clients, files)
            assert open_descriptors() <= before + DESCRIPTORS * len(clients), "more than one descriptor a file"
            for client in clients:
                client.talk.close()
                assert not list(client.function.memory)
            assert open_descriptors() == before
    finally:
        files.close()


def _run(feed: Feed, clients: list[_Client], files: _Files) -> None:
    shrunk = False
    last: tuple[int | None, int, int, int, int] = (None, 0, PAGE, 0, 3)
    for _ in range(MAX_REQUESTS):
        if not feed:
            return
        head = feed.u8()
        client, what = clients[head >> 4 & 1], head & 0xF
        if what == MAP:
            last = _map_request(feed, head)
            client.map(*last)
        elif what == AGAIN:
            client.map(*last)
        elif what == UNMAP:
            client.unmap(feed.u8() * PAGE, feed.u8() * PAGE)
        elif what == UNMAP_ALL:
            client.unmap_all()
        elif what == READ:
            client.read(feed.u8(), shrunk)
        elif what == SHRINK and not shrunk:
            os.truncate(files.sorts[UNSEALED], 0)
            shrunk = True
        elif what == RESET:
            assert client.talk.request(Command.DEVICE_RESET, b"") == b""
            client.check()


def _map_request(feed: Feed, head: int) -> tuple[int | None, int, int, int, int]:
    sort = (head >> 5) - 1 if 0 < head >> 5 <= SORTS else None
    address, size, offset, flags = feed.u8() * PAGE, feed.u8() * PAGE, feed.u8() * PAGE, feed.u8()
    wrong = flags >> 4
    if wrong & 1:
        address += feed.u64()
    if wrong & 2:
        size += feed.u64()
    if wrong & 4:
        offset += feed.u64()
    mask = (1 << 64) - 1
    return sort, address & mask, size & mask, offset & mask, flags & 0xF
