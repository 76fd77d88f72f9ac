"""The server's tests on a machine with the native core, and the polling that only such a machine does."""

import time

import pytest

from pviommu.host.loop import CORE_SPIN_NS
from pviommu.hosted import Poll
from pviommu_abi.slots import SlotFlags
from pviommu_abi.xen_2024 import MapPages, Xen2024Op

from ..host import test_server
from ..host.test_server import *  # noqa: F403
from ..host.test_server import SPIN_NS
from .conftest import WHOLE

# Its turns are long, so it looks at the sockets in each.
globals().pop(test_server.test_a_busy_server_looks_at_its_sockets_now_and_then.__name__)


@pytest.fixture
def parts():
    return WHOLE


@pytest.fixture
def polls(connected, monkeypatch):
    """How long the rings were to be polled, each time."""
    seen = []
    spin = connected.driver.iommu.spin
    monkeypatch.setattr(connected.driver.iommu, "spin", lambda poll: seen.append(poll) or spin(poll))
    return seen


def wait_twice(connected):
    """Now there is a guest to poll for."""
    for _ in range(2):
        connected.driver.put(test_server.NOOP)
        connected.server.turn()
    connected.driver.inputs.waits.clear()


def test_for_a_guest_that_waits_rings_are_polled_between_two_looks_at_the_sockets(connected, polls):
    wait_twice(connected)
    polls.clear()

    connected.turns(2)

    assert [poll.budget_ns for poll in polls] == [CORE_SPIN_NS, CORE_SPIN_NS]
    assert all(0 < poll.left_ns < poll.window_ns <= SPIN_NS for poll in polls)
    assert connected.driver.inputs.waits == [0, 0]


@pytest.mark.row("driver", 75)
def test_a_poll_ends_when_there_is_something_to_read(connected, polls):
    wait_twice(connected)
    connected.turns(1)
    (fd,) = {poll.fd for poll in polls}
    second = 1_000_000_000

    connected.ring_doorbell()
    start = time.monotonic_ns()
    connected.driver.iommu.spin(Poll(second, second, second, fd))

    assert time.monotonic_ns() - start < second // 2


def test_work_that_nobody_waits_for_is_not_polled_for(connected, polls):
    for _ in range(5):
        connected.driver.put(test_server.NOOP, flags=SlotFlags.POSTED)
        connected.turns(1)

    assert polls == []


def test_a_server_that_sleeps_does_not_poll(connected, polls):
    connected.fall_asleep()
    polls.clear()

    connected.turns(3)

    assert polls == []


def test_what_a_poll_finds_keeps_the_server_awake(connected, monkeypatch):
    driver = connected.driver
    assert driver.alloc() == (0, 1)
    wait_twice(connected)
    monkeypatch.setattr(connected.server.work, "step", lambda: False)
    driver.put(MapPages(Xen2024Op.MAP_PAGES, 1, 3, 5, 6, 1).pack())

    connected.turns(1)

    assert driver.completed() == driver.producer[0]
    assert driver.inputs.waits == [0]


def test_endpoints_with_work_are_not_kept_waiting_by_polls(connected, polls, monkeypatch):
    wait_twice(connected)
    polls.clear()
    monkeypatch.setattr(connected.server.work.endpoints, "busy", True)
    monkeypatch.setattr(connected.server.work, "step", lambda: True)

    connected.turns(1)

    assert polls == []
