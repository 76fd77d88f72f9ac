"""The control commands that are about virtual SMMUs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pviommu.control.answers import Answers, Served, finished
from pviommu.control.commands import COMMANDS
from pviommu.control.description import CommandError
from pviommu.faults.scenario import Scenario
from pviommu.history.explanation import Explainer
from pviommu.history.faults import FaultLog
from pviommu.scenarios import smmu
from pviommu.scenarios.smmu import SmmuGuest
from pviommu.scenarios.stage import Stage

RESULT = {command.name: command.result for command in COMMANDS}


@pytest.fixture
def guest() -> Iterator[SmmuGuest]:
    """One whose engine has written to two pages, and was refused after each was unmapped."""
    with Stage(Scenario(), topology=smmu.topology()) as stage:
        guest = SmmuGuest(stage)
        guest.begin()
        for number in range(2):
            guest.round(number)
        assert guest.harm == []
        yield guest


def ask(guest: SmmuGuest, name: str, **arguments: Any) -> dict[str, Any]:
    machine = guest.stage.machine  # type: ignore[attr-defined]
    faults = FaultLog(Explainer(machine.iommu.engine, None, machine.inputs.now_ns))
    answers = Answers(Served(machine, faults, lambda: None))
    return finished(answers.begin(name, arguments))


def test_smmus_are_listed_with_what_they_do(guest: SmmuGuest) -> None:
    answer = ask(guest, "smmus")
    [said] = answer["smmus"]

    assert set(said) == {field.name for field in RESULT["smmus"][0].fields}
    assert (said["name"], said["enabled"], said["commands"], said["stalled"]) == ("smmu0", True, 0, 0)
    assert said["registers"].startswith("CR0=0xd CR0ACK=0xd ")
    assert said["streams"] == "1: 0x8"
    assert answer["events"][0] == {
        "smmu": "smmu0",
        "event": "F_TRANSLATION",
        "sid": 8,
        "iova": 0x40001000,
        "record": "0x800000010 0x20000000000 0x40001000 0x0",
        "told": True,
    }
    assert set(answer["events"][0]) == {field.name for field in RESULT["smmus"][1].fields}
    assert len(answer["events"]) == 2
    assert said["cached"]["STE"] == 1


def test_explain_of_a_stream_behind_an_smmu_tells_what_decides(guest: SmmuGuest) -> None:
    said = ask(guest, "explain", iova=0x40000000, stream=1)

    assert set(said) == {field.name for field in RESULT["explain"]}
    assert said["cause"] == "f-translation"
    assert said["text"].startswith("F_TRANSLATION: the address is not mapped: stage 1 read 0000000000000000 at ")
    assert (said["smmu"]["smmu"], said["smmu"]["sid"], said["smmu"]["leads_to"]) == ("smmu0", 8, None)
    assert said["cached"] == []
    assert said["reads"][1]["fields"].startswith("T0SZ=0x19 EPD1=0x1 V=0x1 ")
    assert [read["what"] for read in said["reads"]] == ["STE", "CD", "stage 1", "stage 1", "stage 1"]
    [described] = [field for field in RESULT["explain"] if field.name == "smmu"]
    assert set(said["smmu"]) == {field.name for field in described.fields}


def test_explain_of_a_blocked_endpoint_says_so(guest: SmmuGuest) -> None:
    function = guest.stage.machine.smmus["smmu0"]  # type: ignore[attr-defined]
    function.reset()

    said = ask(guest, "explain", iova=0x40000000, stream=1)

    assert (said["cause"], said["text"]) == ("blocked", "the endpoint is blocked until its reset")


def test_an_unknown_stream_is_told_those_behind_smmus_too(guest: SmmuGuest) -> None:
    with pytest.raises(CommandError, match="there is no stream 9; there are 1"):
        ask(guest, "explain", iova=0, stream=9)
