"""Programs that are run once for the same beginning: what is kept, what is run, and what the folder is called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from pviommu.lab.build import Sandbox
from pviommu.lab.processes import Outcome
from pviommu.lab.series import FOLDER, Series, forget


class Machine:
    """Runs programs by looking at their first word, and notes what it ran: ``fail`` fails, others say what they are."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ran: list[list[str]] = []
        self.contents: list[list[str]] = []

    def __call__(self, command: Sequence[str]) -> Outcome:
        program = list(command)[list(command).index("HOME=/tmp") + 1 :]
        self.ran.append(program)
        (work,) = (self.root / "build").iterdir()
        self.contents.append(sorted(str(path.relative_to(work)) for path in work.rglob("*") if path.is_file()))
        return Outcome(int(program[0] == "fail"), f"{program[0]} in /build/{work.name}/a/one.c\n")

    def series(self, *programs: Sequence[str]) -> tuple[list[Outcome], bool]:
        """What the programs of a series said, and whether nothing was run for it."""
        files = {"a/one.c": self.root / "one.c"}
        with Series(self.root, Sandbox(["unshare"]), files, self) as series:
            return [series.run(*program) for program in programs], series.is_recalled


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "build").mkdir()
    (tmp_path / "one.c").write_text("int one;\n")
    return Machine(tmp_path)


def test_programs_find_the_files_and_both_call_the_folder_by_its_name(machine: Machine) -> None:
    (outcome,), recalled = machine.series(["make", f"M={FOLDER}"])

    assert (outcome.status, outcome.output, recalled) == (0, f"make in {FOLDER}/a/one.c\n", False)
    assert machine.contents == [["a/one.c"]]
    assert machine.ran[0][1].startswith("M=/build/series-")
    assert list((machine.root / "build").iterdir()) == []


def test_a_series_that_is_known_is_not_run(machine: Machine) -> None:
    first, _ = machine.series(["make"], ["check", "x"])
    again, recalled = machine.series(["make"], ["check", "x"])

    assert [outcome.output for outcome in again] == [outcome.output for outcome in first]
    assert (recalled, len(machine.ran)) == (True, 2)
    assert list((machine.root / "build").iterdir()) == []


def test_what_is_new_runs_after_all_that_came_before_it(machine: Machine) -> None:
    machine.series(["make"], ["check"])
    machine.ran.clear()

    _, recalled = machine.series(["make"], ["other"], ["check"])

    assert (machine.ran, recalled) == ([["make"], ["other"], ["check"]], False)


@pytest.mark.parametrize("change", ["content", "program"])
def test_any_change_makes_it_unknown(machine: Machine, change: str) -> None:
    machine.series(["make"])
    if change == "content":
        (machine.root / "one.c").write_text("int two;\n")

    _, recalled = machine.series(["make", "W=1"] if change == "program" else ["make"])

    assert (recalled, len(machine.ran)) == (False, 2)


def test_a_failure_is_not_kept(machine: Machine) -> None:
    for _ in range(2):
        outcomes, recalled = machine.series(["make"], ["fail"])
        assert ([outcome.status for outcome in outcomes], recalled) == ([0, 1], False)

    assert machine.ran == [["make"], ["fail"]] * 2


def test_what_is_forgotten_runs_again(machine: Machine) -> None:
    machine.series(["make"])
    forget(machine.root)

    assert not machine.series(["make"])[1]
