"""The verdict and the files of a run."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pviommu.lab.report import RunRecord, exit_line, judge, new_results_folder, summary_text, write_results
from pviommu.lab.scenario import Played
from pviommu.reports.ktap import KtapParser, KtapRun

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


def parsed(*lines: str) -> KtapRun:
    parser = KtapParser()
    for line in ("KTAP version 1", *lines):
        parser.feed(line)
    return parser.finish()


def record(verdict: str, ktap: KtapRun, problems: list[str] | None = None) -> RunRecord:
    counts = {"ops": {"unmap_pages": 3, "map_pages": 4}, "pages_mapped": 12345, "dma_bytes": 99, "faults": 2}
    versions = {"qemu": "11.1.3", "kernel": "6.12", "accelerator": "tcg"}
    return RunRecord(verdict, ktap, problems or [], 4.56789, versions, counts)


def test_clean_run_has_nothing_against_it() -> None:
    assert judge(parsed("1..1", "ok 1 a"), 0, []) == []


@pytest.mark.parametrize(
    ("lines", "status", "problems", "expected"),
    [
        (("1..0",), 0, (), "no test ran"),
        (("1..1", "ok 1 a # SKIP"), 0, (), "no test ran"),
        (("1..1", "not ok 1 a"), 0, (), "1 of 1 tests failed"),
        (("1..2", "ok 1 a"), 0, (), "the run: planned 2 tests, 1 reported, missing 2"),
        (("1..1", "ok 1 a"), None, (), 'the guest ended without its "# lab: exit" line: it crashed or was cut off'),
        (("1..1", "ok 1 a"), 3, (), "the guest's tests ended with status 3"),
        (("1..1", "ok 1 a"), 0, ("the server ended by itself",), "the server ended by itself"),
    ],
)
def test_each_defect_alone_speaks_against_the_run(
    lines: tuple[str, ...], status: int | None, problems: tuple[str, ...], expected: str
) -> None:
    assert judge(parsed(*lines), status, problems) == [expected]


def test_exit_line_is_recognised_exactly() -> None:
    assert exit_line("# lab: exit 7") == 7
    assert exit_line("# lab: exit") is None
    assert exit_line("x # lab: exit 0") is None


def test_results_folder_is_named_by_utc_time_and_latest_points_at_the_newest(tmp_path: Path) -> None:
    first = new_results_folder(tmp_path / "lab-results", NOW)
    second = new_results_folder(tmp_path / "lab-results", NOW)
    assert first.name == "2030-01-02T03-04-05Z"
    assert second.name == "2030-01-02T03-04-05Z-2"
    assert (tmp_path / "lab-results/latest").resolve() == second.resolve()


def test_results_json_holds_verdict_counts_and_versions(tmp_path: Path) -> None:
    write_results(tmp_path, record("passed", parsed("1..2", "ok 1 a", "ok 2 b # SKIP none")))
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["verdict"] == "passed"
    assert results["tests"] == {"passed": 1, "failed": 0, "skipped": 1}
    assert results["seconds"] == 4.568
    assert results["versions"]["qemu"] == "11.1.3"
    assert results["counts"]["ops"]["map_pages"] == 4


def test_junit_names_each_test_by_its_path_and_shows_failures_with_diagnostics(tmp_path: Path) -> None:
    ktap = parsed("1..1", "  1..2", "  ok 1 x", "  # got 0x1000\x01", "  not ok 2 y", "not ok 1 outer")
    ktap.tests[0].children[1].seconds = 1.25
    write_results(tmp_path, record("failed", ktap, ["1 of 2 tests failed"]))
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot().find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "1", "0")
    cases = suite.findall("testcase")
    assert [(case.get("classname"), case.get("name")) for case in cases] == [
        ("guest.outer", "x"),
        ("guest.outer", "y"),
    ]
    assert [case.get("time") for case in cases] == ["0.000", "1.250"]
    assert cases[1].findtext("failure") == "# got 0x1000\N{REPLACEMENT CHARACTER}"


def test_junit_of_a_run_that_broke_without_a_failed_test_has_an_error(tmp_path: Path) -> None:
    write_results(tmp_path, record("timeout", parsed("1..2", "ok 1 a"), ["the guest did not finish within 5 s"]))
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot().find("testsuite")
    assert suite is not None
    assert suite.get("errors") == "1"
    assert suite.findtext("testcase/error") == "the guest did not finish within 5 s"
    assert [case.get("classname") for case in suite.findall("testcase")] == ["guest", "guest"]


@pytest.mark.parametrize(("scenario", "name"), [("slow-unmaps", "guest.slow-unmaps"), ("lab", "guest")])
def test_junit_puts_the_tests_of_a_scenario_together(tmp_path: Path, scenario: str, name: str) -> None:
    played = Played(scenario, None)
    broken = replace(record("error", parsed("1..1", "ok 1 a"), played.problems), scenario=played)
    write_results(tmp_path, broken)
    cases = ElementTree.parse(tmp_path / "junit.xml").getroot().iter("testcase")
    assert [(case.get("classname"), case.get("name")) for case in cases] == [(name, "a"), (name, "the run is complete")]


def test_summary_shows_tests_ops_pages_bytes_faults_and_problems(tmp_path: Path) -> None:
    text = summary_text(record("failed", parsed("1..1", "not ok 1 a"), ["1 of 1 tests failed"]), tmp_path)
    for part in (
        "0 passed, 1 failed, 0 skipped",
        "map_pages 4, unmap_pages 3",
        "12 345 pages",
        "99 bytes",
        "faults  2",
        "problem 1 of 1 tests failed",
        "verdict failed in 4.6 s (QEMU 11.1.3 tcg, Linux 6.12)",
        str(tmp_path),
    ):
        assert part in text
