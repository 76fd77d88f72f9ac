"""The SMMUv3 beside QEMU's: which boots there are, what is shown, and the bar."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pviommu.bench import smmu
from pviommu.bench.guest import MeasurementError
from pviommu.bench.samples import Figure
from pviommu.bench.smmu_beside import judge, run
from pviommu.bench.smmu_boots import MEASURED, SmmuBoot
from pviommu.lab.problems import RunError, UsageError


def options(tmp_path: Path, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    smmu.add_arguments(parser)
    common = ["--guest", "--results", str(tmp_path / "results"), "--json", str(tmp_path / "smmu.json")]
    return parser.parse_args([*common, *words])


def provide(*_: object) -> Any:
    return SimpleNamespace(toolbox=SimpleNamespace(versions={"qemu": "11.1"}), accelerator="tcg")


def test_both_are_booted_in_turn_and_compared(tmp_path: Path) -> None:
    booted, out = [], io.StringIO()

    def boot(bench: Any, machine: Any, folder: Path) -> SmmuBoot:
        booted.append((machine.name, folder.name, bench.rounds, bench.operations))
        return SmmuBoot(rounds=[dict.fromkeys(MEASURED.values(), 9000.0 if machine.is_served else 3000.0)])

    words = ("--boots", "2", "--rounds", "1", "--operations", "7")
    assert run(options(tmp_path, *words), "pviommu bench smmu", out, provide, boot) == 0

    assert booted == [("pviommu", "1", 1, 7), ("QEMU", "1", 1, 7), ("QEMU", "2", 1, 7), ("pviommu", "2", 1, 7)]
    found = json.loads((tmp_path / "smmu.json").read_text())
    assert found["figures_us"]["unmap"]["pviommu"] == {"median": 9.0, "least": 9.0, "most": 9.0}
    assert [bar["verdict"] for bar in found["bars"]] == ["NOT MET"]
    assert "| TLBI and SYNC | 9 | 9-9 | 3 | 3-3 | 3 |" in found["blocks"]["smmu-guest"]
    assert "iommu.strict=1" in found["blocks"]["smmu-guest-setting"]
    [folder] = (tmp_path / "results").glob("2*")
    assert "map and unmap" in (folder / "smmu.txt").read_text()


def test_the_bar_is_twice_what_it_takes_in_qemus_process() -> None:
    def of(ours: float, theirs: float) -> list[str]:
        sync = {name: Figure(us, us, us) for name, us in (("pviommu", ours), ("QEMU", theirs))}
        return [one.word for one in judge({"TLBI and SYNC": sync})]

    assert (of(8, 4), of(8.1, 4)) == (["met"], ["NOT MET"])


def test_a_boot_that_fails_ends_it_with_the_folder_of_the_logs(tmp_path: Path) -> None:
    def boot(*_: object) -> SmmuBoot:
        raise MeasurementError("there is no function")

    with pytest.raises(RunError, match=r"there is no function; see the logs in .*/results/2"):
        run(options(tmp_path), "pviommu bench smmu", io.StringIO(), provide, boot)


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [("--boots", "0", "1 to 100"), ("--rounds", "1001", "1 to 1000"), ("--operations", "0", "1 to 100000")],
)
def test_limits(tmp_path: Path, option: str, value: str, rule: str) -> None:
    with pytest.raises(UsageError, match=f"{option} {value}: give {rule}"):
        run(options(tmp_path, option, value), "pviommu bench smmu", io.StringIO(), provide)
