"""The command: what it measures, and when bars are met."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

from pviommu.bench import smmu
from pviommu.bench.samples import Series
from pviommu.bench.smmu import judge


def test_what_is_chosen_is_measured_and_shown_for_each_core(tmp_path: Path) -> None:
    parser, target, out = argparse.ArgumentParser(), tmp_path / "smmu.json", io.StringIO()
    smmu.add_arguments(parser)
    options = ["--repeat", "1", "--sample-ms", "0.01", "--json", str(target)]
    chosen = [word for name in ("CMD_SYNC", "one leaf, 4K nested, hit") for word in ("--only", name)]

    assert smmu.main(parser.parse_args([*options, *chosen]), out=out) == 0

    found = json.loads(target.read_text())
    assert [core["core"] for core in found["cores"]] == ["native", "python"]
    for core in found["cores"]:
        assert [series["name"] for series in core["series"]] == ["CMD_SYNC", "one leaf, 4K nested, hit"]
        assert core["bars"] == []
    assert "CMD_SYNC" in out.getvalue()
    assert "smmu-native" in found["blocks"]


def test_bars_are_for_walks_in_c() -> None:
    times = {"each of many, 4K, miss": 1500.0, "each of many, 2M nested, miss": 4001.0, "each of many, 1G, hit": 500.0}
    series = [Series(name, values=[ns]) for name, ns in times.items()]

    found = {one.measure: one.word for one in judge("native", series, {})}

    assert found == {"stage 1 walk, 4K": "met", "nested walk, 2M": "NOT MET", "hit, 1G": "met"}
    assert judge("python", series, {}) == []
