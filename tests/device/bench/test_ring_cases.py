"""Cases of rings and DMA: all that is counted has succeeded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pviommu.bench.cores import PYTHON
from pviommu.bench.local_guest import LocalGuest
from pviommu.bench.ring_cases import DMA_BYTES, buffers, dma_cases, ring_cases
from pviommu.lab.problems import RunError


@pytest.fixture
def guest() -> Iterator[LocalGuest]:
    with LocalGuest(PYTHON) as local:
        yield local


def test_ring_cases_submit_as_many_slots_as_they_are_told_to(guest: LocalGuest) -> None:
    for case in ring_cases(guest):
        before = guest.machine.iommu.counters.slots
        assert case.work(case.least_count) > 0
        assert guest.machine.iommu.counters.slots - before == case.least_count, case.name
        assert guest.engine.usage().mapped_pages == 0


def test_only_the_posted_case_posts(guest: LocalGuest) -> None:
    posted = {}
    for case in ring_cases(guest):
        before = guest.machine.iommu.counters.slots_posted
        case.work(case.least_count)
        posted[case.name] = guest.machine.iommu.counters.slots_posted - before
    assert [name for name, count in posted.items() if count] == ["ring, posted, 256 at a time"]


def test_operations_that_fail_are_not_measured(guest: LocalGuest) -> None:
    guest.map(0, 0, 1)  # where the cases map
    with pytest.raises(RunError, match="failed"):
        ring_cases(guest)[0].work(2)


def test_dma_cases_move_a_mib_each(guest: LocalGuest) -> None:
    counters = guest.machine.iommu.counters
    cases = dma_cases(guest)
    assert len(cases) == 8
    for case in cases:
        before = counters.dma_bytes
        assert case.work(2) > 0
        assert counters.dma_bytes - before == 2 * DMA_BYTES, case.name


def test_the_buffers_of_the_copy_are_apart_from_what_dma_touches(guest: LocalGuest) -> None:
    source, target = buffers(guest)
    target[:] = source
    for case in dma_cases(guest):
        if "write" in case.name:
            case.work(1)
    assert target == source
    target.release()
