"""A guest on the kernel that the lab builds: what only that one can test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Command, LabRun

LIMIT = 600
FUNCTIONS = ("attach", "map", "sync_map")
SCRIPT = """#!/bin/sh
cd /tests || exit 1
for part in lib devices setup vfio inject kernel_log; do
	. "./$part.sh"
done
. /lab/config
iommu=$LAB_IOMMU
engines=$(functions "$engine_id")
engine_count=$(echo "$engines" | wc -l)
plan $(($(vfio_plan) + $(inject_plan) + $(kernel_log_plan)))
vfio_tests
inject_tests
kernel_log_tests
finish
"""
"""Those of the lab's own tests for which its kernel has what others have not; the others have run on Debian's."""


@dataclass(frozen=True)
class GuestRun:
    """What a guest said of its tests, and what the lab said of the run."""

    status: int
    output: str
    passed: set[str]


@pytest.fixture(scope="module")
def lab_kernel_run(command: Command, artefacts: Path, tmp_path_factory: pytest.TempPathFactory) -> GuestRun:
    """The lab's kernel, with SCRIPT."""
    script = tmp_path_factory.mktemp("lab-kernel") / "topics.sh"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    run = command.run(artefacts / "lab-kernel", LIMIT, "--kernel", "lab", "--run", str(script))
    lines = (line.strip().split(" ", 2) for line in (run.folder / "program.out").read_text().splitlines())
    return GuestRun(run.status, run.output, {line[2] for line in lines if line[0] == "ok"})


@pytest.fixture(scope="module")
def suite_run(command: Command, artefacts: Path) -> LabRun:
    """The kernel's own tests of VFIO."""
    return command.run(artefacts / "suite", LIMIT, "--suite", "vfio", "--vcpus", "2")


@pytest.mark.row("driver", 60)
@pytest.mark.parametrize("interface", ["type1", "iommufd"])
def test_injected_errors_reach_user_space(lab_kernel_run: GuestRun, interface: str) -> None:
    wanted = {f"errors of pviommu_domain_{name} reach user space by {interface} as they are" for name in FUNCTIONS}
    assert wanted | {"failed calls leave nothing behind, and the DMA API works"} <= lab_kernel_run.passed, (
        lab_kernel_run.output
    )


def test_user_space_has_all_of_vfio_by_both_interfaces(lab_kernel_run: GuestRun) -> None:
    assert lab_kernel_run.status == 0, lab_kernel_run.output
    assert {"VFIO by type1", "VFIO by iommufd", "nothing is left of VFIO"} <= lab_kernel_run.passed


@pytest.mark.row("driver", 28)
def test_memory_that_runs_short_leaves_no_half(lab_kernel_run: GuestRun) -> None:
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
