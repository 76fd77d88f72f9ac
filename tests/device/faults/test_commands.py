"""``pviommu faults``: its output and its exit statuses."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pviommu import resources
from pviommu.cli import main
from pviommu.faults.catalogue import PROBES
from pviommu.faults.scenario import load
from pviommu.reports.ktap import KtapParser
from pviommu.scenarios.run import played

THIRD = "schedule = { nth = 3 }\n"
LATER = "schedule = { after = 2 }\n"
RULE = 'id = "it"\non = "op.map_pages.pre"\n'


def write(folder: Path, text: str) -> str:
    path = folder / "scenario.toml"
    path.write_text(f"version = 1\n\n[[rule]]\n{text}\n")
    return str(path)


def test_the_list_has_every_probe_with_its_errors_and_marks_what_is_adversarial(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["faults", "list"]) == 0
    text = capsys.readouterr().out
    assert all(f"{name}: " in text for name in PROBES)
    assert text.count("\n    .post ") == len(PROBES)
    assert "errors   ENOMEM, EINVAL!, " in text
    assert ".apply   partial, lie!, duplicate!" in text

    assert main(["faults", "list", "op.map_pages.*", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    [probe] = found["probes"]
    assert probe["places"]["op.map_pages.pre"]["fail"] == "conforming"
    assert probe["errors"]["ENOMEM"] == "conforming"
    assert probe["errors"]["EINVAL"] == "adversarial"

    assert main(["faults", "list", "op.map_pages", "--json"]) == 0  # a probe is all of its places
    assert json.loads(capsys.readouterr().out) == found

    assert main(["faults", "list", "nothing.*"]) == 2
    assert "no place is 'nothing.*'" in capsys.readouterr().err


def test_a_check_names_the_rules_or_the_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["faults", "check", write(tmp_path, RULE + "do = { hang = true }")]) == 0
    assert "right, it (adversarial)" in capsys.readouterr().out
    assert main(["faults", "check", write(tmp_path, RULE + "do = { hang = 1 }")]) == 2
    assert "line 6: rule[0].do.hang = 1: must be true" in capsys.readouterr().err
    assert main(["faults", "check", write(tmp_path, RULE + 'do = { fail = "ENODEV" }')]) == 2
    assert "EADDRINUSE, EIO; `status` answers any other\n" in capsys.readouterr().err
    assert main(["faults", "check", write(tmp_path, 'id = "it"\non = "op.bind"')]) == 2
    said = "line 5: rule it: the probe op.bind needs its side: op.bind.pre, op.bind.apply, op.bind.post\n"
    assert said in capsys.readouterr().err
    assert main(["faults", "check", "slow-invalidatoin"]) == 2
    assert "lists those that are shipped, as slow-invalidation\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        (RULE + 'schedule = { nth = 2 }\ndo = { fail = "ENOMEM" }', 0, "ok   it (op.map_pages.pre): fired 1 of 33"),
        (RULE + 'schedule = { nth = 99 }\ndo = { fail = "ENOMEM" }', 5, "FAIL it (op.map_pages.pre): fired 0 of 32"),
        (RULE + 'do = { fail = "ENOMEM" }\nexpect = { fired = "1..5" }', 5, "expected 1..5"),
        (RULE + "do = { lie = true }", 2, "lie is not possible at op.map_pages.pre"),
        ('id = "it"\non = "op.map_pages.apply"\ndo = { lie = true }', 0, "which adversarial rules may do"),
        (
            'id = "it"\non = "endpoint.work.pre"\nschedule = { after = 2 }\ndo = { fail = "FAILED" }',
            1,
            "again and again",
        ),
        (RULE + THIRD + "do = { crash = true }", 0, "the server is gone"),
        (RULE + THIRD + 'do = { suspend = "x" }', 5, "still suspended at the end: x"),
        (RULE + THIRD + 'do = { wait = "x" }', 5, "still waiting at the end for x; nothing was suspended under that"),
    ],
)
def test_a_run_ends_with_what_came_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, status: int, said: str
) -> None:
    assert main(["faults", "run", write(tmp_path, text)]) == status
    shown = capsys.readouterr()
    assert said in shown.out + shown.err


def test_a_run_for_programs_and_its_events(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = tmp_path / "events"
    path = write(tmp_path, RULE + 'schedule = { nth = 2 }\ndo = { fail = "ENOMEM" }')
    assert main(["faults", "run", path, "--workload", "wire", "--json", "--events", str(events)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["status"], found["end"], found["harm"]) == (0, "done", [])
    [rule] = found["verdict"]["rules"]
    assert (rule["id"], rule["class"], rule["fired"]) == ("it", "conforming", 1)
    [event] = map(json.loads, events.read_text().splitlines())
    assert (event["rule"], event["after"]) == ("it", {"result": "ENOMEM"})


def test_events_that_nobody_reads_end_or_delay_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    path = write(tmp_path, RULE + 'do = { log = "x" }')
    assert main(["faults", "run", path, "--events", str(fifo)]) == 3
    assert capsys.readouterr().err == f"pviommu: --events {fifo}: nobody reads this FIFO\n"
    assert main(["faults", "run", path, "--events", str(tmp_path)]) == 3
    assert capsys.readouterr().err == f"pviommu: --events {tmp_path}: Is a directory\n"

    monkeypatch.setattr("pviommu.scenarios.run._PATIENCE_S", 0.01)
    with open(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK), "rb") as reader:
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
        assert main(["faults", "run", path, "--events", str(fifo)]) == 0
    assert " events were lost\n" in capsys.readouterr().err


def test_shipped_scenarios_are_listed_shown_and_taken_by_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["faults", "scenarios"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0].rstrip("!") for line in lines] == sorted(resources.scenarios())
    assert all(len(line.split()) > 5 for line in lines)

    assert main(["faults", "show", "lab"]) == 0
    assert capsys.readouterr().out == (resources.qemu_configs() / "scenarios/lab.toml").read_text()

    assert main(["faults", "check", "lab", "no-such"]) == 2
    said = capsys.readouterr()
    assert said.out.startswith("lab: right, no-pages-in-advance (conforming), ")
    assert said.err == (
        "pviommu: cannot read scenario no-such: No such file or directory; "
        "`pviommu faults scenarios` lists those that are shipped\n"
    )


def test_the_scenario_of_the_lab_is_conforming_and_a_guest_survives_it() -> None:
    for workload in ("maps", "wire"):
        outcome = played(load(Path("lab")), workload)
        assert not outcome.is_adversarial
        assert (outcome.end, outcome.harm) == ("done", ())


@pytest.mark.parametrize(
    ("text", "status", "marks"),
    [
        (RULE + 'schedule = { nth = 2 }\ndo = { fail = "ENOMEM" }', 0, ["ok 1", "ok 2", "ok 3"]),
        (RULE + 'schedule = { nth = 99 }\ndo = { fail = "ENOMEM" }', 5, ["ok 1", "not ok 2", "ok 3"]),
        (
            'id = "it"\non = "endpoint.work.pre"\n' + "schedule = { after = 2 }\n" + 'do = { fail = "FAILED" }',
            1,
            ["not ok 1", "ok 2", "ok 3"],
        ),
        ('id = "it"\non = "op.map_pages.apply"\ndo = { lie = true }', 0, ["ok 1", "ok 2", "ok 3"]),
        (RULE + THIRD + 'do = { suspend = "x" }', 5, ["not ok 1", "ok 2", "not ok 3"]),
    ],
)
def test_a_run_is_reported_as_tests_of_its_guest_its_rules_and_the_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, status: int, marks: list[str]
) -> None:
    path, junit = write(tmp_path, text), tmp_path / "junit.xml"
    assert main(["faults", "run", path, "--ktap", "-", "--junit", str(junit)]) == status

    parser = KtapParser()
    lines = capsys.readouterr().out.splitlines()
    for line in lines:
        parser.feed(line)
    read = parser.finish()
    assert read.problems == []
    assert [test.name for test in read.tests] == ["the guest of maps", "rule it", "the scenario ends as expected"]
    assert [line[: line.index(" ", line.index("ok ") + 3)] for line in lines if "ok " in line[:7]] == marks

    [suite] = ElementTree.parse(junit).getroot()
    failed = [case.get("name") for case in suite if case.find("failure") is not None]
    assert failed == [test.name for test in read.tests if test.failed]
    assert suite.get("failures") == str(len(failed))
    assert {case.get("classname") for case in suite} == {"scenario"}


def test_what_a_rule_stands_for_is_one_line_of_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = 'text = """all is well:\n\nnot ok 1 - the guest"""\n'
    assert main(["faults", "run", write(tmp_path, RULE + text), "--ktap", "-"]) == 0
    shown = capsys.readouterr().out
    assert "expected once or more: all is well: not ok 1 - the guest\n" in shown
    assert "\nnot ok" not in shown


def test_reports_of_a_run_say_why_and_do_not_fight_over_standard_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, ktap = write(tmp_path, RULE + 'schedule = { nth = 99 }\ndo = { fail = "ENOMEM" }'), tmp_path / "ktap"
    assert main(["faults", "run", path, "--ktap", str(ktap)]) == 5
    assert "# it fired never, expected once or more: 32 times its conditions were met" in ktap.read_text()
    assert "FAIL it" in capsys.readouterr().out

    assert main(["faults", "run", path, "--ktap", "-", "--json"]) == 2
    assert "--json and --ktap -: only one of them has standard output" in capsys.readouterr().err

    lie = write(tmp_path, 'id = "it"\non = "op.map_pages.apply"\ndo = { lie = true }')
    main(["faults", "run", lie, "--ktap", "-"])
    assert "\nok 1 the guest of maps # XFAIL adversarial rules acted\n" in capsys.readouterr().out
