"""The command: a few ranges on a real server, and bars from figures made up here."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import pytest

from pviommu.bench import maps
from pviommu.bench.maps import Measured, judge


def run(*options: str) -> tuple[int, str]:
    parser = argparse.ArgumentParser()
    maps.add_arguments(parser)
    out = io.StringIO()
    return maps.main(parser.parse_args(["--core", "python", *options]), out=out), out.getvalue()


def test_everything_is_measured_against_a_server(tmp_path: Path) -> None:
    target = tmp_path / "maps.json"
    status, shown = run("--ranges", "200", "--json", str(target))
    assert status == 0
    document = json.loads(target.read_text())
    [core] = document["cores"]
    assert (core["core"], core["ranges"]) == ("python", 200)
    assert min(core[name] for name in ("mapping", "mapping_server", "unmapping", "unmapping_server", "together")) > 0
    assert set(document["blocks"]) == {"maps", "maps-python-bars"}
    assert "all maps" in shown


@pytest.mark.parametrize("ranges", ["63", "65536"])
def test_more_ranges_than_there_can_be_end_with_status_2(capsys: pytest.CaptureFixture[str], ranges: str) -> None:
    assert run("--ranges", ranges)[0] == 2
    assert f"--ranges {ranges}: give 64 to 65535" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ranges", "seconds", "grown", "words"),
    [
        (65535, 9.9, 1024 * 65535, ["met", "met"]),
        (65535, 10.1, 1025 * 65535, ["NOT MET", "NOT MET"]),
        (65534, 99.0, 0, ["reported", "reported"]),
    ],
)
def test_bars_are_judged_with_all_ranges_only(ranges: int, seconds: float, grown: int, words: list[str]) -> None:
    assert [one.word for one in judge(Measured("python", ranges, seconds, 1, 1, 1, 1, grown))] == words
