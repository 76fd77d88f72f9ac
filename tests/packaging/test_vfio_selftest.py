"""The kernel's own tests of VFIO on emulated devices, built from the source that the driver checks have."""

from __future__ import annotations

import pytest

from pviommu.lab.driver_checks import DriverChecks
from pviommu.lab.kernel_build import source_archive

from ..kernel_tests.vfio import TESTS, build, run

QUICK = ("vfio_dma_mapping_test", "vfio_iommufd_setup_test", "vfio_pci_device_test")
"""The others take a minute: `scripts/vfio-selftest` runs all of them."""


@pytest.mark.row("space", 64)
def test_the_kernels_tests_of_devices_pass(checks: DriverChecks) -> None:
    programs = {program.name: program for program in build(source_archive(checks.root))}
    assert programs.keys() == TESTS.keys()
    for name in QUICK:
        outcomes = run(programs[name])
        assert len(outcomes) == TESTS[name]
        assert "failed" not in outcomes.values()
