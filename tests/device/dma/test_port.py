"""The DMA port: all or nothing, and exact about what was refused."""

from __future__ import annotations

import fcntl
import os
import time
from typing import Any

import pytest

from pviommu.dma.fault import DmaRefusedError
from pviommu.dma.plan import DmaPlan
from pviommu.dma.port import DmaPort
from pviommu.endpoints.template import Template
from pviommu.engine import Access, Run
from pviommu.hosted import STOPPED_NS
from pviommu_abi.shared import EventAccess, EventReason
from pviommu_abi.xen_2024 import MapPages, UnmapPages, Xen2024Op
from vfio_user import DmaMapping

from ..conftest import reason_of

PAGE = 4096
RW = 3


@pytest.fixture
def port(guest: Any) -> DmaPort:
    endpoint = guest.make(Template, "stamp", 1)
    guest.plug(endpoint)
    return endpoint.dma


def refused(port: DmaPort, *requests: tuple[list[tuple[int, int]], Access]) -> DmaRefusedError:
    with pytest.raises(DmaRefusedError) as caught:
        port.plan(*requests)
    return caught.value


def test_data_goes_where_the_context_says(guest: Any, port: DmaPort) -> None:
    guest.map(0x100, 0x20, 2)

    port.write([(0x100FFE, 4)], b"abcd")

    assert guest.peek(0x20FFE, 4) == b"abcd"
    assert port.read([(0x100FFF, 2)]) == b"bc"
    assert (guest.counters.dma_requests, guest.counters.dma_bytes) == (2, 6)


def test_spans_are_scattered_and_gathered_in_order(guest: Any, port: DmaPort) -> None:
    guest.map(0x100, 0x20)
    guest.map(0x101, 0x10)

    port.write([(0x101000, 2), (0x100000, 3)], b"abcde")

    assert (guest.peek(0x10000, 2), guest.peek(0x20000, 3)) == (b"ab", b"cde")
    assert port.read([(0x100000, 3), (0x101000, 2)]) == b"cdeab"


def test_without_bus_mastering_no_request_leaves_the_function(guest: Any, port: DmaPort) -> None:
    guest.map(0x100, 0x20)
    guest.set_bus_master(guest.endpoints[0], False)

    error = refused(port, ([(0x100008, 4)], Access.WRITE))

    assert (error.fault.iova, error.fault.access, reason_of(error)) == (0x100008, Access.WRITE, None)
    assert str(error) == "WRITE at 0x100008: bus mastering is off"
    assert guest.events() == []


def test_one_refused_page_in_the_middle_moves_nothing(guest: Any, port: DmaPort) -> None:
    guest.map(0x100, 0x20)
    guest.map(0x102, 0x22)

    with pytest.raises(DmaRefusedError, match="WRITE at 0x101000: NOT_MAPPED"):
        port.write([(0x100010, 2 * PAGE)], b"x" * 2 * PAGE)

    assert guest.peek(0x20000, 3 * PAGE) == bytes(3 * PAGE)
    [event] = guest.events()
    assert (event.reason, event.access, event.stream) == (EventReason.NOT_MAPPED, EventAccess.WRITE, 1)
    assert (event.iova, event.length, event.ctx_no) == (0x101000, 2 * PAGE, guest.context)
    assert (guest.counters.dma_requests, guest.counters.dma_bytes) == (0, 0)


def test_one_refused_span_moves_nothing_of_the_others(guest: Any, port: DmaPort) -> None:
    guest.map(0x100, 0x20)

    with pytest.raises(DmaRefusedError, match="WRITE at 0x200004: NOT_MAPPED"):
        port.write([(0x100000, 4), (0x200004, 4)], b"abcdefgh")

    assert guest.peek(0x20000, 4) == bytes(4)


def test_the_wrong_access_is_refused(guest: Any, port: DmaPort) -> None:
    guest.map(0x100, 0x20, access=Access.READ)

    assert reason_of(refused(port, ([(0x100000, 4)], Access.WRITE))) is EventReason.PERMISSION
    assert port.read([(0x100000, 4)]) == bytes(4)


@pytest.mark.row("defect", "C17")
def test_what_the_client_took_away_is_not_ram_at_its_exact_address(guest: Any, port: DmaPort) -> None:
    endpoint = guest.endpoints[0]
    endpoint.dma_unmap_all()
    guest.give_memory(endpoint, 0, 0x21000)
    guest.map(0x100, 0x30)  # gone
    guest.map(0x101, 0x20, 2)  # the second page is gone

    error = refused(port, ([(0x101010, 4), (0x101FF0, 0x20)], Access.READ))

    assert (error.fault.iova, reason_of(error)) == (0x102000, EventReason.NOT_RAM)
    [event] = guest.events()
    assert (event.reason, event.iova, event.length) == (EventReason.NOT_RAM, 0x102000, 0x20)
    assert refused(port, ([(0x100123, 1)], Access.READ)).fault.iova == 0x100123


def test_a_file_that_fails_refuses_the_request(guest: Any, port: DmaPort) -> None:
    loose = os.memfd_create("loose", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(loose, PAGE)
    # A slot of guest memory behind a file of its own, for both clients alike.
    gpa = 0x4000000
    for function in (guest.iommu, guest.endpoints[0]):
        function.dma_map(DmaMapping(gpa, PAGE, 0, True, True, os.dup(loose)))
    guest.map(0x100, gpa >> 12)
    fcntl.fcntl(loose, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    os.close(loose)

    with pytest.raises(DmaRefusedError, match="WRITE at 0x100008: NOT_RAM"):
        port.write([(0x100008, 4)], b"abcd")

    assert [event.reason for event in guest.events()] == [EventReason.NOT_RAM]


def test_a_map_on_its_way_is_waited_for(guest: Any, port: DmaPort) -> None:
    guest.set_up_ring()
    guest.submit(MapPages(Xen2024Op.MAP_PAGES, guest.context, RW, gfn=0x20, dfn=0x100, nr_pages=1))

    port.write([(0x100000, 4)], b"abcd")

    assert guest.peek(0x20000, 4) == b"abcd"


@pytest.mark.row("defect", "D17")
def test_an_unmap_seen_while_waiting_for_a_later_span_counts_for_the_earlier_one(guest: Any, port: DmaPort) -> None:
    guest.set_up_ring()
    guest.map(0x100, 0x20)
    guest.submit(
        UnmapPages(Xen2024Op.UNMAP_PAGES, guest.context, 0, dfn=0x100, nr_pages=1),
        MapPages(Xen2024Op.MAP_PAGES, guest.context, RW, gfn=0x21, dfn=0x101, nr_pages=1),
    )

    error = refused(port, ([(0x100000, 4)], Access.READ), ([(0x101000, 4)], Access.WRITE))

    assert (error.fault.iova, error.fault.access, reason_of(error)) == (0x100000, Access.READ, EventReason.NOT_MAPPED)


def test_several_requests_are_planned_together(guest: Any, port: DmaPort) -> None:
    guest.map(0x100, 0x20, 2)

    reading, writing = port.plan(([(0x100000, 8)], Access.READ), ([(0x101000, 4), (0x100100, 4)], Access.WRITE))

    assert reading.runs() == [Run(0x20000, 8)]
    assert writing.runs() == [Run(0x21000, 4), Run(0x20100, 4)]
    assert guest.counters.dma_requests == 2


def test_a_plan_knows_the_device_address_of_a_guest_address() -> None:
    plan = DmaPlan(
        [(0x1000, 0x30), (0x9000, 0x10)], Access.READ, [[Run(0x500, 0x20), Run(0x900, 0x10)], [Run(0x700, 0x10)]]
    )

    assert plan.locate(0x500) == (0x1000, 0x30)
    assert plan.locate(0x905) == (0x1025, 0x30)
    assert plan.locate(0x70F) == (0x900F, 0x10)
    with pytest.raises(ValueError, match="GPA 0x710 is not part of the request"):
        plan.locate(0x710)


@pytest.mark.row("driver", 5)
def test_after_a_stop_of_the_process_rings_are_worked_off_before_any_translation(
    guest: Any, port: DmaPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest.set_up_ring()
    guest.map(0x100, 0x20, 4)
    port.read([(0x100000, 4)])
    guest.submit(*(UnmapPages(Xen2024Op.UNMAP_PAGES, guest.context, 0, dfn=0x100 + n, nr_pages=1) for n in range(4)))
    late = time.monotonic_ns() + 2 * STOPPED_NS
    monkeypatch.setattr(guest.iommu.inputs, "now_ns", lambda: late, raising=False)

    error = refused(port, ([(0x103000, 4)], Access.WRITE))

    assert reason_of(error) == EventReason.NOT_MAPPED


def test_without_a_stop_dma_does_not_wait_for_the_rings(
    guest: Any, port: DmaPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic_ns()
    monkeypatch.setattr(guest.iommu.inputs, "now_ns", lambda: now, raising=False)
    guest.set_up_ring()
    guest.map(0x100, 0x20)
    port.read([(0x100000, 4)])
    guest.submit(UnmapPages(Xen2024Op.UNMAP_PAGES, guest.context, 0, dfn=0x100, nr_pages=1))

    port.write([(0x100000, 4)], b"abcd")

    assert guest.peek(0x20000, 4) == b"abcd"
