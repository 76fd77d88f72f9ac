"""``--cpu-times``: where the processor time of a run goes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .cpu_times import lines

SPENDS = """
import subprocess, sys, time
import pytest

SPEND = "import time\\nwhile time.process_time() < 0.3: pass"

@pytest.fixture(scope="module")
def costly():
    subprocess.run([sys.executable, "-c", SPEND], check=True)

def test_first(costly):
    time.sleep(0.3)

def test_second(costly):
    pass
"""


def test_sums_are_by_folder_file_and_test_and_begin_with_the_most_expensive() -> None:
    spent = {"tests/a/test_x.py::one": 1.0, "tests/a/test_x.py::two[a/b::c]": 2.0, "tests/b/test_y.py::z": 0.01}
    said = list(lines(spent))

    assert said[0].split() == ["3.0", "s", "of", "CPU", "time", "in", "3", "tests"]
    assert [line.split() for line in said[1:]] == [
        ["by", "folder:"],
        ["3.0", "tests/a"],
        ["by", "file:"],
        ["3.0", "tests/a/test_x.py"],
        ["by", "test:"],
        ["2.0", "tests/a/test_x.py::two[a/b::c]"],
        ["1.0", "tests/a/test_x.py::one"],
    ]


def test_the_first_test_that_needs_a_fixture_is_charged_with_its_children_and_no_test_for_sleeping(
    checkout: Path, tmp_path: Path
) -> None:
    (tmp_path / "test_spends.py").write_text(SPENDS)
    said = {}
    for processes in ("0", "1"):
        options = ("-q", "-p", "no:cacheprovider", "-p", "tests.cpu_times", "-n", processes, "--cpu-times")
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, "--rootdir", str(tmp_path), str(tmp_path)],
            cwd=checkout,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        said[processes] = done.stdout
    for text in said.values():
        (first,) = (line.split() for line in text.splitlines() if line.endswith("::test_first"))
        assert 0.3 <= float(first[0]) < 0.9
        assert "::test_second" not in text.partition("by test:")[2]
