"""Refused DMA of a run: which no test expected, and how it is told."""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from pviommu import schemas
from pviommu.lab import faults
from pviommu.lab.faults import MOST_SHOWN, MOST_TOLD, Spans, Unexpected
from pviommu.lab.listener import Listener
from pviommu.lab.report import RunRecord, summary_text, write_results
from pviommu.reports.ktap import KtapRun

OPERATION = {
    "number": 4,
    "operation": "unmap",
    "ago_ns": 14_200,
    "dfn": 0x10,
    "pages": 2,
    "done": 2,
    "result": 0,
    "ring": 0,
    "slot": 7,
}


def fault(number: int, time_ns: int) -> dict[str, Any]:
    explanation = {
        "cause": "unmapped",
        "text": "use after unmap",
        "operations": [OPERATION],
        "below": {"iova": 0x1000, "length": 0x1000, "access": "READ"},
    }
    return {
        "number": number,
        "time_ns": time_ns,
        "stream": 1,
        "sbdf": "0000:00:05.0",
        "context": 3,
        "iova": 0x10000,
        "length": 16,
        "access": "WRITE",
        "reason": "NOT_MAPPED",
        "operations": 5,
        "explanation": explanation,
    }


def record(unexpected: Unexpected) -> RunRecord:
    return RunRecord("failed", KtapRun([], []), ["1 of 2 tests failed"], 1.0, {}, {}, unexpected=unexpected)


def test_faults_of_a_test_that_passed_were_expected() -> None:
    spans = Spans()
    spans.ended("first", failed=False, time_ns=100)
    spans.ended("second", failed=True, time_ns=200)
    spans.ended("third", failed=False, time_ns=300)

    found = spans.unexpected([fault(number, time) for number, time in enumerate((50, 150, 200, 250, 350), 1)])
    assert [(each["number"], each["test"]) for each in found.faults] == [(2, "second"), (3, "second"), (5, None)]


def test_only_the_outermost_tests_count_and_one_below_that_fails_fails_them() -> None:
    listener = Listener(io.StringIO(), verbose=False)
    for line in (
        "KTAP version 1",
        "1..2",
        "  KTAP version 1",
        "  1..1",
        "  not ok 1 inner",
        "not ok 1 outer",
        "ok 2 b",
    ):
        listener.line(line)

    assert [(name, failed) for _, name, failed in listener.spans._ends] == [("outer", True), ("b", False)]


def test_the_first_ones_are_kept_and_the_others_counted() -> None:
    found = Spans().unexpected(fault(number, number) for number in range(1, MOST_TOLD + 4))

    assert (len(found.faults), found.left_out) == (MOST_TOLD, 3)
    lines = faults.shown(found)
    assert len(lines) == MOST_SHOWN + 1
    assert lines[-1] == f"fault   and {MOST_TOLD + 3 - MOST_SHOWN} more, in faults.txt"
    assert faults.told(found).endswith("\n\nand 3 more\n")


def test_the_server_is_asked_as_soon_as_a_test_has_failed() -> None:
    spans, asked = Spans(), []
    spans.on_failed = lambda: asked.append(len(asked))
    spans.ended("first", failed=False)
    assert asked == []
    spans.ended("second", failed=True)

    assert asked == [0]


def test_results_summary_and_text_tell_them(tmp_path: Path) -> None:
    spans = Spans()
    spans.ended("a storm", failed=True, time_ns=100)
    told = record(spans.unexpected([fault(1, 50)]))
    write_results(tmp_path, told)

    results = json.loads((tmp_path / "results.json").read_text())
    jsonschema.validate(results | {"counts": {}}, _without_counts())
    assert results["faults"][0]["explanation"]["cause"] == "unmapped"
    assert results["faults_left_out"] == 0
    line = "1, during 'a storm': WRITE at 0x10000 by stream 1 in context 3: NOT_MAPPED: use after unmap"
    assert f"\nfault   {line}\n" in summary_text(told, tmp_path)
    assert (tmp_path / "faults.txt").read_text() == (
        f"{line}\n"
        "    below: 0x1000 to 0x2000, READ\n"
        "    14.2 us before: unmap of 2 pages at 0x10000, 2 done, result 0 (operation 4, slot 7 of ring 0)\n"
    )


def _without_counts() -> dict[str, Any]:
    schema = json.loads(schemas.paths()["results"].read_text())
    for name in ("counts", "versions"):
        schema["properties"][name] = {}
    return schema  # type: ignore[no-any-return]


def test_a_run_without_any_has_none_of_it(tmp_path: Path) -> None:
    write_results(tmp_path, record(Unexpected()))

    assert "faults" not in json.loads((tmp_path / "results.json").read_text())
    assert not (tmp_path / "faults.txt").exists()


def test_one_that_could_not_be_explained_says_so() -> None:
    seen = fault(1, 1)
    del seen["explanation"]

    (line,) = faults.shown(Spans().unexpected([seen]))
    assert line == (
        "fault   1, during no test that ended: WRITE at 0x10000 by stream 1 in context 3: NOT_MAPPED: "
        "not explained, too many at a time"
    )


@pytest.mark.parametrize("name", ["missing", "x" * 200])
def test_a_server_that_is_gone_has_nothing_to_tell(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert faults.ask(Path(folder) / name) == {}
