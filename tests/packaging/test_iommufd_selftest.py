"""The kernel's own tests of iommufd on the model of /dev/iommu, built from the source that the driver checks have."""

from __future__ import annotations

import pytest

from pviommu.lab.driver_checks import DriverChecks
from pviommu.lab.kernel_build import source_archive

from ..kernel_tests.iommufd import PASS, build, run


@pytest.mark.row("space", 60)
def test_the_kernels_tests_that_need_no_mock_device_pass(checks: DriverChecks) -> None:
    outcomes = run(build(source_archive(checks.root)))

    assert {test for test, outcome in outcomes.items() if outcome == "passed"} >= PASS
    assert len(outcomes) > 240
