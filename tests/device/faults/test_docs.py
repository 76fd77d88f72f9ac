"""What docs/faults.md, and the pages beside it, say is so: their tables, commands, rules, Python."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from pviommu.cli import main
from pviommu.exit_status import ExitStatus
from pviommu.faults.scenario import parse
from pviommu.scenarios.run import played
from pviommu.scenarios.tables import TABLES, renewed
from pviommu.scenarios.workloads import WORKLOADS

DOCS = Path(__file__).parents[3] / "docs"
PAGES = [page.read_text(encoding="utf-8") for page in (DOCS / "faults.md", *sorted(DOCS.glob("faults-*.md")))]
PAGE = "\n".join(PAGES)
BLOCKS = [
    re.sub("^    ", "", block, flags=re.MULTILINE) for block in re.findall(r"(?:^(?:    .*)?\n)+", PAGE, re.MULTILINE)
]
TOML = [block.strip() for block in BLOCKS if "[[rule]]" in block]
COMMANDS = re.findall(r"^    \$ pviommu (.+)$", PAGE, re.MULTILINE)


def test_the_tables_are_those_of_the_code() -> None:
    assert [renewed(page) for page in PAGES] == PAGES, "python -m pviommu.scenarios docs/faults*.md writes them"
    assert sorted(re.findall(r"<!-- table: (\w+) -->", PAGE)) == sorted(TABLES)
    assert set(TABLES) == {"scenarios", "keys", "conditions", "actions", "probes"}


def test_there_is_something_to_try() -> None:
    assert len(TOML) == 3
    assert len(COMMANDS) == 12


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_works(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("scenario.toml").write_text(TOML[0])
    assert main([word.strip("'") for word in command.split()]) == 0
    assert capsys.readouterr().out


def test_its_rules_do_what_they_are_to_show() -> None:
    outcome = played(parse({"version": 1, "seed": 7, **tomllib.loads(TOML[1])}), "maps")
    assert (outcome.status, outcome.harm) == (ExitStatus.PASSED, ())


@pytest.mark.parametrize("workload", ["maps", "wire"])
def test_its_first_scenario_made_ready_for_linux_passes_without_it_too(workload: str) -> None:
    first = tomllib.loads(TOML[0])
    made = {**first, "rule": [*tomllib.loads(TOML[2])["rule"], *first["rule"]]}
    assert played(parse(made), workload).status == ExitStatus.PASSED


def test_its_python_works() -> None:
    [program] = [block for block in BLOCKS if "from pviommu" in block]
    exec(program, {})


@pytest.mark.parametrize(("command", "expected"), [("run", {0, 1, 2, 3, 5}), ("sweep", {0, 1, 2, 3, 5})])
def test_it_says_what_each_exit_status_means(
    capsys: pytest.CaptureFixture[str], command: str, expected: set[int]
) -> None:
    sentence = re.search(rf"Exit statuses of `faults {command}`: (.*?)\.\s", PAGE, re.DOTALL)
    assert sentence
    statuses = {int(number) for number in re.findall(r"\b(\d) ", sentence[1])}
    assert statuses == expected
    with pytest.raises(SystemExit):
        main(["faults", command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert all(f" {number} " in text for number in statuses)
    assert all(name in text for name in WORKLOADS)
