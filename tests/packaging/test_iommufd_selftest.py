"""The kernel's own tests of iommufd on the model of /dev/iommu, built from the source that the driver checks have."""

from __future__ import annotations

import pytest

from pviommu.lab.driver_checks import DriverChecks
from pviommu.lab.kernel_build import source_archive

from ..kernel_tests.iommufd import ALL, FAIL_NTH, FAIL_NTH_PROGRAM, LARGE, PASS, PROGRAM, SKIP, SLOW, build, run


@pytest.mark.row("space", 60)
def test_exactly_those_of_the_kernels_tests_pass_that_are_listed(checks: DriverChecks) -> None:
    """Those that take long are left out: `scripts/iommufd-selftest` has them, too."""
    expected = {
        test
        for test in ALL
        if not test.endswith(tuple(f".{name}" for name in SLOW)) and test.split(".")[1] not in LARGE
    }
    options = [part for name in SLOW for part in ("-T", name)] + [part for name in LARGE for part in ("-V", name)]

    outcomes = run(build(source_archive(checks.root)) / PROGRAM, *options)

    assert set(outcomes) == expected
    assert {test for test, outcome in outcomes.items() if outcome == "passed"} == PASS & expected
    assert {test for test, outcome in outcomes.items() if outcome == "skipped"} == SKIP


def test_all_of_those_pass_that_let_one_place_after_the_other_fail(checks: DriverChecks) -> None:
    assert run(build(source_archive(checks.root)) / FAIL_NTH_PROGRAM) == dict.fromkeys(FAIL_NTH, "passed")


def test_how_many_there_are() -> None:
    assert (len(ALL), len(PASS), len(FAIL_NTH)) == (246, 238, 8)
