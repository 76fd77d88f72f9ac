"""The command: what it measures, what it shows, when bars are met."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import pytest

from pviommu.bench import engine
from pviommu.bench.engine import judge
from pviommu.bench.samples import Series

QUICK = ("--repeat", "1", "--sample-ms", "0.01", "--core", "python")


def run(*options: str) -> tuple[int, str]:
    parser = argparse.ArgumentParser()
    engine.add_arguments(parser)
    out = io.StringIO()
    return engine.main(parser.parse_args([*QUICK, *options]), out=out), out.getvalue()


def test_what_is_chosen_is_measured_shown_and_judged(tmp_path: Path) -> None:
    target, markdown = tmp_path / "engine.json", tmp_path / "engine.md"
    status, shown = run(
        "--only", "translate, hit", "--only", "bytes a scattered*", "--json", str(target), "--markdown", str(markdown)
    )
    assert status == 0
    [core] = json.loads(target.read_text())["cores"]
    assert [series["name"] for series in core["series"]] == ["translate, hit"]
    assert len(core["series"][0]["values"]) == 1
    assert list(core["bytes"]) == ["bytes a scattered page"]
    assert [bar["measure"] for bar in core["bars"]] == ["translate hit", "memory of a live scattered page"]
    assert "translate, hit" in shown
    assert "memory of a live scattered page" in markdown.read_text()


def test_dma_is_measured_with_the_copy_that_it_is_compared_with(tmp_path: Path) -> None:
    target = tmp_path / "engine.json"
    run("--only", "DMA write, contiguous", "--json", str(target))
    [core] = json.loads(target.read_text())["cores"]
    assert [series["name"] for series in core["series"]] == ["DMA write, contiguous", "memcpy 1 MiB"]
    assert core["bars"][0]["unit"] == "x memcpy"


def test_json_on_standard_output_stands_there_alone(capsys: pytest.CaptureFixture[str]) -> None:
    _, shown = run("--only", "dict, insert", "--json", "-")
    assert json.loads(shown)["blocks"]["engine-python"].startswith("| ")
    assert "dict, insert" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--repeat", "0"], "--repeat 0: give 1 to 1000"),
        (["--sample-ms", "0"], "--sample-ms 0: give a number above 0"),
        (["--only", "nothing"], "--only nothing: matches nothing"),
        (["--only", "dict*", "--json", "/nowhere/x"], "--json /nowhere/x: No such file"),
        (["--only", "dict*", "--markdown", "/nowhere/x"], "--markdown /nowhere/x: No such file"),
    ],
)
def test_wrong_options_end_with_status_2(capsys: pytest.CaptureFixture[str], options: list[str], words: str) -> None:
    assert run(*options)[0] == 2
    assert words in capsys.readouterr().err


def made(name: str, ns: float, size: int = 1) -> Series:
    return Series(name, size, "ops", [ns])


def test_bars_compare_rates_times_and_sizes() -> None:
    series = [
        made("ring, waited, 256 at a time", 999),
        made("ring, posted, 256 at a time", 334),
        made("map contiguous 512", 5120, 512),
        made("translate, hit", 500),
        made("walk, each of 256 pages", 301),
        made("memcpy 1 MiB", 30_000),
        made("DMA read, 4K pages", 90_000),
        made("DMA write, contiguous", 34_000),
    ]
    found = {one.measure: one.word for one in judge("native", series, {"bytes a GiB, contiguous": 1025.0})}
    assert found == {
        "one-page ops through a ring": "met",
        "posted batches of 256": "NOT MET",
        "contiguous mapping, 2 MiB": "met",
        "translate hit": "met",
        "walk of a page, warm tables": "NOT MET",
        "DMA read of 1 MiB, 4K pages": "met",
        "DMA write of 1 MiB, contiguous": "NOT MET",
        "memory of a live contiguous GiB": "NOT MET",
    }
