"""Medians, spreads, ratios, the table and the JSON, from figures made up here."""

from __future__ import annotations

import json

import pytest

from pviommu.bench.figures import (
    Measurement,
    as_json,
    figures,
    load_title,
    loads,
    notes,
    ratio,
    table,
    vfio_table,
    with_spread,
    witness_table,
)
from pviommu.bench.guest import Boot, Round, VfioMaps, Witness
from pviommu.bench.samples import Figure

SETTING = {
    "plan": {"rounds": 3, "operations": 20000, "count_operations": 1000},
    "versions": {"qemu": "11.1.3", "accelerator": "tcg"},
    "repeat": 1,
    "hogs": 0,
    "seconds": 37.04,
    "time": "2026-01-02T03:04:05+00:00",
}


def measured(
    name: str, *pairs: tuple[float, float], group: str = "DMA", accesses: float | None = 2.0, threads: int = 1
) -> Measurement:
    rounds = [Round(a, a + 10, b, b + 10, a + b, a + b + 20, 40, 1, threads, 50, 1000000) for a, b in pairs]
    boot = Boot(rounds, [], {"group_type": group}, {}, accesses is not None)
    if accesses:
        boot.accesses = {"vtd_reg_write": accesses, "virtio_notify": 0.5}
    return Measurement(name, name.title(), threads, boots=[boot])


def rounds(*pairs: tuple[float, float]) -> list[Round]:
    return measured("x", *pairs).rounds(1)


def test_figures_are_the_median_and_the_ends_of_all_rounds() -> None:
    assert figures(rounds((100, 30), (300, 10), (200, 20))) == {
        "map": Figure(200, 100, 300),
        "unmap": Figure(20, 10, 30),
        "pair": Figure(220, 130, 310),
        "pair_mean": Figure(240, 150, 330),
        "clock": Figure(40, 40, 40),
    }


def test_a_pair_is_the_median_of_pairs_not_the_sum_of_medians() -> None:
    found = figures(rounds((100, 400), (300, 100), (200, 900)))
    assert found["pair"].median == 500
    assert found["map"].median + found["unmap"].median == 600


def test_no_rounds_give_no_figures() -> None:
    assert figures([]) == {}


def test_rounds_of_all_boots_count_but_only_those_of_the_same_pages() -> None:
    one = measured("x", (1, 1))
    one.boots.append(Boot([Round(3, 3, 3, 3, 6, 6, 1, 1, 1, 1, 1), Round(9, 9, 9, 9, 18, 18, 1, 16, 1, 1, 1)]))
    assert figures(one.rounds(1))["map"].median == 2
    assert figures(one.rounds(16))["map"].median == 9
    assert one.pages == [1, 16]


def test_a_ratio_is_of_the_pairs_and_none_without_a_base() -> None:
    base, one = rounds((60, 40)), rounds((150, 50))
    assert ratio(one, base) == Figure(2.0, 2.0, 2.0)
    assert ratio(one, []) is None
    assert ratio([], base) is None


def test_a_ratio_is_by_medians_and_its_ends_are_of_rounds_that_belong_together() -> None:
    base, one = rounds((60, 40), (100, 100), (150, 150)), rounds((50, 50), (80, 80), (100, 110))
    found = ratio(one, base)
    assert found == Figure(160 / 200, 210 / 300, 100 / 100)
    assert with_spread(found) == "0.80 (0.70-1.00)"
    means = ratio(one, base, "pair_mean")
    assert means == Figure(180 / 220, 230 / 320, 120 / 120)
    assert with_spread(None) == "-"


def test_a_base_of_zero_gives_no_ratio() -> None:
    assert ratio(rounds((1, 1)), rounds((0, 0))) is None


def test_loads_are_threads_and_pages_in_order() -> None:
    two = measured("x", (1, 1), threads=2)
    two.boots.append(Boot([Round(1, 1, 1, 1, 2, 2, 1, 512, 2, 1, 1)]))
    assert loads([two, measured("y", (1, 1))]) == [(1, 1), (2, 1), (2, 512)]
    assert [load_title(load) for load in loads([two])] == ["1 page, 2 threads", "512 pages, 2 threads"]


def test_accesses_are_the_sum_of_events_and_the_median_of_counted_boots() -> None:
    one = measured("x", (1, 1))
    one.boots.append(Boot(accesses={"vtd_reg_read": 1.0, "vtd_reg_write": 3.0, "virtio_notify": 1.5}, counted=True))
    one.boots.append(Boot(accesses={}, counted=False))
    assert one.accesses == 3.0
    assert one.interrupts == 1.0
    assert Measurement("y", "Y").accesses is None


def test_the_table_has_a_row_each_with_ratios_over_both_bases() -> None:
    rows = [
        measured("none", (90, 100), group="none", accesses=0),
        measured("floor", (600, 400)),
        measured("pviommu", (2000, 3000)),
    ]
    lines = table(rows, (1, 1)).splitlines()
    words = "group map unmap pair least-most mean least-most /pviommu /floor traps interrupts k pairs/s"
    assert lines[0].split() == words.split()
    assert " ".join(lines[1].split()) == (
        "none none 90 100 190 190-190 210 210-210 0.04 (0.04-0.04) 0.19 (0.19-0.19) 0.00 0.00 50"
    )
    assert " ".join(lines[3].split()) == (
        "pviommu DMA, strict 2000 3000 5000 5000-5000 5020 5020-5020 1.00 (1.00-1.00) 5.00 (5.00-5.00) 2.00 0.50 50"
    )
    assert len({len(line) for line in lines}) == 1
    marked = table(rows, (1, 1), markdown=True).splitlines()
    assert marked[4].split(" | ")[:3] == ["| pviommu", "DMA, strict", "2000"]


def test_a_table_shows_one_load_only() -> None:
    shown = table([measured("x", (1, 1)), measured("y", (1, 1), threads=2)], (2, 1))
    assert [line.split()[0] for line in shown.splitlines()[1:]] == ["y"]


def test_a_configuration_that_failed_is_left_out_of_the_table_and_named_below() -> None:
    rows = [measured("x", (1, 1), accesses=None), Measurement("pviommu", "P", problem="no device")]
    assert "pviommu" not in "".join(table(rows, (1, 1)).splitlines()[1:])
    assert table(rows, (1, 1)).splitlines()[1].split()[-5:-1] == ["-"] * 4
    assert "pviommu, 1 threads, FAILED: no device" in notes(rows, SETTING)


def test_notes_state_method_counts_versions_and_accelerator() -> None:
    one = measured("pviommu", (1, 1))
    one.server = {"traps": 0.00033, "doorbells": -0.0000001}
    text = notes([one], SETTING)
    assert "1 x 3 rounds" in text
    assert "over 1000 other pairs" in text
    assert "the clock (40 ns)" in text
    assert "traps 0.0003, doorbells 0.0000" in text
    assert "qemu 11.1.3, accelerator tcg; 37 s in all, 2026-01-02T03:04:05+00:00" in text


def test_notes_say_when_nothing_was_counted() -> None:
    setting = {**SETTING, "plan": {**SETTING["plan"], "count_operations": 0}}  # type: ignore[dict-item]
    assert "traps, interrupts: not counted" in notes([], setting)


@pytest.mark.parametrize(("group", "shown"), [("DMA-FQ", "DMA-FQ, lazy"), ("identity", "identity")])
def test_the_group_says_strict_or_lazy(group: str, shown: str) -> None:
    assert shown in table([measured("x", (1, 1), group=group)], (1, 1))


def test_notes_tell_of_a_group_that_is_not_what_the_name_promises() -> None:
    one = measured("pviommu", (1, 1))
    one.wanted_group = "DMA-FQ"
    assert "pviommu: its group is of type DMA, not DMA-FQ" in notes([one], SETTING)
    one.wanted_group = "DMA"
    assert "its group" not in notes([one], SETTING)


def test_notes_tell_which_core_served_whom() -> None:
    rows = [measured(name, (1, 1)) for name in ("floor", "pviommu", "pviommu-python", "none")]
    for one, core in zip(rows, ("native", "native", "python"), strict=False):
        one.boots[0].facts["core"] = core
    text = notes(rows, SETTING)
    assert "native core: floor, pviommu.\npython core: pviommu-python." in text


def test_notes_tell_what_the_kernels_own_benchmark_says() -> None:
    one = measured("pviommu", (1, 1))
    one.boots[0].witnesses = [Witness(1, 1, 300, 200), Witness(1, 1, 500, 200), Witness(16, 1, 9, 9)]
    said = "pviommu, 1 page, 1 thread, the kernel's own benchmark: map 400, unmap 200 on average"
    assert said in notes([one], SETTING)
    assert witness_table([one]).splitlines()[2:] == ["| 1 page, 1 thread | pviommu | 400 | 200 | 11 | 11 |"]
    assert witness_table([measured("none", (1, 1))]) == ""


@pytest.mark.row("driver", 77)
def test_maps_through_vfio_have_a_table_beside_virtio_iommu() -> None:
    rows = [measured(name, (1, 1)) for name in ("none", "virtio-iommu", "pviommu")]
    assert vfio_table(rows) == ""
    for one, times in zip(rows[1:], ((8000, 10000, 12000), (4000, 6000, 11000)), strict=True):
        one.boots = [Boot(vfio=[VfioMaps(262144, time, 700)]) for time in times]
    lines = vfio_table(rows).splitlines()
    assert " ".join(lines[0].split()) == "map least-most mean unmap all maps, s /virtio-iommu"
    assert lines[2].split() == ["pviommu", "6000", "4000-11000", "7000", "700", "1.6", "0.60", "(0.50-0.92)"]
    assert vfio_table(rows, markdown=True).count("\n") == 3


@pytest.mark.parametrize(
    ("hogs", "said"), [(0, "no process that spins"), (1, "1 process that spins"), (2, "2 processes")]
)
def test_notes_tell_what_ran_beside(hogs: int, said: str) -> None:
    assert f"Beside: {said}" in notes([], {**SETTING, "hogs": hogs})


def test_json_has_the_raw_rounds_and_survives_a_round_trip() -> None:
    rows = [measured("floor", (600, 400)), measured("pviommu", (2000, 3000)), Measurement("x", "X", problem="dead")]
    floor, own, dead = json.loads(json.dumps(as_json(rows)))
    assert floor["boots"][0]["rounds"][0]["map_ns_median"] == 600
    ratios = floor["loads"][0]["ratios"]["pviommu"]
    assert ratios["pair"] == {"median": 0.2, "least": 0.2, "most": 0.2}
    assert ratios["pair_mean"]["median"] == pytest.approx(1020 / 5020)
    assert own["loads"][0]["figures_ns"]["pair"] == {"median": 5000, "least": 5000, "most": 5000}
    assert own["traps_per_pair"] == 2.0
    assert (dead["problem"], dead["loads"]) == ("dead", [])
