"""Plain traffic of network cards in C, beside Python's, and what C does while the loop sleeps."""

from __future__ import annotations

import base64
import ctypes
import mmap
import os
import select
import socket
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pviommu.endpoints import virtio_device
from pviommu.endpoints import virtio_net as net
from pviommu.endpoints.virtio_net import VirtioNet, VirtioNetOptions
from pviommu.engine import Access
from pviommu.guest.tables import PageTables
from pviommu.guest.virtio import INDIRECT_DESC, NEXT, RING_EVENT_IDX, WRITE
from pviommu.hosted import Waited
from pviommu.native import build, library
from pviommu.native.core import NativeCore
from pviommu.net import tap
from pviommu.net.offload import GSO_TCPV4, NEEDS_CSUM, PLAIN
from pviommu.probes import Rule
from pviommu.virtio.ring import BATCH, Buffer, Ring
from pviommu_abi.vendor import AllocTables

from ..endpoints.conftest import RAM_SIZE, Guest
from ..endpoints.test_virtio_net import BUFFERS, GPA, IOVA, MAC, PAGES, REQUIRED, Card, frame
from ..net.wire import Poller, Wire

PAGE = 4096
BASE, PLACE = IOVA["net0"], GPA["net0"]
SIZE = 16
"""Entries of a ring."""
BASIC = REQUIRED | net.MAC | net.STATUS | net.MTU | net.CTRL_VQ | net.CTRL_RX | net.MRG_RXBUF
OFFLOADED = net.CSUM | net.HOST_TSO4 | net.GUEST_CSUM | net.GUEST_TSO4
MULTICAST, BROADCAST = bytes.fromhex("01005e000001"), b"\xff" * 6


class Side:
    """A card on a wire."""

    def __init__(self, lib: library.Library, features: int, *, helped: bool, owned: bool) -> None:
        """``helped``: C does what it can; ``owned``: the guest has tables of its own."""
        self.guest = Guest(NativeCore(lib))
        self.guest.environment.inputs.time_step = 0  # no notification is ever asked for, whoever is the slower one
        self.device = self.guest.make(VirtioNet, "net0", 1, VirtioNetOptions(link="tap", tap="tap0", mtu=9000))
        if not helped:
            self.device._plain = self.device.standby = None
        self.device.host = self.loop = Poller()
        self.ram = os.dup(self.guest.ram)
        self.guest.plug(self.device)
        self.tables: PageTables | None = None
        if owned:
            self._own_tables()
        self.set_access(0, Access.READ | Access.WRITE, PAGES)
        self.card = Card(self.guest, self.device).start(features, size=SIZE)
        self.eventfd = self.guest.arm_interrupt(self.device)
        for ring in self.device._rings.values():
            ring.state.vector = 0
        self.wire: Wire = self.device._link
        self.sent: list[bytes] = []
        self.interrupts = 0

    def _own_tables(self) -> None:
        self._map = mmap.mmap(self.ram, RAM_SIZE)
        self.tables = PageTables(memoryview(self._map), iter(range(0x200, 0x300)))
        context = self.guest.iommu._tables.alloc(AllocTables(0, 0, self.tables.root, 39))
        assert context > 0
        self.guest.iommu.contexts.attach(1, context)

    def set_access(self, page: int, access: Access, count: int = 1) -> None:
        """Map pages of the card's memory anew, or not at all."""
        for number in range(page, page + count):
            dfn, gfn = (BASE >> 12) + number, (PLACE >> 12) + number
            if self.tables is not None:
                self.tables.unmap(dfn << 12)
                if access:
                    self.tables.map(dfn << 12, gfn << 12, access.value)
                continue
            self.guest.iommu.engine.unmap(self.guest.context, dfn, 1)
            if access:
                self.guest.map(dfn, gfn, 1, access)

    def settle(self) -> None:
        self.loop.look()
        for _ in range(1000):
            if not self.device.step() or self.device.may_nap:  # which means that it only looks
                break
        self.sent += self.wire.sent()
        with suppress(BlockingIOError):
            self.interrupts += os.eventfd_read(self.eventfd)

    def seen(self) -> dict[str, Any]:
        """All that somebody outside may see, but for how many interrupts there were."""
        counters, state = self.guest.counters, msgspec.to_builtins(self.device.state)
        state["inboxes"] = [inbox for inbox in state["inboxes"] if inbox]  # one that is empty may be missing
        return {
            "memory": os.pread(self.ram, PAGES * PAGE, PLACE),
            "sent": self.sent,
            "state": state,
            "report": self.device.link_report(),
            "faults": (counters.faults, counters.events, counters.events_lost),
            "interrupted": self.interrupts > 0,
        }

    def progress(self) -> dict[int, int]:
        """The next available buffer of each ring."""
        return {queue: ring.state.next_avail for queue, ring in self.device._rings.items()}

    def taken(self) -> int:
        """Frames that were taken from the wire."""
        traffic = self.device.state.traffic
        return traffic.received + traffic.not_received + traffic.filtered + sum(map(len, self.device.state.inboxes))

    def used(self, queue: int) -> dict[int, bytes]:
        """The entries of a used ring that are still there, by their number since the beginning."""
        state = self.device._rings[queue].state
        data = os.pread(self.ram, 4 + 8 * SIZE, PLACE + state.device - BASE)
        numbers = range(max(state.next_used - SIZE, 0), state.next_used)
        return {number: data[4 + 8 * (number % SIZE) :][:8] for number in numbers}

    def close(self) -> None:
        self.guest.close()
        self.loop.epoll.close()
        if self.tables is not None:
            self.tables.close()
            self._map.close()
        for fd in (self.eventfd, self.ram):
            os.close(fd)


def peek_one_by_one(ring: Ring, count: int = 1) -> Sequence[Buffer]:
    """As :meth:`Ring.peek`, but that looks ahead, so it may meet what is wrong with a later buffer before C does."""
    while len(ring.fetched) < min(count, BATCH) and (more := ring._fetch(1)):
        ring.fetched.extend(more)
    ring.is_dry = len(ring.fetched) < min(count, BATCH)
    return ring.fetched


@pytest.fixture(autouse=True)
def wires(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tap, "Tap", Wire)
    monkeypatch.setattr(Ring, "peek", peek_one_by_one)


@pytest.fixture
def side(native_library: library.Library) -> Iterator[Side]:
    with closing(Side(native_library, BASIC | RING_EVENT_IDX, helped=True, owned=True)) as side:
        side.settle()
        yield side


# -- C beside Python --------------------------------------------------------------------------------------------------

HEADERS = st.one_of(
    st.just(PLAIN),
    st.just(struct.pack("<BBHHHH", 2, 0, 1, 2, 3, 4)),
    st.builds(
        lambda *fields: struct.pack("<BBHHHH", *fields),
        st.sampled_from([0, NEEDS_CSUM, 2, 3, 4]),
        st.sampled_from([0, GSO_TCPV4, 4, 3]),
        st.just(54),
        st.sampled_from([0, 500]),
        st.sampled_from([14, 34, 70, 0xFFFF]),
        st.sampled_from([6, 16, 0xFFFF]),
    ),
)
LENGTHS = st.sampled_from([0, 1, 13, 14, 60, 61, 1500, 2036, 2037, 9014, 9015, 20000])
DESTINATIONS = st.sampled_from([MAC["net0"], MAC["net1"], MULTICAST, BROADCAST])
ADDRESSES = st.one_of(
    st.integers(0, 15).map(lambda page: BASE + BUFFERS + PAGE * page + 4000),
    st.sampled_from([BASE, BASE + PAGES * PAGE - 1, 0, (1 << 64) - 16]),
)
DESCRIPTORS = st.tuples(
    ADDRESSES,
    st.sampled_from([0, 1, 12, 26, 200, 2048, 4096, 0xFFFFFFFF]),
    st.sampled_from([0, NEXT, WRITE, NEXT | WRITE, 4, 4 | NEXT, 8]),
    st.sampled_from([0, 1, 2, 3, SIZE - 1, SIZE, 0xFFFF]),
)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), LENGTHS, HEADERS, st.sampled_from([1, 12, 13, 26])),
        st.tuples(st.just("send indirect"), LENGTHS, HEADERS, st.integers(1, 5)),
        st.tuples(st.just("arrive"), LENGTHS, HEADERS, DESTINATIONS, st.booleans()),
        st.tuples(st.just("post"), st.lists(st.sampled_from([1, 12, 100, 2048, 5000]), min_size=1, max_size=4)),
        st.tuples(st.just("descriptor"), st.integers(0, 1), st.integers(0, SIZE - 1), DESCRIPTORS),
        st.tuples(st.just("offer"), st.integers(0, 1), st.sampled_from([0, 1, 2, SIZE - 1, SIZE, 0xFFFF])),
        st.tuples(st.just("idx"), st.integers(0, 1), st.sampled_from([1, SIZE, SIZE + 1, 0x8000])),
        st.tuples(st.just("access"), st.integers(0, 15), st.sampled_from([0, 1, 3])),
        st.tuples(st.just("ring access"), st.integers(0, 3), st.sampled_from([0, 1])),
        st.tuples(st.just("interrupts"), st.integers(0, 1), st.booleans()),
        st.tuples(st.just("mode"), st.integers(0, 5), st.booleans()),
        st.tuples(st.just("settle")),
    ),
    max_size=25,
)


def act(side: Side, action: tuple[Any, ...]) -> None:
    card, rings = side.card, side.card.driver.rings
    match action:
        case "send", length, header, split:
            card.send(frame(length=length), header, split=split)
        case "send indirect", length, header, parts:
            data = header + bytes(2) + frame(length=length)
            place, table = card.place(len(data)), card.place(16 * parts)
            card.write(place, data)
            part = len(data) // parts
            spans = [(place + part * number, part) for number in range(parts - 1)]
            spans.append((place + part * (parts - 1), len(data) - part * (parts - 1)))
            rings[1].add(spans, table=table)
            card.driver.function.notify(1)
        case "arrive", length, header, to, is_tagged:
            side.wire.far.send(header + bytes(2) + frame(to, length, vlan=5 if is_tagged else None))
        case "post", lengths:
            card.post(lengths)
        case "descriptor", queue, number, descriptor:
            rings[queue].write_descriptor(number, *descriptor)
        case "offer", queue, head:
            rings[queue].offer(head)
            card.driver.function.notify(queue)
        case "idx", queue, ahead:
            rings[queue].put_word(rings[queue].driver + 2, rings[queue].avail_idx + ahead)
            card.driver.function.notify(queue)
        case "access", page, access:
            side.set_access((BUFFERS >> 12) + page, Access(access))
        case "ring access", page, access:
            side.set_access(page, Access(access))
        case "interrupts", queue, wanted:
            rings[queue].want_interrupt(wanted)
        case "mode", number, is_on:
            place = card.place(4)
            card.write(place, bytes([0, number, is_on]))
            rings[card.control].add([(place, 3)], [(card.place(1), 1)])
            card.driver.function.notify(card.control)
        case ["renew"]:  # what was done before is not all that there is
            side.set_access(0, Access.READ | Access.WRITE, PAGES)
            card.post([2048] * 2)
            side.wire.far.send(PLAIN + bytes(2) + frame(MAC["net0"]))
        case _:
            side.settle()


def compare_broken(one: Side, other: Side) -> None:
    """A ring was broken, and the cards had come to different places in the others, or on the wire: a step of Python's
    goes on with one buffer or frame after what C has done, and which comes first in it is not the same. What both have
    done is."""
    assert one.device.state.status == other.device.state.status
    if one.progress() == other.progress():
        found, expected = one.seen(), other.seen()
        for name in ("memory", "sent", "faults"):
            assert found[name] == expected[name], name
    count = min(len(one.sent), len(other.sent))
    assert one.sent[:count] == other.sent[:count]
    for queue in one.progress():
        ours, theirs = one.used(queue), other.used(queue)
        common = ours.keys() & theirs.keys()
        assert [ours[each] for each in common] == [theirs[each] for each in common], queue


@given(
    features=st.sampled_from([BASIC, BASIC & ~net.MRG_RXBUF, BASIC | OFFLOADED, BASIC | net.CTRL_VLAN]),
    others=st.sampled_from([0, RING_EVENT_IDX, INDIRECT_DESC, RING_EVENT_IDX | INDIRECT_DESC]),
    owned=st.booleans(),
    is_one_by_one=st.booleans(),
    actions=ACTIONS,
)
@example(
    features=BASIC,
    others=0,
    owned=False,
    is_one_by_one=True,
    actions=[
        ("offer", 1, 0),
        ("send", 0, PLAIN, 1),
        ("arrive", 0, PLAIN, MAC["net0"], False),
        ("idx", 0, SIZE),
    ],
)
@example(
    features=BASIC,
    others=0,
    owned=False,
    is_one_by_one=True,
    actions=[("send", 60, PLAIN, 1), ("offer", 1, 0xFFFF), ("arrive", 60, PLAIN, MAC["net0"], False)],
)
@example(
    features=BASIC,
    others=0,
    owned=False,
    is_one_by_one=True,
    actions=[
        ("arrive", 0, PLAIN, MAC["net0"], False),
        ("idx", 0, SIZE),
        ("arrive", 0, PLAIN, MAC["net0"], False),
    ],
)
@example(
    features=BASIC,
    others=0,
    owned=False,
    is_one_by_one=False,
    actions=[("mode", 0, False), ("arrive", 0, PLAIN, MAC["net0"], False)],
)
@settings(max_examples=60)
def test_c_does_what_python_does(
    native_library: library.Library,
    features: int,
    others: int,
    owned: bool,
    is_one_by_one: bool,
    actions: list[tuple[Any, ...]],
) -> None:
    """``is_one_by_one``: each frame in a step of its own, else as many as there are in one."""
    with ExitStack() as stack:
        monkeypatch = stack.enter_context(pytest.MonkeyPatch.context())
        monkeypatch.setattr(virtio_device, "STEP_NS", -1 if is_one_by_one else 10_000_000_000)
        helped, plain = (
            stack.enter_context(closing(Side(native_library, features | others, helped=helped, owned=owned)))
            for helped in (True, False)
        )
        for side in (helped, plain):
            side.card.post([2048])
        settle = ("settle",)
        # whether a command or a frame of the wire comes first in a step is not the same, so a command is alone in its
        alone = ([settle, action, settle] if action[0] == "mode" else [action] for action in actions)
        for action in (*chain.from_iterable(alone), settle, ("renew",), settle):
            for side in (helped, plain):
                act(side, action)
            if action == settle:
                assert helped.device.is_live == plain.device.is_live
                # a step in which a ring turns out to be broken has its end there, and C may have had one before
                is_apart = helped.progress() != plain.progress() or helped.taken() != plain.taken()
                if is_apart and not plain.device.is_live:
                    compare_broken(helped, plain)
                elif is_one_by_one or plain.device.is_live:
                    found, expected = helped.seen(), plain.seen()
                    for name in expected:
                        assert found[name] == expected[name], name


# -- while the loop sleeps --------------------------------------------------------------------------------------------

ARRIVING = PLAIN + bytes(2) + frame(MAC["net0"])


def sleep(side: Side, timeout_ms: float = 1000, nap_ms: float = -1, budget_ns: int = 100_000) -> Waited:
    helper = side.device.stand_by()
    assert helper is not None
    try:
        return helper.wait([helper], side.loop.epoll.fileno(), timeout_ms, nap_ms, 0.02, budget_ns)
    finally:
        side.device.stood_by()


def asked(side: Side) -> Side:
    """The card has asked to be notified of the next frame, and of nothing else."""
    side.guest.environment.inputs.time_step = 1_000_000
    while side.device.step():
        pass
    assert side.device.ring(1).state.asked
    return side


def test_what_arrives_while_the_loop_sleeps_is_in_the_guests_memory(side: Side) -> None:
    asked(side).card.post([2048])
    side.settle()
    side.card.driver.rings[0].want_interrupt(True)
    side.wire.far.send(ARRIVING)

    assert sleep(side) is Waited.DONE
    assert side.card.received() == [PLAIN + b"\1\0" + frame(MAC["net0"])]
    assert os.eventfd_read(side.eventfd) == 1
    assert (side.device.state.traffic.received, side.guest.counters.interrupts) == (1, 1)
    assert side.device.link_report()["received_bytes"] == len(frame(MAC["net0"]))


def test_nothing_is_done_beside_a_descriptor_of_somebody_else(side: Side) -> None:
    """Which may be the guest that has given its devices up."""
    asked(side).card.post([2048])
    side.settle()
    other = os.eventfd(1)
    side.loop.epoll.register(other, select.EPOLLIN)
    side.wire.far.send(ARRIVING)

    assert sleep(side) is Waited.OTHER
    assert side.device.state.traffic.received == 0
    os.eventfd_read(other)
    assert sleep(side) is Waited.DONE
    os.close(other)


def test_a_sleep_without_frames_ends(side: Side) -> None:
    assert sleep(asked(side), timeout_ms=1) is Waited.IN_VAIN


def test_an_answer_is_found_without_a_notification(side: Side) -> None:
    asked(side).card.post([2048])
    side.settle()
    place = side.card.place(100)
    side.card.write(place, bytes(12) + frame())
    side.card.driver.rings[1].add([(place, 12 + len(frame()))])
    requests, polling = side.guest.counters.dma_requests, side.device._polling[1]
    before = polling.answers = 3
    assert sleep(side, timeout_ms=1) is Waited.IN_VAIN  # the guest would notify of it
    side.wire.far.send(ARRIVING)

    assert sleep(side) is Waited.DONE
    assert side.wire.far.recv(1000) == bytes(12) + frame()
    assert not side.device.ring(1).state.asked
    side.device.step()
    assert polling.answers == before + 1
    assert side.guest.counters.dma_requests > requests


def test_what_the_driver_would_not_notify_of_is_looked_for(side: Side) -> None:
    """While the loop takes a nap between two looks, epoll is not asked about the tap."""
    assert not side.device.ring(1).state.asked
    side.card.post([2048])
    side.settle()
    side.loop.events = 0
    side.wire.far.send(ARRIVING)

    assert sleep(side, 50, 0.1) is Waited.DONE
    assert len(side.card.received()) == 1


def test_a_frame_that_is_not_as_usual_is_pythons(side: Side) -> None:
    side.card.post([2048])
    act(side, ("mode", 0, False))  # not promiscuous any more
    asked(side)
    side.wire.far.send(PLAIN + bytes(2) + frame(MAC["net1"]))

    assert sleep(side) is Waited.DONE
    assert side.device.state.traffic.filtered == 1


def test_a_frame_that_is_left_to_python_is_in_the_state_of_the_card(side: Side) -> None:
    """Which may be saved before the card has a step."""
    asked(side)
    side.wire.far.send(ARRIVING)

    assert sleep(side) is Waited.DONE  # in vain: there are no buffers
    [[(_, saved)]] = side.device.save().own["inboxes"]
    assert base64.b64decode(saved) == frame(MAC["net0"])


def test_those_who_are_not_heard_of_wait_no_longer_than_a_nap(side: Side) -> None:
    """However many frames there are: rings of which no doorbell was asked for are among them."""
    for _ in range(8):
        side.card.post([2048])
    side.settle()
    side.loop.events = 0
    for _ in range(8):
        side.wire.far.send(ARRIVING)

    assert sleep(side, 0.01, 0.01, budget_ns=0) is Waited.DONE
    assert len(side.card.received()) == 2  # after that nap and after the one for whoever was told


def test_a_buffer_of_more_than_4_gib_breaks_the_ring(side: Side) -> None:
    ring = side.card.driver.rings[0]
    ring.write_descriptor(0, BASE + BUFFERS, 0xFFFFFFFF, NEXT | WRITE, 1)
    ring.write_descriptor(1, BASE + BUFFERS, 2, WRITE, 0)
    ring.offer(0)
    asked(side)
    side.wire.far.send(ARRIVING)
    sleep(side)
    assert side.device.state.traffic.received == 0
    side.settle()
    assert not side.device.is_live


def test_buffers_that_were_too_small_for_a_frame_are_there_for_the_next(side: Side) -> None:
    """Though the driver was asked to notify of more, which it does not do as long as the ring is full."""
    for _ in range(SIZE):
        side.card.post([100])
    asked(side)
    for _ in range(2):
        side.wire.far.send(PLAIN + bytes(2) + frame(MAC["net0"], 9000))
        side.settle()
    assert side.device.ring(0).state.asked
    side.wire.far.send(struct.pack("<BBHHHH", NEEDS_CSUM, 0, 0, 0, 14, 6) + bytes(2) + frame(MAC["net0"]))
    side.settle()
    assert side.device.state.traffic.received == 1


def test_a_frame_that_the_other_end_does_not_take_is_lost(side: Side) -> None:
    side.wire.far.shutdown(socket.SHUT_RD)
    side.card.send(frame())
    side.device.step()

    assert side.device.state.traffic.not_sent == 1
    assert side.device.link_report()["sent_dropped"] == {"link": 1}
    assert side.card.driver.rings[1].take() is not None


def test_memory_that_is_refused_is_a_fault_and_costs_its_frame(side: Side) -> None:
    asked(side).card.post([2048], at=BASE + BUFFERS)
    side.settle()
    side.set_access(BUFFERS >> 12, Access(0))
    side.wire.far.send(ARRIVING)

    assert sleep(side) is Waited.DONE
    assert side.guest.counters.faults == 0
    side.settle()
    assert (side.guest.counters.faults, side.device.state.traffic.not_received) == (1, 1)


def test_each_request_is_a_step_of_the_in_flight_line(side: Side) -> None:
    asked(side).card.post([2048])
    side.settle()
    in_flight = side.guest.iommu._tables.in_flight
    before, requests = in_flight.save(), side.guest.counters.dma_requests
    side.wire.far.send(ARRIVING)
    sleep(side)

    [(line, step)] = in_flight.save().items()
    done = side.guest.counters.dma_requests - requests
    assert done > 4
    assert step - before[line] == 2 * done
    word = ctypes.c_uint32.from_address(in_flight.lend(line)[0])
    assert word.value == step


@pytest.mark.parametrize("probe", ["link.send", "link.receive", "dma.write", "dma.translate", "interrupt"])
def test_what_somebody_watches_is_pythons(side: Side, monkeypatch: pytest.MonkeyPatch, probe: str) -> None:
    assert side.device.stand_by() is not None
    side.device.stood_by()
    probes = side.device.probes
    monkeypatch.setattr(probes, "_rules", [Rule(f"{probe}.pre", lambda _: None)])
    probes.rebind()
    assert side.device.stand_by() is None


@pytest.mark.parametrize("how", ["bus master", "link", "reset", "notified", "blocked"])
def test_a_card_that_may_do_nothing_has_nobody_stand_by(side: Side, how: str) -> None:
    match how:
        case "bus master":
            side.guest.set_bus_master(side.device, False)
        case "link":
            side.device.set_link(False)
        case "reset":
            side.card.driver.function["DEVICE_STATUS"] = 0
        case "notified":
            side.card.driver.function.notify(1)
        case _:
            side.guest.iommu.engine.block(1)
    assert side.device.stand_by() is None


def test_many_signals_leave_none_behind(side: Side) -> None:
    """The kernel keeps each completion until somebody takes it, and has room for 128."""
    for _ in range(300):
        side.card.post([2048])
        side.settle()
        side.card.driver.rings[0].want_interrupt(True)
        side.wire.far.send(ARRIVING)
        sleep(side, 50, 0.02)
        assert len(side.card.received()) == 1
        assert os.eventfd_read(side.eventfd) == 1


def test_structures_are_those_of_c(native_library: library.Library, tmp_path: Path) -> None:
    source, program = tmp_path / "sizes.c", tmp_path / "sizes"
    fields = ("buffer", "completed", "expected_for", "table", "rx.eventfd", "tx.entries")
    places = "".join(f' printf("%zu ", offsetof(struct pv_card, {name}));' for name in fields)
    source.write_text(
        f'#include <stdio.h>\n#include "virtio.h"\nint main(void) {{{places} printf("%zu", sizeof(struct pv_card)); }}'
    )
    subprocess.run([build.find_compiler() or "cc", "-I", str(build.SOURCES), source, "-o", program], check=True)
    card = library.Card
    expected = [card.buffer, card.completed, card.expected_for, card.table]
    split = [card.rx.offset + library.Split.eventfd.offset, card.tx.offset + library.Split.entries.offset]
    found = subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()
    assert list(map(int, found)) == [*(each.offset for each in expected), *split, ctypes.sizeof(card)]
