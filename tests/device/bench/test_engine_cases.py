"""Each case does what its name says, as often as it is told to, and leaves the engine as it found it."""

from __future__ import annotations

import pytest

from pviommu.bench.cores import NATIVE, PYTHON
from pviommu.bench.engine_cases import (
    CONTIGUOUS,
    GIB,
    SCATTERED,
    baseline_cases,
    bytes_per_gib,
    bytes_per_scattered_page,
    table_cases,
    translate_cases,
    walk_cases,
)
from pviommu.bench.samples import Case
from pviommu.lab.problems import RunError


def by_name(cases: list[Case]) -> dict[str, Case]:
    return {case.name: case for case in cases}


def test_there_is_a_map_and_an_unmap_of_every_list_and_range() -> None:
    names = [f"scattered {pages}" for pages in SCATTERED] + [f"contiguous {pages}" for pages in CONTIGUOUS]
    expected = {f"{way} {name}" for way in ("map", "unmap") for name in (*names, f"unaligned {GIB}")}
    assert {case.name for case in table_cases(PYTHON)} == expected


@pytest.mark.parametrize(
    "name", ["map scattered 16", "unmap scattered 256", "map contiguous 512", f"map unaligned {GIB}"]
)
def test_a_case_can_be_repeated_on_the_same_engine(name: str) -> None:
    case = by_name(table_cases(PYTHON))[name]
    assert case.work(case.least_count) > 0
    assert case.work(2 * case.least_count) > 0


def test_the_rate_of_a_range_is_in_pages() -> None:
    case = by_name(table_cases(PYTHON))[f"map contiguous {GIB}"]
    assert (case.size, case.kind) == (GIB, "pages")


def test_translations_are_found_or_refused_as_their_names_say() -> None:
    cases = by_name(translate_cases(PYTHON))
    assert set(cases) == {"translate, hit", "translate, miss", "translate, refused"}
    for case in cases.values():
        assert case.work(case.least_count) > 0


@pytest.mark.parametrize("core", [PYTHON, NATIVE])
def test_walks_find_what_the_tables_say(core: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = by_name(walk_cases(core))
    assert set(cases) == {"walk, one page", "walk, each of 256 pages"}
    for case in cases.values():
        assert case.work(case.least_count) > 0

    monkeypatch.setattr("pviommu.bench.engine_cases.scattered", lambda *_: [0] * 255)
    with pytest.raises(RunError, match=r"walk, one page: \(1044480, WalkFault"):
        by_name(walk_cases(core))["walk, one page"].work(256)


def test_a_case_of_refusals_that_are_none_does_not_pass_as_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pviommu.engine.Engine.translate", lambda *_: [])
    with pytest.raises(RunError, match="translate, refused"):
        by_name(translate_cases(PYTHON))["translate, refused"].work(64)


def test_the_copy_is_made() -> None:
    source, target = memoryview(b"\x5a" * 4096), memoryview(bytearray(4096))
    case = by_name(baseline_cases((source, target)))["memcpy 1 MiB"]
    assert case.work(1) > 0
    assert target == source


def test_the_dict_ends_empty_so_that_each_block_begins_alike() -> None:
    cases = by_name(baseline_cases((memoryview(b"1"), memoryview(bytearray(1)))))
    for name in ("dict, insert", "dict, delete"):
        assert cases[name].work(2 * cases[name].least_count) > 0


def test_memory_of_live_pages_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pviommu.bench.engine_cases._LIVE_PAGES", 4096)
    monkeypatch.setattr("pviommu.bench.engine_cases._LIVE_GIBS", 1)
    page, gib, shifted = bytes_per_scattered_page(PYTHON), bytes_per_gib(PYTHON), bytes_per_gib(PYTHON, 1)
    assert 8 < page < 1000  # a frame number takes 8 bytes at least
    assert 0 < gib < shifted
