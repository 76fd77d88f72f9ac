"""The cases do what they say."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pviommu.bench.smmu_cases import cold_cases, command_cases, translation_cases
from pviommu.bench.smmu_guest import CACHED, SmmuGuest
from pviommu.lab.problems import RunError


@pytest.fixture(params=[False, True], ids=["stage 1", "nested"])
def guest(request: pytest.FixtureRequest) -> Iterator[SmmuGuest]:
    with SmmuGuest("python", nested=request.param) as made:
        yield made


def test_each_case_takes_time_and_leaves_no_event_behind(guest: SmmuGuest) -> None:
    for case in command_cases(guest) + translation_cases(guest)[:4]:
        assert case.work(case.least_count) > 0, case.name
    assert guest.driver.on_eventq() == ([], False)


def test_what_is_to_be_missed_is_never_remembered(guest: SmmuGuest) -> None:
    hit, miss = translation_cases(guest)[:2]
    remembered = guest.function.smmu.caches.stage1
    added = []
    add = remembered.add
    remembered.add = lambda *how: added.append(how) or add(*how)  # type: ignore[method-assign, func-returns-value]
    assert (hit.name, miss.name) == ("one leaf, 4K, hit", "one leaf, 4K, miss")

    for _ in range(2):
        miss.work(miss.least_count)
    assert len(added) == 2 * miss.least_count
    assert len(remembered) == CACHED
    hit.work(1)
    added.clear()
    hit.work(5)
    assert added == []


def test_leaves_of_each_size_lead_to_memory(guest: SmmuGuest) -> None:
    for number, shift in enumerate((12, 21, 30)):
        iova = (number + 1) << 41
        guest.map(iova, 3, shift)
        guest.translate([(iova, 1 << shift)])
        with pytest.raises(RunError, match="a translation that is mapped: Fault"):
            guest.translate([(iova + (1 << shift), 8)])
    with pytest.raises(KeyError):
        guest.map(0, 0, 13)


def test_nothing_is_remembered_if_that_is_asked_for() -> None:
    with SmmuGuest("python", nested=True, cached=0) as guest:
        [case] = cold_cases(guest, " nested")
        assert case.work(case.least_count) > 0
        assert len(guest.function.smmu.caches.stage2) == 0
