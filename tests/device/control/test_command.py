"""``pviommu ctl``: what it asks of a server, which is played here, and when it stops."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pviommu.cli import main
from pviommu.control import command
from pviommu.control.commands import COMMANDS
from pviommu.control.description import checked

FAULTS = next(each for each in COMMANDS if each.name == "faults")
COUNT = 40


class Played:
    """A server with :data:`COUNT` faults, and what it was asked."""

    asked: list[dict[str, Any]]

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> Played:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def call(self, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        assert name == "faults"
        self.asked.append(dict(arguments))
        given = checked(FAULTS, arguments)
        first = given["first"] or 1
        last = min(first + given["limit"], COUNT + 1)
        faults = [{"number": number} for number in range(first, last)]
        return {"faults": faults, "count": COUNT, "unexplained": 0, "next": last if last <= COUNT else None}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    Played.asked = []
    monkeypatch.setattr(command, "Client", Played)
    return Played.asked


def test_a_list_comes_whole_reply_by_reply(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    assert main(["ctl", "--socket", str(tmp_path), "faults"]) == 0
    assert asked == [{}, {"first": 17}, {"first": 33}]


@pytest.mark.parametrize("limit", [1, 16, 32], ids=["one", "the default of a reply", "the most"])
def test_who_asks_for_so_many_gets_one_reply(asked: list[dict[str, Any]], tmp_path: Path, limit: int) -> None:
    assert main(["ctl", "--socket", str(tmp_path), "faults", "--limit", str(limit)]) == 0
    assert asked == [{"limit": limit}]


@pytest.mark.parametrize("seconds", ["inf", "nan", "-1", "0", "1e300", "soon"])
def test_a_time_that_nobody_can_wait_for_is_told(capsys: pytest.CaptureFixture[str], seconds: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["ctl", f"--timeout={seconds}", "status"])
    assert ended.value.code == 2
    assert f"{seconds}: must be a number of seconds above 0, at most 86400" in capsys.readouterr().err
