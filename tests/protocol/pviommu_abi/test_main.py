"""Generated files are those that the declarations give."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pviommu_abi.__main__ import generated_files, main


def test_every_header_and_the_page_are_generated() -> None:
    assert set(generated_files()) == {
        "guest-tools/driver/pviommu_abi.h",
        "guest-tools/driver/pviommu_dma_test.h",
        "guest-tools/driver/pviommu_xor.h",
        "docs/abi.md",
    }


@pytest.mark.parametrize("name", sorted(generated_files()))
def test_the_file_in_the_checkout_is_up_to_date(checkout: Path, name: str) -> None:
    assert (checkout / name).read_text() == generated_files()[name], "run: python -m pviommu_abi ."


def test_the_command_writes_all_files_into_an_empty_folder(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

    command = [sys.executable, "-m", "pviommu_abi", str(tmp_path)]
    subprocess.run(command, env=environment, check=True, capture_output=True)

    assert files_in(tmp_path) == generated_files()


def test_files_of_another_time_are_written_over_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pviommu_abi", str(tmp_path)])
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "abi.md").write_text("old")

    main()

    assert files_in(tmp_path) == generated_files()
    assert capsys.readouterr().out.splitlines() == [f"wrote {name}" for name in generated_files()]


def files_in(folder: Path) -> dict[str, str]:
    """Path within ``folder`` to text."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
