"""A guest on the kernel that the lab builds: what only that one can test."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Command, LabRun

LIMIT = 600
FUNCTIONS = ("domain_attach", "guest_map", "domain_map", "domain_sync_map")


@pytest.fixture(scope="module")
def suite_run(command: Command, artefacts: Path) -> LabRun:
    """The kernel's own tests of VFIO. They do one thing after the other, so a second processor would only spin."""
    return command.run(artefacts / "suite", LIMIT, "--suite", "vfio", "--vcpus", "1")


@pytest.mark.row("driver", 60)
@pytest.mark.parametrize("interface", ["type1", "iommufd"])
def test_injected_errors_reach_user_space(strict_run: LabRun, interface: str) -> None:
    wanted = {f"errors of pviommu_{name} reach user space by {interface} as they are" for name in FUNCTIONS}
    assert wanted | {"failed calls leave nothing behind, and the DMA API works"} <= strict_run.passed, strict_run.output


def test_all_of_it_passes_there_too(strict_run: LabRun) -> None:
    assert strict_run.status == 0, strict_run.output
    assert "nothing is left of VFIO" in strict_run.passed


@pytest.mark.row("driver", 83)
@pytest.mark.parametrize("seed", [1, 2])
def test_tables_are_those_of_the_kernels_own_library(strict_run: LabRun, seed: int) -> None:
    assert f"the driver writes the tables that the kernel's library writes, seed {seed}" in strict_run.passed


@pytest.mark.row("driver", 84)
def test_iommufd_learns_page_by_page_what_was_written(strict_run: LabRun) -> None:
    name = "what is written is noted page by page where the tables are the guest's, else refused"
    assert name in strict_run.passed_in("VFIO by iommufd")


@pytest.mark.row("driver", 28)
def test_memory_that_runs_short_leaves_no_half(strict_run: LabRun) -> None:
    name = "whichever allocation fails, an attach or a map is ENOMEM or whole, and so are its reserved regions"
    assert name in strict_run.passed, strict_run.output


@pytest.mark.row("driver", 61)
def test_kernels_own_tests_of_vfio_pass(suite_run: LabRun) -> None:
    assert suite_run.status == 0, suite_run.output
    suite = suite_run.results["suite"]
    assert (suite["failed"], suite["passed"] + suite["skipped"]) == (0, 97)
    # MSI besides MSI-X, and SR-IOV, which no endpoint has
    assert suite["skipped"] == 2
    assert "nothing is left of VFIO" in suite_run.passed
