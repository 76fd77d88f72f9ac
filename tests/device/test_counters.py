"""Counters become plain values."""

from __future__ import annotations

import json

from pviommu.counters import Counters


def test_a_report_is_plain_json_with_every_counter() -> None:
    counters = Counters()
    counters.ops["map_pages"] += 3
    counters.faults += 1

    report = json.loads(json.dumps(counters.report()))

    assert report["ops"] == {"map_pages": 3}
    assert report["faults"] == 1
    assert set(report) == set(Counters.__dataclass_fields__)
    assert sum(value for value in report.values() if isinstance(value, int)) == 1


def test_a_report_does_not_follow_later_counts() -> None:
    counters = Counters()
    report = counters.report()

    counters.ops["map_pages"] += 1

    assert report["ops"] == {}


def test_counters_of_two_servers_are_separate() -> None:
    Counters().ops["map_pages"] += 1

    assert Counters().ops["map_pages"] == 0
