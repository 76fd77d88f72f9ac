"""The committed page is what the tests say, and every row has its proof."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .page import MAX_DEVIATIONS, Collector, Row, load, problems, render


@pytest.fixture
def rows() -> dict[tuple[str, str], Row]:
    return load()


def test_every_row_is_there(rows: dict[tuple[str, str], Row]) -> None:
    assert [sum(1 for kind, _ in rows if kind == wanted) for wanted in ("xen", "wire", "defect")] == [61, 61, 68]


def test_the_page_is_up_to_date_and_no_row_is_empty(checkout: Path) -> None:
    done = subprocess.run(
        [sys.executable, checkout / "scripts" / "conformance", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_empty_row_an_unknown_one_and_too_many_deviations_are_problems(rows: dict[tuple[str, str], Row]) -> None:
    for row in rows.values():
        row.tests["somewhere"] = 0 if row.reason else 1
        if row.reason:
            row.tests.clear()
    collector = Collector(rows)
    assert problems(collector) == []

    rows["wire", "7"].tests.clear()
    rows["defect", "D5"].tests["somewhere"] = 1
    for number in range(1, MAX_DEVIATIONS + 2):
        rows["xen", str(number)].deviations.add("for a reason")
    collector.unknown.add("somewhere: no row wire 99")

    found = problems(collector)
    assert found[0] == "somewhere: no row wire 99"
    assert found[1].startswith("row wire 7 has no test")
    assert found[2].startswith("row defect D5 does not apply, but has a test")
    assert found[3].startswith(f"{MAX_DEVIATIONS + 1} deviations from Xen")


def test_a_row_shows_its_tests_once_its_deviation_and_its_reason() -> None:
    page = render(
        {
            ("xen", "24b"): Row("shared", deviations={"because"}, tests={"tests/a.py::b": 3, "tests/a.py::a": 1}),
            ("defect", "D5"): Row("pieces", reason="one thread"),
        }
    )
    assert "| 24b | shared<br>**deviation:** because | `a.py::a`<br>`a.py::b` |\n" in page
    assert "| D5 | pieces | does not apply: one thread |\n" in page


def test_a_test_that_another_file_repeats_is_named_once_where_it_is_declared(tmp_path: Path) -> None:
    (tmp_path / "test_declared.py").write_text(
        "import pytest\n@pytest.mark.row('xen', 1)\n@pytest.mark.parametrize('case', [1, 2])\ndef test_it(case): ...\n"
    )
    (tmp_path / "test_again.py").write_text("from test_declared import *\n")
    program = (
        "import pytest; from conformance.page import Collector, Row, render; "
        "rows = {('xen', '1'): Row('what')}; "
        "pytest.main(['--collect-only', '-qqq', '-p', 'no:cacheprovider', '-c', '/dev/null', '.'], [Collector(rows)]); "
        "print(rows['xen', '1'].tests, rows['xen', '1'].repeated, render(rows))"
    )

    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )

    assert "{'test_declared.py::test_it': 2} {'test_declared.py::test_it'}" in done.stdout
    assert "| 1 | what | `test_declared.py::test_it` *+* |\n" in done.stdout
