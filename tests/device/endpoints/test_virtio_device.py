"""What every virtio device does (virtio 1.2, sections 2.1 to 2.6 and 4.1), by one that copies what it reads."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from pviommu.dma.fault import DmaPendingError
from pviommu.endpoints.endpoint import Surroundings
from pviommu.endpoints.virtio_device import (
    EAGER_NS,
    LEAST_POLL_NS,
    MOST_ANSWERS,
    MOST_EAGER_NS,
    PASSED_OVER,
    WRONG,
    VirtioDevice,
)
from pviommu.engine import Access
from pviommu.guest.virtio import (
    ACCESS_PLATFORM,
    INDIRECT_DESC,
    NEXT,
    RING_EVENT_IDX,
    RING_PACKED,
    RING_RESET,
    VERSION_1,
    SplitDriver,
    VirtioFunction,
    VirtioGuest,
)
from pviommu.hosted import NAP_MS, SHORT_NAP_MS
from pviommu.pci.config_space import Identity
from pviommu.virtio.features import TRANSPORT
from vfio_user import IrqAction, IrqIndex, IrqKind, IrqRequest
from wire_layout.registers import AccessKind, Register

IOVA = 0x12_3450_0000
"""Where the guest's memory of RINGS and DATA is for the device: more than 32 bits."""
GPA = 0x40_0000
PAGES = 64
DATA = IOVA + 0x30000
QUEUES = 3
OWN = 1 << 3
"""a feature of the device's own"""
REQUIRED = VERSION_1 | ACCESS_PLATFORM
ALL = TRANSPORT | OWN
DRIVER_OK, NEEDS_RESET = 4, 0x40
LAYOUTS = pytest.mark.parametrize("layout", [pytest.param(0, id="split"), pytest.param(RING_PACKED, id="packed")])


class Copier(VirtioDevice):
    """Writes what it reads, each byte XORed with its configuration."""

    IDENTITY = Identity(0x1AF4, 0x107F, 0xFF0000)

    def __init__(self, surroundings: Surroundings) -> None:
        config = [
            Register("KEY", 0x00, AccessKind.RO, "what it XORs with"),
            Register("EXTRA", 0x04, AccessKind.RO, "nothing", width=16),
        ]
        super().__init__(surroundings, queues=QUEUES, queue_size=16, config=config, features=ALL)
        self.served: list[int] = []
        self.power_on()

    def fits(self, features: int) -> bool:
        return bool(features & OWN)

    def serve(self, deadline_ns: int) -> bool:
        busy = False
        for queue in range(QUEUES):
            while found := self.buffers(queue):
                data = self.dma.read(found[0].readable)
                self.dma.write(found[0].writable, bytes(byte ^ self.registers["KEY"] for byte in data))
                ring = self.ring(queue)
                assert ring is not None
                ring.use(len(data))
                self.served.append(queue)
                busy = True
        return busy


class Memory:
    """The guest's memory by the device's addresses."""

    def __init__(self, guest: Any) -> None:
        self.guest = guest

    def read(self, address: int, length: int) -> bytes:
        found: bytes = self.guest.peek(address - IOVA + GPA, length)
        return found

    def write(self, address: int, data: bytes) -> None:
        self.guest.poke(address - IOVA + GPA, data)


@pytest.fixture
def device(guest: Any) -> Copier:
    device: Copier = guest.make(Copier, "copier", 1)
    guest.plug(device)
    guest.map(IOVA >> 12, GPA >> 12, PAGES)
    return device


@pytest.fixture
def driver(guest: Any, device: Copier) -> VirtioGuest:
    return VirtioGuest(VirtioFunction(device.region_read, device.region_write), Memory(guest), IOVA)


@pytest.fixture
def arm(device: Copier) -> Any:
    """Gives each MSI-X vector an eventfd; how often each was signalled since the last call."""
    fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(QUEUES + 1)]
    given = tuple(os.dup(fd) for fd in fds)
    device.set_irqs(IrqRequest(IrqIndex.MSIX, 0, len(fds), IrqAction.TRIGGER, IrqKind.EVENTFD, given))

    def count() -> list[int]:
        counts = []
        for fd in fds:
            try:
                counts.append(os.eventfd_read(fd))
            except BlockingIOError:
                counts.append(0)
        return counts

    yield count
    for fd in fds:
        os.close(fd)


def started(driver: VirtioGuest, features: int = REQUIRED | OWN, size: int = 16) -> Any:
    """Queue 0 of a device that is live."""
    assert driver.negotiate(features)
    ring = driver.set_up(0, size, vector=1)
    driver.go()
    return ring


def settle(device: Copier) -> int:
    """Steps until there is nothing to do; how many."""
    for steps in range(10_000):
        if not device.step():
            return steps
    raise AssertionError("it does not come to rest")


# -- capabilities (4.1.4) -------------------------------------------------------------------------------------------


@pytest.mark.row("virtio", 22)
def test_there_is_a_capability_of_each_kind_within_its_bar(device: Copier, driver: VirtioGuest) -> None:
    places = driver.function.places
    assert set(places) == {1, 2, 3, 4, 5}
    for kind in (1, 2, 3, 4):
        bar, offset, length, _ = places[kind]
        assert (bar, offset % 4) == (0, 0)
        assert 0 < length <= offset + length <= device.bars[0].region.size
    assert places[1][2] >= 0x3C
    assert places[4][2] == 6


@pytest.mark.row("virtio", 30)
def test_the_notification_capability_has_room_for_every_queue(driver: VirtioGuest) -> None:
    _, offset, length, place = driver.function.places[2]
    multiplier = driver.function.config(place + 16, 4)
    assert multiplier & (multiplier - 1) == 0
    assert offset % 2 == 0
    offs = []
    for queue in range(QUEUES):
        driver.function["QUEUE_SELECT"] = queue
        offs.append(driver.function["QUEUE_NOTIFY_OFF"])
    assert length >= max(offs) * multiplier + 2
    assert len(set(offs)) == QUEUES


def test_the_endpoint_capability_is_none_that_a_virtio_driver_would_use(device: Copier) -> None:
    """It is of the same ID; its byte for the BAR names none, so that drivers must ignore it."""
    place = device.config.get(0x34, 1)
    bars = []
    while place:
        if device.config.get(place, 1) == 9:
            bars.append(device.config.get(place + 4, 1))
        place = device.config.get(place + 1, 1)
    assert bars == [0x50, 0, 0, 0, 0, 0]


@pytest.mark.row("virtio", 21)
def test_it_is_not_transitional(device: Copier) -> None:
    assert device.config.get(0x08, 1) >= 1
    assert device.config.get(0x02, 2) >= 0x1040
    assert device.config.get(0x2E, 2) >= 0x40


# -- access through configuration space (4.1.4.9) -------------------------------------------------------------------


def aim(device: Copier, driver: VirtioGuest, offset: int, length: int, bar: int = 0) -> int:
    place = driver.function.places[5][3]
    for at, value, size in ((4, bar, 1), (8, offset, 4), (12, length, 4)):
        device.region_write(7, place + at, value.to_bytes(size, "little"))
    return place + 16


@pytest.mark.row("virtio", 32)
def test_registers_are_read_and_written_through_configuration_space(device: Copier, driver: VirtioGuest) -> None:
    data = aim(device, driver, 0x08, 4)
    device.region_write(7, data, (1).to_bytes(4, "little"))
    assert driver.function["DRIVER_FEATURE_SELECT"] == 1

    data = aim(device, driver, 0x12, 2)
    assert int.from_bytes(device.region_read(7, data, 2), "little") == QUEUES


@pytest.mark.row("virtio", 32)
@pytest.mark.parametrize(("offset", "length", "bar"), [(0, 4, 1), (0, 3, 0), (0, 0, 0), (2, 4, 0), (0x2000, 4, 0)])
def test_an_access_through_configuration_space_that_leads_nowhere_does_nothing(
    device: Copier, driver: VirtioGuest, offset: int, length: int, bar: int
) -> None:
    data = aim(device, driver, offset, length, bar)
    device.region_write(7, data, b"\x01\x02\x03\x04")

    assert device.region_read(7, data, 4) == b"\x01\x02\x03\x04"
    assert driver.function["DEVICE_FEATURE_SELECT"] == 0


# -- features (2.2, 4.1.4.3, 6) -------------------------------------------------------------------------------------


@pytest.mark.row("virtio", 23)
def test_the_features_are_offered_32_bits_at_a_time_and_none_beyond_64(driver: VirtioGuest) -> None:
    assert driver.offered() == ALL
    for select in (2, 3, 0xFFFFFFFF):
        driver.function["DEVICE_FEATURE_SELECT"] = select
        assert driver.function["DEVICE_FEATURE"] == 0
        driver.function["DRIVER_FEATURE_SELECT"] = select
        driver.function["DRIVER_FEATURE"] = 0xFFFFFFFF
        assert driver.function["DRIVER_FEATURE"] == 0


@pytest.mark.row("virtio", 24)
def test_the_driver_reads_back_the_valid_features_that_it_wrote(driver: VirtioGuest) -> None:
    for select, expected in ((0, ALL & 0xFFFFFFFF), (1, ALL >> 32)):
        driver.function["DRIVER_FEATURE_SELECT"] = select
        driver.function["DRIVER_FEATURE"] = 0xFFFFFFFF
        assert driver.function["DRIVER_FEATURE"] == expected


@pytest.mark.row("virtio", 35)
@pytest.mark.parametrize("missing", [VERSION_1, ACCESS_PLATFORM])
def test_a_driver_without_what_is_required_gets_no_features_ok(driver: VirtioGuest, missing: int) -> None:
    assert driver.negotiate(ALL & ~missing) is False

    driver.set_up(0, 8)
    driver.go()

    assert driver.status == 3
    assert driver.function["QUEUE_ENABLE"] == 0


def test_a_choice_that_the_device_cannot_work_with_gets_no_features_ok(driver: VirtioGuest) -> None:
    assert driver.negotiate(REQUIRED) is False
    assert driver.negotiate(REQUIRED | OWN) is True


def test_features_are_settled_by_features_ok(driver: VirtioGuest) -> None:
    assert driver.negotiate(REQUIRED | OWN)
    driver.function["DRIVER_FEATURE_SELECT"] = 0
    driver.function["DRIVER_FEATURE"] = 0

    assert driver.function["DRIVER_FEATURE"] == OWN


# -- status and reset (2.1, 2.4) ------------------------------------------------------------------------------------


@pytest.mark.row("virtio", 1)
def test_the_device_does_nothing_before_driver_ok(device: Copier, driver: VirtioGuest, guest: Any) -> None:
    assert driver.negotiate(REQUIRED | OWN)
    ring = driver.set_up(0, 16)
    ring.add([(DATA, 4)], [(DATA + 8, 4)])
    driver.function.notify(0)
    assert settle(device) == 0
    assert ring.take() is None

    driver.go()
    settle(device)

    assert ring.take() is not None  # without another notification


def test_a_driver_cannot_clear_bits_of_the_status_but_by_a_reset(driver: VirtioGuest) -> None:
    started(driver)
    driver.function["DEVICE_STATUS"] = 1
    assert driver.status == 0xF
    driver.function["DEVICE_STATUS"] = 0
    assert driver.status == 0


@pytest.mark.row("virtio", 26)
@pytest.mark.row("virtio", 2)
def test_a_reset_forgets_everything(device: Copier, driver: VirtioGuest) -> None:
    ring = started(driver, ALL)
    ring.add([(DATA, 4)], [(DATA + 8, 4)])
    driver.function["CONFIG_MSIX_VECTOR"] = 0
    driver.function.notify(0)

    driver.function["DEVICE_STATUS"] = 0

    assert settle(device) == 0
    assert ring.take() is None
    assert driver.function["CONFIG_MSIX_VECTOR"] == 0xFFFF
    assert driver.function["DRIVER_FEATURE"] == 0
    for queue in range(QUEUES):
        driver.function["QUEUE_SELECT"] = queue
        names = ("QUEUE_SIZE", "QUEUE_MSIX_VECTOR", "QUEUE_ENABLE", "QUEUE_DESC", "QUEUE_DRIVER", "QUEUE_DEVICE")
        assert [driver.function[name] for name in names] == [16, 0xFFFF, 0, 0, 0, 0]
    assert started(driver).add([(DATA, 4)]) == 0


@pytest.mark.row("virtio", 2)
@pytest.mark.parametrize("how", ["device", "function", "status"])
def test_a_driver_may_begin_again_after_any_reset(device: Copier, driver: VirtioGuest, guest: Any, how: str) -> None:
    ring = started(driver)
    ring.add([(DATA, 1 << 30)])
    settle(device)
    assert driver.status & NEEDS_RESET

    if how == "device":
        device.reset()
        guest.set_bus_master(device, True)
    elif how == "function":
        place = device._pcie + 8
        device.region_write(7, place, (0x8000).to_bytes(2, "little"))
        guest.set_bus_master(device, True)
    else:
        driver.function["DEVICE_STATUS"] = 0
    assert driver.status == 0
    ring = started(driver)
    ring.add([(DATA, 4)], [(DATA + 8, 4)])
    settle(device)

    assert ring.take() == (0, 4)


# -- queues (2.6, 4.1.4.3) ------------------------------------------------------------------------------------------


@pytest.mark.row("virtio", 28)
def test_a_queue_that_there_is_not_has_size_0_and_keeps_nothing(driver: VirtioGuest) -> None:
    assert driver.negotiate(REQUIRED | OWN)
    for queue in (QUEUES, 0xFFFF):
        driver.function["QUEUE_SELECT"] = queue
        for name in ("QUEUE_SIZE", "QUEUE_DESC", "QUEUE_MSIX_VECTOR", "QUEUE_ENABLE", "QUEUE_RESET"):
            driver.function[name] = 1
        assert driver.function["QUEUE_SIZE"] == driver.function["QUEUE_ENABLE"] == driver.function["QUEUE_DESC"] == 0
    assert driver.status & NEEDS_RESET == 0


@pytest.mark.row("virtio", 29)
@pytest.mark.parametrize("size", [0, 17, 32, 0xFFFF])
def test_a_size_that_the_device_cannot_have_is_not_taken(driver: VirtioGuest, size: int) -> None:
    driver.function["QUEUE_SIZE"] = size

    assert driver.function["QUEUE_SIZE"] == 16


def test_each_queue_has_its_own_values(driver: VirtioGuest) -> None:
    assert driver.negotiate(REQUIRED | OWN)
    for queue in range(QUEUES):
        driver.function["QUEUE_SELECT"] = queue
        driver.function["QUEUE_SIZE"] = 1 << queue
        driver.function["QUEUE_MSIX_VECTOR"] = queue
        driver.function["QUEUE_DESC"] = 0x1_0000_0000 * queue + 0x10
    for queue in range(QUEUES):
        driver.function["QUEUE_SELECT"] = queue
        assert driver.function["QUEUE_SIZE"] == 1 << queue
        assert driver.function["QUEUE_MSIX_VECTOR"] == queue
        assert driver.function["QUEUE_DESC"] == 0x1_0000_0000 * queue + 0x10


def test_a_queue_in_use_is_not_changed(driver: VirtioGuest) -> None:
    ring = started(driver)
    for name, value in (("QUEUE_SIZE", 8), ("QUEUE_DESC", 0), ("QUEUE_MSIX_VECTOR", 2), ("QUEUE_ENABLE", 0)):
        driver.function[name] = value

    assert driver.function["QUEUE_SIZE"] == 16
    assert driver.function["QUEUE_DESC"] == ring.desc
    assert driver.function["QUEUE_MSIX_VECTOR"] == 1
    assert driver.function["QUEUE_ENABLE"] == 1


@pytest.mark.parametrize(("part", "address"), [("QUEUE_DESC", 8), ("QUEUE_DRIVER", 1), ("QUEUE_DEVICE", 2)])
def test_a_queue_at_an_address_that_is_not_aligned_needs_a_reset(driver: VirtioGuest, part: str, address: int) -> None:
    assert driver.negotiate(REQUIRED | OWN)
    driver.function[part] = IOVA + address
    driver.function["QUEUE_ENABLE"] = 1

    assert driver.status & NEEDS_RESET


@pytest.mark.row("virtio", 29)
def test_a_split_ring_whose_size_is_no_power_of_two_needs_a_reset(driver: VirtioGuest) -> None:
    assert driver.negotiate(REQUIRED | OWN)
    driver.set_up(0, 12)

    assert driver.status & NEEDS_RESET


def test_a_packed_ring_may_have_any_size(device: Copier, driver: VirtioGuest) -> None:
    ring = started(driver, REQUIRED | OWN | RING_PACKED, 12)
    ring.add([(DATA, 4)], [(DATA + 8, 4)])
    settle(device)

    assert ring.take() == (0, 4)


@pytest.mark.row("virtio", 27)
@pytest.mark.row("virtio", 5)
@LAYOUTS
def test_one_queue_is_reset_alone_and_used_again(device: Copier, driver: VirtioGuest, layout: int) -> None:
    assert driver.negotiate(REQUIRED | OWN | RING_RESET | layout)
    first, second = driver.set_up(0, 16), driver.set_up(1, 16)
    driver.go()
    settle(device)
    second.add([(DATA, 4)], [(DATA + 8, 4)])
    driver.function["QUEUE_SELECT"] = 1
    driver.function["QUEUE_RESET"] = 1
    assert [driver.function[name] for name in ("QUEUE_RESET", "QUEUE_ENABLE", "QUEUE_SIZE")] == [0, 0, 16]

    first.add([(DATA, 4)], [(DATA + 8, 4)])
    second.add([(DATA, 4)], [(DATA + 8, 4)])
    for queue in (0, 1):
        driver.function.notify(queue)
    settle(device)
    assert first.take() == (0, 4)
    assert second.take() is None

    again = driver.set_up(1, 4)
    again.add([(DATA, 4)], [(DATA + 8, 4)])
    driver.function.notify(1)
    settle(device)
    assert again.take() == (0, 4)


def test_a_queue_is_not_reset_alone_unless_that_is_negotiated(driver: VirtioGuest) -> None:
    started(driver)
    driver.function["QUEUE_RESET"] = 1

    assert driver.function["QUEUE_ENABLE"] == 1


# -- data and notifications (2.6 to 2.9, 4.1.5) ---------------------------------------------------------------------


@LAYOUTS
@pytest.mark.parametrize("events", [0, RING_EVENT_IDX])
def test_data_goes_through_the_iommu_both_ways(
    guest: Any, device: Copier, driver: VirtioGuest, arm: Any, layout: int, events: int
) -> None:
    ring = started(driver, REQUIRED | OWN | layout | events | INDIRECT_DESC)
    device.registers["KEY"] = 0xFF
    for number in range(50):
        driver.memory.write(DATA, bytes([number] * 8))
        table = IOVA + 0x20000 if number % 2 else None
        buffer_id = ring.add([(DATA, 5), (DATA + 5, 3)], [(DATA + 0x1000, 8)], table=table)
        if ring.needs_notification():
            driver.function.notify(0)
        settle(device)
        assert arm()[1] == 1
        assert ring.take() == (buffer_id, 8)
        assert driver.memory.read(DATA + 0x1000, 8) == bytes([number ^ 0xFF] * 8)
        ring.want_interrupt(True)


@LAYOUTS
def test_a_busy_driver_need_not_notify(guest: Any, device: Copier, driver: VirtioGuest, layout: int) -> None:
    """A notification is a trap. One wakes the device, and none follows while buffers keep coming."""
    ring = started(driver, REQUIRED | OWN | layout | RING_EVENT_IDX)
    settle(device)
    notified = 0
    for _ in range(200):
        ring.add([(DATA, 4)], [(DATA + 8, 4)])
        if ring.needs_notification():
            driver.function.notify(0)
            notified += 1
        assert device.step() is True
        assert ring.take() is not None

    assert notified == 1


@LAYOUTS
@pytest.mark.parametrize("events", [0, RING_EVENT_IDX])
def test_an_idle_device_rests_and_is_notified(device: Copier, driver: VirtioGuest, layout: int, events: int) -> None:
    ring = started(driver, REQUIRED | OWN | layout | events)
    for _ in range(20):
        settle(device)
        requests = device.counters.dma_requests
        assert device.step() is False
        assert device.counters.dma_requests == requests
        ring.add([(DATA, 4)], [(DATA + 8, 4)])
        assert ring.needs_notification()
        assert device.step() is False  # it does not look
        driver.function.notify(0)
        settle(device)
        assert ring.take() is not None


@LAYOUTS
def test_a_driver_that_keeps_coming_back_soon_need_not_notify_after_a_while(
    device: Copier, driver: VirtioGuest, layout: int
) -> None:
    """And one that comes back late costs no more looking than at first."""
    ring = started(driver, REQUIRED | OWN | layout | RING_EVENT_IDX)
    settle(device)

    def exchange(gap_ns: int) -> bool:
        """A buffer, and what the device does until the next one. Whether it had to be notified."""
        end = device.inputs.time + gap_ns
        ring.add([(DATA, 4)], [(DATA + 8, 4)])
        if notifies := ring.needs_notification():
            driver.function.notify(0)
        while device.inputs.time < end and device.step():
            pass
        device.inputs.time = max(end, device.inputs.time)
        assert ring.take() is not None
        return notifies

    assert exchange(300_000)
    notified = [exchange(300_000) for _ in range(40)]
    assert notified[0]
    assert not any(notified[5:])

    assert [exchange(10_000_000) for _ in range(3)] == [False, True, True]
    requests = device.counters.dma_requests
    settle(device)
    exchange(10_000_000)
    looked = device.counters.dma_requests - requests
    assert looked < LEAST_POLL_NS // device.inputs.time_step


@LAYOUTS
def test_naps_between_looks_for_more_are_short_at_first(device: Copier, driver: VirtioGuest, layout: int) -> None:
    ring = started(driver, REQUIRED | OWN | layout | RING_EVENT_IDX)
    for _ in range(10):  # soon after each other
        settle(device)
        ring.add([(DATA, 4)], [(DATA + 8, 4)])
        driver.function.notify(0)
    assert device.step()
    assert not device.may_nap  # it has done something
    begin = device.inputs.time
    assert device.step()
    assert (device.may_nap, device.nap_ms) == (True, SHORT_NAP_MS)
    naps = [device.nap_ms == NAP_MS for _ in range(200) if device.step()]
    looked_ns = (naps.index(True) + 1) * (device.inputs.time - begin) // len(naps)

    assert naps == sorted(naps)
    assert abs(looked_ns - EAGER_NS) <= 20 * device.inputs.time_step


@LAYOUTS
@pytest.mark.parametrize("events", [0, RING_EVENT_IDX])
def test_a_buffer_that_is_expected_needs_no_notification(
    device: Copier, driver: VirtioGuest, layout: int, events: int
) -> None:
    ring = started(driver, REQUIRED | OWN | layout | events)
    for _ in range(50):
        settle(device)
        device.expect(0)
        ring.add([(DATA, 4)], [(DATA + 8, 4)])
        assert not ring.needs_notification()
        assert device.step()
        assert ring.take() is not None


@LAYOUTS
def test_an_answer_is_looked_for_eagerly_for_longer_than_answers_usually_take(
    device: Copier, driver: VirtioGuest, layout: int
) -> None:
    """Unless they take longer than is worth it."""
    ring = started(driver, REQUIRED | OWN | layout | RING_EVENT_IDX)

    def answered(after_ns: int) -> bool:
        """An answer after that time. Whether there were only short naps until then."""
        settle(device)
        device.expect(0)
        begin, naps = device.inputs.time, False
        while device.inputs.time < begin + after_ns:
            device.step()
            naps |= device.nap_ms == NAP_MS
        ring.add([(DATA, 4)], [(DATA + 8, 4)])
        if ring.needs_notification():
            driver.function.notify(0)
        settle(device)
        assert ring.take() is not None
        return not naps

    after_ns = 3 * EAGER_NS
    eager = [answered(after_ns) for _ in range(40)]
    assert not eager[0]
    assert all(eager[-10:])
    assert not any([answered(2 * MOST_EAGER_NS) for _ in range(40)][-10:])


@LAYOUTS
def test_buffers_that_do_not_come_as_expected_are_soon_not_looked_for(
    device: Copier, driver: VirtioGuest, layout: int
) -> None:
    started(driver, REQUIRED | OWN | layout | RING_EVENT_IDX)
    settle(device)
    looked = 0
    for _ in range(10 * PASSED_OVER):
        device.expect(0)
        looked += device.step()
        settle(device)

    assert MOST_ANSWERS // WRONG <= looked <= 15


@pytest.mark.row("virtio", 15)
def test_spurious_notifications_do_no_harm(device: Copier, driver: VirtioGuest) -> None:
    ring = started(driver)
    for queue in range(QUEUES):
        driver.function.notify(queue)
    settle(device)
    ring.add([(DATA, 4)], [(DATA + 8, 4)])
    for _ in range(3):
        driver.function.notify(0)
        settle(device)

    assert (ring.take(), ring.take()) == ((0, 4), None)
    assert driver.status & NEEDS_RESET == 0


@LAYOUTS
def test_dma_that_has_to_wait_for_the_iommu_is_done_later_and_once(
    device: Copier, driver: VirtioGuest, monkeypatch: pytest.MonkeyPatch, layout: int
) -> None:
    ring = started(driver, REQUIRED | OWN | layout | RING_EVENT_IDX)
    calls = 0

    def put_off(call: Callable[..., Any]) -> Callable[..., Any]:
        def some_later(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls % 5 == 0:
                raise DmaPendingError
            return call(*arguments)

        return some_later

    monkeypatch.setattr(device.dma, "read", put_off(device.dma.read))
    monkeypatch.setattr(device.dma, "write", put_off(device.dma.write))
    for number in range(20):
        buffer_id = ring.add([(DATA, 4)], [(DATA + 8, 4)])
        driver.function.notify(0)
        settle(device)
        assert (ring.take(), ring.take()) == ((buffer_id, 4), None)
        assert len(device.served) == number + 1


@pytest.mark.row("virtio", 33)
@pytest.mark.parametrize("vector", [0, QUEUES])
def test_any_vector_serves_any_event(device: Copier, driver: VirtioGuest, arm: Any, vector: int) -> None:
    assert driver.negotiate(REQUIRED | OWN)
    ring = driver.set_up(0, 16, vector)
    driver.function["CONFIG_MSIX_VECTOR"] = vector
    assert driver.function["CONFIG_MSIX_VECTOR"] == driver.function["QUEUE_MSIX_VECTOR"] == vector
    driver.go()
    ring.add([(DATA, 4)], [(DATA + 8, 4)])
    settle(device)
    assert arm()[vector] == 1

    device.config_change()

    assert arm()[vector] == 1


@pytest.mark.row("virtio", 33)
@pytest.mark.parametrize("vector", [QUEUES + 1, 0x800, 0xFFFE])
def test_a_vector_that_there_is_not_reads_back_as_none(driver: VirtioGuest, vector: int) -> None:
    for name in ("CONFIG_MSIX_VECTOR", "QUEUE_MSIX_VECTOR"):
        driver.function[name] = 0
        driver.function[name] = vector
        assert driver.function[name] == 0xFFFF


@pytest.mark.row("virtio", 34)
def test_an_event_without_a_vector_brings_no_interrupt(device: Copier, driver: VirtioGuest, arm: Any) -> None:
    assert driver.negotiate(REQUIRED | OWN)
    ring = driver.set_up(0, 16)
    driver.go()
    ring.add([(DATA, 4)], [(DATA + 8, 4)])
    settle(device)
    assert ring.take() is not None

    device.config_change()

    assert arm() == [0] * (QUEUES + 1)


@pytest.mark.row("virtio", 7)
@LAYOUTS
def test_what_is_for_the_device_to_read_is_not_written(
    guest: Any, device: Copier, driver: VirtioGuest, layout: int
) -> None:
    """The IOMMU would not even let it."""
    guest.map(0x700, (GPA >> 12) + 0x30, 1, Access.READ)
    ring = started(driver, REQUIRED | OWN | layout)
    driver.memory.write(DATA, b"to be read")
    ring.add([(0x700000, 10)], [(DATA + 0x1000, 10)])
    settle(device)

    assert ring.take() is not None
    assert driver.memory.read(DATA, 10) == driver.memory.read(DATA + 0x1000, 10) == b"to be read"
    assert guest.events() == []


@pytest.mark.row("virtio", 31)
def test_without_vectors_the_isr_status_tells_and_reading_clears_it(device: Copier, driver: VirtioGuest) -> None:
    assert driver.negotiate(REQUIRED | OWN)
    ring = driver.set_up(0, 16)
    driver.go()
    ring.add([(DATA, 4)], [(DATA + 8, 4)])
    settle(device)
    assert [driver.function.read(3, 0, 1) for _ in range(2)] == [1, 0]

    device.config_change()

    assert [driver.function.read(3, 0, 1) for _ in range(2)] == [2, 0]


@pytest.mark.row("virtio", 25)
def test_the_generation_changes_once_a_changed_configuration_is_read(device: Copier, driver: VirtioGuest) -> None:
    started(driver)
    before = driver.function["CONFIG_GENERATION"]
    driver.function.device_config(0, 4)
    assert driver.function["CONFIG_GENERATION"] == before

    for _ in range(256):
        device.config_change()
    driver.function.device_config(4, 2)

    assert driver.function["CONFIG_GENERATION"] == before + 1
    driver.function.device_config(0, 4)
    assert driver.function["CONFIG_GENERATION"] == before + 1


# -- what cannot go on ----------------------------------------------------------------------------------------------


def loop(ring: Any) -> None:
    ring.write_descriptor(0, DATA, 1, NEXT, 0)
    ring.offer(0)


def runaway(ring: Any) -> None:
    ring.put_word(ring.driver + 2, 0x8000)


def unmapped_table(ring: Any) -> None:
    ring.write_descriptor(0, IOVA - 0x1000, 16, 4)
    ring.offer(0)


@pytest.mark.row("virtio", 3)
@pytest.mark.parametrize("break_it", [loop, runaway, unmapped_table])
def test_a_broken_ring_needs_a_reset_and_the_driver_is_told(
    device: Copier, driver: VirtioGuest, arm: Any, break_it: Callable[[Any], None]
) -> None:
    assert driver.negotiate(REQUIRED | OWN | INDIRECT_DESC)
    ring, other = driver.set_up(0, 16, 1), driver.set_up(1, 16, 2)
    driver.function["CONFIG_MSIX_VECTOR"] = 0
    driver.go()
    settle(device)
    arm()
    break_it(ring)
    driver.function.notify(0)

    settle(device)

    assert driver.status & NEEDS_RESET
    assert arm()[0] == 1
    assert not device.failed
    other.add([(DATA, 4)], [(DATA + 8, 4)])
    driver.function.notify(1)
    requests = device.counters.dma_requests
    assert settle(device) == 0
    assert other.take() is None
    assert device.counters.dma_requests == requests


@pytest.mark.row("virtio", 47)
@pytest.mark.parametrize("part", ["QUEUE_DESC", "QUEUE_DRIVER", "QUEUE_DEVICE"])
@LAYOUTS
def test_a_part_of_a_ring_that_is_not_mapped_is_a_fault_and_needs_a_reset(
    guest: Any, device: Copier, driver: VirtioGuest, part: str, layout: int
) -> None:
    assert driver.negotiate(REQUIRED | OWN | layout)
    ring = driver.set_up(0, 16)
    driver.function["DEVICE_STATUS"] = 0
    assert driver.negotiate(REQUIRED | OWN | layout)
    nowhere = 0x7_0000_0000
    places = {"QUEUE_DESC": ring.desc, "QUEUE_DRIVER": ring.driver, "QUEUE_DEVICE": ring.device} | {part: nowhere}
    for name, place in places.items():
        driver.function[name] = place
    driver.function["QUEUE_ENABLE"] = 1
    driver.go()
    ring.add([(DATA, 4)], [(DATA + 8, 4)])
    driver.function.notify(0)

    settle(device)

    assert driver.status & NEEDS_RESET
    [event] = guest.events()
    assert event.iova & ~0xFFF == nowhere


def test_a_ring_whose_page_is_read_only_for_the_device_needs_a_reset(
    guest: Any, device: Copier, driver: VirtioGuest
) -> None:
    guest.map(0x500, GPA >> 12, 3, Access.READ)
    assert driver.negotiate(REQUIRED | OWN)
    ring = SplitDriver(driver.memory, IOVA, 16, 0)
    ring.desc, ring.driver, ring.device = 0x500000, 0x501000, 0x502000
    driver.enable(0, ring)
    driver.go()

    settle(device)

    assert driver.status & NEEDS_RESET


def test_a_device_that_may_not_master_the_bus_waits(guest: Any, device: Copier, driver: VirtioGuest) -> None:
    ring = started(driver)
    guest.set_bus_master(device, False)
    ring.add([(DATA, 4)], [(DATA + 8, 4)])
    driver.function.notify(0)
    assert settle(device) == 0
    assert driver.status & NEEDS_RESET == 0

    guest.set_bus_master(device, True)
    settle(device)

    assert ring.take() == (0, 4)


def test_an_iommu_that_is_reset_ends_what_is_in_the_rings(guest: Any, device: Copier, driver: VirtioGuest) -> None:
    ring = started(driver)
    settle(device)

    device.cancel()

    assert driver.status & NEEDS_RESET
    ring.add([(DATA, 4)], [(DATA + 8, 4)])
    driver.function.notify(0)
    assert settle(device) == 0
    assert guest.events() == []


# -- state ----------------------------------------------------------------------------------------------------------


@LAYOUTS
def test_another_process_goes_on_from_a_saved_state(
    guest: Any, device: Copier, driver: VirtioGuest, layout: int
) -> None:
    ring = started(driver, REQUIRED | OWN | layout | RING_EVENT_IDX)
    device.registers["KEY"] = 0x11
    for _ in range(3):
        ring.add([(DATA, 4)], [(DATA + 8, 4)])
        driver.function.notify(0)
        settle(device)
        assert ring.take() is not None
    ring.add([(DATA, 4)], [(DATA + 8, 4)])
    saved = device.save()

    device.reset()
    device.load(saved)

    assert driver.status == 0xF
    driver.function.notify(0)
    settle(device)
    assert ring.take() is not None
    assert device.registers["KEY"] == 0x11


@LAYOUTS
def test_a_notification_that_came_just_before_the_state_was_saved_is_not_lost(
    device: Copier, driver: VirtioGuest, layout: int
) -> None:
    ring = started(driver, REQUIRED | OWN | layout | RING_EVENT_IDX)
    settle(device)
    ring.add([(DATA, 4)], [(DATA + 8, 4)])
    assert ring.needs_notification()
    driver.function.notify(0)
    saved = device.save()

    device.reset()
    device.load(saved)
    settle(device)

    assert ring.take() is not None
