"""``pviommu faults``: its output and its exit statuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pviommu.cli import main
from pviommu.faults.catalogue import PROBES

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
    assert "errors   ENOMEM, EINVAL!, " in text
    assert ".apply   partial, lie!, duplicate!" in text

    assert main(["faults", "list", "op.map_pages.*", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    [probe] = found["probes"]
    assert probe["places"]["op.map_pages.pre"]["fail"] == "conforming"
    assert probe["errors"]["ENOMEM"] == "conforming"
    assert probe["errors"]["EINVAL"] == "adversarial"

    assert main(["faults", "list", "nothing.*"]) == 2
    assert "no place is 'nothing.*'" in capsys.readouterr().err


def test_a_check_names_the_rules_or_the_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["faults", "check", write(tmp_path, RULE + "do = { hang = true }")]) == 0
    assert "right, it (adversarial)" in capsys.readouterr().out
    assert main(["faults", "check", write(tmp_path, RULE + "do = { hang = 1 }")]) == 2
    assert "line 6: rule[0].do.hang = 1: must be true" in capsys.readouterr().err


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
