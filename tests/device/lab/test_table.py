"""The matrix as a reader sees it."""

from __future__ import annotations

import json
from pathlib import Path

from pviommu.lab.cells import Cell, Outcome
from pviommu.lab.table import as_markdown, as_text, write_table

VERSIONS = {"pviommu": "0.1.0", "qemu": "11.1.3", "kernel": "6.12.107", "accelerator": "tcg"}
DATE = "2026-11-21 10:00"
OUTCOMES = {
    Cell("debian", "xen-2024", "lazy", 1): Outcome("passed", 245, 0, 0, 14.26, DATE, "a", VERSIONS),
    Cell("lab", "xen-v7", "strict", 2): Outcome(
        "failed", 99, 2, 1, 8.0, DATE, "b", {**VERSIONS, "kernel": "7.3.4"}, ["2 of 102 tests failed", "a leak"]
    ),
    Cell("lab-debug", "xen-v7", "strict", 2): Outcome("timeout", date=DATE),
}


def test_text_has_aligned_columns_and_the_reasons() -> None:
    lines = as_text(OUTCOMES).splitlines()

    assert lines[0].split() == [
        *(
            "kernel",
            "profile",
            "mode",
            "vCPUs",
            "tables",
            "tests",
            "verdict",
            "passed",
            "failed",
            "skipped",
            "seconds",
            "date",
            "(UTC)",
        )
    ]
    assert lines[1].split() == [
        "debian",
        "xen-2024",
        "lazy",
        "1",
        "on",
        "own",
        "passed",
        "245",
        "0",
        "0",
        "14.3",
        *DATE.split(),
    ]
    assert len({line.index(DATE) for line in lines[1:4]}) == 1
    assert lines[4:] == [
        "lab/xen-v7/strict/2: 2 of 102 tests failed; a leak",
        "lab-debug/xen-v7/strict/2: timeout",
        "1 of 3 cells passed, with 344 tests",
    ]


def test_markdown_has_date_versions_and_a_row_a_cell() -> None:
    page = as_markdown(OUTCOMES, DATE)

    assert page.startswith(f"# Matrix of {DATE}\n")
    assert "- qemu: 11.1.3\n" in page
    assert "- kernel debian: Linux 6.12.107\n- kernel lab: Linux 7.3.4\n" in page
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(OUTCOMES)
    assert {row.count("|") for row in rows} == {13}
    assert "| lab | xen-v7 | strict | 2 | off | long | failed | 99 | 2 | 1 | 8.0 |" in page


def test_files_hold_every_cell(tmp_path: Path) -> None:
    write_table(tmp_path, OUTCOMES, DATE)

    written = json.loads((tmp_path / "matrix.json").read_text())
    assert written["date"] == DATE
    assert [cell["cell"] for cell in written["cells"]] == [cell.name for cell in OUTCOMES]
    assert (written["cells"][1]["mode"], written["cells"][1]["failed"]) == ("strict", 2)
    assert (tmp_path / "matrix.md").read_text() == as_markdown(OUTCOMES, DATE)
