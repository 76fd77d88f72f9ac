"""The VM of the pytest plugin, of the wheel: one boot for the example and for a test that fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Command

LIMIT = 180
FAILS = """
import pytest

@pytest.mark.scenario({"rule": [{"id": "never", "on": "op.free_context.pre", "where": {"ctx": 250}}]})
def test_fails(pviommu_vm):
    pviommu_vm.check("echo seen by the kernel >/dev/kmsg")
"""


def test_tests_share_a_vm_and_show_its_kernel_log(
    command: Command, artefacts: Path, checkout: Path, tmp_path: Path
) -> None:
    (tmp_path / "test_example.py").write_text((checkout / "examples/pytest/test_vm.py").read_text())
    (tmp_path / "test_fails.py").write_text(FAILS)
    options = ("-p", "no:cacheprovider", "--strict-markers", f"--pviommu-vm-timeout={LIMIT}")

    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--pviommu-vm", f"--basetemp={artefacts / 'pytest'}"],
        cwd=tmp_path,
        env=command.environment,
        capture_output=True,
        text=True,
        timeout=LIMIT + 60,
        check=False,
    )

    assert "2 passed" in done.stdout, done.stdout
    assert "1 failed" in done.stdout
    assert "error" not in done.stdout.splitlines()[-1]
    assert "scenario of the marker: rule never: it fired never, expected once or more" in done.stdout
    assert "  context  kind      pages" in done.stdout
    assert "kernel log:\n" in done.stdout
    assert "] seen by the kernel\n" in done.stdout
    consoles = {path.resolve() for path in (artefacts / "pytest").glob("pviommu-vm*/*/console.log")}
    assert len(consoles) == 1
