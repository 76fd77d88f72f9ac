"""Ratios beside QEMU's IOMMUs, judged or only reported, from figures made up here."""

from __future__ import annotations

import pytest

from pviommu.bench.bars import verdict_table
from pviommu.bench.figures import Measurement
from pviommu.bench.guest import Boot, Round, VfioMaps
from pviommu.bench.peer_bars import judge, lever_table, plots

GROUPS = dict.fromkeys(("pviommu", "pviommu-ring", "virtio-iommu", "floor"), "DMA-FQ")


def measured(
    name: str, pair: float, threads: int = 1, pages: int = 1, accesses: float = 0.0, mean: float | None = None
) -> Measurement:
    group = GROUPS.get(name, "DMA")
    mean = 2 * pair if mean is None else mean
    rounds = [Round(pair / 2, pair, pair / 2, pair, pair, mean, 40, pages, threads, 50, 1000000)]
    boot = Boot(rounds, [], {"group_type": group}, {"vfio_region_write": accesses}, True)
    return Measurement(name, f"the {name}", threads, group, [boot])


def verdicts(*measurements: Measurement, cores: int = 2) -> dict[str, str]:
    return {f"{one.measure} / {one.unit}": one.word for one in judge(measurements, cores)}


def test_each_mode_is_judged_beside_the_peer_of_its_own_mode() -> None:
    found = verdicts(
        measured("virtio-iommu", 6000),
        measured("virtio-iommu-strict", 8000),
        measured("intel-iommu", 3100),
        measured("pviommu-ring", 2000),
        measured("pviommu-ring-strict", 4001),
    )
    pairs = {
        "pviommu-ring, {} / x virtio-iommu": "met",
        "pviommu-ring, {} / x intel-iommu": "met",
        "pviommu-ring-strict, {} / x virtio-iommu-strict": "NOT MET",
        "pviommu-ring-strict, {} / x intel-iommu": "NOT MET",
    }
    assert found == {
        f"1 page, 1 thread: {name.format(by)}": verdict for name, verdict in pairs.items() for by in ("median", "mean")
    } | {
        "traps a pair while busy, pviommu-ring / ": "met",
        "traps a pair while busy, pviommu-ring-strict / ": "met",
    }


def test_tables_of_the_guest_are_judged_beside_the_floor_of_their_own_mode() -> None:
    def found(*measurements: Measurement) -> dict[str, str]:
        return {name: word for name, word in verdicts(*measurements).items() if "median" in name}

    assert found(
        measured("floor", 1000),
        measured("floor-strict", 2000),
        measured("virtio-iommu-strict", 8000),
        measured("pviommu", 1150),
        measured("pviommu-strict", 2501),
    ) == {
        "1 page, 1 thread: pviommu, median / x floor": "met",
        "1 page, 1 thread: pviommu-strict, median / x floor-strict": "NOT MET",
        "1 page, 1 thread: pviommu-strict, median / x virtio-iommu-strict": "NOT MET",
    }
    assert found(*(measured(name, time, pages=16) for name, time in (("floor", 1000), ("pviommu", 1151)))) == {
        "16 pages, 1 thread: pviommu, median / x floor": "NOT MET"
    }
    # the server does nothing for them, so two threads need no more than two processors
    assert found(*(measured(name, time, 2) for name, time in (("floor-strict", 1000), ("pviommu-strict", 1300)))) == {
        "1 page, 2 threads: pviommu-strict, median / x floor-strict": "met"
    }
    assert found(*(measured(name, 1, 2) for name in ("floor", "pviommu"))) == {}


def test_tables_of_the_guest_leave_it_never() -> None:
    one = measured("pviommu", 1)
    one.server = {"traps": 0.0, "slots": 0.002, "doorbells": -0.0001, "interrupts": 1.0}
    assert {judgement.measure: judgement.word for judgement in judge([one], 2)} == {
        "traps a pair while busy, pviommu": "met",
        "slots a pair while busy, pviommu": "NOT MET",
        "doorbells a pair while busy, pviommu": "met",
    }


@pytest.mark.row("driver", 76)
@pytest.mark.parametrize(
    ("pair", "mean", "words"),
    [(1900, 3900, ["met", "met"]), (1900, 4100, ["met", "NOT MET"]), (2100, 3900, ["NOT MET", "met"])],
)
def test_medians_and_means_are_judged_each_by_itself(pair: float, mean: float, words: list[str]) -> None:
    found = judge([measured("virtio-iommu", 6000), measured("pviommu-ring", pair, mean=mean)], 2)
    assert [one.word for one in found[:2]] == words
    assert [one.value for one in found[:2]] == [pair / 6000, mean / 12000]


@pytest.mark.row("driver", 76)
def test_each_ratio_has_its_spread_beside_it() -> None:
    peer, own = measured("virtio-iommu", 6000), measured("pviommu-ring", 3000)
    peer.boots += measured("virtio-iommu", 5000).boots
    own.boots += measured("pviommu-ring", 1000).boots
    median, mean, *_ = judge([peer, own], 2)
    assert (median.note, mean.note) == ("0.20-0.50", "0.20-0.50")
    assert "0.20-0.50" in verdict_table([median])


@pytest.mark.row("driver", 77)
@pytest.mark.parametrize(
    ("times", "words"), [((9000, 10000, 10500), ["met", "met"]), ((9000, 10000, 40000), ["met", "NOT MET"])]
)
@pytest.mark.parametrize(("name", "limit"), [("pviommu-ring", 1.0), ("pviommu", 0.25)])
def test_maps_through_vfio_must_not_cost_more_than_so_much_of_virtio_iommus(
    name: str, limit: float, times: tuple[float, ...], words: list[str]
) -> None:
    peer, own = Measurement("virtio-iommu", "virtio-iommu", 1), Measurement(name, name, 1)
    peer.boots = [Boot(vfio=[VfioMaps(262144, 10000 / limit, 1)])] * 3
    own.boots = [Boot(vfio=[VfioMaps(262144, time, 1)]) for time in times]
    found = judge([peer, own], 2)
    assert [one.measure for one in found] == [
        f"a map of 1 page through VFIO: {name}, {by}" for by in ("median", "mean")
    ]
    assert [one.word for one in found] == words
    assert found[0].limit == limit
    assert judge([own], 2) == judge([peer], 2) == []


@pytest.mark.parametrize(("cores", "word"), [(3, "reported"), (4, "met")])
def test_two_threads_are_judged_only_where_there_are_four_cores(cores: int, word: str) -> None:
    pair = [measured("virtio-iommu", 6000, threads=2), measured("pviommu-ring", 1000, threads=2)]
    found = judge(pair, cores)
    assert [one.word for one in found] == [word, word]
    assert all(("2 threads need 4 cores" in one.note) == (word == "reported") for one in found)


def test_a_group_of_another_type_is_reported_and_not_judged() -> None:
    one = measured("pviommu-ring", 1000)
    one.boots[0].facts["group_type"] = "DMA"
    first, *_ = judge([measured("virtio-iommu", 6000), one], 2)
    assert first.word == "reported"
    assert "the group of pviommu-ring is of type DMA" in first.note


def test_what_was_not_measured_has_no_bar() -> None:
    assert verdicts(measured("none", 100), measured("virtio-iommu", 6000)) == {}


def test_traps_beyond_one_in_64_miss_the_bar() -> None:
    assert verdicts(measured("pviommu-ring", 1, accesses=0.02)) == {
        "traps a pair while busy, pviommu-ring / ": "NOT MET"
    }


def test_the_higher_count_of_traps_is_judged() -> None:
    one = measured("pviommu-ring", 1)
    one.server = {"traps": 0.6}
    [judgement] = judge([one], 2)
    assert (judgement.word, judgement.value, judgement.note) == ("NOT MET", 0.6, "by the server's count")


def test_levers_are_shown_as_multiples_of_the_whole() -> None:
    lines = lever_table(
        [
            *(measured("pviommu-ring", 1000), measured("pviommu-ring-strict", 2000)),
            measured("pviommu-ring-strict-no-spin", 5000),
        ]
    ).splitlines()
    same, more = (2 * f" {ratio} ({ratio}-{ratio}) |" for ratio in ("1.00", "2.50"))
    assert lines[2:] == [
        f"| 1 page, 1 thread | the pviommu-ring-strict | 1000 | 1000 | 2000 | 4000 |{same}",
        f"| 1 page, 1 thread | the pviommu-ring-strict-no-spin | 2500 | 2500 | 5000 | 10000 |{more}",
    ]
    assert lever_table([measured("pviommu-ring", 1000)]) == ""
    assert lever_table([measured("pviommu-ring-no-spin", 1000)]) == ""


def test_there_is_a_plot_for_each_load_with_a_bar_for_each_configuration() -> None:
    found = plots([measured("none", 100), measured("pviommu", 2000), measured("pviommu", 9, pages=16)], "tcg")
    assert sorted(found) == ["1-1", "16-1"]
    assert found["1-1"].count('text-anchor="end"') == 2
    assert "1 page, 1 thread (tcg)" in found["1-1"]
