"""Requests to the model beside the same to a kernel: here the model stands for that, too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from pviommu.bench import vfio_beside
from pviommu.bench.players import PlayError, build_player, on_the_model
from pviommu.bench.samples import Figure
from pviommu.bench.vfio_beside import Beside, fault_round_trip, measure_beside
from pviommu.lab.problems import EnvironmentProblem
from pviommu.topology import load
from pviommu.vfio_run.machine import build

from ..vfio_run.test_running import cache

__all__ = ["cache"]

NAMES = ["map and unmap, 4 KiB", "map and unmap, 2 MiB", "map and unmap, 1 GiB", "dirty bitmap, clean GiB"]


class Kernel:
    """Answers as a kernel that needs 600 us for each sample, whose IOMMU tracks no dirty pages if it ``refuses`` to."""

    def __init__(self, refuses: bool) -> None:
        self.refuses = refuses

    def __call__(self, lines: Sequence[str], folder: Path, *options: str) -> list[str]:
        system, machine = build(load(Path("one-engine")))
        try:
            folder.mkdir(exist_ok=True)
            answers = on_the_model(lines, build_player(folder), system, machine)
        finally:
            machine.close()
        for number, line in enumerate(vfio_beside._spoken(lines)):
            if line.startswith("time "):
                answers[number] = f"{600_000:x}"
                if self.refuses and line.endswith(" 1"):
                    answers[number] = "ENOENT"
            elif self.refuses and line.startswith("call 0 3b89"):
                answers[number] = "EOPNOTSUPP 00"
        return answers


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GiB takes a while to be written to."""
    monkeypatch.setitem(vfio_beside._SIZES, "1 GiB", 4 << 20)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("refuses", [True, False])
def test_both_sides_are_measured(tmp_path: Path, refuses: bool) -> None:
    found = measure_beside(2, 3, tmp_path, Kernel(refuses))

    assert [each.name for each in found] == NAMES
    for each, turns in zip(found, (3, 3, 1, 3), strict=False):
        if each.kernel != "EOPNOTSUPP":
            assert each.kernel == Figure(600 / turns, 600 / turns, 600 / turns)
            assert each.ratio == each.model.median / (600 / turns) > 0
    assert (found[3].kernel == "EOPNOTSUPP") == refuses


def test_the_ratio_is_of_medians() -> None:
    assert Beside("x", Figure(6, 1, 9), Figure(3, 1, 100)).ratio == 2
    assert Beside("x", Figure(6, 1, 9), "EOPNOTSUPP").ratio is None


@pytest.mark.usefixtures("cache")
def test_a_guest_that_does_not_answer_is_a_problem(tmp_path: Path) -> None:
    def silent(*_: object) -> list[str]:
        raise PlayError("0 answers to 10 lines")

    with pytest.raises(EnvironmentProblem, match="0 answers to 10 lines; see the logs in"):
        measure_beside(1, 1, tmp_path, silent)


def test_a_page_request_takes_time() -> None:
    assert fault_round_trip(1, 2).median > 0
