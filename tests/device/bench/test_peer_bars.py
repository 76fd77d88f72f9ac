"""Ratios beside QEMU's IOMMUs, judged or only reported, from figures made up here."""

from __future__ import annotations

import pytest

from pviommu.bench.figures import Measurement
from pviommu.bench.guest import Boot, Round
from pviommu.bench.peer_bars import judge, lever_table, plots

GROUPS = {"pviommu": "DMA-FQ", "virtio-iommu": "DMA-FQ"}


def measured(name: str, pair: float, threads: int = 1, pages: int = 1, accesses: float = 0.0) -> Measurement:
    group = GROUPS.get(name, "DMA")
    rounds = [Round(pair / 2, pair, pair / 2, pair, pair, 2 * pair, 40, pages, threads, 50, 1000000)]
    boot = Boot(rounds, [], {"group_type": group}, {"vfio_region_write": accesses}, True)
    return Measurement(name, f"the {name}", threads, group, [boot])


def verdicts(*measurements: Measurement, cores: int = 2) -> dict[str, str]:
    return {f"{one.measure} / {one.unit}": one.word for one in judge(measurements, cores)}


def test_each_mode_is_judged_beside_the_peer_of_its_own_mode() -> None:
    found = verdicts(
        measured("virtio-iommu", 6000),
        measured("virtio-iommu-strict", 8000),
        measured("intel-iommu", 3100),
        measured("pviommu", 2000),
        measured("pviommu-strict", 4001),
    )
    assert found == {
        "1 page, 1 thread: pviommu / x virtio-iommu": "met",
        "1 page, 1 thread: pviommu / x intel-iommu": "met",
        "1 page, 1 thread: pviommu-strict / x virtio-iommu-strict": "NOT MET",
        "1 page, 1 thread: pviommu-strict / x intel-iommu": "NOT MET",
        "traps a pair while busy, pviommu / ": "met",
        "traps a pair while busy, pviommu-strict / ": "met",
    }


def test_the_mean_stands_beside_the_median_that_is_judged() -> None:
    one, *_ = judge([measured("virtio-iommu", 6000), measured("pviommu", 3000)], 2)
    assert (one.value, one.note) == (0.5, "means: 0.50")


@pytest.mark.parametrize(("cores", "word"), [(3, "reported"), (4, "met")])
def test_two_threads_are_judged_only_where_there_are_four_cores(cores: int, word: str) -> None:
    pair = [measured("virtio-iommu", 6000, threads=2), measured("pviommu", 1000, threads=2)]
    [one] = judge(pair, cores)
    assert one.word == word
    assert ("two" in one.note or "2 threads need 4 cores" in one.note) == (word == "reported")


def test_a_group_of_another_type_is_reported_and_not_judged() -> None:
    one = measured("pviommu", 1000)
    one.boots[0].facts["group_type"] = "DMA"
    first, *_ = judge([measured("virtio-iommu", 6000), one], 2)
    assert first.word == "reported"
    assert "the group of pviommu is of type DMA" in first.note


def test_what_was_not_measured_has_no_bar() -> None:
    assert verdicts(measured("none", 100), measured("virtio-iommu", 6000)) == {}


def test_traps_beyond_one_in_64_miss_the_bar() -> None:
    assert verdicts(measured("pviommu", 1, accesses=0.02)) == {"traps a pair while busy, pviommu / ": "NOT MET"}


def test_the_higher_count_of_traps_is_judged() -> None:
    one = measured("pviommu", 1)
    one.server = {"traps": 0.6}
    [judgement] = judge([one], 2)
    assert (judgement.word, judgement.value, judgement.note) == ("NOT MET", 0.6, "by the server's count")


def test_levers_are_shown_as_multiples_of_the_whole() -> None:
    lines = lever_table(
        [measured("pviommu", 1000), measured("pviommu-strict", 2000), measured("pviommu-strict-no-spin", 5000)]
    ).splitlines()
    assert lines[2:] == [
        "| 1 page, 1 thread | the pviommu-strict | 1000 | 1000 | 2000 | 4000 | 1.00 | 1.00 |",
        "| 1 page, 1 thread | the pviommu-strict-no-spin | 2500 | 2500 | 5000 | 10000 | 2.50 | 2.50 |",
    ]
    assert lever_table([measured("pviommu", 1000)]) == ""
    assert lever_table([measured("pviommu-no-spin", 1000)]) == ""


def test_there_is_a_plot_for_each_load_with_a_bar_for_each_configuration() -> None:
    found = plots([measured("none", 100), measured("pviommu", 2000), measured("pviommu", 9, pages=16)], "tcg")
    assert sorted(found) == ["1-1", "16-1"]
    assert found["1-1"].count('text-anchor="end"') == 2
    assert "1 page, 1 thread (tcg)" in found["1-1"]
