"""``pviommu bench vfio``: what it measures, shows and judges."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import pytest

from pviommu.bench import vfio
from pviommu.bench.samples import Figure
from pviommu.bench.vfio import BITMAP, PAIR, bytes_per_area, judge

from ..vfio_run.test_running import cache

__all__ = ["cache"]


def run(*options: str) -> tuple[int, str]:
    parser = argparse.ArgumentParser()
    vfio.add_arguments(parser)
    out = io.StringIO()
    return vfio.main(parser.parse_args(options), out=out), out.getvalue()


@pytest.mark.usefixtures("cache")
def test_a_program_is_measured(tmp_path: Path) -> None:
    target = tmp_path / "vfio.json"
    status, text = run("--repeat", "1", "--count", "1", "--areas", "50", "--json", str(target))
    assert status == 0
    found = json.loads(target.read_text())
    assert list(found["figures_us"]) == [
        *("map and unmap, 4 KiB", "map and unmap, 2 MiB", "map and unmap, 1 GiB"),
        *("dirty bitmap, clean GiB", "DMA copy, 1 MiB", "read of a register"),
    ]
    assert all(figures["time"]["median"] > 0 for figures in found["figures_us"].values())
    assert len(found["bars"]) == 3
    assert "memory of an area" in text


def test_bars() -> None:
    quick, slow = Figure(1, 1, 1), Figure(2000, 1, 3000)
    assert [each.met for each in judge({PAIR: (quick, quick), BITMAP: (quick, quick)}, 199)] == [True, True, True]
    assert [each.met for each in judge({PAIR: (slow, quick), BITMAP: (slow, quick)}, 201)] == [False, False, False]


@pytest.mark.row("space", 65)
def test_an_area_takes_little_memory() -> None:
    assert 50 < bytes_per_area(5000) < 200


@pytest.mark.parametrize("option", ["--repeat", "--count", "--areas"])
def test_numbers_that_nothing_can_be_measured_with(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(option, "0")[0] == 2
    assert f"{option} 0: give 1 to" in capsys.readouterr().err
