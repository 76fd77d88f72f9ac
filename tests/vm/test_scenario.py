"""Scenarios of faults against a real guest: it survives what is conforming; a rule that does nothing is no success."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .conftest import PLAIN

if TYPE_CHECKING:
    from conftest import Command, LabRun

LIMIT = 180
CONFORMING = {
    "version": 1,
    "rule": [
        {"id": "messages-in-pieces", "on": "socket.receive.pre", "schedule": {"every": 3}, "do": {"slice": 9}},
        {"id": "maps-take-their-time", "on": "op.map_pages.pre", "schedule": {"times": 9}, "do": {"delay": "1ms"}},
        {
            "id": "no-context-once",
            "on": "op.alloc_context.pre",
            "schedule": {"nth": 3},
            "do": {"fail": "ENOMEM"},
            "expect": {"fired": 1},
        },
    ],
}
NEVER = """version = 1
[[rule]]
id = "never"
on = "op.map_pages.pre"
schedule = { nth = 1000000 }
do = { fail = "ENOMEM" }
"""


@pytest.fixture(scope="module")
def conforming_run(command: Command, artefacts: Path, tmp_path_factory: pytest.TempPathFactory) -> LabRun:
    """Rules that are there since the boot, because one is about a socket."""
    path = tmp_path_factory.mktemp("conforming") / "mine.json"
    path.write_text(json.dumps(CONFORMING))
    return command.run(artefacts / "conforming", LIMIT, *PLAIN, "--scenario", str(path))


@pytest.fixture(scope="module")
def never_run(command: Command, artefacts: Path, tmp_path_factory: pytest.TempPathFactory) -> LabRun:
    path = tmp_path_factory.mktemp("never") / "never.toml"
    path.write_text(NEVER)
    return command.run(artefacts / "never", LIMIT, *PLAIN, "--scenario", str(path))


def test_a_guest_survives_conforming_rules_with_its_data_intact(conforming_run: LabRun) -> None:
    assert conforming_run.status == 0, conforming_run.output[-2000:]
    assert "scenario mine: 3 rules, all as expected (" in conforming_run.output.splitlines()[-1]
    assert {"the kernel has nothing to complain about", "without rules everything works"} <= conforming_run.passed
    assert "DMA is right or refused, never wrong" in conforming_run.passed


def test_the_guest_itself_sees_that_each_rule_acted(conforming_run: LabRun) -> None:
    rules = {str(rule["id"]) for rule in CONFORMING["rule"]}  # type: ignore[attr-defined]
    assert {f"rule {name} has acted as expected" for name in rules} <= conforming_run.passed


def test_events_of_a_run_are_among_its_files(conforming_run: LabRun) -> None:
    events = [json.loads(line) for line in (conforming_run.folder / "events.jsonl").read_text().splitlines()]
    results = conforming_run.results["scenario"]
    fired = {rule["id"]: rule["fired"] for rule in results["verdict"]["rules"]}
    judged = events[: results["verdict"]["events"]]  # QEMU's connections keep their rule when the others are gone
    assert {name: sum(event["rule"] == name for event in judged) for name in fired} == fired
    assert {event["rule"] for event in events[len(judged) :]} <= {"messages-in-pieces"}


def test_a_rule_that_never_fires_is_status_5_and_named(never_run: LabRun) -> None:
    assert never_run.status == 5, never_run.output[-2000:]
    assert "rule never has acted as expected" not in never_run.passed
    assert "without rules everything works" in never_run.passed
    [problem] = [text for text in never_run.results["problems"] if text.startswith("rule never: ")]
    assert "it fired never, expected once or more" in problem
    assert "scenario never: 1 rule, 1 not as expected (" in never_run.output


def test_the_lab_plays_a_scenario_in_every_run_and_says_so(lab_run: LabRun) -> None:
    assert ", scenario lab: 3 rules, all as expected (" in lab_run.output
    assert "without rules everything works" in lab_run.passed
    assert lab_run.results["scenario"]["verdict"]["ok"]


def test_a_first_attach_that_finds_no_memory_is_tried_again(command: Command, artefacts: Path) -> None:
    """The kernel warns of a driver that fails it, and none of the functions behind the IOMMU gets a driver."""
    names = ("--scenario", "first-attach-refused", "--scenario-from", "boot")
    run = command.run(artefacts / "first-attach", LIMIT, *PLAIN, *names)
    assert run.status == 0, run.output[-2000:]
    assert "scenario first-attach-refused: 1 rule, all as expected (" in run.output
    assert "the kernel has nothing to complain about" in run.passed


def test_an_adversarial_rule_may_cost_the_iommu_its_driver_and_is_known_to_have_acted(
    command: Command, artefacts: Path
) -> None:
    """What rules did is in the shared memory, which needs no driver; and what such a rule does is no failure."""
    run = command.run(artefacts / "all-ones", LIMIT, *PLAIN, "--scenario", "registers-read-all-ones")
    assert run.status == 0, run.output[-2000:]
    assert "skip the drivers go and come while rules act (adversarial rules acted)" in run.output
    assert {"rule gone has acted as expected", "without rules everything works"} <= run.passed
    assert "the kernel has nothing to complain about" in run.passed


def test_a_guest_survives_its_engines_failures_one_by_one_in_one_boot(command: Command, artefacts: Path) -> None:
    """An engine that stops is reset by its driver; one that hangs, and an IOMMU that resets itself, are adversarial."""
    chosen = ("--only", "endpoint.work.pre", "--adversarial")
    status, output = command.sweep(artefacts / "sweep", LIMIT, "--kernel", "lab", *chosen)
    assert status == 0, output[-3000:]
    assert "\n1..4\n" in output
    for words in ("fail FAILED", "delay 5ms", "hang", "reset"):
        assert f" endpoint.work.pre {words} at pass 1" in output, words
    assert "# SKIP" not in output
    assert "boot 1 of a guest" in output
    assert "boot 2 of a guest" not in output
    console = (artefacts / "sweep" / "latest" / "console.log").read_text(errors="replace")
    assert "it had stopped: its function was reset" in console
