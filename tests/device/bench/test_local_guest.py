"""A machine in this process: its ring carries out what is submitted, across its end too."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest

from pviommu.bench.cores import PYTHON
from pviommu.bench.local_guest import RAM_PAGES, LocalGuest, map_slot, scattered, unmap_slot
from pviommu.engine import Access
from pviommu.lab.problems import RunError
from pviommu_abi.shared import MAX_RING_ENTRIES


@pytest.fixture
def guest() -> Iterator[LocalGuest]:
    with LocalGuest(PYTHON) as local:
        yield local


def test_frames_are_scattered_and_none_comes_twice() -> None:
    frames = scattered(RAM_PAGES)
    assert len(set(frames)) == RAM_PAGES
    assert min(frames) >= 0
    assert max(frames) < RAM_PAGES
    assert all(abs(one - other) != 1 for one, other in pairwise(frames))


@pytest.mark.parametrize("posted", [False, True])
def test_slots_are_carried_out(guest: LocalGuest, posted: bool) -> None:
    assert guest.submit(map_slot(guest.context, 7, 9, posted=posted)) > 0
    assert guest.engine.lookup(guest.context, 7) == (9, Access.READ | Access.WRITE)
    guest.submit(unmap_slot(guest.context, 7, posted=posted))
    assert guest.engine.lookup(guest.context, 7) is None
    assert guest.failed() == 0
    assert guest.machine.iommu.counters.slots_posted == (2 if posted else 0)


def test_slots_that_reach_over_the_end_of_the_ring_are_all_carried_out(guest: LocalGuest) -> None:
    count = MAX_RING_ENTRIES - 24
    guest.submit(b"".join(map_slot(guest.context, dfn, dfn, posted=True) for dfn in range(count)))
    guest.submit(b"".join(unmap_slot(guest.context, dfn, posted=True) for dfn in range(count)))
    assert guest.failed() == 0
    assert guest.engine.usage().mapped_pages == 0


def test_failures_are_counted(guest: LocalGuest) -> None:
    guest.submit(unmap_slot(guest.context, 7, posted=False))
    assert guest.failed() == 1


def test_a_map_that_is_refused_is_no_set_up(guest: LocalGuest) -> None:
    guest.map(1, 1, 1)
    with pytest.raises(RunError, match="map dfn 0x1"):
        guest.map(1, 1, 1)
