"""``pviommu topology``: check, list and show."""

from __future__ import annotations

from pathlib import Path

import pytest

from pviommu import resources
from pviommu.cli import main


@pytest.mark.row("server", 124)
def test_check_names_what_is_right_and_every_file_that_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("# mine\n[iommu]\nrings = 9\n")
    absent = tmp_path / "absent.toml"

    assert main(["topology", "check", str(wrong), "lab", str(absent)]) == 2

    said = capsys.readouterr()
    assert said.out == "lab: right, iommu, dma0, dma1\n"
    assert said.err.splitlines() == [
        f"pviommu: topology {wrong}: line 3: iommu.rings = 9: must be a whole number, 1 to 8",
        f"pviommu: cannot read topology {absent}: No such file or directory",
    ]
    assert main(["topology", "check", "lab"]) == 0


@pytest.mark.row("server", 125)
def test_list_has_every_shipped_topology_with_what_it_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topology", "list"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(resources.topologies())
    assert all(len(line.split()) > 3 for line in lines)


@pytest.mark.row("server", 125)
def test_show_prints_the_file_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topology", "show", "reserved"]) == 0
    assert capsys.readouterr().out == (resources.qemu_configs() / "reserved.toml").read_text()

    with pytest.raises(SystemExit) as caught:
        main(["topology", "show", "/etc/passwd"])
    assert caught.value.code == 2
    assert "usage: pviommu topology show" in capsys.readouterr().err
