"""The scenario of a run: what the guest is told of it, when its rules are there, what becomes of its verdict."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest

from pviommu.control.client import ConnectionLostError
from pviommu.control.rules import RuleCommands
from pviommu.faults.engine import Faults
from pviommu.faults.scenario import Scenario
from pviommu.inputs import LiveInputs
from pviommu.lab import scenario
from pviommu.lab.problems import UsageError
from pviommu_abi.shared import name_hash

if TYPE_CHECKING:
    from conftest import Lab

RULE = 'version = 1\n[[rule]]\nid = "it"\non = "{on}"\ndo = {{ {do} }}\nexpect = {{ {expect} }}\n'
GUEST = r"""printf 'KTAP version 1\n1..1\n{before}# lab: request rules-load\n' >&3
read -r answer <&3
printf '# lab: request rules-unload\n' >&3
read -r gone <&3
[[ $answer-$gone = 'done rules-load-done rules-unload' ]] || printf 'not ' >&3
printf '{result} 1 all\n# lab: exit 0\n' >&3"""


class Server:
    """Takes the place of a server's control socket: its rules are real, the machine that they would meet is not."""

    def __init__(self) -> None:
        self.faults = Faults(Scenario(), LiveInputs())
        self.calls: list[str] = []
        self.gone = False

    def connect(self, path: Path, timeout_s: float) -> Server:
        if self.gone:
            raise ConnectionLostError(f"{path}: the server hung up")
        return self

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *unused: object) -> None:
        pass

    def call(self, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        self.calls.append(name)
        commands = RuleCommands(self.faults, lambda: None)
        answer: dict[str, Any] = getattr(commands, f"do_{name.replace('-', '_')}")(**arguments)
        return answer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    monkeypatch.setattr(scenario, "Client", made.connect)
    return made


def write(folder: Path, expect: str = "fired = 0", on: str = "op.map_pages.pre", do: str = 'fail = "ENOMEM"') -> str:
    path = folder / "mine.toml"
    path.write_text(RULE.format(on=on, do=do, expect=expect))
    return str(path)


def guest(result: str = "ok", before: str = "") -> str:
    return GUEST.format(result=result, before=before)


def test_a_guest_is_told_of_its_scenario_and_of_what_each_rule_is_to_do(lab: Lab, tmp_path: Path) -> None:
    for expect, want in (("fired = 0", "0 0"), ('fired = "2.."', "2 -"), ('passed = "1.."', "0 -"), ("", "1 -")):
        files = lab.image_files("--scenario", write(tmp_path, expect))
        assert files["/lab/rules"].decode() == f"{name_hash('it'):016x} {want} it\n"
    assert files["/lab/config"].endswith(b"keep=0\nscenario=mine\nscenario_alone=1\n")


def test_rules_about_messages_are_refused_where_the_library_reads_them(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = write(tmp_path, on="message.region_read.pre", do='fail = "EINVAL"')
    assert lab.main("--scenario", rules, "--transport", "libvfio-user", "--only-setup")[0] == 2
    assert "--scenario mine: a rule is about message.region_read.pre, which is out of reach with" in (
        capsys.readouterr().err
    )
    assert lab.main("--scenario", rules, "--only-setup")[0] == 0


def test_rules_that_did_what_was_expected_are_part_of_the_verdict(lab: Lab, server: Server, tmp_path: Path) -> None:
    lab.guest = guest()
    status, shown = lab.main("--scenario", write(tmp_path))

    assert status == 0, shown
    assert server.calls == ["rules-load", "rules-unload"]
    results = json.loads(lab.result("results.json"))["scenario"]
    assert (results["name"], results["events_file"]) == ("mine", "events.jsonl")
    assert results["verdict"]["ok"]
    assert [rule["id"] for rule in results["verdict"]["rules"]] == ["it"]
    assert ", scenario mine: 1 rule, all as expected (" in shown.splitlines()[-1]


def test_a_rule_that_never_fired_is_status_5_and_named(lab: Lab, server: Server, tmp_path: Path) -> None:
    for result in ("ok", "not ok"):  # that the guest's tests noticed something, too, is no other reason
        lab.guest = guest(result)
        status, shown = lab.main("--scenario", write(tmp_path, ""))

        assert status == 5
        assert "problem rule it: it fired never, expected once or more" in shown
        assert ", scenario mine: 1 rule, 1 not as expected (" in shown.splitlines()[-1]
        assert not json.loads(lab.result("results.json"))["scenario"]["verdict"]["ok"]
    lab.guest = guest()
    lab.main("--scenario", write(tmp_path, ""))
    [suite] = ElementTree.fromstring(lab.result("junit.xml"))
    assert suite.get("errors") == "1"


def test_a_guest_that_fails_while_its_rules_do_what_was_expected_is_status_1(
    lab: Lab, server: Server, tmp_path: Path
) -> None:
    lab.guest = guest("not ok")
    status, shown = lab.main("--scenario", write(tmp_path))

    assert status == 1
    assert "scenario mine: 1 rule, all as expected" in shown


def test_a_guest_that_dies_while_rules_act_leaves_their_verdict(lab: Lab, server: Server, tmp_path: Path) -> None:
    lab.guest = guest().partition("printf '# lab: request rules-unload")[0] + "exit 0"
    status, shown = lab.main("--scenario", write(tmp_path))

    assert status == 1
    assert server.calls == ["rules-load", "rules-unload"]
    assert "crashed or was cut off" in shown
    assert json.loads(lab.result("results.json"))["scenario"]["verdict"]["ok"]


def test_a_scenario_that_was_asked_for_and_not_played_fails_the_run(lab: Lab, server: Server, tmp_path: Path) -> None:
    status, shown = lab.main("--scenario", write(tmp_path))  # the guest asks for nothing

    assert status == 5
    assert "problem scenario mine: it was not played to its end" in shown
    assert json.loads(lab.result("results.json"))["scenario"]["verdict"] is None


def test_a_server_that_is_gone_refuses_the_guest_its_rules(lab: Lab, server: Server, tmp_path: Path) -> None:
    server.gone = True
    lab.guest = guest()
    status, shown = lab.main("--scenario", write(tmp_path))

    assert status == 5
    assert "FAIL all" in shown
    assert "scenario mine: no verdict" in shown


@pytest.mark.parametrize(
    ("on", "options", "start"),
    [
        ("op.map_pages.pre", (), "tests"),
        ("message.dma_map.pre", (), "boot"),
        ("socket.accept.pre", (), "boot"),
        ("op.map_pages.pre", ("--scenario-from", "boot"), "boot"),
        ("message.dma_map.pre", ("--scenario-from", "tests"), "tests"),
    ],
)
def test_rules_are_there_from_the_boot_on_if_they_could_not_be_met_later(
    lab: Lab, server: Server, tmp_path: Path, on: str, options: tuple[str, ...], start: str
) -> None:
    config = lab.image_files("--scenario", write(tmp_path, on=on), *options)["/lab/config"]

    assert (b"scenario_from=boot" in config) == (start == "boot")
    assert ("rules-load" in server.calls) == (start == "boot")  # this guest asks for nothing
    assert server.calls[1:] == (["rules-unload"] if start == "boot" else [])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--scenario", "no-such"), "cannot read scenario no-such: No such file or directory; `pviommu faults"),
        (("--scenario", "lab", "--long"), "--scenario and --long: there are no long tests"),
        (("--scenario-from", "boot"), "--scenario-from boot: only with --scenario"),
    ],
)
def test_a_wrong_scenario_ends_with_status_2_and_boots_nothing(
    lab: Lab, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    assert lab.main(*options)[0] == 2
    assert words in capsys.readouterr().err
    assert not (lab.folder / "lab-results").exists()


def test_a_run_that_names_none_plays_that_of_the_lab_if_anything_can_be_mapped(lab: Lab) -> None:
    assert b"scenario=lab\n" in lab.image_files()["/lab/config"]
    assert b"scenario" not in lab.image_files("--mode", "passthrough")["/lab/config"]
    assert b"scenario" not in lab.image_files("--suite", "vfio")["/lab/config"]


def test_rules_are_taken_away_once_and_only_if_they_are_there(server: Server) -> None:
    name, loaded = scenario.found(Path("lab"))
    play = scenario.Play(name, loaded, "tests")

    assert play.unload(Path("ctl")) == "no rules were loaded"
    assert play.load(Path("ctl")) is None
    assert play.unload(Path("ctl")) is None
    assert play.unload(Path("ctl")) == "they are gone already"
    assert server.calls == ["rules-load", "rules-unload"]


def test_a_scenario_with_a_mistake_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"mine.toml: line 5: rule\[0\].do.hang = 1: must be true"):
        scenario.found(Path(write(tmp_path, do="hang = 1")))
