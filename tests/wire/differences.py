"""Where the C library libvfio-user of 2022 answers otherwise than this project's own server.

Each row of :data:`DIFFERENCES` is a row of a table in docs/libvfio-user.md, and requests with the answers of both.
Tests of :data:`BEHIND_BOTH` that rest on such an answer are expected to fail behind the library.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import raw
from .guest import Ram
from .raw import EVENTFD, NONE, TRIGGER, Raw, access, dma_map, dma_unmap, info, region_info, set_irqs

__all__ = ["BEHIND_BOTH", "DIFFERENCES", "OWN_ONLY", "Difference", "table"]

BEHIND_BOTH = ("test_guest", "test_rows_config", "test_rows_device", "test_rows_dma", "test_rows_lifecycle")
"""Files whose subject is the device as a client sees it: their tests are run with both transports, but for
:data:`OWN_ONLY`. All other files are about the transport itself, or about the process.
"""

_HOSTILE = "the client misbehaves, and the library is for trusted clients"
OWN_ONLY = {
    "test_a_client_that_leaves_replies_behind_is_dropped_at_once": _HOSTILE,
    "test_a_client_that_reads_no_replies_holds_up_no_other": _HOSTILE,
    "test_a_file_that_shrinks_under_the_server_reads_as_zeros_and_kills_nobody": _HOSTILE,
    "test_a_range_that_the_file_or_the_address_space_has_not_is_refused": _HOSTILE,
    "test_the_end_of_a_client_at_any_byte_leaves_nothing_of_it": _HOSTILE,
    "test_vectors_that_wrap_are_einval": _HOSTILE,
    "test_what_is_no_memory_is_refused": _HOSTILE,
    "test_4096_maps_before_info_are_accepted_and_one_access_spans_them": "the library has room for 16",
    "test_a_file_is_mapped_once_and_let_go_with_its_last_range": "the library has room for 16",
    "test_maps_past_the_announced_number_are_refused": "the library has room for 16",
    "test_a_stale_socket_file_is_replaced_and_a_busy_one_is_left_alone": "it starts no server",
}
"""Tests of these files that are not run behind the library, and why not."""

PAGE = 4096


@dataclass(frozen=True)
class Difference:
    """One row. ``ask`` makes the requests, whose answers are ``ours`` and ``theirs``; an errno is an int."""

    what: str
    this_server: str
    libvfio_user: str
    ask: Callable[[Raw, Ram], Any]
    ours: Any
    theirs: Any
    tests: tuple[str, ...] = ()
    """which fail behind the library for this reason; with one set of parameters, in brackets, only with these"""


def _map(peer: Raw, ram: Ram, address: int, size: int, flags: int = 3) -> Any:
    return peer.ask(raw.DMA_MAP, dma_map(address, size, 0, flags), fds=[ram.fd])


def _told(peer: Raw, _: Ram) -> Any:
    return sorted(peer.told)


def _io_descriptors(peer: Raw, _: Ram) -> Any:
    return peer.ask(raw.GET_REGION_IO_FDS, info(16, 0, 6))


def _dirty_pages(peer: Raw, _: Ram) -> Any:
    return peer.ask(raw.DIRTY_PAGES, struct.pack("<II", 24, 4) + bytes(24))


def _vectors_taken_away(peer: Raw, _: Ram) -> Any:
    fds = [os.eventfd(0) for _ in range(2)]
    peer.ask(raw.SET_IRQS, set_irqs(EVENTFD | TRIGGER, count=2), fds=fds)
    peer.ask(raw.SET_IRQS, set_irqs(EVENTFD | TRIGGER, start=1))
    peer.ask(raw.SET_IRQS, set_irqs(NONE | TRIGGER, start=1))
    os.eventfd_write(fds[1], 1)  # so that reading does not wait
    count = os.eventfd_read(fds[1]) - 1
    for fd in fds:
        os.close(fd)
    return count


def _seventeen(peer: Raw, ram: Ram) -> Any:
    return [_map(peer, ram, number * PAGE, PAGE) for number in range(17)][-1]


def _in_pieces(peer: Raw, ram: Ram) -> Any:
    for address in (0, PAGE):
        _map(peer, ram, address, PAGE)
    return peer.ask(raw.DMA_UNMAP, dma_unmap(0, 2 * PAGE))


def _part(peer: Raw, ram: Ram) -> Any:
    _map(peer, ram, 0, 2 * PAGE)
    return peer.ask(raw.DMA_UNMAP, dma_unmap(0, PAGE))


def _without_memory(peer: Raw, _: Ram) -> Any:
    peer.ask(raw.DMA_MAP, dma_map(0, PAGE))
    return peer.ask(raw.GET_INFO, info())


EINVAL = errno.EINVAL
DIFFERENCES = (
    Difference(
        "what VERSION announces",
        "minor version up to 2; 16 descriptors a message, 1 MiB of data, 65535 ranges, pages of 4096",
        "minor version up to 1; 8 descriptors a message, 1 MiB of data",
        _told,
        ["max_data_xfer_size", "max_dma_maps", "max_msg_fds", "pgsizes"],
        ["max_data_xfer_size", "max_msg_fds"],
    ),
    Difference(
        "how many regions there are",
        "9",
        "10; number 9 is for migration",
        lambda peer, _: peer.ask(raw.GET_INFO, info()),
        info(16, 3, 9, 5),
        info(16, 3, 10, 5),
        ("test_info_tells_of_a_pci_function_that_can_be_reset",),
    ),
    Difference(
        "information about region 9",
        "EINVAL",
        "a region of no size",
        lambda peer, _: peer.ask(raw.GET_REGION_INFO, region_info(32, 9)),
        EINVAL,
        region_info(32, 9),
        ("test_region_info_out_of_bounds_is_einval[region 9]",),
    ),
    Difference(
        "I/O descriptors of a region that is not there",
        "none",
        "EINVAL",
        _io_descriptors,
        info(16, 0, 6),
        EINVAL,
        ("test_no_region_has_io_descriptors",),
    ),
    Difference(
        "DIRTY_PAGES, which the protocol has no more",
        "EINVAL",
        "ENOTSUP",
        _dirty_pages,
        EINVAL,
        errno.ENOTSUP,
        ("test_a_dirty_bitmap_of_a_map_without_memory_is_refused",),
    ),
    Difference(
        "to disable an interrupt index without vectors",
        "succeeds",
        "EINVAL",
        lambda peer, _: peer.ask(raw.SET_IRQS, set_irqs(NONE | TRIGGER, raw.INTX, count=0)),
        b"",
        EINVAL,
        (
            "test_disabling_an_index_succeeds_even_if_it_has_no_vectors[0]",
            "test_disabling_an_index_succeeds_even_if_it_has_no_vectors[1]",
        ),
    ),
    Difference(
        "a vector other than the first that is taken away",
        "does not signal",
        "signals",
        _vectors_taken_away,
        0,
        1,
        ("test_eventfd_without_descriptors_takes_these_vectors_away",),
    ),
    Difference(
        "the reply to an access of nothing",
        "has the place that was asked for",
        "is a header only",
        lambda peer, _: peer.ask(raw.REGION_READ, access(2, 0x40, 0)),
        access(2, 0x40, 0),
        b"",
        (
            "test_an_access_of_nothing_succeeds",
            "test_a_reply_has_the_place_asked_for_and_exactly_its_bytes[0]",
        ),
    ),
    Difference(
        "DMA_MAP over a part of another range",
        "EEXIST, as in the protocol's text",
        "EINVAL",
        lambda peer, ram: (_map(peer, ram, 0, PAGE), _map(peer, ram, 0, 2 * PAGE)),
        (b"", errno.EEXIST),
        (b"", EINVAL),
        ("test_an_identical_map_succeeds_and_any_other_overlap_exists",),
    ),
    Difference(
        "DMA_MAP with a bit of an access mode (4 or 8)",
        "succeeds",
        "EINVAL",
        lambda peer, ram: _map(peer, ram, 0, PAGE, flags=7),
        b"",
        EINVAL,
    ),
    Difference(
        "DMA_MAP of an address that is not that of a page",
        "EINVAL",
        "succeeds; DMA to there fails",
        lambda peer, ram: _map(peer, ram, 1, PAGE),
        EINVAL,
        b"",
    ),
    Difference(
        "the 17th range of memory",
        "succeeds",
        "EINVAL",
        _seventeen,
        b"",
        EINVAL,
    ),
    Difference(
        "DMA_UNMAP of several ranges at once",
        "succeeds: QEMU's virtio-mem does that",
        "ENOENT, as in the protocol's text",
        _in_pieces,
        dma_unmap(0, 2 * PAGE),
        errno.ENOENT,
        ("test_what_was_mapped_in_pieces_is_unmapped_at_once_and_out_of_reach",),
    ),
    Difference(
        "DMA_UNMAP of a part of a range",
        "EINVAL",
        "ENOENT",
        _part,
        EINVAL,
        errno.ENOENT,
        ("test_unmap_takes_whole_maps_and_echoes_its_24_bytes",),
    ),
    Difference(
        "a client whose memory cannot be reached asks what the device is",
        "EINVAL, which QEMU shows",
        "is told; DMA fails",
        lambda peer, ram: isinstance(_without_memory(peer, ram), bytes),
        False,
        True,
        ("test_memory_without_descriptors_is_refused_and_never_asked_for_by_messages",),
    ),
)


def table() -> str:
    """The differences as a table of Markdown."""
    rows = [("", "this server", "libvfio-user of 2022"), ("---",) * 3]
    rows += [(each.what, each.this_server, each.libvfio_user) for each in DIFFERENCES]
    return "".join(f"| {' | '.join(row)} |\n".replace("|  |", "| |") for row in rows)
