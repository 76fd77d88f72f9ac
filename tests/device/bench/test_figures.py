"""Medians, spreads, ratios, the table and the JSON, from figures made up here."""

from __future__ import annotations

import json

import pytest

from pviommu.bench.figures import Figure, Measurement, as_json, figures, notes, ratio, table
from pviommu.bench.guest import Boot, Round

SETTING = {
    "plan": {"rounds": 3, "operations": 20000, "count_operations": 1000},
    "versions": {"qemu": "11.1.3", "accelerator": "tcg"},
    "vcpus": 1,
    "repeat": 1,
    "seconds": 37.04,
    "time": "2026-01-02T03:04:05+00:00",
}


def measured(name: str, *pairs: tuple[float, float], group: str = "DMA", accesses: float | None = 2.0) -> Measurement:
    rounds = [Round(a, a + 10, b, b + 10, a + b, a + b + 20, 40) for a, b in pairs]
    boot = Boot(rounds, {"group_type": group}, {"vtd_reg_write": accesses} if accesses else {}, accesses is not None)
    return Measurement(name, name.title(), [boot])


def test_figures_are_the_median_and_the_ends_of_all_rounds() -> None:
    one = measured("x", (100, 30), (300, 10), (200, 20))
    assert figures(one.rounds) == {
        "map": Figure(200, 100, 300),
        "unmap": Figure(20, 10, 30),
        "pair": Figure(220, 130, 310),
        "pair_mean": Figure(240, 150, 330),
        "clock": Figure(40, 40, 40),
    }


def test_a_pair_is_the_median_of_pairs_not_the_sum_of_medians() -> None:
    found = figures(measured("x", (100, 400), (300, 100), (200, 900)).rounds)
    assert found["pair"].median == 500
    assert found["map"].median + found["unmap"].median == 600


def test_no_rounds_give_no_figures() -> None:
    assert figures([]) == {}


def test_rounds_of_all_boots_count() -> None:
    one = measured("x", (1, 1))
    one.boots.append(Boot([Round(3, 3, 3, 3, 6, 6, 1)]))
    assert figures(one.rounds)["map"].median == 2


def test_a_ratio_is_of_the_pairs_and_none_without_a_base() -> None:
    base, one = measured("pviommu", (60, 40)), measured("x", (150, 50))
    assert ratio(one, base) == 2.0
    assert ratio(one, None) is None
    assert ratio(one, Measurement("floor", "Floor")) is None
    assert ratio(Measurement("x", "X"), base) is None


def test_a_base_of_zero_gives_no_ratio() -> None:
    assert ratio(measured("x", (1, 1)), measured("floor", (0, 0))) is None


def test_accesses_are_the_sum_of_events_and_the_median_of_counted_boots() -> None:
    one = measured("x", (1, 1))
    one.boots.append(Boot(accesses={"a": 1.0, "b": 3.0}, counted=True))
    one.boots.append(Boot(accesses={}, counted=False))
    assert one.accesses == 3.0
    assert Measurement("y", "Y").accesses is None


def test_the_table_has_a_row_each_with_ratios_over_both_bases() -> None:
    rows = [
        measured("none", (90, 100), group="none", accesses=0),
        measured("floor", (600, 400)),
        measured("pviommu", (2000, 3000)),
    ]
    lines = table(rows).splitlines()
    assert lines[0].split() == ["group", "map", "unmap", "pair", "least-most", "mean", "/pviommu", "/floor", "traps"]
    assert lines[1].split(maxsplit=2)[2].split() == ["90", "100", "190", "190-190", "210", "0.04", "0.19", "0.00"]
    assert " ".join(lines[3].split()) == "pviommu DMA, strict 2000 3000 5000 5000-5000 5020 1.00 5.00 2.00"
    assert len({len(line) for line in lines}) == 1


def test_a_configuration_that_failed_is_left_out_of_the_table_and_named_below() -> None:
    rows = [measured("x", (1, 1), accesses=None), Measurement("pviommu", "P", problem="no device")]
    assert "pviommu" not in "".join(table(rows).splitlines()[1:])
    assert table(rows).splitlines()[1].split()[-3:] == ["-", "-", "-"]
    assert "pviommu FAILED: no device" in notes(rows, SETTING)


def test_notes_state_method_counts_versions_and_accelerator() -> None:
    one = measured("pviommu", (1, 1))
    one.server = {"traps": 0.00033, "doorbells": -0.0000001}
    text = notes([one], SETTING)
    assert "1 x 3 rounds" in text
    assert "over 1000 other pairs" in text
    assert "the clock (40 ns)" in text
    assert "traps 0.0003, doorbells 0.0000" in text
    assert "qemu 11.1.3, accelerator tcg; 1 vCPU, 37 s in all, 2026-01-02T03:04:05+00:00" in text


def test_notes_say_when_nothing_was_counted() -> None:
    setting = {**SETTING, "plan": {**SETTING["plan"], "count_operations": 0}}  # type: ignore[dict-item]
    assert "traps: not counted" in notes([], setting)


@pytest.mark.parametrize(("group", "shown"), [("DMA-FQ", "DMA-FQ, lazy"), ("identity", "identity")])
def test_the_group_says_strict_or_lazy(group: str, shown: str) -> None:
    assert shown in table([measured("x", (1, 1), group=group)])


def test_json_has_the_raw_rounds_and_survives_a_round_trip() -> None:
    rows = [measured("floor", (600, 400)), measured("pviommu", (2000, 3000)), Measurement("x", "X", problem="dead")]
    found = json.loads(json.dumps(as_json(rows, SETTING)))
    assert found["versions"]["accelerator"] == "tcg"
    floor, own, dead = found["configurations"]
    assert floor["boots"][0]["rounds"][0]["map_ns_median"] == 600
    assert floor["ratios"]["pviommu"] == {"pair": 0.2, "pair_mean": pytest.approx(1020 / 5020)}
    assert own["figures_ns"]["pair"] == {"median": 5000, "least": 5000, "most": 5000}
    assert own["traps_per_pair"] == 2.0
    assert (dead["problem"], dead["figures_ns"], dead["ratios"]["floor"]["pair"]) == ("dead", {}, None)
