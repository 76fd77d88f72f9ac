"""Device information, interrupts and regions as bytes on the socket of a real back end."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from . import raw
from .raw import BOOL, CONFIG, EVENTFD, MASK, MSIX, NONE, TRIGGER, UNMASK, info, set_irqs

row = pytest.mark.row
EINVAL = errno.EINVAL
VECTORS = 9
BAR_SIZES = {0: 0x1000, 2: 0x100000, 4: 0x1000}
IOMMU_CONFIG_SIZE = 4096


@pytest.fixture
def eventfds():
    """Makes eventfds; they are closed in the end."""
    made = []

    def make(count):
        made.extend(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(count))
        return made[-count:]

    yield make
    for fd in made:
        os.close(fd)


def fired(fds):
    """How often each eventfd was signalled since the last look."""
    counts = []
    for fd in fds:
        try:
            counts.append(os.eventfd_read(fd))
        except BlockingIOError:
            counts.append(0)
    return counts


def install(peer, fds, start=0):
    assert peer.ask(raw.SET_IRQS, set_irqs(EVENTFD | TRIGGER, start=start, count=len(fds)), fds=fds) == b""


def trigger(peer, start, count=1):
    return peer.ask(raw.SET_IRQS, set_irqs(NONE | TRIGGER, start=start, count=count))


# -- information ------------------------------------------------------------------------------------------------------


@row("wire", 21)
@pytest.mark.parametrize("payload", [info(8), info(12), info()[:12], b""])
def test_info_that_is_too_short_is_einval(peer, payload):
    assert peer.ask(raw.GET_INFO, payload) == EINVAL


@row("wire", 21)
@pytest.mark.parametrize("payload", [info(), info(32), info(16, 9, 9, 9), info() + bytes(16), info(0xFFFFFFFF)])
def test_info_tells_of_a_pci_function_that_can_be_reset(peer, payload):
    assert peer.ask(raw.GET_INFO, payload) == info(16, 3, 9, 5)


@row("wire", 22)
@pytest.mark.parametrize(
    "payload",
    [pytest.param(raw.region_info(32, 9), id="region 9"), raw.region_info(31, 0), raw.region_info(32, 0)[:31]],
)
def test_region_info_out_of_bounds_is_einval(peer, payload):
    assert peer.ask(raw.GET_REGION_INFO, payload) == EINVAL


@row("wire", 22)
@pytest.mark.parametrize("index", [1, 3, 5, 6, 8])
def test_an_absent_region_has_no_size_and_no_flags(peer, index):
    assert peer.ask(raw.GET_REGION_INFO, raw.region_info(32, index)) == raw.region_info(32, index)


@row("wire", 23)
@row("defect", "A3")
def test_a_sparse_region_tells_what_room_it_needs_and_then_its_areas_with_one_descriptor(peer):
    short = struct.unpack("<IIIIQQ", peer.ask(raw.GET_REGION_INFO, raw.region_info(32, 2)))
    assert short == (64, 7, 2, 0, 0x100000, 0)
    for argsz, padding in ((64, 0), (4064, 4032), (0xFFFFFFFF, 0)):
        number = peer.send(raw.GET_REGION_INFO, raw.region_info(argsz, 2) + bytes(padding))
        answer = peer.receive()
        assert (answer.number, answer.size, len(answer.fds)) == (number, 16 + 64, 1)
        os.close(answer.fds[0])
        assert struct.unpack_from("<IIIIQQ", answer.payload) == (64, 15, 2, 32, 0x100000, 0)
        assert struct.unpack_from("<HHIII", answer.payload, 32) == (1, 1, 0, 1, 0)
        assert struct.unpack_from("<QQ", answer.payload, 48) == (0, 0x100000)


@row("wire", 24)
def test_areas_are_whole_pages_apart_from_each_other_and_sizes_are_powers_of_two(peer):
    for index in range(9):
        reply = peer.ask(raw.GET_REGION_INFO, raw.region_info(4096, index))
        _, flags, _, first, size, _ = struct.unpack_from("<IIIIQQ", reply)
        assert size == ({CONFIG: IOMMU_CONFIG_SIZE} | BAR_SIZES).get(index, 0)
        assert size & (size - 1) == 0
        areas = struct.iter_unpack("<QQ", reply[first + 16 :]) if flags & 8 else []
        end = 0
        for offset, length in sorted(areas):
            assert (offset % 4096, length % 4096) == (0, 0)
            assert end <= offset < offset + length <= size
            end = offset + length


@row("wire", 25)
def test_irq_info_never_says_noresize_and_there_is_no_intx(peer):
    replies = [struct.unpack("<IIII", peer.ask(raw.GET_IRQ_INFO, info(16, 0, index))) for index in range(5)]
    assert replies == [(16, 1, index, count) for index, count in enumerate((0, 0, VECTORS, 1, 1))]
    assert peer.read(CONFIG, 0x3D, 1) == b"\0"  # interrupt pin
    for payload in (info(16, 0, 5), info(8), info()[:15]):
        assert peer.ask(raw.GET_IRQ_INFO, payload) == EINVAL


@row("wire", 26)
@row("defect", "A9")
@row("defect", "A3")
def test_no_region_has_io_descriptors(peer):
    for index in range(9):
        assert peer.ask(raw.GET_REGION_IO_FDS, info(1 << 20, 0, index)) == info(16, 0, index, 0)
    for payload in (info(16, 0, 9), info(16, 1), info(16, 0, 0, 1), info(15), info((1 << 20) + 1), info(0xFFFFFFFF)):
        assert peer.ask(raw.GET_REGION_IO_FDS, payload) == EINVAL


# -- interrupts -------------------------------------------------------------------------------------------------------


@row("wire", 27)
@row("defect", "A6")
@pytest.mark.parametrize(
    ("payload", "descriptors"),
    [
        (set_irqs(NONE | TRIGGER)[:19], 0),
        (set_irqs(NONE | TRIGGER, argsz=19), 0),
        (set_irqs(BOOL | TRIGGER, count=2, bools=b"\1"), 0),
        (set_irqs(BOOL | TRIGGER, bools=b"\1\1"), 0),
        (set_irqs(NONE | TRIGGER, index=5), 0),
        (set_irqs(NONE | TRIGGER, index=0xFFFFFFFF), 0),
        (set_irqs(NONE), 0),
        (set_irqs(NONE | TRIGGER | MASK), 0),
        (set_irqs(TRIGGER), 0),
        (set_irqs(NONE | BOOL | TRIGGER, bools=b"\1"), 0),
        (set_irqs(NONE | TRIGGER, start=VECTORS), 0),
        (set_irqs(NONE | TRIGGER, start=1, count=VECTORS), 0),
        (set_irqs(NONE | MASK, index=raw.ERR), 0),
        (set_irqs(NONE | TRIGGER, index=raw.REQ, count=2), 0),
        (set_irqs(NONE | TRIGGER, start=1, count=0), 0),
        (set_irqs(NONE | MASK, count=0), 0),
        (set_irqs(EVENTFD | TRIGGER, count=0), 0),
        (set_irqs(NONE | TRIGGER), 1),
        (set_irqs(BOOL | TRIGGER, bools=b"\1"), 1),
        (set_irqs(EVENTFD | TRIGGER, count=2), 1),
        (set_irqs(EVENTFD | TRIGGER, count=1), 2),
    ],
)
def test_a_set_irqs_that_breaks_a_rule_is_einval_and_leaves_what_is_installed(peer, eventfds, payload, descriptors):
    installed = eventfds(VECTORS)
    install(peer, installed)
    assert peer.ask(raw.SET_IRQS, payload, fds=eventfds(descriptors) if descriptors else ()) == EINVAL
    trigger(peer, 0, VECTORS)
    assert fired(installed) == [1] * VECTORS


@row("wire", 28)
def test_eventfd_without_descriptors_takes_these_vectors_away(peer, eventfds):
    fds = eventfds(3)
    install(peer, fds)
    assert peer.ask(raw.SET_IRQS, set_irqs(EVENTFD | TRIGGER, start=1, count=2)) == b""
    trigger(peer, 0, 3)
    assert fired(fds) == [1, 0, 0]
    assert peer.ask(raw.SET_IRQS, set_irqs(EVENTFD | TRIGGER)) == b""  # QEMU: MSI-X on, no vector yet
    assert peer.ask(raw.SET_IRQS, set_irqs(EVENTFD | TRIGGER)) == b""  # there is nothing any more


@row("wire", 29)
@pytest.mark.parametrize("index", range(5))
def test_disabling_an_index_succeeds_even_if_it_has_no_vectors(peer, eventfds, index):
    fds = eventfds(2)
    install(peer, fds)
    assert peer.ask(raw.SET_IRQS, set_irqs(NONE | TRIGGER, index, count=0)) == b""
    trigger(peer, 0, 2)
    assert fired(fds) == ([0, 0] if index == MSIX else [1, 1])


@row("wire", 30)
@row("defect", "A12")
def test_replacing_an_eventfd_closes_the_old_one_and_loses_no_trigger(back_end, peer, eventfds):
    old, new = eventfds(2)
    install(peer, [old])
    before = back_end.descriptors()
    for position in range(20):
        peer.send(raw.SET_IRQS, set_irqs(EVENTFD | TRIGGER), fds=[new if position % 2 == 0 else old])
        peer.send(raw.SET_IRQS, set_irqs(NONE | TRIGGER))
    assert [peer.receive().error for _ in range(40)] == [0] * 40
    assert fired([old, new]) == [10, 10]
    assert back_end.descriptors() == before


@row("wire", 31)
def test_vectors_are_installed_in_pieces_from_any_start(peer, eventfds):
    fds = eventfds(VECTORS)
    for start, count in ((4, 3), (0, 4), (7, 2)):
        install(peer, fds[start : start + count], start)
    for vector in range(VECTORS):
        trigger(peer, vector)
        assert fired(fds) == [int(other == vector) for other in range(VECTORS)]


@row("wire", 32)
def test_trigger_fires_exactly_the_named_vectors_once_each(peer, eventfds):
    fds = eventfds(4)
    install(peer, fds)
    trigger(peer, 1, 2)
    assert fired(fds) == [0, 1, 1, 0]
    assert peer.ask(raw.SET_IRQS, set_irqs(BOOL | TRIGGER, count=4, bools=b"\1\0\0\1", argsz=24)) == b""
    assert fired(fds) == [1, 0, 0, 1]


@row("wire", 33, "there is no INTx line: masking is accepted without effect, and vector 0 of INTx is refused")
def test_masking_is_accepted_and_changes_nothing(peer, eventfds):
    fds, resample = eventfds(2), eventfds(1)
    install(peer, fds)
    for flags in (NONE | MASK, NONE | UNMASK, EVENTFD | MASK, EVENTFD | UNMASK):
        assert peer.ask(raw.SET_IRQS, set_irqs(flags), fds=resample if flags & EVENTFD else ()) == b""
    assert peer.ask(raw.SET_IRQS, set_irqs(BOOL | MASK, bools=b"\1", argsz=21)) == b""
    trigger(peer, 0, 2)
    assert fired(fds) == [1, 1]
    assert peer.ask(raw.SET_IRQS, set_irqs(EVENTFD | UNMASK, raw.INTX), fds=resample) == EINVAL


@row("wire", 34)
@row("defect", "A2")
@pytest.mark.parametrize(("start", "count"), [(1, 0xFFFFFFFF), (0xFFFFFFFF, 1), (0xFFFFFFFF, 0xFFFFFFFF), (0, 1 << 31)])
def test_vectors_that_wrap_are_einval(peer, start, count):
    for flags in (NONE | TRIGGER, EVENTFD | TRIGGER, NONE | MASK):
        assert peer.ask(raw.SET_IRQS, set_irqs(flags, start=start, count=count)) == EINVAL
    assert peer.is_alive()


@row("wire", 35)
def test_triggering_what_has_no_eventfd_is_dropped(peer, eventfds):
    assert trigger(peer, 0, VECTORS) == b""
    fds = eventfds(1)
    install(peer, fds)
    assert fired(fds) == [0]
    assert peer.is_alive()


# -- regions ----------------------------------------------------------------------------------------------------------


@row("wire", 36)
@row("defect", "B9")
@pytest.mark.parametrize("region", [*BAR_SIZES, CONFIG])
def test_every_place_and_size_of_a_region_can_be_accessed_and_nothing_past_it(peer, region):
    size = IOMMU_CONFIG_SIZE if region == CONFIG else BAR_SIZES[region]
    for offset in (0, 1, 3, 0x7FE, 0x801, size - 17, size - 8, size - 4, size - 2, size - 1):
        for count in (1, 2, 3, 4, 7, 8, 16):
            inside = offset + count <= size
            found = peer.read(region, offset, count)
            assert len(found) == count if inside else found == EINVAL
            if region != 0:  # writing at random turns rings on
                assert peer.write(region, offset, bytes(count)) == (0 if inside else EINVAL)


@row("wire", 36)
@row("defect", "A1")
@pytest.mark.parametrize(
    ("region", "offset", "count"),
    [
        (0, 0x1000, 1),
        (0, (1 << 64) - 1, 4),
        (0, (1 << 64) - 8, 16),
        (2, (1 << 64) - 8, 16),
        (CONFIG, (1 << 64) - 4096, 4096),
        (2, 0, (1 << 20) + 1),
        (2, 0, 0xFFFFFFFF),
        (9, 0, 4),
        (0xDEADBEEF, 0, 4),
        (1, 0, 1),
        (6, 0, 1),
        (8, 0, 1),
    ],
)
def test_accesses_out_of_bounds_are_einval(peer, region, offset, count):
    assert peer.read(region, offset, count) == EINVAL
    small = min(count, 16)
    if offset + small > BAR_SIZES.get(region, 0):
        assert peer.write(region, offset, bytes(small)) == EINVAL
    assert peer.is_alive()


@row("wire", 36)
@pytest.mark.parametrize("data", [b"", b"abc", b"abcde"])
def test_a_write_whose_count_is_not_its_data_is_einval(peer, data):
    assert peer.ask(raw.REGION_WRITE, raw.access(2, 0x4000, 4) + data) == EINVAL
    assert peer.read(2, 0x4000, 8) == bytes(8)


@row("wire", 37)
@pytest.mark.parametrize("region", [0, 2, CONFIG])
def test_an_access_of_nothing_succeeds(peer, region):
    assert peer.read(region, 0x40, 0) == b""
    assert peer.write(region, 0x40, b"") == 0


@row("wire", 38)
def test_configuration_space_is_read_in_one_go(peer):
    assert peer.read(CONFIG, 0, 4096) == b"".join(peer.read(CONFIG, offset, 4) for offset in range(0, 4096, 4))


@row("wire", 39)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 8, 100, 4096, 1 << 20])
def test_a_reply_has_the_place_asked_for_and_exactly_its_bytes(peer, count):
    reply = peer.ask(raw.REGION_READ, raw.access(2, 0, count) + b"ignored")
    assert reply[:16] == raw.access(2, 0, count)
    assert len(reply) == 16 + count


@row("wire", 42)
@row("defect", "A18")
def test_posted_writes_are_done_in_order_before_the_read_that_follows(peer):
    for value in range(2000):
        peer.post(2, 0x4000, struct.pack("<I", value))
        peer.post(2, 0x5000 + 4 * value % 4096, struct.pack("<I", value))
    assert peer.read(2, 0x4000, 4) == struct.pack("<I", 1999)


@row("wire", 43)
@row("defect", "A20")
def test_write_multi_is_einval_because_it_is_not_advertised(fresh):
    told = fresh.negotiate()[2]
    assert told.get("write_multiple", False) is False
    entry = struct.pack("<QII8s", 0x4000, 2, 4, b"data")
    assert fresh.ask(raw.REGION_WRITE_MULTI, struct.pack("<Q", 1) + entry) == EINVAL
    assert fresh.read(2, 0x4000, 4) == bytes(4)
