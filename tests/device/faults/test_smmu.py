"""What rules make of a virtual SMMUv3: its commands, the structures that it reads, its events."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from pviommu.scenarios.run import Outcome, played

from .conftest import scenario

pytestmark = pytest.mark.row("smmu", 36)

UNMAPS = {"command": "TLBI_NH_VA"}
"""The guest issues one for each of its 24 rounds, and looks at once whether DMA is still let through."""


def play(*rules: dict[str, Any]) -> tuple[Outcome, list[dict[str, Any]]]:
    lines: list[str] = []
    outcome = played(scenario(*rules), "smmu", lines.append)
    return outcome, [json.loads(line) for line in lines]


def test_without_rules_each_round_is_one_write_one_look_and_one_fault_that_is_told() -> None:
    outcome, _ = play()

    assert (outcome.end, outcome.harm) == ("done", ())
    assert outcome.answers == {"DMA DONE": 48, "DMA FAULT": 24, "event F_TRANSLATION": 24}


def test_a_lost_invalidation_lets_dma_through_after_the_unmap() -> None:
    outcome, events = play({"on": "smmu.command.apply", "where": UNMAPS, "schedule": {"nth": 5}, "do": {"drop": True}})

    assert outcome.harm == ("DMA to 0x40004000, which is not mapped, is done",)
    assert events[0]["before"] == {
        "function": "smmu0",
        "command": "TLBI_NH_VA",
        "op": 0x12,
        "iova": [0x40004000, 0x40004000],
    }


def test_an_invalidation_of_another_page_lets_dma_through_too() -> None:
    outcome, _ = play(
        {
            "on": "smmu.command.pre",
            "where": {"iova": 0x40003000},
            "do": {"corrupt": 9, "xor": 0x80},
            "schedule": {"nth": 1},
        }
    )

    assert outcome.harm == ("DMA to 0x40003000, which is not mapped, is done",)


def test_one_that_is_done_twice_harms_nobody() -> None:
    outcome, _ = play({"on": "smmu.command.apply", "do": {"duplicate": 2}})

    assert (outcome.end, outcome.harm) == ("done", ())


@pytest.mark.parametrize("command", ["SYNC", "TLBI_NH_VA"])
def test_commands_behind_a_late_one_wait_for_it(command: str) -> None:
    outcome, events = play(
        {"on": "smmu.command.pre", "where": {"command": command}, "do": {"delay": "3ms"}},
    )

    assert (outcome.end, outcome.harm) == ("done", ())
    times = [event["time_ns"] for event in events]
    assert len(times) >= 24
    assert min(b - a for a, b in pairwise(times)) >= 3_000_000


def test_a_command_that_hangs_leaves_the_driver_waiting() -> None:
    outcome, _ = play(
        {"on": "smmu.command.pre", "where": {"command": "SYNC"}, "schedule": {"nth": 4}, "do": {"hang": True}}
    )

    assert outcome.end.startswith("CMDQ_CONS is ")


def test_a_legal_command_that_is_called_illegal_stops_the_queue() -> None:
    outcome, _ = play({"on": "smmu.command.pre", "where": UNMAPS, "schedule": {"nth": 2}, "do": {"fail": "CERROR_ILL"}})

    assert outcome.harm == (
        "the SMMU stops at a command: ILL at index 0x6 of the command queue",
        "DMA to 0x40001000, which is not mapped, is done",
    )


def test_an_external_abort_of_an_ste_is_an_event_and_the_next_transaction_reads_it_anew() -> None:
    outcome, _ = play(
        {"on": "smmu.fetch.pre", "where": {"structure": "STE"}, "schedule": {"nth": 2}, "do": {"fail": "ABORT"}}
    )

    assert (outcome.end, outcome.harm) == ("done", ())
    assert outcome.answers["event F_STE_FETCH"] == 1


@pytest.mark.parametrize(
    ("structure", "byte", "bit", "event"), [("STE", 0, 1, "C_BAD_STE"), ("CD", 3, 0x80, "C_BAD_CD")]
)
def test_a_structure_that_is_read_wrong_is_illegal_once(structure: str, byte: int, bit: int, event: str) -> None:
    outcome, _ = play(
        {
            "on": "smmu.fetch.post",
            "where": {"structure": structure},
            "schedule": {"nth": 2},
            "do": {"corrupt": byte, "xor": bit},
        }
    )

    assert (outcome.end, outcome.harm) == ("done", ())
    assert outcome.answers[f"event {event}"] == 1


def test_a_lost_event_leaves_a_fault_that_nobody_is_told_of() -> None:
    outcome, _ = play({"on": "smmu.event.apply", "schedule": {"nth": 3}, "do": {"drop": True}})

    assert outcome.harm == ("the event of a fault did not come within 2 s",)
    assert outcome.answers["event F_TRANSLATION"] == 23


def test_an_event_that_comes_late_comes() -> None:
    outcome, _ = play({"on": "smmu.event.pre", "do": {"delay": "1ms"}})

    assert (outcome.end, outcome.harm) == ("done", ())
    assert outcome.answers["event F_TRANSLATION"] == 24


def test_a_full_queue_is_told() -> None:
    outcome, _ = play({"on": "smmu.event.apply", "schedule": {"every": 2}, "do": {"overflow": True}})

    assert (outcome.end, outcome.harm) == ("done", ())
    assert outcome.answers["event F_TRANSLATION"] == 12


def test_an_event_of_another_type_is_read_as_that() -> None:
    outcome, events = play({"on": "smmu.event.pre", "schedule": {"nth": 1}, "do": {"corrupt": "event", "value": 0x13}})

    assert outcome.answers["event F_PERMISSION"] == 1
    assert events[0]["before"]["event"] == "F_TRANSLATION"
    assert events[0]["before"]["sid"] == 8


def test_a_translation_that_a_rule_refuses_is_told_as_the_smmu_tells_its_own() -> None:
    outcome, _ = play(
        {"on": "dma.translate.pre", "schedule": {"nth": 1}, "do": {"fail": "PERMISSION"}},
    )

    assert (outcome.end, outcome.harm) == ("done", ())
    assert outcome.answers["event F_PERMISSION"] == 1


def play_ats(*rules: dict[str, Any]) -> Outcome:
    """The same with an engine that keeps translations, and asks for pages."""
    return played(scenario(*rules), "smmu-ats", lambda _: None)


@pytest.mark.row("smmu", 37)
def test_an_atc_inv_that_is_lost_lets_dma_through_after_the_unmap() -> None:
    outcome = play_ats(
        {"on": "smmu.command.apply", "where": {"command": "ATC_INV"}, "schedule": {"nth": 5}, "do": {"drop": True}}
    )

    assert outcome.harm == ("DMA to 0x40004000, which is not mapped, is done",)


@pytest.mark.row("smmu", 37)
@pytest.mark.parametrize(
    ("do", "late"),
    [({"delay": "3ms"}, 0), ({"delay": "600ms"}, 1), ({"hang": True}, 1)],
    ids=["late", "too late", "never"],
)
def test_an_answer_to_atc_inv_is_waited_for_as_long_as_that_may_take(do: dict[str, Any], late: int) -> None:
    outcome = play_ats({"on": "smmu.invalidated.pre", "schedule": {"nth": 3}, "do": do})

    assert (outcome.end, outcome.harm) == ("done", ())
    assert outcome.answers.get("command ATC_INV_SYNC", 0) == late


@pytest.mark.row("smmu", 38)
def test_a_page_request_that_is_lost_leaves_the_engine_waiting_until_its_reset() -> None:
    outcome = play_ats({"on": "smmu.page-request.apply", "schedule": {"nth": 5}, "do": {"drop": True}})

    assert (outcome.end, outcome.harm) == ("done", ())
    assert outcome.answers["page request"] == 48, "what is lost, the engine asks for again after its reset"


@pytest.mark.row("smmu", 38)
def test_an_answer_that_comes_twice_harms_nobody() -> None:
    outcome = play_ats({"on": "smmu.response.apply", "do": {"duplicate": 1}})

    assert (outcome.end, outcome.harm) == ("done", ())
