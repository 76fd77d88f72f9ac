"""A guest on the kernel that the lab builds: what only that one can test."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .conftest import CYCLES

if TYPE_CHECKING:
    from conftest import Command, LabRun

LIMIT = 600
FUNCTIONS = ("attach", "map", "sync_map")


@pytest.fixture(scope="module")
def lab_kernel_run(command: Command, artefacts: Path) -> LabRun:
    """The lab's own tests on its kernel."""
    return command.run(artefacts / "lab-kernel", LIMIT, "--kernel", "lab", "--cycles", str(CYCLES))


@pytest.fixture(scope="module")
def suite_run(command: Command, artefacts: Path) -> LabRun:
    """The kernel's own tests of VFIO."""
    return command.run(artefacts / "suite", LIMIT, "--suite", "vfio", "--vcpus", "2")


@pytest.mark.row("driver", 60)
@pytest.mark.parametrize("interface", ["type1", "iommufd"])
def test_injected_errors_reach_user_space(lab_kernel_run: LabRun, interface: str) -> None:
    wanted = {f"errors of pviommu_domain_{name} reach user space by {interface} as they are" for name in FUNCTIONS}
    assert wanted | {"failed calls leave nothing behind, and the DMA API works"} <= lab_kernel_run.passed, (
        lab_kernel_run.output
    )


def test_all_of_it_passes_there_too(lab_kernel_run: LabRun) -> None:
    assert lab_kernel_run.status == 0, lab_kernel_run.output
    assert "nothing is left of VFIO" in lab_kernel_run.passed


@pytest.mark.row("driver", 28)
def test_memory_that_runs_short_leaves_no_half(lab_kernel_run: LabRun) -> None:
    name = "whichever allocation fails, an attach or a map is ENOMEM or whole, and so are its reserved regions"
    assert name in lab_kernel_run.passed, lab_kernel_run.output


@pytest.mark.row("driver", 61)
def test_kernels_own_tests_of_vfio_pass(suite_run: LabRun) -> None:
    assert suite_run.status == 0, suite_run.output
    suite = suite_run.results["suite"]
    assert (suite["failed"], suite["passed"] + suite["skipped"]) == (0, 97)
    # MSI besides MSI-X, and SR-IOV, which no endpoint has
    assert suite["skipped"] == 2
    assert "nothing is left of VFIO" in suite_run.passed
