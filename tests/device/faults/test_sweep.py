"""Sweeps: every failure at each place that a workload passes, what counts as a failure, and how that is told."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pviommu.cli import main
from pviommu.endpoints.dma_test import DmaTestEngine
from pviommu.endpoints.failure import EndpointAttempts
from pviommu.exit_status import ExitStatus
from pviommu.faults.actions import ACTIONS, Do
from pviommu.faults.catalogue import PROBES, Nature, places
from pviommu.faults.scenario import Rule, Scenario, load
from pviommu.faults.schedule import Schedule
from pviommu.faults.written import written
from pviommu.interfaces.iommufd.hardware import Hardware
from pviommu.interfaces.iommufd.ioas import Ioas
from pviommu.interfaces.pv.bindings import Bindings
from pviommu.reports.ktap import KtapParser, Outcome
from pviommu.scenarios import sweep as sweeping
from pviommu.scenarios import workloads
from pviommu.scenarios.cases import LEFT_OUT, Case, Passes, cases, passes
from pviommu.scenarios.examination import Kind, examined
from pviommu.scenarios.run import played
from pviommu.scenarios.sweep import Result, swept, uncovered
from pviommu.scenarios.workloads import WORKLOADS

SHARDS = 8
PLACES = [place.name for place in places("*")]


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is swept acts in the first rounds; these are enough to see what comes of it."""
    monkeypatch.setattr(workloads, "ROUNDS", 8)


@cache
def passed(workload: str) -> Passes:
    return passes(workload)


def rule(on: str, nth: int | None = 1, **do: Any) -> Scenario:
    return Scenario(rule=(Rule(id="it", on=on, schedule=Schedule(nth=nth), do=Do(**do)),))


def kinds(scenario: Scenario, workload: str = "maps") -> set[Kind]:
    return {failure.kind for failure in examined(scenario, workload).failures}


@pytest.mark.parametrize("shard", range(SHARDS))
def test_a_guest_over_the_wire_survives_whatever_fails(shard: int) -> None:
    results = [swept("wire", case) for case in list(cases(passed("wire")))[shard::SHARDS]]
    assert [(result.case.words, result.failures) for result in results if result.failures] == []
    assert [result.case.words for result in results if not result.fired] == []


def test_guest_memory_that_comes_again_may_be_refused() -> None:
    chosen = {"message.dma_map.pre": passed("wire")["message.dma_map.pre"]}
    results = [swept("wire", case) for case in cases(chosen, "last") if case.rule.do and case.rule.do.fail]
    assert [result.failures for result in results] == [(), ()]


def test_operations_that_the_wire_does_not_pass_may_fail() -> None:
    others = {name: count for name, count in passed("operations").items() if name not in passed("wire")}
    results = [swept("operations", case) for case in cases(others)]
    assert [(result.case.words, result.failures) for result in results if result.failures] == []
    assert all(result.fired for result in results)


@pytest.mark.parametrize("nth", [1, 17, "last"])
def test_requests_of_iommufd_that_fail_change_nothing(nth: int | str) -> None:
    """At three passes of each place; all of them, some 400, are for the command line."""
    chosen = {name: count for name, count in passed("iommufd").items() if name.endswith(".pre")}
    results = [swept("iommufd", case) for case in cases(chosen, nth)]
    assert [(result.case.words, result.failures) for result in results if result.failures] == []
    assert all(result.fired for result in results)
    least = nth if isinstance(nth, int) else 1
    assert {result.case.rule.on for result in results} == {name for name, count in chosen.items() if count >= least}


def test_a_page_table_that_a_failed_request_leaves_behind_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hardware, "remove_table", lambda *_: None)
    case = next(case for case in cases({"iommufd.leaves.pre": 1}))
    assert any("failed, and changed page table " in failure for failure in swept("iommufd", case).failures)


def test_a_mapping_that_a_failed_request_leaves_behind_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the workload unmaps it where only the answer is lost."""
    right = Ioas.map

    def wrong(*args: Any) -> int:
        try:
            return right(*args)
        except OSError:
            right(*args)  # it fails once
            raise

    monkeypatch.setattr(Ioas, "map", wrong)
    case = next(case for case in cases({"iommufd.area.pre": 1}))
    assert any("IoasMap failed, and changed IOAS" in failure for failure in swept("iommufd", case).failures)


def test_an_adversarial_rule_harms_its_own_guest_only() -> None:
    """One of each action; all of them are for the command line."""
    chosen: dict[str, Case] = {}
    for case in cases(passed("wire"), adversarial=True):
        if case.rule.nature is Nature.ADVERSARIAL and case.rule.do:
            chosen[case.rule.do.action] = case
    assert {"lie", "hang", "corrupt", "disconnect", "reset", "status", "truncate", "fail"} <= set(chosen)
    results = [swept("wire", case) for case in chosen.values()]
    assert [(result.case.words, result.failures) for result in results if result.failures] == []


# -- what is tried -------------------------------------------------------------------------------------------------


def test_together_the_workloads_pass_every_probe() -> None:
    assert set.intersection(*(set(uncovered(passed(name))) for name in WORKLOADS)) == set()


def test_each_place_that_is_passed_has_a_case_and_each_error_that_it_declares() -> None:
    every = list(cases(passed("wire")))
    assert {case.rule.on for case in every} == set(passed("wire"))
    assert all(case.rule.nature is Nature.CONFORMING for case in every)
    assert [case.number for case in every] == list(range(1, len(every) + 1))
    assert len({case.rule.id for case in every}) == len(every)
    for place in places("*"):
        if place.actions.get("fail") is Nature.CONFORMING and place.name in passed("wire"):
            tried = {case.rule.do.fail for case in every if case.rule.on == place.name and case.rule.do}
            assert set(place.probe.errors) <= tried


def test_every_action_is_tried_or_said_to_be_left_out() -> None:
    every = cases(dict.fromkeys(PLACES, 1), adversarial=True)
    assert {case.rule.do.action for case in every if case.rule.do} | set(LEFT_OUT) == set(ACTIONS)


def test_every_case_is_a_scenario_that_its_text_reads_as(tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    for case in cases(dict.fromkeys(PLACES, 1), adversarial=True):
        path.write_text(written(case.scenario), encoding="utf-8")
        assert load(path) == case.scenario


def test_a_scenario_with_all_keys_is_what_its_text_reads_as(tmp_path: Path) -> None:
    document = {
        "version": 1,
        "seed": 9,
        "text": 'quotes " and \\, a line\nmore, \x7f, \N{SNOWMAN}, \N{GRINNING FACE}',
        "state": "first",
        "expect": {"state": "second"},
        "rule": [
            {
                "id": "a",
                "on": "op.map_pages.pre",
                "where": {"ctx": 3, "dfn": "0x10..0x20"},
                "schedule": {"after": 2, "every": 3, "probability": 1e-05},
                "when_state": "first",
                "set_state": "second",
                "do": {"assert": {"nr": "1.."}},
                "expect": {"fired": "0..", "passed": 2},
                "text": "why",
            },
            {"id": "b", "on": "iotlb.*"},
        ],
    }
    as_json, as_toml = tmp_path / "it.json", tmp_path / "it.toml"
    as_json.write_text(json.dumps(document))
    as_toml.write_text(written(load(as_json)), encoding="utf-8")
    assert load(as_toml) == load(as_json)


@pytest.mark.parametrize(("nth", "turns"), [(1, [1]), (5, [5]), (6, []), ("last", [5]), ("all", [1, 2, 3])], ids=str)
def test_a_rule_acts_at_the_pass_that_is_asked_for(nth: int | str, turns: list[int]) -> None:
    found = list(cases({"op.map_pages.apply": 5, "op.bind.apply": 0}, nth, limit=3))
    assert {case.rule.do.action for case in found if case.rule.do} in ({"partial"}, set())
    assert [case.rule.schedule.nth for case in found] == turns


# -- what counts as a failure --------------------------------------------------------------------------------------


def test_without_rules_nothing_is_wrong() -> None:
    assert all(examined(Scenario(), name).found == () for name in WORKLOADS)


def test_harm_to_the_guest_fails_unless_the_rule_is_adversarial(monkeypatch: pytest.MonkeyPatch) -> None:
    lie = rule("op.map_pages.apply", lie=True)
    assert Kind.HARM in {failure.kind for failure in examined(lie, "maps").found}
    assert kinds(lie) == set()
    monkeypatch.setattr("pviommu.scenarios.run.Outcome.is_adversarial", False)
    assert Kind.HARM in kinds(lie)


def test_a_guest_that_is_stuck_fails() -> None:
    assert kinds(rule("endpoint.work.pre", None, fail="FAILED")) == {Kind.STUCK}


def test_an_exception_that_the_server_survives_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: DmaTestEngine) -> None:
        raise ZeroDivisionError("seven by nought")

    monkeypatch.setattr(DmaTestEngine, "work", broken)
    found = examined(Scenario(), "maps").failures
    assert any("ZeroDivisionError: seven by nought, test_sweep.py" in failure.text for failure in found)
    assert Kind.SERVER in {failure.kind for failure in found}


def test_an_exception_that_ends_the_server_fails_whatever_the_rule_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pviommu.host.timers.Timers.run", lambda *_: [][0])
    monkeypatch.setattr("pviommu.scenarios.run.Outcome.is_adversarial", True)
    outcome, found = examined(rule("socket.receive.pre", delay="1ms"), "wire")
    assert (outcome.end, outcome.failed) == ("IndexError: list index out of range", True)
    assert outcome.status == ExitStatus.FAILED
    assert outcome.tests("wire").counts().failed == 1
    assert "which adversarial rules may do" not in "".join(outcome.lines())
    assert Kind.SERVER in {failure.kind for failure in found}


def test_what_is_left_behind_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bindings, "reset", lambda _: None)
    monkeypatch.setattr("pviommu.scenarios.examination._PATIENCE_S", 0.02)
    assert examined(Scenario(), "maps").failures[0].text == "2 bindings, where there were 0"


def test_harm_to_the_next_guest_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EndpointAttempts, "reset", lambda _: None)
    assert kinds(rule("endpoint.work.pre", fail="FAILED"), "wire") == {Kind.STUCK, Kind.NEXT}


def test_a_loop_that_is_busy_without_end_ends_the_wait_of_a_guest() -> None:
    turns: list[int] = []
    outcome = played(
        rule("dma.translate.pre", hang=True), "maps", around=lambda stage: lambda _: turns.append(stage.turns)
    )
    assert outcome.end == "the end of a descriptor of dma0 did not come within 2 s"
    assert 1000 < turns[0] < 50_000


def test_the_guests_program_may_be_wrong_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pviommu.scenarios.guest.PlayedGuest.attached", lambda *_: {}["x"])
    [case] = cases({"context.hold.pre": 1})
    assert swept("maps", case).failures == ("an exception in the guest's program: KeyError: 'x'",)


# -- the command ---------------------------------------------------------------------------------------------------


def sweep(*words: str) -> int:
    return main(["faults", "sweep", "--quiet", *words])


def test_the_result_is_ktap(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("--only", "op.map_pages", "--workload", "maps") == 0
    text = capsys.readouterr().out
    parser = KtapParser()
    for line in text.splitlines():
        parser.feed(line)
    run = parser.finish()
    assert run.problems == []
    results = [result for _, result in run.leaves()]
    assert {result.outcome for result in results} == {Outcome.PASSED}
    assert "op.map_pages.apply partial 1 then ENOMEM at pass 1" in [result.name for result in results]
    assert "# not covered: op.query_capabilities, " in text


def test_a_failure_is_told_with_the_rule_that_shows_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Bindings, "reset", lambda _: None)
    monkeypatch.setattr("pviommu.scenarios.examination._PATIENCE_S", 0.02)
    assert sweep("--only", "op.bind.pre") == 1
    text = capsys.readouterr().out
    assert "# left behind: 2 bindings, where there were 0\n" in text
    assert '#   on = "op.bind.pre"\n#   schedule = { nth = 1 }\n#   do = { delay = "5ms" }\n' in text
    assert "not ok 1 op.bind.pre delay 5ms at pass 1\n" in text


def test_the_command_sees_an_exception_that_the_server_survives() -> None:
    """In a process of its own: pytest has set up logging before the command does, which changes what that sees."""
    broken = """
from pviommu.cli import main
from pviommu.endpoints.dma_test import DmaTestEngine

def work(_):
    raise ZeroDivisionError("seven by nought")

DmaTestEngine.work = work
raise SystemExit(main(["faults", "sweep", "--quiet", "--only", "op.bind.pre"]))
"""
    ended = subprocess.run([sys.executable, "-c", broken], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (1, "")
    assert "# an exception in the server: dma0: " in ended.stdout


def test_shards_have_every_case_once(capsys: pytest.CaptureFixture[str]) -> None:
    def numbers(*words: str) -> list[int]:
        assert sweep("--only", "op.bind.*", "--json", *words) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["counts"] == {"passed": len(found["results"]), "failed": 0, "skipped": 0}
        return [result["number"] for result in found["results"]]

    whole = numbers()
    parts = [numbers("--shard", f"{part}/3") for part in (1, 2, 3)]
    assert len(whole) >= 3
    assert sorted(number for part in parts for number in part) == whole
    assert all(parts)


def test_a_rule_that_meets_nothing_is_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("--only", "message.version.pre", "--adversarial", "--workload", "wire") == 0
    text = capsys.readouterr().out
    assert " message.version.pre withhold at pass 1 (adversarial) # SKIP nothing that it is about comes" in text


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--shard", "0/3"], 2, "'0/3': must be I/N"),
        (["--shard", "4/3"], 2, "'4/3': must be I/N"),
        (["--shard", "x"], 2, "'x': must be I/N"),
        (["--shard", "1/0"], 2, "'1/0': must be I/N"),
        (["--shard=-1/3"], 2, "must be I/N"),
        (["--shard", "1/3/2"], 2, "must be I/N"),
        (["--shard", "1/99999"], 2, "must be I/N"),
        (["--nth", "0"], 2, "'0': must be all, last, or the number of a pass"),
        (["--nth", "second"], 2, "'second': must be all, last"),
        (["--limit", "0"], 2, "'0': must be a number of passes"),
        (["--only", "op.nothing"], 2, "no place is 'op.nothing'"),
        (["--workload", "x"], 2, "invalid choice: 'x'"),
        (["--output", "x"], 2, "--output goes with --minimise"),
        (["--minimise", "/nowhere/x.toml"], 2, "cannot read scenario /nowhere/x.toml"),
        (["--only", "op.block"], 5, "there is no case"),
        (["--only", "op.bind", "--nth", "3"], 5, "there is no case"),
    ],
)
def test_wrong_arguments_and_nothing_to_do(
    capsys: pytest.CaptureFixture[str], words: list[str], status: int, said: str
) -> None:
    try:
        found = sweep(*words)
    except SystemExit as ended:
        found = int(ended.code or 0)
    assert found == status
    assert said in capsys.readouterr().err


def test_it_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("pviommu.scenarios.sweep._REPORT_S", 0)
    assert main(["faults", "sweep", "--only", "context.hold", "--workload", "operations"]) == 0
    assert "pviommu: 3 of 3 cases, 0 failed\n" in capsys.readouterr().err


def test_uncovered_probes_are_those_without_a_side_that_is_passed() -> None:
    assert uncovered({}) == list(PROBES)
    assert uncovered(dict.fromkeys(PLACES, 1)) == []


def test_a_sweep_that_is_interrupted_tells_what_came_of_the_cases_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried: list[Case] = []

    def interrupted(_workload: str, case: Case) -> Result:
        tried.append(case)
        if len(tried) == 3:
            raise KeyboardInterrupt
        return Result(case, True, ())

    monkeypatch.setattr(sweeping, "swept", interrupted)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        sys.exit(main(["faults", "sweep", "--json", "--workload", "maps", "--only", "op.map_pages"]))
    assert [result["number"] for result in json.loads(capsys.readouterr().out)["results"]] == [1, 2]
