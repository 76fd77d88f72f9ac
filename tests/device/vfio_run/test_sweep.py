"""A program once for each place at which a request can fail."""

from __future__ import annotations

import logging

import pytest

from pviommu.cli import main
from pviommu.exit_status import ExitStatus
from pviommu.interfaces.iommufd import RequestError, System
from pviommu.interfaces.iommufd.holdings import holdings
from pviommu.interfaces.iommufd.ioas import Ioas
from pviommu.interfaces.iommufd.places import Places
from pviommu.vfio_run.sweep import Judge, swept

from ..interfaces.iommufd.conftest import Program


class Run:
    """A program that makes an IOAS and maps a page, as often as it is run."""

    def __init__(self, status: int = 0) -> None:
        self.status = status
        self.failed: list[str] = []

    def __call__(self, judge: Judge) -> int:
        system = System()
        program = Program(system)
        files = [program.find_file(fd) for fd in program.descriptors()]
        judge.watch(system.places, lambda: holdings(system, files))
        status = self.status
        try:
            for make in (program.ioas, lambda: program.map(1, 4096, 0)):
                judge.begin(1, make.__name__)
                try:
                    make()
                finally:
                    judge.end()
        except OSError:
            status = 1
        program.exit()
        judge.over()
        self.failed.append(judge.failed.partition(" ")[0])
        return status


def test_each_place_fails_once_and_then_nothing_does(capsys: pytest.CaptureFixture[str]) -> None:
    run = Run()
    assert swept(run) == ExitStatus.PASSED
    of_ioas = ["copy_in", "copy_in", "object", "copy_out"]
    of_map = ["copy_in", "copy_in", "area", "copy_out"]
    assert run.failed == [*of_ioas, *of_map, ""]
    assert capsys.readouterr().err.count("\nok ") == 8


def test_a_request_that_fails_and_changes_something_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(self: Ioas, pieces: list[object], *rest: object) -> int:
        self.huge_pages = False
        self.hardware.places.area()
        return 0

    monkeypatch.setattr(Ioas, "map", broken)
    assert swept(Run()) == ExitStatus.FAILED
    said = capsys.readouterr().err
    assert said.count("\nnot ok ") == 1
    assert "the request has changed IOAS 1 of /dev/iommu 0" in said


def test_what_is_new_although_its_answer_is_lost_is_told() -> None:
    """As a device that stays attached; what was there may have changed."""
    judge, state = Judge(1), {"page table 1": 3}
    judge.watch(places := Places(), lambda: dict(state))
    judge.begin(1, "attach")
    state |= {"page table of nic": 1, "page table 1": 4}
    with pytest.raises(RequestError, match="copy_out"):
        places.copy_out()
    judge.end()
    assert judge.harm == ["the request has changed page table of nic: nothing, then 1"]


def test_what_is_left_behind_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("pviommu.interfaces.iommufd.context.Iommufd.close", lambda self: self._hardware.add_table())
    assert swept(Run()) == ExitStatus.FAILED
    assert "left behind: page table " in capsys.readouterr().err


def test_an_exception_that_the_server_survives_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    def run(judge: Judge) -> int:
        try:
            raise KeyError("what")
        except KeyError:
            logging.getLogger("pviommu").exception("a device has failed")
        return 0

    assert swept(run) == ExitStatus.FAILED
    assert "a device has failed: KeyError: 'what'" in capsys.readouterr().err


def test_a_program_that_fails_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert swept(Run(status=4)) == ExitStatus.UNEXPECTED
    assert "exit status 4 where nothing fails" in capsys.readouterr().err


def test_by_the_command(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["vfio", "run", "--sweep", "--", "sh", "-c", "exec 3<>/dev/iommu"]) == ExitStatus.PASSED
    assert "ok 1 file fails with ENOMEM in open /dev/iommu: exit status 2" in capfd.readouterr().err


def test_not_by_seccomp(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--sweep", "--fail-nth"):
        assert main(["vfio", "run", option, "--by", "seccomp", "true"]) == ExitStatus.USAGE
        assert f"{option}: not with --by seccomp" in capsys.readouterr().err
