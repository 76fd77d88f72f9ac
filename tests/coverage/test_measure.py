import subprocess
import sys

import pytest

from .measure import MEASURED, Share, shares

TIMEOUT_S = 300


def test_unit_tests_reach_every_line_and_most_branches_of_engine_and_protocol(checkout):
    measured = subprocess.run(
        [sys.executable, checkout / "tests" / "coverage" / "measure.py"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )

    assert measured.returncode == 0, measured.stdout + measured.stderr
    assert all(f"{package:24} lines" in measured.stdout for package in MEASURED)


@pytest.mark.parametrize(
    ("what", "reached", "enough"), [("lines", 999, False), ("lines", 1000, True), ("branches", 949, False)]
)
def test_a_share_below_its_limit_is_not_enough(what, reached, enough):
    share = Share("package", what, reached, 1000)

    assert share.is_enough is enough
    assert ("below" in str(share)) is not enough


def test_files_are_summed_by_package():
    lines = {"covered_lines": 3, "num_statements": 4, "covered_branches": 1, "num_branches": 2}
    files = {"a/b/one.py": {"summary": lines}, "a/b/two.py": {"summary": lines}, "a/bc/three.py": {"summary": lines}}

    assert shares(files, ["a/b"]) == [Share("a/b", "lines", 6, 8), Share("a/b", "branches", 2, 4)]


def test_a_package_that_was_not_measured_has_nothing_reached():
    assert not any(share.is_enough for share in shares({}, ["a/b"]))
