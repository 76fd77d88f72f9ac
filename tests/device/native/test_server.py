"""The server's tests on a machine with the native core, and the polling that only such a machine does."""

import pytest

from pviommu.server import CORE_SPIN_NS
from pviommu_abi.xen_2024 import MapPages, Xen2024Op

from .. import test_server
from ..test_server import *  # noqa: F403

# Its turns are long, so it looks at the sockets in each.
globals().pop(test_server.test_a_busy_server_looks_at_its_sockets_now_and_then.__name__)


@pytest.fixture
def polls(connected, monkeypatch):
    """The times for which the rings were polled."""
    seen = []
    spin = connected.driver.iommu.spin
    monkeypatch.setattr(connected.driver.iommu, "spin", lambda budget: seen.append(budget) or spin(budget))
    return seen


def test_while_rings_are_busy_they_are_polled_between_two_looks_at_the_sockets(connected, polls):
    connected.driver.put(test_server.NOOP)

    connected.turns(2)

    assert polls == [CORE_SPIN_NS, CORE_SPIN_NS]
    assert connected.driver.inputs.waits == [0, 0]


def test_a_server_that_sleeps_does_not_poll(connected, polls):
    connected.fall_asleep()
    polls.clear()

    connected.turns(3)

    assert polls == []


def test_what_a_poll_finds_keeps_the_server_awake(connected, monkeypatch):
    driver = connected.driver
    assert driver.alloc() == (0, 1)
    monkeypatch.setattr(driver.machine, "work", lambda: False)
    connected.fall_asleep()
    driver.inputs.waits.clear()
    connected.server._wake(driver.inputs.time)
    driver.put(MapPages(Xen2024Op.MAP_PAGES, 1, 3, 5, 6, 1).pack())

    connected.turns(1)

    assert driver.completed() == driver.producer[0]
    assert driver.inputs.waits == [0]


def test_endpoints_with_work_are_not_kept_waiting_by_polls(connected, polls, monkeypatch):
    monkeypatch.setattr(connected.driver.machine, "endpoints_busy", True)
    monkeypatch.setattr(connected.driver.machine, "work", lambda: True)

    connected.turns(1)

    assert polls == []
